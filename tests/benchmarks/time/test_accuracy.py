"""benchmarks/time/accuracy.py: a row calibrates its GPU and is not scored, intervals are counted, orders compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.core.candidate import Candidate
from autotune.core.trials.trial import Trial
from benchmarks.search.replays import World
from benchmarks.search.table import Table
from benchmarks.time import accuracy as time_accuracy
from benchmarks.time.accuracy import PASSES, as_trained, errors_and_share, judge, of_table, spearman, summary
from tests.stand_ins import measured, predicted_rates

BASE = Candidate(max_length=64, per_device_train_batch_size=1, gradient_accumulation_steps=1, method="full")


def row(gpu: str, factor: float, seconds: float, half: str = "tune") -> dict[str, Any]:
    """A step that spends its seconds on arithmetic alone; factor: measured over predicted."""
    return {
        "gpu": gpu,
        "tier": "A",
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
    assert found["calibrated"] == errors_and_share([])


def test_two_passes_are_read_as_a_training_without_its_end() -> None:
    """Rows of tier T say `no optimizer`; every other row is as it is."""
    passes = {"tier": "T", "method": PASSES, "model": "gpt2_large"}
    assert as_trained(passes)["tier"] == "A"
    assert as_trained(passes)["method"] == "full"
    whole = {"tier": "B", "method": "lora"}
    assert as_trained(whole) is whole


def test_the_order_of_a_group_is_compared() -> None:
    """As predicted, and the other way round; three rows are too few."""
    rows = [row("one", 1.0, seconds) for seconds in (1.0, 2.0, 3.0, 4.0)]
    judge(rows)
    assert summary(rows)["spearman"] == {"one, a model": pytest.approx(1.0)}
    reversed_order = [("many", float(place), -float(place)) for place in range(4)]
    assert spearman([*reversed_order, *(("few", *rest) for _, *rest in reversed_order[:3])]) == {
        "many": pytest.approx(-1)
    }


@pytest.mark.parametrize(
    ("label", "tier", "halves"),
    [
        ("looked at", "A", ("tune",)),
        ("blind", "A", ("blind",)),
        ("forward and backward alone", "T", ("tune", "blind")),
    ],
)
@pytest.mark.parametrize("state", ["uncalibrated", "calibrated"])
def test_the_table_of_errors_is_that_of_the_committed_rows(
    label: str, tier: str, halves: tuple[str, ...], state: str
) -> None:
    """docs/time.md: count, median, 95th percentile, largest, and the share inside, to the digits that are shown."""
    root = Path(__file__).parents[3]
    rows = map(json.loads, (root / "benchmarks/results/time_accuracy.jsonl").read_text(encoding="utf-8").splitlines())
    verdicts = [row[state] for row in rows if row["tier"] == tier and row["half"] in halves and row[state]]
    found = [100 * abs(verdict["error"]) for verdict in verdicts]
    inside = 100 * np.mean([verdict["inside"] for verdict in verdicts])
    shown = [f"{value:.1f} %" for value in (np.median(found), np.quantile(found, 0.95), max(found))]
    line = f"| {label}, {state} | {len(found)} | {' | '.join(shown)} | {inside:.0f} % |"
    assert line in (root / "docs/time.md").read_text(encoding="utf-8").splitlines()


def test_a_table_is_scored_before_and_after_three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is 1.3 times as slow as predicted: in the right order, and nearly right once three rows have told.

    Twice three do. The last one was measured three times.
    """
    candidates = [replace(BASE, per_device_train_batch_size=rows) for rows in range(1, 9)]
    predicted = predicted_rates([100.0 * rows for rows in range(1, 9)])
    outcomes = {c: [replace(measured(), useful_tokens_per_s=100.0 * n / 1.3)] for n, c in enumerate(candidates, 1)}
    world = World(candidates=candidates, start=BASE, opening=(), references=(), predicted=predicted,
                  predicting_s=0.0, outcomes=outcomes)  # fmt: skip
    monkeypatch.setattr(time_accuracy, "world_of", lambda table, data: world)
    rows = tuple(
        Trial(number=place, round=0, role="search", candidate=c, outcome=outcomes[c][0])
        for place, c in enumerate(reversed(candidates))
    )
    rows += tuple(replace(rows[-1], number=order, round=order - 7) for order in (8, 9))
    found = of_table(Table(header={"name": "made up"}, rows=rows), {})
    assert (found["candidates"], found["spearman"]) == (8, pytest.approx(1.0))
    assert (found["before"]["count"], found["after"]["count"]) == (8, 2 * 5)
    assert found["before"]["median_abs_error"] == pytest.approx(1 - 1 / 1.3)
    assert found["after"]["median_abs_error"] < 0.05
    assert (found["repeated"]["before"]["count"], found["repeated"]["after"]["count"]) == (1, 2)
    assert found["repeated"]["before"]["median_abs_error"] == pytest.approx(1 - 1 / 1.3)
