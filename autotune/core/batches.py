"""Batches: the shapes of the micro-batches that a candidate makes of a dataset.

The worst one decides whether a candidate fits; a sequence of them, as the sampler would draw it, decides how much
the allocator reserves. Leaves out what a shape costs (memory.py).

Symbols: B rows of a micro-batch, S positions of a row (padding included), N label positions.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.batching import STRATEGIES, pack
from autotune.core.candidate import Batching, Candidate
from autotune.core.profile import Size, monomials
from autotune.core.regime import keeps_documents_apart, micro_batch
from autotune.core.workload import Lengths

Integers = NDArray[np.int64]
GROUP_STEPS, LEAST_GROUPS = 50, 4  # transformers' LengthGroupedSampler sorts within so many steps, or makes four groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The shape of one micro-batch. labels: positions that the loss may score, at most rows x (positions - 1)."""

    rows: int
    positions: int
    labels: int

    @property
    def monomials(self) -> Size:
        """Its monomials, as a profile's sizes want them."""
        return monomials(self.rows, self.positions, self.labels)


def full_batch(candidate: Candidate) -> Batch:
    """A micro-batch whose rows are as long as the candidate lets them be, every token a label."""
    rows, positions = micro_batch(candidate, padded(candidate.row_length, candidate))
    return Batch(rows=rows, positions=positions, labels=rows * (positions - 1))


def worst_batch(candidate: Candidate, lengths: Lengths) -> Batch:
    """The largest micro-batch that the dataset can make: its longest rows together, and its most labels."""
    if candidate.packs:
        return full_batch(candidate)
    rows = min(candidate.per_device_train_batch_size, lengths.rows)
    longest = min(lengths.longest, candidate.max_length)
    labels = np.minimum(lengths.most_labels[:rows], candidate.max_length - 1)
    return Batch(rows=rows, positions=padded(longest, candidate), labels=int(labels.sum()))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epoch:
    """The micro-batches of an epoch in an order like the sampler's: arrays of shape (C,), int64, as Batch has them."""

    rows: Integers
    positions: Integers
    labels: Integers

    def batches(self, most: int) -> list[Batch]:
        """The first of them."""
        columns = (self.rows[:most].tolist(), self.positions[:most].tolist(), self.labels[:most].tolist())
        return [Batch(rows=B, positions=S, labels=N) for B, S, N in zip(*columns, strict=True)]

    def new_shapes(self, remembered: int) -> float:
        """Share of the micro-batches whose shape is none of the `remembered` ones that were met last."""
        met: OrderedDict[tuple[int, int], None] = OrderedDict()
        new = 0
        for shape in zip(self.rows.tolist(), self.positions.tolist(), strict=True):
            if shape in met:
                met.move_to_end(shape)
                continue
            new += 1
            met[shape] = None
            if len(met) > remembered:
                met.popitem(last=False)
        return new / len(self.rows)

    @property
    def middle(self) -> Batch:
        """The micro-batch of the median size."""
        place = int(np.argsort(self.rows * self.positions)[len(self.rows) // 2])
        return Batch(rows=int(self.rows[place]), positions=int(self.positions[place]), labels=int(self.labels[place]))

    @property
    def monomials(self) -> NDArray[np.float64]:
        """Those of each micro-batch, shape (C, M)."""
        columns: Any = (self.rows, self.positions, self.labels)
        return np.stack(np.broadcast_arrays(*monomials(*columns)), axis=1).astype(np.float64)


def simulate_epoch(candidate: Candidate, lengths: Lengths, *, seed: int) -> Epoch:
    """Deal the rows of a dataset out to micro-batches of full size. Packed rows keep the dataset's mean of labels."""
    tokens = np.minimum(lengths.tokens, candidate.max_length)
    labels = np.minimum(lengths.labels, tokens - 1)
    if candidate.packs:
        packed = pack(lengths.tokens, row_length=candidate.row_length, strategy=STRATEGIES[candidate.batching])
        share = labels.sum() / tokens.sum()
        tokens = packed.row_tokens
        labels = np.rint(tokens * share).astype(np.int64)
    rows = min(candidate.per_device_train_batch_size, len(tokens))
    order = np.random.default_rng(seed).permutation(len(tokens))
    order = order[sampled_order(tokens[order], candidate)][: len(tokens) // rows * rows].reshape(-1, rows)
    of_batch = tokens[order]
    apart = keeps_documents_apart(candidate)
    longest = of_batch.sum(axis=1) if apart else of_batch.max(axis=1)
    return Epoch(
        rows=np.full(len(order), 1 if apart else rows),
        positions=_up(longest, candidate.pad_to_multiple_of),
        labels=labels[order].sum(axis=1),
    )


def sampled_order(tokens: Integers, candidate: Candidate) -> Integers:
    """Where the samplers move rows that came in a random order: they sort by length within windows. Shape (rows,)."""
    step = candidate.rows_per_step
    group = max(1, min(len(tokens) // (LEAST_GROUPS * step), GROUP_STEPS))
    sorted_within: dict[Batching, int] = {"batch_rebalance": step, "group_by_length": step * group}
    if (window := sorted_within.get(candidate.batching)) is None:
        return np.arange(len(tokens))
    return np.concatenate([i + np.argsort(-tokens[i : i + window]) for i in range(0, len(tokens), window)])


def is_masked(candidate: Candidate, lengths: Lengths | None) -> bool:
    """Whether attention needs a mask in some large micro-batch: one where a row is padded, to the others or a multiple.

    Without a dataset every row is full. Where documents are kept apart the mask is that of the documents.
    """
    if keeps_documents_apart(candidate):
        return False
    if lengths is None or candidate.packs:
        return padded(candidate.row_length, candidate) != candidate.row_length
    tokens = np.minimum(lengths.distinct, candidate.max_length)
    if candidate.per_device_train_batch_size > 1 and tokens[0] < tokens[-1]:
        return True
    return bool((tokens % (candidate.pad_to_multiple_of or 1)).any())


def padded(tokens: int, candidate: Candidate) -> int:
    """Positions of a row of so many tokens."""
    return int(_up(np.int64(tokens), candidate.pad_to_multiple_of))


def _up(tokens: Any, multiple: int | None) -> Any:
    return tokens if multiple is None else -(-tokens // multiple) * multiple
