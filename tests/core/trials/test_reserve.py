"""What a search keeps of its time for what comes after the candidates."""

from dataclasses import replace

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Crashed
from autotune.core.trials.budget import Budget
from autotune.core.trials.reserve import comparison_reserve_s, comparison_s, reserve_s
from autotune.core.trials.trial import Role, Trial
from tests.core.examples import candidate
from tests.stand_ins import measured

BASELINE = candidate(tuned_allocator=False)
ONE, OTHER, THIRD = (candidate(per_device_train_batch_size=rows) for rows in (1, 2, 4))
SPACE = {ONE, OTHER, THIRD}
BUDGET = Budget(seconds=600.0, trials=None)
ROUND_S = 4.7  # seconds of a contender in a round: 0.7 beside steps, two measured, two for the first


def trial(number: int, role: Role, which: Candidate) -> Trial:
    return Trial(number=number, role=role, candidate=which, outcome=measured())


TRIALS = [trial(0, "baseline", BASELINE), *(trial(n + 1, "search", each) for n, each in enumerate((ONE, OTHER, THIRD)))]


def test_the_reserve_by_hand() -> None:
    """Two planned rounds of the baseline and the two best, and the comparison behind them."""
    assert reserve_s(TRIALS, SPACE, BUDGET, comparison_s=9.0) == pytest.approx(2 * 3 * ROUND_S + 9.0)


def test_there_must_be_something_to_compare() -> None:
    """Nothing is kept while one trial ran; before the first candidate it is a single round of both references."""
    failed = replace(TRIALS[1], outcome=Crashed(message="", log_tail="", wall_s=1.0))
    assert reserve_s([TRIALS[0], failed], SPACE, BUDGET, comparison_s=9.0) == 0
    references = [TRIALS[0], trial(1, "by_hand", replace(BASELINE, checkpointing="off"))]
    assert reserve_s(references, SPACE, BUDGET, comparison_s=9.0) == pytest.approx(2 * ROUND_S)


def test_a_comparison_that_takes_too_long_is_not_reserved_for() -> None:
    """It may take a fifth of the time. Nothing is kept without a limit, and before there is a candidate."""
    needed_s = comparison_s(measured(), measured(), reading_s=0.0)
    for seconds, kept_s in ((5 * needed_s, needed_s), (5 * needed_s - 1, 0.0), (None, 0.0)):
        budget = Budget(seconds=seconds, trials=None)
        assert comparison_reserve_s(TRIALS, SPACE, budget, reading_s=0.0) == kept_s
    assert comparison_reserve_s(TRIALS[:1], SPACE, BUDGET, reading_s=0.0) == 0


def test_the_time_of_a_comparison_by_hand() -> None:
    """Three trainings of eleven steps, what their trials took beside steps, and reading where those did not read."""
    outcome = measured()
    steps_s = sum(step.seconds for step in (*outcome.warmup_steps, *outcome.steps))
    slow, fast = (replace(outcome, step_s=seconds, wall_s=steps_s + 3.0) for seconds in (2.0, 1.0))
    assert comparison_s(slow, fast, reading_s=0.0) == pytest.approx(2 * (3 + 22) + 3 + 11)
    assert comparison_s(slow, fast, reading_s=10.0) == pytest.approx(2 * (3 + 22) + 3 + 11 + 30)
