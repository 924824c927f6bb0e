"""What only a GPU can show, measured on one: run this on a machine with a CUDA GPU, and keep the rows that it writes.

    python -m benchmarks.gpu.suite steps --out DIR [--budget-s 480] [--first N] [--every K] [--json]
    python -m benchmarks.gpu.suite search NAME --data FILE --out DIR [--minutes 6] [--budget-s 480]

It needs one NVIDIA GPU, this checkout and its dependencies with a CUDA build of torch, but no network and no weights.
Versions other than those of constraints.txt are in the rows. A case that is not predicted to fit the GPU is left out;
the cases were made for a GPU of 80 GB or more.

- `steps` probes the GPU, or takes a probe by `--hardware`. Then it traces on every core and predicts memory and seconds
  of every case. Then it measures them on the GPU. `--first N` takes the next N cases only, `--every K` each K-th, so
  that pieces come in any order.
- `search` searches one of the trainings in search.py for some minutes, and then measures its answer side by side with
  the settings that people start from.

The budget counts from the start of the process. When it ends, nothing new begins and a search is interrupted; the same
command goes on with what is `left`. `--commit` names the commit where git cannot tell. `--cpu` trains two tiny cases on
a machine without a GPU, which shows that the suite runs.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from autotune.errors import AutotuneError, UsageError
from autotune.machine.probe import load_hardware, probe
from benchmarks.command import Answer, command, count, say
from benchmarks.gpu import measure, search
from benchmarks.rows import RESULTS

HOME = Path(os.environ.get("AUTOTUNE_HOME", "~/.cache/autotune")).expanduser()


def options(parser: argparse.ArgumentParser) -> None:
    """Name the part of the suite and its limits."""
    parser.add_argument("part", choices=("steps", "search"))
    parser.add_argument("name", nargs="?", help=f"of a search: {', '.join(search.SEARCHES)}")
    parser.add_argument("--first", type=count, help="of steps: at most N cases that are not done", metavar="N")
    parser.add_argument("--every", type=count, default=1, help="of steps: each K-th of them", metavar="K")
    parser.add_argument("--hardware", type=Path, help="of steps: a file of `autotune probe`")
    parser.add_argument("--data", type=Path, help="of search: rows to train on")
    parser.add_argument("--minutes", type=float, default=6.0, help="of search: its own minutes")
    parser.add_argument("--budget-s", type=float, default=480.0, help="seconds of this process, after which it ends")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the rows")
    parser.add_argument("--home", type=Path, default=HOME, help="cache of what was traced and probed")
    parser.add_argument("--commit", help="of this checkout, where git cannot tell")
    parser.add_argument("--cpu", action="store_true", help="something tiny without a GPU")


def answer(arguments: argparse.Namespace) -> Answer:
    """Run one part of the suite. Raises AutotuneError when it cannot, UsageError for wrong words."""
    age_s = time.time() - psutil.Process().create_time()
    limits: dict[str, Any] = {
        "out": arguments.out,
        "home": arguments.home.absolute(),
        "deadline": time.monotonic() - age_s + arguments.budget_s,
        "commit": arguments.commit,
    }
    if arguments.part == "search":
        if arguments.name not in search.SEARCHES or arguments.data is None:
            raise UsageError(f"search: expected one of {', '.join(search.SEARCHES)}, and --data FILE")
        return search.run(
            arguments.name, data=arguments.data, minutes=arguments.minutes, use_gpu=not arguments.cpu, **limits
        )
    if arguments.hardware:
        hardware = load_hardware(arguments.hardware)
    else:
        hardware = probe(home=limits["home"], use_gpu=not arguments.cpu, progress=say)
    if hardware.kind != "cuda" and not arguments.cpu:
        raise AutotuneError("steps needs a CUDA GPU; --cpu tries two tiny cases without one")
    return measure.run(hardware, first=arguments.first, every=arguments.every, on_cpu=arguments.cpu, **limits)


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
