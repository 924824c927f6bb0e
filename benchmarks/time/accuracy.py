"""Predicted against measured seconds of a training step, of other people's runs and of our own tables.

    python -m benchmarks.time.accuracy --points measured_points.jsonl --models models.json --json
    python -m benchmarks.time.accuracy --table FILE... [--data NAME=FILE ...] --json

Points are steps that others timed on GPUs that nobody here has probed; memory/points.py reads and traces them. Each is
predicted twice: from the published peaks of its GPU alone, and calibrated by one row of that GPU, the first of its half
in the file, which is not scored itself. A hash of their id splits the rows into `tune`, which may be looked at while
the code is changed, and `blind`, which may not. Rows of tier T time a forward and a backward pass alone. They are
predicted without the end of a step, and are in a group of their own and in no other figure.

Tables are those of record_table.py, on machines that were probed.

`inside` is the share of rows whose measured seconds lie in the stated interval, which should hold nine of ten.
`spearman` is the rank correlation of predicted and measured seconds in each group of a GPU and a model.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from transformers.utils import logging

from autotune.core.step.profile import Profile
from autotune.core.time.calibration import MEASURED, PUBLISHED, TimeCalibration, calibrate_time
from autotune.core.time.law import SPENT, TimeEstimate, estimate_time, time_law
from autotune.core.time.published import published_speed
from benchmarks.command import Answer, command
from benchmarks.memory.accuracy import add_points, collect, keep
from benchmarks.memory.points import Point, Skipped, profile_of, read, read_files
from benchmarks.rows import Row, errors
from benchmarks.search.quality import add_data, world_of
from benchmarks.search.table import Table, load

TEACHING = 3  # measured rows that correct the others and are not scored themselves
REPEATED = 3  # measurements after which the rate of a candidate is well known
FEWEST = 4  # rows in a group whose order is compared
PASSES = "full fwd+bwd (no optimizer)"  # the method of rows without the end of a step
# Architectures of tier T by the names in its rows, from the config.json of the models named, 2026-11.
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


def options(parser: argparse.ArgumentParser) -> None:
    """Name rows of points, or tables."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--points", type=Path, help="JSON lines, a measured row each")
    what.add_argument("--table", type=Path, nargs="+", help="as record_table.py writes them")
    add_points(parser)
    add_data(parser)


def answer(arguments: argparse.Namespace) -> Answer:
    """Predict every row of the points, or of the tables, and sum up the errors."""
    if arguments.table:
        logging.set_verbosity_error()
        return {"tables": [of_table(load(file), dict(arguments.data)) for file in arguments.table]}
    points, models = read_files(arguments.points, arguments.models)
    models = {**PASSED_MODELS, **models}
    profiles: dict[str, Profile] = {}

    def row_of(values: Mapping[str, Any]) -> Row:
        point = read(as_trained(values), models, measured="step_time_s")
        estimate = predict(point, profile_of(point, values, profiles), whole=values["method"] != PASSES)
        return {
            "tier": values["tier"],
            "gpu": point.spec.name,
            "model": values["model"],
            "stack_matches": point.stack_matches,
            "measured_s": values["step_time_s"],
            "items": estimate.items,
            "spent": [estimate.spent[one] for one in SPENT],
            "error": estimate.step_s / values["step_time_s"] - 1,
        }

    rows, skipped = collect(points, arguments.half, row_of)
    judge(rows)
    keep(rows, arguments.out)
    exact = [row for row in rows if row["tier"] == "A"]
    groups = {name: summary([row for row in exact if row["half"] == name]) for name in ("tune", "blind")}
    groups["tier T"] = summary([row for row in rows if row["tier"] == "T"])
    total = errors_and_share([row["uncalibrated"] for row in exact])
    return {"rows": rows, "skipped": skipped, **total, **summary(exact), "groups": groups}


