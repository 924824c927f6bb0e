"""Replay: what torch's caching allocator reserves while a profile's steps run over batches of several shapes.

Fragmentation comes from lengths that vary, so the steps must be in an order like the sampler's. A profile has at most
two micro-steps. Leaves out later ones, which repeat the second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autotune.core.batches.batches import Batch
from autotune.core.memory.allocator import AllocatorSettings, CachingAllocator
from autotune.core.step.profile import ON_THE_HOST, Profile, blocks_per_micro_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Bytes at the worst moment of all steps.

    needed_bytes: the reserved bytes, less those that the allocator gives back before it runs out of memory.
    """

    allocated_bytes: int
    reserved_bytes: int
    needed_bytes: int


def replay(
    profile: Profile, steps: Iterable[Sequence[Batch]], *, accumulation: int, settings: AllocatorSettings
) -> Replayed:
    """Run optimizer steps through a fresh allocator.

    profile: of the whole model. steps: the micro-batches of each step, as many as the profile has micro-steps.
    accumulation: micro-steps of a real step. Their micro-batches are all fetched at its beginning.
    """
    allocator = CachingAllocator(settings)
    sizes = np.array([block.size for block in profile.blocks])
    sizes[[block.owner in ON_THE_HOST for block in profile.blocks]] = 0
    fetched = blocks_per_micro_step(profile)
    sizes[fetched] = sizes[fetched] * accumulation // profile.micro_steps
    load, *ops = profile.ops
    persistent = set(load.allocates)
    freed = {place for op in ops for place in op.frees}
    passing = [place for place in load.allocates if place in freed]  # blocks that each step leaves to the next one
    held: dict[int, Any] = {}
    left: list[Any] = []
    for number, batches in enumerate(steps):
        bytes_of = [(sizes @ np.array(batch.monomials)).tolist() for batch in batches]
        for place in load.allocates if number == 0 else passing:
            held[place] = allocator.allocate(bytes_of[0][place])
        for block in left:
            allocator.release(block)
        for op in ops:
            size = bytes_of[max(op.micro - 1, 0)]
            for place in op.allocates:
                held[place] = allocator.allocate(size[place])
            for place in op.frees:
                allocator.release(held.pop(place))
        left = [held.pop(place) for place in list(held) if place not in persistent]
    return Replayed(
        allocated_bytes=allocator.peak_allocated,
        reserved_bytes=allocator.peak_reserved,
        needed_bytes=allocator.peak_needed,
    )
