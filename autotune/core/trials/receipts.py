"""Receipts: for each knob of a search's winner, what the best candidate without that value reaches.

A rate counts as it was measured where the candidate was tried, and as it is predicted where it was not. Leaves out
where rates come from (search/search.py) and how they are said (search/result.py).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from autotune.core.candidate import Candidate
from autotune.core.knobs import DERIVED, KNOBS


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a candidate's rate, useful tokens per second.

    rate: the mean of all its trials, or predicted. deviation: standard deviation of its logarithm, as far as steps of
    these trials tell; None where one of them measured a single step. trial: the number of the first, None where it is
    predicted.
    """

    rate: float
    deviation: float | None
    trial: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A knob of the winner. rival: the fastest candidate with another value. gain: of the winner over it, as a share.

    Below 0 where the rival is predicted to be faster, or was so in its trials: in a lucky one, or by less than the
    second measurement can tell.
    """

    knob: str
    rival: Candidate
    known: Known
    gain: float


def receipts(
    best: Candidate, known: Mapping[Candidate, Known], fits: Callable[[Candidate], bool] = lambda candidate: True
) -> tuple[Receipt, ...]:
    """The receipts of a winner, the largest gain first; none of knobs that have one value among all.

    known: of all candidates that count, the winner among them. fits: asked of those that are named and only predicted.
    Raises KeyError when the winner is not known.
    """
    ranked = _ranked(known)
    found = []
    for knob in KNOBS:
        others = (other for other in ranked if getattr(other, knob) != getattr(best, knob))
        if knob not in DERIVED and (rival := _first_possible(others, known, fits)) is not None:
            found.append(_receipt(knob, best, rival, known))
    return tuple(sorted(found, key=lambda receipt: -receipt.gain))


def runner_up(
    best: Candidate, known: Mapping[Candidate, Known], fits: Callable[[Candidate], bool] = lambda candidate: True
) -> Candidate | None:
    """The fastest of the others; None when there is none."""
    return _first_possible((other for other in _ranked(known) if other != best), known, fits)


def _ranked(known: Mapping[Candidate, Known]) -> list[Candidate]:
    return sorted(known, key=lambda candidate: -known[candidate].rate)


def _first_possible(
    candidates: Iterable[Candidate], known: Mapping[Candidate, Known], fits: Callable[[Candidate], bool]
) -> Candidate | None:
    return next((each for each in candidates if known[each].trial is not None or fits(each)), None)


def _receipt(knob: str, best: Candidate, rival: Candidate, known: Mapping[Candidate, Known]) -> Receipt:
    return Receipt(knob=knob, rival=rival, known=known[rival], gain=known[best].rate / known[rival].rate - 1)
