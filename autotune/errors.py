"""What can go wrong because of what was asked, as exceptions that list every problem at once.

What is expected of a trial (out of memory, a timeout) is a value, in core/outcome.py, not an exception.
Only the command line (cli/main.py) prints these and turns them into exit codes.
"""

from collections.abc import Sequence
from typing import ClassVar


class AutotuneError(Exception):
    """Something that the user can act on; `problems` holds one line for each thing that is wrong."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class UsageError(AutotuneError):
    """The input is wrong. Each problem says where, what was given and what is expected."""

    exit_code = 2


class NothingFits(AutotuneError):
    """No configuration can do what was asked; each problem says what to try."""


class NotPredicted(AutotuneError):
    """The memory of a configuration cannot be predicted; the problem says why."""


class TrainingFailed(AutotuneError):
    """A training run ended without its result; each problem says why and what to try."""


def first_line(error: Exception) -> str:
    """What an exception says, in a line; where its first line only announces the next, both."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
