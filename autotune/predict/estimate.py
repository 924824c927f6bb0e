"""`autotune estimate`: the memory and the time of a candidate on a machine, without the machine and without weights.

Puts together the model (models/find.py), the data (data/describe.py), the profile (trace/profiles.py) and the
arithmetic (core/memory/estimate.py). Leaves out how the answer is shown (report.py). With what it needs in the cache
neither torch nor transformers is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import MemoryEstimate
from autotune.core.memory.levers import Lever, fixed_bytes, levers
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context, Installed
from autotune.core.workload import ModelFacts, Workload
from autotune.data.describe import describe_data
from autotune.errors import NotPredicted
from autotune.machine.installed import installed
from autotune.models.find import locate_tokenizer, resolve_architecture
from autotune.predict.alternatives import Alternatives, Largest, Suggestion
from autotune.predict.completion import broken_rules, complete, stand_in_data
from autotune.predict.experience import recall
from autotune.predict.forecaster import Forecaster, TimeForecast
from autotune.trace.profiles import Loss
from autotune.trace.tracer import start_tracer

LENGTH = 1024  # tokens of a row where neither data nor candidate.max_length says (TRL's default max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """What an estimate is asked for.

    model, config: as models.resolve_architecture takes them. data: None for full rows. fixed: the knobs that were
    set. at_hand: whether the hardware is this machine, whose installed kernels then count.
    """

    model: str
    config: Mapping[str, Any] | None
    data: str | None
    columns: Mapping[str, str]
    recipe: Recipe
    fixed: Mapping[str, Any]
    loss: Loss
    hardware: Hardware
    at_hand: bool
    seed: int
    price_per_hour: float | None
    home: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """An estimate with what it was made of. asked_samples: samples of a step that the recipe asks for.

    largest_rows, largest_length: the largest micro-batch at this length, and the other way round, that fit.
    suggestions: empty where it fits. fixed_bytes: of the peak, what is there for any micro-batch.
    levers: what would lower the peak, the strongest first. time: None where nothing tells how fast the machine is.
    run_s, cost: of the training that the recipe asks for; None where the dataset, or the price, is unknown.
    """

    model: ModelFacts
    hardware: Hardware
    candidate: Candidate
    asked_samples: int
    loss: Loss
    data: str | None
    batch: Batch
    memory: MemoryEstimate
    time: TimeForecast | None
    run_s: float | None
    cost: float | None
    largest_rows: Largest
    largest_length: Largest
    suggestions: tuple[Suggestion, ...]
    fixed_bytes: int
    levers: tuple[Lever, ...]
    versions: Mapping[str, str]


def estimate(request: EstimateRequest, *, progress: Callable[[str], None]) -> Forecast:
    """Predict the memory and the time of what is asked. Takes seconds when a step must be traced, else a moment.

    Raises UsageError listing all that is wrong, NotPredicted when its step cannot be traced.
    """
    home = request.home.absolute()
    config, facts = resolve_architecture(
        request.model, request.config, home=home, progress=progress, meanwhile=start_tracer
    )
    data = None
    if request.data is not None:
        data = describe_data(
            replace(facts, path=locate_tokenizer(request.model, home=home, progress=progress)),
            data=request.data,
            columns=request.columns,
            recipe=request.recipe,
            seed=request.seed,
            home=home,
            progress=progress,
        )
    length = request.fixed.get("packed_length") or request.fixed.get("max_length") or min(LENGTH, facts.limit or LENGTH)
    workload = Workload(model=facts, data=data or stand_in_data(length), recipe=request.recipe)
    stack = installed() if request.at_hand else _any_kernel(installed(), request.hardware)
    candidate = complete(
        request.fixed, workload=workload, hardware=request.hardware, installed=stack, lengths_known=data is not None
    )
    forecaster = Forecaster(
        config=config,
        facts=facts,
        lengths=None if data is None else data.lengths,
        recipe=request.recipe,
        loss=request.loss,
        hardware=request.hardware,
        seed=request.seed,
        home=home,
        progress=progress,
        taught=recall(home, request.hardware),
    )
    memory, batch, law = forecaster.memory(candidate), forecaster.batch(candidate), forecaster.law(candidate)
    context = Context(installed=stack, hardware=request.hardware, workload=workload)

    def is_legal(changed: Candidate) -> bool:
        return not broken_rules(changed, context, lengths_known=data is not None)

    others = Alternatives(forecaster=forecaster)
    rows, positions = others.largest_rows(candidate, memory), others.largest_length(candidate, memory)
    time = None
    try:
        time = forecaster.time(candidate)
    except NotPredicted as error:
        progress(f"time is not predicted: {error}")
    steps = None if time is None else time.steps(request.recipe)
    run_s = None if time is None or steps is None else steps * time.estimate.step_s
    return Forecast(
        model=facts,
        hardware=request.hardware,
        candidate=candidate,
        asked_samples=request.recipe.effective_batch_size,
        loss=request.loss,
        data=None if data is None else data.name,
        batch=batch,
        memory=memory,
        time=time,
        run_s=run_s,
        cost=None if run_s is None or request.price_per_hour is None else run_s / 3600 * request.price_per_hour,
        largest_rows=rows,
        largest_length=positions,
        suggestions=() if memory.fits else tuple(others.suggestions(candidate, memory, rows.value, is_legal)),
        fixed_bytes=fixed_bytes(law, batch),
        levers=levers(law, batch, candidate, full_logits=request.loss == "full_logits"),
        versions=stack.versions,
    )


def _any_kernel(here: Installed, hardware: Hardware) -> Installed:
    """The stack of another machine: these versions, and whatever kernels its GPU can run."""
    hopper = hardware.compute_capability is not None and hardware.compute_capability[0] == 9
    return replace(here, flash_attention_2=True, flash_attention_3=hopper, kernels=True, cpp_compiler=True)
