"""GPU specifications: published figures of a GPU, for predictions without it.

The catalogue's entries (conf/hardware/) have this form, each with its sources. Leaves out how fast a GPU really is: a
probe measures that (hardware.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.core.decode import decode
from autotune.core.hardware import Hardware, Peaks, RateDtype
from autotune.core.units import GIB, MIB
from autotune.errors import UsageError

# Device memory of a process outside torch's allocator, where nobody has measured it. A context grows with the number of
# multiprocessors and with the kernels that are loaded: 141 MiB on a T4 (40 multiprocessors), about 0.5 GB on an A100
# (108).
UNKNOWN_CONTEXT_BYTES = 640 * MIB

# Compute capabilities with so little shared memory that flash attention has no backward for head widths of 193 to 224,
# nor for wider heads with dropout (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp,
# check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120).
LITTLE_SHARED_MEMORY = frozenset({(8, 6), (8, 7), (8, 9), (12, 0), (12, 1)})

# Widest heads of cuDNN's attention, by the major compute capability of the GPUs on which torch prefers it to any other
# (the same file of torch 2.13, check_prefer_cudnn_attention and check_cudnn_tensor_shapes).
CUDNN_WIDTHS = {9: 256, 10: 128}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """The published figures of one GPU. None: unknown, or the GPU has no such thing.

    memory_gib: torch's `total_memory` where memory_is_reported, else as marketed.
    sm_count: multiprocessors. Only a test reads it, for the bound that trace/hub_kernels.py relies on.
    interconnect_gb_s: of its link to other GPUs. Nothing reads it yet: it is kept for training on several GPUs.
    fp32_tflops and the like: peaks of dense products with fp32 accumulation.
    sustained_tflops: the fastest long product of 16-bit numbers that anybody has published.
    sources: of the figures.
    """

    name: str
    compute_capability: str
    memory_gib: float
    memory_is_reported: bool
    bandwidth_gb_s: float
    sm_count: int
    sources: tuple[str, ...]
    context_mib: int | None = None
    fp32_tflops: float | None = None
    tf32_tflops: float | None = None
    fp16_tflops: float | None = None
    bf16_tflops: float | None = None
    sustained_tflops: float | None = None
    interconnect_gb_s: float | None = None

    @property
    def capability(self) -> tuple[int, int]:
        """Major and minor number."""
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor)

    @property
    def workspace_bytes(self) -> int:
        """Bytes that cuBLAS takes from torch's allocator: one workspace for the forward and one for the backward
        thread.

        8 MiB and 128 KiB each (`:4096:2:16:8`), 32 MiB on Hopper and Blackwell (aten/src/ATen/cuda/
        CublasHandlePool.cpp, `parseChosenWorkspaceSize`, torch 2.13: majors 9, 10 and 12). cuBLASLt shares them.
        """
        return 2 * (32 * MIB if self.capability[0] in (9, 10, 12) else 2 * 4 * MIB + 8 * 16 * 1024)

    def hardware(self, *, cores: int) -> Hardware:
        """Make the hardware of a machine with this GPU, unused and with unknown host memory. cores: of its CPU."""
        memory = int(self.memory_gib * GIB)
        return Hardware(
            kind="cuda",
            name=self.name,
            uuid="catalogue",
            memory_bytes=memory,
            free_bytes=memory,
            used_by_others_bytes=0,
            cores=cores,
            host_memory_bytes=None,
            host_free_bytes=None,
            supports_bf16=self.bf16_tflops is not None,
            supports_tf32=self.tf32_tflops is not None,
            compute_capability=self.capability,
            context_bytes=UNKNOWN_CONTEXT_BYTES if self.context_mib is None else self.context_mib * MIB,
            workspace_bytes=self.workspace_bytes,
            peaks=self.peaks,
        )

    @property
    def peaks(self) -> Peaks:
        """The published speeds."""
        tflops: dict[RateDtype, float | None] = {
            "float32": self.fp32_tflops,
            "tf32": self.tf32_tflops,
            "float16": self.fp16_tflops,
            "bfloat16": self.bf16_tflops,
        }
        return Peaks(
            bandwidth_gb_s=self.bandwidth_gb_s,
            tflops={dtype: peak for dtype, peak in tflops.items() if peak is not None},
            sustained_tflops=self.sustained_tflops,
        )


def read_gpu_spec(values: Mapping[str, Any], *, where: str = "hardware.gpu") -> GpuSpec:
    """Read a specification. Raises UsageError listing all that is wrong, each with its place."""
    spec = decode(values, GpuSpec, where=where, least={})
    major, _, minor = spec.compute_capability.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise UsageError(f"{where}.compute_capability: got {spec.compute_capability!r}, expected as in '8.0'")
    return spec
