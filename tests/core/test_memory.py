"""The law of a profile gives what replaying the step gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.memory import memory_law, peak
from autotune.core.profile import Profile, deepen, monomials, traced_layers
from tests.core.test_profile import ACTIVATION as TOKENS
from tests.core.test_profile import Writer, block, step


def replayed(profile: Profile, shape: tuple[int, ...]) -> int:
    """The peak by going through the step op by op."""
    live = most = 0
    for op in profile.ops:
        for place in op.allocates:
            live += sum(x * y for x, y in zip(profile.blocks[place].size, shape, strict=True))
        most = max(most, live)
        for place in op.frees:
            live -= sum(x * y for x, y in zip(profile.blocks[place].size, shape, strict=True))
    return most


def test_a_peak_computed_by_hand() -> None:
    """Five layers, one token: 1,000 of weights, 500 of gradients, 5 handed down, and 20 for five norms."""
    worst = peak(memory_law(step(5), layers=5, accumulation=1), monomials(1, 1, 0))
    assert (worst.bytes, worst.phase, worst.op) == (1525, "clip", "norms")
    assert worst.items == {"weights": 1000, "gradients": 500, "workspace": 25}


def test_one_micro_batch_is_fetched_ahead() -> None:
    """While a step's four are fetched, the last step's four are still there; ahead of both is one."""
    writer = Writer(1, 1)
    last, _ = writer.op("load", "load", None, [block("batch", None, 24, TOKENS)] * 2)
    writer.op("collate", "batch", None, [block("batch", None, 24, TOKENS)], [last])
    worst = peak(memory_law(writer.profile(), layers=1, accumulation=4), monomials(2, 100, 0))
    assert worst.bytes == 24 * 2 * 100 * (4 + 1 + 4)


@given(
    layers=st.integers(1, 40),
    period=st.sampled_from([1, 2, 3]),
    rows=st.integers(1, 64),
    positions=st.integers(2, 4096),
)
def test_the_law_is_the_replay(layers: int, period: int, rows: int, positions: int) -> None:
    """Dropping moments that cannot be worst, and all middle layers, never changes the peak."""
    shallow = step(traced_layers(layers, period), period)
    shape = monomials(rows, positions, rows * (positions - 1))
    assert peak(memory_law(shallow, layers=layers, accumulation=1), shape).bytes == replayed(
        deepen(shallow, layers), shape
    )


@given(layers=st.integers(5, 40), rows=st.integers(1, 64), positions=st.integers(2, 4096))
def test_the_items_add_up(layers: int, rows: int, positions: int) -> None:
    """What people read sums to what is compared with the limit."""
    worst = peak(memory_law(step(5), layers=layers, accumulation=1), monomials(rows, positions, 0))
    assert sum(worst.items.values()) == worst.bytes


@pytest.mark.parametrize("more", [(1, 2, 64), (2, 1, 64), (1, 1, 65)])
def test_more_never_needs_less(more: tuple[int, int, int]) -> None:
    """More layers, rows or positions."""

    def bytes_of(layers: int, rows: int, positions: int) -> int:
        law = memory_law(step(5), layers=5 * layers, accumulation=1)
        return peak(law, monomials(rows, positions, 0)).bytes

    assert bytes_of(*more) > bytes_of(1, 1, 64)
