"""`autotune estimate`: the memory and the time of a candidate on any machine, at hand or not. It needs no weights.

Finds the model (models/find.py) and the data (data/describe.py), completes the candidate (completion.py), and predicts
its memory (memory.py), its time (time.py) and what else would fit (alternatives.py). Leaves out how the answer is shown
(report.py). With everything that it needs in the cache, neither torch nor transformers is imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core.batches.batches import Batch
from autotune.core.batches.trained import cut_in_words, trained_of, training_steps
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import MemoryEstimate
from autotune.core.memory.levers import Lever, fixed_bytes, levers
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context, Installed
from autotune.core.workload import DataFacts, ModelFacts, Workload, cut_by, too_few_rows
from autotune.data.describe import describe_data
from autotune.errors import NotPredicted, UsageError
from autotune.machine.installed import installed
from autotune.models.find import locate_tokenizer, resolve_architecture
from autotune.predict.alternatives import Alternatives, Largest, Suggestion
from autotune.predict.completion import broken_rules, complete, stand_in_data
from autotune.predict.experience import recall
from autotune.predict.memory import MemoryPredictor
from autotune.predict.time import CalibratedTime, calibrated_speed, predict_time
from autotune.predict.training import Training
from autotune.trace.request import Loss

LENGTH = 1024  # tokens of a row if neither data nor candidate.max_length is given (TRL's default max_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """What an estimate is asked for, on any machine.

    model, config: as resolve_architecture takes them. data: None for rows as long as the candidate allows. fixed: the
    knobs that the user set.
    """

    model: str
    config: Mapping[str, Any] | None
    data: str | None
    columns: Mapping[str, str]
    split: str | None = None
    recipe: Recipe
    fixed: Mapping[str, Any]
    loss: Loss
    seed: int
    price_per_hour: float | None
    home: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The memory and the time of a candidate, with what they were predicted for.

    asked_samples: samples of a step that the recipe asks for. data: name of the dataset, None without one. batch: the
    micro-batch that takes the most memory. time: None where the machine's speed is unknown.
    run_s, cost: of the training that the recipe asks for; None where the dataset, or the price, is unknown.
    largest_rows: the largest micro-batch that fits at this length. largest_length: the largest length that fits with
    this micro-batch. suggestions: changes that may make the candidate fit; none where it fits.
    fixed_bytes: bytes of the peak that do not depend on the micro-batch. levers: what would lower the peak, the
    strongest first.
    """

    model: ModelFacts
    hardware: Hardware
    candidate: Candidate
    asked_samples: int
    loss: Loss
    data: str | None
    batch: Batch
    memory: MemoryEstimate
    time: CalibratedTime | None
    run_s: float | None
    cost: float | None
    largest_rows: Largest
    largest_length: Largest
    suggestions: tuple[Suggestion, ...]
    fixed_bytes: int
    levers: tuple[Lever, ...]
    versions: Mapping[str, str]


def workload_of(
    request: EstimateRequest, *, progress: Callable[[str], None], meanwhile: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], Workload]:
    """Read the model's configuration, and the data if there is any. Needs no hardware.

    Returns the configuration, in the keys of config.json, and the workload. Without data its rows are as long as the
    candidate allows. meanwhile: as resolve_architecture takes it. Raises UsageError listing what is wrong with them.
    """
    home = request.home.absolute()
    config, facts = resolve_architecture(
        request.model, request.config, home=home, progress=progress, meanwhile=meanwhile
    )
    if request.data is None:
        fixed = request.fixed
        data = stand_in_data(
            fixed.get("packed_length") or fixed.get("max_length") or min(LENGTH, facts.limit or LENGTH)
        )
    else:
        data = _describe(request, facts, progress)
    workload = Workload(model=facts, data=data, recipe=request.recipe)
    if request.data is not None and (problems := too_few_rows(workload, cut_by(request.fixed))):
        raise UsageError(*problems)
    return config, workload


def estimate(
    request: EstimateRequest,
    config: dict[str, Any],
    workload: Workload,
    hardware: Hardware,
    *,
    at_hand: bool,
    progress: Callable[[str], None],
) -> Estimate:
    """Predict the memory and the time of a candidate. Takes seconds when a step must be traced, else a moment.

    config, workload: as `workload_of` returns them. at_hand: whether the hardware is this machine; then only its
    installed kernels can be used. Raises UsageError listing all that is wrong with the candidate, and NotPredicted when
    its step cannot be traced.
    """
    home, lengths_known = request.home.absolute(), request.data is not None
    stack = installed() if at_hand else _any_kernel(installed(), hardware)
    context = Context(installed=stack, hardware=hardware, workload=workload)
    candidate = complete(request.fixed, context, lengths_known=lengths_known)
    if lengths_known and (words := cut_in_words(trained_of(candidate, workload.data.lengths), candidate)) is not None:
        progress(words)
    training = Training(
        config=config,
        facts=workload.model,
        lengths=workload.data.lengths if lengths_known else None,
        recipe=request.recipe,
        loss=request.loss,
        hardware=hardware,
        seed=request.seed,
    )
    predictor = MemoryPredictor.of(training, home=home, progress=progress)
    worst = predictor.worst_step(candidate)
    memory = predictor.estimate(worst)
    others = Alternatives(
        memory=predictor,
        is_legal=lambda changed: not broken_rules(changed, context, lengths_known=lengths_known),
        progress=progress,
    )
    rows, positions = others.largest_rows(candidate, memory), others.largest_length(candidate, memory)
    time = None
    try:
        speed = calibrated_speed(hardware, recall(home, hardware))
        time = predict_time(candidate, batches=predictor.batches, laws=predictor.laws, speed=speed)
    except NotPredicted as error:
        progress(f"time is not predicted: {error}")
    steps = request.recipe.max_steps
    if lengths_known:
        steps = training_steps(candidate, workload.data, request.recipe)
    run_s = None if time is None or steps is None else steps * time.estimate.step_s
    return Estimate(
        model=workload.model,
        hardware=hardware,
        candidate=candidate,
        asked_samples=request.recipe.effective_batch_size,
        loss=request.loss,
        data=workload.data.name if lengths_known else None,
        batch=worst.batch,
        memory=memory,
        time=time,
        run_s=run_s,
        cost=None if run_s is None or request.price_per_hour is None else run_s / 3600 * request.price_per_hour,
        largest_rows=rows,
        largest_length=positions,
        suggestions=() if memory.fits else tuple(others.suggestions(candidate, memory, rows.value)),
        fixed_bytes=fixed_bytes(worst.law, worst.batch),
        levers=levers(worst.law, worst.batch, candidate, full_logits=request.loss == "full_logits"),
        versions=stack.versions,
    )


def _describe(request: EstimateRequest, facts: ModelFacts, progress: Callable[[str], None]) -> DataFacts:
    """Read the data with the model's tokenizer; weights are not needed."""
    assert request.data is not None
    return describe_data(
        replace(facts, path=locate_tokenizer(request.model, home=request.home.absolute(), progress=progress)),
        data=request.data,
        columns=request.columns,
        split=request.split,
        recipe=request.recipe,
        seed=request.seed,
        home=request.home.absolute(),
        progress=progress,
    )


def _any_kernel(here: Installed, hardware: Hardware) -> Installed:
    """The stack of another machine: the versions that are installed here, and all kernels that its GPU can run."""
    hopper = hardware.compute_capability is not None and hardware.compute_capability[0] == 9
    return replace(here, flash_attention_2=True, flash_attention_3=hopper, kernels=True, cpp_compiler=True)
