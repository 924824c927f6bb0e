"""How fast the candidates of a search are predicted to be, for a sampler that can make use of it.

A candidate that cannot be predicted is guessed from the others, until a trial shows its rate. Leaves out memory
(predictions.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.candidate import Candidate
from autotune.core.knobs import DEFAULTS, KNOBS
from autotune.core.time.guess import guess
from autotune.core.time.law import SPENT
from autotune.errors import NotPredicted
from autotune.predict.laws import Laws
from autotune.predict.micro_batches import MicroBatches
from autotune.predict.step_seconds import predict_step_seconds
from autotune.predict.time import CalibratedSpeed

Floats = NDArray[np.float64]

# Knobs that the prediction of time leaves out. For each, its default stands for all of its values.
UNTIMED: Mapping[str, Any] = {name: DEFAULTS[name] for name, knob in KNOBS.items() if not knob.changes}
_UNTIMED_OF, _UNTIMED_VALUES = attrgetter(*UNTIMED), tuple(UNTIMED.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictedRates:
    """How fast n candidates are predicted to be.

    rates: useful tokens per second, (n,). step_s: seconds of an optimizer step on average, (n,). shares: of these
    seconds, in the order of SPENT, (n, 4). doubt: standard deviations of the rates' logarithms where they are guessed,
    0 where they are predicted, (n,). spent: predicted seconds in the order of SPENT, for each candidate that has the
    values of UNTIMED.
    """

    rates: Floats
    step_s: Floats
    shares: Floats
    doubt: Floats
    spent: Mapping[Candidate, tuple[float, ...]]


def predict_rates(
    candidates: Sequence[Candidate],
    *,
    first: Sequence[Candidate] = (),
    until: float = math.inf,
    batches: MicroBatches,
    laws: Laws,
    speed: CalibratedSpeed | None,
    report: Callable[[Candidate, NotPredicted], None],
) -> PredictedRates:
    """Predict how fast candidates are. Costs a trace for each kind of step among them, which takes seconds.

    first, until: as in predict_step_seconds. report: called for each candidate that cannot be traced.
    """
    timed = list(map(_timed, candidates))
    examples = dict(zip(reversed(timed), reversed(candidates), strict=True))  # the first candidate that each stands for
    alike = list(dict.fromkeys(timed))
    found = predict_step_seconds(
        alike, first=list(map(_timed, first)), until=until, batches=batches, laws=laws, speed=speed
    )
    for each, problem in found.problems.items():
        report(examples[each], problem)
    place = {each: number for number, each in enumerate(alike)}
    places = [place[each] for each in timed]
    spent = found.spent[places]
    missing = np.isnan(spent.sum(axis=1))
    predicted = {
        candidate: tuple(each)
        for candidate, as_timed, each, is_missing in zip(candidates, timed, spent.tolist(), missing, strict=True)
        if not is_missing and candidate is as_timed
    }
    step_s, doubt = spent.sum(axis=1), np.zeros(len(spent))
    rates = found.useful_tokens[places] / step_s
    shares = spent / step_s[:, None]
    if missing.any():
        knobs = [candidate.to_dict() for candidate in candidates]
        logarithms, doubt = guess(knobs, np.log(rates))
        rates, step_s = np.exp(logarithms), np.exp(guess(knobs, np.log(step_s))[0])
        shares[missing] = 1 / len(SPENT) if missing.all() else np.median(shares[~missing], axis=0)
    return PredictedRates(rates=rates, step_s=step_s, shares=shares, doubt=doubt, spent=predicted)


def _timed(candidate: Candidate) -> Candidate:
    """The candidate that stands for this one in the prediction of time."""
    return candidate if _UNTIMED_OF(candidate) == _UNTIMED_VALUES else replace(candidate, **UNTIMED)