def as_trained(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a row of two passes as one of a training; the prediction leaves out the end of the step."""
    if values["method"] != PASSES:
        return values
    return {**values, "tier": "A", "method": "full", "mixed_precision": "no", "optimizer": "adamw_torch"}


def of_table(table: Table, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the errors in a table: before any trial, and calibrated by three trials, which are not scored.

    Each three trials that follow one another calibrate once. Measured rates are means of all repeats, corrected for
    drift. Most candidates were measured once, so the noise of a trial is in their errors; "repeated" candidates were
    measured three times or more.
    """
    world, rates = world_of(table, data), table.rates()
    places = {candidate: place for place, candidate in enumerate(world.candidates)}
    found = world.predicted
    predictable = [candidate for candidate in rates if not found.doubt[places[candidate]]]
    order = [places[candidate] for candidate in predictable]  # in the random order of their measurements
    truth = np.array([geometric_mean(rates[candidate]) for candidate in predictable])
    predicted_s = found.step_s[order]
    measured_s = predicted_s * found.rates[order] / truth  # a step has as many useful tokens
    spent = found.shares[order] * predicted_s[:, None]
    repeated = np.flatnonzero([len(rates[candidate]) >= REPEATED for candidate in predictable])

    def before_and_after(scored: Any) -> dict[str, Any]:
        lessons = {"before": 0, "after": TEACHING}
        return {
            name: errors_and_share(verdicts_after(spent, measured_s, teaching, scored=scored))
            for name, teaching in lessons.items()
        }

    return {
        "name": table.header["name"],
        "candidates": len(order),
        "not_predicted": len(rates) - len(order),
        "spearman": float(spearmanr(found.rates[order], truth).statistic),
        **before_and_after(None),
        "repeated": before_and_after(repeated),
    }


def verdicts_after(spent: Any, measured_s: Any, teaching: int, *, scored: Any = None) -> list[Row]:
    """Return the verdict on each row, after others have calibrated it.

    teaching: how many rows that follow one another calibrate all others, each such run once. scored: places of the rows
    that are judged, None for all; any row teaches. The others are those of `verdicts`.
    """
    rows = np.arange(len(measured_s))
    scored = rows if scored is None else scored
    lessons = [rows[:0]]
    if teaching:
        lessons = [rows[first : first + teaching] for first in range(0, len(rows) - teaching + 1, teaching)]
    found = []
    for lesson in lessons:
        calibration, rest = calibrate_time(MEASURED, spent[lesson], measured_s[lesson]), np.setdiff1d(scored, lesson)
        found += verdicts(calibration, spent[rest], measured_s[rest])
    return found


def verdicts(calibration: TimeCalibration, spent: Any, measured_s: Any) -> list[Row]:
    """Return the prediction of each row, its error, and whether its interval holds the measurement.

    spent: predicted seconds by what they go into, (n, 4). measured_s: seconds, (n,).
    """
    low, high = calibration.interval(spent)
    columns = (calibration.seconds(spent).tolist(), low.tolist(), high.tolist(), measured_s)
    return [
        {
            "predicted_s": predicted,
            "interval_s": [below, above],
            "error": float(predicted / actual - 1),
            "inside": bool(below <= actual <= above),
        }
        for predicted, below, above, actual in zip(*columns, strict=True)
    ]


def predict(point: Point, profile: Profile, *, whole: bool = True) -> TimeEstimate:
    """Return the seconds of a row's step from what is published of its GPU. Raises Skipped where that is not enough.

    whole: with the end of the step, which is clipping and the optimizer.
    """
    law = time_law(profile, layers=point.layers, accumulation=point.accumulation)
    law = law if whole else replace(law, step_end={})
    shapes = np.array([point.batch.monomials], dtype=np.float64)
    try:
        speed = published_speed(point.spec.peaks)
    except ValueError as error:
        raise Skipped(f"{point.spec.name}: {error}") from error
    return estimate_time(law, speed, shapes, accumulation=point.accumulation, useful_tokens=None)


def judge(rows: Sequence[Row]) -> None:
    """Add both predictions to each row: without any other row, and calibrated by the first of its GPU and half."""
    blank = calibrate_time(PUBLISHED, np.empty((0, len(SPENT))), [])
    calibrations: dict[tuple[str, ...], TimeCalibration] = {}
    for row in rows:
        spent, measured_s = np.array([row["spent"]]), [row["measured_s"]]
        [row["uncalibrated"]] = verdicts(blank, spent, measured_s)
        row["error"], row["calibrated"] = row["uncalibrated"]["error"], None
        gpu = (row["gpu"], row["half"], row["tier"])
        if gpu in calibrations:
            [row["calibrated"]] = verdicts(calibrations[gpu], spent, measured_s)
        else:
            calibrations[gpu] = calibrate_time(PUBLISHED, spent, measured_s)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors before and after calibration, and how well the order in each group is predicted."""
    seconds = [(f"{row['gpu']}, {row['model']}", row["uncalibrated"]["predicted_s"], row["measured_s"]) for row in rows]
    states = ("uncalibrated", "calibrated")
    found = {state: errors_and_share([row[state] for row in rows if row[state]]) for state in states}
    return {**found, "spearman": spearman(seconds)}


def spearman(seconds: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Return Spearman's rho of predicted and measured seconds in each group, if it is not too small.

    seconds: group, predicted and measured seconds of each row.
    """
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for group, *both in seconds:
        groups[group].append((both[0], both[1]))
    return {name: float(spearmanr(both).statistic) for name, both in groups.items() if len(both) >= FEWEST}


def errors_and_share(verdicts: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of rows, and the share of the measurements inside the stated intervals."""
    inside = fmean(verdict["inside"] for verdict in verdicts) if verdicts else None
    return {**errors([verdict["error"] for verdict in verdicts]), "inside": inside}


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
