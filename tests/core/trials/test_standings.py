"""Who is ahead in a search, and what each rate is known to be."""

from dataclasses import replace

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Crashed, Step
from autotune.core.trials.standings import contenders, first_measurements, measured_rates, pace_of, ranked
from autotune.core.trials.trial import Role, Trial
from tests.core.examples import candidate
from tests.stand_ins import measured

SLOW, FAST, OTHER = (candidate(per_device_train_batch_size=rows) for rows in (1, 2, 4))
SPACE = {SLOW, FAST, OTHER}
ELSEWHERE = candidate(per_device_train_batch_size=8)


def trial(
    number: int, which: Candidate, rate: float, speed: float = 1.0, role: Role = "search", of: int | None = None
) -> Trial:
    """Measured while the machine was so fast."""
    outcome = replace(measured(), useful_tokens_per_s=rate, reference_flops_per_s=(speed, speed))
    return Trial(number=number, role=role, candidate=which, outcome=outcome, of=of)


def test_the_fastest_is_so_on_an_even_machine() -> None:
    """What ran while the machine was half as fast has its rate doubled; only the space's have a place."""
    crashed = Trial(number=8, role="search", candidate=OTHER, outcome=Crashed(message="", log_tail="", wall_s=0.0))
    trials = [
        trial(0, SLOW, 100.0),
        *(trial(number, ELSEWHERE, 999.0) for number in range(1, 8)),
        crashed,
        *(trial(number, ELSEWHERE, 999.0, speed=0.5) for number in range(9, 15)),
        trial(15, FAST, 60.0, speed=0.5),
    ]
    assert [each.number for each in ranked(trials, SPACE)] == [15, 0]
    assert ranked(trials, {SLOW}) == [trials[0]]


def test_repeats_do_not_change_who_was_repeated() -> None:
    """Not even by what they say of the machine: a search that goes on finds the contenders that it had."""
    trials = [
        trial(0, SLOW, 100.0),
        *(trial(number, SLOW, 999.0, role="repeat", of=0) for number in range(1, 8)),
        *(trial(number, SLOW, 999.0, speed=0.5, role="repeat", of=0) for number in range(8, 15)),
        trial(15, FAST, 60.0, speed=0.5),
    ]
    assert ranked(trials, SPACE) == ranked(first_measurements(trials), SPACE) == [trials[0], trials[15]]


def test_a_pace_has_the_steps_of_the_same_samples_alone() -> None:
    """Split otherwise, a step of one number has the same samples; ordered otherwise it has not."""
    step = Step(number=7, seconds=2.0, rows=4, positions=8, useful=6, loss=1.0)
    base = replace(FAST, gradient_accumulation_steps=2)
    fastest = trial(0, base, 50.0)
    fastest = replace(fastest, outcome=replace(fastest.outcome, steps=(step,)))
    split = replace(base, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    unlike = pace_of(fastest, replace(split, batching="group_by_length"), [fastest])
    others = [trial(number, split, 25.0, speed=1.0 if number < 8 else 0.5) for number in range(1, 16)]
    alike = pace_of(fastest, split, [fastest, *others])
    assert alike is not None
    assert unlike is not None
    assert alike.steps == ((7, 2.0),)
    assert unlike.steps == ()
    assert (alike.useful_tokens_per_s, alike.machine) == (50.0, pytest.approx(0.5))
    assert unlike.machine == 1.0  # one trial says nothing of drift
    assert pace_of(None, split, []) is None


def test_a_candidate_is_known_by_all_its_trials() -> None:
    """Repeats count as much as the first; one that was not measured is not known."""
    trials = [
        trial(0, SLOW, 100.0, role="baseline"),
        trial(1, FAST, 400.0),
        trial(2, FAST, 900.0, role="repeat", of=1),
        trial(3, SLOW, 25.0, role="repeat", of=0),
    ]
    found = measured_rates(trials)
    assert found.keys() == {SLOW, FAST}
    assert found[FAST].rate == pytest.approx(600.0)  # the geometric mean
    assert found[FAST].deviation == pytest.approx(0.01 / 2**0.5)
    assert (found[SLOW].rate, found[SLOW].trial, found[SLOW].trials) == (pytest.approx(50.0), 0, 2)


def test_contenders_are_the_references_and_the_two_best_others() -> None:
    """A reference that the space has is not counted twice, and one that failed does not contend."""
    crashed = Trial(number=9, role="by_hand", candidate=ELSEWHERE, outcome=Crashed(message="", log_tail="", wall_s=0.0))
    baseline, *others = (trial(number, which, 100.0 - number) for number, which in enumerate((SLOW, FAST, OTHER, SLOW)))
    assert contenders((baseline, crashed), [baseline, *others]) == [baseline, *others[:2]]
