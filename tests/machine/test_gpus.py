"""Which device a probe takes: each way in which a GPU cannot be used ends in a clear line and the CPU."""

import sys

import pynvml
import pytest
import torch

from autotune.errors import AutotuneError
from autotune.machine import gpus
from autotune.machine.gpus import TorchBuild, find_gpus, read_torch_build
from tests.fakes_nvml import FakeGpu, FakeNvml

H200, L4 = FakeGpu(uuid="GPU-a"), FakeGpu(uuid="GPU-b", name="NVIDIA L4")


def find(
    monkeypatch: pytest.MonkeyPatch,
    nvml: FakeNvml | None,
    *,
    cuda: tuple[int, int] | None = (13, 0),
    visible: str | None = None,
) -> tuple[list[str], list[str]]:
    """UUIDs of the GPUs found, and the lines of progress."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(gpus, "read_torch_build", lambda: TorchBuild(version="2.13.0", cuda=cuda))
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    lines: list[str] = []
    return [gpu.uuid for gpu in find_gpus(progress=lines.append)], lines


def test_one_gpu_needs_no_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are for what a person did not expect."""
    assert find(monkeypatch, FakeNvml(H200)) == (["GPU-a"], [])


@pytest.mark.parametrize(
    ("nvml", "visible", "line"),
    [
        (None, None, "no GPU: the package nvidia-ml-py is not installed; using the CPU"),
        (FakeNvml(), None, "no GPU: no NVIDIA GPU; using the CPU"),
        (FakeNvml(H200), "", "no GPU: CUDA_VISIBLE_DEVICES='' hides every GPU; using the CPU"),
        (
            FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND),
            None,
            "no GPU: no NVIDIA driver (NVML's library is missing); using the CPU",
        ),
    ],
)
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml | None, visible: str | None, line: str) -> None:
    """One line each, and the CPU."""
    assert find(monkeypatch, nvml, visible=visible) == ([], [line])


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is fine, the installed torch is not: say which one to install."""
    found, (line,) = find(monkeypatch, FakeNvml(H200), cuda=None)
    assert found == []
    assert line.startswith("NVIDIA H200 cannot be used: torch 2.13.0 is built without CUDA: install a CUDA build")


@pytest.mark.parametrize(("driver", "usable"), [(11040, False), (12090, False), (13000, True), (13020, True)])
def test_a_driver_too_old_for_torch(monkeypatch: pytest.MonkeyPatch, driver: int, usable: bool) -> None:
    """Majors must match or exceed; within a major every driver will do."""
    found, lines = find(monkeypatch, FakeNvml(H200, cuda_driver=driver))
    assert found == (["GPU-a"] if usable else [])
    if not usable:
        (line,) = lines
        assert f"made for CUDA {driver // 1000}.{driver % 1000 // 10}" in line
        assert "torch 2.13.0 is built for CUDA 13.0: update the driver" in line


def test_a_lost_gpu_is_no_reason_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search on the CPU would answer another question than was asked."""
    with pytest.raises(AutotuneError, match="GPU is lost"):
        find(monkeypatch, FakeNvml(FakeGpu(error=pynvml.NVML_ERROR_GPU_IS_LOST)))


def test_one_of_several_is_used_and_the_others_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where they differ, it is said in which order an index counts."""
    found, lines = find(monkeypatch, FakeNvml(H200, L4))
    assert found == ["GPU-a", "GPU-b"]
    assert lines[0] == "2 GPUs, one is used: NVIDIA H200 (GPU-a); not used: NVIDIA L4 (GPU-b)"
    assert "PCI order" in lines[1]
    assert find(monkeypatch, FakeNvml(H200, L4), visible="GPU-b") == (["GPU-b"], [])


def test_the_installed_torch() -> None:
    """The version file says what torch itself says, and reading it imports nothing of it."""
    build = read_torch_build()
    assert build.version == torch.__version__
    assert build.cuda == (tuple(map(int, torch.version.cuda.split("."))) if torch.version.cuda else None)
