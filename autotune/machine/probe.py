"""`autotune probe`: what this machine can do, measured once and remembered.

Rates do not change from day to day, so they are kept in `home/hardware/`, under the device's UUID and the versions
that they depend on. Free memory does change, so it is read each time. Leaves out the measuring itself (process.py) and
the choice of a GPU (gpus.py).
"""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.core.hardware import Hardware, RateDtype, RatePoint, What, find_doubts, noise_of
from autotune.core.units import format_bytes, format_duration, format_rate
from autotune.errors import UsageError
from autotune.machine.gpus import find_gpus, read_torch_build
from autotune.machine.host import Host, read_host
from autotune.machine.installed import installed
from autotune.machine.nvml import ClockWatch, Gpu
from autotune.machine.process import Measurement, Request, measure_in_process

FORMAT = 4  # of the cached files; raise it when what is measured changes
RATE_PACKAGES = ("torch", "cuda", "triton", "bitsandbytes")  # rates depend on their versions


def probe(*, home: Path, refresh: bool = False, use_gpu: bool = True, progress: Callable[[str], None]) -> Hardware:
    """Say what this machine can do: its first visible GPU where torch can use it, else its CPU.

    home: of the cache. refresh: measure again even if the cache has the rates. use_gpu: False looks at the CPU only.
    Takes under a minute, or a moment if the cache has rates without doubts. Doubtful ones are measured again. Raises
    AutotuneError when a GPU is there that should work and does not, or the measuring fails.
    """
    gpus, host, now = _look(use_gpu, progress)
    path = home / "hardware" / f"{now['uuid']}-{_key(now)}.json"
    known = None if refresh else _read_cache(path, progress)
    if known is not None and known.trustworthy:
        progress(f"rates of {now['name']} as measured on {known.measured_at}; refresh=true measures again")
        hardware = _renewed(known, gpus, host, now)
    else:
        cache.check_writable(path.parent)  # not only once the machine is measured
        if known is not None:
            progress(f"rates of {now['name']} as measured on {known.measured_at} are not to be trusted")
        progress(f"measuring {now['name']}, under a minute")
        measured, throttled = _measure(gpus, host, progress)
        hardware = _join(now, measured, gpus, host, throttled)
        if known is not None and not hardware.trustworthy:
            hardware = with_best_rates(hardware, known)
        cache.write_text(path, json.dumps(hardware.to_dict(), indent=1) + "\n")
    return hardware


def with_best_rates(latest: Hardware, earlier: Hardware) -> Hardware:
    """Take the better of two doubtful measurements, point by point: what else runs can only slow a device down."""
    best = {(point.what, point.dtype, point.shape): point for point in earlier.rates}
    for point in latest.rates:
        key = point.what, point.dtype, point.shape
        if key not in best or point.per_second > best[key].per_second:
            best[key] = point
    launches = [(each.launch_s, each.launch_spread) for each in (latest, earlier) if each.launch_s is not None]
    launch_s, launch_spread = min(launches, default=(None, None))
    return replace(latest, rates=tuple(best.values()), launch_s=launch_s, launch_spread=launch_spread)


def look(*, use_gpu: bool = True) -> Hardware:
    """Say what the machine at hand is, without its rates: nothing is measured. Raises as `probe` does.

    It is enough to judge what was asked for, before a probe that takes a minute.
    """
    gpus, host, now = _look(use_gpu, lambda line: None)
    if not gpus:
        return Hardware(**now, used_by_others_bytes=host.used_by_others_bytes)
    memory = gpus[0].memory.total
    return Hardware(**now, **_of_capability(gpus[0].compute_capability), memory_bytes=memory, used_by_others_bytes=0)


def load_own_probe(path: Path, *, progress: Callable[[str], None]) -> Hardware:
    """Read a hardware file of the machine at hand, with its memory as it is now.

    Raises UsageError when the file is wrong or of another machine, because trials are measured here.
    """
    known = load_hardware(path)
    gpus, host, now = _look(known.kind == "cuda", progress)
    if known.uuid != now["uuid"]:
        raise UsageError(
            f"hardware={path}: is a probe of {known.name} ({known.uuid}), expected one of the machine at hand, "
            f"{now['name']} ({now['uuid']}); search and run train here"
        )
    return _renewed(known, gpus, host, now)


