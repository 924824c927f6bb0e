"""Loss parity: whether a search's winner trains like the baseline, by the losses of their first optimizer steps.

Both start from the same weights and meet the same samples in each step, so their losses are compared step by step. What
differs is held against how far the baseline's mean loss moves when the same samples come in another order; step by
step those would differ because other samples have other losses. Leaves out the training (train/sft.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from autotune.core.candidate import Fidelity

# Of a loss, what other rounding may move: bf16 keeps 8 bits of every product, and their errors average out.
ROUNDING = 2**-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """Losses of the first optimizer steps, each of shape (steps,): means over the labels of a step.

    reordered: the baseline's with the same samples in another order.
    """

    baseline: Sequence[float]
    best: Sequence[float]
    reordered: Sequence[float]

    @property
    def difference(self) -> float:
        """Of the winner from the baseline: the mean over the steps of how far their losses are apart."""
        return _apart(self.best, self.baseline)

    @property
    def between_orders(self) -> float:
        """How far the means over all steps are apart with two orders of the same samples."""
        return abs(fmean(self.reordered) - fmean(self.baseline))

    def allowed(self, fidelity: Fidelity) -> float | None:
        """How large the difference may be: other rounding, or what another order makes; None at `free`."""
        rounding = ROUNDING * fmean(self.baseline)
        return {
            Fidelity.exact: rounding,
            Fidelity.close: max(rounding, self.between_orders),
            Fidelity.free: None,
        }[fidelity]


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))
