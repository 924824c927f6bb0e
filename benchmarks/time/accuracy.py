"""Predicted against measured seconds of a training step: as others published them, on GPUs that nobody here has
probed, and as the tables of record_table.py have them, on machines that were.

    python -m benchmarks.time.accuracy --points measured_points.jsonl --models models.json --json
    python -m benchmarks.time.accuracy --table FILE... [--data NAME=FILE ...] --json

Rows are read and traced as memory_accuracy.py does. Each is predicted twice: from the published peaks of its GPU alone,
and after one row of that GPU, which is not scored itself, has calibrated it: the first of its half in the file. The
rows are split by a hash of their id into `tune`, which may be looked at while the code is changed, and `blind`, which
may not. Rows of tier T that time a forward and a backward pass alone are predicted without the end of a step; they are
in a group of their own, and in no other figure. `inside` is the share of rows whose measured seconds lie in the stated
interval, which should hold nine of ten; `spearman` the rank correlation of predicted and measured seconds in each group
of a GPU and a model.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from transformers.utils import logging

from autotune.core.step.profile import Profile
from autotune.core.time.calibration import MEASURED, PUBLISHED, TimeCalibration, calibrate_time
from autotune.core.time.law import SPENT, TimeEstimate, estimate_time, time_law
from autotune.core.time.published import published_speed
from autotune.errors import AutotuneError, UsageError
from benchmarks.memory.accuracy import collect
from benchmarks.memory.points import Point, Skipped, profile_of, read, read_files, stack_matches
from benchmarks.search.quality import pair, world_of
from benchmarks.search.table import Table, load
from benchmarks.search.table import mean as mean_rate

TEACHING = 3  # measured rows that correct the others, and are not scored themselves
REPEATED = 3  # measurements of a candidate, from which on its rate is well known
FEWEST = 4  # rows of a group whose order is compared
PASSES = "full fwd+bwd (no optimizer)"  # the method of rows that have no end of a step
# Architectures of tier T by its own names; of each the config.json of the model named, 2026-11.
PASSED_MODELS: Mapping[str, Mapping[str, Any]] = {
    "gpt2_large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},  # openai-community/gpt2-large
    "opt_13": {  # facebook/opt-1.3b
        "model_type": "opt",
        "hidden_size": 2048,
        "word_embed_proj_dim": 2048,
        "ffn_dim": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Predict every row and print the errors. Returns the exit code: 2 when a file is not what it should be."""
    arguments = _arguments(argv)
    logging.set_verbosity_error()
    if arguments.table:
        try:
            tables = [of_table(load(file), dict(arguments.data)) for file in arguments.table]
        except AutotuneError as error:
            print(*(f"time_accuracy: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
            return error.exit_code
        print(json.dumps({"tables": tables}) if arguments.json else json.dumps(tables, indent=1))
        return 0
    try:
        points, models = read_files(arguments.points, arguments.models)
    except UsageError as error:
        print(*(f"time_accuracy: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return error.exit_code
    models = {**PASSED_MODELS, **models}
    profiles: dict[str, Profile] = {}

    def row_of(values: Mapping[str, Any]) -> dict[str, Any]:
        point = read(as_trained(values), models, measured="step_time_s")
        estimate = predict(point, profile_of(point, values, profiles), whole=values["method"] != PASSES)
        return {
            "tier": values["tier"],
            "gpu": point.spec.name,
            "model": values["model"],
            "stack_matches": stack_matches(values.get("versions") or {}),
            "measured_s": values["step_time_s"],
            "items": estimate.items,
            "spent": [estimate.spent[one] for one in SPENT],
            "error": estimate.step_s / values["step_time_s"] - 1,
        }

    rows, skipped = collect(points, arguments.half, row_of)
    judge(rows)
    exact = [row for row in rows if row["tier"] == "A"]
    answer = {"rows": rows, "skipped": skipped, **errors([row["uncalibrated"] for row in exact]), **summary(exact)}
    answer["groups"] = {name: summary([row for row in exact if row["half"] == name]) for name in ("tune", "blind")}
    answer["groups"]["tier T"] = summary([row for row in rows if row["tier"] == "T"])
    print(json.dumps(answer) if arguments.json else json.dumps(answer["groups"], indent=1))
    return 0


def as_trained(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of two passes as one of a training: what its step has at its end is left out of the prediction."""
    if values["method"] != PASSES:
        return values
    return {**values, "tier": "A", "method": "full", "mixed_precision": "no", "optimizer": "adamw_torch"}


def of_table(table: Table, data: Mapping[str, str]) -> dict[str, Any]:
    """The errors in a table: before any trial, and after three of it, which are not scored: each three in their order.

    Measured rates are those of all repeats, corrected for drift. Most candidates were measured once, so what trials
    differ by is in their errors; "repeated" are those that were measured three times or more.
    """
    world, rates = world_of(table, data), table.rates()
    places = {candidate: place for place, candidate in enumerate(world.candidates)}
    found = world.predicted
    foretold = [candidate for candidate in rates if not found.doubt[places[candidate]]]
    order = [places[candidate] for candidate in foretold]  # as they were measured: at random
    truth = np.array([mean_rate(rates[candidate]) for candidate in foretold])
    predicted_s = found.step_s[order]
    measured_s = predicted_s * found.rates[order] / truth  # a step has as many useful tokens
    spent = found.shares[order] * predicted_s[:, None]
    repeated = np.flatnonzero([len(rates[candidate]) >= REPEATED for candidate in foretold])
    return {
        "name": table.header["name"],
        "candidates": len(order),
        "not_predicted": len(rates) - len(order),
        "spearman": rank_correlation(list(found.rates[order]), list(truth)),
        "before": errors(verdicts(spent, measured_s, 0)),
        "after": errors(verdicts(spent, measured_s, TEACHING)),
        "repeated": {
            "before": errors(verdicts(spent, measured_s, 0, scored=repeated)),
            "after": errors(verdicts(spent, measured_s, TEACHING, scored=repeated)),
        },
    }


def verdicts(spent: Any, measured: Any, teaching: int, *, scored: Any = None) -> list[dict[str, Any]]:
    """What is predicted of each row after others have corrected the prediction: each `teaching` ones that follow one
    another, and of all rows but these.

    spent: predicted seconds by what they go into, (n, 4). measured: seconds, (n,). scored: places of the rows of which
    it is told, None for all; any teaches.
    """
    rows = np.arange(len(measured))
    scored = rows if scored is None else scored
    lessons = [rows[:0]]
    if teaching:
        lessons = [rows[first : first + teaching] for first in range(0, len(rows) - teaching + 1, teaching)]
    found: list[dict[str, Any]] = []
    for lesson in lessons:
        calibration = calibrate_time(MEASURED, spent[lesson], measured[lesson])
        rest = np.setdiff1d(scored, lesson)
        low, high = calibration.interval(spent[rest])
        for predicted, actual, below, above in zip(
            calibration.seconds(spent[rest]), measured[rest], low, high, strict=True
        ):
            found.append({"error": float(predicted / actual - 1), "inside": bool(below <= actual <= above)})
    return found


def predict(point: Point, profile: Profile, *, whole: bool = True) -> TimeEstimate:
    """The seconds of a row's step by what is published of its GPU. Raises Skipped where that is not enough.

    whole: with its end, clipping and the optimizer.
    """
    law = time_law(profile, layers=point.layers, accumulation=point.accumulation)
    law = law if whole else replace(law, step_end=())
    shapes = np.array([point.batch.monomials], dtype=np.float64)
    try:
        speed = published_speed(point.spec.peaks)
    except ValueError as error:
        raise Skipped(f"{point.spec.name}: {error}") from error
    return estimate_time(law, speed, shapes, accumulation=point.accumulation, useful_tokens=None)


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Note in each row what is predicted of it, without any row of its GPU and after the first of its half."""
    blank = calibrate_time(PUBLISHED, np.empty((0, len(SPENT))), [])
    told: dict[tuple[str, ...], TimeCalibration] = {}
    for row in rows:
        spent = np.array([row["spent"]])
        row["uncalibrated"] = _verdict(blank, spent, row["measured_s"])
        row["error"] = row["uncalibrated"]["error"]
        gpu = (row["gpu"], row["half"], row["tier"])
        row["calibrated"] = _verdict(told[gpu], spent, row["measured_s"]) if gpu in told else None
        if gpu not in told:
            told[gpu] = calibrate_time(PUBLISHED, spent, [row["measured_s"]])


def _verdict(calibration: TimeCalibration, spent: Any, measured_s: float) -> dict[str, Any]:
    low, high = (float(side[0]) for side in calibration.interval(spent))
    predicted_s = float(calibration.seconds(spent)[0])
    return {
        "predicted_s": predicted_s,
        "interval_s": [low, high],
        "error": predicted_s / measured_s - 1,
        "inside": low <= measured_s <= high,
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Errors before and after calibration, and how well the order of a group's rows is foretold."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[f"{row['gpu']}, {row['model']}"].append(row)
    return {
        **{state: errors([row[state] for row in rows if row[state]]) for state in ("uncalibrated", "calibrated")},
        "spearman": {
            name: rank_correlation([_predicted(row) for row in group], [row["measured_s"] for row in group])
            for name, group in groups.items()
            if len(group) >= FEWEST
        },
    }


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rho; what is equal shares the mean of its ranks."""
    ranks = []
    for values in (one, other):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    return float(np.corrcoef(ranks)[0, 1])


def errors(verdicts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and 95th percentile of the absolute errors, and the share inside the stated intervals."""
    found = [abs(verdict["error"]) for verdict in verdicts]
    if not found:
        return {"count": 0, "median_abs_error": None, "p95_abs_error": None, "inside": None}
    return {
        "count": len(found),
        "median_abs_error": median(found),
        "p95_abs_error": float(np.quantile(found, 0.95)),
        "inside": mean(verdict["inside"] for verdict in verdicts),
    }


def _predicted(row: Mapping[str, Any]) -> float:
    return float(row["uncalibrated"]["predicted_s"])


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--points", type=Path, help="JSON lines, a measured row each")
    what.add_argument("--table", type=Path, nargs="+", help="as record_table.py writes them")
    parser.add_argument("--data", type=pair, nargs="*", default=[], metavar="NAME=FILE", help="data of a table's space")
    parser.add_argument("--models", type=Path, help="JSON object of architectures by the name that the rows have")
    parser.add_argument("--half", choices=("tune", "blind"), help="only these rows")
    parser.add_argument("--json", action="store_true", help="one JSON object with every row")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
