"""Attention kernels on CUDA, as contracts: what each allocates, for tensors that have neither data nor a GPU.

A build of torch without CUDA takes the CPU's kernel on fake tensors. Here the kernel is chosen as CUDA's dispatcher
chooses it, and torch's own operator for that kernel is called. The operator's registration gives outputs and saved
tensors; WORKSPACES gives what the kernel allocates beside them while it runs.

Sources, torch 2.13: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (choice), .../flash_attn/flash_api.cpp and
.../mem_eff_attention/kernel_backward.h and aten/src/ATen/native/cuda/SoftMax.cu (workspaces). flash-attn 2.8 has the
same buffers except where a docstring says otherwise. Kernels without an operator in this torch are in
attention_operators.py.

Leaves out:
- rounding of lengths to a tile of 64 or 128 positions, because a size has to be a polynomial of the length;
- the workspace that cuDNN's engines ask for at run time (aten/src/ATen/native/cudnn/MHA.cpp, get_workspace_size).

Symbols: B rows, H heads, K heads of keys and values, S length, D head width.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.nn.functional as F
import transformers.modeling_utils
from transformers.integrations.flex_attention import repeat_kv
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from autotune.core.gpu_spec import CUDNN_WIDTHS, LITTLE_SHARED_MEMORY
from autotune.core.step.regime import ALIGNMENT
from autotune.trace import attention_operators

aten = torch.ops.aten
Capability = tuple[int, int]
Kernel = Literal["cudnn", "flash", "efficient", "math"]

HALF = (torch.bfloat16, torch.float16)
FLASH_WIDTH = 256  # the widest head that flash kernels take
CUDNN_DROPOUT = 1 / 16  # cuDNN's dropout is a multiple of this (sdp_utils.cpp, check_cudnn_dropout)
MASK_MULTIPLE = ALIGNMENT  # elements to which the memory-efficient kernel pads a mask's rows (attention.cpp, pad_bias)


def sdpa_kernel(
    capability: Capability,
    dtype: torch.dtype,
    width: int,
    *,
    masked: bool,
    grouped: bool,
    dropout: float = 0.0,
    value_width: int | None = None,
) -> Kernel:
    """Choose the kernel that `scaled_dot_product_attention` takes for training.

    width: of a head of queries and keys. value_width: of a head of values where it differs (DeepSeek), which flash
    attention refuses. grouped: whether heads share keys (enable_gqa), which the memory-efficient kernel cannot do.

    cuDNN's kernel goes first on Hopper and data-center Blackwell with cuDNN newer than 9.15, which torch's wheels for
    CUDA 13 bring. Wheels for CUDA 12 bring an older cuDNN and take flash attention; so does every wheel under
    TORCH_CUDNN_SDPA_DEPRIORITIZED=1.
    """
    if dtype in HALF and width % 8 == 0 and width <= CUDNN_WIDTHS.get(capability[0], 0) and not dropout % CUDNN_DROPOUT:
        return "cudnn"
    half_there = dtype == torch.float16 or (dtype == torch.bfloat16 and capability >= (8, 0))
    width_there = width <= FLASH_WIDTH and value_width in (None, width)
    if capability in LITTLE_SHARED_MEMORY and (192 < width <= 224 or (width > 224 and dropout > 0)):
        width_there = False
    if capability >= (8, 0) and dtype in HALF and width_there and not masked:
        return "flash"
    if (half_there or dtype == torch.float32) and width % (8 if dtype in HALF else 4) == 0 and not grouped:
        return "efficient"
    return "math"


@contextlib.contextmanager
def cuda_attention(capability: Capability) -> Iterator[None]:
    """Make models call CUDA's attention kernels inside this context."""
    attention = {
        "flash_attention_2": partial(_flash_attention, _flash_2),
        "flash_attention_3": partial(_flash_attention, _flash_3),
        "flex_attention": _flex_attention,
    }
    with (
        patch.object(F, "scaled_dot_product_attention", partial(_sdpa, capability)),
        patch.object(F, "softmax", partial(_softmax, F.softmax)),
        patch.dict(ALL_ATTENTION_FUNCTIONS._global_mapping, attention),
        patch.dict(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, flex_attention=attention_operators.flex_mask),
        patch.object(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True),  # needs its package and a GPU
        patch.object(transformers.modeling_utils, "lazy_import_flash_attention", lambda *_, **__: None),
    ):
        yield


