"""What is guessed of candidates that are not predicted."""

from itertools import product

import numpy as np
import pytest

from autotune.core.time.guess import LEAST_NOISE, LEAST_SPREAD, guess

CANDIDATES = [
    {"dtype": dtype, "rows": rows, "packs": packs}
    for dtype, rows, packs in product(("float32", "bfloat16"), (1, 2, 4), (False, True))
]
TRUTH = np.array([(-3.0 if c["dtype"] == "bfloat16" else 0.0) + 0.1 * c["rows"] + 0.3 * c["packs"] for c in CANDIDATES])


def known(*places: int) -> np.ndarray:
    """The truth of some of them."""
    values = np.full(len(CANDIDATES), np.nan)
    values[list(places)] = TRUTH[list(places)]
    return values


def test_effects_of_knobs_add_up() -> None:
    """One slow candidate is enough to tell what all others of its dtype are like."""
    found, doubt = guess(CANDIDATES, known(0, 1, 2, 3, 4, 5, 6))
    assert found[:7].tolist() == TRUTH[:7].tolist()
    assert doubt[:7].tolist() == [0.0] * 7
    assert found[7:] == pytest.approx(TRUTH[7:], abs=0.05)
    assert ((doubt[7:] >= LEAST_NOISE) & (doubt[7:] < 3 * LEAST_NOISE)).all()


def test_a_value_that_none_of_the_predicted_has_is_in_doubt() -> None:
    """As much as the predicted ones differ from each other, at least as much as a space's rates usually do."""
    found, doubt = guess(CANDIDATES, known(0, 1, 2, 3, 4, 5))
    assert found[6:] == pytest.approx(TRUTH[:6], abs=0.1)
    assert (doubt[6:] >= LEAST_SPREAD).all()


@pytest.mark.parametrize("places", [(), (3,), tuple(range(12))])
def test_little_and_all_that_is_known(places: tuple[int, ...]) -> None:
    """Without any known one all are equal; with all nothing is guessed."""
    found, doubt = guess(CANDIDATES, known(*places))
    assert found[list(places)].tolist() == TRUTH[list(places)].tolist()
    others = np.delete(np.arange(12), places)
    assert (doubt[others] >= LEAST_SPREAD).all()
    assert not doubt[list(places)].any()
    if not places:
        assert not found.any()
