"""Batches: the worst one by hand, and that no drawn one is larger."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.batches.batches import (
    Batch,
    Epoch,
    full_batch,
    is_masked,
    sampled_order,
    simulate_epoch,
    worst_batch,
)
from autotune.core.lengths import Lengths
from tests.core.examples import candidate, lengths

TWO = candidate(max_length=100, per_device_train_batch_size=2, gradient_accumulation_steps=2)


def test_the_worst_batch_by_hand() -> None:
    """The two longest of 10, 50, 30 and 400 tokens, cut at 100: 2 x 100 positions; most labels are 20 and 99."""
    rows = Lengths.with_labels_last(np.array([10, 50, 30, 400]), np.array([9, 5, 20, 399]))
    assert worst_batch(TWO, rows) == Batch(rows=2, positions=100, labels=119)
    assert worst_batch(replace(TWO, pad_to_multiple_of=64), rows).positions == 128
    assert full_batch(TWO) == Batch(rows=2, positions=100, labels=198)
    packed = replace(TWO, batching="pack_bfd", packed_length=100)
    assert worst_batch(packed, rows) == Batch(rows=1, positions=200, labels=199)  # TRL lays its rows end to end


@given(
    tokens=st.lists(st.integers(1, 500), min_size=2, max_size=60),
    batching=st.sampled_from(["random", "group_by_length"]),
    seed=st.integers(0, 9),
)
def test_no_drawn_batch_is_larger_than_the_worst(tokens: list[int], batching: str, seed: int) -> None:
    """Whatever the sampler draws needs no more rows, positions or labels."""
    asked = replace(TWO, batching=batching)  # type: ignore[arg-type]
    worst = worst_batch(asked, lengths(tokens))
    kept = np.minimum(np.array(tokens), asked.max_length)
    assert (worst.positions, worst.labels) == (kept.max(), np.sort(kept - 1)[-2:].sum())
    for batch in simulate_epoch(asked, lengths(tokens), seed=seed).batches(len(tokens)):
        assert (batch.rows, batch.positions) <= (worst.rows, worst.positions)
        assert batch.labels <= worst.labels


def test_an_epoch_of_packed_rows_by_hand() -> None:
    """60, 40, 50 and 30 tokens fill rows of 100 as 60 + 40 and 50 + 30; kept apart, two rows are one of 180."""
    rows = Lengths.with_labels_last(np.array([60, 40, 50, 30]), np.array([30, 20, 25, 15]))
    packed = replace(TWO, batching="pack_bfd", packed_length=100)
    assert simulate_epoch(packed, rows, seed=0).batches(9) == [Batch(rows=1, positions=180, labels=90)]
    wrapped = replace(packed, batching="pack_wrapped", pad_to_multiple_of=64)
    assert simulate_epoch(wrapped, rows, seed=0).batches(9) == [Batch(rows=2, positions=128, labels=90)]


def test_an_epoch_holds_each_row_once() -> None:
    """Its labels are those of the dataset, whatever the order; a rest that fills no micro-batch is left out."""
    tokens = [5, 9, 30, 7, 8, 60, 12, 3]
    for batching in ("random", "batch_rebalance", "group_by_length"):
        epoch = simulate_epoch(replace(TWO, batching=batching), lengths(tokens), seed=3)  # type: ignore[arg-type]
        assert epoch.labels.sum() == lengths(tokens).labels.sum()
        assert len(epoch.rows) == 4
        assert epoch.monomials[0].tolist() == list(epoch.batches(1)[0].monomials)


@pytest.mark.parametrize(("batching", "order"), [("random", [0, 1, 2, 3]), ("batch_rebalance", [1, 3, 2, 0])])
def test_samplers_sort_within_a_step(batching: str, order: list[int]) -> None:
    """Batch rebalancing sorts the four rows of a step, longest first; random order stays."""
    asked = replace(TWO, batching=batching)  # type: ignore[arg-type]
    assert sampled_order(np.array([1, 4, 2, 3]), asked).tolist() == order


@pytest.mark.parametrize(
    ("rows", "tokens", "is_padded"),
    [(1, [100, 101, 900], True), (2, [100, 100], True), (1, [128, 900, 960], True), (1, [64, 128], False)],
)
def test_a_mask_is_needed_where_a_row_is_padded_to_a_multiple(rows: int, tokens: list[int], is_padded: bool) -> None:
    """TRL's collator pads a single row too, and transformers makes a mask of any zero in the attention mask."""
    asked = candidate(max_length=1024, pad_to_multiple_of=64, per_device_train_batch_size=rows)
    assert is_masked(asked, lengths(tokens)) is is_padded
    packed = replace(asked, max_length=tokens[0], packed_length=tokens[0])
    assert is_masked(replace(packed, batching="pack_wrapped"), lengths(tokens)) is (tokens[0] % 64 > 0)
    assert not is_masked(replace(packed, batching="pack_bfd"), lengths(tokens))


def test_a_mask_is_needed_where_rows_differ() -> None:
    """One row, full rows and rows that are all cut at one length need none."""
    assert is_masked(TWO, lengths([10, 50]))
    assert not is_masked(TWO, lengths([100, 400]))
    assert not is_masked(TWO, None)
    assert not is_masked(replace(TWO, per_device_train_batch_size=1), lengths([10, 50]))


def test_rebalancing_by_hand() -> None:
    """Of 90, 20, 20 and 10 tokens the long row is alone, and three short ones go together."""
    asked = replace(TWO, batching="batch_rebalance")
    epoch = simulate_epoch(asked, lengths([20, 90, 10, 20]), seed=0)
    assert epoch.batches(9) == [Batch(rows=1, positions=90, labels=89), Batch(rows=3, positions=20, labels=47)]
    assert (epoch.largest.rows, epoch.middle.rows) == (1, 3)
    alone = [(each.rows.tolist(), each.positions.tolist()) for each in epoch.by_rows()]
    assert alone == [([1], [90]), ([3], [20])]


def test_shapes_are_new_until_they_are_remembered() -> None:
    """Of five micro-batches three shapes: with two remembered the first has been forgotten when it comes again."""
    epoch = Epoch(
        rows=np.array([2, 2, 2, 2, 4]), positions=np.array([64, 128, 128, 64, 64]), labels=np.array([1, 1, 1, 1, 1])
    )
    assert epoch.new_shapes(3) == 3 / 5
    assert epoch.new_shapes(2) == 3 / 5
    assert epoch.new_shapes(1) == 4 / 5
