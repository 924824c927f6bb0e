"""What only a GPU can show, measured on one: run this on a machine with a CUDA GPU, and keep the rows it writes.

    python -m benchmarks.gpu.suite memory|time --out DIR [--budget-s 480] [--first N] [--every K] [--json]
    python -m benchmarks.gpu.suite search NAME --data FILE --out DIR [--minutes 6] [--budget-s 480]

It needs one NVIDIA GPU, this checkout, its dependencies (a CUDA build of torch; versions other than those of
constraints.txt are written into the rows), no network and no weights. Candidates that are not predicted to fit on the
GPU are left out: the table was made for one of 80 GB or more. `memory` and `time` first trace on every core, then the
GPU measures (`time` probes it before, or takes a probe by `--hardware`). `--first N` takes the next N only, `--every K`
each K-th, for pieces in whatever order. `--commit` names the commit where there is no git to ask. `--cpu` trains two
tiny rows on a machine without a GPU, which says that the suite runs and measures nothing.

`search` searches one configuration of gpu_search.py for so many minutes, and then measures what it found side by side
with the settings that people start from.

The budget counts from the start of the process. When it ends nothing new is begun, and what `search` is in the middle
of is dropped; the same command goes on with what is `left`, a search on the same GPU alone.

What is printed on stdout is the summary, with `--json` and every row as one object; progress goes to stderr.
"""

# ruff: noqa: E402
import time

STARTED = time.monotonic()  # before the other imports, which take seconds

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from autotune.core.hardware import Hardware
from autotune.errors import AutotuneError
from autotune.machine.probe import load_hardware, probe
from benchmarks.gpu import measure as gpu_rows
from benchmarks.gpu import memory as gpu_memory
from benchmarks.gpu import search as gpu_search
from benchmarks.gpu import time as gpu_time
from benchmarks.machines import plain_cpu
from benchmarks.rows import count, refuse

RESULTS = Path(__file__).parents[1] / "results"
HOME = Path(os.environ.get("AUTOTUNE_HOME", "~/.cache/autotune")).expanduser()
PARTS = {"memory": gpu_memory.MEMORY, "time": gpu_time.TIME}


def main() -> None:
    """Run one part of the suite. Exits 1 when it cannot, 2 when it was asked for what is not there."""
    arguments = _arguments()
    try:
        result = _search(arguments) if arguments.part == "search" else _rows(arguments)
    except AutotuneError as error:
        refuse(error)
    print(json.dumps(result) if arguments.json else json.dumps({**result, "rows": len(result["rows"])}, indent=1))


def _rows(arguments: argparse.Namespace) -> dict[str, Any]:
    return gpu_rows.run(
        PARTS[arguments.part],
        _hardware(arguments),
        out=arguments.out,
        home=arguments.home.absolute(),
        deadline=STARTED + arguments.budget_s,
        first=arguments.first,
        every=arguments.every,
        commit=arguments.commit,
        on_cpu=arguments.cpu,
        progress=_say,
    )


def _hardware(arguments: argparse.Namespace) -> Hardware:
    """The machine at hand: as it was probed where seconds are predicted, else as it is known."""
    if arguments.hardware:
        return load_hardware(arguments.hardware)
    if arguments.part == "time":
        return probe(home=arguments.home.absolute(), use_gpu=not arguments.cpu, progress=_say)
    return plain_cpu() if arguments.cpu else gpu_rows.gpu_at_hand(_say)


def _search(arguments: argparse.Namespace) -> dict[str, Any]:
    return gpu_search.run(
        arguments.name,
        data=arguments.data,
        minutes=arguments.minutes,
        out=arguments.out,
        home=arguments.home.absolute(),
        deadline=STARTED + arguments.budget_s,
        use_gpu=not arguments.cpu,
        commit=arguments.commit,
        progress=_say,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, about in (("memory", "predicted against measured memory"), ("time", "the same of seconds")):
        part = parts.add_parser(name, help=about)
        part.add_argument("--first", type=count, help="at most so many of those that are not there yet")
        part.add_argument("--every", type=count, default=1, help="each K-th of them")
        part.add_argument("--hardware", type=Path, help="a file of `autotune probe`")
        _usual(part)
    search = parts.add_parser("search", help="a search against what people start from")
    search.add_argument("name", choices=gpu_search.SEARCHES)
    search.add_argument("--data", type=Path, required=True, help="rows to train on")
    search.add_argument("--minutes", type=float, default=6.0, help="of the search itself")
    _usual(search)
    return parser.parse_args()


def _usual(part: argparse.ArgumentParser) -> None:
    part.add_argument("--budget-s", type=float, default=480.0, help="seconds of this process, after which it ends")
    part.add_argument("--out", type=Path, default=RESULTS, help="directory of the rows")
    part.add_argument("--home", type=Path, default=HOME, help="cache of what was traced and probed")
    part.add_argument("--commit", help="of this checkout, where git cannot tell")
    part.add_argument("--cpu", action="store_true", help="something tiny without a GPU")
    part.add_argument("--json", action="store_true", help="one JSON object with every row")


if __name__ == "__main__":
    main()
