"""A run file: what people write is understood, and each mistake is named with the file."""

from pathlib import Path

import pytest

from autotune.cli.run_file import load_run_file


def test_a_run_file_is_read_by_the_same_rules(tmp_path: Path) -> None:
    """Each mistake in a run file is named with the file; what is right in it is kept."""
    file = tmp_path / "run.yaml"
    file.write_text("modle: x\nseed: -2\nrecipe: {epochs: 2, metod: full}\ncandidate: {method: lorra}\n")
    values, problems = load_run_file(tmp_path)
    assert values == {"recipe": {"epochs": 2}}
    assert problems == [
        f"{file}: modle=x: no such key; the nearest is model",
        f"{file}: seed=-2: expected a whole number, at least 0 and at most 4294967295",
        f"{file}: recipe.metod=full: no such key; the nearest is recipe.method",
        f"{file}: candidate.method=lorra: expected one of full, lora, qlora, lora_int8, or null; the nearest is lora",
    ]


def test_a_run_file_as_people_write_it(tmp_path: Path) -> None:
    """Short forms of model and data, a number as 1e-4, and `off` and `no` without quotes mean what they say."""
    file = tmp_path / "mine.yml"
    file.write_text(
        "model: ./dir\ndata: {path: rows.csv, columns: {question: q}}\nrecipe: {learning_rate: 1e-4}\n"
        "candidate: {checkpointing: off, mixed_precision: no, tf32: no}\n"
    )
    assert load_run_file(file) == (
        {
            "model": {"path": "./dir"},
            "data": {"path": "rows.csv", "columns": {"question": "q"}},
            "recipe": {"learning_rate": 1e-4},
            "candidate": {"checkpointing": "off", "mixed_precision": "no", "tf32": False},
        },
        [],
    )


def test_a_run_file_of_a_newer_format_is_not_read_further(tmp_path: Path) -> None:
    """Its other keys may mean something else, so they are neither taken nor judged."""
    file = tmp_path / "run.yaml"
    file.write_text("format: 2\nsede: 3\nseed: 3\n")
    says = "the file is newer than this autotune, which reads formats up to 1; update autotune"
    assert load_run_file(file) == ({}, [f"{file}: format=2: {says}"])
    file.write_text("format: 1\nseed: 3\n")
    assert load_run_file(file) == ({"seed": 3}, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "no such file; run takes the run.yaml of a search, or its directory"),
        ("a: [1\nb: 2", "cannot be read: while parsing a flow sequence"),
        ("- 1", "holds a list, expected the keys of a run (autotune run --help)"),
    ],
)
def test_a_file_that_is_no_run_file(tmp_path: Path, text: str | None, problem: str) -> None:
    """A file that is missing, broken or something else is one problem, not an exception."""
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    values, problems = load_run_file(file)
    assert values == {}
    assert [found.startswith(f"{file}: {problem}") for found in problems] == [True]
