"""The measuring process: it answers, and whatever happens to it or to its parent, nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from autotune.errors import AutotuneError
from autotune.machine import process
from autotune.machine.operations import Point, cpu_bench
from autotune.machine.process import Request, _context_bytes, _measure, measure_in_process
from tests.fakes_nvml import GIB, FakeGpu, FakeNvml

CPU = Request(uuid=None, cores=1, free_bytes=2**31, budget_s=1.0)


def ignore(line: str) -> None:
    pass


def starting(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the process run other code: what it is, and what it says, is the edge here."""
    monkeypatch.setattr(process, "_START", textwrap.dedent(code))


def children() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]


def test_a_real_measurement_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates cross the process border unchanged, this process never imports what that one needs, and it is gone."""
    before = children()
    starting(
        monkeypatch,
        """
        import json, sys; sys.path[:] = json.loads(sys.argv[1])
        from autotune.machine import process, operations
        process.list_points = lambda kind: [
            operations.Point(what=what, dtype="bfloat16", shape=shape)
            for what, shape in (("matmul", (64, 64, 64)), ("nf4_matmul", (8, 64, 128)), ("copy", (1000,)))
        ]
        measure = process._measure
        process._measure = lambda *args, **kwargs: print("a library talks") or measure(*args, **kwargs)
        process.main()
        """,
    )
    lines: list[str] = []
    measured = measure_in_process(Request(uuid=None, cores=1, free_bytes=2**31, budget_s=600), progress=lines.append)
    assert [(p.what, p.shape) for p in measured.rates.points] == [
        ("matmul", (64, 64, 64)),
        ("nf4_matmul", (8, 64, 128)),
        ("copy", (1000,)),
    ]
    assert all(point.per_second > 0 for point in measured.rates.points)
    assert (measured.memory_bytes, measured.context_bytes) == (None, None)
    assert lines[0] == "round 1 of 5, 3 rates"
    assert children() == before


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """In time, and with the reason."""
    before = children()
    starting(monkeypatch, "import time; time.sleep(600)")
    started = time.monotonic()
    with pytest.raises(AutotuneError, match="more than 1 s"):
        measure_in_process(CPU, progress=ignore, limit_s=1.0)
    assert time.monotonic() - started < 30
    assert children() == before


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('half', file=sys.stderr); sys.exit('the end')", "ended with code 1: the end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed: most likely .* out of memory"),
        ("""print('{"failed": "RuntimeError: no kernel image"}')""", "measuring failed: RuntimeError: no kernel image"),
        ("""print('{"progress": "round 1"}')""", "ended with code 0: it said nothing"),
    ],
)
def test_a_process_that_fails(monkeypatch: pytest.MonkeyPatch, code: str, words: str) -> None:
    """A clean failure with the last words of the process."""
    starting(monkeypatch, code)
    with pytest.raises(AutotuneError, match=words):
        measure_in_process(CPU, progress=ignore)


def test_a_torch_without_the_gpu_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real process, asked for a GPU on a machine whose NVML has none: no traceback, no fall-back."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(AutotuneError, match=r"measuring failed: .*"):
        measure_in_process(Request(uuid="GPU-none", cores=1, free_bytes=2**31), progress=ignore)


def test_progress_that_raises_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the parent, say."""
    before = children()
    starting(monkeypatch, """import time; print('{"progress": "x"}', flush=True); time.sleep(600)""")

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_in_process(CPU, progress=interrupt)
    assert children() == before


def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed, which runs no clean-up."""
    begun = tmp_path / "begun"
    child_code = f"""if True:
        import json, pathlib, sys, time; sys.path[:] = json.loads(sys.argv[1])
        from autotune.machine import process
        process._measure = lambda *args, **kwargs: (pathlib.Path({str(begun)!r}).touch(), time.sleep(600))
        process.main()
    """
    code = f"""if True:
        from autotune.machine import process
        process._START = {child_code!r}
        process.measure_in_process(process.Request(uuid=None, cores=1, free_bytes=1), progress=print)
    """
    parent = subprocess.Popen([sys.executable, "-c", code])
    child = _wait_for(lambda: next(iter(psutil.Process(parent.pid).children()), None))
    _wait_for(begun.exists)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait_for(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def _wait_for(condition: Any) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


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
    """What CUDA says reaches the measurement; the timing code is the CPU's, behind the same bench."""
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
    monkeypatch.setattr(process, "cuda_bench", lambda limit: asked.update(limit=limit) or cpu_bench(limit))
    monkeypatch.setattr(process, "list_points", fake_points)
    request = Request(uuid="GPU-a", cores=1, free_bytes=1)
    measured = _measure(request, started=time.perf_counter(), progress=ignore)
    assert (measured.memory_bytes, measured.compute_capability) == (139 * GIB, (7, 5))
    assert (measured.context_bytes, measured.workspace_bytes) == (GIB // 2, 8)
    assert asked == {"kind": "cuda", "tf32": False, "limit": 100 * GIB // 8}
    assert len(measured.rates.points) == 1
