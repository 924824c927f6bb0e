"""The work of an operator that a trace has run: its kind and its sides.

Matrix products and attention are recognised by their operators, whose arguments give the sides. Of every other operator
only the bytes that it reads and writes count. Leaves out adding up equal operators (assembly.py) and time.

torch 2.13, bitsandbytes 0.50. Symbols as in core/step/work.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import bitsandbytes  # noqa: F401  registers its operators
import torch
from torch.utils._pytree import tree_leaves

from autotune.core.step.work import Kind

aten, bnb = torch.ops.aten, torch.ops.bitsandbytes


@dataclass(frozen=True, slots=True)
class Done:
    """One operator's work. sides: bytes of each tensor that a stream reads or writes, else as in core/step/work.py."""

    kind: Kind
    dtype: str
    sides: tuple[int, ...]


def _mm(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> tuple[int, ...]:
    return prod(a.shape[:-2]), a.shape[-2], b.shape[-1], a.shape[-1]


def _addmm(_: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *__: Any, **___: Any) -> tuple[int, ...]:
    return _mm(a, b)


def _grouped(a: torch.Tensor, b: torch.Tensor, *_: Any, **__: Any) -> tuple[int, ...]:
    """A grouped product: (T, K) by (G, K, N), or for the gradient of a weight (K, T) by (T, N).

    Each row belongs to one group, so it costs as much arithmetic as one product over all rows.
    """
    return 1, a.shape[-2], b.shape[-1], a.shape[-1]


def _linear(a: torch.Tensor, shape: Any) -> tuple[int, ...]:
    return 1, prod(a.shape[:-1]), shape[0], shape[1]


PRODUCTS: Mapping[Any, tuple[Kind, Callable[..., tuple[int, ...]]]] = {
    aten.mm.default: ("product", _mm),
    aten.mm.out: ("product", _mm),
    aten.bmm.default: ("product", _mm),
    aten.addmm.default: ("product", _addmm),
    aten.addmm_.default: ("product", _addmm),
    aten.baddbmm.default: ("product", _addmm),
    aten._grouped_mm.default: ("product", _grouped),
    aten.linear.default: ("product", lambda a, weight, *_: _linear(a, weight.shape)),
    bnb.gemm_4bit.default: ("nf4_product", lambda a, packed, shape, *_, **__: _linear(a, shape)),
}
BLOCKWISE: Mapping[str, Kind] = {
    "bitsandbytes::quantize_blockwise": "blockwise_quantize",
    "bitsandbytes::dequantize_blockwise": "blockwise_dequantize",
}
FREE = ("empty",)  # prefixes of operators that run no kernel
ATTENTION = ("scaled_dot_product", "flash_attn", "flex_attention")  # in the names of operators
ROWS_ONLY = frozenset({aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default})


def work_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Done | None:
    """Return the work of an operator; None for a view, which does none."""
    if product := PRODUCTS.get(func):
        kind, sides = product
        return Done(kind, dtype_of(args), sides(*args, **kwargs))
    name = func._schema.name
    if "dequantize_4bit" in name:
        return Done("nf4_dequantize", dtype_of((result,)), (result.numel(),))
    if name in BLOCKWISE:
        return Done(BLOCKWISE[name], "float32", (args[0].numel(),))
    if any(part in name for part in ATTENTION):
        return _attention(func, args, kwargs)
    if name.removeprefix("aten::").startswith(FREE):
        return None
    moved = tuple(_moved(func, args, kwargs, result))
    return Done("stream", dtype_of((*tree_leaves(result), *args)), moved) if moved else None


def work_of_one(func: Any, args: tuple[Any, ...], place: int) -> Done:
    """Return the share of one parameter in an operator that reads and writes lists of tensors."""
    lists = [value for value in args if isinstance(value, list | tuple) and len(value) == len(args[0])]
    mine = [tensors[place] for tensors in lists if isinstance(tensors[place], torch.Tensor)]
    return Done("share", dtype_of(mine), tuple(2 * _bytes(tensor) for tensor in mine))


def dtype_of(values: Any) -> str:
    found = (value.dtype for value in tree_leaves(values) if isinstance(value, torch.Tensor))
    return str(next(found, torch.float32)).removeprefix("torch.")


def _attention(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Done:
    """The work of attention. The flag `is_causal` tells causal attention; with a mask all pairs are computed.

    FlashAttention 3 has no such flag here, because only causal attention calls it.
    """
    name = func._schema.name
    backward = "backward" in name
    tensors = [value for value in args if isinstance(value, torch.Tensor) and value.dim() == 4]
    query = tensors[1] if backward else tensors[0]
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
    causal = "flash_attn_3" in name or {**given, **kwargs}.get("is_causal", False)
    kind = ("attention" if causal else "masked_attention") + ("_backward" if backward else "")
    return Done(kind, dtype_of((query,)), tuple(query.shape))  # type: ignore[arg-type]


def _moved(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Iterator[int]:
    """Bytes of each tensor that is read or written. A view does neither."""
    writes = func._schema.is_mutable
    inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = {_storage(value) for value in inputs}
    fresh = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor) and _storage(value) not in there]
    if not writes and not fresh:
        return
    if func in ROWS_ONLY:
        yield from (2 * _bytes(value) for value in fresh)
        return
    yield from map(_bytes, fresh)
    yield from map(_bytes, inputs)
    for argument, given in zip(func._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (_bytes(value) for value in tree_leaves(given) if isinstance(value, torch.Tensor))


def _storage(value: torch.Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _bytes(value: torch.Tensor) -> int:
    """Bytes that a tensor covers; values repeated by a stride of 0 count once."""
    return min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
