"""Packing: how many rows a dataset becomes when several samples share a row, and how long these are.

This is the arithmetic of `trl.pack_dataset` (trl 1.16), row for row, on lengths alone. Leaves out the order in which
rows are trained and the padding of a micro-batch (batches.py).

Symbols: N samples of l_i tokens, S length of a packed row, M packed rows.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autotune.core.knobs import Batching

Strategy = Literal["bfd", "bfd_split", "wrapped"]
STRATEGIES: Mapping[Batching, Strategy] = {"pack_bfd": "bfd", "pack_bfd_split": "bfd_split", "pack_wrapped": "wrapped"}

BATCH_ROWS = 1000  # TRL packs within batches of `datasets.Dataset.map`, and this is their default size


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packing:
    """A packed dataset.

    samples: N. row_tokens: tokens of each packed row, in the order of the packed dataset, shape (M,), int64.
    """

    samples: int
    row_tokens: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """M, the number of packed rows."""
        return len(self.row_tokens)

    @property
    def samples_per_row(self) -> float:
        """Samples that one packed row holds on average. A sample that is split counts once."""
        return self.samples / self.rows

    def rows_per_step(self, samples_per_step: int) -> int:
        """The number of packed rows whose samples come nearest to `samples_per_step`, >= 1."""
        return max(1, round(samples_per_step / self.samples_per_row))


def pack(tokens: NDArray[np.int64], *, row_length: int, strategy: Strategy) -> Packing:
    """Pack samples of `tokens` tokens (shape (N,), each >= 1) into rows of at most `row_length` tokens.

    - `bfd` (best fit decreasing, arXiv:2404.10830) keeps samples whole, and cuts longer ones at `row_length`.
    - `bfd_split` fills rows in the same way, but carries the rest of a longer sample into other rows.
    - `wrapped` concatenates all samples, and cuts the result into rows.
    """
    batches = (tokens[i : i + BATCH_ROWS] for i in range(0, len(tokens), BATCH_ROWS))
    if strategy == "wrapped":
        rows = [_cut([int(batch.sum())], row_length) for batch in batches]
    elif strategy == "bfd_split":
        rows = [_best_fit(_cut(batch.tolist(), row_length), row_length) for batch in batches]
    else:
        rows = [_best_fit(np.minimum(batch, row_length).tolist(), row_length) for batch in batches]
    return Packing(
        samples=len(tokens),
        row_tokens=np.array([filled for batch_rows in rows for filled in batch_rows], dtype=np.int64),
    )


def _cut(lengths: list[int], row_length: int) -> list[int]:
    """Cut every length into pieces of `row_length`, and a rest."""
    pieces: list[int] = []
    for length in lengths:
        whole, rest = divmod(length, row_length)
        pieces += [row_length] * whole
        if rest:
            pieces.append(rest)
    return pieces


def _best_fit(lengths: list[int], row_length: int) -> list[int]:
    """Fill rows from the longest piece to the shortest, each into the fullest row that still holds it.

    Of rows with equal space the oldest is taken, as TRL does. TRL finds the space in a segment tree. A sorted list
    gives the same answer, and is faster for the few hundred different spaces of a batch.
    """
    filled: list[int] = []
    spaces: list[int] = []  # ascending, distinct, without 0
    waiting: dict[int, deque[int]] = {}  # space: rows that have it, oldest first
    for length in sorted(lengths, reverse=True):
        place = bisect_left(spaces, length)
        if place == len(spaces):
            row, space = len(filled), row_length
            filled.append(0)
        else:
            space = spaces[place]
            row = waiting[space].popleft()
            if not waiting[space]:
                del spaces[place], waiting[space]
        filled[row] += length
        space -= length
        if space:
            if space not in waiting:
                insort(spaces, space)
                waiting[space] = deque()
            waiting[space].append(row)
    return filled
