"""MachineSpeed: how long a machine takes for the operations of a training step, from what a probe measured.

Seconds of an operation are a sum of physical terms (a launch, the arithmetic, the bytes), fitted to the probe's points
in relative error; near a measured size they are corrected by what was measured there, as a Gaussian process over the
logarithms of the sizes does. Leaves out which operations a step has (law.py) and GPUs that nobody has measured
(published.py).

Symbols: P measured points, C operations to be timed, d sides of an operation, T terms; others as in core/step/work.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autotune.core.hardware import ITEM_BYTES, Hardware, RateDtype, RatePoint, What

Floats = NDArray[np.float64]
Operation = Literal["product", "quantized_product", "attention", "stream", "dequantize", "quantize"]
Bound = Literal["launch", "compute", "bandwidth"]
BOUNDS: tuple[Bound, ...] = ("launch", "compute", "bandwidth")  # what seconds are spent on, in this order everywhere

REACH = 1.5  # octaves of each side over which a measured deviation is believed to hold
DEVIATION = 0.3  # of measured from fitted seconds, as a logarithm: its prior standard deviation
LEAST_WORK = 0.05  # share of a measured operation's seconds that are not its launch's
NOISE = 0.05  # of one measured point, likewise
BLOCKWISE_BYTES = 4 + 1 + 4 / 256  # of each number: in fp32, in 8 bits, and its share of a block's scale
STREAMS: Sequence[What] = ("copy", "add")
# Of a probe's chain, for each of its forward operators, what it launches and what it copies. Launched are two and a
# half more in the backward of a linear layer, an activation and an addition, and each again where it is recomputed.
# Copied is the smallest stream behind every third, forward, backward and recomputed.
CHAINS: Mapping[What, tuple[float, float]] = {
    "eager_operators": (8 / 3, 2 / 3),
    "checkpointed_operators": (11 / 3, 1.0),
    "selective_operators": (11 / 3, 1.0),
}
OTHER_DTYPES: Mapping[RateDtype, Sequence[RateDtype]] = {  # what stands in for a dtype that was not measured
    "float32": ("tf32", "bfloat16", "float16"),
    "tf32": ("float32", "bfloat16", "float16"),
    "bfloat16": ("float16", "float32", "tf32"),
    "float16": ("bfloat16", "float32", "tf32"),
    "uint8": ("float32", "bfloat16", "float16"),
}


def _product_terms(sides: Floats) -> Floats:
    """sides: (C, 4), how many products and M, N, K of each."""
    count, M, N, K = sides.T
    return np.stack([np.ones(len(sides)), count * M * N * K, count * (M * N + M * K + N * K)], axis=1)


def _quantized_terms(sides: Floats) -> Floats:
    """A product whose weight of (K, N) is dequantized before. sides: as of a product."""
    count, _, N, K = sides.T
    return np.concatenate([_product_terms(sides), (count * N * K)[:, None]], axis=1)


def _attention_terms(sides: Floats) -> Floats:
    """sides: (C, 4), B, H, S, D."""
    B, H, S, D = sides.T
    return np.stack([np.ones(len(sides)), B * H * S * S * D, B * H * S * D], axis=1)


def _stream_terms(sides: Floats) -> Floats:
    """sides: (C, 1), bytes; or elements of what is quantized or dequantized."""
    return np.concatenate([np.ones((len(sides), 1)), sides], axis=1)


TERMS: Mapping[Operation, Callable[[Floats], Floats]] = {
    "product": _product_terms,
    "quantized_product": _quantized_terms,
    "attention": _attention_terms,
    "stream": _stream_terms,
    "dequantize": _stream_terms,
    "quantize": _stream_terms,
}
SPENT_ON: Mapping[Operation, Sequence[Bound]] = {  # of each term
    "product": ("launch", "compute", "bandwidth"),
    "quantized_product": ("launch", "compute", "bandwidth", "bandwidth"),
    "attention": ("launch", "compute", "bandwidth"),
    "stream": ("launch", "bandwidth"),
    "dequantize": ("launch", "bandwidth"),
    "quantize": ("launch", "compute"),  # a search among 256 values for each
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Seconds of one operation by its sides.

    seconds_per: of each term, shape (T,). factor: by which this curve deviates everywhere, as a logarithm. places:
    logarithms to base 2 of the measured sides, shape (P, d). weights: of each place's correction, shape (P,). Without
    places it is the terms alone.
    """

    operation: Operation
    seconds_per: Floats
    factor: float = 0.0
    places: Floats | None = None
    weights: Floats | None = None

    def seconds(self, sides: Floats) -> Floats:
        """Seconds of each operation, by what they are spent on. sides: (C, d). Returns shape (C, BOUNDS)."""
        terms = TERMS[self.operation](sides) * self.seconds_per
        bounds = np.stack([terms[:, [on == bound for on in SPENT_ON[self.operation]]].sum(axis=1) for bound in BOUNDS])
        correction: Any = self.factor
        if self.places is not None and self.weights is not None:
            correction = correction + _likeness(np.log2(np.maximum(sides, 1.0)), self.places) @ self.weights
        scaled: Floats = (bounds * np.exp(correction)).T
        return scaled


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """A machine's curves, by what was measured and in which dtype.

    first_s: by dtype, seconds that a product takes beyond its usual ones when its shape is new: logarithms to base 2 of
    the numbers of a weight, ascending, and the seconds with each. first_attention_s: the same of attention, forward and
    backward, by logarithms of its length. operator_s: seconds of the host for each operator of a forward pass and what
    follows from it, beside its launches, by how it is checkpointed. None of what is not known.
    """

    curves: Mapping[tuple[What, RateDtype], Curve]
    launch_s: float
    first_s: Mapping[RateDtype, tuple[Floats, Floats]] = field(default_factory=dict)
    first_attention_s: Mapping[RateDtype, tuple[Floats, Floats]] = field(default_factory=dict)
    operator_s: Mapping[What, float] = field(default_factory=dict)

    def first_products_s(self, dtype: RateDtype, sizes: Sequence[float]) -> float:
        """Seconds that products with weights of so many numbers take beyond their usual ones, all shapes being new."""
        places, seconds = self.first_s[dtype]
        return float(np.interp(np.log2(sizes), places, seconds).sum()) if sizes else 0.0

    def first_attentions_s(self, dtype: RateDtype, lengths: Floats) -> Floats:
        """The same of an attention of each of these lengths, (C,)."""
        if dtype not in self.first_attention_s:
            return np.zeros(len(lengths))
        places, seconds = self.first_attention_s[dtype]
        return np.interp(np.log2(lengths), places, seconds)

    def seconds(self, what: What, dtype: RateDtype, sides: Floats, *, launched: bool = True) -> Floats:
        """Seconds of operations by what they are spent on, none shorter than a launch where each has one.

        sides: (C, d), as core/step/work.py has them. Returns shape (C, BOUNDS). Raises KeyError for what was not
        measured.
        """
        found = next((self.curves[what, d] for d in (dtype, *OTHER_DTYPES[dtype]) if (what, d) in self.curves), None)
        if found is None:
            raise KeyError(f"{what} was not measured in any dtype")
        seconds = found.seconds(sides)
        if not launched:
            seconds[:, BOUNDS.index("launch")] = 0.0
            return seconds
        launch = np.array([self.launch_s, 0.0, 0.0])
        return np.where(seconds.sum(axis=1, keepdims=True) < self.launch_s, launch, seconds)


