"""The replay of a profile's steps counts what the law counts, and fragmentation where shapes vary."""

from autotune.core.batches.batches import Batch
from autotune.core.memory.allocator import AllocatorSettings
from autotune.core.memory.law import memory_law, peak
from autotune.core.memory.replay import replay
from autotune.core.units import MIB
from tests.core.step.test_profile import step

PLAIN = Batch(rows=1, positions=1, labels=0)


def test_allocated_is_the_law_but_for_rounding() -> None:
    """Each of the blocks is rounded up to 512 bytes, no more; any number of equal steps has the same peak."""
    profile = step(5)
    law = peak(memory_law(profile, layers=5, accumulation=1), PLAIN.monomials).bytes
    one = replay(profile, [[PLAIN]], accumulation=1, settings=AllocatorSettings(expandable_segments=False))
    assert law <= one.allocated_bytes <= law + 512 * len(profile.blocks)
    assert replay(profile, [[PLAIN]] * 4, accumulation=1, settings=AllocatorSettings(expandable_segments=False)) == one


def test_what_is_needed_lies_between_allocated_and_reserved() -> None:
    """Cached segments that are wholly free are given back before memory runs out."""
    large = Batch(rows=64, positions=MIB // 64, labels=0)
    for expandable in (False, True):
        found = replay(
            step(5),
            [[large], [PLAIN], [large]],
            accumulation=1,
            settings=AllocatorSettings(expandable_segments=expandable),
        )
        assert found.allocated_bytes <= found.needed_bytes <= found.reserved_bytes
