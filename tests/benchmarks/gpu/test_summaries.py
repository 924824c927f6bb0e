"""benchmarks/gpu/summaries.py: what rows of memory and of seconds add up to."""

from typing import Any

import pytest

from autotune.core.time.law import SPENT
from benchmarks.gpu import summaries
from benchmarks.gpu.cases import make
from benchmarks.gpu.summaries import seconds, summary
from benchmarks.rows import errors

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
    assert found["memory"]["allocated_bytes"] == found["groups"]["method"]["lora"] == errors([0.01, -0.03, 0.02])
    assert found["memory"]["reserved_bytes"]["count"] == 0
    assert found["small"] == {"count": 4, "share_fitting": 0.75}
    assert found["cards"]["24 GB"]["fitting_measured"] == 1
    assert found["time"]["not_predicted"] == ["a", "b", "c"]
    again = summary([*rows, line("a", 0.04, needed=11, taken=10)])
    assert again["memory"]["allocated_bytes"]["max_abs_error"] == 0.04


def test_a_crash_counts_until_the_case_is_measured() -> None:
    """The last row of a case counts; running out of memory where it should fit is told by name."""
    measured = line("a", 0.01, needed=11, taken=10)
    crashed, lost = (
        {**measured, "outcome": kind, "measured": None, "errors": {}} for kind in ("crashed", "out_of_memory")
    )
    found = summary([crashed, {**crashed, "name": "b"}, measured, {**lost, "name": "c"}])
    assert (found["count"], found["failed"], found["missed"]) == (1, [{"name": "b", "why": None}], ["c"])


def timed(name: str, spent: tuple[float, ...], measured_s: float) -> dict[str, Any]:
    """A measured row of one model: predicted seconds by what they are spent on, and real ones."""
    return {
        "name": name,
        "outcome": "measured",
        "case": {"model": "m"},
        "predicted": {"step_s": sum(spent), "spent": dict(zip(SPENT, spent, strict=True))},
        "measured": {"step_s": measured_s},
        "errors": {"step_s": sum(spent) / measured_s - 1},
    }


def test_some_rows_correct_the_others() -> None:
    """All is a fifth slower than was predicted: a sixth off before any row, and little behind three that are not
    scored; twice three of seven teach."""
    rows = [timed(str(n), (0.1 * n, 1.0, 0.5 * n, 0.01), 1.2 * (0.6 * n + 1.01)) for n in range(1, 8)]
    found = seconds(rows)
    assert (found["uncalibrated"]["count"], found["calibrated"]["count"]) == (7, 8)
    assert found["uncalibrated"]["median_abs_error"] == pytest.approx(1 / 6)
    assert found["calibrated"]["median_abs_error"] < 0.05
    assert found["calibrated"]["inside"] == 1.0
    assert found["spearman"] == {"m": pytest.approx(1.0)}
    again = seconds([*rows, {**rows[0], "name": "y", "errors": {}}])
    assert (again["uncalibrated"]["count"], again["not_predicted"]) == (7, ["y"])


def test_rows_of_several_models_teach_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has a model after another; what teaches is drawn from all, and the same each time."""
    given: list[list[float]] = []
    monkeypatch.setattr(
        summaries, "verdicts_after", lambda spent, measured, teaching: given.append(list(measured)) or []
    )
    rows = [timed(str(n), (1.0, 1.0, 1.0, n), float(n)) for n in range(1, 31)]
    seconds(rows)
    assert sorted(given[0]) == list(range(1, 31))
    assert given == [given[0]] * 2
    assert all(max(given[0][i : i + 3]) - min(given[0][i : i + 3]) > 2 for i in range(0, 30, 3))
