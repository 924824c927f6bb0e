"""benchmarks/gpu/measure.py: predictions come first, what was measured stands, and the budget leaves the rest."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.memory.estimate import Demand, MemoryEstimate, Room
from autotune.core.memory.law import Peak
from autotune.core.outcome import Crashed, Outcome, OutOfMemory, TimedOut
from benchmarks.gpu import measure
from benchmarks.gpu.cases import CPU_CASES, make
from benchmarks.gpu.measure import Watch, measure_all, untried
from benchmarks.gpu.predictions import GpuJob, PredictedCase, waiting
from benchmarks.gpu.summaries import summary
from benchmarks.machines import plain_cpu
from benchmarks.rows import RowFile, read
from tests.stand_ins import measured

GIB = 2**30
ABOUT = {"device": "a GPU", "driver": "1", "versions": {"torch": "1"}, "commit": "c"}


def rows_in(folder: Path) -> RowFile:
    """A file of rows of one device."""
    return RowFile(path=folder / "rows.jsonl", about=ABOUT, identity=("device", "versions"))


def estimate(needed: int, limit: int = 100 * GIB) -> MemoryEstimate:
    """A prediction that a candidate needs `needed` bytes, without a context."""
    peak = Peak(bytes=needed, phase="backward", op="mm", items={"weights": needed})
    demand = Demand(peak=peak, phases={"training": needed, "loading": 1}, reserved_bytes=needed, allowance_bytes=0,
                    host_items={})  # fmt: skip
    return MemoryEstimate(
        demand=demand, room=Room(limit_bytes=limit, context_bytes=0, workspace_bytes=0, host_free_bytes=None)
    )


def predicted_cases(directory: Path, count: int) -> list[PredictedCase]:
    cases = [make("m", "lora", rows, 512) for rows in range(1, count + 1)]
    return [PredictedCase(case=case, directory=directory, estimate=estimate(10 * GIB)) for case in cases]


class Scripted:
    """Workers that answer with given outcomes, one after another."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.tasks: list[Any] = []

    def perform(self, task: Any, *, limit_s: float | None, on_event: Any = lambda event: None) -> Outcome:
        on_event({"event": "step"})
        self.tasks.append(task)
        return self.outcomes.pop(0)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """A GPU on which others hold 1 GiB, and the driver names no process."""
    used: Iterator[int] = iter([GIB, *[13 * GIB] * 99])
    monkeypatch.setattr(measure.nvml, "read_memory", lambda uuid: type("M", (), {"used": next(used)}))
    monkeypatch.setattr(measure.nvml, "process_bytes", lambda uuid, pid: None)
    return Watch("GPU-0")


OOM = OutOfMemory(message="CUDA out of memory", peak_bytes=None, wall_s=1.0)
RAN = replace(measured(), peak_bytes=8 * GIB, reserved_bytes=16 * GIB)


def test_a_row_holds_both_figures_and_an_out_of_memory_is_a_row(tmp_path: Path, watch: Watch) -> None:
    """What was measured stands beside what was predicted; running out of memory is an answer too."""
    file, workers = rows_in(tmp_path), Scripted(RAN, OOM)
    left = measure_all(predicted_cases(tmp_path, 2), workers, watch=watch, file=file,
                       deadline=time.monotonic() + 999)  # fmt: skip
    ran, failed = read(file.path)
    assert left == []
    assert ran["predicted"]["allocated_bytes"] == 10 * GIB
    assert ran["measured"]["device_bytes"] == 12 * GIB
    assert ran["errors"] == {"allocated_bytes": 0.25, "reserved_bytes": -0.375, "device_bytes": 10 / 12 - 1}
    assert (failed["outcome"], failed["measured"], failed["errors"]) == ("out_of_memory", None, {})
    assert summary([ran, failed])["missed"] == [failed["name"]]
    assert all(task.random_weights and task.allocator_limit_bytes is None for task in workers.tasks)


