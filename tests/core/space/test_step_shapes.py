"""Step shapes: the lengths at which samples may be cut."""

import pytest

from autotune.core.space.step_shapes import shapes
from autotune.errors import NothingFits
from tests.core.examples import candidate, context, workload


@pytest.mark.parametrize("limit", [128, 256, 1024])
def test_a_coverage_of_one_asks_for_all_that_the_model_can_take(limit: int) -> None:
    """However little that is: here a tenth, a quarter, or all of the tokens. The search says what is cut off."""
    work = workload([1000, 300] * 20, model={"limit": limit})
    found = {shape["max_length"] for shape in shapes(["random"], {}, candidate(), context(work=work))}
    assert max(found) == min(limit, 1024)


def test_a_coverage_that_cannot_be_kept_is_refused() -> None:
    """What was asked for in figures is a promise."""
    work = workload([1000, 300] * 20, model={"limit": 512}, coverage=0.9)
    with pytest.raises(NothingFits, match=r"max_length=512 keeps 62.5% of the tokens, 90.0% asked"):
        list(shapes(["random"], {}, candidate(), context(work=work)))
