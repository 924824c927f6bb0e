"""Several trainings side by side: each once in every round, back and forth, so that a drift of the machine cancels.

Each round has a seed of its own, so that it draws other steps of the epoch; the same steps would err alike every time.
Leaves out what is trained, and what a speed-up is worth (core/trials/comparison.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from autotune.core.candidate import short_name
from autotune.core.outcome import Measured, Outcome
from autotune.core.trials.comparison import Speedup, speedup
from autotune.train.task import Task


class Performs(Protocol):
    """Trains a task, as autotune.train.workers.Workers does."""

    def perform(self, task: Task, *, limit_s: float | None) -> Outcome: ...


def side_by_side(
    tasks: Mapping[str, Task], workers: Performs, *, rounds: int, limit_s: float, say: Callable[[str], None]
) -> list[dict[str, Outcome]]:
    """Train every task in every round; return the outcomes of each round by name."""
    found = []
    for number in range(rounds):
        outcomes: dict[str, Outcome] = {}
        for name in list(tasks)[::-1] if number % 2 else list(tasks):
            task = replace(tasks[name], seed=tasks[name].seed + number)
            outcomes[name] = workers.perform(task, limit_s=limit_s)
            say(f"round {number}, {name}: {outcomes[name].kind}, {short_name(tasks[name].candidate)}")
        found.append(outcomes)
    return found


def over(rounds: Sequence[Mapping[str, Outcome]], name: str, against: str) -> Speedup | None:
    """Return how much faster one training is than another; None unless both ran in every round.

    All trainings that ran in every round tell how noisy the machine is.
    """
    names = rounds[0] if rounds else ()
    whole = [each for each in names if all(isinstance(outcomes[each], Measured) for outcomes in rounds)]
    if not {name, against} <= set(whole):
        return None
    ran = [[outcome for each in whole if isinstance(outcome := outcomes[each], Measured)] for outcomes in rounds]
    return speedup(ran, whole.index(name), whole.index(against))


def kinds_and_rates(rounds: Sequence[Mapping[str, Outcome]], name: str) -> dict[str, Any]:
    """Return the kinds of a training's outcomes, one a round, and the rates of those that were measured."""
    outcomes = [each[name] for each in rounds]
    return {
        "outcomes": [outcome.kind for outcome in outcomes],
        "useful_tokens_per_s": [each.useful_tokens_per_s for each in outcomes if isinstance(each, Measured)],
    }
