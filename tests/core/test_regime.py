"""Regimes: the traced shapes lie where they should, whatever the model's window."""

from itertools import product

import pytest

from autotune.core.candidate import Candidate
from autotune.core.regime import TILE, Regime, micro_batch, regime_of, shapes_of

WINDOWS = (None, 64, 128, 512, 1024, 4096, 32_768)


@pytest.mark.parametrize(("window", "one_row", "beyond", "tiled"), product(WINDOWS, *[(False, True)] * 3))
def test_traced_shapes_lie_in_their_regime(window: int | None, one_row: bool, beyond: bool, tiled: bool) -> None:
    """Four different ones with equally many tiles; of several tiles where the window leaves no room for one."""
    asked = Regime(one_row=one_row, beyond_window=beyond and window is not None, tiled=tiled)
    if one_row and tiled and not beyond and window is not None and window <= 2 * TILE:
        return  # a single row cannot be longer than a tile and shorter than such a window
    shapes = [(B, S) for B, S, _ in shapes_of(asked, window)]
    found = {regime_of(B, S, window) for B, S in shapes}
    assert len(set(shapes)) == 4
    assert {(regime.one_row, regime.beyond_window) for regime in found} == {(one_row, asked.beyond_window)}
    assert len({-(-B * (S - 1) // TILE) for B, S in shapes}) == 1
    assert len(found) == 1
    if tiled:
        assert all(regime.tiled for regime in found)


def test_packed_rows_are_one_row_to_the_model() -> None:
    """TRL lays them one behind the other; only wrapped rows stay rows."""
    values = {"max_length": 256, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "method": "lora"}
    packed = Candidate(**values, packed_length=256, batching="pack_bfd")
    wrapped = Candidate(**values, packed_length=256, batching="pack_wrapped")
    assert micro_batch(packed, 256) == (1, 768)
    assert micro_batch(wrapped, 256) == micro_batch(Candidate(**values), 256) == (3, 256)
