"""Comparing measurements: drift drops out, and an interval says what is not known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.outcome import Measured
from autotune.core.trials.comparison import corrected_rates, drift, speedup, student_975
from tests.stand_ins import STEP, measured


def at(rate: float, *, reference: float = 1.0, error: float | None = 0.01, steps: int = 3) -> Measured:
    """A trial of this rate, next to a reference product of that rate."""
    return replace(
        measured(),
        useful_tokens_per_s=rate,
        relative_error=error,
        reference_flops_per_s=(reference, reference),
        steps=(STEP,) * steps,
    )


def test_a_rate_is_corrected_for_the_machines_speed_at_the_time() -> None:
    """Half the reference's rate around a trial and its neighbours means that the machine was at half its speed."""
    trials = [at(100)] * 8 + [at(60, reference=0.5)] * 8
    rates = corrected_rates(trials)
    assert [rate / rates[0] for rate in rates] == pytest.approx([1.0] * 8 + [1.2] * 8)
    assert corrected_rates([]) == []


def test_flicker_is_no_drift() -> None:
    """Single readings move nothing, nor do those after all trials, or the few that there are at first."""
    flicker = [replace(at(100), reference_flops_per_s=pair) for pair in ((1.0, 0.5), (0.6, 1.0), (1.0, 1.0)) * 4]
    assert corrected_rates(flicker) == pytest.approx([100.0] * 12)
    slower_after = [replace(at(100), reference_flops_per_s=(1.0, 0.8))] * 9
    assert drift(slower_after).tolist() == pytest.approx([0.0] * 9)
    assert corrected_rates([at(100), at(60, reference=0.5), at(100)]) == pytest.approx([100.0, 60.0, 100.0])


@pytest.mark.parametrize(("size", "most"), [(0.0, 0.01), (0.05, 0.04), (0.1, 0.05), (0.3, 0.06)])
def test_a_correction_is_hardly_worse_than_none(size: float, most: float) -> None:
    """Readings flicker by 15 %: rates hardly move without drift, and of drift that lasts most is gone."""
    random = np.random.default_rng(0)
    left = []
    for _ in range(50):
        level = np.repeat(random.normal(0, size, 4), 10)
        readings = np.exp(level[:, None] - np.abs(random.normal(0, 0.15, (40, 2))))
        outcomes = [
            replace(at(100 * math.exp(each)), reference_flops_per_s=tuple(pair.tolist()))
            for each, pair in zip(level, readings, strict=True)
        ]
        left.append(np.log(corrected_rates(outcomes)).std())
    assert np.mean(left) < most


def test_a_speedup_by_hand() -> None:
    """Two rounds of two candidates: log-ratios 0.6 and 0.8, so 0.7, and s sqrt(2/K) = 0.1 at one degree of freedom."""
    rounds = [[at(100), at(100 * math.exp(0.6))], [at(100), at(100 * math.exp(0.8))]]
    result = speedup(rounds, 1, 0)
    assert result.ratio == pytest.approx(math.exp(0.7))
    assert math.log(result.high / result.ratio) == pytest.approx(12.706 * 0.1)
    assert not result.is_faster


def test_one_round_takes_its_interval_from_the_steps() -> None:
    """By hand: four and two degrees of freedom pool a step's variance, and trials differ by 5 % besides."""
    result = speedup([[at(100, error=0.03, steps=5), at(150, error=0.04, steps=3)]], 1, 0)
    of_a_step = (4 * 5 * 0.03**2 + 2 * 3 * 0.04**2) / 6
    widths = [math.hypot(2.447 * math.sqrt(of_a_step / n), 1.96 * 0.05) for n in (5, 3)]
    assert math.log(result.high / result.ratio) == pytest.approx(math.hypot(*widths))
    assert result.is_faster
    assert not speedup([[at(100, error=0.001, steps=50), at(110, error=0.001, steps=50)]], 1, 0).is_faster


def test_few_steps_of_several_trials_are_enough_for_what_is_far_ahead() -> None:
    """Two steps each: of two trials they say next to nothing, of three that 2.8 times is no luck."""
    trials = [at(61, error=0.06, steps=2), at(170, error=0.06, steps=2), at(140, error=0.06, steps=2)]
    assert speedup([trials], 1, 0).is_faster
    assert not speedup([trials], 1, 2).is_faster


def test_one_round_without_errors_proves_nothing() -> None:
    """A single step has no error, but another trial's steps tell it; where none does, the interval is all there is."""
    assert speedup([[at(100, error=None, steps=1), at(150, error=None, steps=1)]], 1, 0).low == 0
    assert speedup([[at(100, error=None, steps=1), at(150, error=0.01, steps=9)]], 1, 0).low > 1.2


@given(drift=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=5), ratio=st.floats(0.3, 3.0))
def test_drift_between_rounds_drops_out(drift: list[float], ratio: float) -> None:
    """What slows a whole round changes neither the ratio nor the interval."""
    rounds = [[at(100 * slow), at(100 * ratio * slow), at(80 * slow)] for slow in drift]
    result = speedup(rounds, 1, 0)
    assert result.ratio == pytest.approx(ratio)
    assert result.low == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (12, 2.179), (13, 2.160), (30, 2.042), (10**6, 1.960)])
def test_quantiles_are_those_of_the_handbook(freedom: int, quantile: float) -> None:
    """NIST e-Handbook, 1.3.6.7.2."""
    assert student_975(freedom) == pytest.approx(quantile, abs=0.001)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """With noise of 5 % the 95 % interval covers the true ratio in about 95 of 100 searches."""
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(1500):
        noise = np.exp(random.normal(0, 0.05, size=(2, 4)))
        rounds = [[at(rate * factor) for rate, factor in zip((100, 140, 150, 160), row, strict=True)] for row in noise]
        result = speedup(rounds, 3, 0)
        inside += result.low < 1.6 < result.high
    assert 0.93 < inside / 1500 < 0.97
