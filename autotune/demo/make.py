"""Write the demo conversations and the tokenizer of `model=tiny`: `python -m autotune.demo.make`.

One narrow subject, kitchen measures: weights of cups, spoons in grams, oven temperatures, portions, tins, hydration.
Every figure is computed. Every answer follows a few patterns and ends with the same kind of line, so that the loss
falls visibly within twenty optimizer steps. Lengths vary as in real conversations (one to five questions, a short
answer or a list). So candidates of a search that pad less are faster.
"""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from random import Random

from autotune.demo import CONVERSATIONS, TINY

Message = dict[str, str]

CONVERSATION_COUNT = 400
VOCABULARY = 2048  # tokens of the tokenizer at most; the few words of these conversations need fewer
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
LONGEST = 1500  # characters of one conversation, about 400 tokens of SmolLM2's tokenizer

# Grams of one level cup, rounded as in kitchen tables. All answers use this table.
GRAMS_PER_CUP = {
    "plain flour": 120,
    "bread flour": 128,
    "rye flour": 104,
    "white sugar": 200,
    "brown sugar": 216,
    "icing sugar": 112,
    "butter": 224,
    "honey": 336,
    "milk": 240,
    "olive oil": 216,
    "rolled oats": 96,
    "cocoa powder": 88,
    "chopped walnuts": 112,
    "plain yoghurt": 248,
}
CUPS = [Fraction(n, d) for n, d in ((1, 4), (1, 3), (1, 2), (2, 3), (3, 4), (1, 1), (5, 4), (3, 2), (2, 1), (5, 2))]
DISHES = ["pancakes", "a sponge cake", "soda bread", "banana muffins", "scones", "flapjacks", "a crumble", "waffles"]
REASONS = [
    "",
    "",
    "Quick question. ",
    "I am baking with my daughter this afternoon. ",
    "I am standing in a rented kitchen with somebody else's things. ",
    "Guests arrive at six and I would rather not get this wrong. ",
    "This is my first time, so please show me how you get there. ",
]
THANKS = ["Thanks! ", "Good. ", "That helps. ", "Great. ", ""]


def conversations(count: int = CONVERSATION_COUNT, *, seed: int = 0) -> list[list[Message]]:
    """Draw `count` different conversations of at most LONGEST characters."""
    random = Random(seed)
    found: dict[str, list[Message]] = {}
    while len(found) < count:
        messages = _conversation(random)
        text = json.dumps(messages)
        if len(text) <= LONGEST:
            found.setdefault(text, messages)
    return list(found.values())


