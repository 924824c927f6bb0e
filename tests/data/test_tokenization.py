"""Tokenizing: the rows are TRL's own, and what cannot be tokenized is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.core.lengths import Spans
from autotune.core.workload import ModelFacts
from autotune.data.source import locate_data, survey
from autotune.data.tokenization import TokenizationRequest, arguments_taken, measure, tokenize
from autotune.errors import UsageError
from autotune.models.find import resolve_model

USER = {"role": "user", "content": "How many grams is 1 cup of milk?"}
ASSISTANT = {"role": "assistant", "content": "One level cup of milk weighs 240 g."}
TURNS = [USER, ASSISTANT, {"role": "user", "content": "And 2?"}, {"role": "assistant", "content": "480 g."}]
TEXT = {"text": "One level cup of milk weighs 240 g."}
STRINGS = {"prompt": "How many grams is 1 cup?\n", "completion": "240 g."}
EXCHANGE = {"prompt": [USER], "completion": [ASSISTANT]}
WITH_KEYWORDS = {"messages": TURNS, "chat_template_kwargs": {"add_generation_prompt": True}}
CALLS = {
    "messages": [
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "weigh", "arguments": {"what": "milk"}}}],
        },
        {"role": "tool", "content": "240"},
        ASSISTANT,
    ],
    "tools": json.dumps([{"type": "function", "function": {"name": "weigh", "parameters": {}}}]),
}


@pytest.fixture(scope="module")
def tiny(home: Path) -> ModelFacts:
    return resolve_model("tiny", home=home, progress=lambda line: None)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def request_for(model: ModelFacts | str, data: Path, **options: Any) -> TokenizationRequest:
    source = locate_data(str(data), {}, lambda line: None)
    path, vocabulary = (model, 2**20) if isinstance(model, str) else (model.path, model.vocabulary)
    return TokenizationRequest(
        model=path,
        vocabulary=options.pop("vocabulary", vocabulary),
        source=source,
        survey=survey(source, lambda line: None),
        **{"assistant_only_loss": False, "completion_only_loss": None, **options},
    )


def rows_in(directory: Path) -> list[dict[str, Any]]:
    from datasets import load_from_disk

    return list(load_from_disk(str(directory / "rows")))


def rows_of_trl(model: str, rows: list[dict[str, Any]], out: Path, **options: Any) -> list[dict[str, Any]]:
    """What a user gets who gives the same rows to SFTTrainer by hand."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(output_dir=str(out), use_cpu=True, bf16=False, report_to="none", max_length=None, **options)
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows))
    return list(trainer.train_dataset.select_columns(["input_ids", "labels"]))


