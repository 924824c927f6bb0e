"""Exceptions for what the user asked and cannot have. Each lists every problem at once.

Leaves out the failures that a trial may meet (out of memory, a timeout): those are values, in core/outcome.py. Only the
command line (cli/exits.py) prints these exceptions and turns them into exit codes.
"""

from collections.abc import Sequence
from typing import ClassVar


class AutotuneError(Exception):
    """Something that the user can act on. `problems` holds one line for each problem.

    details: lines that only debug=true shows, such as the last ones that a library printed.
    """

    exit_code: ClassVar[int] = 1
    details: Sequence[str] = ()

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # all of them, so that it can be pickled and raised in another process
        self.problems: Sequence[str] = problems

    def __str__(self) -> str:
        return "\n".join(self.problems)


class UsageError(AutotuneError):
    """The input is wrong. Each problem says where, what was given and what is expected."""

    exit_code = 2


class NothingFits(AutotuneError):
    """No configuration can do what was asked; each problem says what to try."""


class NotPredicted(AutotuneError):
    """The memory of a configuration cannot be predicted; the problem says why."""


class TrainingFailed(AutotuneError):
    """A training run ended before it was done; each problem says why and what to try."""


def first_line(error: Exception) -> str:
    """Return the first line of an exception's text; the first two where the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
