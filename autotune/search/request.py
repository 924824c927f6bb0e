"""What a search is asked for, the workload and the predictions that this leads to, and what identifies the search.

Leaves out the search itself (search.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.core.candidate import Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe
from autotune.core.workload import Workload, check_workload, cut_by
from autotune.data.describe import describe
from autotune.machine.installed import Installed
from autotune.models.find import configuration_of
from autotune.models.savable import check_generation
from autotune.predict.memory import MemoryPredictor
from autotune.predict.time import calibrated_speed
from autotune.predict.training import Training
from autotune.search.predictions import Predictions


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRequest:
    """What a search is asked for.

    fixed: knobs that the user fixed. minutes, trials: the budget, whichever ends first; None does not limit.
    out: the run directory; a search that is in there already is continued. compares_losses: whether the winner's losses
    are compared with the baseline's at the end. explain: whether it says why combinations were removed from the space.
    """

    model: str
    data: str
    columns: Mapping[str, str]
    split: str | None = None
    recipe: Recipe
    fidelity: Fidelity
    fixed: Mapping[str, Any]
    minutes: float | None
    trials: int | None
    sampler: str
    seed: int
    out: Path
    home: Path
    compares_losses: bool = True
    explain: bool = False


def workload_of(request: SearchRequest, *, progress: Callable[[str], None]) -> Workload:
    """Read the model and the data of a search, and judge them. Needs no hardware.

    Raises UsageError listing what is wrong with them or when the data has no full step, NothingFits when the model
    cannot take rows as long as the recipe's coverage asks for.
    """
    workload = describe(
        model=request.model,
        data=request.data,
        columns=dict(request.columns),
        split=request.split,
        recipe=request.recipe,
        seed=request.seed,
        home=request.home,
        progress=progress,
    )
    check_workload(workload, max_length=cut_by(request.fixed))
    if request.recipe.asked_method == "full":
        check_generation(workload.model)
    return workload


def predictions_of(
    request: SearchRequest, workload: Workload, hardware: Hardware, progress: Callable[[str], None]
) -> Predictions:
    """Set up the predictions of a search's candidates; nothing is traced yet."""
    training = Training(
        config=configuration_of(request.model, Path(workload.model.path)),
        facts=workload.model,
        lengths=workload.data.lengths,
        recipe=request.recipe,
        loss="fused",
        hardware=hardware,
        seed=request.seed,
    )
    memory = MemoryPredictor.of(training, home=request.home.absolute(), progress=progress)
    return Predictions.of(memory, calibrated_speed(hardware), progress=progress)


def identity_of(request: SearchRequest, workload: Workload, hardware: Hardware, stack: Installed) -> dict[str, Any]:
    """List what must stay the same when a search is continued."""
    return {
        "model": workload.model.fingerprint,
        "data": workload.data.fingerprint,
        "recipe": asdict(workload.recipe),
        "fidelity": request.fidelity.name,
        "fixed": dict(request.fixed),
        "hardware": hardware.uuid,
        "seed": request.seed,
        "versions": dict(stack.versions),
    }
