"""The plan of a search: which candidates fit in memory, as predicted, and corrected by what trials measured.

A prediction is of live tensors; what a process takes beside them is learned from the peaks of trials, a factor and an
offset for each method (core/memory/calibration.py). A candidate that cannot be predicted counts as fitting: it is for a
trial to say. How fast candidates are is predicted as well, for a sampler that can make use of it.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autotune.core.candidate import Candidate, short_name
from autotune.core.knobs import DEFAULTS, KNOBS
from autotune.core.memory.calibration import MemoryCalibration, calibrate_memory
from autotune.core.memory.estimate import MemoryEstimate
from autotune.core.memory.law import Peak
from autotune.core.outcome import Measured, OutOfMemory
from autotune.core.time.guess import guess
from autotune.core.time.law import SPENT
from autotune.core.time.many_candidates import TimeParts
from autotune.core.trials.trial import Trial
from autotune.core.units import format_bytes
from autotune.errors import NotPredicted
from autotune.predict.experience import Taught
from autotune.predict.forecaster import Forecaster

Floats = NDArray[np.float64]
T = TypeVar("T")

# Knobs that the prediction of time leaves out, and the value that stands for all of theirs.
UNTIMED: Mapping[str, Any] = {name: DEFAULTS[name] for name, knob in KNOBS.items() if not knob.changes}
_UNTIMED_OF, _UNTIMED_VALUES = attrgetter(*UNTIMED), tuple(UNTIMED.values())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Whether a candidate fits, as predicted and corrected by the trials so far.

    needed_bytes: what was compared with the limit, 0 where nothing could be predicted. Of a candidate that fits, this
    is all that it needs. host_bytes: what it needs of the host's memory, where that is why it does not fit. problem:
    why something could not be predicted.
    """

    fits: bool
    needed_bytes: int = 0
    host_bytes: int | None = None
    problem: NotPredicted | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictedRates:
    """How fast n candidates are predicted to be.

    rates: useful tokens per second, (n,). step_s: seconds of an optimizer step in the mean, (n,). shares: of these
    seconds, by what they are spent on (timing.SPENT), (n, 4). doubt: standard deviations of the rates' logarithms where
    they are guessed, 0 where they are predicted, (n,).
    """

    rates: Floats
    step_s: Floats
    shares: Floats
    doubt: Floats


