"""Shows autotune at work in a few minutes: probe, search, run, and a table of what it brought.

Words on its command line are further words for the search, such as budget.minutes=10.
"""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from autotune.search.result import Result, read_result
from autotune.search.summary import table

STEPS = 24  # optimizer steps of the run: enough for the loss to fall visibly


def main(words: list[str]) -> None:
    """Run the three commands in a new directory under runs/, and print the table."""
    out = Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    autotune("probe")
    autotune("search", "experiment=demo", f"out={out}", *words)
    autotune("run", str(out), f"recipe.max_steps={STEPS}")
    result = read_result(out / "result.json")
    run = json.loads((out / "run" / "run.json").read_text(encoding="utf-8"))
    print("\n" + "\n".join(lines(result, run, out)))


def autotune(*words: str) -> None:
    """Run one command as a person would, and stop with its exit code if it fails. Ctrl-C reaches it too."""
    print(f"\n$ autotune {' '.join(words)}", flush=True)
    with subprocess.Popen([sys.executable, "-m", "autotune", *words]) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def lines(result: Result, run: dict[str, Any], out: Path) -> list[str]:
    """The references beside the winner, the loss before and after, and where the files are."""
    return [
        *table(result),
        "",
        result.answer,
        f"loss {run['loss_at_start']:.3f} before, {run['loss_at_end']:.3f} after {run['steps']} optimizer steps",
        f"files in {out}: result.json, run.yaml, trials/, and the trained weights in run/",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
