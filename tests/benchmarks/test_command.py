"""benchmarks/command.py: the answer goes to stdout, problems to stderr, and the exit code says how it ended."""

import argparse
import json
from typing import Any

import pytest

from autotune.errors import AutotuneError, UsageError
from benchmarks.command import command, count


def answering(answer: Any) -> Any:
    """A program that answers so."""
    return command("What it does.", lambda arguments: answer())


def test_an_answer_is_for_people_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """People see how many rows there are, and numbers of four digits; a script with --json gets everything."""
    found = {"rows": [{"x": 1}, {"x": 2}], "error": 0.123456, "groups": {"a": [1e-9 / 3]}}
    main = answering(lambda: found)
    shown = "{'rows': 2, 'error': 0.1235, 'groups': {'a': [3.333e-10]}}\n"
    assert (main([]), capsys.readouterr().out) == (0, shown)
    assert (main(["--json"]), json.loads(capsys.readouterr().out)) == (0, found)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("a", "b"), 2, "a\nb\n"),
        (AutotuneError("no GPU"), 1, "no GPU\n"),
        (KeyboardInterrupt(), 130, "interrupted; the rows so far are kept, and the same command goes on\n"),
    ],
)
def test_problems_go_to_stderr(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, without a traceback and without an answer."""

    def fail() -> None:
        raise error

    assert answering(fail)([]) == code
    assert capsys.readouterr() == ("", said)


def test_a_count_is_at_least_one() -> None:
    """Anything else is refused before the work begins."""
    assert count("12") == 12
    for word in ("0", "-1", "1.5", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number from 1"):
            count(word)
