"""`gpu.suite time`: predicted against measured seconds of a training step, on the GPU at hand, which was probed.

Errors are those of the prediction as it was written before anything was measured, and of the same prediction calibrated
by three rows, as a search calibrates it. The rows are in a seeded random order, because neighbours in the table are of
one model and would teach little about the others. Leaves out measuring (measure.py).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from autotune.core.time.law import SPENT
from benchmarks.gpu.cases import CASES, SEED
from benchmarks.gpu.measure import Part
from benchmarks.time.accuracy import FEWEST, TEACHING, errors, rank_correlation, verdicts

STEPS = 5  # measured ones

Row = Mapping[str, Any]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors before any row and after three, and how well the order of each model's rows is predicted.

    The last row of a case counts. not_predicted: measured, but no seconds were predicted.
    """
    last = list({row["name"]: row for row in rows}.values())
    predicted = [row for row in last if "step_s" in row["errors"]]
    found = [predicted[place] for place in np.random.default_rng(SEED).permutation(len(predicted))]
    measured = np.array([row["measured"]["step_s"] for row in found])
    spent = np.array([[row["predicted"]["spent"][one] for one in SPENT] for row in found]).reshape(-1, len(SPENT))
    models: dict[str, list[Row]] = {}
    for row in found:
        models.setdefault(row["case"]["model"], []).append(row)
    return {
        "count": len(found),
        "uncalibrated": errors(verdicts(spent, measured, 0)),
        "calibrated": errors(verdicts(spent, measured, TEACHING)),
        "spearman": {
            model: rank_correlation(
                [row["predicted"]["step_s"] for row in of_model], [row["measured"]["step_s"] for row in of_model]
            )
            for model, of_model in models.items()
            if len(of_model) >= FEWEST
        },
        "not_predicted": [r["name"] for r in last if r["outcome"] == "measured" and "step_s" not in r["errors"]],
        "failed": [{"name": row["name"], "why": row.get("why")} for row in last if row["outcome"] != "measured"],
    }


TIME = Part(file="gpu_time.jsonl", cases=CASES, cards={}, steps=STEPS, shown="step_s", summary=summary)
