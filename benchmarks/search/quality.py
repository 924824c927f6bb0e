"""Searches against exhaustive truth: regret, trials and wall clock of every sampler, replayed on recorded tables.

    python -m benchmarks.search.quality --table FILE... [--data NAME=FILE ...] [--seeds 20] [--json]

A table is one of record_table.py; its data is read again, for what a search knows of it beforehand, and must be the
same. Predictions are made anew, by this version, from the rates that the table's machine had been probed with; their
seconds count, and those of traces are among them where the cache is empty (AUTOTUNE_HOME). The best is chosen by one
half of the repeats and regret scored by the other, in turns (table.py): it is below 0 where the halves disagree. What
the best by one half loses by the other is the floor: regrets below it cannot be told apart. Regret is counted after
so many trials of candidates, had the search ended there, with its second measurement. The references, which every
search makes first, count in the wall clock alone: until what is close to the best was found, and until the second
measurement had made sure of it; both in the median over all seeds, where one that never comes close takes forever.
"""

import argparse
import json
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

from autotune.core.candidate import Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import Recipe
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.opening import opening
from autotune.core.space.references import baseline
from autotune.core.trials.trial import Trial
from autotune.errors import AutotuneError, UsageError
from autotune.machine.installed import installed
from autotune.search.request import predictions_of, workload_of
from benchmarks.rows import count, refuse
from benchmarks.search.record_table import SPACES, request_of
from benchmarks.search.replays import RULES, World, regret_after, replay, seconds_to
from benchmarks.search.table import Table, floor, load_whole

AFTER = (4, 6, 8, 16)  # trials
CLOSE = 0.02  # regret that is as good as none
UNTIL = ("found", "sure")  # without the second measurement, and with it


def main() -> None:
    """Replay on every table and print what came of it."""
    arguments = _arguments()
    try:
        answers = [quality(load_whole(file), arguments.data, seeds=arguments.seeds) for file in arguments.table]
    except AutotuneError as error:
        refuse(error)
    if arguments.json:
        print(json.dumps({"tables": answers}))
        return
    for answer in answers:
        print(
            f"{answer['name']}: {answer['candidates']} candidates, {answer['exhaustive_s']:,.0f} s to measure all once,"
            f" {answer['predicting_s']:.0f} s to predict them; floor {answer['floor']:.1%}"
        )
        for rule, found in answer["rules"].items():
            shown = "  ".join(f"{after}: {value['median']:6.1%}" for after, value in found["regret"].items())
            shares = found["share_of_exhaustive"].values()
            times = ", ".join("never" if share is None else f"{share:.1%}" for share in shares)
            print(f"  {rule:26} {shown}  within {CLOSE:.0%}: {found['reached']:.0%}, in {times} of the time")


def quality(table: Table, data: Mapping[str, str], *, seeds: int) -> dict[str, Any]:
    """What each rule finds on a table, over seeds."""
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
    """What a search of the table's space would know. Raises UsageError when the data is not the table's."""
    name = table.header["name"]
    if name not in SPACES:
        raise UsageError(f"{name}: is no space of benchmarks/search/record_table.py: {', '.join(SPACES)}")
    words = [*SPACES[name].words, *([f"data={data[name]}"] if name in data else [])]
    if not any(word.startswith("data=") for word in words):
        raise UsageError(f"{name}: its data is missing; name it by --data {name}=FILE")
    hardware = Hardware.from_dict(table.header["probed"])
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in table.header["recipe"].items()}
    request = replace(
        request_of(words),
        recipe=Recipe(**recipe),
        fidelity=Fidelity[table.header["fidelity"]],
        fixed=table.header["fixed"],
        seed=table.header["seed"],
    )
    workload = workload_of(request, progress=_say)
    if workload.data.fingerprint != table.header["data_fingerprint"]:
        raise UsageError(f"{name}: the data is not what the table was recorded with; name it by --data {name}=FILE")
    if workload.model.name != table.header["model"]:
        raise UsageError(f"{name}: the table is of another model, {table.header['model']}")
    here: dict[str, Any] = {"workload": workload, "hardware": hardware, "installed": installed()}
    space = enumerate_space(**here, fidelity=request.fidelity, fixed=request.fixed)
    outcomes = table.outcomes()
    candidates = [candidate for candidate in space.candidates if candidate in outcomes]
    if not candidates:
        raise UsageError(f"{name}: nothing of it is measured yet")
    if len(candidates) < len(outcomes):
        raise UsageError(f"{name}: {len(outcomes) - len(candidates)} of its candidates are not in this version's space")
    start = replace(baseline(**here)[0], tuned_allocator=True, **request.fixed)
    predictions = predictions_of(request, workload, hardware, _say)
    references = [
        Trial(number=row.order, role=row.role, candidate=row.candidate, outcome=row.outcome)
        for row in table.steady()
        if row.role != "search"
    ]
    outside = [c for c in dict.fromkeys(trial.candidate for trial in references) if c not in outcomes]
    started = time.monotonic()
    predicted = predictions.predict_rates([*candidates, *outside])
    return World(
        candidates=candidates,
        start=start,
        opening=opening(
            candidates, replace(start, checkpointing="off"), workload.data.lengths.tokens, seed=request.seed
        ),
        references=references,
        predicted=predicted,
        predicting_s=time.monotonic() - started,
        outcomes=outcomes,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "p90": float(np.quantile(values, 0.9))}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, nargs="+", required=True, help="as record_table.py writes them")
    parser.add_argument("--data", type=pair, nargs="*", default=[], metavar="NAME=FILE", help="data of a table's space")
    parser.add_argument("--seeds", type=count, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.data = dict(arguments.data)
    return arguments


def pair(word: str) -> tuple[str, str]:
    """A word NAME=FILE of the command line."""
    name, equals, file = word.partition("=")
    if not equals or name not in SPACES:
        raise argparse.ArgumentTypeError(f"got {word}, expected NAME=FILE with a NAME of {', '.join(SPACES)}")
    return name, file


if __name__ == "__main__":
    main()
