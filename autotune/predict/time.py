"""The time of one candidate: seconds of a step, item by item, and the interval in which they are expected.

Leaves out the seconds of many candidates at once (step_seconds.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.time.calibration import MEASURED, PUBLISHED, TimeCalibration, calibrate_time
from autotune.core.time.law import SPENT, TimeEstimate, estimate_time
from autotune.core.time.measured import measured_speed
from autotune.core.time.published import published_speed
from autotune.core.time.speed import MachineSpeed
from autotune.predict.experience import Taught
from autotune.predict.laws import Laws, TimedStep
from autotune.predict.micro_batches import MicroBatches


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedSpeed:
    """How fast a machine is, and how trials correct that.

    measured: whether the speed comes from rates that were measured on the machine, or is published of its GPU.
    """

    speed: MachineSpeed
    calibration: TimeCalibration
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedTime:
    """An estimate of time, corrected by trials.

    interval_s: the seconds between which 90 % of measured steps are expected. measured: as in CalibratedSpeed. trials:
    how many trials on this machine have corrected the estimate.
    """

    estimate: TimeEstimate
    interval_s: tuple[float, float]
    measured: bool
    trials: int = 0

    @property
    def useful_tokens_per_s(self) -> float | None:
        """Labels that reach the loss in a second of training; None where the dataset is unknown."""
        tokens, steps = self.estimate.useful_tokens, self.estimate.steps
        return None if tokens is None or not steps else tokens / (steps * self.estimate.step_s)


def calibrated_speed(hardware: Hardware, taught: Sequence[Taught] = ()) -> CalibratedSpeed | None:
    """The speed of a machine, corrected by what trials taught; None where neither a probe nor a specification tells."""
    try:
        if hardware.rates:
            speed, prior = measured_speed(hardware), MEASURED
        elif hardware.peaks is not None:
            speed, prior = published_speed(hardware.peaks), PUBLISHED
        else:
            return None
    except ValueError:
        return None
    spent = np.array([each.spent for each in taught], dtype=np.float64).reshape(-1, len(SPENT))
    calibration = calibrate_time(prior, spent, [each.step_s for each in taught])
    return CalibratedSpeed(speed=speed, calibration=calibration, measured=prior is MEASURED)


def is_timed(candidate: Candidate, hardware: Hardware) -> bool:
    """Whether a candidate's seconds can be predicted.

    They cannot with offloaded activations, nor with fewer threads than the cores that a probe uses.
    """
    return not candidate.activation_offloading and candidate.torch_threads in (None, hardware.cores)


def predict_time(
    candidate: Candidate, *, batches: MicroBatches, laws: Laws, speed: CalibratedSpeed | None
) -> CalibratedTime | None:
    """Predict how long a candidate's steps take. The first of its kind costs a trace, which takes seconds.

    Returns None if the speed of the machine is unknown, if the probe could not measure one of the operations, and for a
    candidate that is not timed (`is_timed`). Raises NotPredicted when the step cannot be traced.
    """
    if speed is None or not is_timed(candidate, laws.training.hardware):
        return None
    dealt = batches.epoch(candidate)
    batch = batches.worst(candidate) if dealt is None else dealt.middle
    accumulation = candidate.gradient_accumulation_steps
    law = laws.time(TimedStep.of(candidate, laws.training.request(candidate, batch), accumulation=accumulation))
    try:
        if dealt is None:
            shapes = np.array([batch.monomials], dtype=np.float64)
            estimate = estimate_time(law, speed.speed, shapes, accumulation=accumulation, useful_tokens=None)
        else:
            estimate = estimate_time(
                law,
                speed.speed,
                dealt.epoch.monomials,
                accumulation=accumulation,
                useful_tokens=dealt.useful_tokens,
                new_shapes=dealt.epoch.new_shapes,
            )
    except KeyError:  # an operation that a probe could not measure
        return None
    calibration = speed.calibration
    low, high = calibration.interval(np.array([[estimate.spent[one] for one in SPENT]]))
    return CalibratedTime(
        estimate=estimate.scaled(np.exp(calibration.logarithms).tolist()),
        interval_s=(float(low[0]), float(high[0])),
        measured=speed.measured,
        trials=calibration.trials,
    )
