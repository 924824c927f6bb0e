"""What to try next: Optuna's samplers over the finite set of legal candidates, by ask and tell.

A sampler knows the knobs one by one and may propose a combination that is not legal, or that was tried; it then gets
the nearest legal one that was not (by the number of knobs that differ). `random` and `grid` walk the set itself.
Before such a sampler has seen enough to learn from, the opening is tried: few candidates that arithmetic on the lengths
alone already favours. They learn from the references, too, which are outside of the set. `roofline` knows the set and
what is predicted of it, and ends when nothing left can win.
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
from autotune.search.predictions import PredictedRates
from autotune.search.roofline import ERROR, RooflineSampler

STARTUP_TRIALS = 6  # told trials before TPE or GP model anything; the opening is about as long
TRIAL_STEPS = 8  # of a usual trial, the warm-up among them
STARTING_S = 3.0  # of a trial: building the model and the trainer


class Proposer:
    """Proposes untried candidates of a fixed list, and learns from the trials that it is told.

    journal: the Optuna journal file, made anew. references: others that are measured but never proposed. predicted: how
    fast the candidates are, and behind them the references; needed by `roofline` alone.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        opening: Sequence[Candidate],
        *,
        sampler: str,
        seed: int,
        journal: Path,
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
        self._known = frozenset(known)
        self._untried = np.ones(len(self.candidates), dtype=bool)
        self._measured: list[Measured] = []  # of the trials that were told
        self.ruled_out: set[Candidate] = set()  # untried, and predicted not to fit
        journal.unlink(missing_ok=True)
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
            storage=JournalStorage(JournalFileBackend(str(journal))),
            sampler=self.roofline or _optuna_sampler(sampler, seed),
            direction="maximize",
            study_name="autotune",
        )

    def tell(self, trials: Iterable[Trial]) -> None:
        """Learn from trials of the first measurement. What did not run is a constraint; its value, which `gp` models,
        too, is the lowest so far.

        A rate counts as if the machine had been as fast as it was around the first trial.
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
                continue  # with its knobs it would be taken for another
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
        """The next candidate to try; None when every one was or does not fit, or none can win any more.

        fits: asked only of what would be tried; what did not fit is asked about again each time.
        """
        self.ruled_out = {candidate for candidate in self.ruled_out if not fits(candidate)}
        while (candidate := self._next()) is not None:
            if fits(candidate):
                return candidate
            self.ruled_out.add(candidate)
        return None

    def believed(self) -> dict[Candidate, Known]:
        """What is believed of the candidates that were neither tried nor ruled out; of none where nothing is predicted.

        Rates are as the study has them.
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

    @property
    def hopeless(self) -> int:
        """How many untried candidates are left because they are not expected to win."""
        return int((self._open() & ~self._can_win()).sum())

    def _can_win(self) -> NDArray[np.bool_]:
        """Which candidates may exceed the best so far by more than the tolerance, shape (candidates,).

        All of them, tried ones too, where nothing is predicted.
        """
        can_win = np.ones(len(self.candidates), dtype=bool)
        if self.roofline is not None:
            can_win[:] = False
            can_win[self.roofline.can_win(self.study)] = True  # references are not feasible
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
            allowed = np.zeros(len(self.roofline.candidates), dtype=bool)
            allowed[: len(open_)] = open_ & self._can_win()
            place = self.roofline.best_next(self.study, allowed)
            return None if place is None else self.candidates[place]
        if self.sampler in ("random", "grid"):
            return self.candidates[int(open_.argmax())]
        asked = self.study.ask(dict(self.distributions))
        self.study.tell(asked, state=TrialState.FAIL)  # only a proposal: what is tried is added by `tell`
        return self.candidates[self._nearest(asked.params)]

    def _nearest(self, params: dict[str, Any]) -> int:
        codes = [self.distributions[knob].choices.index(params[knob]) for knob in self.knobs]
        apart = (self._codes != np.array(codes, dtype=np.int64)).sum(axis=1)
        return int(np.where(self._open(), apart, len(self.knobs) + 1).argmin())

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
