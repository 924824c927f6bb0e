"""Many candidates at once: the same seconds as one by one, within what interpolation costs."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.core.batches.batches import Epoch
from autotune.core.time.law import SPENT, estimate_time, time_law
from autotune.core.time.many_candidates import TimeParts, length_grid, seconds_of_candidates, spread
from tests.core.time.test_law import OF_A_CPU, polynomial, product, profile, work

RNG = np.random.default_rng(0)
HEAD = work("product", "loss", None, polynomial(one=1), polynomial(N=1), polynomial(one=512), polynomial(one=2048))
STREAMS = work("stream", "backward", None, polynomial(BS=4096, BSS=8))
UPDATE = work("stream", "optimizer", None, polynomial(one=2**26))
LAWS = [
    time_law(profile(*done), layers=5, accumulation=2)
    for done in ((product("forward", 0), HEAD, UPDATE), (product("forward", 0), STREAMS, UPDATE), (HEAD,))
]


def epoch(rows: int, labels: float, count: int = 200) -> Epoch:
    positions = RNG.integers(20, 2000, count)
    scored = np.rint(labels * rows * (positions - 1)).astype(np.int64)
    return Epoch(rows=np.full(count, rows), positions=positions, labels=scored)


def test_the_grid_reaches_the_longest() -> None:
    """Ascending, without repeats, in steps of an eighth at most once lengths are told apart."""
    for longest in (5, 17, 300, 8192):
        grid = length_grid(longest)
        assert grid[-1] >= longest
        assert (np.diff(grid) > 0).all()
    assert (grid[1:] / grid[:-1])[10:].max() < 1.13


def test_an_epoch_is_spread_over_the_grid() -> None:
    """All of it, at its mean length; with half of the labels between few and all of them."""
    grid = length_grid(4096)
    one = epoch(4, 0.55)
    found = spread(one, grid)
    assert found.sum() == pytest.approx(1.0)
    assert found.sum(axis=0) @ grid == pytest.approx(one.positions.mean())
    assert found.sum(axis=1) == pytest.approx([0.5, 0.5], abs=0.01)


def test_many_at_once_are_as_one_by_one() -> None:
    """Every law with every epoch and accumulation, to a hundredth in what seconds are spent on."""
    uneven = replace(epoch(1, 1.0), rows=RNG.integers(1, 9, 200))
    uneven = replace(uneven, labels=uneven.rows * (uneven.positions - 1))
    epochs = [uneven, *(epoch(rows, labels) for rows in (1, 8) for labels in (0.2, 0.7, 1.0))]
    parts = [
        TimeParts(law=law, epoch=each, accumulation=accumulation)
        for law in LAWS
        for each in epochs
        for accumulation in (1, 4)
    ]
    for row, each in zip(seconds_of_candidates(parts, OF_A_CPU), parts, strict=True):
        alone = estimate_time(
            each.law,
            OF_A_CPU,
            each.epoch.monomials,
            accumulation=each.accumulation,
            useful_tokens=None,
            new_shapes=each.epoch.new_shapes,
        )
        expected = [alone.spent[one] for one in SPENT]
        assert row.sum() == pytest.approx(alone.step_s, rel=0.01)
        assert row == pytest.approx(expected, rel=0.02, abs=0.01 * alone.step_s)


def test_a_length_beyond_the_grid_is_its_longest() -> None:
    """So that nothing is extrapolated."""
    grid = length_grid(100)
    beyond = replace(epoch(1, 1.0), positions=np.full(200, 5000))
    assert spread(beyond, grid)[:, :-1].sum() == pytest.approx(0.0)
