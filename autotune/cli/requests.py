"""Turn the settings of a command into the request that its work takes, made of core types.

The settings must have passed `settings.find_problems`. No Hydra object travels further than this. The builders import
the modules that hold the requests only when they are called, because those import torch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.cli.settings import (
    CACHE,
    CandidateSettings,
    EstimateSettings,
    ProbeSettings,
    RecipeSettings,
    RunSettings,
    SearchSettings,
)
from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.data import SUFFIXES
from autotune.errors import UsageError

if TYPE_CHECKING:
    from autotune.predict.estimate import EstimateRequest
    from autotune.search.request import SearchRequest
    from autotune.train.run import RunRequest


def build_home(settings: ProbeSettings) -> Path:
    """Return the directory of the caches, with `~` expanded. An empty one is none. Raises UsageError."""
    try:
        return Path(settings.home or CACHE).expanduser()
    except RuntimeError:
        raise UsageError(
            f"home={settings.home or CACHE}: this user has no home directory; name a place for the caches by home=DIR "
            "or AUTOTUNE_HOME"
        ) from None


def build_recipe(settings: RecipeSettings) -> Recipe:
    """Build core's recipe."""
    return Recipe(**{**vars(settings), "lora_target_modules": tuple(settings.lora_target_modules)})


def build_fixed(settings: CandidateSettings) -> dict[str, Any]:
    """List the knobs that the user set, with their values."""
    return {knob: value for knob, value in vars(settings).items() if value is not None}


def build_estimate(settings: EstimateSettings) -> "EstimateRequest":
    """Build the request of an estimate."""
    from autotune.predict.estimate import EstimateRequest

    return EstimateRequest(
        model=_path(settings.model.path),
        config=dict(settings.model.config) or None,
        data=_path(settings.data.path) if settings.data.path else None,
        columns=dict(settings.data.columns),
        split=settings.data.split,
        recipe=build_recipe(settings.recipe),
        fixed=build_fixed(settings.candidate),
        loss="full_logits" if settings.loss == "full_logits" else "fused",
        seed=settings.seed,
        price_per_hour=settings.price_per_hour,
        home=build_home(settings),
    )


def build_search(settings: SearchSettings, *, new: Path) -> "SearchRequest":
    """Build the request of a search. new: its run directory, unless `out` names one."""
    from autotune.search.request import SearchRequest

    recipe, fixed = build_recipe(settings.recipe), build_fixed(settings.candidate)
    return SearchRequest(
        model=_path(settings.model.path),
        data=_path(settings.data.path),
        columns=dict(settings.data.columns),
        split=settings.data.split,
        recipe=replace(recipe, method=recipe.method or fixed.get("method")),  # a method that is fixed is asked for
        fidelity=settings.fidelity,
        fixed=fixed,
        minutes=settings.budget.minutes,
        trials=settings.budget.trials,
        sampler=settings.sampler.name,
        seed=settings.seed,
        out=Path(settings.out).expanduser() if settings.out else new,
        home=build_home(settings),
        explain=settings.explain,
    )


def build_run(settings: RunSettings, *, overrides: Sequence[str]) -> "RunRequest":
    """Build the request of a run. overrides: the words of the command line, which won over the run file."""
    from autotune.train.run import RunRequest

    candidate = Candidate(**build_fixed(settings.candidate))
    samples = settings.recipe.effective_batch_size
    if samples is None and not candidate.packs:  # rows that are packed hold several samples
        samples = candidate.rows_per_step
    recipe = build_recipe(replace(settings.recipe, effective_batch_size=samples or Recipe().effective_batch_size))
    return RunRequest(
        model=_path(settings.model.path),
        data=_path(settings.data.path),
        columns=dict(settings.data.columns),
        split=settings.data.split,
        recipe=recipe,
        candidate=candidate,
        seed=settings.seed,
        out=Path(settings.out or "run").expanduser(),
        home=build_home(settings),
        device=settings.device,
        overrides=tuple(overrides),
    )


def directory_name(path: str) -> str:
    """Shorten the path or hub id of a model or dataset to its last part, with only characters that suit a directory."""
    last = Path(path).resolve().name if path in (".", "..") else Path(path).name
    for suffix in SUFFIXES:
        last = last.removesuffix(suffix)
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in last)


def _path(text: str | None) -> str:
    """Expand a leading `~`; leave any other text as it is, because it may be the name of an option or a hub id."""
    assert text is not None  # find_problems refuses settings that lack it
    return str(Path(text).expanduser()) if text.startswith("~") else text
