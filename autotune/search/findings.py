"""Findings: all that a search knows at its end, and its answer in one sentence, or why there is none.

Leaves out how it was found (search.py), and its files and words (run_directory.py, run_file.py, summary.py).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.core.candidate import Candidate, differences, short_name
from autotune.core.hardware import Hardware
from autotune.core.knobs import DERIVED
from autotune.core.memory.calibration import MemoryCalibration
from autotune.core.outcome import Crashed, Diverged, Measured, OutOfMemory, TimedOut
from autotune.core.space.enumerate import Space
from autotune.core.trials.comparison import Speedup
from autotune.core.trials.parity import NotCompared, Parity
from autotune.core.trials.receipts import Known, Receipt
from autotune.core.trials.trial import Trial
from autotune.core.trials.verdict import Verdict
from autotune.core.units import count_of
from autotune.core.workload import Workload
from autotune.errors import AutotuneError, NothingFits, TrainingFailed
from autotune.search.predicted_memory import Miss, PredictedMemory
from autotune.search.request import SearchRequest


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """All that a search knows at its end.

    defaults: TRL's defaults. The baseline may have had to leave some of them.
    by_hand: what a careful person would set; the baseline's own trial where no settings by hand were tried.
    estimates: the memory that was predicted for each trial, by its number. Trials have not corrected it.
    calibrations: what the trials have taught about predicted memory, by method.
    parity: the losses of the winner and the baseline, or why there are none; None where the baseline won.
    known: rates of the candidates that were measured or are predicted.
    receipts: for each knob of the winner, the best candidate with another value. runner_up: the fastest other one.
    ruled_out: how many candidates were not tried because they are predicted not to fit in memory.
    wall_s: seconds of all sittings together, by what they were spent on.
    """

    request: SearchRequest
    workload: Workload
    hardware: Hardware
    space: Space
    versions: Mapping[str, str]
    trials: Sequence[Trial]
    defaults: Candidate
    baseline: Trial
    by_hand: Trial
    verdict: Verdict
    parity: Parity | NotCompared | None
    estimates: Mapping[int, PredictedMemory | None]
    calibrations: Mapping[str, MemoryCalibration]
    misses: Sequence[Miss]
    known: Mapping[Candidate, Known]
    receipts: Sequence[Receipt]
    runner_up: Candidate | None
    ruled_out: int
    wall_s: Mapping[str, float]

    @property
    def baseline_differs(self) -> Mapping[str, tuple[Any, Any]]:
        """Knobs in which the baseline had to leave TRL's defaults: (TRL's value, the baseline's)."""
        return differences(self.defaults, self.baseline.candidate)

    @property
    def without_receipt(self) -> tuple[str, ...]:
        """Knobs in which the winner differs from the baseline, and of which no other value is known."""
        changed = differences(self.verdict.best.candidate, self.baseline.candidate)
        return tuple(knob for knob in changed if knob not in {*DERIVED, *(each.knob for each in self.receipts)})

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        best, speedup = self.verdict.best, self.verdict.speedup
        if best is self.baseline:
            return self._why_the_baseline()
        if (once := self.verdict.once) is not None:
            return (
                f"about {once.ratio:.1f} times TRL's defaults in useful tokens per second, each measured once: no time "
                "was left to measure them again; raise budget.minutes"
            )
        if speedup is not None:
            return _compared(speedup)
        outcome = best.outcome
        assert isinstance(outcome, Measured)  # as every winner but the baseline
        why = "do not fit in memory" if isinstance(self.baseline.outcome, OutOfMemory) else "could not be compared"
        return f"{outcome.useful_tokens_per_s:.0f} useful tokens/s; TRL's defaults {why}"

    def _why_the_baseline(self) -> str:
        again = [number for number, rates in self.verdict.repeats.items() if rates]
        if again == [self.baseline.number]:
            return "all others failed when they were measured again: the answer is the baseline"
        if again:
            return "no candidate is really faster: the answer is the baseline"
        if any(isinstance(trial.outcome, Measured) for trial in self.trials if trial.role != "baseline"):
            return "no time was left to measure the best again: the answer is the baseline; raise budget.minutes"
        return "nothing could be measured beside the baseline: the answer is the baseline"


def _compared(speedup: Speedup) -> str:
    times, interval = f"{speedup.ratio:.2f} times", "one step was measured of each, so the error is not known"
    if math.isfinite(speedup.high):
        interval = f"95 % interval {speedup.low:.2f} to {speedup.high:.2f}"
    if speedup.is_distinguishable:
        return f"{times} TRL's defaults in useful tokens per second ({interval})"
    return f"not distinguishable from TRL's defaults: {times} their useful tokens per second ({interval})"


def cannot_start(trial: Trial) -> AutotuneError:
    """Make the error that says why not even the baseline could be measured, and what to try."""
    outcome = trial.outcome
    name = short_name(trial.candidate)
    if isinstance(outcome, OutOfMemory):
        return NothingFits(
            f"even the smallest baseline does not fit ({name}): {outcome.message}; try recipe.method=lora or qlora, "
            "a smaller recipe.coverage, or a smaller model"
        )
    if isinstance(outcome, TimedOut):
        return TrainingFailed(
            f"the baseline was not measured after {outcome.limit_s:.0f} s ({name}): raise budget.minutes, or "
            "lower recipe.effective_batch_size or recipe.coverage (rows of up to "
            f"{count_of(trial.candidate.max_length, 'token')})"
        )
    if isinstance(outcome, Diverged):
        return TrainingFailed(
            f"the baseline's loss became {outcome.loss} at step {outcome.step} ({name}): lower recipe.learning_rate"
        )
    message = outcome.message if isinstance(outcome, Crashed) else outcome.kind
    log = f"trials/{trial.number:04d}/log.txt in the run directory"
    return TrainingFailed(f"the baseline could not be trained ({name}): {message} (log: {log})")
