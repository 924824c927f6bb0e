"""What a search gains over TRL's defaults and over settings by hand: a search per method and fidelity, then a run.

    python -m benchmarks.search.speedup --data gsm8k_train.jsonl [--model smollm2] [--minutes 15]

Each search measures the baseline, `by_hand` and its two best side by side in alternating rounds. The ratios and their
95 % intervals are those of its result.json. Then the winner trains for --steps optimizer steps. Everything goes through
the command line, as a user would. A row for each search is kept.
"""

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path

from autotune.core.candidate import short_name
from benchmarks.command import Answer, add_out, command, say
from benchmarks.rows import RESULTS, Row, RowFile
from benchmarks.search.commands import run, search


def options(parser: argparse.ArgumentParser) -> None:
    """Say what is searched for, and for how long."""
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True, help="what data= takes")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--effective-batch-size", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["full", "lora"])
    parser.add_argument("--fidelities", nargs="+", default=["exact", "close"])
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of the run; 0 does not run")
    parser.add_argument("--runs", type=Path, default=Path("runs") / f"speedup-{datetime.now():%Y%m%d-%H%M%S}")
    add_out(parser, RESULTS / "speedup.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Search and train, once for each method and fidelity; keep a row of each."""
    pairs = [(method, fidelity) for method in arguments.methods for fidelity in arguments.fidelities]
    return {"rows": [measure(arguments, *pair) for pair in pairs]}


def measure(arguments: argparse.Namespace, method: str, fidelity: str) -> Row:
    """Search once and run once, and keep the row."""
    out = arguments.runs / f"{method}-{fidelity}"
    asked = {
        "model": arguments.model,
        "data": arguments.data,
        "recipe.method": method,
        "recipe.effective_batch_size": arguments.effective_batch_size,
        "fidelity": fidelity,
        "budget.minutes": arguments.minutes,
        "out": out,
    }
    found = search(asked)
    say(f"{method}, {fidelity}: {found.answer}")
    trained = json.loads(run("run", str(out), f"recipe.max_steps={arguments.steps}")) if arguments.steps else None
    hardware = {key: getattr(found.hardware, key) for key in ("name", "cores", "memory_bytes")}
    contenders = {"baseline": found.baseline, "by_hand": found.by_hand, "best": found.best}
    file = RowFile(path=arguments.out, about={"hardware": hardware, "versions": dict(found.versions)})
    return file.add(
        {
            "model": found.workload.model.name,
            "data": found.workload.data.name,
            "rows": found.workload.data.rows,
            "method": method,
            "fidelity": fidelity,
            "effective_batch_size": arguments.effective_batch_size,
            "minutes": arguments.minutes,
            "trials": sum(trial.role != "repeat" for trial in found.trials),
            "useful_tokens_per_s": {
                name: found.second_measurement.get(str(trial.number)) for name, trial in contenders.items()
            },
            "speedup": found.speedup,
            "speedup_interval": found.speedup_interval,
            "speedup_by_hand": found.speedup_by_hand,
            "speedup_by_hand_interval": found.speedup_by_hand_interval,
            "best": short_name(found.best.candidate),
            "wall_s": dict(found.wall_s),
            "run": trained and {key: trained[key] for key in ("steps", "loss_at_start", "loss_at_end")},
        }
    )


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
