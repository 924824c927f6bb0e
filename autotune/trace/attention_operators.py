"""FlashAttention 3 and compiled flex attention, for which a CPU build of torch has no operators.

Each is registered here as an operator of shapes only. It returns what the kernel returns and keeps what the kernel
keeps for the backward pass. WORKSPACES says what the kernel allocates beside that. Leaves out the semaphores of tiles.

Symbols: B rows, H heads, K heads of keys and values, S length, D head width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.library import Library, register_autograd, register_fake

FLASH_3_WIDTHS = (64, 96, 128, 192, 256)  # head widths that FlashAttention 3 has kernels for

_operators = torch.ops.autotune


def flash_attention_3(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """FlashAttention 3 (hopper/flash_attn_interface.py, FlashAttnFunc). Shapes (B, H, S, D) and (B, K, S, D).

    It keeps its inputs, the result and a log-sum-exp per row. Unlike FlashAttention 2 it keeps no random state, and it
    refuses head widths that are not a multiple of 8.
    """
    if query.shape[-1] % 8:
        raise ValueError(f"FlashAttention 3 takes heads whose width is a multiple of 8, not of {query.shape[-1]}")
    out: torch.Tensor = _operators.flash_attn_3(query, key, value)[0]
    return out


def flex_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flex attention under torch.compile, and its log-sum-exp. Shapes (B, H, S, D) and (B, K, S, D).

    The graphs that AOTAutograd makes of torch.nn.attention.flex_attention keep the inputs with the mask, the result and
    a log-sum-exp in base 2. The log-sum-exp that they return is a copy in base e.
    """
    out, _, lse = _operators.flex_attention(query, key, value, mask)
    return out, lse


def flex_mask(batch_size: int, q_length: int, **_: Any) -> torch.Tensor:
    """The tables of a BlockMask, as one tensor that is at least as large for up to 16,000 positions.

    A BlockMask has four lists and four counts of int32 (create_block_mask): 16 B (n + n**2) bytes for n blocks a side.
    That is not a polynomial of the length, so 16 S bytes stand in for 16 (n + n**2). Beyond 16,000 positions the tables
    are larger than this, but still negligible.
    """
    return torch.empty(batch_size, 4, q_length, dtype=torch.int32)


def _like(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """A result (B, H, S, width) in the memory layout of the queries: the heads of a position are adjacent."""
    B, H, S, _ = tensor.shape
    return tensor.new_empty(B, S, H, width).transpose(1, 2)


def _flash_3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _like(q, v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


def _flash_3_gradients(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in (q, k, v)]


def _flash_3_backward(grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any) -> int:
    """mha_bwd of hopper/flash_api.cpp, all in fp32: the gradient of queries and two sums a row.

    If heads share keys, the gradients of keys and values are summed in fp32, too. FlashAttention 2 expands them.
    """
    B, H, S, D = q.shape
    K = k.shape[1]
    width = next(width for width in FLASH_3_WIDTHS if width >= max(D, v.shape[-1]))
    summed = 2 * K * width if K != H else 0
    return 4 * B * S * (H * (width + 2) + summed)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    return _like(q, v.shape[-1]), lse, torch.empty_like(lse)


def _flex_gradients(
    grad: Any, grad_lse: Any, q: Any, k: Any, v: Any, mask: Any, out: Any, lse: Any
) -> list[torch.Tensor]:
    return [torch.empty_like(tensor) for tensor in (q, k, v)]


def _flex_forward(q: torch.Tensor, *_: Any) -> int:
    """The largest score of each row in fp32, which is written and never read (torch/_inductor/kernel/flex)."""
    return 4 * q.shape[:-1].numel()


def _flex_backward(grad: torch.Tensor, *_: Any) -> int:
    """`delta` and the gradient of the base-2 log-sum-exp: two numbers a row in fp32 (torch/_inductor/kernel/flex)."""
    return 2 * 4 * grad.shape[:-1].numel()


def _keep(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[:2])


def _flash_3_gradient(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
    return tuple(_operators.flash_attn_3_backward(grad, *ctx.saved_tensors))


def _flex_gradient(ctx: Any, grad: torch.Tensor, _: Any, grad_lse: torch.Tensor | None) -> Any:
    """The backward. An unused log-sum-exp gets a gradient of zeros, because a compiled function needs all gradients."""
    grad_lse = torch.zeros_like(ctx.saved_tensors[-1]) if grad_lse is None else grad_lse
    return (*_operators.flex_attention_backward(grad, grad_lse, *ctx.saved_tensors), None)


_SCHEMAS: Mapping[str, Callable[..., Any]] = {
    "flash_attn_3(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)": _flash_3,
    "flash_attn_3_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse) -> Tensor[]": (
        _flash_3_gradients
    ),
    "flex_attention(Tensor q, Tensor k, Tensor v, Tensor mask) -> (Tensor, Tensor, Tensor)": _flex,
    "flex_attention_backward(Tensor grad, Tensor grad_lse, Tensor q, Tensor k, Tensor v, Tensor mask, Tensor out, "
    "Tensor lse) -> Tensor[]": _flex_gradients,
}
_library = Library("autotune", "DEF")  # type: ignore[no-untyped-call]
for _schema, _fake in _SCHEMAS.items():
    _library.define(_schema)  # type: ignore[no-untyped-call]
    register_fake(f"autotune::{_schema.partition('(')[0]}", _fake, lib=_library)
register_autograd("autotune::flash_attn_3", _flash_3_gradient, setup_context=_keep)
register_autograd("autotune::flex_attention", _flex_gradient, setup_context=_keep)

WORKSPACES: Mapping[Any, Callable[..., int]] = {  # bytes, by the operator's arguments
    _operators.flash_attn_3_backward.default: _flash_3_backward,
    _operators.flex_attention.default: _flex_forward,
    _operators.flex_attention_backward.default: _flex_backward,
}
