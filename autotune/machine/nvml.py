"""Ask NVML, the driver's own library, about the NVIDIA GPUs that this process may use.

NVML needs no CUDA context, so looking costs no device memory. A field that the driver or the board does not
support is None. Leaves out what torch can do with a GPU (gpus.py).

MIG: a GPU can be cut into slices, each a device of its own with a UUID and memory; CUDA then gives a process one
slice and never the whole GPU. Slices answer questions about memory; clocks, power and ECC are the whole GPU's.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any

from autotune.core.hardware import PeerLink
from autotune.errors import AutotuneError

SAMPLE_S = 0.1  # seconds between two looks at the clock event reasons
TO_USE_THE_CPU = "set CUDA_VISIBLE_DEVICES= (empty) to use the CPU"

# nvml.h; pynvml 13.615 has NVML_P2P_CAPS_INDEX_READ as a tuple by mistake, so the numbers stand here.
_P2P_READ, _P2P_NVLINK, _P2P_OK = 0, 2, 0
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_UNCORRECTED_ERRORS, _VOLATILE = 1, 0
_LOST = (15, 16)  # NVML_ERROR_GPU_IS_LOST, NVML_ERROR_RESET_REQUIRED
_CLOCK_EVENTS: Mapping[int, str] = {  # GpuIdle (0x1) is left out: an idle GPU is not slowed down
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}


class NoGpu(Exception):
    """There is no NVIDIA GPU that this process may use, so the CPU is used. The text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Device memory in bytes; `reserved` is the driver's own, None where an old driver counts it as used."""

    total: int
    free: int
    used: int
    reserved: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device as CUDA gives it to a process: a whole GPU or a MIG slice.

    index: of the (whole) GPU in NVML's order. cuda_driver: CUDA version of the driver, as (major, minor).
    """

    uuid: str
    name: str
    index: int
    mig: bool
    memory: GpuMemory
    compute_capability: tuple[int, int] | None
    driver: str | None
    cuda_driver: tuple[int, int] | None
    ecc: bool | None
    ecc_errors: int | None
    power_limit_w: float | None
    clock_limit_mhz: int | None
    memory_clock_limit_mhz: int | None
    peer_links: tuple[PeerLink, ...]


@dataclass(frozen=True, slots=True)
class _Device:
    """A device that was found. whole: NVML's handle of the GPU. handle: of its MIG slice, or of the whole GPU."""

    uuid: str
    name: str
    index: int
    handle: Any
    whole: Any

    @property
    def mig(self) -> bool:
        return self.handle is not self.whole


_Devices = tuple[_Device, ...]


