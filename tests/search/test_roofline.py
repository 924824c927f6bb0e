"""The sampler: Optuna's own conformance tests, and what a study may ask of it besides."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, PartialFixedSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.testing.pytest_samplers import BasicSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState

from autotune.search.roofline import ERROR, RooflineSampler

optuna.logging.set_verbosity(optuna.logging.WARNING)

CANDIDATES = [
    {"rows": rows, "checkpointing": checkpointing, "batching": batching}
    for rows, checkpointing, batching in product((1, 2, 4, 8, 16), ("off", "full"), ("random", "grouped", "packed"))
]


def truth(candidate: dict[str, Any]) -> float:
    """Useful tokens a second: larger micro-batches pay until 8 rows, packing pays, recomputing costs a fifth."""
    rows = {1: 40.0, 2: 60.0, 4: 80.0, 8: 90.0, 16: 85.0}[candidate["rows"]]
    batching = {"random": 0.6, "grouped": 0.9, "packed": 1.0}[candidate["batching"]]
    return rows * batching * (0.8 if candidate["checkpointing"] == "full" else 1.0)


TRUTH = np.array([truth(candidate) for candidate in CANDIDATES])
# Twice too fast, blind to what recomputing costs, and wrong about packing: worth less than grouping.
PREDICTED = np.array(
    [2 * truth({**c, "checkpointing": "off"}) * (0.7 if c["batching"] == "packed" else 1.0) for c in CANDIDATES]
)


def sampler(**options: Any) -> RooflineSampler:
    return RooflineSampler(CANDIDATES, PREDICTED, seed=0, **options)


def measure(trial: optuna.Trial) -> float:
    """An objective that knows the truth to 1 %."""
    trial.set_user_attr(ERROR, 0.01)
    return truth(trial.study.sampler.ask_all(trial))  # type: ignore[attr-defined]


class TestConformance(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    """What Optuna asks of any sampler; parameters that no candidate has among it."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        """Makes one."""
        return sampler


def tried(study: optuna.Study) -> list[tuple[Any, ...]]:
    return [tuple(trial.params.values()) for trial in study.trials]


def test_it_finds_the_best_and_stops() -> None:
    """In a third of the candidates' number at most, though the prediction is wrong; nothing is tried twice."""
    study = optuna.create_study(sampler=sampler(), direction="maximize")
    study.optimize(measure, n_trials=len(CANDIDATES))
    assert study.best_value == TRUTH.max()
    assert len(study.trials) <= len(CANDIDATES) // 3
    assert len(set(tried(study))) == len(study.trials)
    assert not len(study.sampler.can_win(study))  # type: ignore[attr-defined]


def test_a_right_prediction_needs_a_handful() -> None:
    """Where predictions are right but for a factor that all share, few trials rule the others out."""
    study = optuna.create_study(sampler=RooflineSampler(CANDIDATES, 3 * TRUTH), direction="maximize")
    study.optimize(measure, n_trials=len(CANDIDATES))
    assert study.trials[0].value == study.best_value == TRUTH.max()
    assert len(study.trials) <= 6


def test_seconds_are_minimized() -> None:
    """A study of seconds finds the same candidate."""
    study = optuna.create_study(sampler=RooflineSampler(CANDIDATES, 1 / PREDICTED), direction="minimize")
    study.optimize(lambda trial: 1 / measure(trial), n_trials=len(CANDIDATES))
    assert study.best_value == pytest.approx(1 / TRUTH.max())


def test_a_batch_of_asks_holds_no_candidate_twice() -> None:
    """Trials that run are believed to end as expected; when all run, the study goes on with other parameters."""
    study = optuna.create_study(sampler=sampler(), direction="maximize")
    asked = [study.sampler.ask_all(study.ask()) for _ in CANDIDATES]  # type: ignore[attr-defined]
    assert {tuple(each.values()) for each in asked} == {tuple(each.values()) for each in CANDIDATES}


