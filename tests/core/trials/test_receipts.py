"""Receipts: the best without each value, measured or predicted, and the runner-up."""

import math
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


def test_a_knob_of_one_value_is_compared_with_a_twin() -> None:
    """A measured reference that differs in nothing else; a gain over any other would be of other knobs as well."""
    twin, other = replace(BEST, tuned_allocator=False), replace(RECOMPUTED, tuned_allocator=False)
    references = {
        other: Known(rate=50.0, deviation=0.01, trial=0, trials=1),
        twin: Known(rate=100.0, deviation=0.01, trial=2, trials=1),
    }
    found = {each.knob: each for each in receipts(BEST, KNOWN, references=references)}
    assert found["tuned_allocator"].rival == twin
    assert found["tuned_allocator"].gain == pytest.approx(0.2)
    assert found["checkpointing"].rival == SELECTIVE  # the space has other values, so no reference counts
    alone = {each.knob for each in receipts(BEST, KNOWN, references={other: references[other]})}
    assert "tuned_allocator" not in alone


def test_the_interval_of_a_gain_by_hand() -> None:
    """Of the mean of four trials and a single one, which differ by 5 % beside what their steps show; none without an
    error."""
    best = Known(rate=120.0, deviation=0.0, trial=3, trials=4)
    rival = Known(rate=100.0, deviation=0.03, trial=1, trials=1)
    spread = 1.96 * math.hypot(0.05 / 2, 0.03, 0.05)
    [receipt] = receipts(BEST, {BEST: best, RECOMPUTED: rival})
    assert receipt.interval == pytest.approx((1.2 * math.exp(-spread) - 1, 1.2 * math.exp(spread) - 1), abs=1e-4)
    assert receipt.is_distinguishable
    [receipt] = receipts(BEST, {BEST: best, RECOMPUTED: replace(rival, rate=115.0)})
    assert not receipt.is_distinguishable
    [receipt] = receipts(BEST, {BEST: best, RECOMPUTED: replace(rival, deviation=None)})
    assert receipt.interval is None


def test_the_runner_up_is_the_fastest_of_the_others() -> None:
    """None where there is no other."""
    assert runner_up(BEST, KNOWN) == LARGER
    assert runner_up(BEST, {BEST: KNOWN[BEST]}) is None
