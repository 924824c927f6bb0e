"""Calibration of time: one factor for each thing that seconds are spent on, fitted to what trials measured."""

import numpy as np
import pytest

from autotune.core.time.calibration import FREEDOM, MEASURED, PUBLISHED, calibrate_time


def steps(seed: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Predicted seconds of steps that spend them in different ways, shape (count, 4)."""
    draw = np.random.default_rng(seed)
    spent: np.ndarray[tuple[int, int], np.dtype[np.float64]] = draw.dirichlet((2.0, 3.0, 3.0, 1.0), count)
    return spent * draw.uniform(0.1, 10.0, (count, 1))


def test_an_uncalibrated_prediction_is_the_prior() -> None:
    """The seconds as they are, in an interval that published peaks make wider than measured rates do."""
    spent = steps(0, 5)
    widths = []
    for prior in (MEASURED, PUBLISHED):
        found = calibrate_time(prior, spent[:0], [])
        assert found.seconds(spent) == pytest.approx(spent.sum(axis=1))
        low, high = found.interval(spent)
        assert (low < spent.sum(axis=1)).all()
        widths.append(high / low)
    assert (widths[1] > widths[0]).all()


def test_few_trials_find_what_all_candidates_share() -> None:
    """A GPU of 0.7 the compute and 1.3 the bandwidth: the errors of all others are halved by three trials."""
    spent = steps(1, 208)
    measured = spent @ np.array([1.4, 1 / 0.7, 1 / 1.3, 2.0])
    found = [calibrate_time(PUBLISHED, spent[:trials], measured[:trials].tolist()) for trials in (0, 3, 8)]
    errors = [float(np.median(np.abs(one.seconds(spent[8:]) / measured[8:] - 1))) for one in found]
    assert errors[0] > 0.15
    assert errors[1] < errors[0] / 2
    assert errors[2] < 0.03
    before, after = (np.divide(*one.interval(spent)[::-1]) for one in found[:2])
    assert (after < before).all()


def test_intervals_hold_nine_of_ten() -> None:
    """Over machines and candidates drawn from the prior, before and after trials."""
    draw = np.random.default_rng(2)
    deviations = np.array([PUBLISHED.factors[one] for one in ("launch", "compute", "bandwidth", "host")])
    inside = {0: 0, 2: 0}
    for machine in range(300):
        spent = steps(machine, 4)
        misfits = PUBLISHED.misfit * draw.standard_t(FREEDOM, 4)
        measured = spent @ np.exp(draw.normal(0, deviations)) * np.exp(misfits)
        for trials in inside:
            low, high = calibrate_time(PUBLISHED, spent[:trials], measured[:trials].tolist()).interval(spent[3:])
            inside[trials] += bool(low[0] <= measured[3] <= high[0])
    assert all(0.84 <= count / 300 <= 0.96 for count in inside.values())


def test_one_odd_trial_does_not_make_a_factor() -> None:
    """Of ten like predicted and one of twice the time, the others stay within a tenth."""
    spent = steps(3, 11)
    measured = spent.sum(axis=1) * np.array([2.0] + [1.0] * 10)
    found = calibrate_time(MEASURED, spent, measured.tolist())
    assert found.seconds(spent[1:]) == pytest.approx(spent[1:].sum(axis=1), rel=0.1)
