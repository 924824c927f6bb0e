"""`gpu_suite.py memory`: what is predicted of a GPU's memory, then what a real training takes of it.

All predictions are written to the file before the first measurement of the run, in processes that see no GPU. Then a
worker (autotune/trial.py) trains a few steps of one candidate after another, on weights that it draws. A file has
two kinds of lines, `prediction` and `measurement`; a measurement repeats the prediction that was made for it.

Leaves out which candidates (gpu_cases.py) and what the rows add up to (gpu_summary.py).
"""

import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from gpu_cases import CARDS, CASES, CPU_CASES, SEED, Case, around, lengths_of, write_model, write_rows
from gpu_summary import DONE, summary
from memory_cases import plain_cpu

from autotune import nvml
from autotune.catalogue import CONF
from autotune.core.estimate import MemoryEstimate
from autotune.core.gpu_specs import GpuSpec, read_gpu_spec
from autotune.core.hardware import Hardware
from autotune.core.outcome import Measured, Outcome, TimedOut
from autotune.core.units import GIB, format_bytes
from autotune.errors import AutotuneError
from autotune.estimate import EstimateRequest, Forecaster
from autotune.installed import installed
from autotune.models import resolve_architecture
from autotune.probe_cpu import count_cores
from autotune.probe_cuda import find_gpus
from autotune.profiles import STACK
from autotune.task import Device, Measure, Task
from autotune.trial import Workers

FILE = "gpu_memory.jsonl"
ROW_LIMIT_S = 90.0  # for one candidate, a worker's start included
LEAST_S = 20.0  # of the budget that must be left to begin one
MEASURED_STEPS = 2  # behind the two that warm up: a trial has no rate from fewer

Row = dict[str, Any]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A case to predict; on a smaller card at the largest micro-batch that fits it, and with `wide` around that."""

    case: Case
    card_bytes: int | None = None
    wide: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A case whose prediction was made. directory: of its model and its rows. estimate: None when there is none."""

    case: Case
    directory: Path
    estimate: MemoryEstimate | None
    why: str = ""

    @property
    def predicted(self) -> Row | None:
        """The prediction as the file has it."""
        return None if self.estimate is None else predicted_of(self.estimate)


