"""A stand-in for the module `pynvml`: machines with GPUs that are whole, cut into slices, lost, or too old to answer.

Constants and exceptions are the real module's. A function that the fake does not have is an AttributeError, so a
test never reaches a real driver.
"""

import types
from dataclasses import dataclass, field
from typing import Any

import pynvml

GIB = 2**30


@dataclass(eq=False)
class FakeGpu:
    """One GPU or slice. `unsupported` names functions that it answers with NVML_ERROR_NOT_SUPPORTED."""

    uuid: str = "GPU-aaaa1111-0000"
    name: str = "NVIDIA H200"
    total: int = 140 * GIB
    used: int = 2 * GIB
    reserved: int = 1 * GIB
    capability: tuple[int, int] = (9, 0)
    mig_mode: int = 0
    slices: list["FakeGpu"] = field(default_factory=list)
    processes: dict[int, int] = field(default_factory=dict)
    clock_events: int = 0
    nvlink_status: int = 0
    error: int | None = None
    unsupported: frozenset[str] = frozenset()


@dataclass
class FakeProcess:
    pid: int
    usedGpuMemory: int | None


class FakeNvml(types.ModuleType):
    """The module, over a list of GPUs. `init_error` is what nvmlInit fails with."""

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None, cuda_driver: int = 13000) -> None:
        super().__init__("pynvml")
        self.gpus = list(gpus)
        self.init_error = init_error
        self.cuda_driver = cuda_driver
        self.open_sessions = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(pynvml, name)
        if isinstance(real, types.FunctionType):
            raise AttributeError(f"the fake has no {name}")
        return real

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open_sessions += 1

    def nvmlShutdown(self) -> None:
        self.open_sessions -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        gpu = self.gpus[index]
        if gpu.error is not None:
            raise pynvml.NVMLError(gpu.error)
        return gpu

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda_driver

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetMigMode(self, gpu: FakeGpu) -> list[int]:
        _check(gpu, "nvmlDeviceGetMigMode")
        return [gpu.mig_mode, gpu.mig_mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, gpu: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: FakeGpu, index: int) -> FakeGpu:
        if index >= len(gpu.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return gpu.slices[index]

    def nvmlDeviceGetMemoryInfo(self, gpu: FakeGpu, version: int | None = None) -> types.SimpleNamespace:
        free = gpu.total - gpu.used - gpu.reserved
        if version is None:
            return types.SimpleNamespace(total=gpu.total, free=free, used=gpu.used + gpu.reserved)
        _check(gpu, "nvmlDeviceGetMemoryInfo_v2")
        return types.SimpleNamespace(total=gpu.total, free=free, used=gpu.used, reserved=gpu.reserved)

    def nvmlDeviceGetCudaComputeCapability(self, gpu: FakeGpu) -> tuple[int, int]:
        _check(gpu, "nvmlDeviceGetCudaComputeCapability")
        return gpu.capability

    def nvmlDeviceGetEccMode(self, gpu: FakeGpu) -> list[int]:
        _check(gpu, "nvmlDeviceGetEccMode")
        return [1, 1]

    def nvmlDeviceGetTotalEccErrors(self, gpu: FakeGpu, kind: int, counter: int) -> int:
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        _check(gpu, "nvmlDeviceGetTotalEccErrors")
        return 3

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: FakeGpu) -> int:
        _check(gpu, "nvmlDeviceGetEnforcedPowerLimit")
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, gpu: FakeGpu, clock: int) -> int:
        _check(gpu, "nvmlDeviceGetMaxClockInfo")
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}[clock]

    def nvmlDeviceGetP2PStatus(self, gpu: FakeGpu, other: FakeGpu, capability: int) -> int:
        _check(gpu, "nvmlDeviceGetP2PStatus")
        return gpu.nvlink_status if capability == pynvml.NVML_P2P_CAPS_INDEX_NVLINK else pynvml.NVML_P2P_STATUS_OK

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: FakeGpu) -> int:
        _check(gpu, "nvmlDeviceGetCurrentClocksEventReasons")
        return gpu.clock_events

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: FakeGpu) -> int:
        _check(gpu, "nvmlDeviceGetCurrentClocksThrottleReasons")
        return gpu.clock_events

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: FakeGpu) -> list[FakeProcess]:
        _check(gpu, "nvmlDeviceGetComputeRunningProcesses")
        return [FakeProcess(pid, used) for pid, used in gpu.processes.items()]


def _check(gpu: FakeGpu, function: str) -> None:
    if gpu.error is not None:
        raise pynvml.NVMLError(gpu.error)
    if function in gpu.unsupported:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
