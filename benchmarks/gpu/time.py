"""`gpu_suite.py time`: predicted against measured seconds of a training step, on the GPU at hand, which was probed.

Errors are those of the prediction as it was written before anything was measured, and of the same corrected by three
rows, as a search corrects it: each three of all rows in a seeded random order, for neighbours in the table are of one
model, which would teach little of the others. Leaves out measuring (gpu_rows.py).
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
    """Errors before any row and after three, and how well the order of each model's rows is foretold.

    Of a case that was measured again its last row counts. not_predicted: measured, but no seconds were predicted.
    """
    last = list({row["name"]: row for row in rows}.values())
    foretold = [row for row in last if "step_s" in row["errors"]]
    found = [foretold[place] for place in np.random.default_rng(SEED).permutation(len(foretold))]
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
