"""Regimes: groups of micro-batch shapes whose steps run the same operators, and which shapes of a group to trace.

Within a regime, sizes are polynomials of the shape (profile.py). Four questions tell regimes apart:

- One row or several? Tensors that are contiguous with one row are copied where there are several.
- Are the rows at least as long as the model's sliding window? Shorter ones need no mask for it.
- Are there more label positions than TRL's head scores in one tile? With a second tile it reuses its buffers.
- Is the length a multiple of 16? CUDA copies masks of other lengths into padded ones.

Symbols: B rows of a micro-batch, S positions of a row, N label positions, W positions that a sliding window reaches
back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import log

from autotune.core.candidate import Candidate

TILE = 4096  # label positions: TOKEN_CHUNK_SIZE of trl 1.16's kernels/chunked_logprob.py
SPACING = 128  # positions between traced lengths, where there is room: attention kernels round lengths to this
SHAPES = 4  # traced in each regime
LENGTHS = 64  # the traced lengths are chosen from this many
UNSCORED = (1, 5, 2, 7)  # for each traced shape: N is this much less than B (S - 1)
ALIGNMENT = 16  # positions: CUDA copies masks of other lengths into padded ones (trace/attention_kernels.py)
SUMS_ALIGNMENT = 32  # positions: CUDA's memory-efficient kernel rounds its sums of rows up to a multiple of it
ALIGNED, RAGGED = (0, 16, 0, 16), (8, 4, 12, 2)  # positions that are added to the traced multiples of SPACING

Shapes = tuple[tuple[int, int, int], ...]  # (B, S, N) of each traced step


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """The answers to the four questions above, for one micro-batch."""

    one_row: bool
    beyond_window: bool
    tiled: bool
    ragged: bool = False


def micro_batch(candidate: Candidate, positions: int) -> tuple[int, int]:
    """Return (B, S) of a candidate's micro-batch whose rows have `positions`.

    Where the documents of packed rows are kept apart, TRL concatenates the rows: the model sees one long row.
    """
    rows = candidate.per_device_train_batch_size
    return (1, rows * positions) if keeps_documents_apart(candidate) else (rows, positions)


def keeps_documents_apart(candidate: Candidate) -> bool:
    """Whether a row holds several samples that do not attend to each other. With `pack_wrapped` they do."""
    return candidate.batching in ("pack_bfd", "pack_bfd_split", "padding_free")


def regime_of(rows: int, positions: int, window: int | None, *, labels: int | None = None) -> Regime:
    """Find the regime of a micro-batch. window: W, None without one. labels: N, None where every position is scored."""
    return Regime(
        one_row=rows == 1,
        beyond_window=window is not None and positions >= window,
        tiled=(rows * (positions - 1) if labels is None else labels) > TILE,
        ragged=positions % ALIGNMENT != 0,
    )


def shapes_of(regime: Regime, window: int | None) -> Shapes:
    """Choose four shapes to trace, all with the same number of tiles.

    Four shapes determine any size that is a sum of two monomials. N is a few less than B (S - 1), so that sizes that
    follow N can be told from sizes that follow B S. This matters on devices where the loss scores the labels alone.

    Where W is about as long as a tile, a regime may not have four shapes with the fewest tiles. Then shapes with more
    tiles are taken. The buffers of the head differ by less than one tile.
    """
    spacing = SPACING if window is None or regime.beyond_window else _spacing_below(window)
    beyond = RAGGED if regime.ragged and spacing > 1 else ALIGNED if spacing == SPACING else (0,) * SHAPES
    first = -(-window // spacing) * spacing if window is not None and regime.beyond_window else spacing
    last = window if window is not None and not regime.beyond_window else first + LENGTHS * spacing
    for tiles in count(2 if regime.tiled else 1):
        least, most = (tiles - 1) * TILE + max(UNSCORED), tiles * TILE
        room = [
            (rows, length)
            for length in range(first, last - max(beyond), spacing)
            for rows in ((1,) if regime.one_row else range(2, max(3, most // length) + 1))
            if least < rows * (length - 1) and rows * (length + max(beyond) - 1) <= most
        ]
        if len(room) >= SHAPES and (regime.one_row or len({rows for rows, _ in room}) > 1):
            shapes = [(B, S + more) for (B, S), more in zip(_far_apart(room), beyond, strict=True)]
            return tuple((B, S, B * (S - 1) - less) for (B, S), less in zip(shapes, UNSCORED, strict=True))
        if tiles > LENGTHS:
            break
    raise ValueError(f"no {SHAPES} shapes in {regime} with a window of {window}")


def _spacing_below(window: int) -> int:
    """The largest distance between traced lengths that leaves room for several of them below W."""
    return next(each for each in (SPACING, ALIGNMENT, 1) if (window - 1) // each > SHAPES or each == 1)


def _far_apart(room: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Choose SHAPES pairs (B, S). Each is as far as possible from the pairs before it, in B, in S and in B S."""

    def distance(one: tuple[int, int], other: tuple[int, int]) -> float:
        rows, positions = log(one[0] / other[0]), log(one[1] / other[1])
        return min(abs(rows) + abs(positions), 4 * abs(rows + positions))

    chosen = [room[0]]
    while len(chosen) < SHAPES:
        chosen.append(max(room, key=lambda shape: min(distance(shape, other) for other in chosen)))
    return chosen
