"""Racing: ending a trial as soon as it cannot win any more.

A trial is held against the fastest so far: by the seconds of the optimizer steps that both have trained, where these
hold the same samples, and by the rates of the whole epoch in any case. Leaves out measuring (train/measure.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.outcome import Step, epoch_rate, ratio
from autotune.core.trials.comparison import NORMAL_975, student_975

DRIFT = 0.02  # of the machine, as a share: what reference products do not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The fastest trial so far.

    useful_tokens_per_s: of the epoch; relative_error: its standard error's share. machine: how fast the machine is now,
    as a share of how fast it was then. steps: number and seconds of each, where a step of that number holds the same
    samples; else none.
    """

    useful_tokens_per_s: float
    relative_error: float
    machine: float = 1.0
    steps: tuple[tuple[int, float], ...] = ()


def is_outpaced(pace: Pace, steps: Sequence[Step], *, epoch_positions: int, epoch_useful: int) -> bool:
    """Whether the trial of these steps is slower than the fastest. False below two steps.

    With 97.5 % confidence at each look; a trial is looked at after every step, so some more are ended by bad luck.
    """
    theirs = dict(pace.steps)
    shared = [step for step in steps if step.number in theirs]
    if len(shared) > 1:
        times, error = ratio([step.seconds for step in shared], [theirs[step.number] for step in shared])
        if _is_above_one(times * pace.machine, len(shared), error, DRIFT):
            return True
    if len(steps) < 2:
        return False
    own = epoch_rate(steps, epoch_positions=epoch_positions, epoch_useful=epoch_useful)
    times = pace.useful_tokens_per_s / own.useful_tokens_per_s
    return _is_above_one(times * pace.machine, len(steps), own.relative_error, math.hypot(DRIFT, pace.relative_error))


def _is_above_one(times: float, n: int, error: float | None, others: float) -> bool:
    """error: of n steps, by Student's quantiles. others: errors that are not of these steps, by the normal's."""
    if error is None:
        return False
    return math.log(times) > math.hypot(student_975(n - 1) * error, NORMAL_975 * others)
