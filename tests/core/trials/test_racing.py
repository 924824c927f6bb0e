"""Racing: who is slower ends early, who may win goes on, and a slow machine is nobody's fault."""

from dataclasses import replace

import pytest

from autotune.core.outcome import Step
from autotune.core.trials.racing import Pace, is_outpaced

PACE = Pace(useful_tokens_per_s=1000.0, relative_error=0.01)
ROUGH = (1.0, 3.0, 0.8, 2.2)  # seconds of steps that padding says nothing about: their order alone


def steps(*seconds: float, useful: int = 1000) -> list[Step]:
    """Optimizer steps of 1000 positions, numbered from 5."""
    return [
        Step(number=5 + place, seconds=each, rows=1, positions=1000, useful=useful, loss=1.0)
        for place, each in enumerate(seconds)
    ]


def outpaced(pace: Pace, *seconds: float) -> bool:
    """An epoch of 100,000 positions, all of them useful: 1000 tokens a step."""
    return is_outpaced(pace, steps(*seconds), epoch_positions=100_000, epoch_useful=100_000)


@pytest.mark.parametrize(
    ("seconds", "ends"),
    [
        ((1.5,), False),  # one step has no error
        ((1.5, 1.5), True),
        ((1.5, 1.5, 1.5), True),
        ((1.0, 1.0, 1.0), False),
        ((1.03, 1.03, 1.03), False),  # within the drift and the error of the fastest
        ((0.7, 0.7, 0.7), False),
        ((1.0, 2.0), False),  # slower on average, but by less than the steps differ
    ],
)
def test_who_is_slower_ends(seconds: tuple[float, ...], ends: bool) -> None:
    """By the rate of the whole epoch, as soon as its error allows."""
    assert outpaced(PACE, *seconds) is ends


def test_steps_with_the_same_samples_are_compared_in_pairs() -> None:
    """Rough steps say nothing on their own; a fifth slower in each of them does."""
    slower = [1.2 * each for each in ROUGH]
    theirs = tuple((5 + place, each) for place, each in enumerate(ROUGH))
    mean = 1000 / (sum(ROUGH) / len(ROUGH))
    alone = Pace(useful_tokens_per_s=mean, relative_error=0.01)
    paired = Pace(useful_tokens_per_s=mean, relative_error=0.01, steps=theirs)
    assert not outpaced(alone, *slower)
    assert outpaced(paired, *slower)
    assert not outpaced(paired, *ROUGH)


def test_a_slow_machine_is_nobodys_fault() -> None:
    """At two thirds of its speed a trial that is as fast takes half as long again."""
    assert not outpaced(replace(PACE, machine=1 / 1.5), 1.5, 1.5, 1.5)
    assert outpaced(replace(PACE, machine=1.5), 1.0, 1.0, 1.0)
