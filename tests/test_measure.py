"""What only a GPU would do, with torch's own functions faked."""

from types import SimpleNamespace

import pytest
import torch

from autotune.measure import limit_allocator


def test_a_smaller_gpu_is_imitated_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a share of the device, never more than all of it, and a task without one has the whole device."""
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for limit in (250, 4000, None):
        limit_allocator(limit)
    assert shares == [0.25, 1.0, 1.0]
