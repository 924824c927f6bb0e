"""Comparing measurements on a machine that drifts.

The rate of a single trial is corrected by reference products, which were timed before and after it and its neighbours.
The speed-ups that are reported come from a second measurement, in rounds. In each round every candidate is measured
once, in alternating order. What slows a whole round slows all of them, and drops out (a randomized complete block
design).

Symbols: C candidates, K rounds, y_ck = log rate of candidate c in round k. With row and column means removed the
residuals have (C-1)(K-1) degrees of freedom and variance s^2; the difference of two candidates' means has the
standard error s sqrt(2/K) (Montgomery, Design and Analysis of Experiments, 8th ed., section 4.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.core.arithmetic import NORMAL_975
from autotune.core.outcome import Measured

Floats = NDArray[np.float64]

MAD = 1.4826  # times the median absolute deviation, this is the standard deviation of a normal distribution
NEIGHBOURS = 3  # trials before and after a trial whose reference products say how fast the machine was

# Standard deviation of a trial's log rate that its own steps do not show: repeats on a shared machine differ by 1 to
# 6 % (the tables of docs/search.md). It is added where only one round was measured, which cannot show it either.
BETWEEN_TRIALS = 0.05
# 97.5 % quantiles of Student's t for 1 to 12 degrees of freedom (NIST e-Handbook, 1.3.6.7.2).
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """Ratio of two rates with its 95 % interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval leaves out 1."""
        return is_distinguishable((self.low, self.high), 1.0)


def is_distinguishable(interval: tuple[float, float] | None, equal: float) -> bool:
    """Whether a 95 % interval leaves out `equal`, what two equal rates would give. True where there is no interval."""
    return interval is None or not interval[0] <= equal <= interval[1]


def student_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t. freedom: degrees of freedom, at least one.

    Above 12 degrees it is an expansion around the normal distribution's quantile (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = NORMAL_975
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def reference(outcome: Measured) -> float:
    """The rate of the reference product around a trial, flop/s: the geometric mean of before and after."""
    return math.sqrt(math.prod(outcome.reference_flops_per_s))


def drift(outcomes: Sequence[Measured]) -> Floats:
    """How much faster than usual the machine was around each trial, as a logarithm, shape (trials,).

    outcomes: in the order in which they were measured.

    It is a running median of the reference products. A single product takes 0.2 s and flickers by a tenth on a shared
    machine, which says nothing about a trial that takes seconds. A change that lasts for minutes slows trials and
    products by the same share (the tables of docs/search.md).
    Even if the machine's speed never changed, these medians would differ from 0, because of the flicker. So they are
    shrunk towards 0: by the variance that flicker alone would give them, as a share of the variance that they have
    (Efron and Morris 1973; the variance of a median of n values is pi / 2 times that of their mean). With few trials
    this leaves nothing, and the drift is 0.
    """
    if not outcomes:
        return np.empty(0)
    readings = np.log(np.array([outcome.reference_flops_per_s for outcome in outcomes]))
    readings -= np.median(readings, axis=0)  # a machine may be warmer after each trial
    windows = [readings[max(0, place - NEIGHBOURS) : place + NEIGHBOURS + 1] for place in range(len(readings))]
    medians = np.array([np.median(window) for window in windows])
    spread = MAD * float(np.median(np.abs(readings - medians[:, None])))  # an outlier moves no median
    flicker = float(np.mean([math.pi / 2 * spread**2 / window.size for window in windows]))
    found = float(np.mean(medians**2))
    return medians * (1 - flicker / found) if found > flicker else np.zeros(len(medians))


def corrected_rates(outcomes: Sequence[Measured]) -> list[float]:
    """Useful tokens per second of each trial, as if the machine had always had its usual speed.

    outcomes: as `drift` takes them.
    """
    rates = np.array([outcome.useful_tokens_per_s for outcome in outcomes])
    corrected: list[float] = (rates / np.exp(drift(outcomes))).tolist()
    return corrected


def rates_as_at_first(outcomes: Sequence[Measured]) -> list[float]:
    """Corrected rates, as if the machine had always been as fast as around the first trial, whose rate stays."""
    rates = corrected_rates(outcomes)
    return [rate * outcomes[0].useful_tokens_per_s / rates[0] for rate in rates]


def speedup(rounds: Sequence[Sequence[Measured]], candidate: int, against: int) -> Speedup:
    """How much faster one candidate is than another, from complete rounds of all of them.

    rounds: shape (K, C), K >= 1, C >= 2. With one round the interval comes from how much the steps inside the trials
    scatter, and from what trials of one candidate usually differ by.
    Raises ValueError when the rounds are not of one length.
    """
    y = np.log(np.array([[outcome.useful_tokens_per_s for outcome in outcomes] for outcomes in rounds]))
    K, C = y.shape
    difference = float((y[:, candidate] - y[:, against]).mean())
    if K == 1:
        widths = _half_widths(rounds[0])
        spread = math.hypot(widths[candidate], widths[against])
    else:
        residuals = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
        freedom = (C - 1) * (K - 1)
        s = math.sqrt(float((residuals**2).sum()) / freedom)
        spread = student_975(freedom) * s * math.sqrt(2 / K)
    return Speedup(ratio=math.exp(difference), low=math.exp(difference - spread), high=math.exp(difference + spread))


def _half_widths(outcomes: Sequence[Measured]) -> list[float]:
    """Half the width of the 95 % interval of each trial's log rate; infinite where no trial has two steps.

    The steps of all trials are assumed to scatter by the same share, so the few steps of each trial are pooled.
    """
    known = [(len(each.steps), each.relative_error) for each in outcomes if each.relative_error is not None]
    freedom = sum(n - 1 for n, _ in known)
    if not freedom:
        return [math.inf] * len(outcomes)
    variance = sum((n - 1) * n * error**2 for n, error in known) / freedom  # of a step
    return [
        math.hypot(student_975(freedom) * math.sqrt(variance / len(each.steps)), NORMAL_975 * BETWEEN_TRIALS)
        for each in outcomes
    ]
