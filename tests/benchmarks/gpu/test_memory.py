"""benchmarks/gpu/memory.py: what its rows add up to, and when the goal is met."""

from typing import Any

import pytest

from benchmarks.gpu.cases import make
from benchmarks.gpu.memory import GOAL, summary

GIB = 2**30


def line(name: str, error: float, *, needed: int, taken: int, card: int | None = None) -> dict[str, Any]:
    """A measured row of `lora` in GiB."""
    case = make("m", "lora", 1, 512)
    return {
        "name": name,
        "outcome": "measured",
        "case": {"model": "m", "rows": "full", "card_bytes": card, "candidate": case.candidate.to_dict()},
        "predicted": {"needed_bytes": needed * GIB, "context_bytes": 0, "fits": True},
        "measured": {"allocated_bytes": taken * GIB},
        "errors": {"allocated_bytes": error},
    }


def test_the_summary_of_a_table_made_by_hand() -> None:
    """Median and largest error by group; a row well below a card's limit counts for it, and should fit."""
    rows = [
        line("a", 0.01, needed=11, taken=10),  # limits of the cards: 13.4, 20.1 and 40.2 GiB; 85 %: 11.4, 17.1, 34.2
        line("b", -0.03, needed=41, taken=33),
        line("c", 0.02, needed=50, taken=49),
        line("d", 0.5, needed=20, taken=19, card=24 * 10**9),
    ]
    found = summary(rows)
    expected = {"count": 3, "median_abs_error": 0.02, "max_abs_error": 0.03, "worst": "b"}
    assert found["errors"]["allocated_bytes"] == found["groups"]["method"]["lora"] == expected
    assert found["errors"]["reserved_bytes"]["count"] == 0
    assert found["small"] == {"count": 4, "share_fitting": 0.75}
    assert found["cards"]["24 GB"]["fitting_measured"] == 1
    assert found["meets_goal"] is None
    assert summary([*rows, line("a", 0.04, needed=11, taken=10)])["errors"]["allocated_bytes"]["worst"] == "a"


@pytest.mark.parametrize(
    ("worst", "out_of_memory", "met"), [(0.05, False, True), (0.051, False, False), (0.01, True, False)]
)
def test_the_goal(worst: float, out_of_memory: bool, met: bool) -> None:
    """Met by enough rows whose errors are small, and only if nothing that should fit ran out of memory."""
    rows = [line(str(number), 0.01, needed=50, taken=49) for number in range(int(GOAL["rows"]) - 1)]
    rows.append(line("worst", worst, needed=50, taken=49))
    if out_of_memory:
        rows.append({**line("lost", 0.0, needed=50, taken=49), "outcome": "out_of_memory", "measured": None})
    assert summary(rows)["meets_goal"] is met
