"""The bench: where a search measures. It tries one candidate at a time, in the time that is left, and keeps the record.

Leaves out which candidates are tried and why (search.py, explore.py, repeats.py), and how a worker trains (train/).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.outcome import Outcome, TimedOut
from autotune.core.trials.budget import Budget
from autotune.core.trials.reserve import comparison_reserve_s, reserve_s
from autotune.core.trials.standings import first_measurements, pace_of, ranked
from autotune.core.trials.trial import Role, Trial
from autotune.core.workload import Workload
from autotune.search.display import SearchDisplay
from autotune.search.journal import Journal
from autotune.search.predicted_memory import miss_line
from autotune.search.predictions import Predictions
from autotune.search.request import SearchRequest
from autotune.train.task import Compare, Measure, Task
from autotune.train.workers import Workers

READ_PER_S = 250e6  # weights of two bytes each: half a GB/s, the speed of a slow disk or a network disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a search measures with, and the clock that it measures by.

    legal: the candidates of the space. started_at: when this sitting began, as `now` counts. spent_before_s: seconds
    that earlier sittings took.
    """

    request: SearchRequest
    workload: Workload
    hardware: Hardware
    legal: frozenset[Candidate]
    predictions: Predictions
    journal: Journal
    workers: Workers
    display: SearchDisplay
    budget: Budget
    started_at: float
    spent_before_s: float
    now: Callable[[], float] = time.monotonic

    # -- what was measured

    @property
    def trials(self) -> Sequence[Trial]:
        """All trials of all sittings, in order."""
        return self.journal.trials

    def tried(self) -> list[Trial]:
        """The first measurements that say something about their candidates: none that was cut off."""
        return [trial for trial in first_measurements(self.trials) if not self._was_cut_off(trial)]

    def ranked(self) -> list[Trial]:
        """Measured candidates of the space, the fastest first."""
        return ranked(self.trials, self.legal)

    def recall(self) -> None:
        """Show the trials of earlier sittings, and let the predictions learn from them."""
        for trial in self.trials:
            self.display.end(trial)
            self.predictions.memory.learn(trial, self.predictions.predict(trial.candidate))

    # -- the clock

    def spent_s(self) -> float:
        """Seconds that all sittings have taken so far."""
        return self.spent_before_s + self.now() - self.started_at

    def left_s(self) -> float | None:
        """Seconds that are left; None without a limit."""
        return self.budget.left_s(self.spent_s())

    def reserve_s(self) -> float:
        """Seconds to keep for what comes after the candidates."""
        return reserve_s(self.trials, self.legal, self.budget, comparison_s=self.comparison_reserve_s())

    def comparison_reserve_s(self) -> float:
        """Seconds to keep for the comparison of losses alone."""
        if not self.request.compares_losses:
            return 0.0
        return comparison_reserve_s(self.trials, self.legal, self.budget, reading_s=self.reading_s)

    def has_room(self) -> bool:
        """Whether the budget allows one more candidate."""
        tried = [trial.outcome for trial in self.tried()]
        return self.budget.has_room(self.spent_s(), tried=tried, reserve_s=self.reserve_s())

    def has_room_at_the_end(self, trial: Trial) -> bool:
        """Whether the budget allows one more trial that takes as long as this one, with nothing after it."""
        if not self.budget.allows(self.tried()):
            return False
        return self.budget.has_room(self.spent_s(), tried=[trial.outcome], reserve_s=0.0)

    def patience_s(self) -> float:
        """Seconds after which a trial cannot win any more, however much time is left."""
        return self.budget.patience_s(self._baseline_s())

    @property
    def reading_s(self) -> float:
        """Seconds, about, for reading the weights where trials do not read them."""
        return self.workload.model.parameters / READ_PER_S if self._draws_weights else 0.0

    # -- measuring

    def try_candidate(self, candidate: Candidate, role: Role) -> Trial:
        """Measure a candidate for the first time. A trial of role `search` ends early when it cannot be the fastest."""
        fastest = next(iter(self.ranked()), None)
        pace = pace_of(fastest, candidate, self.trials) if role == "search" else None
        return self._measure(candidate, role, Measure(budget_s=self.budget.share_s, pace=pace))

    def try_at_the_end(self, candidate: Candidate) -> Trial:
        """Measure a candidate for the first time, with all the time that is left."""
        return self._measure(candidate, "search", Measure(budget_s=self.budget.share_s), is_last=True)

    def repeat(self, trial: Trial, goal: Measure, *, round: int) -> Trial:
        """Measure the candidate of a trial again, in a round of the second measurement."""
        return self._measure(trial.candidate, "repeat", goal, of=trial.number, round=round)

    def train(self, candidate: Candidate, goal: Compare, folder: Path, *, limit_s: float) -> Outcome:
        """Train a candidate outside the record. limit_s: seconds after which it is killed."""
        return self.workers.perform(self._task(candidate, goal, folder), limit_s=limit_s)

    def _measure(
        self,
        candidate: Candidate,
        role: Role,
        goal: Measure,
        *,
        of: int | None = None,
        round: int | None = None,
        is_last: bool = False,
    ) -> Trial:
        """Measure a candidate, write its outcome down, show it and learn from it."""
        prediction = self.predictions.predict(candidate)
        number = self.journal.begin(candidate, role, of=of, round=round)
        self.display.begin(number, role, candidate)
        self.display.set_end(self.left_s())
        task = self._task(candidate, goal, self.journal.folder(number))
        try:
            limit_s = self._limit_s(role, is_last=is_last)
            outcome = self.workers.perform(task, limit_s=limit_s, on_event=self.display.event)
        except BaseException:
            self.journal.abandon(number)
            raise
        finally:
            self.journal.spend(self.spent_s())
        trial = self.journal.end(number, outcome)
        self.display.end(trial)
        if (miss := self.predictions.memory.learn(trial, prediction)) is not None:
            self.display.line(miss_line(miss))
        return trial

    def _task(self, candidate: Candidate, goal: Measure | Compare, folder: Path) -> Task:
        return Task(
            candidate=candidate,
            recipe=self.request.recipe,
            model_path=self.workload.model.path,
            not_adapted=self.workload.model.not_adapted,
            tokenized_path=self.workload.data.tokenized_path,
            seed=self.request.seed,
            device=self.workers.device,
            output_dir=str(folder),
            log_path=str(folder / "log.txt"),
            goal=goal,
            random_weights=isinstance(goal, Measure) and self._draws_weights,
        )

    @property
    def _draws_weights(self) -> bool:
        """Whether trials draw their weights at random instead of reading the checkpoint.

        A dense model is as fast with any weights. In a mixture of experts the weights decide which experts a token
        goes to. On a CPU reading is as fast as drawing.
        """
        return self.workers.device == "cuda" and not self.workload.model.is_mixture_of_experts

    def _limit_s(self, role: Role, *, is_last: bool = False) -> float | None:
        """Seconds after which a trial that began now would be killed; None never."""
        spent_s = self.spent_s()
        if role == "baseline":
            return self.budget.baseline_limit_s(spent_s)
        reserve_s = 0.0 if role == "repeat" or is_last else self.reserve_s()
        return self.budget.trial_limit_s(spent_s, baseline_s=self._baseline_s(), reserve_s=reserve_s)

    def _baseline_s(self) -> float:
        return max((trial.outcome.wall_s for trial in self.trials if trial.role == "baseline"), default=0.0)

    def _was_cut_off(self, trial: Trial) -> bool:
        """Whether a trial was killed sooner than it would be now, because an earlier sitting had less time."""
        if not isinstance(trial.outcome, TimedOut):
            return False
        limit_s = self._limit_s(trial.role)
        return limit_s is None or limit_s > trial.outcome.limit_s
