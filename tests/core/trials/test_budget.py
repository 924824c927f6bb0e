"""How a search divides its time."""

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from autotune.core.outcome import Measured, Step, TimedOut
from autotune.core.trials.budget import BASELINE_SHARE, REPEAT_SHARE, Budget
from tests.stand_ins import measured

SECONDS = Budget(seconds=900.0, trials=None)
TRIALS = Budget(seconds=None, trials=3)


def taking(step_s: float, *, beside_s: float = 7.0) -> Measured:
    """A trial of one measured step of `step_s`, with so much time beside it."""
    step = Step(number=0, seconds=step_s, rows=1, positions=1, useful=1, loss=1.0)
    return replace(measured(), step_s=step_s, steps=(step,), wall_s=step_s + beside_s)


def test_a_round_takes_what_trials_take_beside_their_steps_and_the_steps() -> None:
    """7 s of loading each, steps of 10 s and 5 s, one to warm up that takes two, and two measured: 7 + 40 and 7 + 20.

    A second one to warm up takes 10 s and 5 s more.
    """
    contenders = [taking(10), taking(5)]
    assert SECONDS.round_s(contenders, 2) == 74
    assert replace(SECONDS, warmup_steps=2).round_s(contenders, 2) == 89


def test_the_reserve_is_for_two_rounds_and_never_more_than_half() -> None:
    """Two rounds of 74 s; with steps ten times as long half of the time is the most."""
    assert SECONDS.reserve_s([taking(10), taking(5)]) == 148
    assert SECONDS.reserve_s([taking(10), taking(5)], rounds=1) == 74
    assert SECONDS.reserve_s([taking(100), taking(50)]) == REPEAT_SHARE * 900
    assert TRIALS.reserve_s([taking(10)]) == 0


def test_trials_and_time_both_end_a_search() -> None:
    """The budget of trials counts first measurements; the one of time leaves room for the median trial."""
    tried = [taking(1, beside_s=59), TimedOut(limit_s=1, wall_s=30), taking(1, beside_s=99)]
    assert not TRIALS.has_room(0, tried=tried, reserve_s=0)
    assert TRIALS.has_room(1e9, tried=tried[:2], reserve_s=0)
    assert SECONDS.has_room(700, tried=tried, reserve_s=130)
    assert not SECONDS.has_room(700, tried=tried, reserve_s=150)
    two = [taking(10, beside_s=80), taking(1, beside_s=5)]  # a slow reference, and a quick one: the next may be quick
    assert SECONDS.has_room(800, tried=two, reserve_s=80)


def test_tracing_takes_a_fifth_of_the_time_or_half_of_what_is_left() -> None:
    """Of 900 seconds 180, of the 100 that trials still have 50, and nothing when they have none."""
    assert SECONDS.tracing_s(100, reserve_s=200) == 180
    assert SECONDS.tracing_s(600, reserve_s=200) == 50
    assert SECONDS.tracing_s(800, reserve_s=200) == 0
    assert TRIALS.tracing_s(1e9, reserve_s=0) == math.inf


@given(spent_s=st.floats(0, 2000), baseline_s=st.floats(0, 1000), reserve_s=st.floats(0, 450))
def test_no_limit_reaches_beyond_the_budget(spent_s: float, baseline_s: float, reserve_s: float) -> None:
    """A trial that hangs is killed in time for the search to end in time, the reserve included."""
    limit_s = SECONDS.trial_limit_s(spent_s, baseline_s=baseline_s, reserve_s=reserve_s)
    assert limit_s <= max(1.0, 900 - spent_s - reserve_s)
    limit_s = SECONDS.baseline_limit_s(spent_s) or 0.0
    assert limit_s <= max(1.0, min(900 - spent_s, BASELINE_SHARE * 900))


def test_repeats_take_as_many_steps_as_two_rounds_have_room_for() -> None:
    """400 s for two rounds with 14 + 30 s before the measured steps: 10 steps of both (15 s), so 8."""
    contenders = [taking(10), taking(5)]
    assert SECONDS.repeat_steps(500, contenders) == 8
    assert SECONDS.repeat_steps(700, contenders) == 3
    assert SECONDS.repeat_steps(899, contenders) == 2
    assert TRIALS.repeat_steps(0, contenders) == 4


def test_rounds_end_with_the_time_or_the_plan() -> None:
    """As many rounds as there is time for, four at most; two when only the trials are limited."""
    missing = [taking(10)]
    assert SECONDS.has_room_for_round(800, missing=missing, number=3, steps=2)
    assert not SECONDS.has_room_for_round(880, missing=missing, number=0, steps=2)
    assert not SECONDS.has_room_for_round(0, missing=missing, number=4, steps=2)
    assert [TRIALS.has_room_for_round(0, missing=missing, number=n, steps=2) for n in range(3)] == [True, True, False]
