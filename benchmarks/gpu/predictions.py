"""What `gpu_suite.py` predicts: jobs, and the prediction of each, made where no GPU is to be seen.

Leaves out the candidates themselves (gpu_cases.py) and the measuring (gpu_rows.py).
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import MemoryEstimate
from autotune.errors import NotPredicted
from autotune.machine.host import count_cores
from autotune.models.find import resolve_architecture
from autotune.predict.alternatives import Alternatives
from autotune.predict.memory import MemoryPredictor
from autotune.predict.time import CalibratedTime, calibrated_speed, predict_time
from autotune.predict.training import Training
from benchmarks.gpu.cases import SEED, Case, around, lengths_of, write_model, write_rows
from benchmarks.gpu.summary import DONE
from benchmarks.rows import Row

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuJob:
    """A case to predict; on a smaller card at the largest micro-batch that fits it, and with `wide` around that."""

    case: Case
    card_bytes: int | None = None
    wide: bool = False

    @property
    def asked(self) -> Case:
        """The case on its card, before its micro-batch is known."""
        return replace(self.case, card_bytes=self.card_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A case whose prediction was made. directory: of its model and its rows. estimate: None when there is none.

    time: from the GPU's measured rates, else from what is published of it; None where neither tells.
    """

    case: Case
    directory: Path
    estimate: MemoryEstimate | None
    time: CalibratedTime | None = None
    why: str = ""

    @property
    def predicted(self) -> Row | None:
        """The prediction as the file has it."""
        return None if self.estimate is None else {**predicted_of(self.estimate), **seconds_of(self.time)}


def waiting(cases: Iterable[Case], cards: Mapping[int, Sequence[Case]], rows: Sequence[Row]) -> list[GpuJob]:
    """The jobs that are not done: those of whose predictions some were not measured, or that have none.

    rows: of this device and these versions.
    """
    jobs = [GpuJob(case=case) for case in cases]
    for card_bytes, families in cards.items():
        jobs += [GpuJob(case=case, card_bytes=card_bytes, wide=place == 0) for place, case in enumerate(families)]
    there = {row["name"] for row in rows if row.get("outcome") in DONE}

    def is_done(job: GpuJob) -> bool:
        if job.card_bytes is None:
            return job.case.name in there
        of_job = (job.case.model, job.card_bytes)
        names = {row["name"] for row in rows if (row["case"]["model"], row["case"]["card_bytes"]) == of_job}
        return bool(names) and names <= there

    return [job for job in jobs if not is_done(job)]


def in_order(planned: Sequence[Planned], jobs: Sequence[GpuJob]) -> list[Planned]:
    """As the jobs stand, so that candidates of one worker follow each other; on a card what should not fit last."""
    place = {(job.case.model, job.card_bytes): number for number, job in reversed(list(enumerate(jobs)))}

    def key(plan: Planned) -> tuple[Any, ...]:
        case = plan.case
        fits = plan.estimate is None or plan.estimate.fits
        return case.card_bytes or 0, not fits, not case.candidate.tuned_allocator, place[case.model, case.card_bytes]

    return sorted(planned, key=key)


def predictions(
    jobs: Sequence[GpuJob], hardware: Hardware, home: Path, scratch: Path, progress: Progress, *, deadline: float
) -> Iterator[tuple[GpuJob, list[Planned]]]:
    """Predict every job, one process a core; in the order in which they are ready.

    deadline: as time.monotonic() counts. What is not predicted by then is left out; its traces are kept in `home`.
    """
    context = multiprocessing.get_context("spawn")  # no fork of a process that may have threads
    started, processes = time.monotonic(), max(1, min(count_cores(), len(jobs)))
    with ProcessPoolExecutor(processes, context, initializer=see_no_gpu) as pool:
        futures = {pool.submit(predict, job, hardware, home, scratch / str(n)): job for n, job in enumerate(jobs)}
        try:
            for count, future in enumerate(as_completed(futures, timeout=max(0.0, deadline - started)), 1):
                job = futures[future]
                yield job, _found(job, future, scratch)
                progress(f"predicted {count} of {len(jobs)} after {time.monotonic() - started:.0f} s")
        except TimeoutError:
            for process in (pool._processes or {}).values():
                process.kill()


def _found(job: GpuJob, future: Future[list[Planned]], scratch: Path) -> list[Planned]:
    try:
        return future.result()
    except Exception as error:  # a case that cannot be predicted is a row, too
        return [Planned(case=job.asked, directory=scratch, estimate=None, why=f"{type(error).__name__}: {error}")]


def see_no_gpu() -> None:
    """Keep this process off the GPU, and its libraries quiet: it traces, and others measure."""
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def predict(job: GpuJob, hardware: Hardware, home: Path, directory: Path) -> list[Planned]:
    """Predict a job's cases, and write the model and the rows that they train on."""
    case = job.case
    if job.card_bytes is not None:
        hardware = replace(hardware, memory_bytes=job.card_bytes, used_by_others_bytes=0)
    config, facts = resolve_architecture(case.model, None, home=home, progress=_silent)
    training = Training(
        config=config,
        facts=facts,
        lengths=lengths_of(case),
        recipe=case.recipe,
        loss="fused",
        hardware=hardware,
        seed=SEED,
    )
    predictor = MemoryPredictor.of(training, home=home, progress=_silent)
    speed = calibrated_speed(hardware)
    cases = [case]
    if job.card_bytes is not None:
        memory = predictor.estimate(predictor.worst_step(case.candidate))
        others = Alternatives(memory=predictor, is_legal=lambda candidate: True, progress=_silent)
        largest = others.largest_rows(case.candidate, memory).value
        cases = list(around(case, job.card_bytes, largest or 1, wide=job.wide))
    write_model(config, directory / "model")
    planned = []
    for number, each in enumerate(cases):
        place = directory / str(number)
        place.mkdir()
        (place / "model").symlink_to(directory / "model")
        write_rows(each, place / "rows")
        memory = predictor.estimate(predictor.worst_step(each.candidate))
        try:
            time = predict_time(each.candidate, batches=predictor.batches, laws=predictor.laws, speed=speed)
        except NotPredicted:  # the memory is, all the same
            time = None
        planned.append(Planned(case=each, directory=place, estimate=memory, time=time))
    return planned


def predicted_of(estimate: MemoryEstimate) -> Row:
    """What a trial's counters are held against: it loads and trains, and evaluates or saves nothing.

    Torch's own counters have the workspaces of cuBLAS in them; the context only the driver sees.
    """
    demand, room = estimate.demand, estimate.room
    allocated = max(demand.phases["training"], demand.phases["loading"]) + room.workspace_bytes
    reserved = max(demand.reserved_bytes + room.workspace_bytes, allocated)
    return {
        "allocated_bytes": allocated,
        "reserved_bytes": reserved,
        "device_bytes": reserved + room.context_bytes,
        "needed_bytes": estimate.needed_bytes,
        "limit_bytes": room.limit_bytes,
        "context_bytes": room.context_bytes,
        "workspace_bytes": room.workspace_bytes,
        "fits": estimate.fits,
        "phase": demand.peak.phase,
        "op": demand.peak.op,
        "items": dict(demand.peak.items),
    }


def seconds_of(time: CalibratedTime | None) -> Row:
    """What the seconds of a step are held against."""
    if time is None:
        return {"step_s": None}
    found = time.estimate
    return {"step_s": found.step_s, "interval_s": list(time.interval_s), "spent": dict(found.spent)}


def _silent(line: str) -> None:
    """What a process that predicts has to tell is of no interest here."""
