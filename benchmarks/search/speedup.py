"""What a search gains over TRL's defaults and over settings by hand: a search per method and fidelity, then a run.

    python -m benchmarks.search.speedup --data gsm8k_train.jsonl [--model smollm2] [--minutes 15]

Each search measures the baseline, `by_hand` and its two best side by side in alternating rounds. The ratios and their
95 % intervals are those of its result.json. Then the winner trains for --steps optimizer steps. Everything goes through
the command line, as a user would. A row for each search is kept.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate, short_name
from benchmarks.command import Answer, add_out, command, say
from benchmarks.rows import RESULTS, Row, RowFile
from benchmarks.search.commands import run

FILE = RESULTS / "speedup.jsonl"
RATIOS = ("speedup", "speedup_interval", "speedup_by_hand", "speedup_by_hand_interval")


def options(parser: argparse.ArgumentParser) -> None:
    """Say what is searched for, and for how long."""
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True, help="what data= takes")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--effective-batch-size", type=int, default=8)
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--fidelities", default="exact,close")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of the run; 0 does not run")
    parser.add_argument("--runs", type=Path, default=Path("runs") / f"speedup-{datetime.now():%Y%m%d-%H%M%S}")
    add_out(parser, FILE)


def answer(arguments: argparse.Namespace) -> Answer:
    """Search and train, once for each method and fidelity; keep a row of each."""
    rows = []
    for method in arguments.methods.split(","):
        for fidelity in arguments.fidelities.split(","):
            rows.append(measure(arguments, method, fidelity))
            say("\n".join(_lines(rows[-1])))
    return {"rows": rows}


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
    found = run("search", *(f"{key}={value}" for key, value in asked.items()))
    trained = run("run", str(out), f"recipe.max_steps={arguments.steps}") if arguments.steps else None
    rates, workload = found["second_measurement"], found["workload"]
    hardware = {key: found["hardware"][key] for key in ("name", "cores", "memory_bytes")}
    file = RowFile(path=arguments.out, about={"hardware": hardware, "versions": found["versions"]})
    return file.add(
        {
            "model": workload["model"]["name"],
            "data": workload["data"]["name"],
            "rows": workload["data"]["rows"],
            "method": method,
            "fidelity": fidelity,
            "effective_batch_size": arguments.effective_batch_size,
            "minutes": arguments.minutes,
            "trials": sum(trial["role"] != "repeat" for trial in found["trials"]),
            "useful_tokens_per_s": {
                key: rates.get(str(found[key]["number"])) for key in ("baseline", "by_hand", "best")
            },
            **{key: found[key] for key in RATIOS},
            "best": short_name(Candidate(**found["best"]["candidate"])),
            "wall_s": found["wall_s"],
            "run": trained and {key: trained[key] for key in ("steps", "loss_at_start", "loss_at_end")},
        }
    )


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    def ratio(key: str) -> str:
        if row[key] is None:
            return "  -  "
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.2f} ({low:.2f} to {high:.2f})"

    trained = row["run"]
    losses = (
        f"  loss {trained['loss_at_start']:.3f} -> {trained['loss_at_end']:.3f} in {trained['steps']} steps"
        if trained
        else ""
    )
    yield (
        f"{row['method']:<10}{row['fidelity']:<7}over TRL's defaults {ratio('speedup')}  over by hand "
        f"{ratio('speedup_by_hand')}  {row['trials']} trials{losses}"
    )
    yield f"    {row['best']}"


def lines(found: Answer) -> Iterator[str]:
    """Show two lines for each search."""
    for row in found["rows"]:
        yield from _lines(row)


main = command(__doc__, answer, options, lines)

if __name__ == "__main__":
    sys.exit(main())
