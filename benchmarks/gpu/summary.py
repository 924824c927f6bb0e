"""What the rows of `gpu_suite.py memory` add up to: errors by group, and whether what should fit on a card did.

Pure arithmetic on rows as gpu_rows.py writes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from autotune.core.memory.estimate import MEMORY_SHARE
from benchmarks.gpu.cases import CARDS

DONE = ("measured", "out_of_memory")  # outcomes that are an answer; others are tried again
COUNTERS = ("allocated_bytes", "reserved_bytes", "device_bytes")
GOAL = {"rows": 40, "median_abs_error": 0.015, "max_abs_error": 0.05, "share_of_small_fitting": 0.95}
SMALL = 0.85  # of the limit: what is measured below it ought to be predicted to fit

Row = Mapping[str, Any]


def summary(rows: Iterable[Row]) -> dict[str, Any]:
    """Errors of the whole device's rows, by group; and what became of the cards.

    missed: predicted to fit, and out of memory; on a card or on the whole device. failed: neither measured nor out of
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


def untried(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """What is not measured, and why: what nothing foretells, and what is not predicted to fit the whole device.

    rows: of both kinds, in the order in which they were written.
    """
    last = {row["name"]: row for row in rows}
    return [
        {"name": row["name"], "why": row.get("why") or "it is not predicted to fit"}
        for row in last.values()
        if row["kind"] == "prediction" and _is_untried(row["predicted"], row["case"]["card_bytes"])
    ]


def _is_untried(predicted: Row | None, card_bytes: int | None) -> bool:
    return predicted is None or (card_bytes is None and not predicted["fits"])


def errors(rows: Sequence[Row], counter: str) -> dict[str, Any]:
    """Median and largest absolute error of one counter, and which row has that one; None without rows."""
    found = sorted((abs(row["errors"][counter]), row["name"]) for row in rows if counter in row["errors"])
    if not found:
        return {"count": 0, "median_abs_error": None, "max_abs_error": None, "worst": None}
    middle = median(error for error, _ in found)
    return {"count": len(found), "median_abs_error": middle, "max_abs_error": found[-1][0], "worst": found[-1][1]}


def groups(rows: Sequence[Row]) -> dict[str, Any]:
    """Errors of the allocated peak by what a case is made of, as {aspect: {value: errors}}."""
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
    """Of each card below whose limit a row was measured by a margin: whether it is predicted to fit there.

    A row of the whole device counts for every card, one of a card for that one.
    """
    own = row["case"]["card_bytes"]
    if row["measured"]["allocated_bytes"] is None:
        return []
    taken = row["measured"]["allocated_bytes"] + row["predicted"]["context_bytes"]
    limits = [MEMORY_SHARE * card for card in CARDS if own in (None, card)]
    return [row["predicted"]["needed_bytes"] <= limit for limit in limits if taken < SMALL * limit]


def on_card(rows: Sequence[Row], card_bytes: int) -> dict[str, int]:
    """How many rows of a card there are, by what was predicted and what came of it."""
    here = [row for row in rows if row["case"]["card_bytes"] == card_bytes]
    return {
        f"{'fitting' if fits else 'beyond'}_{outcome}": sum(
            row["predicted"]["fits"] is fits and row["outcome"] == outcome for row in here
        )
        for fits in (True, False)
        for outcome in DONE
    }
