"""A profile: what one training step allocates and computes, as plain numbers that hold for any batch and length.

The trace (trace/trace.py) runs the real trainer on a shallow model at a few shapes. A profile holds what it saw: blocks
of memory, whose sizes are polynomials of the shape, and the operators that allocate and free them. Each has the phase
and the decoder layer that it belongs to. Leaves out deeper models (deepening.py), the allocator, which rounds and
fragments (core/memory/allocator.py), and the sum of the blocks (core/memory/law.py).

Symbols: B rows of a micro-batch; S positions of a row, padding included; N label positions that the head scores; T
label positions in the second tile of the head; U, V are S rounded up, as `monomials` says; D traced layers; p layers
after which the kinds of layers repeat; q leading layers of other kinds, before the kinds repeat.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autotune.core.step.regime import ALIGNMENT, SUMS_ALIGNMENT, TILE
from autotune.core.step.work import Work, work_from_dict

Phase = Literal["load", "batch", "forward", "loss", "backward", "clip", "optimizer", "end"]
FORWARD: tuple[Phase, ...] = ("forward", "loss")
MONOMIALS = ("1", "B", "S", "BS", "SS", "BSS", "N", "T", "BV", "BSU")
PAGED = "paged optimizer states"
OFFLOADED = "offloaded activations"
NEIGHBOURS = 2  # an op of one layer may free blocks of at most this many layers: of its own, and of one beside it
ON_THE_HOST = (PAGED, OFFLOADED)  # owners whose blocks are not in the device's memory
OF_BLOCKS = ("allocates", "frees", "last_uses")  # fields of an op that hold indexes of blocks
Size = tuple[int, ...]  # bytes per monomial, shape (len(MONOMIALS),)


def monomials(rows: int, positions: int, labels: int) -> Size:
    """Return the values of MONOMIALS for one micro-batch.

    U and V are S rounded up: CUDA's memory-efficient attention rounds a mask to U, and its sums of rows to V. T counts
    the labels that do not fit in the first tile, up to a whole tile. Later tiles reuse the memory of the second one.
    """
    B, S, N = rows, positions, labels
    T = (abs(N - TILE) - abs(N - 2 * TILE) + TILE) // 2  # N - TILE, kept within 0 and TILE; this form takes arrays, too
    U, V = (-(-S // multiple) * multiple for multiple in (ALIGNMENT, SUMS_ALIGNMENT))
    return (1, B, S, B * S, S * S, B * S * S, N, T, B * V, B * S * U)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One piece of memory: a tensor's storage.

    owner: what the block holds, such as "weights" or "activations". layer: the decoder layer that it belongs to, None
    outside of the layers. size: bytes per monomial. per_layer: bytes by which the block grows for each layer of the
    model that was not traced.
    """

    owner: str
    layer: int | None
    size: Size
    per_layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator that allocated memory.

    micro: micro-step within the optimizer step, from 1; 0 before the first one. allocates: indexes of the blocks that
    the operator made. frees: indexes of the blocks that were freed between it and the next operator. last_uses: indexes
    of the blocks that no later operator of the forward pass reads. Without a backward pass they would be freed here.
    """

    name: str
    micro: int
    phase: Phase
    layer: int | None
    allocates: tuple[int, ...]
    frees: tuple[int, ...]
    last_uses: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One optimizer step in its steady state. The first op (phase `load`) allocates what was there before the step.

    layers: D, or the layers of the model once the profile is deepened. period: p. leading: q. work: what the operators
    do in the D traced layers. Deepening does not change it.
    """

    layers: int
    period: int
    micro_steps: int
    blocks: tuple[Block, ...]
    ops: tuple[Op, ...]
    leading: int = 0
    work: tuple[Work, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `profile_from_dict` reads them back."""
        return asdict(self)


def profile_from_dict(values: Mapping[str, Any]) -> Profile:
    """Read a profile back. Raises KeyError, TypeError or ValueError when the values are no profile."""
    blocks = tuple(Block(**{**block, "size": tuple(block["size"])}) for block in values["blocks"])
    ops = tuple(Op(**{**op, **{name: tuple(op[name]) for name in OF_BLOCKS}}) for op in values["ops"])
    if any(index >= len(blocks) for op in ops for name in OF_BLOCKS for index in getattr(op, name)):
        raise ValueError("a profile names a block that it does not have")
    return Profile(**{**values, "blocks": blocks, "ops": ops, "work": tuple(map(work_from_dict, values["work"]))})


def blocks_per_micro_step(profile: Profile) -> list[int]:
    """Find the blocks that hold the micro-batches of the step, which are all fetched before its first micro-step.

    accelerate also fetches one micro-batch ahead, in the step before. That one is left out: a step has only one of it,
    however many micro-steps it has.
    """
    load, *ops = profile.ops
    ahead = set(load.allocates).difference(*(op.frees for op in ops))
    return [place for place, block in enumerate(profile.blocks) if block.owner == "batch" and place not in ahead]
