"""Calibration of memory: a factor and an offset, fitted to what trials measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.memory.calibration import FACTORS, MemoryCalibration, calibrate_memory

PEAKS = st.lists(st.tuples(st.floats(1e6, 1e11), st.floats(1e6, 1e11)), min_size=1, max_size=8)


def test_without_trials_the_prediction_stands() -> None:
    """Nothing measured, nothing changed."""
    assert calibrate_memory([]) == MemoryCalibration()
    assert calibrate_memory([]).at_most(5e9) == 5e9


def test_one_trial_gives_an_offset() -> None:
    """One pair cannot tell a factor from an offset; the offset is what libraries hold."""
    found = calibrate_memory([(4e9, 4.5e9)])
    assert (found.factor, found.offset_bytes) == (1.0, 0.5e9)
    assert found.at_most(8e9) == 8.5e9


def test_two_trials_of_other_sizes_give_both() -> None:
    """By hand: 1.1 x 2 + 0.3 = 2.5 and 1.1 x 4 + 0.3 = 4.7."""
    found = calibrate_memory([(2e9, 2.5e9), (4e9, 4.7e9)])
    assert (found.factor, found.offset_bytes) == (pytest.approx(1.1), pytest.approx(0.3e9))


@given(PEAKS)
def test_no_measured_peak_exceeds_what_is_compared_with_the_limit(peaks: list[tuple[float, float]]) -> None:
    """What was seen once is never promised to be less."""
    found = calibrate_memory(peaks)
    assert all(found.at_most(predicted) >= measured * (1 - 1e-9) for predicted, measured in peaks)
    assert FACTORS[0] <= found.factor <= FACTORS[1]


@given(PEAKS, st.floats(0, 1e11), st.floats(0, 1e11))
def test_more_predicted_is_never_less_expected(peaks: list[tuple[float, float]], one: float, other: float) -> None:
    """The order of candidates by memory stays what the trace says."""
    found = calibrate_memory(peaks)
    assert found.at_most(max(one, other)) >= found.at_most(min(one, other))
