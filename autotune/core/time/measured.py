"""Measured speed: the curves of a machine from the points that a probe measured.

The terms of an operation (speed.py) are fitted to the points in relative error. Near a measured size the curve is
corrected by what was measured there, as a Gaussian process over the logarithms of the sizes does. Leaves out the
measuring (machine/).

Symbols: P measured points, d sides of an operation, T terms; others as in core/step/work.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autotune.core.hardware import ITEM_BYTES, Hardware, RateDtype, RatePoint, What
from autotune.core.time.speed import TERMS, Curve, Floats, MachineSpeed, Operation, blockwise_by_bytes, likeness

DEVIATION = 0.3  # prior standard deviation of the logarithm of measured over fitted seconds
NOISE = 0.05  # standard deviation of the logarithm of one measured point
LEAST_WORK = 0.05  # least share of a measured operation's seconds that is not its launch
STREAMS: Sequence[What] = ("copy", "add")
# What a chain of a probe launches and copies for each of its forward operators: (launches, copies). It repeats a linear
# layer, an activation and an addition.
# - The backward pass launches five operators for these three. With checkpointing these three are launched again.
# - After every third operator comes a copy of the smallest stream: in the forward, the backward and the recomputed
#   pass.
CHAINS: Mapping[What, tuple[float, float]] = {
    "eager_operators": (8 / 3, 2 / 3),
    "checkpointed_operators": (11 / 3, 1.0),
    "selective_operators": (11 / 3, 1.0),
}


def measured_speed(hardware: Hardware) -> MachineSpeed:
    """Fit the curves of a machine to its probe's points. Raises ValueError without any."""
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
        if what.startswith("attention") and (masked, dtype) not in curves:  # it computes all pairs, not half of them
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


def _first(
    curves: Mapping[tuple[What, RateDtype], Curve], hardware: Hardware
) -> dict[RateDtype, tuple[Floats, Floats]]:
    """How much longer products of new shapes take, in the form of MachineSpeed.first_s.

    A dtype is left out if no first call takes twice as long as usual. Its first calls were slow only because caches
    were cold.
    """
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
    """How much longer attention of new lengths takes, in the form of MachineSpeed.first_attention_s."""
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
    """Fit the curves of operations that share their terms. The terms are fitted to the first operation's points."""
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
    """The curve of products of nf4 weights: a product and a dequantization, corrected by how their points deviate."""
    points = hardware.curve("nf4_matmul", dtype)
    product, dequantization = curves.get(("matmul", dtype)), curves.get(("nf4_dequantize", dtype))
    if not points or product is None or dequantization is None:
        return {}
    plain = np.append(product.seconds_per, dequantization.seconds_per[1])
    return {("nf4_matmul", dtype): _corrected("quantized_product", plain, _sides(points), _seconds(points))}


def _streams(hardware: Hardware) -> dict[tuple[What, RateDtype], Curve]:
    """Fit one curve to copies and additions in all dtypes: only their bytes count."""
    points = [point for point in hardware.rates if point.what in STREAMS]
    if not points:
        return {}
    seconds = _seconds(points)
    moved = np.array([[point.per_second * point.seconds] for point in points])
    plain = _fit(TERMS["stream"](moved), seconds, hardware.launch_s or 0.0)
    return {("copy", "float32"): _corrected("stream", plain, moved, seconds)}


def _sides(points: Sequence[RatePoint]) -> Floats:
    """The sides of measured points, in the order of core/step/work.py."""
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
    """Fit the factors of terms, (T,), with the least squared relative error. The first term is the launch: it is given.

    terms: (P, T). seconds: (P,). No factor is negative: terms that would have one are left out, the most negative
    first. There are no more terms than points.
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
    """The curve of fitted factors, corrected by how the measured seconds deviate from it."""
    deviations = np.log(seconds / (TERMS[operation](sides) @ plain))
    places = np.log2(np.maximum(sides, 1.0))
    factor = float(deviations.mean())
    kernel = likeness(places, places) + (NOISE / DEVIATION) ** 2 * np.eye(len(places))
    weights = np.linalg.solve(kernel, deviations - factor).astype(np.float64)
    return Curve(operation=operation, seconds_per=plain, factor=factor, places=places, weights=weights)
