"""The law of a profile gives what replaying the step gives."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.memory.law import hosted_bytes, law_from_dict, memory_law, peak
from autotune.core.step.deepening import deepen, traced_layers
from autotune.core.step.profile import OFFLOADED, Profile, monomials
from tests.core.step.test_profile import ACTIVATION as TOKENS
from tests.core.step.test_profile import Writer, block, step


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


@pytest.mark.parametrize(("positions", "one"), [(64, 1024), (65, 2048), (100, 2048), (1, 16), (0, 0)])
def test_each_pinned_block_is_a_power_of_two(positions: int, one: int) -> None:
    """`PowerOf2Ceil` of every block's 16 bytes a position, then their sum: three in each of two micro-steps."""
    writer = Writer(1, 1)
    writer.op("load", "load", None, [block("weights", None, 500)])
    writer.op("offload", "forward", None, [block(OFFLOADED, None, 16, TOKENS)] * 6)
    law = memory_law(replace(writer.profile(), micro_steps=2), layers=1, accumulation=2)
    for each in (law, law_from_dict(law.to_dict())):
        shapes = np.array([monomials(1, positions, 0)], dtype=np.float64)
        assert hosted_bytes(each, OFFLOADED, shapes).tolist() == [3 * 16 * positions]
        assert hosted_bytes(each, OFFLOADED, shapes, pinned=True).tolist() == [3 * one]