def measured_speed(hardware: Hardware) -> MachineSpeed:
    """What a probe's rates say. Raises ValueError without rates."""
    if not hardware.rates or not hardware.launch_s:
        raise ValueError(f"{hardware.name} has no measured rates")
    curves = _streams(hardware)
    for operation, whats in (
        ("product", ("matmul", "matmul_grad_input", "matmul_grad_weight")),
        ("attention", ("attention_forward",)),
        ("attention", ("attention_forward_backward",)),
        ("attention", ("masked_attention_forward",)),
        ("attention", ("masked_attention_forward_backward",)),
        ("dequantize", ("nf4_dequantize",)),
        ("quantize", ("blockwise_quantize",)),
        ("dequantize", ("blockwise_dequantize",)),
    ):
        for dtype in ITEM_BYTES:
            curves |= _curves(operation, whats, dtype, hardware)  # type: ignore[arg-type]
    for (what, dtype), curve in list(curves.items()):
        masked: Any = f"masked_{what}"
        if what.startswith("attention") and (masked, dtype) not in curves:  # not measured: all pairs, not half of them
            curves[masked, dtype] = replace(curve, seconds_per=curve.seconds_per * np.array([1.0, 2.0, 1.0]))
    for dtype in ITEM_BYTES:
        curves |= _quantized(curves, dtype, hardware)
    curves = blockwise_by_bytes(curves) | curves
    copy_s = min((point.seconds for point in hardware.curve("copy", "float32")), default=0.0)
    operator_s = {
        what: max(0.0, point.seconds / point.shape[0] - launches * hardware.launch_s - copies * copy_s)
        for what, (launches, copies) in CHAINS.items()
        for point in hardware.curve(what, "float32")
    }
    return MachineSpeed(
        curves=curves,
        launch_s=hardware.launch_s,
        first_s=_first(curves, hardware),
        first_attention_s=_first_attention(curves, hardware),
        operator_s=operator_s,
    )


