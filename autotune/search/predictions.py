"""Predictions of a search: whether a candidate fits in memory, as trials so far have corrected it, and how fast it is.

A prediction counts live tensors. What a process holds beside them is learned from the peaks of trials: a factor and an
offset for each method (core/memory/calibration.py). A candidate that cannot be predicted counts as fitting, until
a trial shows whether it does. Leaves out how rates are predicted (predicted_rates.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from autotune.core.candidate import Candidate, short_name
from autotune.core.memory.calibration import MemoryCalibration, calibrate_memory
from autotune.core.memory.estimate import MemoryEstimate
from autotune.core.outcome import Measured, OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.core.units import format_bytes
from autotune.errors import NotPredicted
from autotune.predict.experience import Taught
from autotune.predict.memory import MemoryPredictor, WorstStep
from autotune.predict.time import CalibratedSpeed
from autotune.search.predicted_rates import PredictedRates, predict_rates


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedMemory:
    """The memory that was predicted for a candidate, without what trials have taught."""

    peak_allocated_bytes: int
    """peak of a training step on the worst batch"""
    peak_phase: str
    """phase of the step in which the peak is"""
    items: Mapping[str, int]
    """what the peak holds, in bytes; the items add up to the peak, within a byte each"""
    limit_bytes: int
    """limit that the corrected peak is compared with"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Whether a candidate fits, as predicted and corrected by the trials so far.

    peak_bytes: the peak of its worst step as it was traced, without any correction; None where it cannot be traced.
    needed_bytes: what was compared with the limit, 0 where nothing could be predicted. For a candidate that fits, this
    is all that it needs. host_bytes: what it needs of the host's memory, if that is why it does not fit. problem: why
    something could not be predicted.
    """

    fits: bool
    peak_bytes: int | None = None
    needed_bytes: int = 0
    host_bytes: int | None = None
    problem: NotPredicted | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A trial that ran out of memory although it was predicted to fit.

    predicted_bytes: what was compared with the limit, as it was predicted before the trial. peak_bytes: what the trial
    had when it failed, None if unknown.
    """

    number: int
    predicted_bytes: int
    limit_bytes: int
    peak_bytes: int | None
    message: str


