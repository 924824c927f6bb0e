"""A live search of a table's space, scored by the table: it shows what replays cannot.

    python -m benchmarks.search.live --table FILE --data FILE [--minutes 20] [--sampler roofline] [--json]

A table is one of record_table.py, and this must be the machine that it was recorded on. The search goes through the
command line, as a user's would. Its cache is the user's (AUTOTUNE_HOME), so it pays for its traces where that is empty.
The score is the mean of both ways to halve the table's repeats (table.py): a regret below 0 is luck.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.errors import UsageError
from autotune.search.result import Result
from benchmarks.command import Answer, add_out, command
from benchmarks.rows import RESULTS, RowFile
from benchmarks.search.commands import search, words_of
from benchmarks.search.table import Table, load_whole, regrets


def options(parser: argparse.ArgumentParser) -> None:
    """Name the table and its data, and the search's budget and sampler."""
    parser.add_argument("--table", type=Path, required=True, help="as record_table.py writes it")
    parser.add_argument("--data", required=True, help="the data of its space, what data= takes")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--sampler", default="roofline")
    add_out(parser, RESULTS / "search_live.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Search, score, and keep the row."""
    table = load_whole(arguments.table)
    budget = {"budget.minutes": arguments.minutes, "budget.trials": "null", "sampler": arguments.sampler}
    with tempfile.TemporaryDirectory() as folder:
        found = search({**budget, "out": f"{folder}/search"}, *words_of(table.header, arguments.data))
    row = {**score(found, table), "sampler": arguments.sampler, "minutes": arguments.minutes}
    return RowFile(path=arguments.out, about={"versions": dict(found.versions)}).add(row)


def score(found: Result, table: Table) -> dict[str, Any]:
    """Score what a search has found by a table's rates.

    A regret is None for a candidate that is not in the table. Raises UsageError when the search ran on another machine
    or on other data.
    """
    here = {key: getattr(found.hardware, key) for key in ("name", "cores")}
    there = {key: table.header["hardware"][key] for key in here}
    data, expected = found.workload.data.fingerprint, table.header["data_fingerprint"]
    problems = [f"hardware: got {here}, expected the table's, {there}"] if here != there else []
    problems += [f"--data: got {data}, expected the table's, {expected}"] if data != expected else []
    if problems:
        raise UsageError(*problems)
    rates = table.rates()
    halves = [regrets(rates, half) for half in (0, 1)]

    def regret(candidate: Candidate) -> float | None:
        return fmean(half[candidate] for half in halves) if candidate in rates else None

    return {
        "name": table.header["name"],
        "candidates": len(rates),
        "best": short_name(found.best.candidate),
        "regret": regret(found.best.candidate),
        "speedup": found.speedup,
        "speedup_interval": found.speedup_interval,
        "regrets_of_trials": [regret(trial.candidate) for trial in found.trials if trial.role == "search"],
        "wall_s": dict(found.wall_s),
        "share_of_exhaustive": found.wall_s["total"] / table.exhaustive_s,
        "hardware": there,
    }


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
