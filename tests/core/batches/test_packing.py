"""Packing arithmetic against the real `trl.pack_dataset`, a hand-checked table, and laws."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core.batches.packing import BATCH_ROWS, Strategy, pack

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=60)
strategies = st.sampled_from(["bfd", "bfd_split", "wrapped"])


def rows(tokens: list[int], row_length: int, strategy: Strategy) -> list[int]:
    return list(pack(np.array(tokens), row_length=row_length, strategy=strategy).row_tokens)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("bfd", [4, 4, 2]),  # the example in TRL's docstring: 5 is cut to 4, 3 and 1 share a row
        ("bfd_split", [4, 4, 3]),  # 5 becomes 4 and 1
        ("wrapped", [4, 4, 3]),
    ],
)
def test_the_example_of_trl_s_docstring(strategy: Strategy, expected: list[int]) -> None:
    """The table that TRL's documentation shows, plus its wrapped counterpart counted by hand."""
    assert rows([5, 2, 3, 1], 4, strategy) == expected


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
@pytest.mark.parametrize(("seed", "count", "row_length"), [(0, 7, 16), (1, 400, 128), (2, 2500, 512), (3, 1001, 33)])
def test_equals_trl(strategy: Strategy, seed: int, count: int, row_length: int) -> None:
    """Every row of the packed dataset has the tokens that TRL gives it, in TRL's order, across its batches of 1000."""
    from datasets import Dataset
    from trl import pack_dataset

    tokens = np.random.default_rng(seed).gamma(2.0, 30.0, count).astype(np.int64) + 1
    dataset = Dataset.from_dict({"input_ids": [[0] * n for n in tokens.tolist()]})
    packed = pack_dataset(dataset, row_length, strategy, map_kwargs={"keep_in_memory": True})
    assert rows(tokens.tolist(), row_length, strategy) == [len(row) for row in packed["input_ids"]]


@given(lengths, st.integers(1, 100), strategies)
def test_no_row_is_overfull_or_empty(tokens: list[int], row_length: int, strategy: Strategy) -> None:
    """A packed row holds between 1 and `row_length` tokens."""
    assert all(1 <= filled <= row_length for filled in rows(tokens, row_length, strategy))


@given(lengths, st.integers(1, 100))
def test_only_bfd_loses_tokens(tokens: list[int], row_length: int) -> None:
    """Splitting and wrapping keep every token; best fit keeps what truncation at the row's length keeps."""
    assert sum(rows(tokens, row_length, "bfd_split")) == sum(tokens)
    assert sum(rows(tokens, row_length, "wrapped")) == sum(tokens)
    assert sum(rows(tokens, row_length, "bfd")) == sum(min(length, row_length) for length in tokens)


@given(lengths)
def test_splitting_is_best_fit_where_nothing_is_long(tokens: list[int]) -> None:
    """When no sample exceeds a row the two strategies are one (the rule `splits_nothing`)."""
    assert rows(tokens, max(tokens), "bfd_split") == rows(tokens, max(tokens), "bfd")


@given(lengths, st.integers(1, 100), st.integers(1, 64))
def test_rows_per_step_is_the_nearest(tokens: list[int], row_length: int, samples: int) -> None:
    """No other number of rows comes nearer to the samples of a step."""
    packing = pack(np.array(tokens), row_length=row_length, strategy="bfd")
    chosen = packing.rows_per_step(samples)
    off = abs(chosen * packing.samples_per_row - samples)
    assert off <= min(abs(n * packing.samples_per_row - samples) for n in range(1, samples + 2)) + 1e-9


@settings(deadline=None)
@given(st.integers(1, 4))
def test_batches_are_packed_apart(copies: int) -> None:
    """TRL packs 1000 rows at a time: copies of a batch give copies of its rows."""
    batch = np.random.default_rng(5).integers(1, 300, BATCH_ROWS)
    once = pack(batch, row_length=512, strategy="bfd").row_tokens
    tiled = pack(np.tile(batch, copies), row_length=512, strategy="bfd").row_tokens
    assert np.array_equal(tiled, np.tile(once, copies))


def test_a_hundred_thousand_rows_take_seconds() -> None:
    """A space packs a dataset a dozen times, so one packing must stay well under a second or two."""
    tokens = np.random.default_rng(0).gamma(2.0, 120.0, 100_000).astype(np.int64) + 1
    started = time.process_time()
    pack(tokens, row_length=2048, strategy="bfd")
    assert time.process_time() - started < 2
