"""benchmarks/command.py: the answer goes to stdout, problems to stderr, and the exit code says how it ended."""

import argparse
import json
from typing import Any

import pytest

from autotune.errors import AutotuneError, UsageError
from benchmarks.command import command, count


def answering(answer: Any) -> Any:
    """A program that answers so."""
    return command("What it does.", lambda arguments: answer(), lines=lambda found: [f"it is {found['x']}"])


def test_an_answer_is_lines_or_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    """What a person reads, and with --json what a script does."""
    main = answering(lambda: {"x": 3})
    assert (main([]), capsys.readouterr().out) == (0, "it is 3\n")
    assert (main(["--json"]), json.loads(capsys.readouterr().out)) == (0, {"x": 3})


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
