"""Batches: the shapes of the micro-batches that a candidate makes of a dataset.

The worst one decides whether a candidate fits. A sequence of them, in an order like the sampler's, decides how much the
allocator reserves and how long an epoch takes. Leaves out what a shape costs (core/memory/law.py, core/time/law.py).

Symbols: B rows of a micro-batch, S positions of a row (padding included), N label positions, C micro-batches, M
monomials.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.batches.packing import STRATEGIES, pack
from autotune.core.batches.trained import packed_labels
from autotune.core.candidate import Candidate
from autotune.core.knobs import Batching
from autotune.core.lengths import Lengths
from autotune.core.step.profile import Size, monomials
from autotune.core.step.regime import keeps_documents_apart, micro_batch

Integers = NDArray[np.int64]
# transformers' LengthGroupedSampler sorts rows within groups of 50 steps, or of a quarter of a shorter dataset.
GROUP_STEPS, LEAST_GROUPS = 50, 4
ATTENTION_COST = 0.001  # of a pair of positions, where a position costs 1 (transformers' BatchRebalanceSampler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The shape of one micro-batch. labels: positions that the loss may score, at most rows x (positions - 1)."""

    rows: int
    positions: int
    labels: int

    @property
    def monomials(self) -> Size:
        """The values of the monomials (core/step/profile.py)."""
        return monomials(self.rows, self.positions, self.labels)


def full_batch(candidate: Candidate) -> Batch:
    """The micro-batch whose rows are as long as the candidate allows, and whose tokens are all labels."""
    rows, positions = micro_batch(candidate, padded(candidate.row_length, candidate))
    return Batch(rows=rows, positions=positions, labels=rows * (positions - 1))


