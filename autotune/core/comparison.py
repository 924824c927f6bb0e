"""Comparing measurements on a machine that drifts.

A rate of one trial is corrected by the reference product that was timed around it, as far as that can be trusted. The
speed-ups that are reported come from a second measurement in rounds: in each round every candidate is measured once, in
alternating order, so that what a round is slowed by is shared and drops out (a randomized complete block design).

Symbols: C candidates, K rounds, y_ck = log rate of candidate c in round k. With row and column means removed the
residuals have (C-1)(K-1) degrees of freedom and variance s^2; the difference of two candidates' means has the
standard error s sqrt(2/K) (Montgomery, Design and Analysis of Experiments, 8th ed., section 4.1).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.core.outcome import Measured

# Standard deviation of a trial's log rate that its own steps do not tell: repeats on a shared machine differ by 1 to
# 6 % (the tables of docs/search.md). It counts where there is only one round to tell it.
BETWEEN_TRIALS = 0.05
# 97.5 % quantiles of Student's t for 1 to 12 degrees of freedom, then the normal's (NIST e-Handbook, 1.3.6.7.2).
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)
NORMAL_975 = 1.960


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """Ratio of two rates with its 95 % interval. rounds: how many times both were measured side by side."""

    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def is_faster(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1


def student_975(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, for so many degrees of freedom, at least one."""
    return T_975[freedom - 1] if freedom <= len(T_975) else NORMAL_975


def reference(outcome: Measured) -> float:
    """The reference product's rate around a trial, flop/s: the geometric mean of before and after."""
    return math.sqrt(math.prod(outcome.reference_flops_per_s))


def trust(outcomes: Sequence[Measured]) -> float:
    """The share of what the reference product differs by between trials that is the machine's drift, from 0 to 1.

    The rest is flicker, which says nothing of a trial of seconds: on a shared machine a product of 0.2 s differs by a
    fifth from before a trial to after it. By the analysis of variance of trials (two readings each, the mean
    difference of before and after set aside) it is 1 - 1 / F (Efron and Morris 1973: the empirical Bayes estimate of
    each trial's level), less one standard error of F: its logarithm has 2 / sqrt(trials - 1) where nothing drifts.
    """
    if len(outcomes) < 2:
        return 0.0
    readings = np.log(np.array([outcome.reference_flops_per_s for outcome in outcomes]))
    between, within = 2 * readings.mean(axis=1).var(ddof=1), np.diff(readings).var(ddof=1) / 2
    flicker = within * math.exp(2 / math.sqrt(len(outcomes) - 1))
    return float(1 - flicker / between) if between > flicker else 0.0


def corrected_rates(outcomes: Sequence[Measured]) -> list[float]:
    """Useful tokens per second of each trial, as if the machine had always been as fast as in the mean of them."""
    if not outcomes:
        return []
    levels = np.log([reference(outcome) for outcome in outcomes])
    drift = np.exp(trust(outcomes) * (levels - levels.mean()))
    return [outcome.useful_tokens_per_s / float(each) for outcome, each in zip(outcomes, drift, strict=True)]


def rates_as_at_first(outcomes: Sequence[Measured]) -> list[float]:
    """The same, as if it had always been as fast as around the first trial, whose rate stays."""
    rates = corrected_rates(outcomes)
    return [rate * outcomes[0].useful_tokens_per_s / rates[0] for rate in rates]


def speedup(rounds: Sequence[Sequence[Measured]], candidate: int, against: int) -> Speedup:
    """How much faster one candidate is than another, from complete rounds of all of them.

    rounds: shape (K, C), K >= 1, C >= 2. With one round the interval comes from the steps inside all trials, of which
    few say little, and from what trials usually differ by.
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
    return Speedup(
        ratio=math.exp(difference), low=math.exp(difference - spread), high=math.exp(difference + spread), rounds=K
    )


def _half_widths(outcomes: Sequence[Measured]) -> list[float]:
    """Of the 95 % interval of each trial's log rate; infinite where no trial has two steps.

    A step scatters by the same share in all of them: two or three of each, taken together, say how much.
    """
    told = [(len(each.steps), each.relative_error) for each in outcomes if each.relative_error is not None]
    freedom = sum(n - 1 for n, _ in told)
    if not freedom:
        return [math.inf] * len(outcomes)
    variance = sum((n - 1) * n * error**2 for n, error in told) / freedom  # of a step
    return [
        math.hypot(student_975(freedom) * math.sqrt(variance / len(each.steps)), NORMAL_975 * BETWEEN_TRIALS)
        for each in outcomes
    ]
