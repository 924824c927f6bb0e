"""Racing: ending a trial as soon as it cannot win any more.

A trial is compared with the fastest so far in two ways. Where both have trained steps that hold the same samples, the
seconds of these steps are compared. In any case the rates of the whole epoch are. Leaves out measuring
(train/measure.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.arithmetic import NORMAL_975
from autotune.core.outcome import Step, epoch_rate, ratio
from autotune.core.trials.comparison import student_975

DRIFT = 0.02  # of the machine's speed, as a share: what reference products do not show


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The fastest trial so far, as another trial is compared with it.

    useful_tokens_per_s: of the epoch; relative_error: its standard error as a share of it. machine: the machine's speed
    now, as a share of its speed then. steps: number and seconds of each step; empty where steps of the same number do
    not hold the same samples.
    """

    useful_tokens_per_s: float
    relative_error: float
    machine: float = 1.0
    steps: tuple[tuple[int, float], ...] = ()


def is_outpaced(pace: Pace, steps: Sequence[Step], *, epoch_positions: int, epoch_useful: int) -> bool:
    """Whether the trial that has these steps is slower than the fastest. False below two steps.

    Each look has 97.5 % confidence. A trial is looked at after every step, so more than 2.5 % of the trials that could
    have won are ended by bad luck.
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
    """Whether a ratio of times is above 1 with 97.5 % confidence.

    error: standard error that the n steps show; Student's quantile applies. others: further errors, which the steps do
    not show; the normal quantile applies.
    """
    if error is None:
        return False
    return math.log(times) > math.hypot(student_975(n - 1) * error, NORMAL_975 * others)