def load_hardware(path: Path) -> Hardware:
    """Read a hardware file. Raises UsageError listing all that is wrong with it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"hardware={path}: cannot be read ({error.strerror}), expected a file that probe wrote"
        ) from None
    except ValueError as error:
        raise UsageError(f"hardware={path}: got no JSON ({error}), expected a file that probe wrote") from None
    return Hardware.from_dict(values, where=str(path))


def summary_lines(hardware: Hardware) -> list[str]:
    """Describe hardware to a person, in lines: name, memory, cores, main rates with their spreads, and doubts."""
    cuda = hardware.kind == "cuda"
    capability = ".".join(map(str, hardware.compute_capability or ()))
    details = [
        hardware.uuid,
        f"compute capability {capability}" if capability else "",
        f"driver {hardware.driver}" if hardware.driver else "",
        "MIG slice" if hardware.mig else "",
    ]
    lines = [f"{hardware.name} ({', '.join(filter(None, details))})"]
    if hardware.other_devices:
        lines.append(f"not used    {', '.join(hardware.other_devices)}")
    lines.append(
        f"memory      {format_bytes(hardware.memory_bytes)}, {format_bytes(hardware.free_bytes)} free"
        + (f", {format_bytes(hardware.used_by_others_bytes)} held by others" if hardware.used_by_others_bytes else "")
        + (f", {format_bytes(hardware.context_bytes)} for a context" if hardware.context_bytes else "")
    )
    host = f", {format_bytes(hardware.host_memory_bytes)} of host memory" if cuda and hardware.host_memory_bytes else ""
    lines.append(f"cores       {hardware.cores}{host}")
    lines += [line for title, what, dtypes in _SHOWN if (line := _rate_line(hardware, title, what, dtypes))]
    if hardware.launch_s is not None:
        lines.append(
            f"launch      {hardware.launch_s * 1e6:.1f} us ±{hardware.launch_spread or 0:.0%} for a small operator"
        )
    if hardware.throttled:
        lines.append(f"clocks      held down by {', '.join(hardware.throttled)}")
    lines += [f"NOT TRUSTED {doubt}" for doubt in hardware.doubts]
    if hardware.trustworthy and hardware.noise is not None:
        lines.append(f"noise       {hardware.noise:.1%} from repeat to repeat: steady")
    if hardware.measured_at and hardware.measured_in_s:
        lines.append(f"measured    {hardware.measured_at}, in {format_duration(hardware.measured_in_s)}")
    return lines


_FLOATS: tuple[RateDtype, ...] = ("bfloat16", "float16", "tf32", "float32")
_SHOWN: tuple[tuple[str, What, tuple[RateDtype, ...]], ...] = (
    ("matmul", "matmul", _FLOATS),
    ("attention", "attention_forward_backward", _FLOATS),
    ("nf4 layer", "nf4_matmul", _FLOATS),
    ("int8 layer", "int8_matmul", _FLOATS),
    ("memory copy", "copy", ("float32",)),
    ("to device", "host_to_device_pinned", ("uint8",)),
    ("to host", "device_to_host_pinned", ("uint8",)),
)


def _rate_line(hardware: Hardware, title: str, what: What, dtypes: Sequence[RateDtype]) -> str | None:
    """Describe the best rate of each dtype. For copies it is the rate of the largest: small ones stay in the caches."""
    copies = what in ("copy", "host_to_device_pinned", "device_to_host_pinned")
    points = [hardware.curve(what, d)[-1:] if copies else (hardware.best(what, d),) for d in dtypes]
    shown = [_rate_text(point, len(dtypes) > 1) for found in points for point in found if point is not None]
    return f"{title:<12}{', '.join(shown)}" if shown else None


def _rate_text(point: RatePoint, with_dtype: bool) -> str:
    return f"{point.dtype + ' ' if with_dtype else ''}{format_rate(point.per_second, point.unit)} ±{point.spread:.0%}"


def _cpu_facts(host: Host) -> dict[str, Any]:
    """The facts of a CPU that need no measuring."""
    return {
        "kind": "cpu",
        "name": host.name,
        "uuid": host.uuid,
        "memory_bytes": host.memory_bytes,
        "supports_bf16": host.supports_bf16,
        "versions": _versions(),
        **_host_facts(host),
        "free_bytes": host.free_bytes,
    }


def _look(use_gpu: bool, progress: Callable[[str], None]) -> tuple[Sequence[Gpu], Host, dict[str, Any]]:
    """Look at the machine as it is now: its GPUs, its host, and the facts of the device that is used."""
    gpus = find_gpus(progress=progress) if use_gpu else ()
    host = read_host()
    return gpus, host, _cuda_facts(gpus, host) if gpus else _cpu_facts(host)


def _renewed(known: Hardware, gpus: Sequence[Gpu], host: Host, now: dict[str, Any]) -> Hardware:
    """Join the rates of an earlier probe with the facts and the free memory of now."""
    used_by_others = _used_by_others(gpus[0], known.memory_bytes) if gpus else host.used_by_others_bytes
    return replace(known, **now, used_by_others_bytes=used_by_others)


def _cuda_facts(gpus: Sequence[Gpu], host: Host) -> dict[str, Any]:
    gpu = gpus[0]
    return {
        "kind": "cuda",
        "name": gpu.name,
        "uuid": gpu.uuid,
        "device_index": gpu.index,
        "other_devices": tuple(other.name for other in gpus[1:]),
        "free_bytes": gpu.memory.free,
        "reserved_bytes": gpu.memory.reserved,
        "versions": _versions(),
        "driver": gpu.driver,
        "cuda_driver": None if gpu.cuda_driver is None else ".".join(map(str, gpu.cuda_driver)),
        "ecc": gpu.ecc,
        "ecc_errors": gpu.ecc_errors,
        "mig": gpu.mig,
        "power_limit_w": gpu.power_limit_w,
        "clock_limit_mhz": gpu.clock_limit_mhz,
        "memory_clock_limit_mhz": gpu.memory_clock_limit_mhz,
        "peer_links": gpu.peer_links,
        **_host_facts(host),
    }


def _host_facts(host: Host) -> dict[str, Any]:
    return {"cores": host.cores, "host_memory_bytes": host.memory_bytes, "host_free_bytes": host.free_bytes}


def _measure(
    gpus: Sequence[Gpu], host: Host, progress: Callable[[str], None]
) -> tuple[Measurement, tuple[str, ...] | None]:
    """Measure, and note what holds a GPU's clocks down meanwhile."""
    request = Request(uuid=gpus[0].uuid if gpus else None, cores=host.cores, free_bytes=host.free_bytes)
    if not gpus:
        return measure_in_process(request, progress=progress), None
    with ClockWatch(gpus[0].uuid) as clocks:
        measured = measure_in_process(request, progress=progress)
    return measured, clocks.reasons


