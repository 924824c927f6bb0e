"""Contracts: what CUDA's code paths allocate, for tensors that have neither data nor a GPU.

A build of torch without CUDA runs the CPU's code paths on fake tensors. Here CUDA's paths are taken, and each kernel is
replaced by a contract from its source: what it returns, keeps for the backward pass and allocates while it runs.
Attention is in attention_kernels.py. Leaves out rounding, which is the allocator's, and the CUDA context, which the
probe measures.

torch 2.13, trl 1.16. Symbols: N label positions.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import bitsandbytes.functional
import torch
import torch.nn.functional as F
import torch.optim.optimizer as optimizer
import trl.trainer.utils
from bitsandbytes.optim.optimizer import Optimizer8bit
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import graph
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from trl.kernels import chunked_logprob

from autotune.trace.attention_kernels import HALF, WORKSPACES, Capability, cuda_attention
from autotune.trace.operators import Done, dtype_of

aten = torch.ops.aten

# Functions of decoder models that CUDA's autocast runs in fp32 and the CPU's does not (aten/src/ATen/autocast_mode.h:
# AT_FORALL_FP32, and AT_FORALL_FP32_SET_OPT_DTYPE, whose functions get a dtype and make no copy).
FP32_NAMES = ("pow", "__pow__", "exp", "log", "rsqrt", "reciprocal", "logsumexp", "norm", "softplus", "layer_norm")
DTYPE_NAMES = ("softmax", "log_softmax", "sum", "cumsum", "prod")


def _functions(names: Iterable[str]) -> frozenset[Any]:
    return frozenset(
        getattr(place, name) for name in names for place in (torch, torch.Tensor, F) if hasattr(place, name)
    )


FP32_FUNCTIONS = _functions((*FP32_NAMES, "cross_entropy", "nll_loss"))
DTYPE_FUNCTIONS = _functions(DTYPE_NAMES)


@contextlib.contextmanager
def cuda_paths(capability: Capability, *, ran: Callable[[Done], None] = lambda done: None) -> Iterator[None]:
    """Take CUDA's paths through TRL's head, attention, autocast and the optimizers inside this context.

    ran: called with the work of each of the head's kernels, because no operator shows them.
    """

    def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
        """TRL's `_addmm_fp32`: cuBLAS adds in place and allocates nothing."""
        ran(Done("product", dtype_of(left), (1, left.shape[0], right.shape[1], left.shape[1])))

    types = [FakeTensor]
    with (
        patch.object(chunked_logprob, "_use_triton", lambda device: True),
        patch.object(trl.trainer.utils, "_use_triton", lambda device: True),
        patch.object(chunked_logprob, "_forward_kernel", _Launch(1, ran)),
        patch.object(chunked_logprob, "_backward_kernel", _Launch(2, ran)),
        patch.object(chunked_logprob, "triton", SimpleNamespace(cdiv=lambda a, b: -(-a // b)), create=True),
        patch.object(chunked_logprob, "_addmm_fp32", add_product),
        patch.object(_foreach_utils, "_foreach_supported_types", types),
        patch.object(optimizer, "_foreach_supported_types", types),
        patch.object(optimizer, "_get_foreach_kernels_supported_devices", lambda: ["cpu"]),
        patch.object(Optimizer8bit, "get_state_buffer", _state_buffer),
        patch.object(bitsandbytes.functional, "prefetch_tensor", lambda *_, **__: None),
        patch.object(torch.autograd, "_engine_run_backward", partial(_backward, graph._engine_run_backward)),
        cuda_attention(capability),
        _Autocast(),
    ):
        yield


def _state_buffer(optimizer: Any, parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A state of a bitsandbytes optimizer. A paged one keeps states of 100,000 numbers or more in managed memory."""
    state = torch.zeros_like(parameter, dtype=dtype)
    if optimizer.is_paged and parameter.numel() >= 1e5:
        state.is_paged = True  # type: ignore[attr-defined]
    return state


@dataclass(frozen=True, slots=True)
class _Launch:
    """A Triton kernel of TRL's head that does nothing. passes: 1 reads a tile of logits, 2 also writes it."""

    passes: int
    ran: Callable[[Done], None]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(tile: torch.Tensor, *_: Any, **__: Any) -> None:
            self.ran(Done("stream", dtype_of(tile), (self.passes * tile.numel() * tile.element_size(),)))

        return launch


class _Autocast(TorchFunctionMode):
    """Run in fp32 what CUDA's autocast runs in fp32; the CPU's autocast has nearly no such list."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if torch.is_autocast_enabled("cpu"):
            if func in FP32_FUNCTIONS:
                args = tuple(value.float() if _is_half(value) else value for value in args)
            elif func in DTYPE_FUNCTIONS and args and _is_half(args[0]) and keywords.get("dtype") is None:
                keywords["dtype"] = torch.float32
        return func(*args, **keywords)


def _backward(run: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Run the backward pass, which recomputes checkpoints, under `_Autocast`: torch turns function modes off in it."""
    with _Autocast():
        return run(*arguments, **keywords)


def _is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in HALF


def stand_in(func: Any, args: tuple[Any, ...], labels: int) -> Any:
    """Return the result of an operator that indexes with a mask, as if N values were set; None for other operators.

    TRL's head picks the label positions with a mask, `hidden_states[mask]`, and writes their scores back. labels: N.
    """
    if func is aten.index.Tensor and _is_mask(args[1]):
        return args[0].new_empty((labels, *args[0].shape[args[1][0].dim() :]))
    if func is aten.masked_select.default:
        return args[0].new_empty((labels,))
    if func in (aten._index_put_impl_.default, aten.index_put_.default) and _is_mask(args[1]):
        return args[0]
    if func is aten.index_put.default and _is_mask(args[1]):
        return args[0].clone()
    return None


def _is_mask(indices: Any) -> bool:
    return indices[0] is not None and indices[0].dtype == torch.bool


def workspace_bytes(func: Any, args: tuple[Any, ...]) -> int:
    """Return the bytes that a kernel allocates beside its outputs while it runs."""
    needs = WORKSPACES.get(func)
    return needs(*args) if needs else 0
