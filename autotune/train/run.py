"""The run: train for real with one candidate, in the same worker as a trial, and record how it went.

Checkpoints are Trainer's own, in the run's directory. A run that was stopped goes on from the last one when it is
started again with the same configuration. Leaves out surviving an out-of-memory error.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from autotune.core.batches.trained import cut_in_words, trained_of, training_steps
from autotune.core.candidate import Candidate, short_name
from autotune.core.hardware import Hardware
from autotune.core.outcome import Crashed, Diverged, Measured, Outcome, OutOfMemory, outcome_to_dict
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context
from autotune.core.space.fixed import against_method, fixed_in_words
from autotune.core.space.legality import RULES
from autotune.core.units import count_of, format_bytes, format_duration
from autotune.core.workload import DataFacts, Workload
from autotune.data.describe import describe
from autotune.errors import AutotuneError, NothingFits, TrainingFailed, UsageError
from autotune.files import check_can_be_made, lock, make_directory, write_json
from autotune.machine.installed import installed
from autotune.models.savable import check_generation, check_room
from autotune.train.display import RunDisplay
from autotune.train.task import Task, Train, last_checkpoint
from autotune.train.workers import Workers

# Rules that are not judged by themselves: the first in better words, the second because TRL trains a smaller step.
JUDGED_APART = ("samples_per_step", "one_full_step")
CHECKPOINTS = 10  # in a whole run, of which Trainer keeps the last two
LOSS_SHARE = 0.1  # share of the steps that the mean losses at the start and at the end are taken over


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a run is asked to do.

    device: the kind of device that the candidate was found for; None for any.
    overrides: the words of the command line that replaced values of the run file, for the record.
    out: where checkpoints, the trained weights and run.json go.
    """

    model: str
    data: str
    columns: Mapping[str, str]
    split: str | None = None
    recipe: Recipe
    candidate: Candidate
    seed: int
    out: Path
    home: Path
    device: str | None = None
    overrides: Sequence[str] = ()


