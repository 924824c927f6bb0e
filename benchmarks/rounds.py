"""Several trainings side by side: each once in every round, back and forth, so that a drift of the machine cancels.

Leaves out what is trained and what it says (core/comparison.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from autotune.core.candidate import short_name
from autotune.core.comparison import Speedup, speedup
from autotune.core.outcome import Measured, Outcome
from autotune.task import Task


class Performs(Protocol):
    """What trains, as autotune.trial.Workers."""

    def perform(self, task: Task, *, limit_s: float | None) -> Outcome: ...


def side_by_side(
    tasks: Mapping[str, Task], workers: Performs, *, rounds: int, limit_s: float, say: Callable[[str], None]
) -> list[dict[str, Outcome]]:
    """The outcomes of every round, by name."""
    found = []
    for number in range(rounds):
        outcomes: dict[str, Outcome] = {}
        for name in list(tasks)[::-1] if number % 2 else list(tasks):
            outcomes[name] = workers.perform(tasks[name], limit_s=limit_s)
            say(f"round {number}, {name}: {outcomes[name].kind}, {short_name(tasks[name].candidate)}")
        found.append(outcomes)
    return found


def over(rounds: Sequence[Mapping[str, Outcome]], name: str, against: str) -> Speedup | None:
    """How much faster one is than another; None where not both ran in every round."""
    pairs = [[outcomes[name], outcomes[against]] for outcomes in rounds]
    ran = [[each for each in pair if isinstance(each, Measured)] for pair in pairs]
    return speedup(ran, 0, 1) if all(len(pair) == 2 for pair in ran) else None


def kinds_and_rates(rounds: Sequence[Mapping[str, Outcome]], name: str) -> dict[str, Any]:
    """What became of one in each round."""
    outcomes = [each[name] for each in rounds]
    return {
        "outcomes": [outcome.kind for outcome in outcomes],
        "useful_tokens_per_s": [each.useful_tokens_per_s for each in outcomes if isinstance(each, Measured)],
    }