@dataclass(slots=True, kw_only=True)
class Predictions:
    """What a search predicts, corrected by the trials so far.

    speed: of the machine, None where it is unknown. progress: gets lines that the user should read.
    """

    memory: MemoryPredictor
    speed: CalibratedSpeed | None
    progress: Callable[[str], None]
    misses: list[Miss] = field(default_factory=list)
    _calibrations: dict[str, MemoryCalibration] = field(default_factory=dict)
    _measured: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # (predicted, measured) by method
    _failed_bytes: dict[str, int] = field(default_factory=dict)  # least peak of a method that ran out of memory
    _steps: dict[Candidate, WorstStep | NotPredicted] = field(default_factory=dict)
    _estimates: dict[Candidate, MemoryEstimate | NotPredicted] = field(default_factory=dict)
    _spent: dict[Candidate, tuple[float, ...]] = field(default_factory=dict)  # as in PredictedRates
    _said: set[str] = field(default_factory=set)

    @property
    def limit_bytes(self) -> int:
        """What a trial may take of the device, on a CPU of the host's memory."""
        return self.memory.room.limit_bytes

    @property
    def calibrations(self) -> Mapping[str, MemoryCalibration]:
        """What trials have taught, by method."""
        return self._calibrations

    def predict(self, candidate: Candidate) -> Prediction:
        """Predict whether a candidate fits. For the first of its kind a step is traced, which takes seconds.

        A candidate that cannot be predicted counts as fitting. This is reported once, and so is a candidate that needs
        too much of the host's memory.
        """
        found = self._judge(candidate)
        if found.problem is not None:
            self._say_not_predicted(candidate, found.problem)
        if found.host_bytes is not None:
            free_bytes = self.memory.room.host_free_bytes or 0
            self._say_once(
                f"host {candidate.method}",
                f"candidates like {short_name(candidate)} need {format_bytes(found.host_bytes)} of the host's memory, "
                f"and {format_bytes(free_bytes)} are free: they are not tried",
            )
        return found

    def is_known_to_fit(self, candidate: Candidate) -> bool:
        """Whether a candidate is predicted to fit by a trace that is there already. Reports nothing."""
        return self.memory.is_traced(candidate) and self._judge(candidate).fits

    def predict_rates(
        self, candidates: Sequence[Candidate], *, first: Sequence[Candidate] = (), until: float = math.inf
    ) -> PredictedRates:
        """Predict how fast candidates are. Costs a trace for each kind of step among them, which takes seconds.

        first, until: as in predict_step_seconds. What cannot be predicted is reported once.
        """
        found = predict_rates(
            candidates,
            first=first,
            until=until,
            batches=self.memory.batches,
            laws=self.memory.laws,
            speed=self.speed,
            report=self._say_not_predicted,
        )
        self._spent |= found.spent
        return found

    def learn(self, trial: Trial, prediction: Prediction) -> None:
        """Calibrate with a trial, and note a miss. prediction: what `predict` said before the trial.

        Trials are learned once each, in their order. A miss is judged by what the trials before it had taught, so no
        later one overturns it, and a search that is continued finds the same.
        """
        peak_bytes, method = prediction.peak_bytes, trial.candidate.method
        if peak_bytes is None or trial.role == "repeat":  # a repeat need not meet the worst batch
            return
        if isinstance(trial.outcome, Measured):
            pairs = self._measured.setdefault(method, [])
            pairs.append((float(self._counted(peak_bytes)), float(trial.outcome.peak_bytes)))
            self._calibrations[method] = calibrate_memory(pairs)
        elif isinstance(trial.outcome, OutOfMemory):
            if prediction.fits:
                self.misses.append(
                    Miss(
                        number=trial.number,
                        predicted_bytes=prediction.needed_bytes,
                        limit_bytes=self.limit_bytes,
                        peak_bytes=trial.outcome.peak_bytes,
                        message=trial.outcome.message,
                    )
                )
            self._failed_bytes[method] = min(self._failed_bytes.get(method, peak_bytes), peak_bytes)

    def taught(self, trials: Iterable[Trial], *, data: str) -> list[Taught]:
        """List what trials teach about predicted seconds: those that were measured and whose seconds were predicted.

        data: the dataset's fingerprint.
        """
        return [
            Taught(
                name=f"{self.memory.training.facts.fingerprint} {data} {short_name(trial.candidate)}",
                spent=self._spent[trial.candidate],
                step_s=trial.outcome.step_s,
            )
            for trial in trials
            if isinstance(trial.outcome, Measured) and trial.candidate in self._spent
        ]

    def predicted_memory(self, candidate: Candidate) -> PredictedMemory | None:
        """Return the memory that was predicted for a candidate; None where nothing was, or it could not be traced."""
        step = self._steps.get(candidate)
        if not isinstance(step, WorstStep):
            return None
        return PredictedMemory(
            peak_allocated_bytes=step.peak.bytes,
            peak_phase=step.peak.phase,
            items=dict(step.peak.items),
            limit_bytes=self.limit_bytes,
        )

    def _judge(self, candidate: Candidate) -> Prediction:
        """Compare what a candidate needs with the limits."""
        step, room = self._worst_step(candidate), self.memory.room
        if isinstance(step, NotPredicted):
            return Prediction(fits=True, problem=step)
        peak_bytes = step.peak.bytes
        calibration = self._calibrations.get(candidate.method, MemoryCalibration())
        needed = round(calibration.at_most(self._counted(peak_bytes))) + room.context_bytes
        failed = peak_bytes >= self._failed_bytes.get(candidate.method, peak_bytes + 1)
        if failed or needed > self.limit_bytes:
            return Prediction(fits=False, peak_bytes=peak_bytes, needed_bytes=needed)
        if step.host_bytes > room.host_limit_bytes:
            return Prediction(fits=False, peak_bytes=peak_bytes, needed_bytes=needed, host_bytes=step.host_bytes)
        if room.on_cpu:  # nothing fragments there, and no other phase is assumed to need more
            return Prediction(fits=True, peak_bytes=peak_bytes, needed_bytes=needed)
        memory = self._estimate(step)
        if isinstance(memory, NotPredicted):
            return Prediction(fits=True, peak_bytes=peak_bytes, needed_bytes=needed, problem=memory)
        needed += memory.peak_bytes - memory.peak.bytes + memory.demand.allowance_bytes  # other phases, fragmentation
        return Prediction(fits=needed <= self.limit_bytes, peak_bytes=peak_bytes, needed_bytes=needed)

    def _counted(self, peak_bytes: int) -> int:
        """A peak as torch counts allocated bytes: with the workspaces of cuBLAS."""
        return peak_bytes + self.memory.room.workspace_bytes

    def _worst_step(self, candidate: Candidate) -> WorstStep | NotPredicted:
        if candidate not in self._steps:
            try:
                self._steps[candidate] = self.memory.worst_step(candidate)
            except NotPredicted as error:
                self._steps[candidate] = error
        return self._steps[candidate]

    def _estimate(self, step: WorstStep) -> MemoryEstimate | NotPredicted:
        if (candidate := step.candidate) not in self._estimates:
            try:
                self._estimates[candidate] = self.memory.estimate(step)
            except NotPredicted as error:  # where the law was kept, but not its profile
                self._estimates[candidate] = error
        return self._estimates[candidate]

    def _say_not_predicted(self, candidate: Candidate, problem: NotPredicted) -> None:
        self._say_once(str(problem), f"candidates like {short_name(candidate)} are not predicted: {problem}")

    def _say_once(self, about: str, line: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self.progress(line)


def miss_line(miss: Miss) -> str:
    """Say a miss in words."""
    had = "" if miss.peak_bytes is None else f" with {format_bytes(miss.peak_bytes)}"
    return (
        f"trial {miss.number} ran out of memory{had}, though {format_bytes(miss.predicted_bytes)} were predicted "
        f"and the limit is {format_bytes(miss.limit_bytes)}: a miss of the prediction"
    )
