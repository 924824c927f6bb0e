"""Guesses: the rates of candidates that are not predicted, from those of candidates that are.

Each value of each knob is assumed to have an effect of its own, and the effects are assumed to add up. A guess says how
wrong it may be. It may be very wrong if no predicted candidate has the same value of a knob, or if the effects of the
predicted ones do not add up. Leaves out why a candidate is not predicted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_SPREAD = 0.25  # standard deviation of the logarithms of a space's rates: 0.23 and 0.27 in benchmarks/results
LEAST_NOISE = 0.05  # the error of predictions themselves: their median errors in docs/time.md


def guess(candidates: Sequence[Mapping[str, Any]], logarithms: Floats) -> tuple[Floats, Floats]:
    """Guess the unknown values of candidates. Returns means and standard deviations, (n,) each.

    candidates: n mappings from knobs to values, all with the same knobs. logarithms: the values, (n,), NaN where
    unknown. A known value stays as it is, with a deviation of 0. Where nothing is known the means are 0.

    This is Bayesian linear regression (Bishop 2006, section 3.3). The effects have a normal prior around 0, as wide as
    the known values are spread. The noise is what the effects leave unexplained.
    """
    is_known = ~np.isnan(logarithms)
    known, values = logarithms[is_known], _values(candidates)
    center = float(known.mean()) if len(known) else 0.0
    spread = max(LEAST_SPREAD, float(known.std()) if len(known) else 0.0)
    has, left = values[is_known], known - center
    explained, _, rank, _ = np.linalg.lstsq(has, left)
    freedom = len(known) - int(rank)
    rest = left - has @ explained
    noise = max(LEAST_NOISE, float(np.sqrt(rest @ rest / freedom))) if freedom > 0 else spread
    precision = has.T @ has + (noise / spread) ** 2 * np.eye(values.shape[1])
    means = center + values @ np.linalg.solve(precision, has.T @ left)
    unsure = np.einsum("nv,vn->n", values, np.linalg.solve(precision, values.T))
    deviations = noise * np.sqrt(1 + unsure)
    return np.where(is_known, logarithms, means), np.where(is_known, 0.0, deviations)


def _values(candidates: Sequence[Mapping[str, Any]]) -> Floats:
    """Encode the candidates, (n, values): 1 where a candidate has a value of a knob, else 0.

    Knobs with a single value are left out.
    """
    columns = [np.zeros((len(candidates), 0))]
    for knob in candidates[0]:
        values = [each[knob] for each in candidates]
        codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
        if len(codes) > 1:
            columns.append(np.eye(len(codes))[[codes[value] for value in values]])
    return np.concatenate(columns, axis=1)
