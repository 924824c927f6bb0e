"""What to try next: Optuna's samplers over the finite set of legal candidates, by ask and tell.

- `tpe` and `gp` know the knobs one by one, and may propose a combination that is not legal, or was tried. The nearest
  legal one that was not tried takes its place: the one that differs in the fewest knobs. Until they have seen enough
  trials to learn from, the opening is tried: few candidates that arithmetic on the lengths alone already favours.
- `random` and `grid` walk through the set itself.
- `roofline` knows the set and what is predicted of it, and ends when no candidate that is left can win.

All learn from the references, too, which are outside the set.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from autotune.core.candidate import Candidate
from autotune.core.knobs import DERIVED, KNOBS
from autotune.core.outcome import Measured
from autotune.core.trials.comparison import rates_as_at_first
from autotune.core.trials.receipts import Known
from autotune.core.trials.trial import Trial
from autotune.core.units import count_of
from autotune.search.predicted_rates import PredictedRates
from autotune.search.roofline import ERROR, RooflineSampler

STARTUP_TRIALS = 6  # trials after which TPE and GP begin to model; the opening is about as long
TRIAL_STEPS = 8  # steps of a usual trial, with the warm-up
STARTING_S = 3.0  # seconds of a trial for building the model and the trainer


class Proposer:
    """Proposes untried candidates of a fixed list, and learns from trials.

    study_file: Optuna's record of the study; it is made anew. references: other candidates, which are measured but
    never proposed. predicted: how fast the candidates are, followed by the references; only `roofline` needs it.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        opening: Sequence[Candidate],
        *,
        sampler: str,
        seed: int,
        study_file: Path,
        predicted: PredictedRates | None = None,
        references: Sequence[Candidate] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sampler = sampler
        self.candidates = list(candidates)
        if sampler == "random":
            np.random.default_rng(seed).shuffle(self.candidates)
        self.opening = list(opening) if sampler in ("tpe", "gp") else []
        known = [*self.candidates, *references]
        values = {knob: list(dict.fromkeys(getattr(c, knob) for c in known)) for knob in KNOBS}
        self.knobs = [knob for knob in KNOBS if len(values[knob]) > 1 and knob not in DERIVED]
        self.distributions = {knob: CategoricalDistribution(values[knob]) for knob in self.knobs}
        self._codes: NDArray[np.int64] = np.array(
            [[values[knob].index(getattr(c, knob)) for knob in self.knobs] for c in self.candidates], dtype=np.int64
        ).reshape(len(self.candidates), len(self.knobs))
        self._places = {candidate: place for place, candidate in enumerate(self.candidates)}
        self._known, self._references = frozenset(known), len(references)
        self._untried = np.ones(len(self.candidates), dtype=bool)
        self._measured: list[Measured] = []  # the outcomes of the trials that it has learned from
        self.ruled_out: set[Candidate] = set()  # untried, and predicted not to fit
        study_file.unlink(missing_ok=True)
        self.roofline: RooflineSampler | None = None
        if sampler == "roofline":
            if predicted is None:
                raise ValueError("roofline needs predicted rates")
            self.roofline = RooflineSampler(
                [{knob: getattr(candidate, knob) for knob in self.knobs} for candidate in known],
                predicted.rates,
                shares=predicted.shares,
                doubt=predicted.doubt,
                trial_s=STARTING_S + TRIAL_STEPS * predicted.step_s,
                feasible=np.arange(len(known)) < len(self.candidates),
                seed=seed,
            )
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(study_file))),
            sampler=self.roofline or _optuna_sampler(sampler, seed),
            direction="maximize",
            study_name="autotune",
        )

    def tell(self, trials: Iterable[Trial]) -> None:
        """Learn from trials of the first measurement.

        A rate counts as if the machine had been as fast as it was around the first trial. A candidate that did not run
        violates a constraint of the study. `gp` reads its value as well, so it gets the lowest rate so far.
        """
        for trial in trials:
            place = self._places.get(trial.candidate)
            if place is not None:
                self._untried[place] = False
            runs, error = isinstance(trial.outcome, Measured), None
            if isinstance(trial.outcome, Measured):
                error = trial.outcome.relative_error
                self._measured.append(trial.outcome)
            rates = rates_as_at_first(self._measured)
            rate = rates[-1] if runs else min(rates, default=0.0)
            params = {knob: getattr(trial.candidate, knob) for knob in self.knobs}
            if trial.candidate not in self._known:
                continue  # the study sees only some knobs, and in those it may equal a candidate of the set
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.COMPLETE,
                    value=rate,
                    params=params,
                    distributions=dict(self.distributions),
                    constraints={"runs": -1.0 if runs else 1.0},
                    user_attrs={
                        "trial": trial.number,
                        "role": trial.role,
                        "outcome": trial.outcome.kind,
                        **({} if error is None else {ERROR: error}),
                    },
                )
            )

    def propose(self, fits: Callable[[Candidate], bool] = lambda _: True) -> Candidate | None:
        """Choose the candidate to try next. None when all that fit were tried, or none of the others can win.

        fits: whether a candidate fits in memory. It is asked about the one that would be tried, and each time again
        about those that did not fit.
        """
        self.ruled_out = {candidate for candidate in self.ruled_out if not fits(candidate)}
        while (candidate := self._next()) is not None:
            if fits(candidate):
                return candidate
            self.ruled_out.add(candidate)
        return None

    def believed(self) -> dict[Candidate, Known]:
        """The rates of the candidates that were neither tried nor ruled out; empty where nothing is predicted.

        They count as if the machine were as fast as it was around the first trial.
        """
        if self.roofline is None:
            return {}
        belief = self.roofline.belief(self.study)
        return {
            self.candidates[place]: Known(
                rate=float(np.exp(belief.mean[place])), deviation=float(belief.deviation[place]), trial=None
            )
            for place in np.flatnonzero(self._open())
        }

    def most_to_gain(self) -> float | None:
        """The most by which a candidate that is left is believed to exceed the best rate so far, as a share of it.

        Each candidate stays below with 95 % confidence. None if nothing is predicted, or no candidate of the set was
        measured yet.
        """
        if self.roofline is None:
            return None
        return self.roofline.most_to_gain(self.study, self._padded(self._open()))

    def why_none_is_left(self) -> str:
        """Say in words why `propose` has no candidate."""
        left = int(self._open().sum())
        if self.roofline is None or not left:
            return "every candidate that fits has been tried"
        tolerance = 100 * self.roofline.current_tolerance(self.study)
        return (
            f"no further candidate is tried: none of the {count_of(left, 'candidate')} left is believed to beat the "
            f"best by more than {tolerance:.0f} %"
        )

    def _can_win(self) -> NDArray[np.bool_]:
        """Which candidates may exceed the best so far by more than the tolerance, shape (candidates,).

        All of them, tried ones too, where nothing is predicted.
        """
        can_win = np.ones(len(self.candidates), dtype=bool)
        if self.roofline is not None:
            can_win[:] = False
            can_win[self.roofline.can_win(self.study)] = True  # no reference among them: they are not feasible
        return can_win

    def _next(self) -> Candidate | None:
        open_ = self._open()
        if not open_.any():
            return None
        while self.opening:
            candidate = self.opening.pop(0)
            place = self._places.get(candidate)
            if place is not None and open_[place]:
                return candidate
        if self.roofline is not None:
            place = self.roofline.best_next(self.study, self._padded(open_ & self._can_win()))
            return None if place is None else self.candidates[place]
        if self.sampler in ("random", "grid"):
            return self.candidates[int(open_.argmax())]
        asked = self.study.ask(dict(self.distributions))
        self.study.tell(asked, state=TrialState.FAIL)  # it was only a proposal: `tell` adds what is tried
        return self.candidates[self._nearest(asked.params)]

    def _nearest(self, params: dict[str, Any]) -> int:
        codes = [self.distributions[knob].choices.index(params[knob]) for knob in self.knobs]
        apart = (self._codes != np.array(codes, dtype=np.int64)).sum(axis=1)
        return int(np.where(self._open(), apart, len(self.knobs) + 1).argmin())

    def _padded(self, of_candidates: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Add a False for each reference, because `roofline` knows the candidates and, after them, the references."""
        return np.pad(of_candidates, (0, self._references))

    def _open(self) -> NDArray[np.bool_]:
        """Which candidates may still be proposed, shape (candidates,)."""
        open_ = self._untried.copy()
        open_[[self._places[candidate] for candidate in self.ruled_out]] = False
        return open_


def _optuna_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return optuna.samplers.RandomSampler(seed=seed)
