"""The model of torch's caching allocator against its source's numbers, and laws that hold for any sequence."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.memory.allocator import AllocatorSettings, CachingAllocator, parse_settings

MIB = 2**20
PLAIN = AllocatorSettings(expandable_segments=False)


@pytest.mark.parametrize(
    ("sizes", "allocated", "reserved"),
    [
        ([1], 512, 2 * MIB),  # the small pool grows by 2 MiB
        ([512, 513], 512 + 1024, 2 * MIB),
        ([MIB], MIB, 2 * MIB),  # the largest small request
        ([MIB + 1], MIB + 512, 20 * MIB),  # the smallest large one: what is left of 20 MiB is split off
        ([MIB + 1, 18 * MIB], 20 * MIB, 20 * MIB),  # fits behind it; what would be left is too small to split off
        ([MIB + 1, 19 * MIB], 21 * MIB + 512, 40 * MIB),  # does not fit there, and is rounded to 2 MiB
        ([10 * MIB], 10 * MIB, 10 * MIB),  # from here on a segment of its own
        ([10 * MIB + 1], 10 * MIB + 512, 12 * MIB),  # rounded to 2 MiB, and the rest split off
        ([11 * MIB + 512], 12 * MIB, 12 * MIB),  # unless it is below 1 MiB
    ],
)
def test_segments_as_the_source_has_them(sizes: list[int], allocated: int, reserved: int) -> None:
    """c10/cuda/CUDACachingAllocator.cpp: kSmallBuffer, kLargeBuffer, kRoundLarge, should_split."""
    allocator = CachingAllocator(PLAIN)
    for size in sizes:
        allocator.allocate(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_a_freed_block_is_taken_again_and_neighbours_merge() -> None:
    """Three of 4 MiB leave 8 of 20; the first two, freed, make room for one of 8."""
    allocator = CachingAllocator(PLAIN)
    first, second, _ = (allocator.allocate(4 * MIB) for _ in range(3))
    allocator.release(first)
    allocator.release(second)
    allocator.allocate(8 * MIB)
    assert (allocator.allocated, allocator.reserved) == (12 * MIB, 20 * MIB)


def test_fragments_that_no_request_fits_cost_a_new_segment_unless_the_pool_can_grow() -> None:
    """Two blocks of 12 MiB, freed, hold no block of 20: 44 MiB are reserved; an expandable pool merges and grows."""
    reserved = []
    for expandable in (False, True):
        allocator = CachingAllocator(AllocatorSettings(expandable_segments=expandable))
        blocks = [allocator.allocate(12 * MIB) for _ in range(2)]
        for block in blocks:
            allocator.release(block)
        allocator.allocate(20 * MIB)
        reserved.append(allocator.reserved)
    assert reserved == [44 * MIB, 40 * MIB]


sequences = st.lists(st.tuples(st.integers(1, 64 * MIB), st.integers(0, 7)), max_size=60)


settings = st.builds(
    AllocatorSettings, expandable_segments=st.booleans(), max_split_bytes=st.sampled_from([None, 24 * MIB, 40 * MIB])
)


@given(sequences, settings)
def test_counts_hold_for_any_sequence(sequence: list[tuple[int, int]], told: AllocatorSettings) -> None:
    """Never less reserved than allocated, all comes back, and the same sequence again reserves nothing more."""
    allocator = CachingAllocator(told)
    peaks = []
    for _ in range(3):
        living = []
        for size, age in sequence:
            living.append(allocator.allocate(size))
            if len(living) > age:
                allocator.release(living.pop(0))
            assert allocator.allocated <= allocator.reserved
        for block in living:
            allocator.release(block)
        assert allocator.allocated == 0
        peaks.append(allocator.peak_allocated)
    assert peaks[0] <= peaks[1] == peaks[2]


@given(sequences, settings)
def test_free_blocks_and_living_ones_tile_what_is_reserved(
    sequence: list[tuple[int, int]], told: AllocatorSettings
) -> None:
    """No byte is lost and none is handed out twice."""
    allocator = CachingAllocator(told)
    living = []
    for size, age in sequence:
        living.append(allocator.allocate(size))
        if len(living) > age:
            allocator.release(living.pop(0))
    spans = sorted((block.address, block.address + block.size) for block in [*living, *allocator._at.values()])
    assert sum(end - begin for begin, end in spans) == allocator.reserved
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("refused", ["", "max_split_size_mb:many", "max_split_size_mb:20", "max_split_size_mb:-64"])
def test_settings_as_torch_reads_them(refused: str) -> None:
    """Blanks and brackets do not matter; what torch refuses, as sizes of no more than 20 MiB, is none."""
    conf = "roundup_power2_divisions:[256:1,>:8], max_split_size_mb : 128"
    assert parse_settings(f"{conf},expandable_segments:True") == AllocatorSettings(
        expandable_segments=True, max_split_bytes=128 * MIB
    )
    assert parse_settings(refused) == PLAIN


def test_large_blocks_are_kept_whole_where_torch_is_told_so() -> None:
    """With a largest split of 64 MiB one of 100 is not handed out for 40, and for 90 as it is."""
    allocator = CachingAllocator(AllocatorSettings(expandable_segments=False, max_split_bytes=64 * MIB))
    allocator.release(allocator.allocate(100 * MIB))
    allocator.allocate(40 * MIB)
    assert allocator.reserved == 140 * MIB
    block = allocator.allocate(90 * MIB)
    assert (block.size, allocator.reserved) == (100 * MIB, 140 * MIB)
    allocator.release(block)
    allocator.allocate(70 * MIB)  # 30 MiB too large
    assert allocator.reserved == 210 * MIB
