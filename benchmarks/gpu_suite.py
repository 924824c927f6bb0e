"""What only a GPU can show, measured on one: run this on a machine with a CUDA GPU, and keep the rows it writes.

    PYTHONPATH=. python benchmarks/gpu_suite.py memory --out DIR [--budget-s 480] [--first N] [--every K] [--json]

It needs one NVIDIA GPU, this checkout, its dependencies (a CUDA build of torch; versions other than those of
constraints.txt are written into the rows), no network and no weights. Candidates that are not predicted to fit on the
GPU are left out: the table was made for one of 80 GB or more. First every core traces, then the GPU measures. It begins
nothing new when its budget ends; run again with the same DIR it goes on where it stopped. `--first N` takes the next N
only, `--every K` each K-th, for pieces in whatever order. `--commit` names the commit where there is no git to ask.
`--cpu` trains two tiny rows on a machine without a GPU, which says that the suite runs and measures nothing.

What is printed on stdout is the summary, with `--json` and every row as one object; progress goes to stderr.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import gpu_memory

from autotune.errors import AutotuneError

RESULTS = Path(__file__).parent / "results"
HOME = Path(os.environ.get("AUTOTUNE_HOME", "~/.cache/autotune")).expanduser()


def main() -> None:
    """Run one part of the suite. Exits 1 when it cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    memory = parts.add_parser("memory", help="predicted against measured memory")
    memory.add_argument("--budget-s", type=float, default=480.0, help="seconds after which nothing new is begun")
    memory.add_argument("--out", type=Path, default=RESULTS, help=f"directory of {gpu_memory.FILE}")
    memory.add_argument("--home", type=Path, default=HOME, help="cache of what was traced")
    memory.add_argument("--first", type=int, help="at most so many of those that are not there yet")
    memory.add_argument("--every", type=int, default=1, help="each K-th of them")
    memory.add_argument("--commit", help="of this checkout, where git cannot tell")
    memory.add_argument("--cpu", action="store_true", help="two tiny rows without a GPU")
    memory.add_argument("--json", action="store_true", help="one JSON object with every row")
    arguments = parser.parse_args()
    try:
        result = gpu_memory.run(
            out=arguments.out,
            home=arguments.home.absolute(),
            budget_s=arguments.budget_s,
            first=arguments.first,
            every=arguments.every,
            commit=arguments.commit,
            on_cpu=arguments.cpu,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except AutotuneError as error:
        sys.exit(str(error))
    print(json.dumps(result) if arguments.json else json.dumps({**result, "rows": len(result["rows"])}, indent=1))


if __name__ == "__main__":
    main()
