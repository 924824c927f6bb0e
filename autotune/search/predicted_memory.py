"""Whether the candidates of a search fit in memory: as predicted, and corrected by the trials so far.

Leaves out the prediction itself (predict/memory.py) and the lines for the user (predictions.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from autotune.core.candidate import Candidate
from autotune.core.memory.calibration import MemoryCalibration, calibrate_memory
from autotune.core.memory.estimate import MemoryEstimate
from autotune.core.outcome import Measured, OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.core.units import format_bytes
from autotune.errors import NotPredicted
from autotune.predict.memory import MemoryPredictor, WorstStep


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


@dataclass(slots=True)
class _Learned:
    """What the trials of one method have taught.

    peaks: (predicted, measured) bytes of the trials that ran. failed_bytes: the least predicted peak of those that ran
    out of memory.
    """

    peaks: list[tuple[float, float]] = field(default_factory=list)
    calibration: MemoryCalibration = field(default_factory=MemoryCalibration)
    failed_bytes: float = math.inf


@dataclass(slots=True, kw_only=True)
class CalibratedMemory:
    """The memory of a search's candidates, and how trials correct it.

    misses: in the order of their trials.
    """

    predictor: MemoryPredictor
    misses: list[Miss] = field(default_factory=list)
    _learned: dict[str, _Learned] = field(default_factory=dict)  # by method
    _steps: dict[Candidate, WorstStep | NotPredicted] = field(default_factory=dict)
    _estimates: dict[Candidate, MemoryEstimate | NotPredicted] = field(default_factory=dict)

    @property
    def limit_bytes(self) -> int:
        """What a trial may take of the device, on a CPU of the host's memory."""
        return self.predictor.room.limit_bytes

    @property
    def calibrations(self) -> Mapping[str, MemoryCalibration]:
        """The calibration of each method that was measured."""
        return {method: learned.calibration for method, learned in self._learned.items() if learned.peaks}

    def predict(self, candidate: Candidate) -> Prediction:
        """Predict whether a candidate fits. For the first of its kind a step is traced, which takes seconds.

        A candidate that cannot be predicted counts as fitting.
        """
        step, room = self._worst_step(candidate), self.predictor.room
        if isinstance(step, NotPredicted):
            return Prediction(fits=True, problem=step)
        peak_bytes, learned = step.peak.bytes, self._learned.get(candidate.method, _Learned())
        needed = round(learned.calibration.at_most(self._counted(peak_bytes))) + room.context_bytes
        if peak_bytes >= learned.failed_bytes or needed > self.limit_bytes:
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

    def is_known_to_fit(self, candidate: Candidate) -> bool:
        """Whether a candidate is predicted to fit by a trace that is there already."""
        return self.predictor.is_traced(candidate) and self.predict(candidate).fits

    def learn(self, trial: Trial, prediction: Prediction) -> Miss | None:
        """Calibrate with a trial, and return its miss, if it is one. prediction: what `predict` said before the trial.

        Trials are learned once each, in their order. A miss is judged by what the trials before it had taught, so no
        later one overturns it, and a search that is continued finds the same.
        """
        peak_bytes, outcome = prediction.peak_bytes, trial.outcome
        if peak_bytes is None or trial.role == "repeat":  # a repeat need not meet the worst batch
            return None
        learned = self._learned.setdefault(trial.candidate.method, _Learned())
        if isinstance(outcome, Measured):
            learned.peaks.append((float(self._counted(peak_bytes)), float(outcome.peak_bytes)))
            learned.calibration = calibrate_memory(learned.peaks)
        if not isinstance(outcome, OutOfMemory):
            return None
        learned.failed_bytes = min(learned.failed_bytes, peak_bytes)
        if not prediction.fits:
            return None
        miss = Miss(
            number=trial.number,
            predicted_bytes=prediction.needed_bytes,
            limit_bytes=self.limit_bytes,
            peak_bytes=outcome.peak_bytes,
            message=outcome.message,
        )
        self.misses.append(miss)
        return miss

    def predicted(self, candidate: Candidate) -> PredictedMemory | None:
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

    def _counted(self, peak_bytes: int) -> int:
        """A peak as torch counts allocated bytes: with the workspaces of cuBLAS."""
        return peak_bytes + self.predictor.room.workspace_bytes

    def _worst_step(self, candidate: Candidate) -> WorstStep | NotPredicted:
        if candidate not in self._steps:
            try:
                self._steps[candidate] = self.predictor.worst_step(candidate)
            except NotPredicted as error:
                self._steps[candidate] = error
        return self._steps[candidate]

    def _estimate(self, step: WorstStep) -> MemoryEstimate | NotPredicted:
        if (candidate := step.candidate) not in self._estimates:
            try:
                self._estimates[candidate] = self.predictor.estimate(step)
            except NotPredicted as error:  # where the law was kept, but not its profile
                self._estimates[candidate] = error
        return self._estimates[candidate]


def miss_line(miss: Miss) -> str:
    """Say a miss in words."""
    had = "" if miss.peak_bytes is None else f" with {format_bytes(miss.peak_bytes)}"
    return (
        f"trial {miss.number} ran out of memory{had}, though {format_bytes(miss.predicted_bytes)} were predicted "
        f"and the limit is {format_bytes(miss.limit_bytes)}: a miss of the prediction"
    )
