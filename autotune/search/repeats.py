"""The second measurement: all contenders once more, in rounds, back and forth, so that a drift of the machine cancels.

Repeats are recorded like trials, so a search that was stopped within a round goes on there. Leaves out who contends
(core/trials/standings.py) and what follows from it (core/trials/verdict.py).
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.core.outcome import Measured, Outcome, TimedOut
from autotune.core.trials.budget import ROUNDS
from autotune.core.trials.standings import measured
from autotune.core.trials.trial import Trial
from autotune.search.bench import Bench
from autotune.train.task import Measure

REPEAT = Measure(budget_s=math.inf, precision=0.0, worst_first=False)  # a number of steps ends it


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """What the second measurement gave.

    contenders: the first trials of those that did not fail. failed: numbers of the first trials of those that did.
    rounds: the outcomes of all contenders, in their order, for each round in which all of them were measured.
    """

    contenders: Sequence[Trial]
    failed: Collection[int]
    rounds: Sequence[Sequence[Measured]]


def measure_again(bench: Bench, contenders: Sequence[Trial], *, leave_s: float) -> Repeats:
    """Measure all contenders in rounds, while there is time.

    A contender that fails now is out. A round for which the time does not suffice does not count.
    leave_s: seconds for what follows. The first ROUNDS[0] rounds may use them up: without these nothing follows.
    """
    left, rounds = list(contenders), list[dict[int, Outcome]]()
    if len(left) < 2:
        return Repeats(contenders=left, failed=(), rounds=())
    steps = bench.budget.repeat_steps(bench.spent_s() + leave_s, measured(contenders))
    goal = replace(REPEAT, most_steps=steps)
    numbers = {trial.number for trial in contenders}
    counting = (n for n in itertools.count() if not _is_passed_over(_recorded(bench, n), numbers))
    for attempt, number in enumerate(counting):
        done = _recorded(bench, number)
        missing = [trial for trial in left if trial.number not in done]
        times = [_last_measured(bench, trial) for trial in missing]
        spent_s = bench.spent_s() + (leave_s if attempt >= ROUNDS[0] else 0.0)
        if bench.budget.has_room_for_round(spent_s, missing=times, number=attempt, steps=steps):
            for trial in missing[::-1] if attempt % 2 else missing:
                repeat = bench.repeat(trial, goal, round=number)
                if _was_cut_off(bench, repeat):
                    break
                done[trial.number] = repeat.outcome
        is_whole = all(trial.number in done for trial in left)
        if is_whole:
            rounds.append(done)
        left = [trial for trial in left if isinstance(done.get(trial.number), Measured | None)]
        if not is_whole or len(left) < 2:
            break
    whole = [[outcome for trial in left if isinstance(outcome := done[trial.number], Measured)] for done in rounds]
    return Repeats(
        contenders=left,
        failed=numbers - {trial.number for trial in left},
        rounds=[outcomes for outcomes in whole if outcomes],
    )


def _last_measured(bench: Bench, trial: Trial) -> Measured:
    """The latest measurement of a contender, which tells best how long the next repeat takes."""
    repeats = [other for other in bench.trials if other.of == trial.number]
    return measured([trial, *repeats])[-1]


def _recorded(bench: Bench, number: int) -> dict[int, Outcome]:
    """The outcomes of a round so far, by the number of the trial that was repeated."""
    repeats = (trial for trial in bench.trials if trial.role == "repeat" and trial.round == number)
    return {trial.of: trial.outcome for trial in repeats if trial.of is not None and not _was_cut_off(bench, trial)}


def _was_cut_off(bench: Bench, repeat: Trial) -> bool:
    """Whether a repeat was killed because the search's time was up, and not because the candidate is slow."""
    return isinstance(repeat.outcome, TimedOut) and repeat.outcome.limit_s < bench.patience_s()


def _is_passed_over(done: Mapping[int, Outcome], numbers: Collection[int]) -> bool:
    """Whether a recorded round tells nothing about the contenders with these numbers.

    Either it is a round of others: it lacks some of these, and has some that are not among them. Or all of several
    contenders failed in it, which tells about the machine.
    """
    of_others = not (set(numbers) <= set(done) or set(done) <= set(numbers))
    return of_others or (len(done) > 1 and not any(isinstance(outcome, Measured) for outcome in done.values()))
