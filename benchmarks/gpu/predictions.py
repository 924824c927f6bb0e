"""The predictions of `gpu.suite steps`, made by processes that see no GPU, before anything is measured.

Leaves out the cases themselves (cases.py) and measuring (measure.py).
"""

import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from benchmarks.command import say
from benchmarks.gpu.cases import SEED, Case, around, lengths_of, write_model, write_rows
from benchmarks.pools import be_quiet
from benchmarks.rows import Row

DONE = ("measured", "out_of_memory")  # outcomes that answer the question; cases with any other are tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuJob:
    """One or more cases to predict: `case` itself, or on a smaller card the case at the largest micro-batch that fits.

    wide: also a quarter below and beyond that micro-batch.
    """

    case: Case
    card_bytes: int | None = None
    wide: bool = False

    @property
    def asked(self) -> Case:
        """Return the case on its card, before its micro-batch is known."""
        return replace(self.case, card_bytes=self.card_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedCase:
    """A case with its prediction. directory: its model and its rows. estimate: None where there is no prediction.

    time: from the GPU's measured rates, else from what is published of it; None where neither suffices. why: there is
    no prediction.
    """

    case: Case
    directory: Path
    estimate: MemoryEstimate | None
    time: CalibratedTime | None = None
    why: str = ""

    @property
    def predicted(self) -> Row | None:
        """Return the prediction as it stands in a row."""
        return None if self.estimate is None else {**predicted_of(self.estimate), **seconds_of(self.time)}


def waiting(cases: Iterable[Case], cards: Mapping[int, Sequence[Case]], rows: Sequence[Row]) -> list[GpuJob]:
    """Return the jobs that are not done: without predictions, or with one that is not measured.

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


def in_order(found: Sequence[PredictedCase], jobs: Sequence[GpuJob]) -> list[PredictedCase]:
    """Sort cases as their jobs stand, so that one worker trains many; on a card, what should not fit comes last."""
    place = {(job.case.model, job.card_bytes): number for number, job in reversed(list(enumerate(jobs)))}

    def key(one: PredictedCase) -> tuple[Any, ...]:
        case, fits = one.case, one.estimate is None or one.estimate.fits
        return case.card_bytes or 0, not fits, not case.candidate.tuned_allocator, place[case.model, case.card_bytes]

    return sorted(found, key=key)


def predictions(
    jobs: Sequence[GpuJob], hardware: Hardware, home: Path, scratch: Path, *, deadline: float
) -> Iterator[tuple[GpuJob, list[PredictedCase]]]:
    """Predict every job with one process a core; yield each when it is ready.

    deadline: as time.monotonic() counts. A job that is not predicted by then is left out; its traces stay in `home`.
    """
    context = multiprocessing.get_context("spawn")  # a process that may have threads must not be forked
    started, processes = time.monotonic(), max(1, min(count_cores(), len(jobs)))
    with ProcessPoolExecutor(processes, context, initializer=see_no_gpu) as pool:
        futures = {pool.submit(predict, job, hardware, home, scratch / str(n)): job for n, job in enumerate(jobs)}
        try:
            for count, future in enumerate(as_completed(futures, timeout=max(0.0, deadline - started)), 1):
                job = futures[future]
                yield job, _found(job, future, scratch)
                say(f"predicted {count} of {len(jobs)} after {time.monotonic() - started:.0f} s")
        except TimeoutError:
            for process in (pool._processes or {}).values():
                process.kill()


def _found(job: GpuJob, future: Future[list[PredictedCase]], scratch: Path) -> list[PredictedCase]:
    try:
        return future.result()
    except Exception as error:  # a case that cannot be predicted has a row, too
        why = f"{type(error).__name__}: {error}"
        return [PredictedCase(case=job.asked, directory=scratch, estimate=None, why=why)]


def see_no_gpu() -> None:
    """Keep this process off the GPU and quiet: it traces, and another one measures."""
    os.environ.update({"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    be_quiet()


def predict(job: GpuJob, hardware: Hardware, home: Path, directory: Path) -> list[PredictedCase]:
    """Predict a job's cases, and write the model and the rows that they train on."""
    case = job.case
    if job.card_bytes is not None:
        hardware = replace(hardware, memory_bytes=job.card_bytes, used_by_others_bytes=0)
    config, facts = resolve_architecture(case.model, None, home=home, progress=say)
    training = Training(
        config=config,
        facts=facts,
        lengths=lengths_of(case),
        recipe=case.recipe,
        loss="fused",
        hardware=hardware,
        seed=SEED,
    )
    predictor = MemoryPredictor.of(training, home=home, progress=say)
    speed = calibrated_speed(hardware)
    cases = [case]
    if job.card_bytes is not None:
        memory = predictor.estimate(predictor.worst_step(case.candidate))
        others = Alternatives(memory=predictor, is_legal=lambda candidate: True, progress=say)
        largest = others.largest_rows(case.candidate, memory).value
        cases = list(around(case, job.card_bytes, largest or 1, wide=job.wide))
    write_model(config, directory / "model")
    found = []
    for number, each in enumerate(cases):
        place = directory / str(number)
        place.mkdir()
        (place / "model").symlink_to(directory / "model")
        write_rows(each, place / "rows")
        memory = predictor.estimate(predictor.worst_step(each.candidate))
        try:
            time = predict_time(each.candidate, batches=predictor.batches, laws=predictor.laws, speed=speed)
        except NotPredicted:  # memory is predicted all the same
            time = None
        found.append(PredictedCase(case=each, directory=place, estimate=memory, time=time))
    return found


def predicted_of(estimate: MemoryEstimate) -> Row:
    """Return what is compared with the counters of a trial, which loads and trains but neither evaluates nor saves.

    Torch's own counters include the workspaces of cuBLAS; only the driver sees the context.
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
    """Return what is compared with the seconds of a step."""
    if time is None:
        return {"step_s": None}
    found = time.estimate
    return {"step_s": found.step_s, "interval_s": list(time.interval_s), "spent": dict(found.spent)}
