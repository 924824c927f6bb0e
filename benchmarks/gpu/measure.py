"""The rows of `gpu.suite steps`: predictions of trainings on a GPU, then what real ones take.

All predictions of a run are in the file before its first measurement. Then a worker (autotune/train/workers.py) trains
a few steps of one candidate after another, on weights that it draws at random. A file has two kinds of rows,
`prediction` and `measurement`; a measurement repeats the prediction that was made for it.

Leaves out the cases (cases.py), their predictions (predictions.py) and the summary (summaries.py).
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.core.hardware import Hardware
from autotune.core.outcome import Measured, Outcome, TimedOut
from autotune.machine import nvml
from autotune.train.task import Task
from autotune.train.workers import Workers
from benchmarks.command import say
from benchmarks.gpu.cases import CARDS, CASES, CPU_CASES, SEED
from benchmarks.gpu.predictions import DONE, PredictedCase, in_order, predictions, waiting
from benchmarks.gpu.summaries import summary
from benchmarks.rows import Row, RowFile, commit_of_checkout, versions
from benchmarks.trainings import task_of_steps

FILE = "gpu_steps.jsonl"
STEPS = 5  # that are measured of each case, behind those that warm up
ROW_LIMIT_S = 90.0  # for one candidate, a worker's start included
LEAST_S = 20.0  # of the budget that must be left to begin one


def run(
    hardware: Hardware,
    *,
    out: Path,
    home: Path,
    deadline: float,
    first: int | None,
    every: int,
    commit: str | None,
    on_cpu: bool,
) -> dict[str, Any]:
    """Predict, measure, and sum up all rows of this device and these versions.

    hardware: the machine at hand. deadline: as time.monotonic() counts; `left` names what was not begun by then.
    """
    about = {
        "device": hardware.name,
        "driver": hardware.driver,
        "versions": versions(),
        "commit": commit or commit_of_checkout(),
    }
    file = RowFile(path=out / FILE, about=about, identity=("device", "versions"))
    before = file.own()
    there = {row["name"] for row in before if row.get("outcome") in DONE}
    jobs = waiting(CPU_CASES if on_cpu else CASES, {} if on_cpu else CARDS, before)[::every][:first]
    with tempfile.TemporaryDirectory() as scratch:
        say(f"predicting {len(jobs)} cases, or largest micro-batches of cards")
        found, waits = list[PredictedCase](), list(jobs)
        for job, predicted in predictions(jobs, hardware, home, Path(scratch), deadline=deadline):
            waits.remove(job)
            for one in predicted:
                if one.case.name not in there:
                    found.append(one)
                    file.add({"kind": "prediction", **described(one)})
        uuid = None if on_cpu else hardware.uuid
        with Workers(device="cpu" if on_cpu else "cuda", device_uuid=uuid, memory_limit_bytes=None) as workers:
            left = measure_all(in_order(found, jobs), workers, watch=Watch(uuid), file=file, deadline=deadline)
    own = file.own()
    rows = [row for row in own if row["kind"] == "measurement"]
    left += [job.asked.name for job in waits]
    if left:
        say(f"the time is up with {len(left)} left; the same command goes on")
    return {**about, "left": left, "untried": untried(own), **summary(rows), "rows": rows}


class Watch:
    """What the driver shows of the worker while it trains. uuid: of the GPU; None watches nothing.

    device_bytes: the most that the process held. Where the driver does not list it (in a container), `by_process` is
    False, and the bytes are those that the device holds more than before the worker started.
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
        """Look at the device when a step has ended: the allocator keeps what it reserved until the next task."""
        if self.uuid is None or event["event"] != "step":
            return
        worker = next((child for child in multiprocessing.active_children() if child.name == "autotune-worker"), None)
        own = None if worker is None or worker.pid is None else nvml.process_bytes(self.uuid, worker.pid)
        self.by_process = own is not None
        seen = own if own is not None else nvml.read_memory(self.uuid).used - self.idle_bytes
        self.device_bytes = max(self.device_bytes or 0, seen)


def measure_all(
    found: Sequence[PredictedCase], workers: Any, *, watch: Watch, file: RowFile, deadline: float
) -> list[str]:
    """Train each predicted case, append what it took, and return the names of those that were left when time was up.

    workers: has `perform` as autotune.train.workers.Workers. deadline: as time.monotonic() counts.
    """
    left = []
    for one in found:
        if one.estimate is None or (one.case.card_bytes is None and not one.estimate.fits):
            say(f"not measured, {one.why or 'it is not predicted to fit'}: {one.case.name}")
            continue
        limit_s = min(ROW_LIMIT_S, deadline - time.monotonic())
        if limit_s < LEAST_S:
            left.append(one.case.name)
            continue
        watch.begin()
        outcome = workers.perform(task_of(one, watch), limit_s=limit_s, on_event=watch.see)
        if isinstance(outcome, TimedOut) and limit_s < ROW_LIMIT_S:  # the budget ended it, the candidate may be fast
            left.append(one.case.name)
            continue
        row: Row = {"kind": "measurement", **described(one), **measured_of(outcome, watch)}
        row["errors"] = errors_of(row["predicted"], row["measured"])
        file.add(row)
        shown = "".join(f"{name} {error:+.2%} " for name, error in row["errors"].items())
        say(f"{row['outcome']} {shown}{one.case.name} ({outcome.wall_s:.1f} s)")
    return left


def task_of(one: PredictedCase, watch: Watch) -> Task:
    """Return the task of a case. The allocator of a card may have its memory less the context."""
    assert one.estimate is not None
    card = one.case.card_bytes
    return task_of_steps(
        one.case.candidate,
        one.case.recipe,
        one.directory,
        steps=STEPS,
        limit_s=ROW_LIMIT_S,
        model_path=str(one.directory / "model"),
        tokenized_path=str(one.directory / "rows"),
        seed=SEED,
        device="cpu" if watch.uuid is None else "cuda",
        random_weights=True,
        allocator_limit_bytes=None if card is None else card - one.estimate.room.context_bytes,
    )


def measured_of(outcome: Outcome, watch: Watch) -> Row:
    """Return the outcome and what was counted. On a CPU it is resident size, which no prediction is compared with."""
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
    """Return the relative error of each prediction that has a measurement."""
    names = ("allocated_bytes", "reserved_bytes", "device_bytes", "step_s")
    there = [name for name in names if measured and predicted.get(name) is not None and measured[name] is not None]
    return {name: predicted[name] / measured[name] - 1 for name in there if measured}


def described(one: PredictedCase) -> Row:
    """Return what both kinds of rows say of a case."""
    case = {**asdict(one.case), "candidate": one.case.candidate.to_dict()}
    return {"name": one.case.name, "case": case, "predicted": one.predicted, **({"why": one.why} if one.why else {})}


def untried(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List what is not measured with the reason: there is no prediction, or it is not predicted to fit the device.

    rows: of both kinds, in the order in which they were written.
    """
    last = {row["name"]: row for row in rows}
    return [
        {"name": row["name"], "why": row.get("why") or "it is not predicted to fit"}
        for row in last.values()
        if row["kind"] == "prediction"
        and (row["predicted"] is None or (row["case"]["card_bytes"] is None and not row["predicted"]["fits"]))
    ]
