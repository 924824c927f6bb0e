"""Settings have the names, types and defaults of core, and every problem in them is found."""

from dataclasses import MISSING, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from autotune.cli.requests import build_fixed, build_recipe
from autotune.cli.settings import (
    SCHEDULERS,
    BudgetSettings,
    CandidateSettings,
    DataSettings,
    ModelSettings,
    RecipeSettings,
    RunSettings,
    SamplerSettings,
    SearchSettings,
    find_problems,
    group_words,
)
from autotune.core.candidate import Candidate
from autotune.core.knobs import KNOBS
from autotune.core.recipe import Recipe

GIVEN: dict[str, Any] = {"model": ModelSettings(path="tiny"), "data": DataSettings(path="demo")}


def words_of(hint: Any) -> tuple[str, ...]:
    """The literals that a core type allows, None left out."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def test_recipe_defaults_are_those_of_core() -> None:
    """recipe.* has the names, the order and the defaults of core's Recipe."""
    assert [field.name for field in fields(RecipeSettings)] == [field.name for field in fields(Recipe)]
    assert build_recipe(RecipeSettings()) == Recipe()


def test_candidate_keys_are_the_knobs() -> None:
    """candidate.* has core's knobs, and fixes none of them unless told to."""
    assert tuple(field.name for field in fields(CandidateSettings)) == tuple(KNOBS)
    assert build_fixed(CandidateSettings()) == {}


@pytest.mark.parametrize(("settings", "core"), [(RecipeSettings, Recipe), (CandidateSettings, Candidate)])
def test_words_of_a_key_are_those_of_core(settings: Any, core: Any) -> None:
    """A key takes exactly the literals that the core type allows."""
    hints = get_type_hints(core)
    literal = {field.name: words_of(hints[field.name]) for field in fields(settings)}
    free = {"lr_scheduler_type"}  # core leaves it to transformers
    limits = {field.name: field.metadata["limit"].choices for field in fields(settings) if "limit" in field.metadata}
    assert {name: limits.get(name, ()) for name in literal if name not in free} == {
        name: words for name, words in literal.items() if name not in free
    }


def test_schedulers_exist_in_transformers() -> None:
    """Every scheduler that can be chosen is one that transformers knows by that name."""
    from transformers.trainer_utils import SchedulerType

    assert set(SCHEDULERS) <= {scheduler.value for scheduler in SchedulerType}


def test_defaults_keep_their_own_limits() -> None:
    """A search told nothing but model and data is a legal one."""
    assert find_problems(SearchSettings(**GIVEN)) == []


def test_problems_are_listed_together() -> None:
    """Values outside their limit and what is missing come in one list."""
    settings = SearchSettings(
        recipe=RecipeSettings(coverage=0.0, effective_batch_size=0),
        budget=BudgetSettings(minutes=None, trials=None),
        data=DataSettings(path="demo"),
    )
    assert find_problems(settings) == [
        "recipe.effective_batch_size=0: must be at least 1",
        "recipe.coverage=0.0: must be above 0 and at most 1",
        f"model= is missing: expected {group_words('model')}",
        "budget.minutes and budget.trials are both null: a search needs one of them to end",
    ]


def test_a_run_needs_a_complete_candidate() -> None:
    """The knobs that core's Candidate has no default for are asked of a run file, and only those."""
    required = [field.name for field in fields(Candidate) if field.default is MISSING]
    found = find_problems(RunSettings(**GIVEN))
    assert [problem.split()[0] for problem in found] == [f"candidate.{knob}" for knob in required]


def test_a_sampler_whose_library_is_not_there_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna would look for it after several trials."""
    settings = SearchSettings(sampler=SamplerSettings(name="gp"))
    there = "sampler=gp: needs scipy, which is not installed; `pip install 'autotune-sft[gp]'` brings it"
    assert there not in find_problems(settings)
    monkeypatch.setattr("autotune.cli.settings.find_spec", lambda name: None)
    assert there in find_problems(settings)
