"""Micro-batches of candidates: which labels the loss scores, which one is the worst, and what is dealt once."""

from dataclasses import replace

import pytest

from autotune.core.batches.batches import Batch
from autotune.core.lengths import Lengths
from autotune.predict.micro_batches import DRAWN_STEPS, MicroBatches
from tests.core.examples import A100, CPU, candidate, lengths
from tests.stand_ins import training

TWO = candidate(max_length=100, per_device_train_batch_size=2, gradient_accumulation_steps=2)
ROWS = lengths([10, 50, 30, 400])


def test_a_cpu_scores_every_position_and_a_gpu_the_labels() -> None:
    """TRL's fused head does; full logits are of every position. Of packed rows the labels are a share of the tokens."""
    labelled = Lengths.with_labels_last(ROWS.tokens, ROWS.tokens - 9)
    found = {
        (machine.kind, loss): MicroBatches(training=training(machine, lengths=labelled, loss=loss)).worst(TWO).labels
        for machine in (CPU, A100)
        for loss in ("fused", "full_logits")
    }
    assert found == {
        ("cpu", "fused"): 198,
        ("cpu", "full_logits"): 198,
        ("cuda", "fused"): 91 + 41,
        ("cuda", "full_logits"): 198,
    }


def test_without_a_dataset_rows_are_as_long_as_they_may_be() -> None:
    """There is no epoch then, and the allocator sees the worst micro-batch alone."""
    batches = MicroBatches(training=training(A100))
    assert batches.worst(TWO) == Batch(rows=2, positions=100, labels=198)
    assert batches.epoch(TWO) is None
    assert batches.drawn_steps(TWO, micro_steps=2) == [[batches.worst(TWO)] * 2] * 2


def test_rebalancing_may_make_a_larger_micro_batch() -> None:
    """It gives many short rows to one: 15 of 20 tokens are more positions than the two longest rows."""
    rows = lengths([130] + [20] * 15)
    asked = candidate(per_device_train_batch_size=2, gradient_accumulation_steps=8)
    batches = MicroBatches(training=training(A100, lengths=rows))
    dealt = batches.epoch(replace(asked, batching="batch_rebalance"))
    assert dealt is not None
    worst = batches.worst(replace(asked, batching="batch_rebalance"))
    assert worst.rows * worst.positions == max(2 * 130, dealt.epoch.largest.rows * dealt.epoch.largest.positions)
    assert batches.worst(asked).positions == 130


def test_what_batches_alike_is_dealt_once() -> None:
    """A knob that batches do not depend on changes nothing; another length is another epoch."""
    batches = MicroBatches(training=training(A100, lengths=ROWS))
    assert batches.epoch(TWO) is batches.epoch(replace(TWO, optimizer="adafactor"))
    assert batches.epoch(TWO) is not batches.epoch(replace(TWO, max_length=50))


def test_the_allocator_sees_drawn_steps_before_the_worst() -> None:
    """Whole optimizer steps, in the sampler's order, then the worst micro-batch in two steps."""
    batches = MicroBatches(training=training(A100, lengths=lengths(range(20, 420))))
    steps = batches.drawn_steps(TWO, micro_steps=2)
    assert len(steps) == DRAWN_STEPS + 2
    assert {len(step) for step in steps} == {2}
    assert steps[-2:] == [[batches.worst(TWO)] * 2] * 2
    assert all(batch.positions <= 100 for step in steps for batch in step)


@pytest.mark.parametrize("knobs", [{}, {"batching": "pack_bfd", "packed_length": 100}])
def test_useful_tokens_are_those_of_the_dataset(knobs: dict[str, object]) -> None:
    """However many positions the loss scores: rows of 10, 50, 30 and 100 tokens have 9 + 49 + 29 + 99 labels."""
    batches = MicroBatches(training=training(CPU, lengths=ROWS))
    dealt = batches.epoch(replace(TWO, per_device_train_batch_size=1, **knobs))  # type: ignore[arg-type]
    assert dealt is not None
    assert dealt.useful_tokens == pytest.approx(9 + 49 + 29 + 99, abs=2)
    assert dealt.epoch.labels.sum() == (dealt.epoch.rows * (dealt.epoch.positions - 1)).sum()