def _join(
    now: Mapping[str, Any],
    measured: Measurement,
    gpus: Sequence[Gpu],
    host: Host,
    throttled: tuple[str, ...] | None,
) -> Hardware:
    rates = measured.rates
    noise = noise_of(rates.points)
    facts = dict(now)
    if gpus:
        # CUDA's total is what torch can allocate; NVML's also holds the driver's own share
        memory_bytes = measured.memory_bytes or gpus[0].memory.total
        capability = measured.compute_capability or gpus[0].compute_capability
        facts |= {
            "memory_bytes": memory_bytes,
            "used_by_others_bytes": _used_by_others(gpus[0], memory_bytes),
            **_of_capability(capability),
            "context_bytes": measured.context_bytes,
            "workspace_bytes": measured.workspace_bytes,
            "throttled": throttled,
        }
    else:
        facts["used_by_others_bytes"] = host.used_by_others_bytes
    return Hardware(
        **facts,
        rates=rates.points,
        launch_s=rates.launch_s,
        launch_spread=rates.launch_spread,
        noise=noise,
        cpu_share=rates.cpu_share,
        doubts=find_doubts(noise=noise, cpu_share=rates.cpu_share, throttled=throttled),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        measured_in_s=measured.wall_s,
    )


def _of_capability(capability: tuple[int, int] | None) -> dict[str, Any]:
    """What a GPU's compute capability says of it."""
    ampere = capability is not None and capability >= (8, 0)
    return {"compute_capability": capability, "supports_bf16": ampere, "supports_tf32": ampere}


def _used_by_others(gpu: Gpu, memory_bytes: int) -> int:
    """Device memory in use: all of it by others, since this process holds none. Old drivers count their own share."""
    if gpu.memory.reserved is None:
        return max(0, memory_bytes - gpu.memory.free)
    return gpu.memory.used


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **installed().versions}
    if (cuda := read_torch_build().cuda) is not None:
        found["cuda"] = ".".join(map(str, cuda))
    return found


def _key(now: Mapping[str, Any]) -> str:
    """Hash what the rates of a device depend on."""
    on = [FORMAT, now.get("driver"), *(now["versions"].get(package) for package in RATE_PACKAGES)]
    return hashlib.sha256(json.dumps(on).encode()).hexdigest()[:12]


def _read_cache(path: Path, progress: Callable[[str], None]) -> Hardware | None:
    if not path.exists():
        return None
    try:
        return load_hardware(path)
    except UsageError as error:
        progress(f"{path} is damaged, so the machine is measured again: {error.problems[0]}")
        return None
