"""How a search divides its time: a share for each trial, a limit for a trial that hangs, a part for what follows.

Leaves out the clock: callers pass the seconds that were spent.
"""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass

from autotune.core.outcome import Measured, Outcome

# Shares of the whole time.
TRIAL_SHARE = 1 / 15  # for one trial
BASELINE_SHARE = 0.4  # after which even the baseline is given up
TRACING_SHARE = 0.2  # after which no further kind of step is traced for the prediction of time
REPEAT_SHARE = 0.5  # at most, for the second measurement
COMPARISON_SHARE = 0.2  # at most, for comparing losses; if it would take more, they are not compared

TRIAL_S = 60.0  # for one trial where only the number of trials is limited
REPEAT_STEPS = (2, 8)  # measured steps of one repeat: at least, at most
REPEAT_STEPS_UNLIMITED = 4  # where only the number of trials is limited
ROUNDS = (2, 4)  # of the second measurement: as many as time is kept for, and the most
FIRST_STEP = 2  # a training's first step takes as long as this many other steps; 1 to 2 were seen on two cores
LEAST_S = 1.0  # no trial has a shorter limit: it would be killed before it could say anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a search may take.

    seconds: of wall clock; None does not limit them. trials: number of first measurements; None does not limit it.
    warmup_steps: of a repeat, at least one (train/task.py: Measure).
    """

    seconds: float | None
    trials: int | None
    warmup_steps: int = 1

    @property
    def share_s(self) -> float:
        """Seconds that one trial may measure for."""
        return TRIAL_S if self.seconds is None else self.seconds * TRIAL_SHARE

    def tracing_s(self, spent_s: float, *, reserve_s: float) -> float:
        """Seconds for tracing the kinds of steps: at most half of what is left for trials."""
        if self.seconds is None:
            return math.inf
        return max(0.0, min(TRACING_SHARE * self.seconds, (self.seconds - spent_s - reserve_s) / 2))

    def left_s(self, spent_s: float) -> float | None:
        """Seconds that are left, None without a limit."""
        return None if self.seconds is None else self.seconds - spent_s

    def baseline_limit_s(self, spent_s: float) -> float | None:
        """Seconds after which the baseline is killed: a search ends in time even if its first trial hangs."""
        if self.seconds is None:
            return None
        return max(LEAST_S, min(self.seconds - spent_s, BASELINE_SHARE * self.seconds))

    def trial_limit_s(self, spent_s: float, *, baseline_s: float, reserve_s: float) -> float:
        """Seconds after which any later trial is killed: it cannot win any more, or the time is up.

        baseline_s: what the baseline's trial took. reserve_s: what must be left when the trial ends.
        """
        patience, left = self.patience_s(baseline_s), self.left_s(spent_s)
        return patience if left is None else max(LEAST_S, min(patience, left - reserve_s))

    def patience_s(self, baseline_s: float) -> float:
        """Seconds after which a trial cannot win any more, however much time is left."""
        return 3 * self.share_s + 2 * baseline_s

    def allows(self, tried: Sized) -> bool:
        """Whether one more trial is within the budget of trials."""
        return self.trials is None or len(tried) < self.trials

    def has_room(self, spent_s: float, *, tried: Sequence[Outcome], reserve_s: float) -> bool:
        """Whether there is room for one more trial, if it takes as long as the median one. reserve_s: left after it."""
        if not self.allows(tried):
            return False
        left = self.left_s(spent_s)
        usual_s = sorted(outcome.wall_s for outcome in tried)[(len(tried) - 1) // 2]
        return left is None or left - reserve_s > usual_s

    def reserve_s(self, contenders: Sequence[Measured], *, rounds: int = ROUNDS[0]) -> float:
        """Seconds to keep for a number of rounds of the second measurement, at most its share of the time."""
        if self.seconds is None:
            return 0.0
        return min(rounds * self.round_s(contenders, REPEAT_STEPS[0]), REPEAT_SHARE * self.seconds)

    def has_room_for_comparison(self, needed_s: float) -> bool:
        """Whether comparing losses is within its share of the time."""
        return self.seconds is None or needed_s <= COMPARISON_SHARE * self.seconds

    def has_room_for_round(self, spent_s: float, *, missing: Sequence[Measured], number: int, steps: int) -> bool:
        """Whether there is time for the rest of a round.

        number: the round's, from 0. missing: the last measurement of each contender that the round still lacks.
        """
        left = self.left_s(spent_s)
        if left is None:
            return number < ROUNDS[0]
        return number < ROUNDS[1] and left > self.round_s(missing, steps)

    def repeat_steps(self, spent_s: float, contenders: Sequence[Measured]) -> int:
        """Measured steps of each repeat: as many as ROUNDS[0] rounds have time for."""
        left = self.left_s(spent_s)
        if left is None:
            return REPEAT_STEPS_UNLIMITED
        one_more_s = sum(outcome.step_s for outcome in contenders)
        steps = int((left / ROUNDS[0] - self.round_s(contenders, 0)) / one_more_s)
        return max(REPEAT_STEPS[0], min(REPEAT_STEPS[1], steps))

    def round_s(self, contenders: Sequence[Measured], steps: int) -> float:
        """Seconds of one round, about: each contender loads, warms up on ordinary steps and measures `steps`.

        The first step, on fresh memory, takes as long as FIRST_STEP others.
        """
        steps += FIRST_STEP + self.warmup_steps - 1
        return sum(beside_s(trial) + steps * trial.step_s for trial in contenders)


def beside_s(trial: Measured) -> float:
    """Seconds of a trial that it spent beside its steps."""
    return trial.wall_s - sum(step.seconds for step in (*trial.warmup_steps, *trial.steps))
