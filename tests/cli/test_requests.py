"""Settings become requests of plain core types."""

from pathlib import Path
from typing import Any

import pytest

from autotune.cli.requests import build_run, build_search, directory_name
from autotune.cli.settings import (
    CandidateSettings,
    DataSettings,
    ModelSettings,
    RecipeSettings,
    RunSettings,
    SearchSettings,
)
from autotune.core.candidate import Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe

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


def test_a_fixed_method_is_the_method_that_is_asked_for(tmp_path: Path) -> None:
    """Else a search for adapters would be compared with full fine-tuning."""
    settings = search_settings(candidate=CandidateSettings(method="lora"))
    assert build_search(settings, new=tmp_path).recipe.method == "lora"


def test_a_search_is_built_of_plain_types(tmp_path: Path) -> None:
    """The builder's request holds core types and paths; `~` is expanded, and unset knobs are not fixed."""
    settings = search_settings(
        data=DataSettings(path="~/rows.jsonl", columns={"question": "q"}, split="test"),
        recipe=RecipeSettings(lora_target_modules=["q_proj", "v_proj"]),
        candidate=CandidateSettings(batching="random", torch_compile=False),
        explain=True,
        fidelity=Fidelity.exact,
        home="~/cache",
    )
    request = build_search(settings, new=tmp_path / "new")
    assert request.explain
    assert request.recipe == Recipe(lora_target_modules=("q_proj", "v_proj"))
    assert dict(request.fixed) == {"batching": "random", "torch_compile": False}
    assert (request.data, dict(request.columns)) == (str(Path.home() / "rows.jsonl"), {"question": "q"})
    assert request.split == "test"
    assert (request.out, request.home) == (tmp_path / "new", Path.home() / "cache")
    assert (request.model, request.fidelity, request.seed) == ("tiny", Fidelity.exact, 42)
    assert (request.minutes, request.trials, request.sampler) == (30.0, None, "roofline")


def test_a_run_is_built_of_plain_types(tmp_path: Path) -> None:
    """A run's candidate is the file's, with core's defaults for the knobs that the file leaves out."""
    request = build_run(run_settings(out=str(tmp_path), device="cpu"), overrides=["seed=1"])
    assert request.candidate == Candidate(
        max_length=128, per_device_train_batch_size=2, gradient_accumulation_steps=4, method="full"
    )
    assert (request.out, request.device, request.overrides) == (tmp_path, "cpu", ("seed=1",))


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
    assert directory_name(path) == name
