"""Shows autotune at work in a few minutes: probe, search, run, and a table of what it brought.

Words on its command line are further words for the search, such as budget.minutes=10.
"""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from autotune.core.candidate import short_name
from autotune.core.outcome import Measured
from autotune.core.units import format_bytes
from autotune.search.result import Result, read_result

STEPS = 24  # optimizer steps of the run: enough for the loss to fall visibly


def main(words: list[str]) -> None:
    """Run the three commands in a new directory under runs/, and print the table."""
    out = Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    autotune("probe")
    autotune("search", "experiment=demo", f"out={out}", *words)
    autotune("run", str(out), f"recipe.max_steps={STEPS}")
    result = read_result(out / "result.json")
    run = json.loads((out / "run" / "run.json").read_text(encoding="utf-8"))
    print("\n" + "\n".join(table(result, run, out)))


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


def table(result: Result, run: dict[str, Any], out: Path) -> list[str]:
    """TRL's defaults beside the winner, the loss before and after, and where the files are."""
    lines = [f"{'':16}{'useful tokens/s':>16}{'memory':>12}  configuration"]
    for title, trial in (("TRL's defaults", result.baseline), ("found", result.best)):
        outcome, name = trial.outcome, short_name(trial.candidate)
        if not isinstance(outcome, Measured):
            lines.append(f"{title:16}{outcome.kind.replace('_', ' '):>16}{'':12}  {name}")
            continue
        rates = result.second_measurement.get(str(trial.number)) or (outcome.useful_tokens_per_s,)
        lines.append(f"{title:16}{sum(rates) / len(rates):16.0f}{format_bytes(outcome.peak_bytes):>12}  {name}")
    return [
        *lines,
        "",
        result.answer,
        f"loss {run['loss_at_start']:.3f} before, {run['loss_at_end']:.3f} after {run['steps']} optimizer steps",
        f"files in {out}: result.json, run.yaml, trials/, and the trained weights in run/",
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
