"""The surrogate of a search: what is believed of every candidate's rate after a few were measured.

The predicted rate is the prior mean. A Gaussian process over the finite set of candidates learns what the prediction
leaves unexplained. It is a sum of four kinds of deviations:

1. physical factors, which all candidates share. A step's seconds are spent on several resources (memory traffic, matrix
   products, launches, the host), and each of these may be slower than was predicted;
2. a deviation for each value of each knob;
3. a deviation for each combination of knobs;
4. a deviation for each candidate whose rate is only guessed.

Leaves out where predictions come from (core/time/law.py) and how a study uses this (search/roofline.py).

Symbols: n candidates, k knobs, f physical factors, t measured candidates. Rates are natural logarithms, so that
deviations are factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import erf, exp, log, pi, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Standard deviations of the first three kinds, as logarithms. Each value counts by how likely it makes the
# measurements.
OF_FACTORS = (0.1, 0.5)  # of each factor, and of all together: the whole machine may be slower than its probe said
OF_KNOBS = (0.02, 0.08, 0.3)  # a prediction may be wrong about a kernel
OF_COMBINATIONS = (0.01, 0.04, 0.15)
OCTAVES = 2.0  # deviations of two numbers that are this many octaves (factors of two) apart correlate by 1 / e
JITTER = 1e-8
NEGLIGIBLE = 0.01  # hyperparameters with less than this share of the weight are left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """What is believed of the logarithm of each candidate's rate: mean and standard deviation, shape (n,)."""

    mean: Floats
    deviation: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """Candidates and what is predicted of them.

    predicted: logarithms of the rates, shape (n,).
    shares: the share of a candidate's predicted seconds that each factor has, (f, n). If the logarithm of a factor
        rises, the logarithm of the rate falls by this share of the rise.
    doubt: standard deviations of the rates that are guessed, 0 for the others, (n,).
    codes: which value each candidate has of each knob, (k, n).
    likeness: for each knob how alike its values are, (values, values): 1 on the diagonal, 0 for values that say nothing
        about each other.
    """

    predicted: Floats
    shares: Floats
    doubt: Floats
    codes: Integers
    likeness: Sequence[Floats]
    _known: dict[int, Floats] = field(default_factory=dict, repr=False)

    def believe(self, measured: Integers, rates: Floats, errors: Floats) -> Belief:
        """Say what to believe after t measurements.

        measured: places of the candidates, repeats allowed, (t,). rates: logarithms, (t,). errors: their standard
        deviations, (t,). Hyperparameters are weighted by how likely they make the measured rates, so that a few
        measurements rule none of them out.
        """
        itself = np.stack([1 + (self.shares**2).sum(axis=0), *np.ones((2, len(self.predicted))), self.doubt**2])
        if not len(measured):
            widest = np.array([max(OF_FACTORS), max(OF_KNOBS), max(OF_COMBINATIONS), 1.0])
            return Belief(mean=self.predicted, deviation=np.sqrt(widest**2 @ itself))
        left = rates - self.predicted[measured]
        noise = np.diag(errors**2 + JITTER)
        alike = self._alike(measured)
        scales = np.array(list(product(OF_FACTORS, OF_KNOBS, OF_COMBINATIONS, (1.0,))))
        roots = [np.linalg.cholesky(_covariance(each, alike[..., measured]) + noise) for each in scales]
        likely = np.array([_log_likelihood(root, left) for root in roots])
        weights = np.exp(likely - likely.max())
        weights[weights < NEGLIGIBLE * weights.sum()] = 0.0
        weights /= weights.sum()
        mean, square = np.zeros(len(self.predicted)), np.zeros(len(self.predicted))
        for each, root, weight in zip(scales, roots, weights, strict=True):
            if weight:
                whitening = np.linalg.inv(root)
                across = whitening @ _covariance(each, alike)
                expected = (whitening @ left) @ across
                variance = each**2 @ itself - np.einsum("tn,tn->n", across, across)
                mean += weight * expected
                square += weight * (expected**2 + np.maximum(variance, 0.0))
        return Belief(mean=self.predicted + mean, deviation=np.sqrt(np.maximum(square - mean**2, 0.0)))

    def _alike(self, measured: Integers) -> Floats:
        """How alike the measured candidates are to all candidates, by kind of deviation, (4, t, n).

        By the shares of their seconds; by their knobs on average; by all knobs at once; and where both are guessed, by
        their knobs on average.
        """
        for place in {*measured.tolist()} - self._known.keys():
            alike = [likeness[codes[place]][codes] for codes, likeness in zip(self.codes, self.likeness, strict=True)]
            alike = alike or [np.ones(len(self.predicted))]
            spent, mean = 1 + self.shares[:, place] @ self.shares, np.mean(alike, axis=0)
            guess = self.doubt[place] * self.doubt * mean
            self._known[place] = np.stack([spent, mean, np.prod(alike, axis=0), guess])
        return np.stack([self._known[place] for place in measured.tolist()], axis=1)


