"""Receipts: the best without each value, measured or predicted, and the runner-up."""

from dataclasses import replace

import pytest

from autotune.core.trials.receipts import Known, receipts, runner_up
from tests.core.examples import candidate

BEST = candidate(per_device_train_batch_size=2, gradient_accumulation_steps=8, checkpointing="off")
RECOMPUTED = replace(BEST, checkpointing="full")
SELECTIVE = replace(BEST, checkpointing="selective")
LARGER = replace(BEST, per_device_train_batch_size=4, gradient_accumulation_steps=4)
LARGER_RECOMPUTED = replace(LARGER, checkpointing="full")
KNOWN = {
    BEST: Known(rate=120.0, deviation=0.01, trial=3),
    RECOMPUTED: Known(rate=80.0, deviation=0.01, trial=1),
    SELECTIVE: Known(rate=100.0, deviation=0.1, trial=None),
    LARGER: Known(rate=150.0, deviation=0.2, trial=None),
    LARGER_RECOMPUTED: Known(rate=90.0, deviation=0.2, trial=None),
}


def test_receipts_by_hand() -> None:
    """The best with another value of one knob, whatever else it has; a larger micro-batch was not tried in time."""
    first, second = receipts(BEST, KNOWN)
    assert (first.knob, first.rival, first.known.trial) == ("checkpointing", SELECTIVE, None)
    assert first.gain == pytest.approx(0.2)
    assert (second.knob, second.rival) == ("per_device_train_batch_size", LARGER)
    assert second.gain == pytest.approx(-0.2)


def test_what_does_not_fit_is_no_rival() -> None:
    """Unless it was measured: then it did."""
    first, *_ = receipts(BEST, KNOWN, fits=lambda candidate: False)
    assert (first.rival, first.known.trial) == (RECOMPUTED, 1)
    assert runner_up(BEST, KNOWN, fits=lambda candidate: candidate != LARGER) == SELECTIVE
    alone = {BEST: KNOWN[BEST], LARGER: KNOWN[LARGER]}
    assert receipts(BEST, alone, fits=lambda candidate: False) == ()
    assert runner_up(BEST, alone, fits=lambda candidate: False) is None


def test_the_runner_up_is_the_fastest_of_the_others() -> None:
    """None where there is no other."""
    assert runner_up(BEST, KNOWN) == LARGER
    assert runner_up(BEST, {BEST: KNOWN[BEST]}) is None
