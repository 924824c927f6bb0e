"""The measuring process: it answers, and what goes wrong in it is said in words."""

import os
import signal
import sys
import time
from typing import Any

import psutil
import pytest
import torch

from autotune.errors import AutotuneError
from autotune.machine import process
from autotune.machine.operations import Point, probed_cpu
from autotune.machine.process import (
    Measurement,
    Request,
    _context_bytes,
    _measure,
    measure_device,
    measure_in_process,
)
from tests.fakes_nvml import GIB, FakeGpu, FakeNvml

CPU = Request(uuid=None, cores=1, free_bytes=2**31, budget_s=1.0)


def ignore(line: str) -> None:
    pass


def few_points(kind: str) -> list[Point]:
    return [
        Point(what="matmul", dtype="bfloat16", shape=(64, 64, 64)),
        Point(what="nf4_matmul", dtype="bfloat16", shape=(8, 64, 128)),
        Point(what="copy", dtype="float32", shape=(1000,)),
    ]


def measure_few_points(request: Request, *, progress: Any) -> Measurement:
    """Runs in the child: the real measuring, of three small rates."""
    process.list_points = few_points  # type: ignore[assignment]
    print("a library talks")
    return measure_device(request, progress=progress)


def hang(request: Request, *, progress: Any) -> None:
    time.sleep(600)


def say_and_hang(request: Request, *, progress: Any) -> None:
    progress("begun")
    time.sleep(600)


def leave(request: Request, *, progress: Any) -> None:
    print("half", file=sys.stderr)
    os._exit(1)


def be_killed(request: Request, *, progress: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(request: Request, *, progress: Any) -> None:
    raise RuntimeError("no kernel image")


def children() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]


def test_a_real_measurement_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates cross the process border unchanged, and the process is gone."""
    before = children()
    monkeypatch.setattr(process, "measure_device", measure_few_points)
    lines: list[str] = []
    measured = measure_in_process(Request(uuid=None, cores=1, free_bytes=2**31, budget_s=600), progress=lines.append)
    assert [(p.what, p.shape) for p in measured.rates.points] == [(p.what, p.shape) for p in few_points("cpu")]
    assert all(point.per_second > 0 for point in measured.rates.points)
    assert (measured.memory_bytes, measured.context_bytes) == (None, None)
    assert lines[0] == "round 1 of 5, 3 rates"
    assert children() == before


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (hang, "measuring took more than 8 s"),
        (leave, "ended with code 1: half"),
        (be_killed, "was killed: most likely .* out of memory"),
        (fail, "measuring failed: RuntimeError: no kernel image"),
    ],
)
def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch, what: Any, words: str) -> None:
    """It is ended in time, with the reason, and nothing is left of it."""
    before = children()
    monkeypatch.setattr(process, "measure_device", what)
    with pytest.raises(AutotuneError, match=words):
        measure_in_process(CPU, progress=ignore, limit_s=8.0 if what is hang else 120.0)
    assert children() == before


def test_ctrl_c_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is raised by progress: nothing is left to disturb the next measurement."""
    before = children()
    monkeypatch.setattr(process, "measure_device", say_and_hang)

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_in_process(CPU, progress=interrupt)
    assert children() == before


def test_a_torch_without_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process, asked for a GPU on a machine whose NVML has none: no traceback, no fall-back."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(AutotuneError, match=r"measuring failed: .*"):
        measure_in_process(Request(uuid="GPU-none", cores=1, free_bytes=2**31), progress=ignore)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu(uuid="GPU-a", used=2 * GIB)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(gpu))
    return gpu


def test_context_is_what_torch_did_not_allocate(gpu: FakeGpu) -> None:
    """From the list of processes, else from what the device holds more than before."""
    gpu.used = 3 * GIB
    assert _context_bytes("GPU-a", 2 * GIB, GIB // 4) == GIB * 3 // 4
    gpu.processes = {os.getpid(): GIB}
    assert _context_bytes("GPU-a", 2 * GIB, GIB // 4) == GIB * 3 // 4
    gpu.used = 50 * GIB  # somebody else allocates
    assert _context_bytes("GPU-a", 2 * GIB, GIB // 4) == GIB * 3 // 4


def test_a_context_that_cannot_be_told_is_unknown(gpu: FakeGpu) -> None:
    """Another process came or went meanwhile: no figure is better than a wrong one."""
    for used in (1 * GIB, 60 * GIB):
        gpu.used = used
        assert _context_bytes("GPU-a", 2 * GIB, GIB // 4) is None


def test_the_gpu_s_side_with_torch_s_calls_faked(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> None:
    """What CUDA says reaches the measurement; the timing code is the CPU's, behind the same interface."""
    asked: dict[str, Any] = {}

    def fake_init() -> None:
        gpu.used += GIB // 2  # the context

    def fake_points(kind: str, *, tf32: bool) -> list[Point]:
        asked.update(kind=kind, tf32=tf32)
        return [Point(what="host_to_device_pinned", dtype="uint8", shape=(100,))]

    monkeypatch.setattr(torch.cuda, "init", fake_init)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 * GIB, 139 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(process, "_workspace_bytes", lambda: 8)
    monkeypatch.setattr(process, "probed_cuda", lambda limit: asked.update(limit=limit) or probed_cpu(limit))
    monkeypatch.setattr(process, "list_points", fake_points)
    request = Request(uuid="GPU-a", cores=1, free_bytes=1)
    measured = _measure(request, started=time.perf_counter(), progress=ignore)
    assert (measured.memory_bytes, measured.compute_capability) == (139 * GIB, (7, 5))
    assert (measured.context_bytes, measured.workspace_bytes) == (GIB // 2, 8)
    assert asked == {"kind": "cuda", "tf32": False, "limit": 100 * GIB // 8}
    assert len(measured.rates.points) == 1
