"""Read what this process may use of the host: cores and memory, and which processor it is.

A process may get less than the machine has. Linux limits its cores by affinity, and cores and memory by control groups
(version 1 and 2) at every level from the process's own group to the top. Without control groups (macOS, Windows) the
machine's own figures count. Every function takes the root of the file system: a test can lay out another machine.
"""

import hashlib
import math
import multiprocessing
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.core.units import GIB
from autotune.errors import AutotuneError

ROOT = Path("/")
# Flags in /proc/cpuinfo of instructions that multiply bfloat16: x86, x86 with tiles, Arm.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What this process may use of the host.

    uuid: an id of the machine that stays the same from start to start.
    used_by_others_bytes: memory in use, without that of this process.
    """

    name: str
    uuid: str
    cores: int
    memory_bytes: int
    free_bytes: int
    used_by_others_bytes: int
    supports_bf16: bool


@dataclass(frozen=True, slots=True)
class _HostMemory:
    total: int
    free: int


def read_host(root: Path = ROOT) -> Host:
    """Read what this process may use of the host now."""
    cores, memory, name = count_cores(root), _memory(root), _processor_name(root)
    own = psutil.Process().memory_info().rss
    identity = [name, str(cores), f"{round(memory.total / GIB)} GiB", _read(root / "etc/machine-id") or platform.node()]
    return Host(
        name=name,
        uuid="CPU-" + hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16],
        cores=cores,
        memory_bytes=memory.total,
        free_bytes=memory.free,
        used_by_others_bytes=max(0, memory.total - memory.free - own),
        supports_bf16=not BF16_FLAGS.isdisjoint(_processor_flags(root)),
    )


def count_cores(root: Path = ROOT) -> int:
    """Count the cores that affinity and control groups allow; a fraction of a core is rounded up."""
    # sched_getaffinity already holds the control groups' cpuset
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for group in _groups(root, "cpu") if (quota := _cpu_quota(group)) is not None]
    return max(1, min([allowed, *quotas]))


def check_semaphores() -> None:
    """Raise AutotuneError where processes cannot share semaphores. Linux keeps them in /dev/shm; traces need some."""
    try:
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        raise AutotuneError(
            f"/dev/shm: cannot be written ({error.strerror}), and processes that work together need it; mount a "
            "tmpfs there (docker run --shm-size=1g), or free some of it"
        ) from error


def _memory(root: Path) -> _HostMemory:
    """Read the machine's memory, limited by every control group above this process. Cached files count as free."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for group in _groups(root, "memory"):
        # Above memory.high the kernel makes a process wait instead of killing it, so training there has no end.
        limits = (_first_number(group, "memory.max", "memory.limit_in_bytes"), _first_number(group, "memory.high"))
        limit = min((each for each in limits if each is not None), default=None)
        used = _first_number(group, "memory.current", "memory.usage_in_bytes")
        if limit is None or limit >= machine.total:
            continue
        total = min(total, limit)
        if used is not None:
            free = min(free, max(0, limit - used + min(used, _reclaimable(group))))
    return _HostMemory(total, min(free, total))


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups above this process, from its own to the top, in version 1 and 2.

    /proc/self/cgroup names the group inside its hierarchy, /proc/self/mountinfo says which part of the hierarchy is
    mounted where: in a container the mounted root is often the container's own group.
    """
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for mounted, mount in _mounts(root, None if unified else controller):
            inside = path == mounted or path.startswith(mounted.rstrip("/") + "/")
            group = mount / path[len(mounted.rstrip("/")) :].lstrip("/") if inside else mount
            while group != mount:
                yield group
                group = group.parent
            yield mount


def _mounts(root: Path, controller: str | None) -> Iterator[tuple[str, Path]]:
    """Yield (mounted part, folder) of a version 1 controller's hierarchy; for None, of version 2's (proc(5))."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        right = kind == "cgroup2" if controller is None else kind == "cgroup" and controller in options.split(",")
        if right:
            mounted, folder = before.split(" ")[3:5]
            yield mounted, root / folder.lstrip("/")


def _cpu_quota(group: Path) -> float | None:
    """Cores that a group may use, None without a limit: cpu.max in version 2, cpu.cfs_* in version 1."""
    if words := (_read(group / "cpu.max") or "").split():
        return None if words[0] == "max" else int(words[0]) / int(words[1])
    quota, period = _first_number(group, "cpu.cfs_quota_us"), _first_number(group, "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _reclaimable(group: Path) -> int:
    """Bytes that the kernel takes back from a group before it refuses memory: cached files not used lately."""
    lines = dict(line.split(" ", 1) for line in (_read(group / "memory.stat") or "").splitlines() if " " in line)
    return int(lines.get("total_inactive_file") or lines.get("inactive_file") or 0)


def _first_number(group: Path, *names: str) -> int | None:
    """The number in the first of these files that exists; None for `max`."""
    text = next((text for name in names if (text := _read(group / name)) is not None), "")
    return int(text) if text.lstrip("-").isdigit() else None


def _processor_name(root: Path) -> str:
    """The processor's own name; Arm's /proc/cpuinfo has none."""
    return _processor_line(root, "model name") or platform.processor() or platform.machine() or "CPU"


def _processor_flags(root: Path) -> frozenset[str]:
    return frozenset((_processor_line(root, "flags") or _processor_line(root, "Features") or "").split())


def _processor_line(root: Path, key: str) -> str | None:
    lines = (line.partition(":") for line in (_read(root / "proc/cpuinfo") or "").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
