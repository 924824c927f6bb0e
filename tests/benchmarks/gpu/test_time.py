"""benchmarks/gpu/time.py: errors before any row and after three that are not scored."""

from typing import Any

import pytest

from autotune.core.time.law import SPENT
from benchmarks.gpu import time as time_part
from benchmarks.gpu.time import summary


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
    scored; twice three of seven teach. A crash counts until the case is measured."""
    rows = [timed(str(n), (0.1 * n, 1.0, 0.5 * n, 0.01), 1.2 * (0.6 * n + 1.01)) for n in range(1, 8)]
    found = summary(rows)
    assert (found["count"], found["uncalibrated"]["count"], found["calibrated"]["count"]) == (7, 7, 8)
    assert found["uncalibrated"]["median_abs_error"] == pytest.approx(1 / 6)
    assert found["calibrated"]["median_abs_error"] < 0.05
    assert found["calibrated"]["inside"] == 1.0
    assert found["spearman"] == {"m": pytest.approx(1.0)}
    crashed = {**timed("x", (1.0, 1.0, 1.0, 1.0), 1.0), "outcome": "crashed", "measured": None, "errors": {}}
    again = summary([{**crashed, "name": "1"}, *rows, crashed, {**rows[0], "name": "y", "errors": {}}])
    assert (again["count"], again["not_predicted"]) == (7, ["y"])
    assert [row["name"] for row in again["failed"]] == ["x"]


def test_rows_of_several_models_teach_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has a model after another; what teaches is drawn from all, and the same each time."""
    given: list[list[float]] = []
    monkeypatch.setattr(time_part, "verdicts", lambda spent, measured, teaching: given.append(list(measured)) or [])
    rows = [timed(str(n), (1.0, 1.0, 1.0, n), float(n)) for n in range(1, 31)]
    time_part.summary(rows)
    assert sorted(given[0]) == list(range(1, 31))
    assert given == [given[0]] * 2
    assert all(max(given[0][i : i + 3]) - min(given[0][i : i + 3]) > 2 for i in range(0, 30, 3))
