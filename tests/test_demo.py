"""What ships for a first try: the demo conversations and the parts of `model=tiny`."""

import json
from pathlib import Path

import pytest

from autotune.demo import CONVERSATIONS, TINY
from autotune.demo.make import LONGEST, conversations, write_conversations, write_tokenizer


def test_the_script_regenerates_the_shipped_conversations(tmp_path: Path) -> None:
    """The data file is what the script in the repository writes, byte for byte."""
    write_conversations(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == CONVERSATIONS.read_bytes()


def test_the_script_regenerates_the_shipped_tokenizer(tmp_path: Path) -> None:
    """The same for the tokenizer that is trained on them."""
    write_tokenizer(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


def test_conversations_alternate_and_differ() -> None:
    """400 different conversations, each of questions and answers in turn, of a length that fits a small context."""
    texts = [json.dumps(messages) for messages in conversations()]
    assert len(set(texts)) == 400
    assert max(map(len, texts)) <= LONGEST
    for messages in conversations():
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)


@pytest.mark.parametrize(
    ("question", "result"),
    [
        ("How many grams is 2 cups of honey?", "672 g of honey"),
        ("What is 350 °F in Celsius?", "180 °C"),
        ("How many grams is 3 tablespoons of milk?", "45 g of milk"),
        ("How many cups is 300 g of white sugar?", "1 1/2 cups of white sugar"),
    ],
)
def test_answers_are_right(question: str, result: str) -> None:
    """Figures checked by hand: the demo must not teach wrong arithmetic."""
    many = conversations(3000, seed=1)
    answers = {m[1]["content"].splitlines()[-1] for m in many if m[0]["content"].endswith(question)}
    assert answers == {f"**Measure: {result}**"}


def test_what_ships_is_small() -> None:
    """The wheel stays under 2 MB for them."""
    assert sum(path.stat().st_size for path in [CONVERSATIONS, *TINY.iterdir()]) < 2_000_000
