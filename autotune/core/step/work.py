"""Work: what a training step computes and moves, as plain numbers that hold for any batch and length.

The trace records the work of every operator. Operators that do the same are one `Work` with a count. Leaves out how
fast a machine is (core/time/speed.py).

Symbols: B rows, H heads, S length, D head width; M, N, K sides of a product, (M, K) times (K, N).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal[
    "product",  # sides: how many products, M, N, K
    "nf4_product",  # of bitsandbytes' layers; sides as of a product
    "attention",  # causal; sides: B, H, S, D
    "attention_backward",
    "masked_attention",  # all pairs of positions are computed
    "masked_attention_backward",
    "nf4_dequantize",  # sides: elements
    "blockwise_quantize",  # of an optimizer's states on a CPU, and of the scales of nf4; sides: elements
    "blockwise_dequantize",
    "stream",  # all other operators; sides: bytes read and written
    "share",  # one parameter's share of an operator that is launched once for many parameters; sides: bytes
]
Part = Literal["forward", "loss", "recomputed", "backward", "clip", "optimizer"]
Polynomial = tuple[int, ...]  # factors of profile.MONOMIALS


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Operators of a step that do the same.

    layer: the traced decoder layer, None outside of the layers. micro: micro-step, from 1. dtype: of the operands.
    sides: the sizes that `Kind` lists for the operator, as polynomials of the micro-batch's shape. count: how many
    such operators there are.
    """

    kind: Kind
    part: Part
    micro: int
    layer: int | None
    dtype: str
    sides: tuple[Polynomial, ...]
    count: int


def work_from_dict(values: Mapping[str, Any]) -> Work:
    """Read a Work back from its plain values."""
    return Work(**{**values, "sides": tuple(map(tuple, values["sides"]))})
