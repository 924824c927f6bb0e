"""Many candidates: their seconds, all at once.

Each group of operators is timed once for each number of rows, on a grid of lengths. A law says how many operators each
group has, so its seconds are sums over them. An epoch becomes weights: how much of it lies at each length of the grid.
The seconds of a candidate are then a product of two arrays. Seconds are interpolated between two lengths of the grid,
and between few labels and all labels. The result differs by less than 1 % from estimate_time, which sums over all
micro-batches. Leaves out laws (law.py) and epochs (core/batches/batches.py) themselves.

Symbols: K tables, E epochs, G lengths of the grid, R groups of operators, n candidates.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.core.batches.batches import Epoch
from autotune.core.step.profile import MONOMIALS, monomials
from autotune.core.step.regime import TILE
from autotune.core.time.law import SPENT, OperatorGroup, TimeLaw, host_seconds, making, operator_seconds, remembered
from autotune.core.time.speed import BOUNDS, MachineSpeed

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SHORTEST = 16  # tokens: the first length of the grid
RATIO = 1.12  # of a length of the grid to the one before it
LABELS = (0.1, 1.0)  # shares of the positions that are scored: few and all; seconds are linear between them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeParts:
    """What the seconds of a candidate are made of. epoch: with the labels that the loss scores.

    Candidates with equal laws or epochs should have the same object, so that it is timed once.
    """

    law: TimeLaw
    epoch: Epoch
    accumulation: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeTable:
    """The seconds of a law with micro-batches of one number of rows.

    micro_step_s: at each length of the grid, with few and with all labels, (2, G, BOUNDS). step_end_s: (BOUNDS,).
    host_s: of each micro-step. making_s: seconds of making the kernels for a new length, (G,). kernels: how many they
    are, (G,).
    """

    micro_step_s: Floats
    step_end_s: Floats
    host_s: float
    making_s: Floats
    kernels: Floats


class _Piece(NamedTuple):
    """The micro-batches of one candidate that have the same number of rows.

    place: of the candidate. whole: all of the candidate. epoch: these micro-batches alone.
    """

    place: int
    whole: TimeParts
    epoch: Epoch

    @property
    def table(self) -> tuple[TimeLaw, int]:
        """What decides the piece's table: the law and the number of rows."""
        return self.whole.law, int(self.epoch.rows[0])


def seconds_of_candidates(parts: Sequence[TimeParts], speed: MachineSpeed) -> Floats:
    """Seconds of an optimizer step of each candidate, in the order of SPENT, (n, 4).

    NaN where the machine's speed does not know an operation. Batch rebalancing makes micro-batches with different
    numbers of rows. A step is timed once for each number, as if all its micro-batches had it, and the mean is taken.
    """
    grid = length_grid(max(int(each.epoch.positions.max()) for each in parts))
    apart = {epoch: epoch.by_rows() for epoch in dict.fromkeys(each.epoch for each in parts)}
    pieces = [_Piece(place, each, epoch) for place, each in enumerate(parts) for epoch in apart[each.epoch]]
    spreads = {epoch: spread(epoch, grid) for epochs in apart.values() for epoch in epochs}
    tables = tabulate(dict.fromkeys(piece.table for piece in pieces), speed, grid)

    share_of_new = cache(Epoch.new_shapes)

    def new_shapes(piece: _Piece) -> float:
        if not (table := tables[piece.table]).making_s.any():
            return 0.0
        return share_of_new(piece.whole.epoch, remembered(spreads[piece.epoch].sum(axis=0) @ table.kernels))

    of_table = {key: place for place, key in enumerate(tables)}
    of_spread = {key: place for place, key in enumerate(spreads)}
    found = step_seconds(
        list(tables.values()),
        np.array([of_table[piece.table] for piece in pieces]),
        np.stack(list(spreads.values())),
        np.array([of_spread[piece.epoch] for piece in pieces]),
        new_shapes=np.array(list(map(new_shapes, pieces))),
        accumulation=np.array([piece.whole.accumulation for piece in pieces]),
    )
    shares = np.array([len(piece.epoch.rows) / len(piece.whole.epoch.rows) for piece in pieces])
    begins = np.flatnonzero(np.diff([piece.place for piece in pieces], prepend=-1))
    return np.add.reduceat(found * shares[:, None], begins)


def length_grid(longest: int) -> Integers:
    """Lengths from SHORTEST to at least the longest, ascending, (G,)."""
    count = int(np.ceil(np.log(max(longest, SHORTEST + 1) / SHORTEST) / np.log(RATIO))) + 1
    return np.unique(np.ceil(SHORTEST * RATIO ** np.arange(count)).astype(np.int64))