def blockwise_by_bytes(curves: Mapping[tuple[What, RateDtype], Curve]) -> dict[tuple[What, RateDtype], Curve]:
    """Curves of numbers to 8 bits and back that were not measured: they take as long as their bytes."""
    if (streams := curves.get(("copy", "float32"))) is None:
        return {}
    seconds_per = streams.seconds_per * np.array([1.0, BLOCKWISE_BYTES])
    by_bytes = Curve(operation="dequantize", seconds_per=seconds_per, factor=streams.factor)
    return {("blockwise_quantize", "float32"): by_bytes, ("blockwise_dequantize", "float32"): by_bytes}


def _first(
    curves: Mapping[tuple[What, RateDtype], Curve], hardware: Hardware
) -> dict[RateDtype, tuple[Floats, Floats]]:
    """What making kernels for new shapes takes; below a product's own time a first call only meets cold caches."""
    found = {}
    for dtype in ITEM_BYTES:
        if not (points := hardware.curve("first_matmul", dtype)) or ("matmul", dtype) not in curves:
            continue
        sizes = np.log2([point.shape[1] * point.shape[2] for point in points])
        usual_s = curves["matmul", dtype].seconds(_sides(points)).sum(axis=1)
        more_s = np.maximum(_seconds(points) - usual_s, 0.0)
        if (more_s > usual_s).any():
            found[dtype] = sizes, more_s
    return found


def _first_attention(
    curves: Mapping[tuple[What, RateDtype], Curve], hardware: Hardware
) -> dict[RateDtype, tuple[Floats, Floats]]:
    """What attention of a new length takes beyond its usual seconds, forward and backward."""
    what: What = "attention_forward_backward"
    found = {}
    for dtype in ITEM_BYTES:
        if (points := hardware.curve("first_attention", dtype)) and (what, dtype) in curves:
            more_s = _seconds(points) - curves[what, dtype].seconds(_sides(points)).sum(axis=1)
            found[dtype] = np.log2([point.shape[2] for point in points]), np.maximum(more_s, 0.0)
    return found


def _curves(
    operation: Operation, whats: Sequence[What], dtype: RateDtype, hardware: Hardware
) -> dict[tuple[What, RateDtype], Curve]:
    """The curves of operations that share their terms: the first's points fit them, the others deviate."""
    points = {what: hardware.curve(what, dtype) for what in whats}
    if not points[whats[0]]:
        return {}
    plain = _fit(TERMS[operation](_sides(points[whats[0]])), _seconds(points[whats[0]]), hardware.launch_s or 0.0)
    return {
        (what, dtype): _corrected(operation, plain, _sides(of_one), _seconds(of_one))
        for what, of_one in points.items()
        if of_one
    }