def _sdpa(
    capability: Capability,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """CUDA's `scaled_dot_product_attention`. Shapes: queries (B, H, S, D), keys and values (B, K, S, D)."""
    query, key, value = _autocast(query, key, value)
    kernel = sdpa_kernel(
        capability,
        query.dtype,
        query.shape[-1],
        masked=attn_mask is not None,
        grouped=key.shape[1] != query.shape[1],
        dropout=dropout_p,
        value_width=value.shape[-1],
    )
    if kernel == "flash":
        return _flash_2(query, key, value, dropout_p, is_causal, scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:  # torch converts it to numbers in every layer again
        zero = torch.zeros((), dtype=query.dtype)
        attn_mask = torch.where(attn_mask.logical_not(), float("-inf"), zero)
    if kernel == "cudnn":
        return aten._scaled_dot_product_cudnn_attention(
            query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
        )[0]
    if kernel == "math":
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    if attn_mask is not None:
        attn_mask = _padded(attn_mask).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def _padded(mask: torch.Tensor) -> torch.Tensor:
    """A mask whose last side is stored as a multiple of MASK_MULTIPLE."""
    length = mask.shape[-1]
    missing = -length % MASK_MULTIPLE
    return F.pad(mask, (0, missing))[..., :length] if missing else mask


def _flash_2(
    query: Any, key: Any, value: Any, dropout_p: float = 0.0, is_causal: bool = True, scale: float | None = None
) -> Any:
    missing = -query.shape[-1] % 8
    if missing:  # the kernel takes widths that are multiples of 8
        width, scale = query.shape[-1], scale or query.shape[-1] ** -0.5
        query, key, value = (F.pad(tensor, (0, missing)) for tensor in (query, key, value))
        return _flash_2(query, key, value, dropout_p, is_causal, scale)[..., :width]
    out: torch.Tensor = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
        0
    ]
    return out


def _flash_3(query: Any, key: Any, value: Any, *_: Any) -> Any:
    return attention_operators.flash_attention_3(query, key, value)


def _flash_attention(
    kernel: Callable[..., torch.Tensor],
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """A flash-attn package as transformers calls it. Shapes (B, H, S, D); the result is (B, S, H, D).

    For padded rows it first gathers the real tokens and later scatters them back: each makes a copy of its tensor.
    """
    query, key, value = _autocast(query, key, value)
    if query.dtype == torch.float32:  # after norms in fp32; transformers casts back to the dtype of the weights
        query, key, value = (tensor.to(torch.bfloat16) for tensor in (query, key, value))
    if attention_mask is not None:
        query, key, value = (tensor.transpose(1, 2).clone().transpose(1, 2) for tensor in (query, key, value))
    out = kernel(query, key, value, dropout, True, scaling).transpose(1, 2)
    return (out.clone() if attention_mask is not None else out), None


def _flex_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' flex_attention_forward on a GPU. Shapes (B, H, S, D); the result is (B, S, H, D).

    Heads share keys only if H is a power of 2. s_aux: an attention sink for each head, which scales the result.
    """
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    if heads & (heads - 1):
        key, value = repeat_kv(key, shared), repeat_kv(value, shared)
    dtype = value.dtype
    query, key, value = _autocast(query, key, value)
    out, lse = attention_operators.flex_attention(query, key, value, attention_mask)
    lse = lse.to(dtype)
    if s_aux is not None:
        with_sink = torch.cat([lse.unsqueeze(-1), s_aux.view(1, -1, 1, 1).expand(*lse.shape, 1)], dim=-1)
        scale = torch.exp(lse.unsqueeze(-1) - torch.logsumexp(with_sink, dim=-1, keepdim=True))
        out = (out * scale).to(query.dtype)
    return out.transpose(1, 2).contiguous(), lse


def _softmax(softmax: Callable[..., torch.Tensor], input: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
    """Softmax of fp16 into fp32. On CUDA it is one kernel that makes no fp32 copy of its input (SoftMax.cpp)."""
    if input.dtype == torch.float16 and keywords.get("dtype") == torch.float32:
        dimension = keywords.get("dim", arguments[0] if arguments else -1)
        return aten._softmax(input, dimension, True)
    return softmax(input, *arguments, **keywords)


def _autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype("cpu")) for tensor in tensors)


def _flash_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> int:
    """mha_bwd: the gradient of queries in fp32 and a sum per row; widths are rounded up to 32 or 64.

    If heads share keys, the gradients of keys and values are first made for every head.
    """
    B, H, S, D = query.shape
    width = _up(D, 32 if D <= 128 else 64)
    expanded = 2 * B * key.shape[2] * H * D * key.element_size() if key.shape[1] != H else 0
    return 4 * B * H * S * (width + 1) + expanded


def _cudnn_backward(grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *_: Any) -> int:
    """CompositeSDPABackwardNode of cudnn-frontend: the gradient of queries in fp32, and a sum per row.

    If heads share keys, the graph has the gradients of keys and values for every head, in the dtype of the queries.
    They are counted here, though cuDNN's engine may not hold all of them at once.
    """
    B, H, S, D = query.shape
    expanded = 2 * B * key.shape[2] * H * D * key.element_size() if key.shape[1] != H else 0
    return 4 * B * H * S * (D + 1) + expanded


def _efficient_backward(grad: torch.Tensor, query: torch.Tensor, *_: Any) -> int:
    """`workspace_elements_gq` in fp32, with widths rounded up to 64, and `delta`, a sum per row."""
    B, H, S, D = query.shape
    return 4 * B * H * S * (_up(D, 64) + 1)


def _softmax_backward(grad: torch.Tensor, output: torch.Tensor, *_: Any) -> int:
    """softmax_backward_cuda_out: `grad * output`, of the scores' shape in the wider of the two dtypes."""
    return output.numel() * torch.result_type(grad, output).itemsize


WORKSPACES: Mapping[Any, Callable[..., int]] = {  # bytes, by the operator's arguments
    aten._softmax_backward_data.default: _softmax_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: _cudnn_backward,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    **attention_operators.WORKSPACES,
}


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
