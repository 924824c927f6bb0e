"""Loss parity by hand: rounding at `exact`, another order's difference at `close`, anything at `free`."""

import pytest

from autotune.core.candidate import Fidelity
from autotune.core.trials.parity import ROUNDING, Parity

PARITY = Parity(baseline=(4.0, 3.0, 2.0), best=(4.0, 3.1, 1.8), reordered=(3.7, 3.3, 2.3))  # 0.1 more on average


def test_differences_by_hand() -> None:
    """Step by step on the same samples, where signs do not cancel; of two orders the means over all of them."""
    assert PARITY.difference == pytest.approx(0.1)
    assert PARITY.between_orders == pytest.approx(0.1)


def test_what_a_fidelity_allows() -> None:
    """The mean loss is 3."""
    assert PARITY.allowed(Fidelity.exact) == pytest.approx(3 * ROUNDING)
    assert PARITY.allowed(Fidelity.close) == pytest.approx(0.1)
    assert PARITY.allowed(Fidelity.free) is None
    still = Parity(baseline=PARITY.baseline, best=PARITY.best, reordered=PARITY.baseline)
    assert still.allowed(Fidelity.close) == pytest.approx(3 * ROUNDING)