@dataclass(slots=True, kw_only=True)
class Predictions:
    """What is known of candidates' memory at some moment of a search."""

    forecaster: Forecaster
    progress: Callable[[str], None]
    misses: list[Miss] = field(default_factory=list)
    _calibrations: dict[str, MemoryCalibration] = field(default_factory=dict)
    _measured: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # (predicted, measured) by method
    _failed_bytes: dict[str, int] = field(default_factory=dict)  # least peak of a method that ran out of memory
    _memories: dict[Candidate, MemoryEstimate | NotPredicted] = field(default_factory=dict)
    _peaks: dict[Candidate, Peak | NotPredicted] = field(default_factory=dict)
    _host_bytes: dict[Candidate, int] = field(default_factory=dict)
    # Seconds of a step, as timing.SPENT, of candidates without anything that the prediction leaves out.
    _spent: dict[Candidate, tuple[float, ...]] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)

    @property
    def limit_bytes(self) -> int:
        """What a trial may take of the device, on a CPU of the host's memory."""
        return self.forecaster.room.limit_bytes

    def predict(self, candidate: Candidate) -> Prediction:
        """Predict whether a candidate fits. For the first of its kind a step is traced, which takes seconds.

        What cannot be predicted counts as fitting: a trial will say. That, and what asks too much of the host, is
        reported once.
        """
        found = self._judge(candidate)
        if found.problem is not None:
            self._say_not_predicted(candidate, found.problem)
        if found.host_bytes is not None:
            free_bytes = self.forecaster.room.host_free_bytes or 0
            self._say_once(
                f"host {candidate.method}",
                f"candidates like {short_name(candidate)} need {format_bytes(found.host_bytes)} of the host's memory, "
                f"and {format_bytes(free_bytes)} are free: they are not tried",
            )
        return found

    def is_known_to_fit(self, candidate: Candidate) -> bool:
        """Whether a candidate is predicted to fit, and that without a new trace. Reports nothing."""
        return self.forecaster.is_traced(candidate) and self._judge(candidate).fits

    def _judge(self, candidate: Candidate) -> Prediction:
        """Compare what a candidate needs with the limits."""
        peak, room = self._peak(candidate), self.forecaster.room
        if isinstance(peak, NotPredicted):
            return Prediction(fits=True, problem=peak)
        needed = self._needed(candidate, peak)
        failed = peak.bytes >= self._failed_bytes.get(candidate.method, peak.bytes + 1)
        if failed or needed > self.limit_bytes:
            return Prediction(fits=False, needed_bytes=needed)
        if (host_bytes := self._host(candidate)) > room.host_limit_bytes:
            return Prediction(fits=False, needed_bytes=needed, host_bytes=host_bytes)
        if room.on_cpu:  # nothing fragments there, and no other phase is taken to need more
            return Prediction(fits=True, needed_bytes=needed)
        memory = self._memory(candidate)
        if isinstance(memory, NotPredicted):
            return Prediction(fits=True, needed_bytes=needed, problem=memory)
        needed += memory.peak_bytes - memory.peak.bytes + memory.demand.allowance_bytes  # other phases, fragmentation
        return Prediction(fits=needed <= self.limit_bytes, needed_bytes=needed)

    def speeds(
        self, candidates: Sequence[Candidate], *, first: Sequence[Candidate] = (), until: float = math.inf
    ) -> PredictedRates:
        """How fast candidates are, as far as it is predicted.

        Costs a trace for each kind of step among them, those of `first` before the others; none is begun at `until`
        (time.monotonic()) or later. One that cannot be predicted is guessed from the others (core/time/guess.py): it
        is for a trial to say.
        """
        timed = list(map(_timed, candidates))
        self.forecaster.trace_ahead(dict.fromkeys(timed), first=list(map(_timed, first)), until=until)
        parts: dict[Candidate, TimeParts | None] = {}
        for candidate, alike in zip(candidates, timed, strict=True):
            if alike in parts:
                continue
            try:
                parts[alike] = self.forecaster.time_parts(alike)
            except NotPredicted as error:
                parts[alike] = None
                self._say_not_predicted(candidate, error)
        found = {alike: each for alike, each in parts.items() if each is not None}
        seconds = dict(zip(found, self.forecaster.step_seconds(list(found.values())), strict=True)) if found else {}
        nothing = np.full(len(SPENT), np.nan)
        spent = np.array([seconds.get(alike, nothing) for alike in timed])
        missing = np.isnan(spent).any(axis=1)
        for candidate, alike, each, is_missing in zip(candidates, timed, spent.tolist(), missing, strict=True):
            if not is_missing and candidate is alike:
                self._spent[candidate] = tuple(each)
        step_s, doubt = spent.sum(axis=1), np.zeros(len(spent))
        rates = np.array([self._tokens_of_a_step(found.get(alike)) for alike in timed]) / step_s
        shares = spent / step_s[:, None]
        if missing.any():
            knobs = [candidate.to_dict() for candidate in candidates]
            logarithms, doubt = guess(knobs, np.log(rates))
            rates, step_s = np.exp(logarithms), np.exp(guess(knobs, np.log(step_s))[0])
            shares[missing] = 1 / len(SPENT) if missing.all() else np.median(shares[~missing], axis=0)
        return PredictedRates(rates=rates, step_s=step_s, shares=shares, doubt=doubt)

    @staticmethod
    def _tokens_of_a_step(parts: TimeParts | None) -> float:
        """Useful tokens of an optimizer step in the mean over the epoch; one where nothing is known."""
        return 1.0 if parts is None else parts.useful_tokens * parts.accumulation / len(parts.epoch.rows)

    def taught(self, trials: Iterable[Trial], *, data: str) -> list[Taught]:
        """What trials teach about predicted seconds: those that were measured, of candidates whose seconds were.

        data: the dataset's fingerprint.
        """
        return [
            Taught(
                name=f"{self.forecaster.facts.fingerprint} {data} {short_name(trial.candidate)}",
                spent=self._spent[trial.candidate],
                step_s=trial.outcome.step_s,
            )
            for trial in trials
            if isinstance(trial.outcome, Measured) and trial.candidate in self._spent
        ]

    def learn(self, trial: Trial) -> None:
        """Calibrate with a trial, and note it where the prediction missed. Predicts its candidate if nothing did yet.

        Trials are learned once each, in their order: a miss is judged by what the trials before it had taught, so no
        later one overturns it, and a search that goes on finds the same.
        """
        peak, method = self._peak(trial.candidate), trial.candidate.method
        if isinstance(peak, NotPredicted) or trial.role == "repeat":  # a repeat need not meet the worst batch
            return
        if isinstance(trial.outcome, Measured):
            pairs = self._measured.setdefault(method, [])
            pairs.append((float(peak.bytes + self._workspaces), float(trial.outcome.peak_bytes)))
            self._calibrations[method] = calibrate_memory(pairs)
        elif isinstance(trial.outcome, OutOfMemory):
            predicted = self._judge(trial.candidate)
            if predicted.fits:
                self.misses.append(
                    Miss(
                        number=trial.number,
                        predicted_bytes=predicted.needed_bytes,
                        limit_bytes=self.limit_bytes,
                        peak_bytes=trial.outcome.peak_bytes,
                        message=trial.outcome.message,
                    )
                )
            self._failed_bytes[method] = min(self._failed_bytes.get(method, peak.bytes), peak.bytes)

    def estimate(self, candidate: Candidate) -> PredictedMemory | None:
        """Return the predicted memory of a candidate, None when its step was not or could not be traced."""
        peak = self._peaks.get(candidate)
        if not isinstance(peak, Peak):
            return None
        return PredictedMemory(
            peak_allocated_bytes=peak.bytes,
            peak_phase=peak.phase,
            items=dict(peak.items),
            limit_bytes=self.limit_bytes,
        )

    @property
    def calibrations(self) -> Mapping[str, MemoryCalibration]:
        """What trials have taught, by method."""
        return self._calibrations

    def _needed(self, candidate: Candidate, peak: Peak) -> int:
        """What must be there, as far as it is known: tensors and all that experience adds to them, and the context."""
        expected = self._calibration(candidate).at_most(peak.bytes + self._workspaces)
        return round(expected) + self.forecaster.room.context_bytes

    def _calibration(self, candidate: Candidate) -> MemoryCalibration:
        return self._calibrations.get(candidate.method, MemoryCalibration())

    @property
    def _workspaces(self) -> int:
        """Torch's counter of allocated bytes has those of cuBLAS among them."""
        return self.forecaster.room.workspace_bytes

    def _peak(self, candidate: Candidate) -> Peak | NotPredicted:
        if candidate not in self._peaks:
            self._peaks[candidate] = _attempt(self.forecaster.peak, candidate)
        return self._peaks[candidate]

    def _memory(self, candidate: Candidate) -> MemoryEstimate | NotPredicted:
        if candidate not in self._memories:
            self._memories[candidate] = _attempt(self.forecaster.memory, candidate)
        return self._memories[candidate]

    def _host(self, candidate: Candidate) -> int:
        """What the host must hold, of a candidate whose peak was predicted."""
        if candidate not in self._host_bytes:
            self._host_bytes[candidate] = self.forecaster.host_bytes(candidate)
        return self._host_bytes[candidate]

    def _say_not_predicted(self, candidate: Candidate, problem: NotPredicted) -> None:
        self._say_once(str(problem), f"candidates like {short_name(candidate)} are not predicted: {problem}")

    def _say_once(self, about: str, line: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self.progress(line)


def _attempt(predict: Callable[[Candidate], T], candidate: Candidate) -> T | NotPredicted:
    """What `predict` answers, or why it cannot."""
    try:
        return predict(candidate)
    except NotPredicted as error:
        return error


def _timed(candidate: Candidate) -> Candidate:
    """The candidate that the prediction of time takes it for."""
    return candidate if _UNTIMED_OF(candidate) == _UNTIMED_VALUES else replace(candidate, **UNTIMED)


def miss_line(miss: Miss) -> str:
    """A miss in words."""
    had = "" if miss.peak_bytes is None else f" with {format_bytes(miss.peak_bytes)}"
    return (
        f"trial {miss.number} ran out of memory{had}, though {format_bytes(miss.predicted_bytes)} were predicted "
        f"and the limit is {format_bytes(miss.limit_bytes)}: a miss of the prediction"
    )
