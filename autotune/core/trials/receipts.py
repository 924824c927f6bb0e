"""Receipts: for each knob of a search's winner, what the best candidate with another value reaches.

A rate is the measured one where the candidate was tried, and the predicted one where it was not. Leaves out where rates
come from (standings.py, search/proposer.py) and how receipts are shown (search/summary.py).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from autotune.core.arithmetic import NORMAL_975
from autotune.core.candidate import Candidate, differences
from autotune.core.knobs import DERIVED, KNOBS
from autotune.core.trials.comparison import BETWEEN_TRIALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a candidate's rate, in useful tokens per second.

    rate: the mean of its trials, or the predicted rate.
    deviation: standard deviation of the rate's logarithm. Of a measured rate it says how much the steps of its trials
        scatter, and is None where one of these trials measured a single step.
    trial: number of its first trial; None where the rate is predicted.
    trials: how many trials the rate is the mean of; 0 where it is predicted.
    """

    rate: float
    deviation: float | None
    trial: int | None
    trials: int = 0

    @property
    def whole_deviation(self) -> float | None:
        """The deviation, with what trials of one candidate usually differ by added to a measured one."""
        if self.trial is None or self.deviation is None:
            return self.deviation
        return math.hypot(self.deviation, BETWEEN_TRIALS / math.sqrt(max(1, self.trials)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A knob of the winner, and the best candidate that has another value of it.

    gain: by what share the winner's rate exceeds the rival's. It is below 0 if the rival is predicted to be faster, or
        was faster in its trials, which may be luck, or less than the second measurement can tell.
    interval: 95 % interval of the gain; None if one of the two rates has no deviation.
    """

    knob: str
    rival: Candidate
    known: Known
    gain: float
    interval: tuple[float, float] | None

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval leaves out a gain of 0. True where there is no interval to say otherwise."""
        return self.interval is None or not self.interval[0] <= 0 <= self.interval[1]


def receipts(
    best: Candidate,
    known: Mapping[Candidate, Known],
    *,
    references: Mapping[Candidate, Known] | None = None,
    fits: Callable[[Candidate], bool] = lambda candidate: True,
) -> tuple[Receipt, ...]:
    """Make the receipts of a winner, the largest gain first.

    known: the candidates that compete, the winner among them. fits: asked of rivals whose rates are only predicted.
    references: measured candidates from outside the space. If all of `known` have the winner's value of a knob, the
        rival is a reference that differs from the winner in this knob alone. With any other, the gain would come from
        other knobs as well.
    A knob without a rival has no receipt. Raises KeyError when the winner is not among `known`.
    """
    ranked = _ranked(known)
    everyone = {**(references or {}), **known}
    found = []
    for knob in KNOBS:
        if knob in DERIVED:
            continue
        others = [other for other in ranked if getattr(other, knob) != getattr(best, knob)]
        rival = _first_possible(others, known, fits) if others else _twin(best, knob, references or {})
        if rival is not None:
            found.append(_receipt(knob, known[best], rival, everyone[rival]))
    return tuple(sorted(found, key=lambda receipt: -receipt.gain))


def runner_up(
    best: Candidate, known: Mapping[Candidate, Known], fits: Callable[[Candidate], bool] = lambda candidate: True
) -> Candidate | None:
    """Find the fastest of the other candidates; None when there is none."""
    return _first_possible((other for other in _ranked(known) if other != best), known, fits)


def _ranked(known: Mapping[Candidate, Known]) -> list[Candidate]:
    return sorted(known, key=lambda candidate: -known[candidate].rate)


def _first_possible(
    candidates: Iterable[Candidate], known: Mapping[Candidate, Known], fits: Callable[[Candidate], bool]
) -> Candidate | None:
    return next((each for each in candidates if known[each].trial is not None or fits(each)), None)


def _twin(best: Candidate, knob: str, references: Iterable[Candidate]) -> Candidate | None:
    return next((each for each in references if differences(best, each).keys() - set(DERIVED) == {knob}), None)


def _receipt(knob: str, best: Known, rival: Candidate, known: Known) -> Receipt:
    ratio, interval = best.rate / known.rate, None
    if best.whole_deviation is not None and known.whole_deviation is not None:
        factor = math.exp(NORMAL_975 * math.hypot(best.whole_deviation, known.whole_deviation))
        interval = (ratio / factor - 1, ratio * factor - 1)
    return Receipt(knob=knob, rival=rival, known=known, gain=ratio - 1, interval=interval)
