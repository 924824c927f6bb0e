"""`gpu.suite memory`: the errors of predicted memory by group, and whether what should fit on a smaller card did.

Leaves out measuring (measure.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from autotune.core.memory.estimate import MEMORY_SHARE
from benchmarks.gpu.cases import CARDS, CASES
from benchmarks.gpu.measure import Part
from benchmarks.gpu.predictions import DONE

STEPS = 2  # measured ones: a trial has no rate from fewer
COUNTERS = ("allocated_bytes", "reserved_bytes", "device_bytes")
GOAL = {"rows": 40, "median_abs_error": 0.015, "max_abs_error": 0.05, "share_of_small_fitting": 0.95}
SMALL = 0.85  # share of the limit: what is measured below it should be predicted to fit

Row = Mapping[str, Any]


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the errors of the whole device's rows by group, and the outcomes on the cards.

    missed: predicted to fit and out of memory, on a card or on the whole device. failed: neither measured nor out of
    memory. meets_goal: None with fewer rows than the goal asks for.
    """
    last = {row["name"]: row for row in rows}
    found = list(last.values())
    measured = [row for row in found if row["outcome"] == "measured"]
    whole = [row for row in measured if row["case"]["card_bytes"] is None]
    missed = [row["name"] for row in found if row["outcome"] == "out_of_memory" and row["predicted"]["fits"]]
    total = {name: errors(whole, name) for name in (*COUNTERS, "step_s")}
    small = [fits for row in measured for fits in small_on_cards(row)]
    share = sum(small) / len(small) if small else None
    allocated = total["allocated_bytes"]
    meets = None
    if len(whole) >= GOAL["rows"]:
        meets = (
            allocated["median_abs_error"] <= GOAL["median_abs_error"]
            and allocated["max_abs_error"] <= GOAL["max_abs_error"]
            and not missed
            and (share is None or share >= GOAL["share_of_small_fitting"])
        )
    return {
        "count": len(whole),
        "errors": total,
        "groups": groups(whole),
        "cards": {f"{card / 1e9:.0f} GB": on_card(found, card) for card in CARDS},
        "small": {"count": len(small), "share_fitting": share},
        "missed": missed,
        "failed": [{"name": row["name"], "why": row.get("why")} for row in found if row["outcome"] not in DONE],
        "goal": GOAL,
        "meets_goal": meets,
    }


def errors(rows: Sequence[Row], counter: str) -> dict[str, Any]:
    """Return the median and the largest absolute error of one counter, and whose the largest is; None without rows."""
    found = sorted((abs(row["errors"][counter]), row["name"]) for row in rows if counter in row["errors"])
    if not found:
        return {"count": 0, "median_abs_error": None, "max_abs_error": None, "worst": None}
    middle = median(error for error, _ in found)
    return {"count": len(found), "median_abs_error": middle, "max_abs_error": found[-1][0], "worst": found[-1][1]}


def groups(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of the allocated peak by what a case is made of, as {aspect: {value: errors}}."""
    by_aspect: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        case = row["case"]
        knobs = {knob: str(case["candidate"][knob]) for knob in ("method", "checkpointing", "optimizer")}
        for aspect, value in {"model": case["model"], "rows": case["rows"], **knobs}.items():
            by_aspect.setdefault(aspect, {}).setdefault(value, []).append(row)
    return {
        aspect: {value: errors(members, "allocated_bytes") for value, members in sorted(values.items())}
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


def on_card(rows: Sequence[Row], card_bytes: int) -> dict[str, int]:
    """Count the rows of a card by what was predicted and by their outcome."""
    here = [row for row in rows if row["case"]["card_bytes"] == card_bytes]
    return {
        f"{'fitting' if fits else 'beyond'}_{outcome}": sum(
            row["predicted"]["fits"] is fits and row["outcome"] == outcome for row in here
        )
        for fits in (True, False)
        for outcome in DONE
    }


MEMORY = Part(file="gpu_memory.jsonl", cases=CASES, cards=CARDS, steps=STEPS, shown="allocated_bytes", summary=summary)
