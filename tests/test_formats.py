"""Format numbers: what this version can read, and what it says of the rest."""

from typing import Any

import pytest

from autotune.formats import format_problem


@pytest.mark.parametrize("document", [{}, {"format": 1}, {"format": 2}])
def test_known_formats_and_files_without_a_number_are_read(document: dict[str, Any]) -> None:
    """The first files had no number."""
    assert format_problem(document, newest=2, where="run.yaml") is None


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (3, "the file is newer than this autotune, which reads formats up to 2; update autotune"),
        (0, "expected the number of the file's format, from 1 to 2"),
        (True, "expected the number of the file's format, from 1 to 2"),
        ("json", "expected the number of the file's format, from 1 to 2"),
    ],
)
def test_other_numbers_are_one_clear_sentence(number: Any, problem: str) -> None:
    """The sentence names the file, the number and what to do."""
    assert format_problem({"format": number}, newest=2, where="run.yaml") == f"run.yaml: format={number}: {problem}"
