"""Finding and reading data: every kind of file, and every way in which one can be wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.data.forms import Dialect
from autotune.data.source import PROBLEMS_SHOWN, Source, converted_rows, locate_data, rows_of, survey
from autotune.errors import UsageError

# Rows of our own in the shapes of GSM8K, alpaca and glaive.
QUESTIONS = [
    {"question": "A box holds 4 pens. How many in 3 boxes?", "answer": "3*4=<<3*4=12>>12\n#### 12"},
    {"question": "Ann has 5 € and spends 2. What is left?", "answer": "5-2=<<5-2=3>>3\n#### 3"},
]
INSTRUCTIONS = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
]
CONVERSATIONS = [
    {
        "conversations": [
            {"from": "human", "value": "Is it raining in Rome?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
            {"from": "observation", "value": '{"rain": false}'},
            {"from": "gpt", "value": "No."},
        ],
        "tools": '[{"name": "weather", "description": "Looks out.", "parameters": {}}]',
    },
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "tools": "[]"},
]


def found(path: Path | str, columns: dict[str, str] | None = None) -> Source:
    return locate_data(str(path), columns or {}, lambda line: None)


def problems(path: Path | str, columns: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(UsageError) as error:
        survey(found(path, columns), lambda line: None)
    return list(error.value.problems)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the suffix says; `.lines.json` is a .json file of one object a line."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix.lower() == ".jsonl" or path.name.endswith(".lines.json"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.lines.json", "a.csv", "a.parquet", "A.JSONL"])
@pytest.mark.parametrize("rows", [QUESTIONS, INSTRUCTIONS])
def test_every_kind_of_file_gives_its_rows_in_order(tmp_path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """The same rows come out of every kind of file."""
    source = found(write(tmp_path / name, rows))
    assert [row.fields for row in rows_of(source)] == rows
    assert len(survey(source, lambda line: None).characters) == 2


def test_conversations_with_tools_are_surveyed(tmp_path: Path) -> None:
    """ShareGPT with calls of functions needs no options, and its tools are seen."""
    for name in ("a.json", "a.parquet"):
        seen = survey(found(write(tmp_path / name, CONVERSATIONS)), lambda line: None)
        forms = (seen.form.name, seen.trl_form)
        assert (forms, seen.chat, seen.extras) == (("conversations", "messages"), True, ("tools",))


def test_the_demo_needs_no_file() -> None:
    """`data=demo` is found wherever the package is installed."""
    source = found("demo")
    assert (source.name, len(survey(source, lambda line: None).characters)) == ("demo", 400)


def test_columns_map_other_names(tmp_path: Path) -> None:
    """{question: q} means that our field question is found in column q."""
    path = write(tmp_path / "a.csv", [{"q": "Why?", "a": "So.", "text": "Why? So."}])
    source = found(path, {"question": "q", "answer": "a"})
    form = survey(source, lambda line: None).form
    assert [row for _, row in converted_rows(source, form, Dialect())] == [
        {"prompt": [{"role": "user", "content": "Why?"}], "completion": [{"role": "assistant", "content": "So."}]}
    ]


def test_columns_that_do_not_exist_are_named(tmp_path: Path) -> None:
    """Both sides of the map can be wrong: our field, and their column."""
    path = write(tmp_path / "a.jsonl", [{"q": "Why?", "a": "So."}])
    assert problems(path, {"question": "Q", "answer": "a"}) == [
        "a.jsonl:1: has no Q, which data.columns names; it has q, a"
    ]
    with pytest.raises(UsageError, match=r"data\.columns\.questoin: is not a field of autotune, did you mean question"):
        found(path, {"questoin": "q"})


def test_a_directory_is_read_without_what_is_held_out(tmp_path: Path) -> None:
    """Files named as test or validation split are not trained on, and the user is told."""
    for name in ("part-2.jsonl", "part-1.jsonl", "gsm_test.jsonl", "validation.jsonl", "latest.jsonl"):
        write(tmp_path / name, [{"text": name}])
    (tmp_path / "README.md").write_text("not data")
    lines: list[str] = []
    source = locate_data(str(tmp_path), {}, lines.append)
    assert [row.fields["text"] for row in rows_of(source)] == ["latest.jsonl", "part-1.jsonl", "part-2.jsonl"]
    assert lines == [
        f"the split train of {tmp_path.name} is trained on; not used: "
        "test (gsm_test.jsonl), validation (validation.jsonl)"
    ]
    (named_only,) = rows_of(found(tmp_path / "gsm_test.jsonl"))
    assert named_only.fields == {"text": "gsm_test.jsonl"}


def test_a_directory_of_save_to_disk_is_read(tmp_path: Path) -> None:
    """A Dataset, and of a DatasetDict the split for training, which is told."""
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_list(QUESTIONS)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert [row.fields for row in rows_of(found(tmp_path / "one"))] == QUESTIONS
    DatasetDict(train=whole, test=whole.select([0])).save_to_disk(str(tmp_path / "both"))
    lines: list[str] = []
    source = locate_data(str(tmp_path / "both"), {}, lines.append)
    assert [row.fields for row in rows_of(source)] == QUESTIONS
    assert lines == ["the split train of both is trained on; not used: test"]
    DatasetDict(a=whole, b=whole).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(UsageError, match=r"has no split train, but a, b; choose one by data\.split=NAME"):
        found(tmp_path / "other")
    assert len(list(rows_of(locate_data(str(tmp_path / "other"), {}, lines.append, split="b")))) == 2
    assert len(list(rows_of(found(tmp_path / "other" / "b")))) == 2


def test_columns_that_are_not_used_are_counted(tmp_path: Path) -> None:
    """With the rows that have a value there; what a form or an option uses is not among them."""
    rows = [{**QUESTIONS[0], "id": 1, "system": "Be kind."}, {**QUESTIONS[1], "id": 2, "source": None}]
    seen = survey(found(write(tmp_path / "a.jsonl", rows)), lambda line: None)
    assert seen.unused == {"id": 2}


def test_rows_for_other_trainers_are_refused_with_their_place(tmp_path: Path) -> None:
    """Once for all rows that are alike."""
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    assert problems(write(tmp_path / "a.jsonl", rows)) == [
        "a.jsonl:1: has chosen, rejected: preferences are for TRL's DPOTrainer, expected rows for SFT "
        "(2 more rows like this)"
    ]


def test_the_hash_follows_content_not_place(tmp_path: Path) -> None:
    """A copy is the same data; one changed letter is other data."""
    first, copy, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    for path in (first, copy):
        write(path, QUESTIONS)
    write(other, [QUESTIONS[0], {**QUESTIONS[1], "answer": "4"}])
    assert found(first).content_hash == found(copy).content_hash != found(other).content_hash


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"", ["a.jsonl: holds no rows, expected one of: messages | conversations"]),
        ("a.json", b" \n", ["a.json: holds no rows"]),
        ("a.json", b"[]", ["a.json: holds no rows"]),
        ("a.csv", b"question,answer\n", ["a.csv: holds no rows"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\n', ["a.jsonl:2: is not JSON (Unterminated string"]),
        ("a.json", b'[{"text": "a"},\n {"text" "b"}]', ["a.json:2: is not JSON (Expecting ':' delimiter"]),
        ("a.json", b'{\n "data": []\n}', ["a.json: is one JSON object with data, expected a list of objects"]),
        ("a.jsonl", b'{"text": "a"}\n[1]\n7\n', ["a.jsonl:2: is '[1]', expected an object", "a.jsonl:3: is '7'"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', ["a.jsonl:2: is not UTF-8"]),
        ("a.csv", b"text\n\xe4\n", ["a.csv: is not UTF-8"]),
        ("a.csv", b'question,answer\n"a,b\n', ["a.csv:", "is not CSV"]),
        ("a.csv", b"question,answer\na,b,c\n", ["a.csv:2: has more cells than the header's 2"]),
        ("a.csv", b"question,answer\na\n", ["a.csv:2: answer is missing or null, expected text"]),
        ("a.parquet", b"PAR?", ["a.parquet: is not parquet"]),
        (
            "a.jsonl",
            b'{"text": "a"}\n\n{"question": "a", "answer": "b"}\n',
            ["a.jsonl:3: is question and answer, the rows before are text"],
        ),
        (
            "a.jsonl",
            b'{"prompt": "a", "completion": "b"}\n'
            b'{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}\n',
            ["a.jsonl:2: is prompt and completion as messages, the rows before are prompt and completion"],
        ),
        ("a.jsonl", b'{"question": "a", "answer": null}\n', ["a.jsonl:1: answer is missing or null, expected text"]),
        (
            "a.jsonl",
            b'{"body": "a"}\n',
            ["a.jsonl:1: fits no form: has body; expected one of: messages | conversations | prompt + completion"],
        ),
        (
            "a.jsonl",
            b'{"question": "a", "answer": "b"}\n{"question": "a"}\n',
            ["a.jsonl:2: fits no form: has question; expected answer too, like the rows before"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    """File and line, what was found, what is expected: for every way in which we have seen files broken."""
    (tmp_path / name).write_bytes(content)
    told = "\n".join(problems(tmp_path / name))
    assert [part for part in expected if part not in told] == []


def test_all_problems_are_counted(tmp_path: Path) -> None:
    """The first twenty are shown and the rest counted, so that one look is enough and the screen is not flooded."""
    write(tmp_path / "a.jsonl", [{"text": "a"}, *({"text": number} for number in range(50))])
    told = problems(tmp_path / "a.jsonl")
    assert told[0] == "a.jsonl:2: text is a number (0), expected text"
    assert told[PROBLEMS_SHOWN:] == ["and 30 more rows with problems"]


def test_one_problem_of_many_rows_is_one_line(tmp_path: Path) -> None:
    """Columns of other names are told of once, with how to say which is which."""
    write(tmp_path / "a.jsonl", [{"body": "a", "title": "b"}] * 50)
    [told] = problems(tmp_path / "a.jsonl")
    assert told.startswith("a.jsonl:1: fits no form: has body, title; expected one of: ")
    assert told.endswith("{prompt: A, completion: B}' says which column is which (49 more rows like this)")


@pytest.mark.parametrize("name", ["nowhere.jsonl", "demmo", "./a/b", "a/b/c", ""])
def test_names_that_are_nothing_say_what_would_be_something(name: str) -> None:
    """A misspelt path is not looked for on the hub."""
    with pytest.raises(UsageError, match="no such file; expected demo, a file"):
        found(name)


def test_files_that_are_not_data_are_refused(tmp_path: Path) -> None:
    """Another suffix, and a directory without any data file."""
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(
        UsageError, match=r"ends in '.txt', expected one of .json, .jsonl, .csv, .parquet, .arrow, each also with .gz"
    ):
        found(tmp_path / "a.txt")
    with pytest.raises(UsageError, match=r"holds no file ending in .*; it has a.txt"):
        found(tmp_path)


def test_a_byte_order_mark_is_not_part_of_the_data(tmp_path: Path) -> None:
    """Spreadsheets write one in front of the first column's name."""
    for name, text in (("a.csv", "text\nb\n"), ("a.jsonl", '{"text": "b"}\n'), ("a.json", '[{"text": "b"}]')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert [row.fields for row in rows_of(found(tmp_path / name))] == [{"text": "b"}]


def test_a_dataset_on_the_hub_is_read_from_its_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """owner/name:configuration loads that configuration, and rows are counted from 1."""
    import datasets

    asked = []

    def load(name: str, config: str | None, **options: Any) -> datasets.DatasetDict:
        asked.append((name, config))
        rows = datasets.Dataset.from_list(QUESTIONS)
        return datasets.DatasetDict(train=rows, test=rows.select([0]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    lines: list[str] = []
    source = locate_data("openai/gsm8k:main", {}, lines.append)
    assert lines[-1] == "the split train of gsm8k:main is trained on; not used: test"
    assert [(row.where, row.fields) for row in rows_of(source)][1] == ("openai/gsm8k:main row 2", QUESTIONS[1])
    assert set(asked) == {("openai/gsm8k", "main")}
    test = locate_data("openai/gsm8k:main", {}, lines.append, split="test")
    assert len(list(rows_of(test))) == 1
    assert test.content_hash != source.content_hash
    with pytest.raises(UsageError, match=r"data\.split=dev: openai/gsm8k:main has no such split, but train, test"):
        locate_data("openai/gsm8k:main", {}, lines.append, split="dev")


@pytest.mark.parametrize(
    ("error", "message"),
    [(ConnectionError("x"), "hub cannot be reached"), (ValueError("Config name is missing.\nmore"), "Config name is")],
)
def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    """No traceback for a dataset that cannot be loaded, and a hint at configurations."""
    import datasets

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match=rf"data=openai/gsm8k: .*{message}.*openai/gsm8k:configuration"):
        found("openai/gsm8k")
