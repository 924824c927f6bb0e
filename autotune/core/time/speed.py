"""Speed: how long a machine takes for the operations of a training step.

Seconds of an operation are a sum of physical terms: a launch, the arithmetic, the bytes. Where a probe measured sizes
close by, they are corrected by what was measured. Leaves out which operations a step has (law.py), and where the curves
come from: a probe's rates (measured.py) or what is published of a GPU (published.py).

Symbols: P measured points, C operations to be timed, d sides of an operation, T terms; others as in core/step/work.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autotune.core.hardware import RateDtype, What

Floats = NDArray[np.float64]
Operation = Literal["product", "quantized_product", "attention", "stream", "dequantize", "quantize"]
Bound = Literal["launch", "compute", "bandwidth"]
BOUNDS: tuple[Bound, ...] = ("launch", "compute", "bandwidth")  # what seconds are spent on, in this order everywhere

REACH = 1.5  # octaves (factors of two) of a side: at this distance 60 % of a deviation still holds
BLOCKWISE_BYTES = 4 + 1 + 4 / 256  # moved for each number: in fp32, in 8 bits, and its share of a block's scale
OTHER_DTYPES: Mapping[RateDtype, Sequence[RateDtype]] = {  # which dtypes stand in for one that was not measured
    "float32": ("tf32", "bfloat16", "float16"),
    "tf32": ("float32", "bfloat16", "float16"),
    "bfloat16": ("float16", "float32", "tf32"),
    "float16": ("bfloat16", "float32", "tf32"),
    "uint8": ("float32", "bfloat16", "float16"),
}


def _product_terms(sides: Floats) -> Floats:
    """Terms of products. sides: (C, 4): how many products, then M, N, K."""
    count, M, N, K = sides.T
    return np.stack([np.ones(len(sides)), count * M * N * K, count * (M * N + M * K + N * K)], axis=1)


def _quantized_terms(sides: Floats) -> Floats:
    """Terms of products whose weight of (K, N) is dequantized first. sides: as of products."""
    count, _, N, K = sides.T
    return np.concatenate([_product_terms(sides), (count * N * K)[:, None]], axis=1)


def _attention_terms(sides: Floats) -> Floats:
    """Terms of attention. sides: (C, 4): B, H, S, D."""
    B, H, S, D = sides.T
    return np.stack([np.ones(len(sides)), B * H * S * S * D, B * H * S * D], axis=1)


def _stream_terms(sides: Floats) -> Floats:
    """Terms of streams, quantizing and dequantizing. sides: (C, 1): bytes, or elements."""
    return np.concatenate([np.ones((len(sides), 1)), sides], axis=1)


TERMS: Mapping[Operation, Callable[[Floats], Floats]] = {
    "product": _product_terms,
    "quantized_product": _quantized_terms,
    "attention": _attention_terms,
    "stream": _stream_terms,
    "dequantize": _stream_terms,
    "quantize": _stream_terms,
}
SPENT_ON: Mapping[Operation, Sequence[Bound]] = {  # what the seconds of each term are spent on
    "product": ("launch", "compute", "bandwidth"),
    "quantized_product": ("launch", "compute", "bandwidth", "bandwidth"),
    "attention": ("launch", "compute", "bandwidth"),
    "stream": ("launch", "bandwidth"),
    "dequantize": ("launch", "bandwidth"),
    "quantize": ("launch", "compute"),  # each number is looked up among 256 values
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Seconds of one operation as a function of its sides.

    seconds_per: the factor of each term, shape (T,). factor: logarithm of the factor by which the curve deviates from
    its terms everywhere. places: log2 of the measured sides, shape (P, d); None without measured points. weights: of
    the correction that each measured point adds, shape (P,).
    """

    operation: Operation
    seconds_per: Floats
    factor: float = 0.0
    places: Floats | None = None
    weights: Floats | None = None

    def seconds(self, sides: Floats) -> Floats:
        """Seconds of each operation by what they are spent on, shape (C, BOUNDS). sides: (C, d)."""
        terms = TERMS[self.operation](sides) * self.seconds_per
        bounds = np.stack([terms[:, [on == bound for on in SPENT_ON[self.operation]]].sum(axis=1) for bound in BOUNDS])
        correction: Any = self.factor
        if self.places is not None and self.weights is not None:
            correction = correction + likeness(np.log2(np.maximum(sides, 1.0)), self.places) @ self.weights
        scaled: Floats = (bounds * np.exp(correction)).T
        return scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """How fast a machine is. The mappings leave out what is not known.

    curves: by operation and dtype. launch_s: seconds of a launch.
    first_s: by dtype, how much longer a product takes when its shape is new: log2 of the size of the weight (how many
    numbers it has), ascending, and the additional seconds for each size.
    first_attention_s: the same for a forward and backward attention, by log2 of its length.
    operator_s: seconds that the host takes for one operator of a forward pass and for its share of the backward pass
    and of recomputation, without launches. The key is the chain of operators that the probe timed. It says how the
    operator is checkpointed.
    """

    curves: Mapping[tuple[What, RateDtype], Curve]
    launch_s: float
    first_s: Mapping[RateDtype, tuple[Floats, Floats]] = field(default_factory=dict)
    first_attention_s: Mapping[RateDtype, tuple[Floats, Floats]] = field(default_factory=dict)
    operator_s: Mapping[What, float] = field(default_factory=dict)

    def first_products_s(self, dtype: RateDtype, sizes: Sequence[float]) -> float:
        """How many seconds longer products take when their shapes are new. sizes: of their weights, in numbers."""
        places, seconds = self.first_s[dtype]
        return float(np.interp(np.log2(sizes), places, seconds).sum()) if sizes else 0.0

    def first_attentions_s(self, dtype: RateDtype, lengths: Floats) -> Floats:
        """How many seconds longer attentions of new lengths take, (C,). lengths: (C,)."""
        if dtype not in self.first_attention_s:
            return np.zeros(len(lengths))
        places, seconds = self.first_attention_s[dtype]
        return np.interp(np.log2(lengths), places, seconds)

    def knows(self, what: What, dtype: RateDtype) -> bool:
        """Whether the seconds of an operation are known."""
        return self._curve(what, dtype) is not None

    def seconds(self, what: What, dtype: RateDtype, sides: Floats, *, launched: bool = True) -> Floats:
        """Seconds of operations by what they are spent on, shape (C, BOUNDS).

        sides: (C, d), as in core/step/work.py. launched: whether each operation has a launch of its own; then none
        takes less time than a launch. Raises KeyError for an operation that was not measured in any dtype.
        """
        if (curve := self._curve(what, dtype)) is None:
            raise KeyError(f"{what} was not measured in any dtype")
        seconds = curve.seconds(sides)
        if not launched:
            seconds[:, BOUNDS.index("launch")] = 0.0
            return seconds
        launch = np.array([self.launch_s, 0.0, 0.0])
        return np.where(seconds.sum(axis=1, keepdims=True) < self.launch_s, launch, seconds)

    def _curve(self, what: What, dtype: RateDtype) -> Curve | None:
        """The curve of an operation in this dtype, or in one that stands in for it."""
        return next((self.curves[what, d] for d in (dtype, *OTHER_DTYPES[dtype]) if (what, d) in self.curves), None)


def blockwise_by_bytes(curves: Mapping[tuple[What, RateDtype], Curve]) -> dict[tuple[What, RateDtype], Curve]:
    """Curves for quantizing to 8 bits and back where these were not measured: the time to move their bytes."""
    if (streams := curves.get(("copy", "float32"))) is None:
        return {}
    seconds_per = streams.seconds_per * np.array([1.0, BLOCKWISE_BYTES])
    by_bytes = Curve(operation="dequantize", seconds_per=seconds_per, factor=streams.factor)
    return {("blockwise_quantize", "float32"): by_bytes, ("blockwise_dequantize", "float32"): by_bytes}


def likeness(here: Floats, there: Floats) -> Floats:
    """How much of a deviation at one place holds at another, (C, P). here: (C, d). there: (P, d)."""
    apart = ((here[:, None, :] - there[None, :, :]) ** 2).sum(axis=2)
    likeness: Floats = np.exp(-apart / (2 * REACH**2))
    return likeness
