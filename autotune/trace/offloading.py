"""Activation offloading on tensors that have neither data nor a GPU: TRL's own hooks, with streams that do nothing.

What they send to the host stays on record as the host's, and what they bring back is allocated anew. trl 1.16.
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

STASH = 5  # tensors on their way to the host that TRL keeps on the device: its `max_fwd_stash_size`


def reach(candidate: Candidate, *, scores_routers: bool) -> int:
    """How many layers from one that frees a block to the one that made it.

    Of a layer that is checkpointed one tensor is sent to the host, so a stash is spread over many; of any other more
    than a stash holds. Where every n-th is checkpointed the one before the last may have been, and the first two layers
    are unlike those that follow. Of the losses of routers, one a layer, few are sent as well.
    """
    if not candidate.activation_offloading or (candidate.checkpointing == "off" and not scores_routers):
        return 1
    if candidate.checkpointing == "every_n" and candidate.every_n_layers > 1 and not scores_routers:
        return 3
    return STASH + 1


class _Stream:
    """Kernels run in order anyway."""

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
        """What is sent has no data."""

    def to(self, device: str, non_blocking: bool) -> torch.Tensor:
        """The tensor as it is brought back, on the device."""
        return self.tensor.clone()


class _Torch:
    """Torch as TRL's hooks see it: its pinned tensors are the host's."""

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
    """Let a trainer offload activations while this is on."""
    with (
        patch.object(torch.UntypedStorage, "data_ptr", lambda storage: recorder.address_of(storage)),
        patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None),
        patch.object(activation_offloading, "torch", _Torch(recorder)),
    ):
        with (
            patch.object(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type="cpu")),
            patch.object(torch, "get_device_module", lambda kind: _DEVICE),
        ):
            # TRL leaves tensors below a kilobyte where they are; here what is done must not depend on the shape.
            trainer.maybe_activation_offload_context = activation_offloading.get_act_offloading_ctx_manager(
                trainer.model, min_offload_size=0
            )
        yield
