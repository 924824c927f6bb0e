"""result.json, read: by its dataclasses, with clear words for what cannot be read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from autotune.cli.schema import result_schema
from autotune.core.decode import encode
from autotune.core.outcome import Crashed, Diverged, OutOfMemory, TimedOut
from autotune.core.trials.parity import NotCompared, Parity
from autotune.errors import UsageError
from autotune.search.predicted_memory import Miss, PredictedMemory
from autotune.search.result import parse_result, read_result
from autotune.search.run_directory import result_of
from tests.search.examples import BASELINE, BEST, HAND, VERDICT, findings, speedup

PREDICTED = PredictedMemory(peak_allocated_bytes=3, peak_phase="backward", items={"weights": 3}, limit_bytes=9)
ENDS = (
    OutOfMemory(message="full", peak_bytes=None, wall_s=1.0),
    TimedOut(limit_s=1.0, wall_s=1.0),
    Crashed(message="", log_tail="", wall_s=1.0),
    Diverged(step=1, loss="nan", wall_s=1.0),
)
RICH: dict[str, Any] = {
    "trials": (BASELINE, HAND, BEST, *(replace(BEST, number=3 + i, outcome=end) for i, end in enumerate(ENDS))),
    "estimates": {0: PREDICTED, 1: None},
    "parity": Parity(baseline=[5.0], best=[5.1], reordered=[5.2]),
    "misses": (Miss(number=3, predicted_bytes=1, limit_bytes=2, peak_bytes=None, message="full"),),
    "verdict": replace(VERDICT, once=speedup(1.5, 1.1, 1.9), speedup=None, speedup_by_hand=None),
    "request": {"fixed": {"tf32": False, "max_length": 64, "method": "full"}},
}


@pytest.mark.parametrize(
    "changes",
    [{}, RICH, {"parity": NotCompared(not_compared="no time"), "runner_up": None}],
    ids=["plain", "rich", "bare"],
)
def test_every_form_of_a_result_is_read_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Each kind of outcome, losses or why there are none, and what is null: written, valid, and read as the same."""
    result = result_of(findings(tmp_path, **changes))
    text = json.dumps(encode(result))
    assert list(Draft202012Validator(result_schema()).iter_errors(json.loads(text))) == []
    assert parse_result(text) == result


def test_older_and_richer_files_are_read(tmp_path: Path) -> None:
    """A file without a number is of format 1; a key that a newer version added is ignored, at any depth."""
    result = result_of(findings(tmp_path))
    values = encode(result)
    del values["format"]
    values["colour"] = values["space"]["colour"] = values["best"]["candidate"]["colour"] = "red"
    assert parse_result(json.dumps(values)) == result


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            '{"format": 2}',
            "format=2: the file is newer than this autotune, which reads formats up to 1; update autotune",
        ),
        ("[]", "got [], expected an object with the fields of Result"),
        ("{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, text: str, problem: str) -> None:
    """With the file before it."""
    file = tmp_path / "result.json"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        read_result(file)
    assert error.value.problems == (f"{file}: {problem}",)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """As a usage error, not as a traceback."""
    with pytest.raises(UsageError, match=r"nothing\.json: cannot be read: No such file"):
        read_result(tmp_path / "nothing.json")
