"""What a search gains over TRL's defaults and over settings by hand: a search per method and fidelity, then a run.

    python -m benchmarks.search.speedup --model smollm2 --data gsm8k_train.jsonl --minutes 15 --effective-batch-size 8

Each search measures baseline, `by_hand` and its two best side by side in alternating rounds (its second measurement);
the ratios and their 95 % intervals are those of result.json. Then the winner trains for --steps optimizer steps. A row
a search is appended to --results. Everything goes through the command line, as a user would.
"""

import argparse
import json
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate, short_name


def main() -> None:
    """Search, train, print the table and keep the rows."""
    arguments = _arguments()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)  # before hours of searching, not after
    rows = []
    for method in arguments.methods.split(","):
        for fidelity in arguments.fidelities.split(","):
            row = measure(arguments, method, fidelity)
            rows.append(row)
            with arguments.results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            print(_line(row), file=sys.stderr, flush=True)
    print(json.dumps({"rows": rows}) if arguments.json else "\n".join(_line(row) for row in rows))


def measure(arguments: argparse.Namespace, method: str, fidelity: str) -> dict[str, Any]:
    """One search and one run, as a row."""
    out = arguments.out / f"{method}-{fidelity}"
    common = [f"model={arguments.model}", f"data={arguments.data}", f"recipe.method={method}", "format=json"]
    size = f"recipe.effective_batch_size={arguments.effective_batch_size}"
    found = _autotune(
        "search", *common, size, f"fidelity={fidelity}", f"budget.minutes={arguments.minutes}", f"out={out}"
    )
    trained = (
        _autotune("run", str(out), f"recipe.max_steps={arguments.steps}", "format=json") if arguments.steps else None
    )
    rates = found["second_measurement"]
    return {
        "date": date.today().isoformat(),
        "model": found["workload"]["model"]["name"],
        "data": found["workload"]["data"]["name"],
        "rows": found["workload"]["data"]["rows"],
        "method": method,
        "fidelity": fidelity,
        "effective_batch_size": arguments.effective_batch_size,
        "minutes": arguments.minutes,
        "trials": sum(trial["role"] != "repeat" for trial in found["trials"]),
        "useful_tokens_per_s": {key: rates.get(str(found[key]["number"])) for key in ("baseline", "by_hand", "best")},
        **{key: found[key] for key in ("speedup", "speedup_interval", "speedup_by_hand", "speedup_by_hand_interval")},
        "best": short_name(Candidate(**found["best"]["candidate"])),
        "wall_s": found["wall_s"],
        "run": trained and {key: trained[key] for key in ("steps", "loss_at_start", "loss_at_end")},
        "hardware": {key: found["hardware"][key] for key in ("name", "cores", "memory_bytes")},
        "versions": found["versions"],
    }


def _autotune(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "autotune", *words], stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _line(row: dict[str, Any]) -> str:
    def ratio(key: str) -> str:
        if row[key] is None:
            return "  -  "
        low, high = row[f"{key}_interval"]
        return f"{row[key]:.2f} ({low:.2f} to {high:.2f})"

    run = row["run"]
    losses = f"  loss {run['loss_at_start']:.3f} -> {run['loss_at_end']:.3f} in {run['steps']} steps" if run else ""
    return (
        f"{row['method']:<10}{row['fidelity']:<7}over TRL's defaults {ratio('speedup')}  over by hand "
        f"{ratio('speedup_by_hand')}  {row['trials']} trials{losses}\n    {row['best']}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True, help="what data= takes")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--effective-batch-size", type=int, default=8)
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--fidelities", default="exact,close")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of the run; 0 does not run")
    parser.add_argument("--out", type=Path, default=Path("runs") / f"speedup-{datetime.now():%Y%m%d-%H%M%S}")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "results" / "speedup.jsonl")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
