"""Calibration of time: how the measured seconds of trials follow from the predicted ones.

There is one factor for each thing that seconds are spent on, shared by all candidates. The factors are fitted to trials
on this machine, so the predictions improve as a search goes on. Leaves out the predictions themselves (law.py).

Symbols: C candidates, n trials.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.core.time.law import SPENT, Spent

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePrior:
    """How wrong predicted seconds may be before any trial, as standard deviations of logarithms.

    factors: the errors that all candidates share, one for each thing that seconds are spent on. misfit: the error of
    each candidate by itself.
    """

    factors: Mapping[Spent, float]
    misfit: float


# The probe measured the rates one operation at a time. A step finds other caches, clocks and neighbours.
MEASURED = TimePrior(factors={"launch": 0.3, "compute": 0.1, "bandwidth": 0.2, "host": 1.0}, misfit=0.06)
# The share of a published peak that is reached differs by a quarter from GPU to GPU. Nothing is published of the host.
PUBLISHED = TimePrior(factors={"launch": 0.6, "compute": 0.25, "bandwidth": 0.25, "host": 1.0}, misfit=0.12)
ROUNDS = 20  # of the Gauss-Newton method, which settles in a few
FREEDOM = 4  # degrees of freedom of the misfits, which follow Student's t
# Half widths of the interval that holds 90 %: of the normal distribution, and of Student's t with FREEDOM.
NINETY_PERCENT, NINETY_PERCENT_OF_MISFITS = 1.645, 2.132


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeCalibration:
    """The factors of what seconds are spent on, as trials have corrected them.

    logarithms: of the factors, in the order of SPENT, shape (4,). covariance: of these logarithms, (4, 4). misfit: as
    in TimePrior. trials: how many the factors are fitted to.
    """

    logarithms: Floats
    covariance: Floats
    misfit: float
    trials: int

    def seconds(self, spent: Floats) -> Floats:
        """The seconds to expect (their median), shape (C,). spent: predicted seconds in the order of SPENT, (C, 4)."""
        total: Floats = spent @ np.exp(self.logarithms)
        return total

    def interval(self, spent: Floats) -> tuple[Floats, Floats]:
        """Two seconds, each of shape (C,), between which 90 % of measurements are expected. spent: as in `seconds`."""
        width = np.hypot(NINETY_PERCENT * self._of_factors(spent), NINETY_PERCENT_OF_MISFITS * self.misfit)
        middle, factor = self.seconds(spent), np.exp(width)
        return middle / factor, middle * factor

    def _of_factors(self, spent: Floats) -> Floats:
        """Standard deviations of the logarithms of the seconds that come from the factors, shape (C,)."""
        shares = _shares(spent, self.logarithms)
        deviation: Floats = np.sqrt(np.einsum("cf,fg,cg->c", shares, self.covariance, shares))
        return deviation


def calibrate_time(prior: TimePrior, spent: Floats, measured: Sequence[float]) -> TimeCalibration:
    """Fit the factors to trials: the most likely ones, and their covariance there (Laplace's approximation).

    Misfits are assumed to follow Student's distribution, so a trial that is far off the others counts little.
    spent: predicted seconds of each trial's step in the order of SPENT, (n, 4). measured: seconds of each step, (n,).
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
    """Share of the seconds that is spent on each thing, (C, 4).

    It is the derivative of the seconds' logarithm by the logarithms of the factors.
    """
    scaled = spent * np.exp(logarithms)
    shares: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return shares
