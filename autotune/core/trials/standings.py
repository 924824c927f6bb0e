"""Standings: who is ahead among the trials of a search, and what each rate is known to be.

Rates are corrected for how fast the machine was around each trial. Leaves out what a search makes of it
(search/search.py).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import geometric_mean

from autotune.core.candidate import Candidate
from autotune.core.knobs import knobs_that_change
from autotune.core.outcome import Measured
from autotune.core.trials.comparison import corrected_rates, drift, rates_as_at_first
from autotune.core.trials.racing import Pace
from autotune.core.trials.receipts import Known
from autotune.core.trials.trial import Trial

# Candidates that agree in these hold the same samples in a step of one number, whatever their micro-batches are.
SAME_SAMPLES = (*knobs_that_change("samples"), "rows_per_step")


def measured(trials: Iterable[Trial]) -> list[Measured]:
    """The outcomes of those trials that were measured."""
    return [trial.outcome for trial in trials if isinstance(trial.outcome, Measured)]


def first_measurements(trials: Iterable[Trial]) -> list[Trial]:
    """All but the repeats of the second measurement."""
    return [trial for trial in trials if trial.role != "repeat"]


def ranked(trials: Iterable[Trial], space: Collection[Candidate]) -> list[Trial]:
    """First measurements of the space's candidates, fastest first.

    Repeats have no say, not even of the machine: else those who were measured again could be others afterwards.
    """
    ran = [trial for trial in first_measurements(trials) if isinstance(trial.outcome, Measured)]
    rates = dict(zip((trial.number for trial in ran), corrected_rates(measured(ran)), strict=True))
    return sorted((trial for trial in ran if trial.candidate in space), key=lambda trial: -rates[trial.number])


def pace_of(fastest: Trial | None, candidate: Candidate, trials: Iterable[Trial]) -> Pace | None:
    """What a candidate must keep up with; None before anything was measured well enough.

    trials: all so far, `fastest` among them, for what they say of the machine.
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


def known_rates(
    trials: Sequence[Trial], space: Collection[Candidate], best: Trial, believed: Mapping[Candidate, Known]
) -> dict[Candidate, Known]:
    """Of every candidate of the space that was measured or is believed to have one, and of the winner.

    Rates are those of the machine as it was around the first trial, means of all trials of a candidate.
    """
    ran = [trial for trial in trials if isinstance(trial.outcome, Measured)]
    rates: dict[Candidate, list[float]] = {}
    errors: dict[Candidate, list[float | None]] = {}
    for trial, outcome, rate in zip(ran, measured(ran), rates_as_at_first(measured(ran)), strict=True):
        rates.setdefault(trial.candidate, []).append(rate)
        errors.setdefault(trial.candidate, []).append(outcome.relative_error)
    found = dict(believed)
    for trial in first_measurements(ran):
        if trial.candidate in space or trial is best:
            rate, error = geometric_mean(rates[trial.candidate]), _of_mean(errors[trial.candidate])
            found[trial.candidate] = Known(rate=rate, deviation=error, trial=trial.number)
    return found


def _of_mean(errors: Sequence[float | None]) -> float | None:
    """The standard error of a mean of logarithms; None where one of them has none."""
    told = [error for error in errors if error is not None]
    return math.hypot(*told) / len(told) if len(told) == len(errors) else None
