"""Loss parity: whether a search's winner trains like the baseline, by the losses of their first optimizer steps.

Both start from the same weights and train on the same samples in each step, so their losses are compared step by step.
To say how large a difference matters, the baseline is trained once more with the same samples in another order. Of that
run only the mean loss is compared: its single steps hold other samples, which have other losses anyway.
Leaves out the training (train/sft.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autotune.core.candidate import Fidelity

# The share of a loss that other rounding may move: bf16 keeps 8 bits of every product, and errors average out.
ROUNDING = 2**-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Losses of the first optimizer steps, shape (steps,) each: a step's loss is the mean over its labels.

    reordered: of the baseline, with the same samples in another order.
    """

    baseline: Sequence[float]
    best: Sequence[float]
    reordered: Sequence[float]

    @property
    def difference(self) -> float:
        """How far the winner's losses are from the baseline's: the mean of the steps' absolute differences."""
        return _apart(self.best, self.baseline)

    @property
    def between_orders(self) -> float:
        """How far the mean losses of all steps are apart for two orders of the same samples."""
        return abs(fmean(self.reordered) - fmean(self.baseline))

    def allowed(self, fidelity: Fidelity) -> float | None:
        """How large the difference may be; None at `free`, which allows any.

        At `exact` it is what other rounding does, at `close` also what another order of the samples does.
        """
        rounding = ROUNDING * fmean(self.baseline)
        return {
            Fidelity.exact: rounding,
            Fidelity.close: max(rounding, self.between_orders),
            Fidelity.free: None,
        }[fidelity]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotCompared:
    """The losses were not compared."""

    not_compared: str
    """why the losses were not compared"""


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))
