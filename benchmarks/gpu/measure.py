"""Rows of `gpu_suite.py`: what is predicted of trainings on a GPU, then what the real ones take of memory and time.

All predictions are written to the file before the first measurement of the run, in processes that see no GPU. Then a
worker (autotune/train/workers.py) trains a few steps of one candidate after another, on weights that it draws. A file
has two kinds of lines, `prediction` and `measurement`; a measurement repeats the prediction that was made for it.

Leaves out which candidates (gpu_cases.py), their predictions (gpu_plan.py) and what it all adds up to (gpu_summary.py,
gpu_time.py).
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from autotune.core.gpu_specs import GpuSpec, read_gpu_spec
from autotune.core.hardware import Device, Hardware
from autotune.core.outcome import Measured, Outcome, TimedOut
from autotune.core.units import GIB
from autotune.errors import AutotuneError
from autotune.machine import nvml
from autotune.machine.gpus import find_gpus
from autotune.machine.host import count_cores
from autotune.machine.installed import installed
from autotune.models.catalogue import CONF
from autotune.trace.profiles import STACK
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers
from benchmarks.gpu.cases import CPU_CASES, SEED, Case
from benchmarks.gpu.predictions import Planned, Progress, in_order, predictions, waiting
from benchmarks.gpu.summary import DONE, untried
from benchmarks.rows import Row, append, commit_of_checkout, now, own_rows, today

ROW_LIMIT_S = 90.0  # for one candidate, a worker's start included
LEAST_S = 20.0  # of the budget that must be left to begin one


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the suite. cards: smaller GPUs that are imitated, and what is tried on each.

    steps: optimizer steps that are measured, behind those that warm up. shown: the error that a line of progress has.
    """

    file: str
    cases: Sequence[Case]
    cards: Mapping[int, Sequence[Case]]
    steps: int
    shown: str
    summary: Callable[[Sequence[Row]], Mapping[str, Any]]


