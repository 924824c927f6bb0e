"""What is guessed of candidates that are not predicted, from those that are: an effect of each value of each knob.

A guess says how far off it may be: by much where no predicted candidate has the same value of a knob, or where the
effects do not add up. Leaves out why something is not predicted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_SPREAD = 0.25  # standard deviation of the logarithms of a space's rates: 0.23 and 0.27 in benchmarks/results
LEAST_NOISE = 0.05  # what predictions themselves are off by: their median errors in docs/time.md


def guess(candidates: Sequence[Mapping[str, Any]], logarithms: Floats) -> tuple[Floats, Floats]:
    """What each candidate has, and how far off that may be: means and standard deviations, (n,) each.

    candidates: n mappings from knobs to values, all with the same knobs. logarithms: (n,), NaN where unknown; what is
    known stays as it is, with a deviation of 0. Where nothing is known the means are 0.

    Bayesian linear regression (Bishop 2006, section 3.3): the effects are normal around 0 and as large as the known
    ones differ from each other; noise is what they leave unexplained.
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
    """Which value of which knob each candidate has, 0 or 1, (n, values); knobs with a single value are left out."""
    columns = [np.zeros((len(candidates), 0))]
    for knob in candidates[0]:
        values = [each[knob] for each in candidates]
        codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
        if len(codes) > 1:
            columns.append(np.eye(len(codes))[[codes[value] for value in values]])
    return np.concatenate(columns, axis=1)
