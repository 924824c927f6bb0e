"""Activation offloading on tensors that have neither data nor a GPU: TRL's own hooks, with streams that do nothing.

Tensors that the hooks send to the host are recorded as the host's; tensors that they bring back are new allocations.
trl 1.16.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from trl.models import activation_offloading

from autotune.core.candidate import Candidate
from autotune.core.step.profile import OFFLOADED
from autotune.trace.recorder import Recorder

STASH = 5  # tensors that TRL keeps on the device while they are being sent: `max_fwd_stash_size`


def reach(candidate: Candidate, *, scores_routers: bool) -> int:
    """Return how many layers lie between the layer that makes a block and the layer that frees it, at most.

    TRL frees a tensor once STASH later ones have been sent.
    - A checkpointed layer sends one tensor, so the stash spans STASH layers. The losses of routers also send few.
    - Any other layer sends more tensors than the stash holds, so a neighbour frees its blocks.
    - With every n-th layer checkpointed, the layer before the last may be a checkpointed one, and the first two layers
      differ from those that follow: three layers.
    """
    if not candidate.activation_offloading or (candidate.checkpointing == "off" and not scores_routers):
        return 1
    if candidate.checkpointing == "every_n" and candidate.every_n_layers > 1 and not scores_routers:
        return 3
    return STASH + 1


class _Stream:
    """A stream that does nothing: the traced kernels run in order."""

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self) -> None: ...

    def synchronize(self) -> None: ...


_DEVICE = SimpleNamespace(
    Stream=_Stream, current_stream=_Stream, stream=contextlib.nullcontext, empty_cache=lambda: None
)


class _HostTensor:
    """A tensor in pinned host memory."""

    def __init__(self, tensor: torch.Tensor, recorder: Recorder) -> None:
        self.tensor = tensor
        if (place := recorder.block_of(tensor)) is not None:
            recorder.made[place].owner = OFFLOADED

    def copy_(self, tensor: torch.Tensor, non_blocking: bool) -> None:
        """Sending does nothing: the tensor has no data."""

    def to(self, device: str, non_blocking: bool) -> torch.Tensor:
        """Bring the tensor back to the device: a new allocation."""
        return self.tensor.clone()


class _Torch:
    """Torch as TRL's hooks see it, with pinned tensors that are recorded as the host's."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty_like(self, like: torch.Tensor, **_: Any) -> _HostTensor:
        return _HostTensor(torch.empty_like(like), self.recorder)

    def empty(self, size: int, *, dtype: torch.dtype, **_: Any) -> _HostTensor:
        return _HostTensor(torch.empty(size, dtype=dtype), self.recorder)


@contextlib.contextmanager
def offloading_traced(trainer: Any, recorder: Recorder) -> Iterator[None]:
    """Let a trainer offload activations inside this context."""
    with (
        patch.object(torch.UntypedStorage, "data_ptr", lambda storage: recorder.address_of(storage)),
        patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None),
        patch.object(activation_offloading, "torch", _Torch(recorder)),
    ):
        with (
            patch.object(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cpu")),
            patch.object(torch, "get_device_module", lambda kind: _DEVICE),
        ):
            # TRL keeps tensors below 1 KiB on the device. A trace must not depend on the shape, so it sends all.
            trainer.maybe_activation_offload_context = activation_offloading.get_act_offloading_ctx_manager(
                trainer.model, min_offload_size=0
            )
        yield
