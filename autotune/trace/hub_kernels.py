"""Kernels of the hub, as contracts: what Liger's RMS norm allocates in place of a model's own.

With `use_kernels` transformers replaces the forward of modules that are marked with a kernel's name, if its mapping
has that kernel (integrations/hub_kernels.py of 5.23). When attention models train on CUDA, that means:
- RMSNorm: replaced.
- rotary embeddings and activations: their kernels are for inference only.
- SwiGLUMLP, GeGLUMLP, Linear: Liger has kernels for them, but no module carries the mark.
- recurrent layers and experts of some models: replaced. What they allocate is not known, so such models are refused.
TRL's head is not replaced.
"""

import inspect
import re
import sys
from types import MethodType
from typing import Any

import torch

from autotune.trace.assembly import TraceError

MARK = re.compile(r"use_kernel_\w+_from_hub\w*\(\s*\"(\w+)\"")
NORM = "RMSNorm"
WITHOUT_EFFECT = ("rotary_pos_emb",)  # in training
MULTIPROCESSORS = 192  # more than any GPU in the catalogue has; each makes its own gradient of the weight


def use_hub_kernels(model: Any) -> None:
    """Make a model's norms allocate what Liger's allocate. Raises TraceError for a model with other kernels."""
    others = set(_marks(sys.modules[type(model).__module__])) - {NORM, *WITHOUT_EFFECT}
    if others:
        raise TraceError(
            f"use_kernels runs kernels of the hub for {', '.join(sorted(others))}, whose memory is not known: "
            "candidate.use_kernels=false is predicted"
        )
    for module in model.modules():
        if NORM in _marks(type(module)):
            module.forward = MethodType(_forward, module)


def _marks(place: Any) -> list[str]:
    """Names that a module's source marks its layers and functions with, or a class's source the class."""
    try:
        return MARK.findall(inspect.getsource(place))
    except (OSError, TypeError):  # made at run time
        return []


def _forward(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = LigerRmsNorm.apply(hidden_states, module.weight)  # type: ignore[no-untyped-call]
    return out


class LigerRmsNorm(torch.autograd.Function):
    """LigerRMSNormFunction of liger-kernel 0.8.5 (ops/rms_norm.py), in place, as the hub's layer calls it.

    It keeps the input, the weight and one fp32 number a row. The gradient of the input overwrites the gradient of the
    result. The gradient of a trained weight is summed in fp32.
    """

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the result, in the dtype of the input."""
        hidden_states = hidden_states.contiguous()
        scales = hidden_states.new_empty(hidden_states.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(hidden_states, weight, scales)
        return torch.empty_like(hidden_states)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradients of the input and the weight."""
        _, weight, _ = ctx.saved_tensors
        own = grad.contiguous().view(grad.shape)
        if not ctx.needs_input_grad[1]:
            return own, None
        parts = weight.new_empty((MULTIPROCESSORS, *weight.shape), dtype=torch.float32)
        return own, parts.sum(0).to(weight.dtype)