def run(
    *,
    out: Path,
    home: Path,
    budget_s: float,
    first: int | None,
    every: int,
    commit: str | None,
    on_cpu: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Predict, measure, and sum up all rows of this device and these versions. Raises AutotuneError without a GPU."""
    deadline = time.monotonic() + budget_s
    hardware = plain_cpu() if on_cpu else gpu_at_hand(progress)
    file = out / FILE
    about = {
        "device": hardware.name,
        "driver": hardware.driver,
        "versions": {name: installed().versions.get(name) for name in STACK},
        "commit": commit or commit_of_checkout(),
    }
    there = done(file, about)
    jobs = waiting(CPU_CASES if on_cpu else CASES, {} if on_cpu else CARDS, own_rows(file, about))[::every][:first]
    with tempfile.TemporaryDirectory() as scratch:
        progress(f"predicting {len(jobs)} candidates or borders of cards")
        planned = []
        for found in predictions(jobs, hardware, home, Path(scratch), progress):
            for plan in found:
                if plan.case.name not in there:
                    planned.append(plan)
                    append(file, {"kind": "prediction", **described(plan, about)})
        device: Device = "cpu" if on_cpu else "cuda"
        uuid = None if on_cpu else hardware.uuid
        with Workers(device=device, device_uuid=uuid, memory_limit_bytes=None) as workers:
            left = measure_all(
                in_order(planned, jobs),
                workers,
                watch=Watch(uuid),
                file=file,
                about=about,
                deadline=deadline,
                progress=progress,
            )
    rows = [row for row in own_rows(file, about) if row["kind"] == "measurement"]
    return {**about, "date": today(), "left": left, **summary(rows), "rows": rows}


def waiting(cases: Iterable[Case], cards: Mapping[int, Sequence[Case]], rows: Sequence[Row]) -> list[Job]:
    """The jobs that are not done: those of whose predictions some were not measured, or that have none.

    rows: of this device and these versions.
    """
    jobs = [Job(case=case) for case in cases]
    for card_bytes, families in cards.items():
        jobs += [Job(case=case, card_bytes=card_bytes, wide=place == 0) for place, case in enumerate(families)]
    there = {row["name"] for row in rows if row.get("outcome") in DONE}

    def is_done(job: Job) -> bool:
        if job.card_bytes is None:
            return job.case.name in there
        of_job = (job.case.model, job.card_bytes)
        names = {row["name"] for row in rows if (row["case"]["model"], row["case"]["card_bytes"]) == of_job}
        return bool(names) and names <= there

    return [job for job in jobs if not is_done(job)]


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


def predictions(
    jobs: Sequence[Job], hardware: Hardware, home: Path, scratch: Path, progress: Progress
) -> Iterator[list[Planned]]:
    """Predict every job, one process a core; in the order in which they are ready."""
    context = multiprocessing.get_context("spawn")  # no fork of a process that may have threads
    started = time.monotonic()
    with ProcessPoolExecutor(max(1, min(count_cores(), len(jobs))), context, initializer=see_no_gpu) as pool:
        futures = {pool.submit(predict, job, hardware, home, scratch / str(n)): job for n, job in enumerate(jobs)}
        for count, future in enumerate(as_completed(futures), 1):
            try:
                yield future.result()
            except Exception as error:  # a case that cannot be predicted is a row, too
                case = replace(futures[future].case, card_bytes=futures[future].card_bytes)
                why = f"{type(error).__name__}: {error}"
                yield [Planned(case=case, directory=scratch, estimate=None, why=why)]
            progress(f"predicted {count} of {len(jobs)} after {time.monotonic() - started:.0f} s")


def see_no_gpu() -> None:
    """Keep this process off the GPU, and its libraries quiet: it traces, and others measure."""
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def predict(job: Job, hardware: Hardware, home: Path, directory: Path) -> list[Planned]:
    """Predict a job's cases, and write the model and the rows that they train on."""
    case = job.case
    if job.card_bytes is not None:
        hardware = replace(hardware, memory_bytes=job.card_bytes, used_by_others_bytes=0)
    config, facts = resolve_architecture(case.model, None, home=home, progress=_silent)
    request = EstimateRequest(
        model=case.model,
        config=config,
        data=None,
        columns={},
        recipe=case.recipe,
        fixed={},
        loss="fused",
        hardware=hardware,
        at_hand=True,
        seed=SEED,
        home=home,
    )
    forecaster = Forecaster(
        request=request, config=config, facts=facts, lengths=lengths_of(case), home=home, progress=_silent
    )
    cases = [case]
    if job.card_bytes is not None:
        largest = forecaster.largest_rows(case.candidate, forecaster.memory(case.candidate))
        cases = list(around(case, job.card_bytes, largest or 1, wide=job.wide))
    write_model(config, directory / "model")
    planned = []
    for number, each in enumerate(cases):
        place = directory / str(number)
        place.mkdir()
        (place / "model").symlink_to(directory / "model")
        write_rows(each, place / "rows")
        planned.append(Planned(case=each, directory=place, estimate=forecaster.memory(each.candidate)))
    return planned


def predicted_of(estimate: MemoryEstimate) -> Row:
    """What a trial's counters are held against: it loads and trains, and evaluates or saves nothing.

    Torch's own counters have the workspaces of cuBLAS in them; the context only the driver sees.
    """
    demand, room = estimate.demand, estimate.room
    return {
        "allocated_bytes": max(demand.phases["training"], demand.phases["loading"]) + room.workspace_bytes,
        "reserved_bytes": demand.reserved_bytes + room.workspace_bytes,
        "device_bytes": estimate.device_bytes,
        "needed_bytes": estimate.needed_bytes,
        "limit_bytes": room.limit_bytes,
        "context_bytes": room.context_bytes,
        "workspace_bytes": room.workspace_bytes,
        "fits": estimate.fits,
        "phase": demand.peak.phase,
        "op": demand.peak.op,
        "items": dict(demand.peak.items),
    }


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

    workers: has `perform` as autotune.trial.Workers. deadline: as time.monotonic() counts.
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
        outcome = workers.perform(task_of(plan, watch), limit_s=limit_s, on_event=watch.see)
        if isinstance(outcome, TimedOut) and limit_s < ROW_LIMIT_S:  # the budget's fault, not the candidate's
            left.append(plan.case.name)
            continue
        row = {"kind": "measurement", **described(plan, about), **measured_of(outcome, watch)}
        row["errors"] = errors_of(row["predicted"], row["measured"])
        append(file, row)
        error = row["errors"].get("allocated_bytes")
        shown = "" if error is None else f"{error:+.2%} of {format_bytes(row['measured']['allocated_bytes'])} "
        progress(f"{row['outcome']} {shown}{plan.case.name} ({outcome.wall_s:.1f} s)")
    return left


def task_of(plan: Planned, watch: Watch) -> Task:
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
        work=Measure(budget_s=ROW_LIMIT_S, precision=0.0, least_steps=MEASURED_STEPS, most_steps=MEASURED_STEPS),
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
    names = ("allocated_bytes", "reserved_bytes", "device_bytes")
    return {name: predicted[name] / measured[name] - 1 for name in names if measured and measured[name] is not None}


def described(plan: Planned, about: Mapping[str, Any]) -> Row:
    """What both kinds of lines say."""
    case = {**asdict(plan.case), "candidate": plan.case.candidate.to_dict()}
    why = {"why": plan.why} if plan.why else {}
    return {"at": now(), "name": plan.case.name, **about, "case": case, "predicted": plan.predicted, **why}


def in_order(planned: Sequence[Planned], jobs: Sequence[Job]) -> list[Planned]:
    """As the jobs stand, so that candidates of one worker follow each other; on a card what should not fit last."""
    place = {(job.case.model, job.card_bytes): number for number, job in reversed(list(enumerate(jobs)))}

    def key(plan: Planned) -> tuple[Any, ...]:
        case = plan.case
        fits = plan.estimate is None or plan.estimate.fits
        return case.card_bytes or 0, not fits, not case.candidate.tuned_allocator, place[case.model, case.card_bytes]

    return sorted(planned, key=key)


def done(file: Path, about: Mapping[str, Any]) -> set[str]:
    """Names of the cases that are measured on this device with these versions."""
    return {row["name"] for row in own_rows(file, about) if row.get("outcome") in DONE}


def own_rows(file: Path, about: Mapping[str, Any]) -> list[Row]:
    """The rows of the same device and versions."""
    return [row for row in read(file) if all(row[name] == about[name] for name in ("device", "versions"))]


def read(file: Path) -> list[Row]:
    """The rows of a file, none when it is not there. A last line that was cut off is passed over."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append(file: Path, row: Row) -> None:
    """Append a line, and have it on the disk before going on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def commit_of_checkout() -> str | None:
    """The commit that is checked out; None where git cannot tell."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """This moment, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def today() -> str:
    """This day."""
    return time.strftime("%Y-%m-%d")


def _silent(line: str) -> None:
    """What a process that predicts has to tell is of no interest here."""