def worst_batch(candidate: Candidate, lengths: Lengths) -> Batch:
    """The largest micro-batch that the dataset can make: as long as its longest row, with the most labels.

    At least one row must be left after the cut.
    """
    if candidate.packs:
        return full_batch(candidate)
    left = lengths.cut(candidate.max_length)
    rows = min(candidate.per_device_train_batch_size, left.rows)
    labels = int(left.most_labels[:rows].sum())
    return Batch(rows=rows, positions=padded(left.longest, candidate), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epoch:
    """The micro-batches of an epoch, in an order like the sampler's. The fields of Batch, each of shape (C,), int64."""

    rows: Integers
    positions: Integers
    labels: Integers

    def by_rows(self) -> "list[Epoch]":
        """Split the epoch by how many rows its micro-batches have. Only batch rebalancing makes them differ."""
        if self.rows.min() == self.rows.max():
            return [self]
        return [self._where(self.rows == rows) for rows in np.unique(self.rows)]

    def batches(self, most: int) -> list[Batch]:
        """The first `most` micro-batches."""
        columns = (self.rows[:most].tolist(), self.positions[:most].tolist(), self.labels[:most].tolist())
        return [Batch(rows=B, positions=S, labels=N) for B, S, N in zip(*columns, strict=True)]

    def new_shapes(self, remembered: int) -> float:
        """Share of the micro-batches with a new shape: one that is not among the last `remembered` different shapes."""
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
        """The micro-batch of the median size. A single row is another regime, so it counts only if all have one."""
        places = np.flatnonzero((self.rows > 1) | (self.rows.max() == 1))
        return self._at(int(places[np.argsort((self.rows * self.positions)[places])[len(places) // 2]]))

    @property
    def largest(self) -> Batch:
        """The micro-batch with the most positions."""
        return self._at(int(np.argmax(self.rows * self.positions)))

    @property
    def monomials(self) -> NDArray[np.float64]:
        """The values of the monomials of each micro-batch, shape (C, M)."""
        columns: Any = (self.rows, self.positions, self.labels)
        return np.stack(np.broadcast_arrays(*monomials(*columns)), axis=1).astype(np.float64)

    def _at(self, place: int) -> Batch:
        return Batch(rows=int(self.rows[place]), positions=int(self.positions[place]), labels=int(self.labels[place]))

    def _where(self, kept: NDArray[np.bool_]) -> "Epoch":
        return Epoch(rows=self.rows[kept], positions=self.positions[kept], labels=self.labels[kept])


def simulate_epoch(candidate: Candidate, lengths: Lengths, *, seed: int) -> Epoch:
    """Deal the rows that are left of a dataset out to micro-batches. Labels are the same share of every packed row.

    At least one row must be left after the cut.
    """
    if candidate.packs:
        packed = pack(lengths.tokens, row_length=candidate.row_length, strategy=STRATEGIES[candidate.batching])
        tokens = packed.row_tokens
        labels = np.rint(tokens * (packed_labels(candidate, lengths) / tokens.sum())).astype(np.int64)
    else:
        left = lengths.cut(candidate.max_length)
        tokens, labels = left.tokens, left.labels
    order = np.random.default_rng(seed).permutation(len(tokens))
    dealt, rows = deal(tokens[order], candidate)
    order, starts = order[dealt], rows.cumsum() - rows
    apart = keeps_documents_apart(candidate)
    together = np.add if apart else np.maximum
    return Epoch(
        rows=np.ones_like(rows) if apart else rows,
        positions=_up(together.reduceat(tokens[order], starts), candidate.pad_to_multiple_of),
        labels=np.add.reduceat(labels[order], starts),
    )


def deal(tokens: Integers, candidate: Candidate) -> tuple[Integers, Integers]:
    """Deal out rows that are in a random order. Returns their new order, and the rows of each micro-batch, (C,).

    tokens: of each row, at least one. Rows that do not fill a micro-batch are left out, and under batch rebalancing
    those that do not fill a step.
    """
    order = sampled_order(tokens, candidate)
    if candidate.batching == "batch_rebalance":
        step = min(candidate.rows_per_step, len(tokens))
        of_steps = tokens[order[: len(tokens) // step * step]].reshape(-1, step)
        rows = balanced(of_steps, -(-step // candidate.per_device_train_batch_size)).ravel()
    else:
        size = min(candidate.per_device_train_batch_size, len(tokens))
        rows = np.full(len(tokens) // size, size)
    return order[: rows.sum()], rows


def balanced(tokens: Integers, micro_batches: int) -> Integers:
    """How many rows each micro-batch of a step gets under batch rebalancing, (steps, micro_batches).

    tokens: of the rows of each step, longest first, (steps, rows). This is what transformers' BatchRebalanceSampler
    does for one device, and about what it does for several. The costliest micro-batch gives a row to the cheapest. This
    is repeated until the costliest has a single row. The division whose costs differed least is taken.
    """
    steps, rows = tokens.shape
    sizes = np.tile(rows // micro_batches + (np.arange(micro_batches) < rows % micro_batches), (steps, 1))
    found, least = sizes.copy(), np.full(steps, np.inf)
    going, last, earlier = np.arange(steps), np.zeros_like(sizes), np.zeros_like(sizes)
    for _ in range(max(30 * micro_batches, rows)):
        longest = np.take_along_axis(tokens, sizes.cumsum(axis=1) - sizes, axis=1)
        costs = sizes * longest + ATTENTION_COST * sizes * longest * longest
        each, high, low = np.arange(len(going)), costs.argmax(axis=1), costs.argmin(axis=1)
        apart = costs[each, high] - costs[each, low]
        better = apart < least[going]
        found[going[better]], least[going[better]] = sizes[better], apart[better]
        turns_back = (sizes == earlier).all(axis=1)
        changes = np.flatnonzero((apart > 0) & (sizes[each, high] > 1) & ~turns_back)
        if not len(changes):
            break
        going, tokens, earlier, last = going[changes], tokens[changes], last[changes], sizes[changes]
        sizes, each = last.copy(), np.arange(len(going))
        sizes[each, high[changes]] -= 1
        sizes[each, low[changes]] += 1
    return found


def sampled_order(tokens: Integers, candidate: Candidate) -> Integers:
    """The order in which a sampler takes rows that are in a random order, shape (rows,).

    Some samplers sort the rows of a window by their length.
    """
    step = candidate.rows_per_step
    group = max(1, min(len(tokens) // (LEAST_GROUPS * step), GROUP_STEPS))
    sorted_within: dict[Batching, int] = {"batch_rebalance": step, "group_by_length": step * group}
    if (window := sorted_within.get(candidate.batching)) is None:
        return np.arange(len(tokens))
    return np.concatenate([i + np.argsort(-tokens[i : i + window]) for i in range(0, len(tokens), window)])


def is_masked(candidate: Candidate, lengths: Lengths | None) -> bool:
    """Whether some large micro-batch has a padded row, so that attention needs a mask for the padding.

    Rows are padded to the longest of the micro-batch, or to a multiple. Without a dataset every row is full. Where
    documents are kept apart there is no mask for padding, but one for the documents.
    """
    if keeps_documents_apart(candidate):
        return False
    if lengths is None or candidate.packs:
        return padded(candidate.row_length, candidate) != candidate.row_length
    tokens = lengths.distinct_left(candidate.max_length)
    if candidate.per_device_train_batch_size > 1 and tokens[0] < tokens[-1]:
        return True
    return bool((tokens % (candidate.pad_to_multiple_of or 1)).any())


def padded(tokens: int, candidate: Candidate) -> int:
    """Positions of a row of `tokens` tokens."""
    return int(_up(np.int64(tokens), candidate.pad_to_multiple_of))


def _up(tokens: Any, multiple: int | None) -> Any:
    return tokens if multiple is None else -(-tokens // multiple) * multiple