def run(
    part: Part,
    hardware: Hardware,
    *,
    out: Path,
    home: Path,
    deadline: float,
    first: int | None,
    every: int,
    commit: str | None,
    on_cpu: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Predict, measure, and sum up all rows of this device and these versions.

    hardware: the machine at hand. deadline: as time.monotonic() counts; `left` names what was not begun by then.
    """
    file = out / part.file
    about = {
        "device": hardware.name,
        "driver": hardware.driver,
        "versions": {name: installed().versions.get(name) for name in STACK},
        "commit": commit or commit_of_checkout(),
    }
    before = own_rows(file, about)
    there = {row["name"] for row in before if row.get("outcome") in DONE}
    jobs = waiting(CPU_CASES if on_cpu else part.cases, {} if on_cpu else part.cards, before)[::every][:first]
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"predicting {len(jobs)} candidates or borders of cards")
        planned, waits = [], list(jobs)
        for job, found in predictions(jobs, hardware, home, Path(scratch), progress, deadline=deadline):
            waits.remove(job)
            for plan in found:
                if plan.case.name not in there:
                    planned.append(plan)
                    append(file, {"kind": "prediction", **described(plan, about)})
        device: Device = "cpu" if on_cpu else "cuda"
        uuid = None if on_cpu else hardware.uuid
        with Workers(device=device, device_uuid=uuid, memory_limit_bytes=None) as workers:
            left = measure_all(
                part,
                in_order(planned, jobs),
                workers,
                watch=Watch(uuid),
                file=file,
                about=about,
                deadline=deadline,
                progress=progress,
            )
    own = own_rows(file, about)
    rows = [row for row in own if row["kind"] == "measurement"]
    left += [job.asked.name for job in waits]
    if left:
        progress(f"the time is up with {len(left)} left; the same command goes on")
    return {**about, "date": today(), "left": left, "untried": untried(own), **part.summary(rows), "rows": rows}


def gpu_at_hand(progress: Progress) -> Hardware:
    """The GPU as the catalogue knows it, else as the driver names it, with the memory that the driver gives."""
    gpu = next(iter(find_gpus(progress=progress)), None)
    if gpu is None or gpu.compute_capability is None:
        raise AutotuneError("this part needs a CUDA GPU; --cpu tries two tiny rows without one")
    kept = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((CONF / "hardware").glob("*.yaml"))]
    known = (read_gpu_spec(values["gpu"]) for values in kept if isinstance(values, dict) and values.get("gpu"))
    unknown = GpuSpec(
        name=gpu.name,
        compute_capability=".".join(map(str, gpu.compute_capability)),
        memory_gib=gpu.memory.total / GIB,
        memory_is_reported=True,
        bandwidth_gb_s=0.0,  # unknown, and no part of memory
        sm_count=0,
        sources=(),
    )
    spec = next((spec for spec in known if spec.name == gpu.name), unknown)
    return replace(
        spec.hardware(cores=count_cores()),
        uuid=gpu.uuid,
        memory_bytes=gpu.memory.total,
        used_by_others_bytes=gpu.memory.used,
        driver=gpu.driver,
    )


class Watch:
    """What the driver shows of the worker while it trains. uuid: of the GPU, None watches nothing.

    device_bytes: the most that the process held; where the driver does not list it (in a container), what the device
    holds more than before the worker was there, and then `by_process` is False.
    """

    def __init__(self, uuid: str | None) -> None:
        self.uuid = uuid
        self.idle_bytes = 0 if uuid is None else nvml.read_memory(uuid).used
        self.begin()

    def begin(self) -> None:
        """Forget what was seen."""
        self.device_bytes: int | None = None
        self.by_process = False

    def see(self, event: Mapping[str, Any]) -> None:
        """Look at the device when a step has ended: until the next task the allocator keeps all it has reserved."""
        if self.uuid is None or event["event"] != "step":
            return
        worker = next((child for child in multiprocessing.active_children() if child.name == "autotune-worker"), None)
        own = None if worker is None or worker.pid is None else nvml.process_bytes(self.uuid, worker.pid)
        self.by_process = own is not None
        seen = own if own is not None else nvml.read_memory(self.uuid).used - self.idle_bytes
        self.device_bytes = max(self.device_bytes or 0, seen)


def measure_all(
    part: Part,
    planned: Sequence[Planned],
    workers: Any,
    *,
    watch: Watch,
    file: Path,
    about: Mapping[str, Any],
    deadline: float,
    progress: Progress,
) -> list[str]:
    """Train each case that was predicted, and append what it took; returns what was left when time was up.

    workers: has `perform` as autotune.train.workers.Workers. deadline: as time.monotonic() counts.
    """
    left = []
    for plan in planned:
        if plan.estimate is None or (plan.case.card_bytes is None and not plan.estimate.fits):
            progress(f"not measured, {plan.why or 'it is not predicted to fit'}: {plan.case.name}")
            continue
        limit_s = min(ROW_LIMIT_S, deadline - time.monotonic())
        if limit_s < LEAST_S:
            left.append(plan.case.name)
            continue
        watch.begin()
        outcome = workers.perform(task_of(plan, watch, part.steps), limit_s=limit_s, on_event=watch.see)
        if isinstance(outcome, TimedOut) and limit_s < ROW_LIMIT_S:  # the budget's fault, not the candidate's
            left.append(plan.case.name)
            continue
        row = {"kind": "measurement", **described(plan, about), **measured_of(outcome, watch)}
        row["errors"] = errors_of(row["predicted"], row["measured"])
        append(file, row)
        error = row["errors"].get(part.shown)
        shown = "" if error is None else f"{part.shown} {error:+.2%} "
        progress(f"{row['outcome']} {shown}{plan.case.name} ({outcome.wall_s:.1f} s)")
    return left


def task_of(plan: Planned, watch: Watch, steps: int) -> Task:
    """A case as the worker is told it. A card's allocator has its memory less what the context takes."""
    assert plan.estimate is not None
    card = plan.case.card_bytes
    return Task(
        candidate=plan.case.candidate,
        recipe=plan.case.recipe,
        model_path=str(plan.directory / "model"),
        tokenized_path=str(plan.directory / "rows"),
        seed=SEED,
        device="cpu" if watch.uuid is None else "cuda",
        output_dir=str(plan.directory / "out"),
        log_path=str(plan.directory / "log.txt"),
        goal=Measure(budget_s=ROW_LIMIT_S, precision=0.0, least_steps=steps, most_steps=steps),
        random_weights=True,
        allocator_limit_bytes=None if card is None else card - plan.estimate.room.context_bytes,
    )


def measured_of(outcome: Outcome, watch: Watch) -> Row:
    """The outcome and what was counted. On a CPU that is resident size, which no prediction is held against."""
    if not isinstance(outcome, Measured):
        said = asdict(outcome)
        return {"outcome": outcome.kind, "measured": None, "why": said.get("message", ""), "log": said.get("log_tail")}
    return {
        "outcome": outcome.kind,
        "measured": {
            "allocated_bytes": None if watch.uuid is None else outcome.peak_bytes,
            "reserved_bytes": outcome.reserved_bytes,
            "device_bytes": watch.device_bytes,
            "device_bytes_by_process": watch.by_process,
            "resident_bytes": outcome.host_peak_bytes,
            "step_s": outcome.step_s,
            "load_s": outcome.load_s,
            "losses": [step.loss for step in (*outcome.warmup_steps, *outcome.steps)],
        },
        "wall_s": outcome.wall_s,
    }


def errors_of(predicted: Mapping[str, Any], measured: Mapping[str, Any] | None) -> dict[str, float]:
    """Predicted over measured, less one, of whatever was measured."""
    names = ("allocated_bytes", "reserved_bytes", "device_bytes", "step_s")
    there = [name for name in names if measured and predicted.get(name) is not None and measured[name] is not None]
    return {name: predicted[name] / measured[name] - 1 for name in there if measured}


def described(plan: Planned, about: Mapping[str, Any]) -> Row:
    """What both kinds of lines say."""
    case = {**asdict(plan.case), "candidate": plan.case.candidate.to_dict()}
    why = {"why": plan.why} if plan.why else {}
    return {"at": now(), "name": plan.case.name, **about, "case": case, "predicted": plan.predicted, **why}