def workload_of(request: RunRequest, *, progress: Callable[[str], None]) -> Workload:
    """Read the model and all rows of the data. Needs no hardware.

    Raises UsageError listing what is wrong with them, or when no label is left after the cut.
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
        most_rows=None,
    )
    candidate = request.candidate
    trained = trained_of(candidate, workload.data.lengths)
    if not trained.labels:
        raise UsageError(
            f"candidate.max_length={candidate.row_length}: no row of {workload.data.name} has a label within it, so "
            "nothing would be trained; take more tokens, or shorten the prompts"
        )
    if (words := cut_in_words(trained, candidate)) is not None:
        progress(words)
    return workload


def check_run(request: RunRequest, workload: Workload, hardware: Hardware) -> None:
    """Judge what can be judged before anything is measured: the device, the candidate and the run's directory.

    hardware: as machine.probe.look returns it, without rates. Writes nothing. Raises UsageError.
    """
    if request.device not in (None, hardware.kind):
        raise UsageError(
            f"device={request.device}: the configuration was made for another device than this one ({hardware.kind}, "
            f"{hardware.name}); search again here, or run it all the same with device={hardware.kind}"
        )
    if problems := _problems_of_candidate(
        request, Context(installed=installed(), hardware=hardware, workload=workload)
    ):
        raise UsageError(*problems)
    _is_of(request.out, _identity(request, workload.model.fingerprint, workload.data.fingerprint))
    check_can_be_made(request.out)
    if request.candidate.method == "full":
        check_generation(workload.model)
        check_room(workload.model, request.out)


def _problems_of_candidate(request: RunRequest, context: Context) -> list[str]:
    """Say why the libraries would refuse the candidate, or train something else than it says."""
    candidate, recipe = request.candidate, request.recipe
    problems = against_method({"method": candidate.method}, recipe)
    if not candidate.packs and candidate.rows_per_step != recipe.effective_batch_size:
        problems.append(
            "candidate.per_device_train_batch_size x candidate.gradient_accumulation_steps: got "
            f"{candidate.per_device_train_batch_size} x {candidate.gradient_accumulation_steps} = "
            f"{candidate.rows_per_step}, expected recipe.effective_batch_size={recipe.effective_batch_size}"
        )
    for rule in RULES:
        if rule.gains_nothing or rule.name in JUDGED_APART or not rule.broken(candidate, context):
            continue
        said = fixed_in_words({knob: getattr(candidate, knob) for knob in rule.knobs})
        limit = f" ({context.workload.model.limit})" if rule.name == "within_model_limit" else ""
        problems.append(f"{said}: {rule.reason}{limit}")
    return problems


def run(request: RunRequest, workload: Workload, hardware: Hardware, *, display: RunDisplay) -> dict[str, Any]:
    """Train, write run.json into `request.out`, and return its object.

    workload: as `workload_of` returns it. Raises UsageError when the candidate is for another kind of device or `out`
    holds another run, NothingFits when memory runs out and TrainingFailed when training fails in another way. run.json
    is written in these last cases, too.
    """
    check_run(request, workload, hardware)
    on_cuda = hardware.kind == "cuda"
    uuid = hardware.uuid if on_cuda else None
    with Workers(device="cuda" if on_cuda else "cpu", device_uuid=uuid, memory_limit_bytes=None) as workers:
        make_directory(request.out)
        with lock(request.out):
            return _train(request, workload, hardware, workers, display)


def _train(
    request: RunRequest, workload: Workload, hardware: Hardware, workers: Workers, display: RunDisplay
) -> dict[str, Any]:
    """Train in the run's directory, which is this process's alone, and write run.json."""
    identity = _identity(request, workload.model.fingerprint, workload.data.fingerprint)
    if not _is_of(request.out, identity):
        write_json(request.out / "task.json", identity)
    steps = training_steps(request.candidate, workload.data, request.recipe)
    task = Task(
        candidate=request.candidate,
        recipe=request.recipe,
        model_path=workload.model.path,
        not_adapted=workload.model.not_adapted,
        tokenized_path=workload.data.tokenized_path,
        seed=request.seed,
        device=workers.device,
        output_dir=str(request.out),
        log_path=str(request.out / "log.txt"),
        goal=Train(save_steps=max(1, steps // CHECKPOINTS)),
    )
    before = _losses_before(request.out)
    if before:
        display.line(f"going on after step {len(before)}")
    display.line(f"training {workload.model.name} on {workload.data.name}: {short_name(request.candidate)}")
    with display:
        outcome = workers.perform(task, limit_s=None, on_event=display.event)
    document = _document(
        request, workload.data, hardware, outcome, [*before, *(step["loss"] for step in display.steps)]
    )
    write_json(request.out / "run.json", document)
    if not isinstance(outcome, Measured):
        raise _failure(outcome, request)
    return document


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """Describe a finished run to a person, in lines."""
    outcome = document["outcome"]
    rate = outcome["useful_tokens_per_s"]  # 0 after a run that was resumed with nothing left to train
    speed = f"{rate:.0f} useful tokens/s" if rate else "no step was left to train"
    return [
        f"loss {document['loss_at_start']:.3f} -> {document['loss_at_end']:.3f} in "
        f"{count_of(document['steps'], 'optimizer step')}",
        f"{speed}, peak of {format_bytes(outcome['peak_bytes'])}, {format_duration(outcome['wall_s'])} in all",
        f"the trained weights are in {document['out']}",
    ]


def _losses_before(out: Path) -> list[float]:
    """Read the loss of each step before the checkpoint from which a run goes on; empty without a checkpoint."""
    checkpoint = last_checkpoint(out)
    if checkpoint is None:
        return []
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def _is_of(out: Path, identity: Mapping[str, Any]) -> bool:
    """Whether `out` holds this run already, stopped before its end. Raises UsageError where it holds another one."""
    file = out / "task.json"
    if not file.exists():
        return False
    before, record = _read_object(file), out / "run.json"
    changed = [key for key in identity if before.get(key) != json.loads(json.dumps(identity[key]))]
    if changed:
        raise UsageError(f"out={out}: holds a run with another {', '.join(changed)}; name another out")
    if record.exists() and _read_object(record).get("finished"):
        raise UsageError(f"out={out}: this run is finished; name another out to train again")
    return True


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); remove it, or name another out") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file}: holds no object; remove it, or name another out")
    return value


def _identity(request: RunRequest, model: str, data: str) -> dict[str, Any]:
    return {
        "model": model,
        "data": data,
        "recipe": asdict(request.recipe),
        "candidate": request.candidate.to_dict(),
        "seed": request.seed,
    }


def _document(
    request: RunRequest, data: DataFacts, hardware: Hardware, outcome: Outcome, losses: Sequence[float]
) -> dict[str, Any]:
    """Build the object of run.json. losses: of every step, also of those before the run was stopped."""
    part = max(1, round(LOSS_SHARE * len(losses)))
    return {
        "finished": isinstance(outcome, Measured),
        "outcome": outcome_to_dict(outcome),
        "steps": len(losses),
        "loss_at_start": fmean(losses[:part]) if losses else None,
        "loss_at_end": fmean(losses[-part:]) if losses else None,
        "model": request.model,
        "data": {"path": request.data, "columns": dict(request.columns), "split": data.split},
        "recipe": asdict(request.recipe),
        "candidate": request.candidate.to_dict(),
        "overrides": list(request.overrides),
        "seed": request.seed,
        "hardware": hardware.to_dict(),
        "versions": dict(installed().versions),
        "out": str(request.out),
    }


def _failure(outcome: Outcome, request: RunRequest) -> AutotuneError:
    log = request.out / "log.txt"
    if isinstance(outcome, OutOfMemory):
        return NothingFits(
            f"out of memory: {outcome.message}; try a smaller candidate.per_device_train_batch_size with as much more "
            "candidate.gradient_accumulation_steps, or candidate.checkpointing=full"
        )
    if isinstance(outcome, Diverged):
        return TrainingFailed(f"the loss became {outcome.loss} at step {outcome.step}: lower recipe.learning_rate")
    if isinstance(outcome, Crashed):
        return TrainingFailed(f"{outcome.message} (log: {log})")
    return TrainingFailed(f"{outcome.kind} (log: {log})")