@pytest.mark.parametrize(
    ("rows", "by_hand", "options"),
    [
        ([TEXT], [TEXT], {}),
        ([STRINGS], [STRINGS], {}),
        ([STRINGS], [STRINGS], {"completion_only_loss": False}),
        ([EXCHANGE], [EXCHANGE], {}),
        ([EXCHANGE], [EXCHANGE], {"assistant_only_loss": True}),
        ([EXCHANGE], [EXCHANGE], {"completion_only_loss": False}),
        ([{"messages": TURNS}, {"messages": TURNS[:2]}], [{"messages": TURNS}, {"messages": TURNS[:2]}], {}),
        ([{"messages": TURNS}], [{"messages": TURNS}], {"assistant_only_loss": True}),
        (
            [WITH_KEYWORDS, {"messages": TURNS[:2]}],
            [WITH_KEYWORDS, {"messages": TURNS[:2], "chat_template_kwargs": {"add_generation_prompt": None}}],
            {},
        ),
        ([{"question": USER["content"], "answer": ASSISTANT["content"]}], [EXCHANGE], {}),
        ([{"instruction": USER["content"], "input": "", "output": ASSISTANT["content"]}], [EXCHANGE], {}),
        (
            [{"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "240 g."}]}],
            [{"messages": [USER, {"role": "assistant", "content": "240 g."}]}],
            {"assistant_only_loss": True},
        ),
    ],
)
def test_rows_are_those_of_the_trainer_itself(
    tiny: ModelFacts, tmp_path: Path, rows: list[dict[str, Any]], by_hand: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    """Row by row and token by token, for every form and every mask."""
    tokenize(request_for(tiny, write(tmp_path / "a.jsonl", rows), **options), tmp_path)
    expected = rows_of_trl(tiny.path, by_hand, tmp_path, **options)
    assert rows_in(tmp_path) == expected
    with np.load(tmp_path / "lengths.npz") as kept:
        spans = Spans(counts=kept["counts"], starts=kept["starts"], ends=kept["ends"])
        assert kept["tokens"].tolist() == [len(row["input_ids"]) for row in expected]
    labels = spans.useful()
    assert labels.tolist() == [sum(label != -100 for label in row["labels"][1:]) for row in expected]
    assert all(labels > 0)


def test_tools_reach_a_template_that_knows_them(tiny: ModelFacts, tmp_path: Path) -> None:
    """Calls, results and tools are rendered by the template itself, exactly as TRL does with the same rows."""
    from transformers import AutoTokenizer
    from trl.chat_template_utils import qwen2_5_chat_template

    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    tokenizer.chat_template = qwen2_5_chat_template
    model = tmp_path / "model"
    tokenizer.save_pretrained(model)
    rows: list[dict[str, Any]] = [CALLS, {"messages": [USER, ASSISTANT]}]
    tokenize(request_for(str(model), write(tmp_path / "a.jsonl", rows)), tmp_path)
    texts = [
        tokenizer.apply_chat_template(
            row["messages"], tools=json.loads(row["tools"]) if "tools" in row else None, tokenize=False
        )
        for row in rows
    ]
    assert [tokenizer.decode(row["input_ids"]) for row in rows_in(tmp_path)] == texts
    assert '"arguments": {"what": "milk"}' in texts[0]


def with_template(tiny: ModelFacts, directory: Path, template: str) -> str:
    """A tokenizer like tiny's with another chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return str(directory)


IDENTIFIED = """{%- for m in messages -%}
{%- for c in m.tool_calls or [] -%}
{%- if c.id is not defined or c.id | length != 9 -%}{{- raise_exception('no identity') -}}{%- endif -%}
{{- '[CALL]' + c.function.name + ' ' + c.function.arguments + c.id -}}
{%- endfor -%}
{%- if m.role == 'tool' -%}{{- m.tool_call_id + ' ' -}}{%- endif -%}
{{- m.content + '<|im_end|>\\n' -}}
{%- endfor -%}"""  # as Mistral's templates want identities, and as DeepSeek's want arguments as text


def test_a_template_gets_identities_and_arguments_as_it_wants_them(tiny: ModelFacts, tmp_path: Path) -> None:
    """TRL's own check knows neither, and would have the calls written as text."""
    from transformers import AutoTokenizer

    model = with_template(tiny, tmp_path / "model", IDENTIFIED)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert arguments_taken(tokenizer) == "text"
    call = {"id": "call00007", "type": "function", "function": {"name": "weigh", "arguments": {"what": "milk"}}}
    answer = {"role": "tool", "tool_call_id": "call00007", "content": "240"}
    row = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, answer, ASSISTANT]}
    tokenize(request_for(model, write(tmp_path / "a.jsonl", [row])), tmp_path)
    [found] = rows_in(tmp_path)
    assert '[CALL]weigh {"what": "milk"}call00007' in tokenizer.decode(found["input_ids"])
    assert "call00007 240" in tokenizer.decode(found["input_ids"])


def test_messages_that_are_marked_are_not_learned(tiny: ModelFacts, tmp_path: Path) -> None:
    """Only their labels go: what stands before them is still read. A row without any label is left out."""
    from transformers import AutoTokenizer

    first = [USER, {**ASSISTANT, "weight": 0}, *TURNS[2:]]
    rows: list[dict[str, Any]] = [{"messages": first}, {"messages": TURNS}, {"messages": first[:2]}]
    tokenize(request_for(tiny, write(tmp_path / "a.jsonl", rows), assistant_only_loss=True), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    learned = [tokenizer.decode([label for label in row["labels"] if label != -100]) for row in rows_in(tmp_path)]
    assert ["240 g." in text for text in learned] == [False, True]
    assert all("480 g." in text for text in learned)
    notes = json.loads((tmp_path / "facts.json").read_text())["notes"]
    assert notes == ["left out of a.jsonl, because no token of them reaches the loss: 1 row"]


def test_marks_need_labels_of_the_assistant_alone(tiny: ModelFacts, tmp_path: Path) -> None:
    """Else the marked message is part of one run of labels, with the user's words before it."""
    rows = [{"messages": [USER, {**ASSISTANT, "train": False}, *TURNS[2:]]}] * 30
    with pytest.raises(UsageError, match=r"4 messages are learned as 1 part; .*assistant_only_loss=true") as error:
        tokenize(request_for(tiny, write(tmp_path / "a.jsonl", rows)), tmp_path)
    [problem] = error.value.problems
    assert problem.startswith("a.jsonl:1: ")
    assert problem.endswith("(29 more rows like this)")


def test_the_same_rows_in_a_table_give_the_same_tokens(tiny: ModelFacts, tmp_path: Path) -> None:
    """Tools of different parameters, whose structs parquet and Arrow fill with nulls."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from trl.chat_template_utils import qwen2_5_chat_template

    model = with_template(tiny, tmp_path / "model", qwen2_5_chat_template)
    rows = []
    for name, arguments in (("tide", {"harbour": "Bergen"}), ("price", {"cars": 2, "deck": "lower"})):
        properties = {key: {"type": "string"} for key in arguments}
        tool = {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        talk = [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            ASSISTANT,
        ]
        rows.append({"messages": talk, "tools": [tool]})
    write(tmp_path / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    tokens = []
    for name in ("a.jsonl", "a.parquet", "saved"):
        out = tmp_path / f"{name} tokens"
        out.mkdir()
        tokenize(request_for(model, tmp_path / name), out)
        tokens.append(rows_in(out))
    assert tokens[0] == tokens[1] == tokens[2]


def test_tools_are_written_out_for_a_template_that_drops_them(tiny: ModelFacts, tmp_path: Path) -> None:
    """The template of `tiny` reads only role and content; the call is learned all the same."""
    from transformers import AutoTokenizer

    tokenize(request_for(tiny, write(tmp_path / "a.jsonl", [CALLS]), assistant_only_loss=True), tmp_path)
    (row,) = rows_in(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    assert "<tools>" in tokenizer.decode(row["input_ids"])
    learned = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert '<tool_call>\n{"name": "weigh", "arguments": {"what": "milk"}}\n</tool_call><|im_end|>' in learned
    assert "<tools>" not in learned


def test_lengths_are_counted_across_batches_and_empty_rows() -> None:
    """By hand: the first token of a row is never learned, a row without tokens has none, ids are compared unsigned."""
    from datasets import Dataset

    rows = Dataset.from_list(
        [
            {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
            {"input_ids": [], "labels": []},
            {"input_ids": [9], "labels": [9]},
            {"input_ids": [1, 2], "labels": [-100, -100]},
            {"input_ids": [1, 2], "labels": [1, 2]},
        ]
    )
    tokens, labels, largest = measure(rows)
    assert (tokens.tolist(), labels.tolist(), largest) == ([3, 0, 1, 2, 2], [2, 0, 0, 0, 1], 9)


def test_rows_that_teach_nothing_are_left_out(tiny: ModelFacts, tmp_path: Path) -> None:
    """An empty text is one end token, which nothing predicts; the others stay in order, and the count tells."""
    tokenize(request_for(tiny, write(tmp_path / "a.jsonl", [{"text": ""}, TEXT, {"text": "b c"}])), tmp_path)
    assert len(rows_in(tmp_path)) == 2
    assert json.loads((tmp_path / "facts.json").read_text())["rows_in_file"] == 3


def test_chosen_rows_keep_their_order(tiny: ModelFacts, tmp_path: Path) -> None:
    """A sample is tokenized in the order of the file."""
    rows = [{"text": f"{number} cups"} for number in range(9)]
    data = write(tmp_path / "a.jsonl", rows)
    tokenize(request_for(tiny, data, indices=np.array([1, 4, 8])), tmp_path)
    expected = rows_of_trl(tiny.path, [rows[n] for n in (1, 4, 8)], tmp_path)
    assert rows_in(tmp_path) == expected


def without_template(tiny: ModelFacts, out: Path, template: str | None = None) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(out)
    return str(out)


STRICT = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}{% endif %}"
    "{{ messages[0].content }}"
)


@pytest.mark.parametrize(
    ("rows", "template", "options", "expected"),
    [
        ([{"messages": TURNS}], None, {}, ["a.jsonl: holds messages, and the tokenizer of", "has no chat template"]),
        (
            [TEXT],
            "same",
            {"assistant_only_loss": True},
            ["recipe.assistant_only_loss=true: a.jsonl is text in strings"],
        ),
        (
            [{"messages": TURNS}],
            "same",
            {"completion_only_loss": True},
            ["recipe.completion_only_loss=true: a.jsonl is messages, which has no completion"],
        ),
        (
            [{"messages": TURNS}],
            "{{ messages[0].content }}",
            {"assistant_only_loss": True},
            ["marks no answers ({% generation %}), and TRL knows no version of it that does"],
        ),
        (
            [{"messages": TURNS}, {"messages": [ASSISTANT]}, {"messages": TURNS}, {"messages": [ASSISTANT]}],
            STRICT,
            {},
            ["a.jsonl:2: the chat template of", "cannot render it (must start with user)", "a.jsonl:4: the chat"],
        ),
        ([{"text": ""}], "same", {}, ["a.jsonl: no token of any row reaches the loss (assistant_only_loss=False"]),
        ([TEXT], "same", {"vocabulary": 5}, ["the rows hold token", "but the model has only 5 embeddings"]),
        (
            [{"messages": TURNS}],
            "{% if false %}{% generation %}{% endgeneration %}{% endif %}{{ messages[0].content }}",
            {"assistant_only_loss": True},
            ["a.jsonl: TRL cannot tokenize it: You're using `assistant_only_loss=True`"],
        ),
    ],
)
def test_what_cannot_be_tokenized_is_told(
    tiny: ModelFacts,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    template: str | None,
    options: dict[str, Any],
    expected: list[str],
) -> None:
    """In the words of the recipe and of the file, also where TRL would silently learn something else."""
    model = tiny if template == "same" else without_template(tiny, tmp_path / "model", template)
    with pytest.raises(UsageError) as error:
        tokenize(request_for(model, write(tmp_path / "a.jsonl", rows), **options), tmp_path)
    assert [part for part in expected if part not in str(error.value)] == []


def test_a_base_model_gets_questions_as_strings(tiny: ModelFacts, tmp_path: Path) -> None:
    """Without a chat template they are a plain prompt and completion, and the loss is on the answer."""
    from transformers import AutoTokenizer

    model = without_template(tiny, tmp_path / "model")
    tokenize(request_for(model, write(tmp_path / "a.jsonl", [{"question": "2 + 2?", "answer": "4"}])), tmp_path)
    (row,) = rows_in(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.decode(row["input_ids"]) == "Question: 2 + 2?\nAnswer: 4<|im_end|>"
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == " 4<|im_end|>"
