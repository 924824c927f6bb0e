"""Receipts: for each knob of a search's winner, what the best candidate without that value reaches.

A rate counts as it was measured where the candidate was tried, and as it is predicted where it was not. Leaves out
where rates come from (search.py) and how they are said (result.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.core.candidate import KNOBS, Candidate

DERIVED = ("gradient_accumulation_steps",)  # knobs that follow from the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a candidate's rate, useful tokens per second.

    deviation: standard deviation of its logarithm, None where one step alone was measured. trial: the number of the
    trial that measured it, None where it is predicted.
    """

    rate: float
    deviation: float | None
    trial: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A knob of the winner. rival: the fastest candidate with another value. gain: of the winner over it, as a share.

    Below 0 where the rival is predicted to be faster, and was not tried.
    """

    knob: str
    rival: Candidate
    known: Known
    gain: float


def receipts(best: Candidate, known: Mapping[Candidate, Known]) -> tuple[Receipt, ...]:
    """The receipts of a winner, the largest gain first; none of knobs that have one value among all.

    known: of all candidates that count, the winner among them. Raises KeyError when it is not.
    """
    found = []
    for knob in KNOBS:
        others = [other for other in known if getattr(other, knob) != getattr(best, knob)]
        if others and knob not in DERIVED:
            found.append(_receipt(knob, best, _fastest(others, known), known))
    return tuple(sorted(found, key=lambda receipt: -receipt.gain))


def runner_up(best: Candidate, known: Mapping[Candidate, Known]) -> Candidate | None:
    """The fastest of the others; None when there is none."""
    others = [other for other in known if other != best]
    return _fastest(others, known) if others else None


def _fastest(candidates: list[Candidate], known: Mapping[Candidate, Known]) -> Candidate:
    return max(candidates, key=lambda candidate: known[candidate].rate)


def _receipt(knob: str, best: Candidate, rival: Candidate, known: Mapping[Candidate, Known]) -> Receipt:
    return Receipt(knob=knob, rival=rival, known=known[rival], gain=known[best].rate / known[rival].rate - 1)
