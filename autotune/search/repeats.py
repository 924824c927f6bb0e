"""The second measurement: all contenders once more, in rounds, back and forth, so that a drift of the machine cancels.

Rounds are recorded like trials, so a search that was stopped goes on within one. Leaves out who contends (search.py)
and what follows (core/trials/verdict.py).
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.core.outcome import Measured, Outcome, TimedOut
from autotune.core.trials.budget import ROUNDS, Budget
from autotune.core.trials.standings import measured
from autotune.core.trials.trial import Trial
from autotune.search.journal import Journal
from autotune.train.task import Measure

REPEAT = Measure(budget_s=math.inf, precision=0.0, worst_first=False)  # its steps end it


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """What the second measurement works with.

    spent_s: seconds that the search has taken so far. leave_s: seconds for what follows, which the planned rounds may
    take if they must: without them there is nothing to follow. patience_s: of a repeat, with time enough. perform:
    measures a candidate in a role, as the search does.
    """

    journal: Journal
    budget: Budget
    spent_s: Callable[[], float]
    leave_s: float
    patience_s: float
    perform: Callable[..., Trial]

    def run(self, contenders: Sequence[Trial]) -> tuple[list[Trial], list[list[Measured]]]:
        """Measure all contenders in rounds, back and forth; one that fails now is out, and so is a round without time.

        Returns who is left, nobody where all failed, and the rounds in which all of them were measured, in their order.
        """
        left, rounds = list(contenders), list[dict[int, Outcome]]()
        if len(left) < 2:
            return left, []
        steps = self.budget.repeat_steps(self.spent_s() + self.leave_s, measured(contenders))
        goal = replace(REPEAT, most_steps=steps)
        numbers = {trial.number for trial in contenders}
        counting = (n for n in itertools.count() if not _is_passed_over(self._recorded(n), numbers))
        for attempt, number in enumerate(counting):
            done = self._recorded(number)
            missing = [trial for trial in left if trial.number not in done]
            times = [self._last_measured(trial) for trial in missing]
            spent_s = self.spent_s() + (self.leave_s if attempt >= ROUNDS[0] else 0.0)
            if self.budget.has_room_for_round(spent_s, missing=times, number=attempt, steps=steps):
                for trial in missing[::-1] if attempt % 2 else missing:
                    repeat = self.perform(trial.candidate, "repeat", goal, of=trial.number, round=number)
                    if self._was_cut_off(repeat):
                        break
                    done[trial.number] = repeat.outcome
            is_whole = all(trial.number in done for trial in left)
            if is_whole:
                rounds.append(done)
            left = [trial for trial in left if isinstance(done.get(trial.number), Measured | None)]
            if not is_whole or len(left) < 2:
                break
        whole = [[outcome for trial in left if isinstance(outcome := done[trial.number], Measured)] for done in rounds]
        return left, [outcomes for outcomes in whole if outcomes]

    def _last_measured(self, trial: Trial) -> Measured:
        """The latest measurement of a contender: a repeat tells best how long the next one takes."""
        repeats = [other for other in self.journal.trials if other.of == trial.number]
        return measured([trial, *repeats])[-1]

    def _recorded(self, number: int) -> dict[int, Outcome]:
        """The outcomes of a round so far, by the number of the trial that was repeated."""
        repeats = (trial for trial in self.journal.trials if trial.role == "repeat" and trial.round == number)
        return {trial.of: trial.outcome for trial in repeats if trial.of is not None and not self._was_cut_off(trial)}

    def _was_cut_off(self, repeat: Trial) -> bool:
        """Whether a repeat was killed because the time was up, and not for what it is."""
        return isinstance(repeat.outcome, TimedOut) and repeat.outcome.limit_s < self.patience_s


def _is_passed_over(done: Mapping[int, Outcome], numbers: Collection[int]) -> bool:
    """Whether a recorded round says nothing of these contenders.

    It is of others: it lacks some of these, and has some that are none. Or all in it failed: that was the machine.
    """
    of_others = not (set(numbers) <= set(done) or set(done) <= set(numbers))
    return of_others or (len(done) > 1 and not any(isinstance(outcome, Measured) for outcome in done.values()))
