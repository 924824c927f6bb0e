"""`RooflineSampler`: an Optuna sampler over a finite set of candidates whose rates are predicted beforehand.

The prediction is the prior mean of a Gaussian process (core/trials/surrogate.py). The next candidate is the one whose
expected improvement, divided by the seconds that its trial takes, is the largest. Any study may use it:

    sampler = RooflineSampler(candidates, predicted, trial_s=seconds)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.optimize(lambda trial: rate_of(sampler.ask_all(trial)))

Leaves out what the candidates are and how they are measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from autotune.core.trials.surrogate import Belief, can_still_win, expected_improvement, most_to_gain, surrogate

Floats = NDArray[np.float64]

ERROR = "relative_error"  # the user attribute that holds the standard error of a trial's value, as a share of it
USUAL_ERROR = 0.03  # of a trial that has no such attribute
LEAST_TOLERANCE = 0.01


class RooflineSampler(BaseSampler):
    """Samples whole candidates. Parameters that no candidate has are sampled at random.

    candidates: mappings from parameter names to values, all with the same names.
    predicted: their predicted values, > 0, shape (n,).
    shares: how a candidate's seconds are divided among resources, such as memory traffic and matrix products, shape
        (n, resources). The true cost of a resource is uncertain, but it is the same for all candidates.
    doubt: standard deviation of the value's logarithm where the prediction is a guess, else 0, shape (n,).
    trial_s: seconds that a trial of each candidate takes, shape (n,); None takes all as equal.
    feasible: which candidates may be tried, shape (n,), bool. One that failed or was pruned is not tried again.
    tolerance: a candidate is tried only if it may exceed the best by more than this share. None is the larger of 1 %
        and twice the error of the best.
    confidence: the probability with which a candidate that is not tried is believed not to exceed the best by the
        tolerance.
    seed: of parameters that no candidate has. Of equally good candidates the first in the list is tried.

    The study maximizes rates, or minimizes seconds; `predicted` holds the same. `optimize` ends when no candidate can
    win. With ask and tell, `can_win` says which can.
    """

    def __init__(
        self,
        candidates: Sequence[Mapping[str, Any]],
        predicted: Sequence[float] | Floats,
        *,
        shares: Floats | None = None,
        doubt: Floats | None = None,
        trial_s: Sequence[float] | Floats | None = None,
        feasible: Sequence[bool] | NDArray[np.bool_] | None = None,
        tolerance: float | None = None,
        confidence: float = 0.95,
        seed: int | None = None,
    ) -> None:
        values = np.asarray(predicted, dtype=np.float64)
        costs = np.ones(len(candidates)) if trial_s is None else np.asarray(trial_s, dtype=np.float64)
        if not candidates or {len(values), len(costs)} != {len(candidates)}:
            raise ValueError(
                f"{len(candidates)} candidates, {len(values)} predictions and {len(costs)} times of trials"
            )
        if not (values > 0).all() or not (costs > 0).all():
            raise ValueError("predictions and times of trials must be above 0")
        self.candidates = [dict(candidate) for candidate in candidates]
        self.trial_s = costs
        self.feasible = np.ones(len(candidates), dtype=bool) if feasible is None else np.asarray(feasible, dtype=bool)
        self.tolerance, self.confidence = tolerance, confidence
        self._models = {sign: surrogate(self.candidates, sign * np.log(values), shares, doubt) for sign in (1.0, -1.0)}
        self._space: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(list(dict.fromkeys(candidate[name] for candidate in candidates)))
            for name in candidates[0]
        }
        self._places = {self._key(candidate): place for place, candidate in enumerate(self.candidates)}
        self._random = RandomSampler(seed=seed)
        self._asking = Lock()
        self._believed: tuple[tuple[Any, ...], Belief] | None = None  # the last belief, after the key of its trials
        self._asked: dict[int, int] = {}  # places by number of trial; a study knows a trial's parameters only later

    # -- what a study calls

    def reseed_rng(self) -> None:
        """Draw other random numbers from now on; Optuna calls it in each further process."""
        self._random.reseed_rng()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the candidates."""
        return dict(self._space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Choose the candidate to try next, among those that have the values fixed for this trial."""
        self._raise_error_if_multi_objective(study)
        with self._asking:
            return self._ask(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that no candidate has, or one of a trial whose fixed values no candidate has."""
        self._raise_error_if_multi_objective(study)
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """End `optimize` when no candidate can win any more."""
        if study._thread_local.in_optimize_loop and not len(self.can_win(study, trial, state, values)):
            study.stop()

    # -- what a script calls

    def ask_all(self, trial: Trial) -> dict[str, Any]:
        """Ask a trial for its whole candidate: a value for each name."""
        return {
            name: trial.suggest_categorical(name, distribution.choices)
            for name, distribution in self._space.items()
            if isinstance(distribution, CategoricalDistribution)
        }

    def belief(self, study: Study) -> Belief:
        """What is believed of every candidate now: means and standard deviations of the values' logarithms."""
        return self._believe(self._seen(study.get_trials(deepcopy=False), study))

    def can_win(self, study: Study, *ending: Any) -> NDArray[np.int64]:
        """Places of the candidates that can still win. ending: a trial that is ending, its state and its values."""
        return np.flatnonzero(self._can_win(self._seen(study.get_trials(deepcopy=False), study, *ending)))

    def most_to_gain(self, study: Study, allowed: NDArray[np.bool_]) -> float | None:
        """The most by which an allowed candidate is believed to exceed the best, as a share; None without a best."""
        seen = self._seen(study.get_trials(deepcopy=False), study)
        if seen.best is None:
            return None
        left = allowed & self.feasible & ~seen.gone
        return most_to_gain(self._believe(seen), seen.best, left, confidence=self.confidence)

    def current_tolerance(self, study: Study) -> float:
        """The share by which a candidate must be able to exceed the best now, to be tried."""
        return self._tolerance(self._seen(study.get_trials(deepcopy=False), study))

    def best_next(self, study: Study, allowed: NDArray[np.bool_]) -> int | None:
        """Choose the place of the candidate to try next among the allowed ones, shape (n,); None when none is left.

        For scripts that add measured trials to a study themselves, instead of asking it.
        """
        return self._best(self._seen(study.get_trials(deepcopy=False), study), allowed)

    # -- how it decides

    def _ask(self, study: Study, trial: FrozenTrial, search_space: Mapping[str, Any]) -> dict[str, Any]:
        fixed = {**trial.params, **trial.system_attrs.get("fixed_params", {})}
        place = self._next(study, {name: value for name, value in fixed.items() if name in self._space})
        if place is None:
            return {}
        self._asked[trial.number] = place
        return {name: self.candidates[place][name] for name in search_space}

    def _next(self, study: Study, fixed: Mapping[str, Any]) -> int | None:
        allowed = np.ones(len(self.candidates), dtype=bool)
        for name, value in fixed.items():
            allowed &= np.array([candidate[name] == value for candidate in self.candidates])
        return self._best(self._seen(study.get_trials(deepcopy=False), study), allowed)

    def _best(self, seen: "_Seen", allowed: NDArray[np.bool_]) -> int | None:
        allowed = allowed & self.feasible & ~seen.gone
        if not allowed.any():
            return None
        belief = self._believe(seen)
        if seen.best is None:  # nothing was measured yet: begin with the fastest prediction
            return int(np.where(allowed, belief.mean, -np.inf).argmax())
        each_second = expected_improvement(belief, seen.best) / self.trial_s
        return int(np.where(allowed, each_second, -np.inf).argmax())

    def _can_win(self, seen: "_Seen") -> NDArray[np.bool_]:
        left = self.feasible & ~seen.gone
        if seen.best is None:
            return left
        tolerance, belief = self._tolerance(seen), self._believe(seen)
        return left & can_still_win(belief, seen.best, tolerance=tolerance, confidence=self.confidence)

    def _tolerance(self, seen: "_Seen") -> float:
        return max(LEAST_TOLERANCE, 2 * seen.best_error) if self.tolerance is None else self.tolerance

    def _believe(self, seen: "_Seen") -> Belief:
        last, key = self._believed, seen.key
        if last is not None and last[0] == key:  # it is asked for again for each candidate that is ruled out
            return last[1]
        model = self._models[1.0 if seen.maximize else -1.0]
        belief = model.believe(seen.places, seen.logarithms, seen.errors)
        if len(seen.running):
            # A trial that still runs is believed to end as expected, so that the next one is tried for another reason.
            places = np.concatenate([seen.places, seen.running])
            logarithms = np.concatenate([seen.logarithms, belief.mean[seen.running]])
            errors = np.concatenate([seen.errors, np.full(len(seen.running), USUAL_ERROR)])
            belief = model.believe(places, logarithms, errors)
        self._believed = key, belief
        return belief

    def _seen(self, trials: Sequence[FrozenTrial], study: Study, *ending: Any) -> "_Seen":
        maximize = study.direction == StudyDirection.MAXIMIZE
        sign = 1.0 if maximize else -1.0
        places: list[int] = []
        logarithms: list[float] = []
        errors: list[float] = []
        running: list[int] = []
        gone = np.zeros(len(self.candidates), dtype=bool)
        for trial in trials:
            state, values = trial.state, trial.values
            if ending and trial.number == ending[0].number:
                state, values = ending[1], ending[2]
            place = self._places.get(self._key(trial.params)) if self._space.keys() <= trial.params.keys() else None
            if place is None and state == TrialState.RUNNING:  # it may not have all its parameters yet
                place = self._asked.get(trial.number)
            if place is None:
                continue
            gone[place] = True
            if state == TrialState.COMPLETE and values and values[0] > 0 and _is_feasible(trial):
                places.append(place)
                logarithms.append(sign * float(np.log(values[0])))
                errors.append(float(trial.user_attrs.get(ERROR) or USUAL_ERROR))
            elif state == TrialState.RUNNING:
                running.append(place)
        # A candidate that is not feasible teaches, but is not the best: it may be faster than all that may be tried.
        eligible = [each if self.feasible[place] else -np.inf for each, place in zip(logarithms, places, strict=True)]
        top = int(np.argmax(eligible)) if logarithms and max(eligible) > -np.inf else None
        return _Seen(
            places=np.array(places, dtype=np.int64),
            logarithms=np.array(logarithms),
            errors=np.array(errors),
            running=np.array(running, dtype=np.int64),
            gone=gone,
            best=None if top is None else logarithms[top],
            best_error=0.0 if top is None else errors[top],
            maximize=maximize,
        )

    def _key(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(values.get(name) for name in self._space)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The trials of a study.

    places, logarithms, errors: of the measured ones, shape (t,): which candidate, the logarithm of its value (of a
    rate: higher is better) and its error. running: places of those that still run. gone: candidates that have a trial,
    whatever its state, shape (n,). best, best_error: of the best feasible candidate; None and 0 before there is one.
    """

    places: NDArray[np.int64]
    logarithms: Floats
    errors: Floats
    running: NDArray[np.int64]
    gone: NDArray[np.bool_]
    best: float | None
    best_error: float
    maximize: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What a belief follows from; equal for equal measurements."""
        arrays = (self.places, self.logarithms, self.errors, self.running)
        return (self.maximize, *(array.tobytes() for array in arrays))


def _is_feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in (trial.constraints or {}).values())
