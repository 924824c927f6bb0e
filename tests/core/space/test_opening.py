"""The opening: where to begin, from the lengths alone."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.core.candidate import Candidate
from autotune.core.space.opening import opening, padded_share
from tests.core.examples import lengths

START = Candidate(max_length=512, per_device_train_batch_size=4, gradient_accumulation_steps=1, method="full")


def batched(batching: str, size: int, **changes: object) -> Candidate:
    """START with another way of batching, at four rows a step."""
    return replace(
        START,
        batching=batching,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=4 // size,
        **changes,  # type: ignore[arg-type]
    )


def test_padding_of_four_rows_by_hand() -> None:
    """Rows of 1, 4, 2 and 3: in fours 10 of 16 positions count, in pairs 10 of 14, rebalanced 10 of 12, alone all."""
    tokens = lengths([1, 4, 2, 3])
    assert padded_share(tokens, batched("random", 4), seed=0) == pytest.approx(6 / 16)
    assert padded_share(tokens, batched("random", 2), seed=1) == pytest.approx(4 / 14)
    assert padded_share(tokens, batched("batch_rebalance", 2), seed=0) == pytest.approx(2 / 12)
    assert padded_share(tokens, batched("random", 1), seed=0) == 0
    assert padded_share(tokens, batched("pack_bfd", 2, packed_length=8), seed=0) == 0


def test_a_row_counts_as_it_is_cut() -> None:
    """Rows beyond max_length are cut before they are padded."""
    assert padded_share(lengths([600, 512]), replace(batched("random", 2), max_length=512), seed=0) == 0


def test_fewer_than_one_micro_batch_pads_nothing() -> None:
    """There is no full batch to speak of."""
    assert padded_share(lengths([3]), batched("random", 4), seed=0) == 0


def test_it_varies_batching_alone_and_lists_what_is_legal() -> None:
    """Only candidates of the list, and only those that differ from the start in how they batch, least padding first."""
    rows = lengths(np.random.default_rng(0).integers(20, 500, size=400))
    candidates = [
        batched(batching, size, optimizer=optimizer)
        for batching in ("random", "batch_rebalance", "group_by_length")
        for size in (1, 2, 4)
        for optimizer in ("adamw_torch_fused", "adafactor")
    ]
    found = opening(candidates, START, rows, seed=0)
    assert set(found) <= set(candidates)
    assert {c.optimizer for c in found} == {START.optimizer}
    assert {c.batching for c in found} == {"random", "batch_rebalance", "group_by_length"}
    assert batched("group_by_length", 2) in found
    padding = [padded_share(rows, c, seed=0) for c in found]
    assert padding == sorted(padding)


def test_nothing_alike_gives_nothing() -> None:
    """A start outside the space, with no like in it, opens nothing."""
    assert opening([replace(START, optimizer="adafactor")], START, lengths([1, 2, 3, 4]), seed=0) == []
