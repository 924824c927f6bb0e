"""What a search is asked for, and what follows from that alone: its workload, its forecaster, its identity.

Leaves out the search (search.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.core.candidate import Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe
from autotune.core.workload import Workload
from autotune.data.describe import describe
from autotune.machine.installed import Installed
from autotune.models.find import resolve_architecture
from autotune.predict.forecaster import Forecaster


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What a search is asked for.

    fixed: knobs that the user fixed. minutes, trials: the budget, whichever ends first; None does not limit.
    out: the run directory; naming one that holds this search already goes on with it. compares_losses: the winner's
    with the baseline's, at the end. explain: whether it says why combinations were removed from the space.
    """

    model: str
    data: str
    columns: Mapping[str, str]
    recipe: Recipe
    fidelity: Fidelity
    fixed: Mapping[str, Any]
    hardware: Hardware
    minutes: float | None
    trials: int | None
    sampler: str
    seed: int
    out: Path
    home: Path
    compares_losses: bool = True
    explain: bool = False


def workload_of(request: SearchRequest, *, progress: Callable[[str], None]) -> Workload:
    """The model and the data of a search. Raises UsageError listing what is wrong with them."""
    return describe(
        model=request.model,
        data=request.data,
        columns=dict(request.columns),
        recipe=request.recipe,
        seed=request.seed,
        home=request.home,
        progress=progress,
    )


def forecaster_of(request: SearchRequest, workload: Workload, progress: Callable[[str], None]) -> Forecaster:
    """What predicts a search's candidates."""
    config, _ = resolve_architecture(request.model, None, home=request.home, progress=progress)
    return Forecaster(
        config=config,
        facts=workload.model,
        lengths=workload.data.lengths,
        recipe=request.recipe,
        loss="fused",
        hardware=request.hardware,
        seed=request.seed,
        home=request.home.absolute(),
        progress=progress,
        thrifty=True,
    )


def identity_of(request: SearchRequest, workload: Workload, facts: Installed) -> dict[str, Any]:
    """What must not change between two sittings of one search."""
    return {
        "model": workload.model.fingerprint,
        "data": workload.data.fingerprint,
        "recipe": asdict(workload.recipe),
        "fidelity": request.fidelity.name,
        "fixed": dict(request.fixed),
        "hardware": request.hardware.uuid,
        "seed": request.seed,
        "versions": dict(facts.versions),
    }
