"""A live search of a table's space, scored by the table: what replays cannot show.

    python -m benchmarks.search.live --table FILE --data FILE [--minutes 20] [--sampler roofline] [--json]

A table is one of record_table.py, and this must be the machine that it was recorded on. The search goes through the
command line, as a user's would; its cache is the user's (AUTOTUNE_HOME), so its traces are paid for where that is
empty. The score is the mean of both ways to halve the table's repeats (table.py): regret below 0 is luck. A row a
search is appended to --results.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.errors import AutotuneError, UsageError
from benchmarks.rows import append, now, refuse
from benchmarks.search.table import Table, load_whole, regrets

RESULTS = Path(__file__).parents[1] / "results" / "search_live.jsonl"


def main() -> None:
    """Search, score, print and keep the row."""
    arguments = _arguments()
    try:
        table = load_whole(arguments.table)
        with tempfile.TemporaryDirectory() as folder:
            budget = (f"budget.minutes={arguments.minutes}", "budget.trials=null")
            words = words_of(table.header, arguments.data)
            found = _search(*words, *budget, f"sampler={arguments.sampler}", f"out={folder}/search")
        row = score(found, table) | {"at": now(), "sampler": arguments.sampler, "minutes": arguments.minutes}
    except AutotuneError as error:
        refuse(error)
    append(arguments.results, row)
    print(json.dumps(row) if arguments.json else "\n".join(f"{key}: {value}" for key, value in row.items()))


def words_of(header: Mapping[str, Any], data: str) -> list[str]:
    """What the search of a table's space is asked for, on a command line. header: of the table."""
    keys = {f"recipe.{key}": value for key, value in header["recipe"].items()}
    keys |= {f"candidate.{knob}": value for knob, value in header["fixed"].items()}
    keys |= {"model": header["model"], "data": data, "fidelity": header["fidelity"], "seed": header["seed"]}
    return [f"{key}={_word(value)}" for key, value in keys.items()]


def _word(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


def score(found: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """What a search has found, by a table's rates.

    found: its result.json. Regrets are None of what is not in the table. Raises UsageError when the search was on
    another machine, or of other data.
    """
    here, there = (
        {key: hardware[key] for key in ("name", "cores")} for hardware in (found["hardware"], table.header["hardware"])
    )
    data, expected = found["workload"]["data"]["fingerprint"], table.header["data_fingerprint"]
    problems = [f"hardware: got {here}, expected the table's, {there}"] if here != there else []
    problems += [f"--data: got {data}, expected the table's, {expected}"] if data != expected else []
    if problems:
        raise UsageError(*problems)
    rates = table.rates()
    halves = [regrets(rates, half) for half in (0, 1)]

    def regret(trial: Mapping[str, Any]) -> float | None:
        candidate = Candidate(**trial["candidate"])
        return fmean(half[candidate] for half in halves) if candidate in rates else None

    exhaustive_s = sum(row.outcome.wall_s for row in table.rows if row.round == 0)
    return {
        "name": table.header["name"],
        "candidates": len(rates),
        "best": short_name(Candidate(**found["best"]["candidate"])),
        "regret": regret(found["best"]),
        "speedup": found["speedup"],
        "speedup_interval": found["speedup_interval"],
        "regrets_of_trials": [regret(trial) for trial in found["trials"] if trial["role"] == "search"],
        "wall_s": found["wall_s"],
        "share_of_exhaustive": found["wall_s"]["total"] / exhaustive_s,
        "hardware": there,
        "versions": found["versions"],
    }


def _search(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "autotune", "search", *words, "format=json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="as record_table.py writes it")
    parser.add_argument("--data", required=True, help="the data of its space, what data= takes")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--sampler", default="roofline")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
