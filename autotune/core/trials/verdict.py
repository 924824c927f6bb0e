"""The verdict of a search: which candidate wins, by the second measurement alone, and by how much.

Where no time was left for a second measurement, the fastest of the first one wins if it is too far ahead for luck.

Leaves out measuring (search/repeats.py) and words (search/findings.py).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured
from autotune.core.trials.comparison import Speedup, reference, speedup
from autotune.core.trials.standings import measured
from autotune.core.trials.trial import Trial
from autotune.errors import TrainingFailed

# Times the baseline's rate. The best of 30 trials that err by 6 % each looks an eighth faster than it is.
FAR_AHEAD = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Which trial won, and by how much.

    best: the winner's first trial. It is the baseline's own when nothing is really faster.
    once: the winner's speed-up over the baseline by their first trials, if there was no second measurement.
    speedup, speedup_by_hand: the winner's speed-up over the baseline and over `by_hand`. None where one of the two was
        not measured a second time, or both are the same trial.
    repeats: each contender's rate in every round, by the number of its first trial.
    """

    best: Trial
    once: Speedup | None
    speedup: Speedup | None
    speedup_by_hand: Speedup | None
    repeats: Mapping[int, Sequence[float]]


def decide(
    *,
    baseline: Trial,
    by_hand: Trial,
    contenders: Sequence[Trial],
    failed: Collection[int],
    rounds: Sequence[Sequence[Measured]],
    ranked: Sequence[Trial],
    may_win: Callable[[Candidate], bool],
    keeps_fixed: Callable[[Candidate], bool],
) -> Verdict:
    """Choose the fastest contender that may win, or the baseline where none is really faster than it.

    by_hand: the baseline's own trial where no settings by hand were tried.
    contenders: those that did not fail when they were measured again. failed: the trial numbers of those that did fail;
        they do not win.
    rounds: the outcomes of all contenders, in their order, for each round of the second measurement.
    ranked: measured trials of the space, the fastest first. They decide where there was no second measurement.
    may_win: whether a candidate is allowed as the answer. keeps_fixed: whether it has the values that the user fixed; a
        baseline without them cannot be the answer.
    Raises TrainingFailed when nothing that ran may be the answer, and when every contender failed.
    """
    if failed and not contenders:
        raise TrainingFailed(
            "every candidate that was measured a second time failed, though it ran before: see the logs in out, and "
            "what else uses the machine; a search with the same out measures them again"
        )
    places = {trial.number: place for place, trial in enumerate(contenders)} if rounds else {}

    def against(trial: Trial, other: Trial) -> Speedup | None:
        if trial is other or trial.number not in places or other.number not in places:
            return None
        return speedup(rounds, places[trial.number], places[other.number])

    def rate(trial: Trial) -> float:
        return math.prod(outcomes[places[trial.number]].useful_tokens_per_s for outcomes in rounds)

    eligible = [trial for trial in contenders if trial.number in places and may_win(trial.candidate)]
    best = max((trial for trial in eligible if trial is not baseline), key=rate, default=None)
    over_baseline = against(best, baseline) if best else None
    once_only = [t for t in (*ranked, by_hand) if _ran(t) and may_win(t.candidate) and t.number not in failed]
    baseline_will_do = _ran(baseline) and keeps_fixed(baseline.candidate) and baseline.number not in failed
    once = None
    if not rounds and (ahead := _far_ahead(once_only, baseline)):
        best, once = ahead
    elif baseline_will_do and (over_baseline is None or not over_baseline.is_faster):
        best = baseline
    elif best is None:
        best = next(iter(once_only), None)
    if best is None:
        raise TrainingFailed(
            "no candidate that has the values you fixed could be measured, or it failed when it was measured again: "
            "raise budget.minutes or budget.trials, or fix fewer of candidate.*"
        )
    return Verdict(
        best=best,
        once=once,
        speedup=against(best, baseline),
        speedup_by_hand=against(best, by_hand) if by_hand is not baseline else None,
        repeats={
            trial.number: [outcomes[place].useful_tokens_per_s for outcomes in rounds]
            for place, trial in enumerate(contenders)
        },
    )


def _ran(trial: Trial) -> bool:
    return isinstance(trial.outcome, Measured)


def _far_ahead(trials: Sequence[Trial], baseline: Trial) -> tuple[Trial, Speedup] | None:
    """The fastest trial, and how far it is ahead by the only trial of each; None where that could be luck.

    Where the machine seems to have been faster than around the baseline, the rate is lowered by that share. No rate is
    raised. The errors are those of each trial's own steps.
    """
    ran = list({trial.number: trial for trial in (baseline, *trials) if _ran(trial)}.values())
    if not _ran(baseline):
        return None
    outcomes = measured(ran)
    rates = [
        outcome.useful_tokens_per_s / max(1.0, reference(outcome) / reference(outcomes[0])) for outcome in outcomes
    ]
    row = [replace(outcome, useful_tokens_per_s=rate) for outcome, rate in zip(outcomes, rates, strict=True)]
    fastest = rates.index(max(rates))
    once = speedup([row], fastest, 0) if fastest else None
    return (ran[fastest], once) if once is not None and once.low > FAR_AHEAD else None
