"""A live search of a table's space, scored by the table: it shows what replays cannot.

    python -m benchmarks.search.live --table FILE --data FILE [--minutes 20] [--sampler roofline] [--json]

A table is one of record_table.py, and this must be the machine that it was recorded on. The search goes through the
command line, as a user's would. Its cache is the user's (AUTOTUNE_HOME), so it pays for its traces where that is empty.
The score is the mean of both ways to halve the table's repeats (table.py): a regret below 0 is luck.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.errors import UsageError
from benchmarks.command import Answer, add_out, command
from benchmarks.rows import RESULTS, RowFile
from benchmarks.search.commands import run, words_of
from benchmarks.search.table import Table, load_whole, regrets

FILE = RESULTS / "search_live.jsonl"


def options(parser: argparse.ArgumentParser) -> None:
    """Name the table and its data, and the search's budget and sampler."""
    parser.add_argument("--table", type=Path, required=True, help="as record_table.py writes it")
    parser.add_argument("--data", required=True, help="the data of its space, what data= takes")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--sampler", default="roofline")
    add_out(parser, FILE)


def answer(arguments: argparse.Namespace) -> Answer:
    """Search, score, and keep the row."""
    table = load_whole(arguments.table)
    budget = (f"budget.minutes={arguments.minutes}", "budget.trials=null", f"sampler={arguments.sampler}")
    with tempfile.TemporaryDirectory() as folder:
        found = run("search", *words_of(table.header, arguments.data), *budget, f"out={folder}/search")
    row = {**score(found, table), "sampler": arguments.sampler, "minutes": arguments.minutes}
    return RowFile(path=arguments.out, about={"versions": found["versions"]}).add(row)


def score(found: Mapping[str, Any], table: Table) -> dict[str, Any]:
    """Score what a search has found by a table's rates.

    found: the search's result.json. A regret is None for a candidate that is not in the table. Raises UsageError when
    the search ran on another machine or on other data.
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
    }


def lines(found: Answer) -> Iterator[str]:
    """Show the row."""
    yield from (f"{key}: {value}" for key, value in found.items())


main = command(__doc__, answer, options, lines)

if __name__ == "__main__":
    sys.exit(main())
