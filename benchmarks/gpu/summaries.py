"""What the rows of `gpu.suite steps` add up to: errors of predicted memory and seconds, and outcomes on smaller cards.

Leaves out measuring (measure.py).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from autotune.core.memory.estimate import MEMORY_SHARE
from autotune.core.time.law import SPENT
from benchmarks.gpu.cases import CARDS, SEED
from benchmarks.gpu.predictions import DONE
from benchmarks.rows import errors
from benchmarks.time.accuracy import TEACHING, errors_and_share, spearman, verdicts_after

COUNTERS = ("allocated_bytes", "reserved_bytes", "device_bytes")
SMALL = 0.85  # share of the limit: what is measured below it should be predicted to fit

Row = Mapping[str, Any]


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the errors of the whole device's rows, and the outcomes on the cards. The last row of a case counts.

    small: measured well below the limit of a card, which should be predicted to fit. missed: predicted to fit and out
    of memory, on a card or on the whole device. failed: neither measured nor out of memory.
    """
    found = list({row["name"]: row for row in rows}.values())
    measured = [row for row in found if row["outcome"] == "measured"]
    whole = [row for row in measured if row["case"]["card_bytes"] is None]
    small = [fits for row in measured for fits in small_on_cards(row)]
    return {
        "count": len(whole),
        "memory": {counter: errors_of(whole, counter) for counter in COUNTERS},
        "groups": groups(whole),
        "cards": {f"{card / 1e9:.0f} GB": on_card(found, card) for card in CARDS},
        "small": {"count": len(small), "share_fitting": sum(small) / len(small) if small else None},
        "missed": [row["name"] for row in found if row["outcome"] == "out_of_memory" and row["predicted"]["fits"]],
        "failed": [{"name": row["name"], "why": row.get("why")} for row in found if row["outcome"] not in DONE],
        "time": seconds(whole),
    }


def errors_of(rows: Iterable[Row], counter: str) -> dict[str, Any]:
    """Return the errors of one counter; a row need not have it."""
    return errors([row["errors"][counter] for row in rows if counter in row["errors"]])


def groups(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the errors of the allocated peak by what a case is made of, as {aspect: {value: errors}}."""
    by_aspect: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        case = row["case"]
        knobs = {knob: str(case["candidate"][knob]) for knob in ("method", "checkpointing", "optimizer")}
        for aspect, value in {"model": case["model"], "rows": case["rows"], **knobs}.items():
            by_aspect[aspect][value].append(row)
    return {
        aspect: {value: errors_of(members, "allocated_bytes") for value, members in sorted(values.items())}
        for aspect, values in by_aspect.items()
    }


def small_on_cards(row: Row) -> list[bool]:
    """Return for each card on which a row fits by a margin, as measured, whether it is predicted to fit there.

    A row of the whole device counts for every card, a row of a card for that one.
    """
    own = row["case"]["card_bytes"]
    if row["measured"]["allocated_bytes"] is None:
        return []
    taken = row["measured"]["allocated_bytes"] + row["predicted"]["context_bytes"]
    limits = [MEMORY_SHARE * card for card in CARDS if own in (None, card)]
    return [row["predicted"]["needed_bytes"] <= limit for limit in limits if taken < SMALL * limit]


def on_card(rows: Iterable[Row], card_bytes: int) -> dict[str, int]:
    """Count the rows of a card by what was predicted and by their outcome."""
    here = [row for row in rows if row["case"]["card_bytes"] == card_bytes]
    return {
        f"{'fitting' if fits else 'beyond'}_{outcome}": sum(
            row["predicted"]["fits"] is fits and row["outcome"] == outcome for row in here
        )
        for fits in (True, False)
        for outcome in DONE
    }


def seconds(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of predicted seconds, and how well the order of each model's rows is predicted.

    uncalibrated: the predictions as they were written before anything was measured. calibrated: the same predictions
    after three rows, as a search calibrates them. The rows are in a seeded random order, because neighbours in the
    table are of one model and would teach little about the others. not_predicted: no seconds were predicted.
    """
    predicted = [row for row in rows if "step_s" in row["errors"]]
    found = [predicted[place] for place in np.random.default_rng(SEED).permutation(len(predicted))]
    measured = np.array([row["measured"]["step_s"] for row in found])
    spent = np.array([[row["predicted"]["spent"][one] for one in SPENT] for row in found]).reshape(-1, len(SPENT))
    return {
        "uncalibrated": errors_and_share(verdicts_after(spent, measured, 0)),
        "calibrated": errors_and_share(verdicts_after(spent, measured, TEACHING)),
        "spearman": spearman(
            (row["case"]["model"], row["predicted"]["step_s"], row["measured"]["step_s"]) for row in found
        ),
        "not_predicted": [row["name"] for row in rows if "step_s" not in row["errors"]],
    }
