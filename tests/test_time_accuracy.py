"""benchmarks/time_accuracy.py: a row calibrates its GPU and is not scored, intervals are counted, orders compared."""

from typing import Any

import pytest
from time_accuracy import errors, judge, rank_correlation, summary


def row(gpu: str, factor: float, seconds: float, half: str = "tune") -> dict[str, Any]:
    """A step that spends its seconds on arithmetic alone; factor: measured over predicted."""
    return {
        "gpu": gpu,
        "half": half,
        "model": "a model",
        "spent": [0.0, seconds, 0.0, 0.0],
        "measured_s": factor * seconds,
    }


def test_the_first_row_of_a_gpu_calibrates_the_others() -> None:
    """Of its own half, and only them."""
    rows = [row("one", 1.5, 1.0), row("other", 1.0, 1.0), row("one", 1.5, 3.0), row("one", 1.5, 2.0, "blind")]
    judge(rows)
    assert [each["calibrated"] is None for each in rows] == [True, True, False, True]
    assert rows[0]["error"] == pytest.approx(1 / 1.5 - 1)
    assert abs(rows[2]["calibrated"]["error"]) < abs(rows[2]["uncalibrated"]["error"]) / 2


def test_a_row_far_off_is_outside_its_interval() -> None:
    """Thrice the seconds are, a tenth more are not."""
    rows = [row("one", 3.0, 1.0), row("other", 1.1, 1.0)]
    judge(rows)
    assert [each["uncalibrated"]["inside"] for each in rows] == [False, True]
    found = summary(rows)
    assert found["uncalibrated"]["inside"] == 0.5
    assert found["calibrated"] == errors([])


def test_the_order_of_a_group_is_compared() -> None:
    """As predicted, and the other way round."""
    rows = [row("one", 1.0, seconds) for seconds in (1.0, 2.0, 3.0, 4.0)]
    judge(rows)
    assert summary(rows)["spearman"] == {"one, a model": pytest.approx(1.0)}
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
