"""Regimes: the shapes that are traced have the structure of the micro-batch that is asked about."""

from itertools import combinations, product

import pytest

from autotune.core.candidate import Candidate
from autotune.core.step.profile import MONOMIALS, monomials
from autotune.core.step.regime import ALIGNMENT, TILE, Regime, micro_batch, regime_of, shapes_of

REGIMES = [
    (Regime(one_row=one_row, beyond_window=beyond, tiled=tiled, ragged=ragged), window)
    for one_row, beyond, tiled, ragged in product((True, False), repeat=4)
    for window in (None, 128, 512, 1024, 4096)
    if window is not None or not beyond  # without a window nothing is beyond it
    if not (one_row and tiled and window and not beyond)  # a row shorter than these windows fits one tile
]


@pytest.mark.parametrize(("regime", "window"), REGIMES, ids=str)
def test_traced_shapes_lie_in_their_regime(regime: Regime, window: int | None) -> None:
    """One row or several, on the same side of the window, and as many tiles, whatever positions are not scored."""
    shapes = shapes_of(regime, window)
    found = [regime_of(rows, length, window) for rows, length, _ in shapes]
    assert {(one.one_row, one.beyond_window) for one in found} == {(regime.one_row, regime.beyond_window)}
    labels = [count for rows, length, scored in shapes for count in (rows * (length - 1), scored)]
    assert len({-(-count // TILE) for count in labels}) == 1
    if window is None or window < TILE:
        assert {one.tiled for one in found} == {regime.tiled}


@pytest.mark.parametrize(("regime", "window"), REGIMES, ids=str)
def test_traced_shapes_tell_monomials_apart(regime: Regime, window: int | None) -> None:
    """No two of them are alike up to a factor at all four shapes, but those that one row, or alignment, makes equal."""
    shapes = shapes_of(regime, window)
    assert len({B * S for B, S, _ in shapes[1:]}) == 3  # a micro-batch that is collated ahead is that of the next step
    values = dict(zip(MONOMIALS, zip(*(monomials(*shape) for shape in shapes), strict=True), strict=True))
    if len(set(values["T"])) == 1:  # one tile, or whole ones
        del values["T"]
    equal = {frozenset(pair) for pair in (("1", "B"), ("S", "BS"), ("SS", "BSS"))} if regime.one_row else set()
    if not regime.ragged:
        equal |= {frozenset((name, "BSU")) for name in (("BSS", "SS") if regime.one_row else ("BSS",))}
    alike = {
        frozenset((one, other))
        for (one, first), (other, second) in combinations(values.items(), 2)
        if len({a / b for a, b in zip(first, second, strict=True)}) == 1
    }
    assert alike == equal


@pytest.mark.parametrize(("regime", "window"), REGIMES, ids=str)
def test_masks_of_traced_lengths_are_all_padded_or_none(regime: Regime, window: int | None) -> None:
    """All of them are aligned, or none is, so that their masks are handled alike."""
    assert {length % ALIGNMENT != 0 for _, length, _ in shapes_of(regime, window)} == {regime.ragged}


def test_packed_rows_are_one_row_to_the_model() -> None:
    """TRL lays them one behind the other; only wrapped rows stay rows."""
    values = {"max_length": 256, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "method": "lora"}
    packed = Candidate(**values, packed_length=256, batching="pack_bfd")
    wrapped = Candidate(**values, packed_length=256, batching="pack_wrapped")
    assert micro_batch(packed, 256) == (1, 768)
    assert micro_batch(wrapped, 256) == micro_batch(Candidate(**values), 256) == (3, 256)


def test_only_scored_positions_fill_tiles() -> None:
    """2 x 4096 positions are tiled where all are scored, and are not where the loss scores a tile of them at most."""
    assert regime_of(2, TILE, None).tiled
    assert not regime_of(2, TILE, None, labels=TILE).tiled
    assert regime_of(2, TILE, None, labels=TILE + 1).tiled
