"""Standings: which trials of a search are ahead, and what is known of each candidate's rate.

Rates are corrected for how fast the machine was around each trial. Leaves out what a search does with them
(search/search.py).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import geometric_mean

from autotune.core.candidate import Candidate
from autotune.core.knobs import knobs_that_change
from autotune.core.outcome import Measured
from autotune.core.trials.comparison import corrected_rates, drift, rates_as_at_first
from autotune.core.trials.racing import Pace
from autotune.core.trials.receipts import Known
from autotune.core.trials.trial import Trial

# Where two candidates agree in these, the steps of one number hold the same samples, however each step is split.
SAME_SAMPLES = (*knobs_that_change("samples"), "rows_per_step")


def measured(trials: Iterable[Trial]) -> list[Measured]:
    """The outcomes of those trials that were measured."""
    return [trial.outcome for trial in trials if isinstance(trial.outcome, Measured)]


def first_measurements(trials: Iterable[Trial]) -> list[Trial]:
    """All trials but the repeats of the second measurement."""
    return [trial for trial in trials if trial.role != "repeat"]


def ranked(trials: Iterable[Trial], space: Collection[Candidate]) -> list[Trial]:
    """Rank the first measurements of the space's candidates, the fastest first.

    Repeats do not count, and neither does what they say of the machine's speed. Otherwise the ranking could change
    because of the second measurement, and a search that goes on would repeat other candidates than before.
    """
    ran = [trial for trial in first_measurements(trials) if isinstance(trial.outcome, Measured)]
    rates = dict(zip((trial.number for trial in ran), corrected_rates(measured(ran)), strict=True))
    return sorted((trial for trial in ran if trial.candidate in space), key=lambda trial: -rates[trial.number])


def contenders(references: Iterable[Trial], ranking: Iterable[Trial]) -> list[Trial]:
    """Who is measured a second time: the references that ran, and the two best of the others."""
    ran = {trial.number: trial for trial in references if isinstance(trial.outcome, Measured)}
    return [*ran.values(), *[trial for trial in ranking if trial.number not in ran][:2]]


def pace_of(fastest: Trial | None, candidate: Candidate, trials: Iterable[Trial]) -> Pace | None:
    """What a candidate's trial must keep up with; None before anything was measured well enough.

    trials: all trials so far, `fastest` among them. They say how fast the machine is now.
    """
    if fastest is None or not isinstance(fastest.outcome, Measured) or fastest.outcome.relative_error is None:
        return None
    alike = all(getattr(candidate, name) == getattr(fastest.candidate, name) for name in SAME_SAMPLES)
    ran = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    faster = dict(zip((trial.number for trial in ran), drift(measured(ran)).tolist(), strict=True))
    return Pace(
        useful_tokens_per_s=fastest.outcome.useful_tokens_per_s,
        relative_error=fastest.outcome.relative_error,
        machine=math.exp(faster[ran[-1].number] - faster[fastest.number]),
        steps=tuple((step.number, step.seconds) for step in fastest.outcome.steps) if alike else (),
    )


def measured_rates(trials: Sequence[Trial]) -> dict[Candidate, Known]:
    """The rate of every candidate that was measured: the geometric mean of all its trials, repeats among them.

    Rates are given as if the machine had always been as fast as it was around the first trial.
    """
    ran = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    rates: dict[Candidate, list[float]] = {}
    errors: dict[Candidate, list[float | None]] = {}
    for trial, outcome, rate in zip(ran, measured(ran), rates_as_at_first(measured(ran)), strict=True):
        rates.setdefault(trial.candidate, []).append(rate)
        errors.setdefault(trial.candidate, []).append(outcome.relative_error)
    return {
        trial.candidate: Known(
            rate=geometric_mean(rates[trial.candidate]),
            deviation=_error_of_mean(errors[trial.candidate]),
            trial=trial.number,
            trials=len(rates[trial.candidate]),
        )
        for trial in first_measurements(ran)
    }


def _error_of_mean(errors: Sequence[float | None]) -> float | None:
    """The standard error of a mean of logarithms; None where the error of one of them is not known."""
    known = [error for error in errors if error is not None]
    return math.hypot(*known) / len(known) if len(known) == len(errors) else None
