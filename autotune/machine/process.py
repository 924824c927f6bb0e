"""Measuring a device in a process of its own, so that the only CUDA context of a probe goes away with it.

Leaves out how such a process is started and followed (autotune/child.py), what it times (operations.py) and how it
times (rates.py).
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from autotune.child import Unanswered, ask
from autotune.errors import AutotuneError
from autotune.machine import nvml
from autotune.machine.malloc import keep_pages
from autotune.machine.operations import list_points, probed_cpu, probed_cuda
from autotune.machine.rates import Rates, measure, prepare_points

BUDGET_S = 45.0
PREPARE_SHARE = 0.4  # of the budget left once the libraries are imported: for running each operation a first time
LIMIT_S = 120.0  # after which the process is killed
MEMORY_SHARE = 8  # the tensors of one operation take at most this part of the free memory
CONTEXT_LIMIT_BYTES = 4 * 2**30  # more than any CUDA context: a larger figure holds memory of another process


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to measure.

    uuid: of the GPU, None for the CPU. free_bytes: of the host's memory.
    budget_s: no round of measurements begins that would end later than this, except the first two.
    """

    uuid: str | None
    cores: int
    free_bytes: int
    budget_s: float = BUDGET_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was measured. The first four fields are None on a CPU."""

    memory_bytes: int | None
    compute_capability: tuple[int, int] | None
    context_bytes: int | None
    workspace_bytes: int | None
    rates: Rates
    wall_s: float


def measure_in_process(request: Request, *, progress: Callable[[str], None], limit_s: float = LIMIT_S) -> Measurement:
    """Measure in a new process and wait for it. Raises AutotuneError when it fails, dies or takes too long."""
    try:
        measured: Measurement = ask(
            measure_device, request, variables=_variables(request), progress=progress, limit_s=limit_s
        )
    except Unanswered as ended:
        advice = f"; see what nvidia-smi says, or {nvml.TO_USE_THE_CPU}" if request.uuid else ""
        raise AutotuneError(_explain(ended, limit_s) + advice) from None
    return measured


def measure_device(request: Request, *, progress: Callable[[str], None]) -> Measurement:
    """Measure the only device that this process sees. Raises whatever torch and NVML raise."""
    started = time.perf_counter()
    logging.disable(logging.WARNING)  # bitsandbytes 0.50 warns at every int8 product in bf16, which takes time
    return _measure(request, started=started, progress=progress)


def _measure(request: Request, *, started: float, progress: Callable[[str], None]) -> Measurement:
    import torch

    total = capability = workspace_bytes = context_bytes = None
    if request.uuid is None:
        keep_pages()  # so that operators are timed without the kernel's zeroing of memory
        torch.set_num_threads(min(torch.get_num_threads(), request.cores))
        probed, points, used_before = probed_cpu(request.free_bytes // MEMORY_SHARE), list_points("cpu"), 0
    else:
        used_before = nvml.read_memory(request.uuid).used
        torch.cuda.init()  # type: ignore[no-untyped-call]
        free, total = torch.cuda.mem_get_info()
        capability = torch.cuda.get_device_capability()
        workspace_bytes = _workspace_bytes()
        probed, points = probed_cuda(free // MEMORY_SHARE), list_points("cuda", tf32=capability >= (8, 0))
    with suppress(ImportError, RuntimeError):  # it takes seconds; if it fails, so will its layers, which say why
        import bitsandbytes  # noqa: F401
    deadline = started + request.budget_s
    until = time.perf_counter() + PREPARE_SHARE * (deadline - time.perf_counter())
    timed = prepare_points(points, probed, until=until, progress=progress)
    if request.uuid is not None:
        torch.cuda.synchronize()
        context_bytes = _context_bytes(request.uuid, used_before, torch.cuda.memory_reserved())
    rates = measure(timed, probed, deadline=deadline, progress=progress)
    return Measurement(
        memory_bytes=total,
        compute_capability=capability,
        context_bytes=context_bytes,
        workspace_bytes=workspace_bytes,
        rates=rates,
        wall_s=time.perf_counter() - started,
    )


def _variables(request: Request) -> Mapping[str, str]:
    """Environment variables of the measuring process.

    It sees one device. Without the hub, bitsandbytes does not look for kernels there, as it does when the package
    `kernels` is installed.
    """
    return {"CUDA_VISIBLE_DEVICES": request.uuid or "", "HF_HUB_OFFLINE": "1"}


def _explain(ended: Unanswered, limit_s: float) -> str:
    if ended.reason is not None:
        return f"measuring failed: {ended.reason}"
    if ended.timed_out:
        return f"measuring took more than {limit_s:.0f} s: stop what else runs on this machine and try again"
    if ended.code == -9:
        return "measuring was killed: most likely the kernel or a control group ran out of memory; free some"
    last = ended.last_lines[-1] if ended.last_lines else "it said nothing"
    return f"the measuring process ended with code {ended.code}: {last}"


def _workspace_bytes() -> int:
    """Bytes of torch's allocator that cuBLAS and cuBLASLt keep once a product of each kind has run."""
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
    """Bytes of device memory that this process takes outside torch's allocator; None when that is not known.

    NVML lists the memory of each process. Where it does not, the growth of the device's used memory stands in.
    """
    used = nvml.process_bytes(uuid, os.getpid())
    if used is None:
        used = nvml.read_memory(uuid).used - used_before
    context = used - torch_bytes
    return context if 0 < context <= CONTEXT_LIMIT_BYTES else None
