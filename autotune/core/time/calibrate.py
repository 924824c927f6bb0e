"""Calibration: what measured trials say about predicted memory and time.

Of memory a factor and an offset for each method, and no more: the offset is what lives beside the tensors that a trace
sees (libraries, their kernels' caches), the factor what the allocator rounds and splits. Of time one factor for each
thing that seconds are spent on, shared by all candidates. Both are fitted to trials on this machine, so predictions
get closer as a search goes on. Leaves out the predictions themselves (core/memory/law.py, law.py).

Symbols: p predicted bytes, m measured bytes of a trial; m ~ factor p + offset. C candidates, n trials.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.core.time.law import SPENT, Spent

Floats = NDArray[np.float64]

FACTORS = (0.8, 1.25)  # beyond them two peaks differ for other reasons than the allocator's
SPREAD = 1.2  # largest over smallest p from which on a factor can be told from an offset


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCalibration:
    """How measured peaks of one method follow from predicted ones; as it is, nothing is known yet.

    peaks: of how many trials. worst_bytes: by how much a measured peak exceeded factor p + offset at most.
    """

    factor: float = 1.0
    offset_bytes: float = 0.0
    worst_bytes: float = 0.0
    peaks: int = 0

    def expected(self, predicted_bytes: float) -> float:
        """The peak to expect, in bytes."""
        return max(0.0, self.factor * predicted_bytes + self.offset_bytes)

    def at_most(self, predicted_bytes: float) -> float:
        """The expected peak and the largest excess seen so far, in bytes: what a limit is compared with."""
        return self.expected(predicted_bytes) + self.worst_bytes


def calibrate_memory(peaks: Iterable[tuple[float, float]]) -> MemoryCalibration:
    """Fit to (predicted, measured) bytes of the trials of one method, by least squares."""
    pairs = list(peaks)
    if not pairs:
        return MemoryCalibration()
    n = len(pairs)
    mean_p, mean_m = sum(p for p, _ in pairs) / n, sum(m for _, m in pairs) / n
    factor = 1.0
    if max(p for p, _ in pairs) >= SPREAD * min(p for p, _ in pairs):
        slope = sum((p - mean_p) * (m - mean_m) for p, m in pairs) / sum((p - mean_p) ** 2 for p, _ in pairs)
        factor = min(max(slope, FACTORS[0]), FACTORS[1])
    offset = mean_m - factor * mean_p
    worst = max(m - factor * p - offset for p, m in pairs)
    return MemoryCalibration(factor=factor, offset_bytes=offset, worst_bytes=max(0.0, worst), peaks=n)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePrior:
    """How far seconds may be off before any trial, as standard deviations of logarithms.

    factors: of each thing that seconds are spent on, for all candidates. misfit: of each candidate by itself.
    """

    factors: Mapping[Spent, float]
    misfit: float


# Rates of this machine were measured one operation at a time; a step finds other caches, clocks and neighbours.
MEASURED = TimePrior(factors={"launch": 0.3, "compute": 0.1, "bandwidth": 0.2, "host": 1.0}, misfit=0.06)
# Published peaks: shares that are reached differ by a quarter from GPU to GPU, and the host is anybody's.
PUBLISHED = TimePrior(factors={"launch": 0.6, "compute": 0.25, "bandwidth": 0.25, "host": 1.0}, misfit=0.12)
ROUNDS = 20  # of Gauss and Newton, which settle in a few
FREEDOM = 4  # degrees of it that misfits have
# Half widths of the interval that holds nine of ten: of the normal, and of Student's t with FREEDOM.
NINETY_PERCENT, NINETY_PERCENT_OF_MISFITS = 1.645, 2.132


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeCalibration:
    """Factors of what seconds are spent on, as far as trials tell them.

    logarithms: of the factors in the order of SPENT, shape (4,). covariance: of these, (4, 4). trials: how many told.
    """

    logarithms: Floats
    covariance: Floats
    misfit: float
    trials: int

    def seconds(self, spent: Floats) -> Floats:
        """The seconds to expect, the median. spent: predicted seconds by what they go into, (C, 4). Returns (C,)."""
        total: Floats = spent @ np.exp(self.logarithms)
        return total

    def deviation(self, spent: Floats) -> Floats:
        """Standard deviations of the logarithms of seconds; (C, 4) to (C,)."""
        deviation: Floats = np.hypot(self._of_factors(spent), self.misfit)
        return deviation

    def interval(self, spent: Floats) -> tuple[Floats, Floats]:
        """Between which seconds nine of ten are expected; (C, 4) to two of (C,)."""
        width = np.hypot(NINETY_PERCENT * self._of_factors(spent), NINETY_PERCENT_OF_MISFITS * self.misfit)
        middle, factor = self.seconds(spent), np.exp(width)
        return middle / factor, middle * factor

    def _of_factors(self, spent: Floats) -> Floats:
        """Standard deviations that the factors give to the logarithms of seconds; (C, 4) to (C,)."""
        shares = _shares(spent, self.logarithms)
        deviation: Floats = np.sqrt(np.einsum("cf,fg,cg->c", shares, self.covariance, shares))
        return deviation


def calibrate_time(prior: TimePrior, spent: Floats, measured: Sequence[float]) -> TimeCalibration:
    """The factors after trials: the most likely ones, and how well they are known around there (Laplace).

    A trial far off the others counts little: misfits are taken to follow Student's distribution.
    spent: predicted seconds of each trial's step by what they go into, (n, 4). measured: seconds of each, (n,).
    """
    precision = np.diag([prior.factors[one] ** -2 for one in SPENT])
    logarithms = np.zeros(len(SPENT))
    for _ in range(ROUNDS):
        shares = _shares(spent, logarithms)
        off = np.log(np.asarray(measured)) - np.log(spent @ np.exp(logarithms))
        weights = (FREEDOM + 1) / (FREEDOM * prior.misfit**2 + off**2)
        curvature = precision + (shares.T * weights) @ shares
        logarithms = logarithms + np.linalg.solve(curvature, shares.T @ (weights * off) - precision @ logarithms)
    return TimeCalibration(
        logarithms=logarithms, covariance=np.linalg.inv(curvature), misfit=prior.misfit, trials=len(measured)
    )


def _shares(spent: Floats, logarithms: Floats) -> Floats:
    """What share of the seconds goes into each, (C, 4): how their logarithm follows the factors' logarithms."""
    scaled = spent * np.exp(logarithms)
    shares: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return shares
