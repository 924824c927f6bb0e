"""Memory: how many bytes live at the worst moment of a training step, and what they hold.

A law follows from a profile. At each moment of the step the live bytes are a polynomial of the micro-batch's shape, and
the peak is the largest of these. Moments that can never be the largest are dropped, so that many candidates can be
evaluated at once. Leaves out the allocator's rounding and fragmentation (allocator.py).

Symbols: R moments kept, O owners, M monomials, C micro-batches; B, S, N as in core/step/profile.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.step.deepening import deepen, repeated_layers
from autotune.core.step.profile import (
    MONOMIALS,
    OFFLOADED,
    ON_THE_HOST,
    PAGED,
    Profile,
    blocks_per_micro_step,
)

Floats = NDArray[np.float64]
OF_A_MICRO_STEP = (OFFLOADED, "batch")  # owners whose blocks are made anew in each micro-step
HOSTED = (*OF_A_MICRO_STEP, PAGED, "weights", "adapters")  # owners whose blocks wait on a host or pass through it
OF_LAYERS = "weights of layers"  # the weights that belong to a decoder layer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemoryLaw:
    """Live bytes at the moments of a step that can be the worst.

    coefficients: bytes per owner and monomial at each moment, shape (R, O, M). phases, ops: of each moment.
    hosted: for each owner of HOSTED and for OF_LAYERS, its blocks grouped by size, shape (K, 1 + M). The first column
    counts the blocks of one size, for OF_A_MICRO_STEP those of one micro-step. The other columns are the bytes per
    monomial of one such block.
    """

    owners: tuple[str, ...]
    phases: tuple[str, ...]
    ops: tuple[str, ...]
    coefficients: Floats
    hosted: Mapping[str, Sequence[Sequence[float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `law_from_dict` reads them back."""
        return {
            "owners": self.owners,
            "phases": self.phases,
            "ops": self.ops,
            "coefficients": self.coefficients.tolist(),
            "hosted": self.hosted,
        }

    def live(self, shapes: Floats) -> Floats:
        """Live bytes at each moment, shape (C, R). shapes: values of the monomials, (C, M)."""
        totals: Floats = shapes @ self.coefficients.sum(axis=1).T
        return totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The worst moment of a step. items: bytes by owner. They add up to `bytes`, except for rounding."""

    bytes: int
    phase: str
    op: str
    items: Mapping[str, int]


def memory_law(profile: Profile, *, layers: int, accumulation: int) -> MemoryLaw:
    """Derive the law of a profile.

    layers: of the whole model. accumulation: micro-steps of an optimizer step. With more of them only the fetched
    micro-batches take more memory. What the host holds is not among the live bytes.
    """
    deep = deepen(profile, layers)
    owners = tuple(dict.fromkeys(block.owner for block in deep.blocks))
    place = {owner: index for index, owner in enumerate(owners)}
    sizes = np.array([block.size for block in deep.blocks], dtype=np.float64)
    owner_of = np.array([place[block.owner] for block in deep.blocks])
    hosted = {
        owner: _kinds(sizes[owner_of == place[owner]], profile.micro_steps if owner in OF_A_MICRO_STEP else 1)
        for owner in HOSTED
        if owner in place
    }
    layered = np.array([block.owner == "weights" and block.layer is not None for block in deep.blocks])
    if layered.any():
        hosted[OF_LAYERS] = _kinds(sizes[layered], 1)
    sizes[blocks_per_micro_step(deep)] *= accumulation / profile.micro_steps
    sizes[[block.owner in ON_THE_HOST for block in deep.blocks]] = 0

    def per_op(blocks: Sequence[Sequence[int]]) -> Floats:
        totals = np.zeros((len(deep.ops), len(owners), len(MONOMIALS)))
        chosen = np.fromiter(chain.from_iterable(blocks), dtype=np.int64)
        ops = np.repeat(np.arange(len(blocks)), [len(of_op) for of_op in blocks])
        np.add.at(totals, (ops, owner_of[chosen]), sizes[chosen])
        return totals

    made, freed = per_op([op.allocates for op in deep.ops]), per_op([op.frees for op in deep.ops])
    made[1:] -= freed[:-1]
    live = np.cumsum(made, axis=0)
    kept = _worst(live.sum(axis=1), _moments(profile, deep))
    return MemoryLaw(
        owners=owners,
        phases=tuple(deep.ops[index].phase for index in kept),
        ops=tuple(deep.ops[index].name for index in kept),
        coefficients=live[kept],
        hosted=hosted,
    )


def law_from_dict(values: Mapping[str, Any]) -> MemoryLaw:
    """Read a law back."""
    words = {name: tuple(values[name]) for name in ("owners", "phases", "ops")}
    return MemoryLaw(**words, coefficients=np.array(values["coefficients"], dtype=np.float64), hosted=values["hosted"])


def peaks(law: MemoryLaw, shapes: Floats) -> NDArray[np.int64]:
    """Live bytes at the worst moment of many micro-batches, shape (C,). shapes: values of the monomials, (C, M)."""
    worst: NDArray[np.int64] = np.rint(law.live(shapes).max(axis=1)).astype(np.int64)
    return worst


def peak(law: MemoryLaw, shape: Sequence[int]) -> Peak:
    """Find the worst moment for one micro-batch. shape: as `profile.monomials` returns it."""
    values = np.array(shape, dtype=np.float64)
    worst = int(law.live(values[None])[0].argmax())
    items = law.coefficients[worst] @ values
    return Peak(
        bytes=round(items.sum()),
        phase=law.phases[worst],
        op=law.ops[worst],
        items={owner: round(value) for owner, value in zip(law.owners, items, strict=True) if round(value)},
    )


def hosted_bytes(law: MemoryLaw, owner: str, shapes: Floats, *, pinned: bool = False) -> Floats:
    """Bytes that the blocks of an owner (one of HOSTED) take on a host, shape (C,). shapes: as in `peaks`.

    pinned: whether torch pins their memory. It then rounds each block up to a power of two and keeps it when it is
    freed (ATen/core/CachingHostAllocator.h, torch 2.13, `pinned_max_round_threshold_mb` at its default).
    """
    if owner not in law.hosted:
        return np.zeros(len(shapes))
    kinds = np.array(law.hosted[owner], dtype=np.float64)
    sizes = shapes @ kinds[:, 1:].T
    if pinned:
        mantissa, exponent = np.frexp(sizes)
        sizes = np.where(mantissa > 0.5, np.ldexp(1.0, exponent), sizes)
    total: Floats = sizes @ kinds[:, 0]
    return total


def _kinds(sizes: Floats, micro_steps: int) -> Sequence[Sequence[float]]:
    """Group blocks by size. A row holds how many there are in a micro-step, then their size."""
    kinds, counts = np.unique(sizes, axis=0, return_counts=True)
    return tuple(tuple(row) for row in np.column_stack([counts / micro_steps, kinds]).tolist())


def _moments(profile: Profile, deep: Profile) -> list[int]:
    """The ops at which the live bytes may be the largest.

    Between the copies of a repeated layer the live bytes grow linearly, so only the first and the last copy count.
    """
    middle, added = repeated_layers(profile), deep.layers - profile.layers
    skipped = range(middle.stop, middle.start + added)
    return [index for index, op in enumerate(deep.ops) if op.allocates and op.layer not in skipped]


def _worst(totals: Floats, moments: Sequence[int]) -> list[int]:
    """Keep the moments that no other moment exceeds in every monomial."""
    chosen = np.array(moments)
    left = chosen[np.argsort(-totals[chosen].sum(axis=1), kind="stable")]
    kept: list[int] = []
    while len(left):
        kept.append(int(left[0]))
        left = left[(totals[left] > totals[left[0]]).any(axis=1)]
    return kept