def test_a_candidate_of_nothing_but_none_is_one() -> None:
    """A trial that runs and has no parameters yet is not taken for it."""
    asked = RooflineSampler([{"pad": None}, {"pad": 8}], [100.0, 50.0])
    study = optuna.create_study(sampler=asked, direction="maximize")
    assert [asked.ask_all(study.ask()) for _ in range(2)] == [{"pad": None}, {"pad": 8}]


def test_it_works_from_several_threads() -> None:
    """As Optuna's `n_jobs` calls it; no candidate is measured twice."""
    study = optuna.create_study(sampler=sampler(), direction="maximize")
    study.optimize(measure, n_trials=12, n_jobs=3)
    assert len(set(tried(study))) == len(study.trials)


def test_it_resumes(tmp_path: Path) -> None:
    """A study that was stopped goes on as if it had not been."""

    def go_on(path: Path, trials: int) -> optuna.Study:
        storage = JournalStorage(JournalFileBackend(str(path)))
        study = optuna.create_study(
            storage=storage, sampler=sampler(), direction="maximize", study_name="x", load_if_exists=True
        )
        study.optimize(measure, n_trials=trials)
        return study

    go_on(tmp_path / "parts", 3)
    assert tried(go_on(tmp_path / "parts", 4)) == tried(go_on(tmp_path / "whole", 7))


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_what_failed_or_was_pruned_is_not_tried_again(state: TrialState) -> None:
    """Nor does it count as a rate."""
    study = optuna.create_study(sampler=sampler(), direction="maximize")
    first = study.ask()
    candidate = study.sampler.ask_all(first)  # type: ignore[attr-defined]
    study.tell(first, state=state)
    belief = study.sampler.belief(study)  # type: ignore[attr-defined]
    assert belief.mean == pytest.approx(np.log(PREDICTED))
    later = [study.sampler.ask_all(study.ask()) for _ in range(len(CANDIDATES) - 1)]  # type: ignore[attr-defined]
    assert candidate not in later


def test_what_is_not_feasible_is_never_tried() -> None:
    """The largest micro-batches do not fit."""
    feasible = [candidate["rows"] < 8 for candidate in CANDIDATES]
    study = optuna.create_study(sampler=sampler(feasible=feasible), direction="maximize")
    study.optimize(measure, n_trials=len(CANDIDATES))
    assert max(trial.params["rows"] for trial in study.trials) == 4
    assert study.best_value == TRUTH[feasible].max()


def test_fixed_parameters_are_kept() -> None:
    """Of a single trial, and of a study; the rest of the candidate is one that has them."""
    study = optuna.create_study(sampler=sampler(), direction="maximize")
    study.enqueue_trial({"rows": 2, "batching": "random"})
    candidate = study.sampler.ask_all(study.ask())  # type: ignore[attr-defined]
    assert (candidate["rows"], candidate["batching"]) == (2, "random")
    base = sampler()
    study = optuna.create_study(sampler=PartialFixedSampler({"checkpointing": "full"}, base), direction="maximize")
    for _ in range(3):
        assert base.ask_all(study.ask())["checkpointing"] == "full"


def test_cheap_trials_come_first() -> None:
    """Of candidates that promise the same, the one whose trial takes a tenth of the time."""
    trial_s = np.where(np.arange(len(CANDIDATES)) == 7, 1.0, 10.0)
    study = optuna.create_study(
        sampler=RooflineSampler(CANDIDATES, np.ones(len(CANDIDATES)), trial_s=trial_s), direction="maximize"
    )
    study.enqueue_trial(CANDIDATES[0])
    first = study.ask()
    assert study.sampler.ask_all(first) == CANDIDATES[0]  # type: ignore[attr-defined]
    study.tell(first, 1.0)
    assert study.sampler.ask_all(study.ask()) == CANDIDATES[7]  # type: ignore[attr-defined]


def test_wrong_predictions_are_refused() -> None:
    """As many as there are candidates, and above 0."""
    with pytest.raises(ValueError, match="30 candidates, 29 predictions"):
        RooflineSampler(CANDIDATES, PREDICTED[1:])
    with pytest.raises(ValueError, match="above 0"):
        RooflineSampler(CANDIDATES, -PREDICTED)
