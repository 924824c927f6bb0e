"""Searches against exhaustive truth: regret, trials and wall clock of every sampler, replayed on recorded tables.

    python -m benchmarks.search.quality --table FILE... [--data NAME=FILE ...] [--seeds 20] [--json]

A table is one of record_table.py. Its data is read again, because a search knows it beforehand, and must be the same.
Predictions are made anew by this version, from the rates that the table's machine had when it was probed. Their seconds
count, with those of traces where the cache is empty (AUTOTUNE_HOME).

One half of the repeats chooses the best and the other scores regret, in turns (table.py), so regret is below 0 where
the halves disagree. The floor is what the best of one half loses by the other: regrets below it cannot be told apart.
Regret after some trials is that of a search that ends there, with its second measurement. The references, which every
search makes first, count in the wall clock alone: until a candidate close to the best was found, and until the second
measurement made sure of it. Both are medians over all seeds, where a search that never comes close takes forever.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autotune.core.candidate import Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.opening import opening
from autotune.core.space.references import baseline
from autotune.core.trials.trial import Trial
from autotune.errors import UsageError
from autotune.machine.installed import installed
from autotune.search.request import predictions_of, workload_of
from benchmarks.command import Answer, command, count, say
from benchmarks.search.commands import request_of
from benchmarks.search.replays import RULES, World, regret_after, replay, seconds_to
from benchmarks.search.table import Table, floor, load_whole

AFTER = (4, 6, 8, 16)  # trials
CLOSE = 0.02  # a regret that is as good as none
UNTIL = ("found", "sure")  # without the second measurement, and with it


def options(parser: argparse.ArgumentParser) -> None:
    """Name the tables and their data."""
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="as record_table.py writes them")
    add_data(parser)
    parser.add_argument("--seeds", type=count, default=20)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data`, the data of tables by their names."""

    def pair(word: str) -> tuple[str, str]:
        name, equals, file = word.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"got {word}, expected NAME=FILE")
        return name, file

    parser.add_argument("--data", type=pair, nargs="*", default=[], metavar="NAME=FILE", help="data of a table")


def answer(arguments: argparse.Namespace) -> Answer:
    """Replay every rule on every table."""
    data = dict(arguments.data)
    return {"tables": [quality(load_whole(file), data, seeds=arguments.seeds) for file in arguments.table]}


def quality(table: Table, data: Mapping[str, str], *, seeds: int) -> dict[str, Any]:
    """Return what each rule finds on a table, over seeds."""
    world, rates = world_of(table, data), table.rates()
    exhaustive_s = sum(row.outcome.wall_s for row in table.rows if row.round == 0)
    rules: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rule in RULES:
            runs = [
                replay(world, rule, seed=seed, most=max(AFTER), journal=Path(folder, "journal"))
                for seed in range(seeds)
            ]
            seconds = [seconds_to(found, rates, CLOSE, seed=seed) for seed, found in enumerate(runs)]
            until = [median(each) for each in zip(*seconds, strict=True)]
            regrets = {
                after: [regret_after(run, rates, after, seed=seed) for seed, run in enumerate(runs)]
                for after in range(1, max(AFTER) + 1)
            }
            rules[rule] = {
                "curve": [median(values) for values in regrets.values()],
                "regret": {after: _spread(regrets[after]) for after in AFTER},
                "trials": median(map(len, runs)),
                "reached": sum(math.isfinite(first) for first, _ in seconds) / seeds,
                "seconds_to_close": dict(zip(UNTIL, map(_finite, until), strict=True)),
                "share_of_exhaustive": dict(zip(UNTIL, (_finite(each / exhaustive_s) for each in until), strict=True)),
            }
    return {
        "name": table.header["name"],
        "candidates": len(world.candidates),
        "exhaustive_s": exhaustive_s,
        "predicting_s": world.predicting_s,
        "seeds": seeds,
        "floor": floor(rates),
        "rules": rules,
    }


def world_of(table: Table, data: Mapping[str, str]) -> World:
    """Return what a search of the table's space would know. Raises UsageError when the data is not the table's."""
    header, name = table.header, table.header["name"]
    source = data.get(name, "demo" if header["data"] == "demo" else None)
    if source is None:
        raise UsageError(f"{name}: its data is missing; name it by --data {name}=FILE")
    hardware = Hardware.from_dict(header["probed"])
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in header["recipe"].items()}
    request = replace(
        request_of([f"model={header['model']}", f"data={source}"]),
        recipe=Recipe(**recipe),
        fidelity=Fidelity[header["fidelity"]],
        fixed=header["fixed"],
        seed=header["seed"],
    )
    workload = workload_of(request, progress=say)
    if workload.data.fingerprint != header["data_fingerprint"]:
        raise UsageError(f"{name}: the data is not what the table was recorded with; name it by --data {name}=FILE")
    here: dict[str, Any] = {"workload": workload, "hardware": hardware, "installed": installed()}
    space = enumerate_space(**here, fidelity=request.fidelity, fixed=request.fixed)
    outcomes = table.outcomes()
    candidates = [candidate for candidate in space.candidates if candidate in outcomes]
    if not candidates:
        raise UsageError(f"{name}: nothing of it is measured yet")
    if len(candidates) < len(outcomes):
        raise UsageError(f"{name}: {len(outcomes) - len(candidates)} of its candidates are not in this version's space")
    start = replace(baseline(**here)[0], tuned_allocator=True, **request.fixed)
    first = opening(candidates, replace(start, checkpointing="off"), workload.data.lengths.tokens, seed=request.seed)
    references = [
        Trial(number=row.order, role=row.role, candidate=row.candidate, outcome=row.outcome)
        for row in table.steady()
        if row.role != "search"
    ]
    outside = [c for c in dict.fromkeys(trial.candidate for trial in references) if c not in outcomes]
    predictions = predictions_of(request, workload, hardware, say)
    started = time.monotonic()
    predicted = predictions.predict_rates([*candidates, *outside])
    return World(
        candidates=candidates,
        start=start,
        opening=first,
        references=references,
        predicted=predicted,
        predicting_s=time.monotonic() - started,
        outcomes=outcomes,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "p90": float(np.quantile(values, 0.9))}


def lines(found: Answer) -> Iterator[str]:
    """Show a block for each table, with a line for each rule."""
    for table in found["tables"]:
        yield (
            f"{table['name']}: {table['candidates']} candidates, {table['exhaustive_s']:,.0f} s to measure all once,"
            f" {table['predicting_s']:.0f} s to predict them; floor {table['floor']:.1%}"
        )
        for rule, of_rule in table["rules"].items():
            shown = "  ".join(f"{after}: {value['median']:6.1%}" for after, value in of_rule["regret"].items())
            shares = of_rule["share_of_exhaustive"].values()
            times = ", ".join("never" if share is None else f"{share:.1%}" for share in shares)
            yield f"  {rule:26} {shown}  within {CLOSE:.0%}: {of_rule['reached']:.0%}, in {times} of the time"


main = command(__doc__, answer, options, lines)

if __name__ == "__main__":
    sys.exit(main())