def _quantized(
    curves: Mapping[tuple[What, RateDtype], Curve], dtype: RateDtype, hardware: Hardware
) -> dict[tuple[What, RateDtype], Curve]:
    """Products of nf4 weights: a dequantization and a product, as both were measured, and how these points deviate."""
    points = hardware.curve("nf4_matmul", dtype)
    product, dequantization = curves.get(("matmul", dtype)), curves.get(("nf4_dequantize", dtype))
    if not points or product is None or dequantization is None:
        return {}
    plain = np.append(product.seconds_per, dequantization.seconds_per[1])
    return {("nf4_matmul", dtype): _corrected("quantized_product", plain, _sides(points), _seconds(points))}


def _streams(hardware: Hardware) -> dict[tuple[What, RateDtype], Curve]:
    """One curve for copies and additions in all dtypes: bytes are bytes."""
    points = [point for point in hardware.rates if point.what in STREAMS]
    if not points:
        return {}
    seconds = _seconds(points)
    moved = np.array([[point.per_second * point.seconds] for point in points])
    plain = _fit(_stream_terms(moved), seconds, hardware.launch_s or 0.0)
    return {("copy", "float32"): _corrected("stream", plain, moved, seconds)}


def _sides(points: Sequence[RatePoint]) -> Floats:
    """The sides of measured points, ordered as in core/step/work.py: of a product rows, columns and the summed side."""
    rows: list[tuple[int, ...]] = []
    for point in points:
        shape = point.shape
        if len(shape) == 3:
            M, N, K = shape
            orders = {"matmul_grad_input": (1, M, K, N), "matmul_grad_weight": (1, N, K, M)}
            rows.append(orders.get(point.what, (1, M, N, K)))
        else:
            rows.append(shape if len(shape) == 4 else (int(np.prod(shape)),))
    return np.array(rows, dtype=np.float64)


def _seconds(points: Sequence[RatePoint]) -> Floats:
    return np.array([point.seconds for point in points])


def _fit(terms: Floats, seconds: Floats, launch_s: float) -> Floats:
    """Factors of the terms behind a launch, with the least squared relative error; (P, T), (P,) to (T,).

    None is negative: a term that would be is left out, the most negative first. No more are kept than there are points.
    """
    kept = list(range(1, min(terms.shape[1], len(seconds) + 1)))
    scaled = terms / seconds[:, None]
    scale = scaled.max(axis=0)
    left = 1 - np.minimum(launch_s / seconds, 1 - LEAST_WORK)
    while True:
        factors = np.linalg.lstsq(scaled[:, kept] / scale[kept], left, rcond=None)[0]
        if factors.min() >= 0 or len(kept) == 1:
            break
        kept.pop(int(factors.argmin()))
    found = np.zeros(terms.shape[1])
    found[0], found[kept] = launch_s, np.maximum(factors, 0) / scale[kept]
    return found


def _corrected(operation: Operation, plain: Floats, sides: Floats, seconds: Floats) -> Curve:
    """The curve of fitted factors, corrected by where the measured seconds lie."""
    deviations = np.log(seconds / (TERMS[operation](sides) @ plain))
    places = np.log2(np.maximum(sides, 1.0))
    factor = float(deviations.mean())
    likeness = _likeness(places, places) + (NOISE / DEVIATION) ** 2 * np.eye(len(places))
    weights = np.linalg.solve(likeness, deviations - factor).astype(np.float64)
    return Curve(operation=operation, seconds_per=plain, factor=factor, places=places, weights=weights)


def _likeness(here: Floats, there: Floats) -> Floats:
    """How much of a deviation at one place holds at another; (C, d), (P, d) to (C, P)."""
    apart = ((here[:, None, :] - there[None, :, :]) ** 2).sum(axis=2)
    likeness: Floats = np.exp(-apart / (2 * REACH**2))
    return likeness
