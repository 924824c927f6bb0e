"""How fast the candidates of a search are predicted to be, for a sampler that can make use of it.

A candidate that cannot be predicted is guessed from the others, until a trial shows its rate. A measured trial teaches
how far the predicted seconds are off. Leaves out memory (predicted_memory.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.candidate import Candidate, short_name
from autotune.core.knobs import DEFAULTS, KNOBS
from autotune.core.outcome import Measured
from autotune.core.time.guess import guess
from autotune.core.time.law import SPENT
from autotune.core.trials.trial import Trial
from autotune.errors import NotPredicted
from autotune.predict.experience import Taught
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
    0 where they are predicted, (n,).
    """

    rates: Floats
    step_s: Floats
    shares: Floats
    doubt: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePredictor:
    """Predicts how fast one training's candidates are, and remembers what it predicted.

    speed: of the machine, None where it is unknown.
    """

    batches: MicroBatches
    laws: Laws
    speed: CalibratedSpeed | None
    _spent: dict[Candidate, tuple[float, ...]] = field(default_factory=dict)  # predicted seconds, in the order of SPENT

    def predict(
        self,
        candidates: Sequence[Candidate],
        *,
        first: Sequence[Candidate] = (),
        until: float = math.inf,
        report: Callable[[Candidate, NotPredicted], None],
    ) -> PredictedRates:
        """Predict how fast candidates are. Costs a trace for each kind of step among them, which takes seconds.

        first, until: as in predict_step_seconds. report: called for each candidate that cannot be traced.
        """
        timed = list(map(_timed, candidates))
        examples = dict(zip(reversed(timed), reversed(candidates), strict=True))  # the first that each stands for
        alike = list(dict.fromkeys(timed))
        found = predict_step_seconds(
            alike, first=list(map(_timed, first)), until=until, batches=self.batches, laws=self.laws, speed=self.speed
        )
        for each, problem in found.problems.items():
            report(examples[each], problem)
        place = {each: number for number, each in enumerate(alike)}
        places = [place[each] for each in timed]
        spent = found.spent[places]
        missing = np.isnan(spent.sum(axis=1))
        for candidate, as_timed, each, is_missing in zip(candidates, timed, spent.tolist(), missing, strict=True):
            if not is_missing and candidate is as_timed:
                self._spent[candidate] = tuple(each)
        step_s, doubt = spent.sum(axis=1), np.zeros(len(spent))
        rates = found.useful_tokens[places] / step_s
        shares = spent / step_s[:, None]
        if missing.any():
            knobs = [candidate.to_dict() for candidate in candidates]
            logarithms, doubt = guess(knobs, np.log(rates))
            rates, step_s = np.exp(logarithms), np.exp(guess(knobs, np.log(step_s))[0])
            shares[missing] = 1 / len(SPENT) if missing.all() else np.median(shares[~missing], axis=0)
        return PredictedRates(rates=rates, step_s=step_s, shares=shares, doubt=doubt)

    def taught(self, trials: Iterable[Trial], *, data: str) -> list[Taught]:
        """List what trials teach about predicted seconds: those that were measured and whose seconds were predicted.

        A candidate that has another value of a knob in UNTIMED teaches nothing. data: the dataset's fingerprint.
        """
        return [
            Taught(
                name=f"{self.laws.training.facts.fingerprint} {data} {short_name(trial.candidate)}",
                spent=self._spent[trial.candidate],
                step_s=trial.outcome.step_s,
            )
            for trial in trials
            if isinstance(trial.outcome, Measured) and trial.candidate in self._spent
        ]


def _timed(candidate: Candidate) -> Candidate:
    """The candidate that stands for this one in the prediction of time."""
    return candidate if _UNTIMED_OF(candidate) == _UNTIMED_VALUES else replace(candidate, **UNTIMED)