def surrogate(
    candidates: Sequence[Mapping[str, Any]],
    predicted: Floats,
    shares: Floats | None = None,
    doubt: Floats | None = None,
) -> Surrogate:
    """Make the surrogate of candidates, each a mapping from knobs to values.

    predicted: logarithms of their rates, (n,). shares: of each one's seconds by factor, (n, f), if known.
    doubt: standard deviations of the rates that are guessed, 0 for the others, (n,), if there are any.
    """
    knobs = [knob for knob in candidates[0] if len({each[knob] for each in candidates}) > 1]
    values = [list(dict.fromkeys(each[knob] for each in candidates)) for knob in knobs]
    codes = [[of_knob.index(each[knob]) for each in candidates] for knob, of_knob in zip(knobs, values, strict=True)]
    return Surrogate(
        predicted=predicted,
        shares=np.empty((0, len(predicted))) if shares is None else np.asarray(shares, dtype=np.float64).T,
        doubt=np.zeros(len(predicted)) if doubt is None else np.asarray(doubt, dtype=np.float64),
        codes=np.array(codes, dtype=np.int64).reshape(len(knobs), len(candidates)),
        likeness=tuple(_likeness(of_knob) for of_knob in values),
    )


def _likeness(values: Sequence[Any]) -> Floats:
    """How alike the values of a knob are: numbers above 0 by their ratio, any other values not at all."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value in values):
        octaves = np.log2(np.array(values, dtype=np.float64))
        alike: Floats = np.exp(-np.abs(octaves[:, None] - octaves[None, :]) / OCTAVES)
        return alike
    return np.eye(len(values))


def _covariance(scales: Floats, alike: Floats) -> Floats:
    """The covariance of measured candidates and all, (t, n). scales: standard deviations by kind, (4,)."""
    covariance: Floats = np.einsum("s,stn->tn", scales**2, alike)
    return covariance


def expected_improvement(belief: Belief, best: float) -> Floats:
    """By how much each candidate is expected to exceed `best`, a logarithm; shape (n,).

    Jones, Schonlau and Welch 1998, equation 15.
    """
    deviation = np.maximum(belief.deviation, JITTER)
    z = (belief.mean - best) / deviation
    density = np.exp(-(z**2) / 2) / sqrt(2 * pi)
    improvement: Floats = deviation * (z * _normal(z) + density)
    return improvement


def can_still_win(belief: Belief, best: float, *, tolerance: float, confidence: float) -> NDArray[np.bool_]:
    """Which candidates may exceed the best rate by more than a share of it, the tolerance; shape (n,).

    confidence: the probability with which a candidate that is ruled out is believed not to do so.
    """
    win: NDArray[np.bool_] = _reach(belief, confidence) > best + log(1 + tolerance)
    return win


def most_to_gain(belief: Belief, best: float, allowed: NDArray[np.bool_], *, confidence: float) -> float:
    """The most by which an allowed candidate is believed to exceed the best rate, as a share of it.

    Returns 0 if no candidate is allowed.
    best: a logarithm. allowed: shape (n,). confidence: the probability that a candidate does not exceed it by more.
    """
    reach = _reach(belief, confidence)[allowed]
    return max(0.0, exp(float(reach.max()) - best) - 1) if len(reach) else 0.0


def _reach(belief: Belief, confidence: float) -> Floats:
    """The logarithm of a rate that each candidate is believed not to exceed, shape (n,)."""
    reach: Floats = belief.mean + NormalDist().inv_cdf(confidence) * belief.deviation
    return reach


def _log_likelihood(root: NDArray[np.floating[Any]], left: Floats) -> float:
    """The logarithm of a normal density, without its constant. root: Cholesky factor of the covariance."""
    whitened = np.linalg.solve(root, left)
    return float(-0.5 * whitened @ whitened - np.log(root.diagonal()).sum())


def _normal(z: Floats) -> Floats:
    """The standard normal distribution function, shape as z."""
    values: Floats = np.array([0.5 * (1 + erf(value / sqrt(2))) for value in z.ravel()]).reshape(z.shape)
    return values