def read_gpus(visible: str | None) -> tuple[Gpu, ...]:
    """Read the GPUs that CUDA_VISIBLE_DEVICES=`visible` leaves visible (None: all), in CUDA's order.

    Indices count in PCI order, as nvidia-smi does. Raises NoGpu when there is none to use, and AutotuneError when
    there is one that should work and does not.
    """
    wanted = _wanted(visible)
    if wanted == ():  # asked first, so that it also helps when the driver is broken
        raise NoGpu(f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU")
    with _session() as nvml:
        chosen = _choose(nvml, wanted)
        if not chosen:
            raise NoGpu(f"CUDA_VISIBLE_DEVICES={visible!r} names no GPU of this machine" if wanted else "no NVIDIA GPU")
        return tuple(_read(nvml, device, chosen) for device in chosen)


def read_memory(uuid: str) -> GpuMemory:
    """Read one device's memory now. Raises NoGpu or AutotuneError as `read_gpus`."""
    with _session() as nvml:
        return _memory(nvml, _find(nvml, uuid))


def process_bytes(uuid: str, process_id: int) -> int | None:
    """Device memory of one process; None where NVML does not list it (other PID namespaces, Windows)."""
    with _session() as nvml:
        processes = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", _find(nvml, uuid).handle) or []
        return next((p.usedGpuMemory for p in processes if p.pid == process_id), None)


class ClockWatch:
    """Note the clock event reasons of a GPU while a `with` block runs.

    `reasons`: their names in the order in which they were seen, without idleness; None when the driver has none.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        self._seen: dict[str, None] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="autotune-clock-watch", daemon=True)

    @property
    def reasons(self) -> tuple[str, ...] | None:
        return None if self._seen is None else tuple(self._seen)

    def __enter__(self) -> "ClockWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            with _session() as nvml:
                whole = _find(nvml, self._uuid).whole
                while (mask := _clock_events(nvml, whole)) is not None:
                    seen = self._seen = self._seen or {}
                    seen.update({name: None for bit, name in _CLOCK_EVENTS.items() if mask & bit})
                    if self._stop.wait(SAMPLE_S):
                        return
        except (NoGpu, AutotuneError):
            return  # the measuring process meets the same fault and reports it


@contextmanager
def _session() -> Iterator[Any]:
    """Open NVML. Raises NoGpu or AutotuneError, in words, when that is not possible."""
    try:
        import pynvml
    except ImportError:
        raise NoGpu("the package nvidia-ml-py is not installed") from None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise NoGpu("no NVIDIA driver (NVML's library is missing)") from None
        if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
            raise NoGpu("the NVIDIA driver is not loaded") from None
        if error.value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            why = "the NVIDIA driver was updated and the old one still runs: reboot"
        else:
            why = f"NVML does not start ({error}): see whether nvidia-smi answers"
        raise AutotuneError(f"{why}; or {TO_USE_THE_CPU}") from None
    try:
        yield nvml
    finally:
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def _wanted(visible: str | None) -> tuple[str, ...] | None:
    """List the entries of CUDA_VISIBLE_DEVICES that CUDA reads: those before the first wrong one. None: all GPUs."""
    if visible is None:
        return None
    wanted: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if not (entry.isdigit() or entry.startswith(("GPU-", "MIG-"))):
            break
        if entry in wanted:
            return ()  # CUDA hides every device when one is named twice
        wanted.append(entry)
    return tuple(wanted)


def _choose(nvml: Any, wanted: Sequence[str] | None) -> tuple[_Device, ...]:
    """Find the devices that the entries name, up to the first that does not exist, as CUDA does.

    A GPU in MIG mode stands for its first slice. CUDA gives a process one slice at most, so nothing follows it.
    Raises AutotuneError when the first device does not answer. Later ones that do not answer are left out.
    """
    gpus = _enumerate(nvml)
    if wanted is None:
        named: list[_Devices | AutotuneError] = gpus
    else:
        named = list(takewhile(lambda devices: devices != (), (_named(gpus, entry) for entry in wanted)))
    if named and isinstance(named[0], AutotuneError):
        raise named[0]
    found = [devices[0] for devices in named if not isinstance(devices, AutotuneError) and devices]
    if found and found[0].mig:
        return (found[0],)
    return tuple(device for device in found if not device.mig)


def _named(gpus: Sequence[_Devices | AutotuneError], entry: str) -> _Devices | AutotuneError:
    """Find the devices that one entry names: by an index, or by the beginning of a UUID that only one device has."""
    if entry.isdigit():
        return gpus[int(entry)] if int(entry) < len(gpus) else ()
    answering = [device for devices in gpus if not isinstance(devices, AutotuneError) for device in devices]
    matching = tuple(device for device in answering if device.uuid.startswith(entry))
    if len(matching) == 1:
        return matching
    silent = [devices for devices in gpus if isinstance(devices, AutotuneError)]
    return silent[0] if silent and not matching else ()


def _enumerate(nvml: Any) -> list[_Devices | AutotuneError]:
    """List, for each GPU that this process may touch, its devices, or the error with which it answers."""
    gpus: list[_Devices | AutotuneError] = []
    for index in range(_demand(nvml, "the count of GPUs", nvml.nvmlDeviceGetCount)):
        try:
            whole = nvml.nvmlDeviceGetHandleByIndex(index)
            gpus.append(_split(nvml, index, whole))
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NO_PERMISSION:  # GPUs that this container may not use
                gpus.append(_fault(f"GPU {index}", error))
        except AutotuneError as error:
            gpus.append(error)
    return gpus


def _split(nvml: Any, index: int, whole: Any) -> _Devices:
    """List the devices of one GPU: its MIG slices where MIG is on (there may be none), else the GPU itself."""
    what = f"GPU {index}"
    name = str(_demand(nvml, what, nvml.nvmlDeviceGetName, whole))
    if not (_ask(nvml, "nvmlDeviceGetMigMode", whole) or [0])[0]:
        return (_Device(str(_demand(nvml, what, nvml.nvmlDeviceGetUUID, whole)), name, index, whole, whole),)
    slices = []
    for place in range(_ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", whole) or 0):
        handle = _ask(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", whole, place)
        if handle is not None:
            uuid = str(_demand(nvml, what, nvml.nvmlDeviceGetUUID, handle))
            slices.append(_Device(uuid, str(_ask(nvml, "nvmlDeviceGetName", handle) or name), index, handle, whole))
    return tuple(slices)


def _find(nvml: Any, uuid: str) -> _Device:
    devices = _named(_enumerate(nvml), uuid)
    if isinstance(devices, AutotuneError):
        raise devices
    if not devices:
        raise AutotuneError(f"the GPU {uuid} is gone: see what nvidia-smi says; or {TO_USE_THE_CPU}")
    return devices[0]


def _read(nvml: Any, device: _Device, chosen: Sequence[_Device]) -> Gpu:
    whole = device.whole
    ecc = _ask(nvml, "nvmlDeviceGetEccMode", whole)
    limit = _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", whole)  # milliwatts
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", whole)
    supported = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")  # 1000 major + 10 minor
    return Gpu(
        uuid=device.uuid,
        name=device.name,
        index=device.index,
        mig=device.mig,
        memory=_memory(nvml, device),
        compute_capability=None if capability is None else (int(capability[0]), int(capability[1])),
        driver=_ask(nvml, "nvmlSystemGetDriverVersion"),
        cuda_driver=None if supported is None else (supported // 1000, supported % 1000 // 10),
        ecc=None if ecc is None else bool(ecc[0]),
        ecc_errors=_ask(nvml, "nvmlDeviceGetTotalEccErrors", whole, _UNCORRECTED_ERRORS, _VOLATILE),
        power_limit_w=None if limit is None else limit / 1000,
        clock_limit_mhz=_ask(nvml, "nvmlDeviceGetMaxClockInfo", whole, _CLOCK_SM),
        memory_clock_limit_mhz=_ask(nvml, "nvmlDeviceGetMaxClockInfo", whole, _CLOCK_MEMORY),
        peer_links=tuple(
            PeerLink(
                uuid=other.uuid,
                name=other.name,
                nvlink=_peers(nvml, device, other, _P2P_NVLINK),
                peer_access=_peers(nvml, device, other, _P2P_READ),
            )
            for other in chosen
            if other is not device
        ),
    )


def _memory(nvml: Any, device: _Device) -> GpuMemory:
    """Read the memory. Version 2 of the call names the driver's own share; drivers before 510 have only version 1."""
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", device.handle, nvml.nvmlMemory_v2)
    reserved = None if memory is None else int(memory.reserved)
    if memory is None:
        memory = _demand(nvml, f"the memory of {device.name}", nvml.nvmlDeviceGetMemoryInfo, device.handle)
    return GpuMemory(total=int(memory.total), free=int(memory.free), used=int(memory.used), reserved=reserved)


def _peers(nvml: Any, device: _Device, other: _Device, capability: int) -> bool | None:
    status = _ask(nvml, "nvmlDeviceGetP2PStatus", device.whole, other.whole, capability)
    return None if status is None else status == _P2P_OK


def _clock_events(nvml: Any, whole: Any) -> int | None:
    """Read the mask of reasons. Drivers since 535 have it under a new name."""
    mask: int | None = _ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", whole)
    if mask is None:
        mask = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", whole)
    return mask


def _ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """Ask something that a driver or board may not support; None if so. Raises AutotuneError when the GPU is lost."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLLibraryMismatchError:
        return None
    except nvml.NVMLError as error:
        if error.value in _LOST:
            raise _fault("a GPU", error) from None
        return None


def _demand(nvml: Any, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Ask something that every driver answers. Raises AutotuneError when this one does not."""
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        raise _fault(what, error) from None


def _fault(what: str, error: Any) -> AutotuneError:
    if error.value in _LOST:
        return AutotuneError(
            f"{what}: {error}. Reset it (nvidia-smi --gpu-reset) or reboot; or name another GPU in "
            f"CUDA_VISIBLE_DEVICES, or {TO_USE_THE_CPU}"
        )
    return AutotuneError(f"{what}: NVML does not answer ({error}): see what nvidia-smi says; or {TO_USE_THE_CPU}")
