"""Fields beside every form of row: each is trained, refused in words, or named as unused. None is lost in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.data.forms import Dialect
from autotune.data.source import converted_rows, locate_data, survey
from autotune.data.tokenization import TokenizationRequest, tokenize
from autotune.errors import UsageError

USER = {"role": "user", "content": "What is the tide?"}
ANSWER = {"role": "assistant", "content": "High."}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {}}}
TALK = {"messages": [USER, ANSWER]}
EXCHANGE = {"prompt": [USER], "completion": [ANSWER]}
FORMS: dict[str, dict[str, Any]] = {
    "messages": TALK,
    "conversations": {
        "conversations": [{"from": "human", "value": "What is the tide?"}, {"from": "gpt", "value": "High."}]
    },
    "exchange": EXCHANGE,
    "strings": {"prompt": "The tide is", "completion": " high."},
    "alpaca": {"instruction": "What is the tide?", "output": "High."},
    "question": {"question": "What is the tide?", "answer": "High."},
    "text": {"text": "The tide is high."},
}
FIELDS: dict[str, Any] = {
    "system": "Be brief.",
    "tools": [TOOL],
    "functions": [TOOL["function"]],
    "history": [["Hi.", "Hello."]],
    "documents": [{"title": "Tides", "text": "High at nine."}],
    "chat_template_kwargs": {"add_generation_prompt": True},
    "weight": 0,
    "train": False,
    "loss": 0,
}
IN_MESSAGES = {
    "system": "first message",
    "tools": "tools",
    "functions": "tools",
    "history": "unused",
    "documents": "unused",  # TRL gives a template those in chat_template_kwargs alone
    "chat_template_kwargs": "keywords",
    **dict.fromkeys(("weight", "train", "loss"), "unused"),  # marks stand on messages (marks.py)
}
UNUSED = dict.fromkeys(FIELDS, "unused")
TABLE = {
    "messages": IN_MESSAGES,
    "conversations": IN_MESSAGES,
    "exchange": IN_MESSAGES,
    "strings": UNUSED,  # TRL renders strings without a template
    "alpaca": {**IN_MESSAGES, "history": "earlier turns"},
    "question": {**IN_MESSAGES, "history": "earlier turns"},
    "text": UNUSED,
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def expected_row(form: str, outcome: str) -> dict[str, Any]:
    """The row that TRL should get, written by hand."""
    if outcome == "unused" and form in ("strings", "text"):
        return FORMS[form]
    row = dict(TALK if form in ("messages", "conversations") else EXCHANGE)
    first = next(iter(row))
    if outcome == "first message":
        row[first] = [SYSTEM, *row[first]]
    elif outcome == "earlier turns":
        row[first] = [*EARLIER, *row[first]]
    elif outcome == "tools":
        row["tools"] = json.dumps([TOOL])
    elif outcome == "keywords":
        row["chat_template_kwargs"] = FIELDS["chat_template_kwargs"]
    return row


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_beside_every_form_is_trained_or_named(tmp_path: Path, form: str, field: str) -> None:
    """The table above says which. A second row has an empty field, which says nothing and is not counted."""
    value = FIELDS[field]
    rows = [
        {**FORMS[form], field: value},
        {**FORMS[form], field: type(value)() if isinstance(value, list | str) else None},
    ]
    source = locate_data(str(write(tmp_path / "a.jsonl", rows)), {}, lambda line: None)
    seen = survey(source, lambda line: None)
    outcome = TABLE[form][field]
    assert seen.unused == ({field: 1} if outcome == "unused" else {})
    assert [row for _, row in converted_rows(source, seen.form, Dialect())] == [
        expected_row(form, outcome),
        expected_row(form, "unused"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [{**SYSTEM, "content": "Be kind."}, USER, ANSWER], "system": "Be brief."},
            "has a column system that differs",
        ),
        ({**TALK, "tools": [TOOL], "functions": [{"name": "other"}]}, "has tools and functions that differ"),
        ({**TALK, "functions": "tide()"}, "functions is text ('tide()'), expected a list of functions"),
        ({**TALK, "chat_template_kwargs": "fast"}, "chat_template_kwargs is text ('fast'), expected an object"),
        ({**FORMS["question"], "history": ["x"]}, "history[0] is text ('x'), expected a question and its answer"),
        ({**FORMS["question"], "system": ["x"]}, "system is a list, expected text"),
    ],
)
def test_fields_that_contradict_or_cannot_be_read_are_refused(tmp_path: Path, row: Any, message: str) -> None:
    """Nobody can know which of two is meant."""
    source = locate_data(str(write(tmp_path / "a.jsonl", [row])), {}, lambda line: None)
    with pytest.raises(UsageError) as error:
        survey(source, lambda line: None)
    assert f"a.jsonl:1: {message}" in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, ANSWER], "system": "Be brief.\n"},
        {**TALK, "system": "Be brief.", "tools": [TOOL], "functions": [TOOL]},
        {**TALK, "system": "Be brief.", "chat_template_kwargs": '{"a": 1}'},
    ],
)
def test_fields_that_say_the_same_twice_are_taken(tmp_path: Path, row: Any) -> None:
    """Published sets keep some texts twice, and tables keep objects as JSON text."""
    source = locate_data(str(write(tmp_path / "a.jsonl", [row])), {}, lambda line: None)
    seen = survey(source, lambda line: None)
    [(_, found)] = converted_rows(source, seen.form, Dialect())
    assert found["messages"] == [SYSTEM, USER, ANSWER]
    assert found.get("tools", json.dumps([TOOL])) == json.dumps([TOOL])
    assert found.get("chat_template_kwargs", {"a": 1}) == {"a": 1}


RENDERS_ALL = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for d in documents or [] %}{{ d.text }}{% endfor %}"
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}{{ mood or '' }}"
)


def with_template(home: Path, directory: Path, template: str | None) -> str:
    from transformers import AutoTokenizer

    from autotune.models.find import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("tiny", home=home, progress=lambda line: None).path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return str(directory)


def tokenized(model: str, data: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    from datasets import load_from_disk

    source = locate_data(str(data), {}, lambda line: None)
    out.mkdir()
    tokenize(
        TokenizationRequest(
            model=model,
            vocabulary=2**20,
            source=source,
            survey=survey(source, lambda line: None),
            **{"assistant_only_loss": False, "completion_only_loss": None, **options},
        ),
        out,
    )
    return list(load_from_disk(str(out / "rows")))


@pytest.mark.parametrize("form", [TALK, EXCHANGE])
def test_tools_and_keywords_give_the_tokens_of_the_trainer_itself(home: Path, tmp_path: Path, form: Any) -> None:
    """The same rows go to SFTTrainer by hand. Documents reach the template among the keywords."""
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = with_template(home, tmp_path / "model", RENDERS_ALL)
    tool = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
    rows = [
        {**form, "tools": [tool], "chat_template_kwargs": {"documents": FIELDS["documents"], "mood": mood}}
        for mood in ("calm", "wild")
    ]
    arguments = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    trainer = SFTTrainer(
        model=network, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    found = tokenized(model, write(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert found == list(trainer.train_dataset.select_columns(["input_ids", "labels"]))
    old = [{**row, "tools": None, "functions": [tool["function"]]} for row in rows]
    assert tokenized(model, write(tmp_path / "b.jsonl", old), tmp_path / "old") == found


def test_strings_for_a_base_model_take_no_fields_of_a_template(home: Path, tmp_path: Path) -> None:
    """Without a chat template nothing renders tools, keywords or earlier turns."""
    model = with_template(home, tmp_path / "model", None)
    row = {**FORMS["question"], "history": [["Hi.", "Hello."]], "tools": [TOOL]}
    with pytest.raises(UsageError, match=r"a.jsonl:1: has history and tools, expected a model with a chat template"):
        tokenized(model, write(tmp_path / "a.jsonl", [row]), tmp_path / "out")


def test_marks_in_the_history_of_a_prompt_are_kept(home: Path, tmp_path: Path) -> None:
    """By default a prompt is not learned; with assistant_only_loss over all of it, only what is not marked."""
    from transformers import AutoTokenizer

    from autotune.models.find import resolve_model

    model = resolve_model("tiny", home=home, progress=lambda line: None).path
    earlier = [EARLIER[0], {**EARLIER[1], "weight": 0}]
    data = write(tmp_path / "a.jsonl", [{"prompt": [*earlier, *EARLIER, USER], "completion": [ANSWER]}])
    every = {"assistant_only_loss": True, "completion_only_loss": False}
    for number, (options, learned) in enumerate([({}, ["High."]), (every, ["Hello.", "High."])]):
        [row] = tokenized(model, data, tmp_path / str(number), **options)
        said = AutoTokenizer.from_pretrained(model).decode([label for label in row["labels"] if label != -100])
        assert [text.strip() for text in said.split("<|im_end|>") if text.strip()] == learned
