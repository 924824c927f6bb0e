"""The predictions of a search: whether its candidates fit, how fast they are, and what the user is told of both.

Leaves out the arithmetic of memory (predicted_memory.py) and of rates (predicted_rates.py).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autotune.core.candidate import Candidate, short_name
from autotune.core.units import format_bytes
from autotune.errors import NotPredicted
from autotune.predict.memory import MemoryPredictor
from autotune.predict.time import CalibratedSpeed
from autotune.search.predicted_memory import CalibratedMemory, Prediction
from autotune.search.predicted_rates import PredictedRates, RatePredictor


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """What a search predicts.

    Lines that the user should read go to `progress`. Each is said once.
    """

    memory: CalibratedMemory
    rates: RatePredictor
    progress: Callable[[str], None]
    _said: set[str] = field(default_factory=set)

    @classmethod
    def of(
        cls, predictor: MemoryPredictor, speed: CalibratedSpeed | None, *, progress: Callable[[str], None]
    ) -> "Predictions":
        """Set up the predictions of a training's candidates. speed: of the machine, None where it is unknown."""
        return cls(
            memory=CalibratedMemory(predictor=predictor),
            rates=RatePredictor(batches=predictor.batches, laws=predictor.laws, speed=speed),
            progress=progress,
        )

    def predict(self, candidate: Candidate) -> Prediction:
        """Predict whether a candidate fits. For the first of its kind a step is traced, which takes seconds.

        The user is told of a candidate that cannot be predicted, and of one that needs too much of the host's memory.
        """
        found = self.memory.predict(candidate)
        if found.problem is not None:
            self._say_not_predicted(candidate, found.problem)
        if found.host_bytes is not None:
            free_bytes = self.memory.predictor.room.host_free_bytes or 0
            self._say_once(
                f"host {candidate.method}",
                f"candidates like {short_name(candidate)} need {format_bytes(found.host_bytes)} of the host's memory, "
                f"and {format_bytes(free_bytes)} are free: they are not tried",
            )
        return found

    def predict_rates(
        self, candidates: Sequence[Candidate], *, first: Sequence[Candidate] = (), until: float = math.inf
    ) -> PredictedRates:
        """Predict how fast candidates are. Costs a trace for each kind of step among them, which takes seconds.

        first, until: as in predict_step_seconds. The user is told of candidates that cannot be traced.
        """
        return self.rates.predict(candidates, first=first, until=until, report=self._say_not_predicted)

    def _say_not_predicted(self, candidate: Candidate, problem: NotPredicted) -> None:
        self._say_once(str(problem), f"candidates like {short_name(candidate)} are not predicted: {problem}")

    def _say_once(self, about: str, line: str) -> None:
        if about not in self._said:
            self._said.add(about)
            self.progress(line)