def tabulate(
    keys: Collection[tuple[TimeLaw, int]], speed: MachineSpeed, grid: Integers
) -> dict[tuple[TimeLaw, int], TimeTable]:
    """Time laws, each with micro-batches of a number of rows. keys: the laws, and the number of rows.

    Seconds are NaN for a law with an operation that the speed does not know.
    """
    all_counts = {id(each): each for law, _ in keys for each in (law.micro_step, law.step_end)}
    groups = list(dict.fromkeys(group for counts in all_counts.values() for group in counts))
    place_of = {group: place for place, group in enumerate(groups)}
    summands = {
        key: (np.array([place_of[group] for group in counts], dtype=np.int64), np.array(list(counts.values())))
        for key, counts in all_counts.items()
    }
    shapes = {
        rows: np.concatenate([_shapes(rows, grid, share) for share in LABELS]) for rows in {rows for _, rows in keys}
    }
    of_one = {rows: _known_seconds(groups, speed, each) for rows, each in shapes.items()}

    @cache
    def total(counts: int, rows: int) -> Floats:
        """Seconds of the operators that are counted, at each length, (2 G, BOUNDS)."""
        places, amounts = summands[counts]
        return np.tensordot(amounts, of_one[rows][places], axes=1)

    tables: dict[tuple[TimeLaw, int], TimeTable] = {}
    for law, rows in keys:
        making_s, kernels = making(law, speed, shapes[rows][: len(grid)])
        tables[law, rows] = TimeTable(
            micro_step_s=total(id(law.micro_step), rows).reshape(len(LABELS), len(grid), len(BOUNDS)),
            step_end_s=total(id(law.step_end), rows)[0],
            host_s=host_seconds(law, speed),
            making_s=making_s,
            kernels=kernels,
        )
    return tables


def _known_seconds(groups: Sequence[OperatorGroup], speed: MachineSpeed, shapes: Floats) -> Floats:
    """As operator_seconds, (R, C, BOUNDS); NaN for an operation that the speed does not know."""
    found = np.full((len(groups), len(shapes), len(BOUNDS)), np.nan)
    known = [place for place, group in enumerate(groups) if speed.knows(group.what, group.dtype)]
    found[known] = operator_seconds([groups[place] for place in known], speed, shapes)
    return found


def spread(epoch: Epoch, grid: Integers) -> Floats:
    """Share of an epoch at each length of the grid, with few and with all labels, (2, G). Adds up to 1."""
    positions = np.clip(epoch.positions, grid[0], grid[-1])
    above = np.clip(np.searchsorted(grid, positions), 1, len(grid) - 1)
    share = (positions - grid[above - 1]) / (grid[above] - grid[above - 1])
    weights = np.bincount(above, share, len(grid)) + np.bincount(above - 1, 1 - share, len(grid))
    few, all_ = LABELS
    scored = epoch.labels.sum() / np.maximum(epoch.rows * (epoch.positions - 1), 1).sum()
    more = (scored - few) / (all_ - few)
    return np.outer([1 - more, more], weights / len(positions))


def step_seconds(
    tables: Sequence[TimeTable],
    table_of: Integers,
    spreads: Floats,
    epoch_of: Integers,
    *,
    new_shapes: Floats,
    accumulation: Integers,
) -> Floats:
    """Seconds of an optimizer step of each candidate, in the order of SPENT, (n, 4).

    table_of, epoch_of: indexes of each candidate's table and spread, (n,). spreads: (E, 2, G). new_shapes: share of the
    micro-steps whose shape is new, (n,). accumulation: micro-steps of a step, (n,).
    """
    K, E = len(tables), len(spreads)
    on_grid = np.stack([table.micro_step_s.reshape(-1, len(BOUNDS)) for table in tables])  # (K, 2 G, BOUNDS)
    flat = on_grid.transpose(1, 0, 2).reshape(on_grid.shape[1], -1)  # (2 G, K BOUNDS)
    micro_step_s = (spreads.reshape(E, -1) @ flat).reshape(E, K, len(BOUNDS))
    making_s = spreads.sum(axis=1) @ np.stack([table.making_s for table in tables]).T  # (E, K)
    found = np.zeros((len(table_of), len(SPENT)))
    found[:, : len(BOUNDS)] = micro_step_s[epoch_of, table_of]
    found[:, BOUNDS.index("launch")] += making_s[epoch_of, table_of] * new_shapes
    found[:, SPENT.index("host")] = np.array([table.host_s for table in tables])[table_of]
    found *= accumulation[:, None]
    found[:, : len(BOUNDS)] += np.stack([table.step_end_s for table in tables])[table_of]
    return found


def _shapes(rows: int, grid: Integers, share: float) -> Floats:
    """Monomials of micro-batches of each length, (G, M). As in estimate_time, T is all labels after the first tile."""
    labels = np.rint(share * rows * (grid - 1)).astype(np.int64)
    columns = monomials(rows, grid, labels)  # type: ignore[arg-type]
    shapes = np.stack([np.broadcast_to(column, grid.shape) for column in columns], axis=1).astype(np.float64)
    shapes[:, MONOMIALS.index("T")] = np.maximum(labels - TILE, 0)
    return shapes
