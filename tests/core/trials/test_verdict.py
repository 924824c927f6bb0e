"""Who wins, by trials that were made up."""

from dataclasses import replace

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured
from autotune.core.trials.trial import Trial
from autotune.core.trials.verdict import Verdict, decide
from autotune.errors import TrainingFailed
from tests.core.examples import candidate
from tests.stand_ins import STEP, measured

BASELINE, FOUND = candidate(checkpointing="full"), candidate(checkpointing="off")


def trial(number: int, asked: Candidate, rate: float, error: float | None = 0.02) -> Trial:
    outcome = replace(measured(), useful_tokens_per_s=rate, relative_error=error, steps=(STEP,) * 12)
    return Trial(number=number, role="search" if number else "baseline", candidate=asked, outcome=outcome)


def verdict_of(
    baseline: Trial, found: Trial, rounds: list[list[Measured]], *others: Trial, by_hand: Trial | None = None
) -> Verdict:
    """Of a search whose settings by hand may not win."""
    return decide(
        baseline=baseline,
        by_hand=by_hand or baseline,
        contenders=[baseline, found],
        failed=(),
        rounds=rounds,
        ranked=[found, *others],
        may_win=lambda candidate: by_hand is None or candidate != by_hand.candidate,
        keeps_fixed=lambda candidate: True,
    )


@pytest.mark.parametrize(("rate", "error", "wins"), [(300, 0.02, True), (115, 0.02, False), (150, 0.2, False)])
def test_without_a_second_measurement_only_one_that_is_far_ahead_wins(rate: float, error: float, wins: bool) -> None:
    """Three times as fast is no luck; a seventh more may be, and so may a half where steps differ by a fifth."""
    baseline, found = trial(0, BASELINE, 100), trial(1, FOUND, rate, error)
    verdict = verdict_of(baseline, found, [])
    assert verdict.best is (found if wins else baseline)
    assert (verdict.once is not None) == wins
    assert verdict.speedup is None
    if verdict.once is not None:
        assert verdict.once.ratio == pytest.approx(rate / 100)


def test_trials_of_one_step_each_are_never_far_ahead() -> None:
    """Their interval has no end, so no such speed-up is reported, however large it is."""
    baseline, found = trial(0, BASELINE, 100, None), trial(1, FOUND, 1000, None)
    verdict = verdict_of(baseline, found, [])
    assert verdict.best is baseline
    assert verdict.once is None


def test_what_may_not_win_does_not_win_at_once() -> None:
    """Settings by hand outside of what was asked for, however fast; the others are compared without them."""
    baseline, found = trial(0, BASELINE, 100), trial(1, FOUND, 200)
    by_hand = trial(2, candidate(batching="group_by_length"), 400)
    assert verdict_of(baseline, found, [], by_hand=by_hand).best is found


def test_a_machine_that_was_slow_for_the_baseline_makes_nothing_faster() -> None:
    """Twice the rate when the reference product had twice its rate, too, is no gain."""
    baseline, found = trial(0, BASELINE, 100), trial(1, FOUND, 200)
    assert isinstance(found.outcome, Measured)
    found = replace(found, outcome=replace(found.outcome, reference_flops_per_s=(2.0, 2.0)))
    assert verdict_of(baseline, found, []).best is baseline


def test_the_second_measurement_decides_where_there_is_one() -> None:
    """What looked three times as fast at first, and is slower in every round, does not win."""
    baseline, found = trial(0, BASELINE, 100), trial(1, FOUND, 300)
    again = [replace(measured(), useful_tokens_per_s=rate) for rate in (100, 90)]
    verdict = verdict_of(baseline, found, [again, again])
    assert verdict.best is baseline
    assert verdict.once is None


def test_a_baseline_that_fails_when_it_is_repeated_does_not_win() -> None:
    """What is left of the contenders was measured in every round, and the baseline was not."""
    baseline, found = trial(0, BASELINE, 100), trial(1, FOUND, 90)
    again = [replace(measured(), useful_tokens_per_s=90)]
    verdict = decide(
        baseline=baseline,
        by_hand=baseline,
        contenders=[found],
        failed={0},
        rounds=[again, again],
        ranked=[found],
        may_win=lambda candidate: True,
        keeps_fixed=lambda candidate: True,
    )
    assert verdict.best is found
    assert verdict.speedup is None


def test_where_nothing_ran_that_has_what_was_fixed_there_is_no_answer() -> None:
    """The references do not have it; they are measured all the same, and are not the answer."""
    baseline, by_hand = trial(0, BASELINE, 100), trial(1, FOUND, 90)
    with pytest.raises(TrainingFailed, match=r"raise budget\.minutes or budget\.trials"):
        decide(
            baseline=baseline,
            by_hand=by_hand,
            contenders=[baseline, by_hand],
            failed=(),
            rounds=[],
            ranked=[],
            may_win=lambda candidate: False,
            keeps_fixed=lambda candidate: False,
        )


def test_a_baseline_of_the_space_counts_once() -> None:
    """Among the ranked ones, too, it says no more of how much steps scatter."""
    baseline, found = trial(0, BASELINE, 100, error=0.01), trial(1, FOUND, 300, error=0.05)
    assert verdict_of(baseline, found, [], baseline).once == verdict_of(baseline, found, []).once


@pytest.mark.parametrize("others", [0, 1])
def test_what_failed_when_it_was_repeated_is_not_the_answer(others: int) -> None:
    """Where what is left lacks what the user fixed, the fastest of those that were not repeated is, if there is one."""
    baseline, found, third = trial(0, BASELINE, 100), trial(1, FOUND, 300), trial(2, candidate(attention="eager"), 200)

    def verdict() -> Verdict:
        return decide(
            baseline=baseline,
            by_hand=baseline,
            contenders=[baseline],
            failed={1},
            rounds=[[measured()]],
            ranked=[found, third][: 1 + others],
            may_win=lambda candidate: candidate != BASELINE,
            keeps_fixed=lambda candidate: candidate != BASELINE,
        )

    if others:
        assert verdict().best is third
    else:
        with pytest.raises(TrainingFailed, match="again"):
            verdict()


def test_where_nothing_ran_again_there_is_no_answer() -> None:
    """However far one was ahead at first."""
    baseline, found = trial(0, BASELINE, 100), trial(1, FOUND, 300)
    with pytest.raises(TrainingFailed, match="a second time"):
        decide(
            baseline=baseline,
            by_hand=baseline,
            contenders=[],
            failed={0, 1},
            rounds=[],
            ranked=[found],
            may_win=lambda candidate: True,
            keeps_fixed=lambda candidate: True,
        )
