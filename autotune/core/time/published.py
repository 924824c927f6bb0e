"""Published speed: the speed of a GPU that was not measured here, from its specification.

Each rate is a share of a published peak; the source of the share is given. A probe of the GPU replaces all of them
(measured.py).
"""

from collections.abc import Mapping

import numpy as np

from autotune.core.hardware import ITEM_BYTES, Peaks, RateDtype, What
from autotune.core.time.speed import Curve, MachineSpeed, blockwise_by_bytes

# Share of a dense peak that long products reach: A100 0.87, H100 0.80, B200 0.78 (stas00/ml-engineering, maximum
# achievable matmul).
PRODUCT_SHARE = 0.8
# Share of the bandwidth that copies and elementwise kernels reach: 0.85 to 0.9 for an A100, 0.7 to 0.8 for a T4
# (BabelStream).
BANDWIDTH_SHARE = 0.85
# Share of the rate of long products that attention reaches: forward and backward of FlashAttention-2 reach 150 to 190
# of 271 TFLOP/s on an A100 (arXiv:2307.08691, figures 4 to 6), memory-efficient kernels for older GPUs less.
ATTENTION_SHARE = 0.5
# Seconds of an operator that Python launches, with the views before it: eager torch needs 5 to 10 us for one, and the
# trainer's modules, hooks and autograd as much again. This depends on the host, so no specification says it.
LAUNCH_S = 15e-6
NF4_BYTES = 2.6  # moved to dequantize an element: half a byte and statistics are read, two bytes are written
SIXTEEN_BITS: tuple[RateDtype, ...] = ("bfloat16", "float16")


def published_speed(peaks: Peaks) -> MachineSpeed:
    """Estimate a GPU's curves from its published peaks. Raises ValueError if fp32 or the bandwidth has none."""
    if not peaks.tflops.get("float32") or not peaks.bandwidth_gb_s > 0:
        raise ValueError("no published peak of fp32, or of the memory's bandwidth")
    bytes_per_s = BANDWIDTH_SHARE * peaks.bandwidth_gb_s * 1e9
    curves: dict[tuple[What, RateDtype], Curve] = {}
    for dtype, flops in _flops(peaks).items():
        item = ITEM_BYTES[dtype] / bytes_per_s
        product = np.array([0.0, 2 / flops, item])
        for what in ("matmul", "matmul_grad_input", "matmul_grad_weight"):
            curves[what, dtype] = Curve(operation="product", seconds_per=product)
        seconds_per = np.append(product, NF4_BYTES / bytes_per_s)
        curves["nf4_matmul", dtype] = Curve(operation="quantized_product", seconds_per=seconds_per)
        for kernel, products, tensors in (("attention_forward", 2, 4), ("attention_forward_backward", 7, 12)):
            for name, pairs in ((kernel, 1), (f"masked_{kernel}", 2)):  # causal attention has half of them
                seconds_per = np.array([0.0, pairs * products / (ATTENTION_SHARE * flops), tensors * item])
                curves[name, dtype] = Curve(operation="attention", seconds_per=seconds_per)  # type: ignore[index]
    curves["copy", "float32"] = Curve(operation="stream", seconds_per=np.array([0.0, 1.0]) / bytes_per_s)
    curves["nf4_dequantize", "float32"] = Curve(
        operation="dequantize", seconds_per=np.array([0.0, NF4_BYTES]) / bytes_per_s
    )
    curves |= blockwise_by_bytes(curves)
    return MachineSpeed(curves=curves, launch_s=LAUNCH_S)


def _flops(peaks: Peaks) -> Mapping[RateDtype, float]:
    """FLOP/s of long products by dtype.

    A power limit that slows 16-bit products down does not slow products in fp32. A GPU without instructions for bf16
    computes in fp32 instead.
    """
    found: dict[RateDtype, float] = {"bfloat16": 1e12 * PRODUCT_SHARE * peaks.tflops["float32"]}
    for dtype in ITEM_BYTES:
        if (peak := peaks.tflops.get(dtype)) is not None:
            sustained = peaks.sustained_tflops if dtype in SIXTEEN_BITS else None
            found[dtype] = 1e12 * (PRODUCT_SHARE * peak if sustained is None else sustained)
    return found
