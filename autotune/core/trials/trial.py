"""A trial: a candidate, why it was tried, and its outcome."""

from dataclasses import dataclass
from typing import Literal

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured, Outcome

Role = Literal["baseline", "by_hand", "search", "repeat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate that was tried, and its outcome.

    number: place in the search, from 0. role: why it was tried; a `repeat` belongs to the second measurement.
    of: the number of the trial that a repeat repeats. round: the repeat's round, from 0.
    """

    number: int
    role: Role
    candidate: Candidate
    outcome: Outcome
    of: int | None = None
    round: int | None = None

    @property
    def rate(self) -> float | None:
        """Useful tokens per second, None unless it was measured."""
        return self.outcome.useful_tokens_per_s if isinstance(self.outcome, Measured) else None
