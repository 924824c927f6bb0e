"""The caching allocator of torch on CUDA, as far as sizes go: what it reserves for a sequence of allocations.

It follows c10/cuda/CUDACachingAllocator.cpp of torch 2.13 for one stream. Sizes are rounded to 512 bytes. A request
takes the smallest free block of its pool that holds it. The rest of a block is split off, and free neighbours merge.
With `expandable_segments` a pool is one range of addresses that grows at its end.

Leaves out freeing of cached blocks when memory runs out, `roundup_power2_divisions`, and garbage collection. Torch
collects garbage only in a process that is limited to a part of the device, and trials and runs are not.
"""

import re
from bisect import bisect_left, insort
from dataclasses import dataclass

from autotune.core.units import MIB

MIN_BLOCK = 512  # kMinBlockSize: sizes are rounded up to multiples of it
SMALL_SIZE = 2**20  # kSmallSize: the largest request of the small pool
SMALL_BUFFER = 2 * 2**20  # kSmallBuffer: a segment of the small pool
LARGE_BUFFER = 20 * 2**20  # kLargeBuffer: a segment for requests between 1 and 10 MiB
MIN_LARGE = 10 * 2**20  # kMinLargeAlloc: larger requests get a segment of their own
ROUND_LARGE = 2 * 2**20  # kRoundLarge: the size of such a segment is a multiple of it
MOST_UNSPLIT = 20 * 2**20  # max_non_split_rounding_size's default: an unsplit block may exceed its request by less


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorSettings:
    """The settings of `PYTORCH_ALLOC_CONF`.

    max_split_bytes: blocks of this size or more are never split, and only serve requests of that size; None: all are
    split.
    """

    expandable_segments: bool
    max_split_bytes: int | None = None


def parse_settings(conf: str) -> AllocatorSettings:
    """Read `PYTORCH_ALLOC_CONF`. Settings that torch would refuse, or that are not modelled, are ignored."""
    said = dict(re.findall(r"(\w+):([^,\[\]]+)", re.sub(r"\[[^]]*\]|\s", "", conf)))
    largest = said.get("max_split_size_mb", "")
    splits = largest.isdecimal() and int(largest) * MIB > LARGE_BUFFER
    return AllocatorSettings(
        expandable_segments=said.get("expandable_segments", "").lower() == "true",
        max_split_bytes=int(largest) * MIB if splits else None,
    )


@dataclass(slots=True, eq=False)
class _AllocatorBlock:
    """A part of a segment. address: all segments share one address space. before, after: neighbours in the segment."""

    address: int
    size: int
    small: bool
    free: bool = True
    before: "_AllocatorBlock | None" = None
    after: "_AllocatorBlock | None" = None


class CachingAllocator:
    """Hands out blocks as torch does, and keeps count.

    allocated, reserved: bytes now, as `torch.cuda.memory_allocated` and `memory_reserved` count them. peak_allocated,
    peak_reserved: the most so far. peak_needed: the most that was reserved, less what the allocator would give back to
    the driver before it runs out of memory. It gives back segments that are wholly free, and free pages of expandable
    segments.
    """

    def __init__(self, settings: AllocatorSettings) -> None:
        self.settings = settings
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = self.peak_needed = 0
        self._idle = 0  # bytes that would be given back
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # (size, address), ascending
        self._at: dict[int, _AllocatorBlock] = {}  # free blocks by address
        self._end: dict[bool, _AllocatorBlock | None] = {True: None, False: None}  # last block of an expandable pool
        self._next_address = {True: 0, False: 2**40 * LARGE_BUFFER}  # the pools never meet

    def allocate(self, size: int) -> _AllocatorBlock:
        """Take a block for `size` bytes; hand it to `release` when it is freed."""
        size = -(-max(size, 1) // MIN_BLOCK) * MIN_BLOCK
        small = size <= SMALL_SIZE
        block = self._take(size, small) or self._reserve(size, small)
        rest = block.size - size
        if (
            rest >= MIN_BLOCK
            if small or self.settings.expandable_segments
            else rest > SMALL_SIZE and not self._is_whole(size)
        ):
            self._split(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        self.peak_needed = max(self.peak_needed, self.reserved - self._idle)
        return block

    def release(self, block: _AllocatorBlock) -> None:
        """Free a block and merge it with its free neighbours."""
        self.allocated -= block.size
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._forget(neighbour)
                self._merge(block, neighbour)
        self._remember(block)

    def _take(self, size: int, small: bool) -> _AllocatorBlock | None:
        """The smallest free block that holds `size`, the lowest address first.

        torch counts the last block of an expandable pool as large as it can grow, so it takes any other block first.
        """
        blocks = self._free[small]
        place = bisect_left(blocks, (size, -1))
        if place == len(blocks):
            return None
        block = self._at[blocks[place][1]]
        if self.settings.expandable_segments and block is self._end[small] and place + 1 < len(blocks):
            block = self._at[blocks[place + 1][1]]
        if self._is_whole(block.size) and (not self._is_whole(size) or block.size >= size + MOST_UNSPLIT):
            return None
        self._forget(block)
        return block

    def _is_whole(self, size: int) -> bool:
        """Whether blocks of this size are never split."""
        return self.settings.max_split_bytes is not None and size >= self.settings.max_split_bytes

    def _reserve(self, size: int, small: bool) -> _AllocatorBlock:
        """Have the driver give more: a new segment, or more at the end of the pool's."""
        end = self._end[small]
        if self.settings.expandable_segments:
            unit = SMALL_BUFFER if small else LARGE_BUFFER
            held = end.size if end is not None and end.free else 0
            more = max(0, -(-(size - held) // unit) * unit)  # 0: `_take` refused an end that is large enough
            block = _AllocatorBlock(self._next_address[small], more, small, before=end)
            if end is not None:
                end.after = block
                if end.free:
                    self._forget(end)
                    self._merge(block, end)
            self._end[small] = block
        else:
            more = (
                SMALL_BUFFER if small else LARGE_BUFFER if size < MIN_LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE
            )
            block = _AllocatorBlock(self._next_address[small], more, small)
        self._next_address[small] += more
        self.reserved += more
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return block

    def _split(self, block: _AllocatorBlock, size: int) -> None:
        rest = _AllocatorBlock(block.address + size, block.size - size, block.small, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        if self._end[block.small] is block:
            self._end[block.small] = rest
        block.size, block.after = size, rest
        self._remember(rest)

    def _merge(self, block: _AllocatorBlock, neighbour: _AllocatorBlock) -> None:
        """Make `neighbour` part of `block`."""
        if neighbour is block.before:
            block.address, block.before = neighbour.address, neighbour.before
            if block.before is not None:
                block.before.after = block
        else:
            block.after = neighbour.after
            if block.after is not None:
                block.after.before = block
        block.size += neighbour.size
        if self._end[block.small] is neighbour:
            self._end[block.small] = block

    def _remember(self, block: _AllocatorBlock) -> None:
        insort(self._free[block.small], (block.size, block.address))
        self._at[block.address] = block
        self._idle += self._returnable(block)

    def _forget(self, block: _AllocatorBlock) -> None:
        blocks = self._free[block.small]
        del blocks[bisect_left(blocks, (block.size, block.address))]
        del self._at[block.address]
        self._idle -= self._returnable(block)

    def _returnable(self, block: _AllocatorBlock) -> int:
        """Bytes of a free block that the driver would get back."""
        if self.settings.expandable_segments:
            page = SMALL_BUFFER if block.small else LARGE_BUFFER
            return max(0, (block.address + block.size) // page - -(-block.address // page)) * page
        return block.size if block.before is None and block.after is None else 0
