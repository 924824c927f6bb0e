"""Settings: the same names, types and defaults as core, values within their rules, and plain core types at the end."""

from dataclasses import MISSING, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from autotune.cli import settings as schemas
from autotune.cli.limits import Limit
from autotune.cli.settings import (
    BudgetSettings,
    CandidateSettings,
    DataSettings,
    ModelSettings,
    RecipeSettings,
    RunSettings,
    SearchSettings,
)
from autotune.core.candidate import KNOBS, Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe
from autotune.errors import UsageError

COMPLETE = CandidateSettings(
    max_length=128, per_device_train_batch_size=2, gradient_accumulation_steps=4, method="full", checkpointing="off"
)
CPU = Hardware(
    kind="cpu",
    name="a CPU",
    uuid="cpu-1",
    memory_bytes=2**34,
    free_bytes=2**33,
    used_by_others_bytes=0,
    cores=2,
    host_memory_bytes=2**34,
    host_free_bytes=2**33,
)


def search_settings(**values: Any) -> SearchSettings:
    """Settings of a search that lacks nothing."""
    return SearchSettings(**{"model": ModelSettings(path="tiny"), "data": DataSettings(path="demo"), **values})


def run_settings(**values: Any) -> RunSettings:
    """Settings of a run that lacks nothing."""
    given = {"model": ModelSettings(path="tiny"), "data": DataSettings(path="demo"), "candidate": COMPLETE, **values}
    return RunSettings(**given)


def words_of(hint: Any) -> tuple[str, ...]:
    """The literals that a core type allows, None left out."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


@pytest.mark.parametrize(
    ("limit", "value", "allowed"),
    [
        (Limit(choices=("full", "lora")), "lora", True),
        (Limit(choices=("full", "lora")), "lorra", False),
        (Limit(at_least=1), 1, True),
        (Limit(at_least=1), 0, False),
        (Limit(above=0, at_most=1), 0.0, False),
        (Limit(above=0, at_most=1), 1.0, True),
        (Limit(above=0, at_most=1), 1.01, False),
        (Limit(at_least=0, below=1), 1.0, False),
        (Limit(above=0), float("nan"), False),
        (Limit(above=0), float("inf"), False),
    ],
)
def test_rule_allows_what_it_says(limit: Limit, value: str | float, allowed: bool) -> None:
    """A limit draws its limits exactly, and no limit lets nan or infinity through."""
    assert limit.allows(value) is allowed


def test_rule_reads_as_a_sentence() -> None:
    """Messages show the limit in words."""
    assert Limit(above=0, at_most=1).words == "above 0 and at most 1"
    assert Limit(choices=("a", "b")).words == "one of a, b"


def test_recipe_defaults_are_those_of_core() -> None:
    """recipe.* has the names, the order and the defaults of core's Recipe."""
    assert [field.name for field in fields(RecipeSettings)] == [field.name for field in fields(Recipe)]
    assert schemas.build_recipe(RecipeSettings()) == Recipe()


def test_candidate_keys_are_the_knobs() -> None:
    """candidate.* has core's knobs, and fixes none of them unless told to."""
    assert tuple(field.name for field in fields(CandidateSettings)) == KNOBS
    assert schemas.build_fixed(CandidateSettings()) == {}


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

    assert set(schemas.SCHEDULERS) <= {scheduler.value for scheduler in SchedulerType}


def test_defaults_keep_their_own_limits() -> None:
    """A search told nothing but model and data is a legal one."""
    assert schemas.problems(search_settings()) == []


def test_problems_are_listed_together() -> None:
    """Values outside their limit and what is missing come in one list."""
    settings = SearchSettings(
        recipe=RecipeSettings(coverage=0.0, effective_batch_size=0),
        budget=BudgetSettings(minutes=None, trials=None),
        data=DataSettings(path="demo"),
    )
    assert schemas.problems(settings) == [
        "recipe.effective_batch_size=0: must be at least 1",
        "recipe.coverage=0.0: must be above 0 and at most 1",
        f"model= is missing: expected {schemas.group_words('model')}",
        "budget.minutes and budget.trials are both null: a search needs one of them to end",
    ]


def test_a_run_needs_a_complete_candidate() -> None:
    """The knobs that core's Candidate has no default for are asked of a run file, and only those."""
    required = [field.name for field in fields(Candidate) if field.default is MISSING]
    found = schemas.problems(run_settings(candidate=CandidateSettings()))
    assert [problem.split()[0] for problem in found] == [f"candidate.{knob}" for knob in required]


def test_a_fixed_method_is_the_method_that_is_asked_for(tmp_path: Path) -> None:
    """Else a search for adapters would be compared with full fine-tuning."""
    settings = search_settings(candidate=CandidateSettings(method="lora"))
    assert schemas.build_search(settings, hardware=CPU, new=tmp_path).recipe.method == "lora"


def test_a_search_is_built_of_plain_types(tmp_path: Path) -> None:
    """The builder's request holds core types and paths; `~` is expanded, and unset knobs are not fixed."""
    settings = search_settings(
        data=DataSettings(path="~/rows.jsonl", columns={"question": "q"}),
        recipe=RecipeSettings(lora_target_modules=["q_proj", "v_proj"]),
        candidate=CandidateSettings(batching="random", torch_compile=False),
        fidelity=Fidelity.exact,
        home="~/cache",
    )
    request = schemas.build_search(settings, hardware=CPU, new=tmp_path / "new")
    assert request.recipe == Recipe(lora_target_modules=("q_proj", "v_proj"))
    assert dict(request.fixed) == {"batching": "random", "torch_compile": False}
    assert (request.data, dict(request.columns)) == (str(Path.home() / "rows.jsonl"), {"question": "q"})
    assert (request.out, request.home) == (tmp_path / "new", Path.home() / "cache")
    assert (request.model, request.fidelity, request.seed) == ("tiny", Fidelity.exact, 42)
    assert (request.minutes, request.trials, request.sampler) == (30.0, None, "roofline")


def test_an_incomplete_search_is_refused(tmp_path: Path) -> None:
    """No request comes of settings that have a problem."""
    with pytest.raises(UsageError, match="model= is missing"):
        schemas.build_search(search_settings(model=ModelSettings()), hardware=CPU, new=tmp_path)


def test_a_run_is_built_of_plain_types(tmp_path: Path) -> None:
    """A run's candidate is the file's, with core's defaults for the knobs that the file leaves out."""
    request = schemas.build_run(run_settings(out=str(tmp_path), device="cpu"), hardware=CPU, overrides=["seed=1"])
    assert request.candidate == Candidate(
        max_length=128, per_device_train_batch_size=2, gradient_accumulation_steps=4, method="full"
    )
    assert (request.out, request.overrides) == (tmp_path, ("seed=1",))


def test_a_run_for_another_device_is_refused() -> None:
    """What was found on CUDA does not run on a CPU by accident."""
    with pytest.raises(UsageError, match=r"device=cuda: .* run it all the same with device=cpu"):
        schemas.build_run(run_settings(device="cuda"), hardware=CPU, overrides=())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"),
        ("./data/rows.v2.jsonl", "rows.v2"),
        ("/models/my model/", "my_model"),
        ("demo", "demo"),
    ],
)
def test_names_of_directories(path: str, name: str) -> None:
    """A new run directory is named after model and data, with nothing that a shell would trip over."""
    assert schemas.short_name(path) == name
