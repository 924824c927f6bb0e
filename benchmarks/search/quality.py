"""Searches against exhaustive truth: regret, trials and wall clock of every sampler, replayed on recorded tables.

    python -m benchmarks.search.quality --table FILE... [--data NAME=FILE ...] [--seeds 20] [--picture FILE] [--json]

A table is one of record_table.py. Its data is read again, because a search knows it beforehand, and must be the same.
Predictions are made anew by this version, from the rates that the table's machine had when it was probed. Their seconds
count, with those of traces where the cache is empty (AUTOTUNE_HOME).

One half of the repeats chooses the best and the other scores regret, in turns (table.py), so regret is below 0 where
the halves disagree. The floor is what the best of one half loses by the other: regrets below it cannot be told apart.
Regret after some trials is that of a search that ends there, with its second measurement. The references, which every
search makes first, count in the wall clock alone: until a candidate close to the best was found, and until the second
measurement made sure of it. Both are medians over all seeds, where a search that never comes close takes forever.
The picture, that of docs/search.md, has a panel for each table, with medians over the seeds.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autotune.core.hardware import Hardware
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.opening import opening
from autotune.core.space.references import baseline
from autotune.errors import UsageError
from autotune.machine.installed import installed
from autotune.search.request import predictions_of, workload_of
from benchmarks.command import Answer, command, count, say
from benchmarks.pictures import picture
from benchmarks.search.commands import request_of, words_of
from benchmarks.search.replays import RULES, World, regret_after, replay, seconds_to
from benchmarks.search.table import Table, floor, load_whole

AFTER = (4, 6, 8, 16)  # trials
TRIALS = range(1, max(AFTER) + 1)  # of the curve
CLOSE = 0.02  # a regret that is as good as none
UNTIL = ("found", "sure")  # without the second measurement, and with it
COLOURS: Mapping[str, str] = {
    "roofline": "#ee6677",
    "tpe": "#4477aa",
    "tpe alone": "#9988dd",
    "gp": "#66ccee",
    "gp alone": "#44aa99",
    "random": "#228833",
    "grid": "#ccbb44",
    "largest batch that fits": "#aa3377",
    "batches until speed falls": "#bb5500",
    "TRL's defaults": "#888888",
}
LEAST, MOST = 0.005, 1.0  # the range of regret that is drawn, on a logarithmic scale
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def options(parser: argparse.ArgumentParser) -> None:
    """Name the tables and their data."""
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="as record_table.py writes them")
    add_data(parser)
    parser.add_argument("--seeds", type=count, default=20)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw regret by trials as an SVG")


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
    tables = [quality(load_whole(file), data, seeds=arguments.seeds) for file in arguments.table]
    if arguments.picture:
        draw(tables, arguments.picture)
    return {"tables": tables}


def quality(table: Table, data: Mapping[str, str], *, seeds: int) -> dict[str, Any]:
    """Return what each rule finds on a table, over seeds."""
    world, rates = world_of(table, data), table.rates()
    rules: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rule in RULES:
            journal = Path(folder, "journal")
            runs = [replay(world, rule, seed=seed, most=len(TRIALS), journal=journal) for seed in range(seeds)]
            numbered = list(enumerate(runs))
            regrets = np.array(
                [[regret_after(run, rates, after, seed=seed) for after in TRIALS] for seed, run in numbered]
            )
            seconds = np.array([seconds_to(run, rates, CLOSE, seed=seed) for seed, run in numbered])
            until_s = [seen if math.isfinite(seen) else None for seen in np.median(seconds, axis=0).tolist()]
            middle, p90 = np.quantile(regrets, [0.5, 0.9], axis=0).tolist()
            rules[rule] = {
                "curve": middle,
                "regret": {after: {"median": middle[after - 1], "p90": p90[after - 1]} for after in AFTER},
                "trials": median(map(len, runs)),
                "reached": float(np.isfinite(seconds[:, 0]).mean()),
                "seconds_to_close": dict(zip(UNTIL, until_s, strict=True)),
                "share_of_exhaustive": {
                    name: None if seen is None else seen / table.exhaustive_s
                    for name, seen in zip(UNTIL, until_s, strict=True)
                },
            }
    return {
        "name": table.header["name"],
        "candidates": len(world.candidates),
        "exhaustive_s": table.exhaustive_s,
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
    hardware, request = Hardware.from_dict(header["probed"]), request_of(words_of(header, source))
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
    references = [row for row in table.steady() if row.role != "search"]
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


def draw(tables: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw a curve for each rule of each table. A regret outside the range is drawn at its border."""
    with picture(file, len(tables), legend=COLOURS, columns=5) as axes:
        axes[0].set_yscale("log")
        axes[0].set_ylim(LEAST, MOST)
        axes[0].set_yticks(TICKS, [f"{tick:.0%}" for tick in TICKS], minor=False)
        axes[0].minorticks_off()
        for axis, table in zip(axes, tables, strict=True):
            for name, colour in reversed(list(COLOURS.items())):  # the first on top of the others
                curve = np.clip(table["rules"][name]["curve"], LEAST, MOST)
                axis.plot(range(1, len(curve) + 1), curve, color=colour, clip_on=False, zorder=3)  # over the axes
            axis.set_title(f"{table['name']}, {table['candidates']} candidates")
            axis.set_xticks([1, *range(4, len(curve) + 1, 4)])
            axis.set_xlabel("trials")


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
