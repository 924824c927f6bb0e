"""Regimes: the shapes of micro-batches whose steps have one structure, and which of them to trace.

Within a regime a step runs the same operators, and sizes are polynomials of the shape (profile.py). Its borders: a
single row (what is contiguous there is copied with more), rows as long as the model's sliding window (shorter ones
need no mask for it), and more label positions than TRL's head scores in one tile (then it reuses its buffers).

Symbols: B rows of a micro-batch, S positions of a row, N label positions, W positions that a window reaches back.
"""

from dataclasses import dataclass

from autotune.core.candidate import Candidate

TILE = 4096  # label positions: TOKEN_CHUNK_SIZE of trl 1.16's kernels/chunked_logprob.py
STEP = 128  # positions between traced lengths, where there is room for it: kernels of attention round lengths to it
ALIGNMENT = 8  # positions: masks are padded to it on CUDA
TILED_SHAPES = ((2, 2304), (3, 1664), (2, 3200), (4, 1920))  # (B, S) of two tiles
LABELS: dict[tuple[bool, bool], tuple[int, ...]] = {  # N of the traced steps: (one row, more than one tile)
    (True, False): (70, 95, 320, 410),
    (False, False): (150, 410, 190, 610),
    (True, True): (4200, 4900, 5200, 7000),
    (False, True): (4300, 4800, 5000, 7500),
}

Shapes = tuple[tuple[int, int, int], ...]  # (B, S, N) of each traced step


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """Where a micro-batch lies between the borders."""

    one_row: bool
    beyond_window: bool
    tiled: bool


def micro_batch(candidate: Candidate, positions: int) -> tuple[int, int]:
    """(B, S) of a candidate's micro-batch whose rows have `positions`.

    TRL lays packed rows whose documents are kept apart one behind the other: they are one row to the model.
    """
    rows = candidate.per_device_train_batch_size
    return (1, rows * positions) if keeps_documents_apart(candidate) else (rows, positions)


def keeps_documents_apart(candidate: Candidate) -> bool:
    """Whether rows hold several samples that must not see each other; only `pack_wrapped` mixes them."""
    return candidate.batching in ("pack_bfd", "pack_bfd_split", "padding_free")


def regime_of(rows: int, positions: int, window: int | None) -> Regime:
    """The regime of a micro-batch. window: W, None for a model without one."""
    return Regime(
        one_row=rows == 1,
        beyond_window=window is not None and positions >= window,
        tiled=rows * (positions - 1) > TILE,
    )


def shapes_of(regime: Regime, window: int | None) -> Shapes:
    """Shapes to trace: four tell sizes apart that are sums of two monomials. N is for devices that choose labels.

    Label positions of all rows fill equally many tiles. Where a regime has no room for four shapes, because W is about
    as long as a tile, they are those of several tiles: its buffers differ by less than one tile's.
    """
    if regime.tiled:
        shapes = _tiled(regime, window)
    else:
        shapes = _untiled(regime, window)
        if max(rows * (length - 1) for rows, length in shapes) > TILE:
            return shapes_of(Regime(one_row=regime.one_row, beyond_window=regime.beyond_window, tiled=True), window)
    labels = LABELS[regime.one_row, regime.tiled]
    return tuple((*shape, count) for shape, count in zip(shapes, labels, strict=True))


def _untiled(regime: Regime, window: int | None) -> list[tuple[int, int]]:
    rows, steps = ((1, 1, 1, 1), (0, 1, 2, 4)) if regime.one_row else ((2, 3, 4, 2), (0, 1, 0, 2))
    first = step = STEP
    if window is not None and regime.beyond_window:
        first = max(STEP, -(-window // STEP) * STEP)
    elif window is not None and first + steps[-1] * step >= window:
        first = step = _below(window, steps[-1] + 1)
    return [(count, first + number * step) for count, number in zip(rows, steps, strict=True)]


def _tiled(regime: Regime, window: int | None) -> list[tuple[int, int]]:
    least = window if window is not None and regime.beyond_window else 0
    if regime.one_row:
        before = -(-least // TILE) * TILE or TILE
        return [(1, before + further) for further in (384, 1024, 2304, 3584)]
    if window is not None and not regime.beyond_window and window <= TILED_SHAPES[2][1]:
        lengths = [number * _below(window, 4) for number in (1, 2, 3, 4)]
        return [(2 * TILE // length, length) for length in lengths]
    if least <= TILED_SHAPES[1][1]:
        return list(TILED_SHAPES)
    tiles = -(-6 * (least + STEP) // TILE)
    return [(rows, tiles * TILE // rows // STEP * STEP) for rows in (6, 5, 4, 3)]


def _below(window: int, lengths: int) -> int:
    """A length of which so many multiples stay below W; a multiple of ALIGNMENT where there is room."""
    longest = max(2, (window - 1) // lengths)
    return longest // ALIGNMENT * ALIGNMENT or longest
