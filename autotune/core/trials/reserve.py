"""The reserve: the seconds that a search keeps for what comes after the candidates.

That is the second measurement of the contenders (search/repeats.py), and after it the comparison of losses
(search/losses.py). Leaves out the clock.
"""

from collections.abc import Collection, Iterable, Sequence

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured
from autotune.core.trials.budget import FIRST_STEP, Budget, beside_s
from autotune.core.trials.standings import contenders, first_measurements, measured, ranked
from autotune.core.trials.trial import Trial

COMPARED_STEPS = 10  # optimizer steps whose losses are compared


def reserve_s(trials: Sequence[Trial], space: Collection[Candidate], budget: Budget, *, comparison_s: float) -> float:
    """Seconds to keep for the second measurement and the comparison of losses.

    It is 0 until two trials were measured, because there is nothing to compare yet. Before the first trial of the role
    `search` it is one round alone: a candidate whose gain is known less well is better than none.
    comparison_s: from `comparison_reserve_s`.
    """
    if len(measured(first_measurements(trials))) < 2:
        return 0.0
    references = [trial for trial in trials if trial.role in ("baseline", "by_hand")]
    repeated = measured(contenders(references, ranked(trials, space)))
    if all(trial.role != "search" for trial in trials):
        return budget.reserve_s(repeated, rounds=1)
    return budget.reserve_s(repeated) + comparison_s


def comparison_reserve_s(
    trials: Iterable[Trial], space: Collection[Candidate], budget: Budget, *, reading_s: float
) -> float:
    """Seconds to keep for comparing the losses of the best so far with the baseline's.

    0 where the comparison would take too many, where time is not limited, and before both were measured.
    reading_s: as in `comparison_s`.
    """
    trials = list(trials)
    baselines = measured(trial for trial in trials if trial.role == "baseline")
    fastest = measured(ranked(trials, space))
    if budget.seconds is None or not baselines or not fastest:
        return 0.0
    needed = comparison_s(baselines[0], fastest[0], reading_s=reading_s)
    return needed if budget.has_room_for_comparison(needed) else 0.0


def comparison_s(baseline: Measured, best: Measured, *, reading_s: float) -> float:
    """Seconds that comparing losses takes, about: three trainings, two of them the baseline's.

    Each training starts, reads the weights and trains COMPARED_STEPS steps, of which the first takes as long as two.
    reading_s: seconds for the weights, beside what the candidate's trial took to start.
    """
    steps = COMPARED_STEPS + FIRST_STEP - 1
    return sum(beside_s(each) + reading_s + steps * each.step_s for each in (baseline, best, baseline))
