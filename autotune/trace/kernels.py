"""What kernels allocate inside one operator. Fake tensors show only the operator's result, or refuse it.

- bitsandbytes' CPU kernels are torch operators around a few C functions that allocate nothing. Run on fake tensors,
  they show what they allocate (bitsandbytes 0.50.2: backends/cpu/ops.py, backends/default/ops.py).
- torch 2.13 refuses `_grouped_mm` in fp32 on fake tensors, though its kernels compute it (aten GroupedMMUtils.h).

Leaves out oneDNN's packed copies of small bf16 operands, which depend on the CPU: half a MiB in small models.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.backends.cpu.ops import _optimizer_update_8bit_blockwise_cpu, _optimizer_update_32bit_cpu
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl

ALIGNMENT = 16  # bytes: rows of a grouped product begin at multiples of it


def _grouped_mm(
    a: torch.Tensor, b: torch.Tensor, offs: torch.Tensor | None = None, bias: Any = None, out_dtype: Any = None
) -> torch.Tensor:
    """Allocate the result of a grouped product; its rows begin at multiples of ALIGNMENT.

    offs: where the G groups end, shape (G,). Shapes with it: (T, K) by (G, K, N) gives (T, N); (G, M, K) by (K, T)
    gives (M, T); (M, T) by (T, N) gives (G, M, N). Without it: (G, M, K) by (G, K, N) gives (G, M, N).
    """
    if a.dim() != b.dim():
        size: tuple[int, ...] = (a.shape[-2], b.shape[-1])
    else:
        groups = a.shape[0] if offs is None else offs.shape[0]
        size = (groups, a.shape[-2], b.shape[-1])
    dtype = out_dtype or a.dtype
    multiple = ALIGNMENT // dtype.itemsize
    width = -(-size[-1] // multiple) * multiple
    strides = (size[-2] * width, width, 1)[-len(size) :]
    return a.new_empty_strided(size, strides, dtype=dtype)


ON_CPU: Mapping[Any, Callable[..., Any]] = {
    torch.ops.bitsandbytes.gemm_4bit.default: _gemm_4bit_default_impl,
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise.default: _optimizer_update_8bit_blockwise_cpu,
    torch.ops.bitsandbytes.optimizer_update_32bit.default: _optimizer_update_32bit_cpu,
}
OPERATORS_ON_CPU = frozenset(ON_CPU) - {torch.ops.bitsandbytes.gemm_4bit.default}  # this one runs torch's own operators
ANYWHERE: Mapping[Any, Callable[..., Any]] = {torch.ops.aten._grouped_mm.default: _grouped_mm}


def _gemm_4bit_on_cuda(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Sequence[int],
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """`_dequant_linear_fallback` (backends/cuda/ops.py): dequantize the whole weight, then a plain product.

    Below 1536 tokens some shapes and GPUs take a fused kernel, which allocates less.
    """
    if absmax_8bit is not None and absmax_offset is not None:
        absmax = torch.empty_like(absmax_8bit, dtype=torch.float32).add(absmax_offset)
    result = F.linear(A, torch.empty(tuple(shapeB), dtype=A.dtype), bias)
    del absmax  # lives until here
    return result


def _int8_quantize_on_cuda(A: torch.Tensor, threshold: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """A byte for each value and a scale for each row, after a search for outliers that finds none."""
    scales = torch.empty(A.numel() // A.shape[-1], dtype=torch.float32)
    quantized = torch.empty(A.shape, dtype=torch.int8)
    outliers = None
    if threshold > 0:
        A.abs().ge(threshold).any()
        outliers = torch.empty(0, dtype=torch.int64)
    return quantized, scales, outliers


ON_CUDA: Mapping[Any, Callable[..., Any]] = {
    torch.ops.bitsandbytes.gemm_4bit.default: _gemm_4bit_on_cuda,
    torch.ops.bitsandbytes.int8_vectorwise_quant.default: _int8_quantize_on_cuda,
}


MIXED = frozenset(  # operators that first convert their operands to one dtype
    getattr(torch.ops.aten, name + suffix).Tensor for name in ("add", "sub", "mul", "div") for suffix in ("", "_")
)


def workspace_bytes_on_cpu(func: Any, args: tuple[Any, ...]) -> int:
    """Return the bytes of copies that a pointwise operator over several dtypes makes on a CPU (TensorIterator.cpp).

    An operand or result of another dtype than the common one is copied. CUDA's kernels convert as they read and write.
    """
    if func not in MIXED or not all(isinstance(value, torch.Tensor) for value in args[:2]):
        return 0
    one, other = args[:2]
    if one.dtype == other.dtype:
        return 0
    common = torch.result_type(one, other)
    copied = sum(value.numel() for value in (one, other) if value.dtype != common)
    if func._schema.is_mutable and one.dtype != common:
        copied += one.numel()
    return int(copied * common.itemsize)


def substitute(func: Any, *, on_cpu: bool) -> Callable[..., Any] | None:
    """Return what to run in place of an operator; None to run the operator itself."""
    return ANYWHERE.get(func) or (ON_CPU if on_cpu else ON_CUDA).get(func)


def is_one_kernel(func: Any, *, on_cpu: bool) -> bool:
    """Return whether an operator with a substitute is timed as one kernel, not as the operators of its substitute."""
    return not (on_cpu and func in OPERATORS_ON_CPU)
