"""How fast memory is planned: candidates a second once a step was traced, and the time of a cold and a warm estimate.

    python benchmarks/planner_speed.py --json

The estimate is that of an 8B with LoRA on an A100: cold with an empty cache, warm with a full one, each by processes of
its own: the command, the fork server that it starts, and those that trace. `own_s` is the processor time of all of
them, `wall_s` what the clock shows (others delay it), `peak_mib` the most that they had resident at a time, where
what two of them share counts twice.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from autotune.core.memory import law_from_dict, peaks
from autotune.core.profile import monomials
from autotune.core.units import MIB
from autotune.installed import installed

ESTIMATE = ("model=llama_3_1_8b", "hardware=a100_80gb", "recipe.method=lora", "format=json")
CANDIDATES = 100_000
REPEATS = 20
EVERY_S = 0.05  # between looks at the processes: what one does after the last look at it is not seen


def main() -> None:
    """Measure, and print one JSON object, or lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "autotune", "estimate", *ESTIMATE, f"home={home}"]
        cold, warm = watched(command), watched(command)
        law_file = min((Path(home) / "profiles" / "laws").iterdir())  # any of them
        rate = candidates_per_s(json.loads(law_file.read_text(encoding="utf-8"))["answer"])
    result = {
        "candidates_per_s": rate,
        "cold": cold,
        "warm": warm,
        "estimate": list(ESTIMATE),
        "versions": dict(installed().versions),
        "measured_at": time.strftime("%Y-%m-%d"),
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"{rate:,.0f} candidates a second")
    for name, spent in (("cold", cold), ("warm", warm)):
        print(f"{name}: {spent['own_s']:.2f} s of its own, {spent['wall_s']:.2f} s on the clock, "
              f"{spent['peak_mib']} MiB at most")  # fmt: skip


def watched(command: Sequence[str]) -> dict[str, Any]:
    """Run a command, and say what it and its children took. Raises CalledProcessError when it fails."""
    own_s: dict[psutil.Process, float] = {}  # as last seen
    peak_bytes = 0
    started = time.monotonic()
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as root:
        status = None
        while status is None:
            resident = 0
            for process in _tree(root):
                with contextlib.suppress(psutil.Error), process.oneshot():
                    times = process.cpu_times()
                    resident += process.memory_info().rss
                    own_s[process] = times.user + times.system
            peak_bytes = max(peak_bytes, resident)
            with contextlib.suppress(psutil.TimeoutExpired):
                status = root.wait(timeout=EVERY_S)
    if status:
        raise subprocess.CalledProcessError(status, command)
    return {
        "own_s": sum(own_s.values()),
        "wall_s": time.monotonic() - started,
        "peak_mib": peak_bytes // MIB,
    }


def _tree(root: psutil.Process) -> list[psutil.Process]:
    """A process and all below it; none when it is gone."""
    with contextlib.suppress(psutil.Error):
        return [psutil.Process(root.pid), *root.children(recursive=True)]
    return []


def candidates_per_s(values: dict[str, Any]) -> float:
    """Peaks of many micro-batches of one law, in the median of several repeats."""
    law = law_from_dict(values)
    rng = np.random.default_rng(0)
    rows, lengths = rng.integers(1, 65, CANDIDATES), rng.integers(16, 8192, CANDIDATES)
    shapes = np.stack([np.broadcast_to(m, rows.shape) for m in monomials(rows, lengths, rows * (lengths - 1))], axis=1)
    shapes = shapes.astype(np.float64)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        peaks(law, shapes)
        seconds.append(time.perf_counter() - started)
    return CANDIDATES / float(np.median(seconds))


if __name__ == "__main__":
    main()
