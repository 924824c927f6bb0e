"""What other processes took from this one: core time that its threads waited for, and memory that ran short.

Linux counts, for each thread, how long it was ready to run and waited for a core. It waits for its own sisters, too:
the threads of a forward pass still spin while those of the backward pass start. So only as much counts as others ran on
the cores that this process may use, and what a hypervisor took. Elsewhere nothing is known, and nothing is reported.
Leaves out who the others are, and GPUs.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
# Fields of a line of /proc/stat after its name (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal.
BUSY, STEAL = (0, 1, 2, 5, 6), 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Counters at one moment. All are seconds, and only their differences mean something.

    own_s: core time of this process. waited_s: of each of its threads, ready and without a core. busy_s: core time of
    all processes, on the cores that this one may use. stolen_s: time of these cores that a hypervisor gave to others.
    stalled_s: time in which a process waited for memory.
    """

    clock_s: float
    own_s: float
    waited_s: Mapping[str, float]
    busy_s: float
    stolen_s: float
    stalled_s: float


def look(root: Path = ROOT) -> Look:
    """Read the counters of this process and of the machine. Takes about 25 us for each thread."""
    busy_s, stolen_s = _cores(root)
    return Look(
        clock_s=time.perf_counter(),
        own_s=time.process_time(),
        waited_s=_waited(root),
        busy_s=busy_s,
        stolen_s=stolen_s,
        stalled_s=_stalled(root),
    )


def disturbed_share(before: Look, after: Look) -> float:
    """The share of what this process needed between two looks that it did not get because of others, 0 to 1.

    It is the larger one of two shares: of the core time that its threads needed, and of the seconds, in which memory
    was short.
    """
    own_s = after.own_s - before.own_s
    waited_s = sum(max(0.0, seconds - before.waited_s.get(thread, 0.0)) for thread, seconds in after.waited_s.items())
    busy_s = max(after.busy_s - before.busy_s, own_s)
    stolen_s = (after.stolen_s - before.stolen_s) * own_s / busy_s if busy_s else 0.0
    taken_s = min(waited_s, busy_s - own_s) + stolen_s
    of_cores = taken_s / (own_s + taken_s) if taken_s > 0 else 0.0
    seconds = after.clock_s - before.clock_s
    of_memory = (after.stalled_s - before.stalled_s) / seconds if seconds > 0 else 0.0
    return min(1.0, max(of_cores, of_memory))


def _waited(root: Path) -> dict[str, float]:
    """Seconds that each thread of this process has waited for a core: the second number of its schedstat (proc(5))."""
    found: dict[str, float] = {}
    try:
        threads = os.listdir(root / "proc/self/task")
    except OSError:
        return found
    for thread in threads:
        if words := _words(root / "proc/self/task" / thread / "schedstat"):  # a thread may end meanwhile
            found[thread] = int(words[1]) / 1e9
    return found


def _cores(root: Path) -> tuple[float, float]:
    """Seconds in which the cores that this process may use were busy, and in which they were stolen."""
    allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    ticks = [0, 0]
    for line in _text(root / "proc/stat").splitlines():
        name, *rest = line.split()
        if name in allowed:
            counts = list(map(int, rest))
            ticks[0] += sum(counts[place] for place in BUSY)
            ticks[1] += counts[STEAL]
    per_second = os.sysconf("SC_CLK_TCK") if allowed else 1
    return ticks[0] / per_second, ticks[1] / per_second


def _stalled(root: Path) -> float:
    """Seconds in which a process of this machine waited for memory (pressure stall information, `some`)."""
    for line in _text(root / "proc/pressure/memory").splitlines():
        kind, *values = line.split()
        if kind == "some":
            return int(dict(value.split("=") for value in values)["total"]) / 1e6
    return 0.0


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
