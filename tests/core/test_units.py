"""Bytes, seconds and rates as people read them."""

import pytest

from autotune.core.units import count_of, format_bytes, format_duration, format_rate


@pytest.mark.parametrize(("count", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (2000, "2,000 rows")])
def test_counts(count: int, text: str) -> None:
    """One is singular, and thousands have a comma."""
    assert count_of(count, "row") == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536 * 2**20, "1.5 GiB"), (2**40, "1024 GiB")]
)
def test_bytes(count: int, text: str) -> None:
    """Three significant digits in the largest unit."""
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0031, "3.1 ms"),
        (0.0999, "100 ms"),
        (0.34, "0.34 s"),
        (12, "12.0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """As a person would say it."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("rate", "unit", "text"),
    [(183.4, "tokens", "183 tokens/s"), (1.25e12, "FLOP", "1.25 TFLOP/s"), (5432, "B", "5432 B/s")],
)
def test_rates(rate: float, unit: str, text: str) -> None:
    """With a metric prefix where one helps."""
    assert format_rate(rate, unit) == text