def test_a_card_limits_the_allocator(tmp_path: Path, watch: Watch) -> None:
    """On a card the allocator has its memory less the context, and what should not fit is tried all the same."""
    [one] = predicted_cases(tmp_path, 1)
    room = Room(limit_bytes=9 * GIB, context_bytes=GIB, workspace_bytes=0, host_free_bytes=None)
    small = MemoryEstimate(demand=estimate(10 * GIB).demand, room=room)
    one = replace(one, case=replace(one.case, card_bytes=10 * GIB), estimate=small)
    workers = Scripted(OOM)
    measure_all([one], workers, watch=watch, file=rows_in(tmp_path),
                deadline=time.monotonic() + 999)  # fmt: skip
    assert workers.tasks[0].allocator_limit_bytes == 9 * GIB
    assert summary(read(tmp_path / "rows.jsonl"))["missed"] == []


def test_what_is_not_predicted_to_fit_the_device_is_not_tried(tmp_path: Path, watch: Watch) -> None:
    """Nothing is learnt from running the whole device out of memory."""
    [one] = predicted_cases(tmp_path, 1)
    unfit, unknown = (replace(one, estimate=each) for each in (estimate(101 * GIB), None))
    workers = Scripted()
    assert measure_all([unfit, unknown], workers, watch=watch, file=rows_in(tmp_path),
                       deadline=time.monotonic() + 999) == []  # fmt: skip
    assert workers.tasks == []


def test_the_budget_leaves_the_rest_for_another_run(tmp_path: Path, watch: Watch) -> None:
    """Nothing is begun when time is up, and what the budget cut off is not written as if the candidate were slow."""
    file, waits = rows_in(tmp_path), predicted_cases(tmp_path, 2)
    over = measure_all(waits, Scripted(), watch=watch, file=file, deadline=time.monotonic())  # fmt: skip
    late = TimedOut(limit_s=30.0, wall_s=30.0)
    cut = measure_all(waits[:1], Scripted(late), watch=watch, file=file,
                      deadline=time.monotonic() + 40)  # fmt: skip
    assert over == [one.case.name for one in waits]
    assert cut == over[:1]
    assert not file.path.exists()


def test_predicting_ends_with_the_budget(tmp_path: Path, home: Path) -> None:
    """What was not predicted in time is left, too."""
    result = measure.run(plain_cpu(), out=tmp_path, home=home, deadline=time.monotonic(), first=None, every=1,
                          commit="c", on_cpu=True)  # fmt: skip
    assert result["left"] == [case.name for case in CPU_CASES]
    assert not (tmp_path / measure.FILE).exists()


def test_what_is_there_is_not_done_again(tmp_path: Path, watch: Watch) -> None:
    """A case is done when it was measured or out of memory on this device with these versions; a crash is not."""
    file, waits = rows_in(tmp_path), predicted_cases(tmp_path, 3)
    crash = Crashed(message="lost", log_tail="", wall_s=1.0)
    measure_all(waits, Scripted(RAN, OOM, crash), watch=watch, file=file,
                deadline=time.monotonic() + 999)  # fmt: skip
    with file.path.open("a") as stream:
        stream.write('{"cut off')
    cases = [one.case for one in waits]
    assert waiting(cases, {}, file.own()) == [GpuJob(case=cases[2])]
    file.add({"name": "next"})
    assert file.own()[-1]["name"] == "next"
    other = replace(file, about={**ABOUT, "versions": {"torch": "2"}})
    assert [job.case for job in waiting(cases, {}, other.own())] == cases


def test_what_is_not_tried_is_told() -> None:
    """A case that nothing foretells, or that should not fit the device, and was not measured after all."""
    fits, case = {"fits": True}, {"card_bytes": None}
    rows = [
        {"kind": "prediction", "name": "unknown", "case": case, "predicted": None, "why": "NotPredicted: so"},
        {"kind": "prediction", "name": "large", "case": case, "predicted": {"fits": False}},
        {"kind": "prediction", "name": "left", "case": case, "predicted": fits},
        {"kind": "prediction", "name": "beyond a card", "case": {"card_bytes": 1}, "predicted": {"fits": False}},
        {"kind": "prediction", "name": "known now", "case": case, "predicted": None},
        {"kind": "measurement", "name": "known now", "case": case, "predicted": fits},
    ]
    assert untried(rows) == [
        {"name": "unknown", "why": "NotPredicted: so"},
        {"name": "large", "why": "it is not predicted to fit"},
    ]
