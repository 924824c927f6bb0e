"""Choose the GPU that a probe measures, and say why torch cannot use one.

Asks NVML and reads torch's own version file. It does not import torch: a CUDA context in this process would take
memory from every trial. Leaves out the questions to NVML (nvml.py) and the measuring (process.py).
"""

import importlib.util
import os
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autotune.machine import nvml
from autotune.machine.nvml import Gpu, NoGpu


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchBuild:
    """What the installed torch was built for; cuda: (major, minor), None for a build without CUDA."""

    version: str
    cuda: tuple[int, int] | None


def read_torch_build() -> TorchBuild:
    """Read torch/version.py, which imports nothing."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    values = runpy.run_path(str(Path(found.origin).parent / "version.py"))
    cuda = values.get("cuda")
    major, _, minor = (cuda or "0.0").partition(".")
    return TorchBuild(version=values["__version__"], cuda=(int(major), int(minor)) if cuda else None)


def find_gpus(*, progress: Callable[[str], None]) -> tuple[Gpu, ...]:
    """List the GPUs that this process may use. The first is measured; without any, the CPU is.

    `progress` gets the reason why a GPU is not used. Raises AutotuneError for a GPU that should work and does not.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        gpus = nvml.read_gpus(visible)
    except NoGpu as no_gpu:
        progress(f"no GPU: {no_gpu}; using the CPU")
        return ()
    if (reason := _unusable(gpus[0], read_torch_build())) is not None:
        progress(f"{gpus[0].name} cannot be used: {reason}; using the CPU")
        return ()
    if len(gpus) > 1:
        others = ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in gpus[1:])
        progress(f"{len(gpus)} GPUs, one is used: {gpus[0].name} ({gpus[0].uuid}); not used: {others}")
    if _order_matters(gpus, visible):
        progress(
            "the GPUs differ: their indices count in PCI order, as in nvidia-smi and with CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    return gpus


def _unusable(gpu: Gpu, torch: TorchBuild) -> str | None:
    """Say why torch cannot use the GPU; None when it can.

    A driver works with all CUDA versions of its own major version (CUDA compatibility guide, minor version
    compatibility).
    """
    if torch.cuda is None:
        return f"torch {torch.version} is built without CUDA: install a CUDA build (https://pytorch.org/get-started)"
    if gpu.cuda_driver is not None and gpu.cuda_driver[0] < torch.cuda[0]:
        return (
            f"its driver {gpu.driver or ''} is too old, made for CUDA {_dotted(gpu.cuda_driver)} while "
            f"torch {torch.version} is built for CUDA {_dotted(torch.cuda)}: update the driver, or install a torch "
            "that is built for the older CUDA"
        )
    return None


def _order_matters(gpus: tuple[Gpu, ...], visible: str | None) -> bool:
    """Whether an index may name another GPU here than for CUDA, which by default counts the fastest GPU first."""
    in_pci_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    by_uuid = visible is not None and visible.startswith(("GPU-", "MIG-"))
    return not in_pci_order and not by_uuid and len({gpu.name for gpu in gpus}) > 1


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
