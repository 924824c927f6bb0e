"""The process that measures a device, both ends of it: what it does, and how probe.py starts it and listens.

It is short-lived, so that the only CUDA context of a probe goes away with it. It tells its news as lines of JSON on
what was its standard output, {"progress": text}, then {"result": ...} or {"failed": text}. It ends when its standard
input closes, so it never outlives its parent, and the parent ends it when it takes too long.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from autotune.core.hardware import RatePoint
from autotune.errors import AutotuneError
from autotune.machine import nvml
from autotune.machine.malloc import keep_pages
from autotune.machine.operations import cpu_bench, cuda_bench, list_points
from autotune.machine.rates import Rates, measure, prepare_jobs

BUDGET_S = 45.0
PREPARE_SHARE = 0.4  # of the budget that is left once the libraries are there, for running everything a first time
LIMIT_S = 120.0  # then the process is ended
MEMORY_SHARE = 8  # the tensors of one operation take at most this part of the free memory
CONTEXT_LIMIT_BYTES = 4 * 2**30  # more than any CUDA context: then somebody else took memory meanwhile

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from autotune.machine.process import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure. uuid: of the GPU, None for the CPU. free_bytes: of the host's memory.

    budget_s: no round of measurements begins that would end later, but two there are always.
    """

    uuid: str | None
    cores: int
    free_bytes: int
    budget_s: float = BUDGET_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the process found out; the first four are None on a CPU."""

    memory_bytes: int | None
    compute_capability: tuple[int, int] | None
    context_bytes: int | None
    workspace_bytes: int | None
    rates: Rates
    wall_s: float


def measure_in_process(request: Request, *, progress: Callable[[str], None], limit_s: float = LIMIT_S) -> Measurement:
    """Measure in a new process and wait for it. Raises AutotuneError when it fails, dies or takes too long."""
    command = [sys.executable, "-c", _START, json.dumps(sys.path), json.dumps(asdict(request))]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=_environment(request)
        )
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        started, said = time.monotonic(), {}
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith(b"{"):
                    continue  # a start-up hook of this Python talks
                said = json.loads(line)
                if "progress" not in said:
                    break
                progress(said["progress"])
            else:
                process.wait()
        finally:
            timer.cancel()
            process.kill()
            with process:  # closes the pipes and reaps it
                pass
        if "result" in said:
            return _measurement(said["result"])
        why = _explain(said.get("failed"), process.returncode, time.monotonic() - started, limit_s, errors)
        advice = f"; see what nvidia-smi says, or {nvml.TO_USE_THE_CPU}" if request.uuid else ""
        raise AutotuneError(why + advice)


def _environment(request: Request) -> dict[str, str]:
    """What must be set before the process starts.

    One device is to be seen, and bitsandbytes must not look for kernels on the hub (it does when `kernels` is
    installed).
    """
    return {**os.environ, "CUDA_VISIBLE_DEVICES": request.uuid or "", "HF_HUB_OFFLINE": "1"}


def _measurement(values: Mapping[str, Any]) -> Measurement:
    rates = dict(values["rates"])
    points = tuple(RatePoint(**{**point, "shape": tuple(point["shape"])}) for point in rates.pop("points"))
    capability = values["compute_capability"]
    return Measurement(
        **{
            **values,
            "rates": Rates(points=points, **rates),
            "compute_capability": None if capability is None else (capability[0], capability[1]),
        }
    )


def _explain(failed: str | None, code: int, seconds: float, limit_s: float, errors: IO[bytes]) -> str:
    errors.seek(0)
    last = next((line for line in reversed(errors.read().decode(errors="replace").splitlines()) if line.strip()), "")
    if failed is not None:
        return f"measuring failed: {failed}"
    if seconds >= limit_s:
        return f"measuring took more than {limit_s:.0f} s: stop what else runs on this machine and try again"
    if code == -9:
        return "measuring was killed: most likely the kernel or a control group ran out of memory; free some"
    return f"the measuring process ended with code {code}: {last.strip() or 'it said nothing'}"


def main() -> None:
    """Run the measuring process: argv[2] is the Request."""
    started = time.perf_counter()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes with the errors
    logging.disable(logging.WARNING)  # bitsandbytes 0.50 warns at every int8 product in bf16, which takes time

    def send(**news: Any) -> None:
        channel.write(json.dumps(news) + "\n")
        channel.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        request = Request(**json.loads(sys.argv[2]))
        result = _measure(request, started=started, progress=lambda text: send(progress=text))
    except AutotuneError as error:
        send(failed=str(error))
        raise
    except Exception as error:
        send(failed=f"{type(error).__name__}: {error}")
        raise
    send(result=asdict(result))


def _end_with_parent() -> None:
    os.read(0, 1)  # returns when the parent closes its end, or dies
    os._exit(1)


def _measure(request: Request, *, started: float, progress: Callable[[str], None]) -> Measurement:
    import torch

    total = capability = workspace_bytes = context_bytes = None
    if request.uuid is None:
        keep_pages()  # so that operators are timed, and not the kernel's zeroing of memory
        torch.set_num_threads(min(torch.get_num_threads(), request.cores))
        bench, points, used_before = cpu_bench(request.free_bytes // MEMORY_SHARE), list_points("cpu"), 0
    else:
        used_before = nvml.read_memory(request.uuid).used
        torch.cuda.init()  # type: ignore[no-untyped-call]
        free, total = torch.cuda.mem_get_info()
        capability = torch.cuda.get_device_capability()
        workspace_bytes = _workspace_bytes()
        bench, points = cuda_bench(free // MEMORY_SHARE), list_points("cuda", tf32=capability >= (8, 0))
    with suppress(ImportError, RuntimeError):  # takes seconds; what fails here fails again, with its layers
        import bitsandbytes  # noqa: F401
    deadline = started + request.budget_s
    until = time.perf_counter() + PREPARE_SHARE * (deadline - time.perf_counter())
    jobs = prepare_jobs(points, bench, until=until, progress=progress)
    if request.uuid is not None:
        torch.cuda.synchronize()
        context_bytes = _context_bytes(request.uuid, used_before, torch.cuda.memory_reserved())
    rates = measure(jobs, bench, deadline=deadline, progress=progress)
    return Measurement(
        memory_bytes=total,
        compute_capability=capability,
        context_bytes=context_bytes,
        workspace_bytes=workspace_bytes,
        rates=rates,
        wall_s=time.perf_counter() - started,
    )


def _workspace_bytes() -> int:
    """What cuBLAS and cuBLASLt keep of torch's allocator once a product of each kind has run."""
    import torch

    before = torch.cuda.memory_allocated()
    x, bias = (
        torch.ones(512, 512, device="cuda", dtype=torch.float16),
        torch.ones(512, device="cuda", dtype=torch.float16),
    )
    torch.mm(x, x)
    torch.nn.functional.linear(x, x, bias)
    torch.cuda.synchronize()
    del x, bias
    return torch.cuda.memory_allocated() - before


def _context_bytes(uuid: str, used_before: int, torch_bytes: int) -> int | None:
    """This process's device memory beside torch's: as NVML lists it, else what the device holds more than before."""
    used = nvml.process_bytes(uuid, os.getpid())
    if used is None:
        used = nvml.read_memory(uuid).used - used_before
    context = used - torch_bytes
    return context if 0 < context <= CONTEXT_LIMIT_BYTES else None