def write_conversations(path: Path) -> None:
    """Write one JSON object to each line: {"messages": [{"role": ..., "content": ...}, ...]}."""
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in conversations())
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_tokenizer(path: Path) -> None:
    """Train a byte-level BPE on the conversations and write it as a `tokenizer.json`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (f"{m['role']}\n{m['content']}\n" for messages in conversations() for m in messages)
    tokenizer.train_from_iterator(texts, trainer)
    path.write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8", newline="\n")


def _conversation(random: Random) -> list[Message]:
    topics = random.choices(
        [_weigh, _spoons, _cups_of, _oven, _portions, _tin, _hydration], weights=[6, 3, 3, 3, 4, 2, 2], k=1
    )
    exchanges = list(topics[0](random))
    kept = random.choices([1, 2, 3, len(exchanges)], weights=[8, 3, 2, 1], k=1)[0]
    messages: list[Message] = []
    for number, (question, answer) in enumerate(exchanges[:kept]):
        opening = random.choice(REASONS) if number == 0 else random.choice(THANKS)
        messages += [{"role": "user", "content": opening + question}, {"role": "assistant", "content": answer}]
    return messages


def _weigh(random: Random) -> Iterator[tuple[str, str]]:
    """Cups to grams, then what people ask next about the same ingredient."""
    what, cup = random.choice(list(GRAMS_PER_CUP.items()))
    cups = random.choice(CUPS)
    dish = random.choice(DISHES)
    grams = cups * cup
    question = random.choice(
        [
            f"How many grams is {_cups(cups)} of {what}?",
            f"What does {_cups(cups)} of {what} weigh?",
            f"My recipe for {dish} says {_cups(cups)} of {what}. What is that in grams?",
            f"I need {_cups(cups)} of {what} for {dish}. How much should the scale show?",
        ]
    )
    yield (
        question,
        f"One level cup of {what} weighs {cup} g. {_weighs(cups)} {_number(cups)} × {cup} g.\n"
        + _result(f"{_grams(grams)} of {what}"),
    )
    yield (
        random.choice(["And in ounces?", "What is that in ounces?", "My scale is in ounces, what should it read?"]),
        f"One ounce is 28.35 g. {_grams(grams)} divided by 28.35 g is {float(grams) / 28.35:.1f}.\n"
        + _result(f"{float(grams) / 28.35:.1f} oz of {what}"),
    )
    times = random.choice([2, 3, 4])
    yield (
        f"What if I make {times} times as much?",
        f"{times} times {_grams(grams)} is {_grams(times * grams)}, which is {_cups(times * cups)}.\n"
        + _result(f"{_grams(times * grams)} of {what}"),
    )
    other, other_cup = random.choice([item for item in GRAMS_PER_CUP.items() if item[0] != what])
    yield (
        f"Does {other} weigh the same?",
        f"No. One level cup of {other} weighs {other_cup} g, against {cup} g for {what}. "
        f"Of {other}, {_weighs(cups)} {_grams(cups * other_cup)}.\n"
        + _result(f"{_grams(cups * other_cup)} of {other}"),
    )


def _spoons(random: Random) -> Iterator[tuple[str, str]]:
    """Table- and teaspoons to grams: 16 tablespoons, or 48 teaspoons, fill a cup."""
    what, cup = random.choice(list(GRAMS_PER_CUP.items()))
    spoon, per_cup = random.choice([("tablespoon", 16), ("teaspoon", 48)])
    count = random.randint(2, 6)
    grams = Fraction(count * cup, per_cup)
    yield (
        random.choice(
            [
                f"How heavy are {count} {spoon}s of {what}?",
                f"How many grams is {count} {spoon}s of {what}?",
                f"{count} {spoon}s of {what}, in grams please.",
            ]
        ),
        f"{per_cup} {spoon}s fill one cup, and one cup of {what} weighs {cup} g. "
        f"{count} {spoon}s weigh {count} × {cup} ÷ {per_cup} g.\n" + _result(f"{_grams(grams)} of {what}"),
    )
    target = random.choice([30, 50, 60, 75, 100])
    needed = -(-target * per_cup // cup)
    yield (
        f"And how many {spoon}s make {target} g?",
        f"One {spoon} of {what} weighs {float(Fraction(cup, per_cup)):.1f} g. "
        f"{target} g divided by that is {float(Fraction(target * per_cup, cup)):.1f}, so round up.\n"
        + _result(f"{_plural(needed, spoon)} of {what}"),
    )


def _cups_of(random: Random) -> Iterator[tuple[str, str]]:
    """Grams to cups, to the nearest quarter."""
    what, cup = random.choice(list(GRAMS_PER_CUP.items()))
    grams = random.choice([100, 125, 150, 200, 250, 300, 350, 400, 500])
    cups = Fraction(round(4 * grams / cup), 4)
    yield (
        random.choice(
            [
                f"How many cups is {grams} g of {what}?",
                f"I have no scale. How do I measure {grams} g of {what} with a cup?",
                f"The book asks for {grams} g of {what}. How many cups are those?",
            ]
        ),
        f"One level cup of {what} weighs {cup} g. {grams} g divided by {cup} g is {grams / cup:.2f}, "
        f"and the nearest quarter is {_number(cups)}.\n" + _result(f"{_cups(cups)} of {what}"),
    )
    yield (
        "How far off is that?",
        f"{_weighs(cups)} {_grams(cups * cup)}, and the recipe asks for {grams} g. The difference is "
        f"{_grams(abs(cups * cup - grams))}.\n" + _result(f"{_grams(abs(cups * cup - grams))} off"),
    )


def _oven(random: Random) -> Iterator[tuple[str, str]]:
    """Fahrenheit to Celsius and back, then the fan oven."""
    fahrenheit = random.choice([275, 300, 325, 350, 375, 400, 425, 450])
    celsius = Fraction(5, 9) * (fahrenheit - 32)
    dial = 10 * round(celsius / 10)
    dish = random.choice(DISHES)
    yield (
        random.choice(
            [
                f"What is {fahrenheit} °F in Celsius?",
                f"The recipe bakes {dish} at {fahrenheit} °F. What do I set my oven to?",
                f"My oven is in Celsius and {dish} should go in at {fahrenheit} °F. What now?",
            ]
        ),
        f"Subtract 32, then multiply by 5 and divide by 9: ({fahrenheit} - 32) × 5 ÷ 9 is {float(celsius):.0f}. "
        f"Set the dial to the nearest ten.\n" + _result(f"{dial} °C"),
    )
    yield (
        random.choice(["Mine is a fan oven.", "And with the fan on?", "Does a fan oven change that?"]),
        f"A fan oven runs 20 °C lower for the same result. {dial} °C less 20 °C is {dial - 20} °C.\n"
        + _result(f"{dial - 20} °C with the fan"),
    )
    minutes = random.choice([20, 25, 30, 40, 45, 60])
    yield (
        f"It says {minutes} minutes. When should I look first?",
        f"Look when four fifths of the time have passed: {minutes} × 4 ÷ 5 is {minutes * 4 // 5} minutes.\n"
        + _result(f"look after {minutes * 4 // 5} minutes"),
    )


def _portions(random: Random) -> Iterator[tuple[str, str]]:
    """A list of ingredients for another number of people: the long answers."""
    dish = random.choice(DISHES)
    serves, wanted = random.choice([(4, 6), (4, 10), (2, 5), (6, 9), (8, 6), (4, 3), (6, 15), (2, 7)])
    factor = Fraction(wanted, serves)
    names = random.sample(list(GRAMS_PER_CUP), k=random.randint(3, 8))
    amounts = {name: 20 * random.randint(2, 15) for name in names}
    listed = ", ".join(f"{grams} g of {name}" for name, grams in amounts.items())
    lines = "\n".join(f"- {name}: {g} g × {_number(factor)} = {_grams(g * factor)}" for name, g in amounts.items())
    total = sum(grams * factor for grams in amounts.values())
    yield (
        random.choice(
            [
                f"My recipe for {dish} serves {serves} and takes {listed}. How much for {wanted}?",
                f"Please scale {dish} from {serves} to {wanted} people: {listed}.",
            ]
        ),
        f"Divide {wanted} by {serves}: every amount is multiplied by {_number(factor)}.\n{lines}\n"
        + _result(f"{_grams(Fraction(total))} in all"),
    )
    name, grams = random.choice(list(amounts.items()))
    yield (
        f"I only have {grams // 2} g of {name}. How many people is that enough for?",
        f"{serves} people need {grams} g of {name}, so one needs {float(Fraction(grams, serves)):.1f} g. "
        f"{grams // 2} g is enough for {serves // 2}.\n" + _result(f"{serves // 2} people"),
    )


def _tin(random: Random) -> Iterator[tuple[str, str]]:
    """A recipe for one round tin in another: amounts follow the area."""
    small, large = sorted(random.sample([15, 18, 20, 23, 25, 28], k=2))
    given, wanted = random.choice([(small, large), (large, small)])
    factor = (wanted / given) ** 2
    yield (
        random.choice(
            [
                f"My cake recipe is for a tin of {given} cm and mine is {wanted} cm across. What do I change?",
                f"How do I get from a round tin of {given} cm to one of {wanted} cm?",
            ]
        ),
        f"Amounts follow the area, and the area follows the square of the width: {wanted} × {wanted} ÷ ({given} × "
        f"{given}) is {factor:.2f}. Multiply every amount by that and keep the temperature.\n"
        + _result(f"{factor:.2f} times everything"),
    )
    eggs = random.choice([2, 3, 4, 5])
    yield (
        f"It takes {eggs} eggs.",
        f"{eggs} × {factor:.2f} is {eggs * factor:.1f}. Eggs come whole, so take the nearest number.\n"
        + _result(_plural(max(1, round(eggs * factor)), "egg")),
    )


def _hydration(random: Random) -> Iterator[tuple[str, str]]:
    """Water of a bread dough as a share of its flour."""
    flour = 50 * random.randint(6, 20)
    share = random.choice([60, 65, 68, 70, 75, 80])
    water = Fraction(flour * share, 100)
    yield (
        random.choice(
            [
                f"How much water goes into {flour} g of bread flour at {share} % hydration?",
                f"I want a dough of {share} % hydration from {flour} g of flour. How much water?",
            ]
        ),
        f"Hydration is water as a share of flour: {flour} g × {share} ÷ 100.\n" + _result(f"{_grams(water)} of water"),
    )
    yield (
        "And how much salt?",
        f"Salt is 2 % of the flour: {flour} g × 2 ÷ 100.\n" + _result(f"{_grams(Fraction(flour, 50))} of salt"),
    )
    yield (
        "What will the dough weigh?",
        f"Add flour, water and salt: {flour} g + {_grams(water)} + {_grams(Fraction(flour, 50))}.\n"
        + _result(f"{_grams(flour + water + Fraction(flour, 50))} of dough"),
    )


def _result(text: str) -> str:
    return f"**Measure: {text}**"


def _cups(cups: Fraction) -> str:
    return f"{_number(cups)} cup" + ("s" if cups > 1 else "")


def _number(value: Fraction) -> str:
    whole, rest = divmod(value, 1)
    return str(whole) if not rest else f"{whole} {rest}" if whole else str(rest)


def _grams(grams: Fraction | int) -> str:
    return f"{round(grams)} g"


def _weighs(cups: Fraction) -> str:
    return f"{_cups(cups)} " + ("weigh" if cups > 1 else "weighs")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count > 1 else "")


if __name__ == "__main__":
    write_conversations(CONVERSATIONS)
    write_tokenizer(TINY / "tokenizer.json")
