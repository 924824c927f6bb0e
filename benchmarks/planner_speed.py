"""How fast memory is planned: candidates a second once a step was traced, and the time of a cold and a warm estimate.

    python benchmarks/planner_speed.py --json

The estimate is that of an 8B with LoRA on an A100: cold with an empty cache, warm with a full one, each in a process
of its own. `own_s` is processor time, `wall_s` what the clock shows (other processes delay it).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from autotune.core.memory import law_from_dict, peaks
from autotune.core.profile import monomials
from autotune.installed import installed

ESTIMATE = ("model=llama_3_1_8b", "hardware=a100_80gb", "recipe.method=lora", "format=json")
CANDIDATES = 100_000
REPEATS = 20


def main() -> None:
    """Measure, and print one JSON object, or lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory() as home:
        cold, warm = estimate(home), estimate(home)
        [law_file] = (Path(home) / "profiles" / "laws").iterdir()
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


def estimate(home: str) -> dict[str, Any]:
    """Time one estimate in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    command = [sys.executable, "-c", CODE, "estimate", *ESTIMATE, f"home={home}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall_s = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "own_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "wall_s": wall_s,
        "peak_mib": int(done.stderr.splitlines()[-1]) // 1024,
    }


CODE = """
import resource, sys
from autotune.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(status)
"""


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
