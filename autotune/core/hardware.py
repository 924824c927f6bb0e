"""The hardware: what a machine can do, as it was measured: memory, cores, and rates of a training step's operations.

One type for CUDA and CPU. Leaves out the measuring (machine/probe.py).

Symbols: M tokens, K features in, N features out of a linear layer; B rows, H heads, S length, D head width.
A rate is work per second; `amount_of` says what counts as work, so seconds of one operation are work / rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from statistics import median
from typing import Any, Literal

from autotune.core.decode import decode
from autotune.errors import UsageError

Device = Literal["cpu", "cuda"]
What = Literal[
    "matmul",  # y = x w^T, the forward of a linear layer; shape (M, N, K)
    "matmul_grad_input",  # dx = dy w; shape (M, N, K)
    "matmul_grad_weight",  # dw = dy^T x; shape (M, N, K)
    "first_matmul",  # products of about this shape, forward or backward; each has a new shape and needs a new kernel
    "attention_forward",  # causal scaled_dot_product_attention; shape (B, H, S, D)
    "attention_forward_backward",
    "first_attention",  # forward and backward of about this shape; each has a new length
    "masked_attention_forward",  # the same with a mask for padded rows; all pairs of positions are computed
    "masked_attention_forward_backward",
    "nf4_matmul",  # bitsandbytes Linear4bit (nf4, double quantization) in training; shape (M, N, K)
    "int8_matmul",  # bitsandbytes Linear8bitLt in training; shape (M, N, K)
    "nf4_dequantize",  # the whole weight, as the backward does; shape (N, K)
    "int8_dequantize",
    "blockwise_quantize",  # to 8 bits in blocks of 256, as an optimizer's states are; shape (elements,)
    "blockwise_dequantize",
    "eager_operators",  # small modules and copies, forward and backward; shape (forward operators,)
    "checkpointed_operators",  # the same, recomputed in the backward
    "selective_operators",  # the same under a policy that says what to recompute
    "copy",  # b = a; shape (elements,)
    "add",  # c = a + b; shape (elements,)
    "host_to_device_pinned",  # shape (elements,)
    "host_to_device_pageable",
    "device_to_host_pinned",
    "device_to_host_pageable",
]
RateDtype = Literal["float32", "tf32", "bfloat16", "float16", "uint8"]

ITEM_BYTES: Mapping[RateDtype, int] = {"float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
NOISE_LIMIT = 0.10  # above it, a few repeats cannot tell two candidates apart that differ by a tenth
CPU_SHARE_LIMIT = 0.90  # below it, other processes had the cores, and threads waited for each other
LEAST: Mapping[str, float] = {"cores": 1, "memory_bytes": 1, "host_memory_bytes": 1, "per_second": 1e-9}
SLOWDOWNS = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatePoint:
    """One point of a curve: how fast one operation of one size runs.

    per_second: work per second in the median repeat (`amount_of`: FLOP or bytes).
    spread: sample standard deviation of the repeats' seconds as a share of their mean, >= 0.
    """

    what: What
    dtype: RateDtype
    shape: tuple[int, ...]
    per_second: float
    spread: float

    @property
    def unit(self) -> Literal["FLOP", "B", "op"]:
        """The unit of the work."""
        if self.what.endswith("operators"):
            return "op"
        return "FLOP" if "matmul" in self.what or "attention" in self.what else "B"

    @property
    def seconds(self) -> float:
        """Seconds of one such operation."""
        return amount_of(self.what, self.shape, self.dtype) / self.per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerLink:
    """How the device reaches another visible one; None where the driver does not say."""

    uuid: str
    name: str
    nvlink: bool | None
    peer_access: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The published speeds of a device that was not measured.

    bandwidth_gb_s: of its memory. tflops: of dense products by dtype. sustained_tflops: the fastest long product of
    16-bit numbers that anybody has published, None where nobody has.
    """

    bandwidth_gb_s: float
    tflops: Mapping[str, float]
    sustained_tflops: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a machine can do. None: unknown, or without meaning on this kind of device.

    uuid: as CUDA_VISIBLE_DEVICES takes it (a MIG slice has its own); on a CPU a stable id of the machine.
    device_index: the GPU's place in NVML's order (PCI), as nvidia-smi shows it; processes are pinned by `uuid`.
    other_devices: names of further visible GPUs, which are not used.
    supports_bf16, supports_tf32: in the device's own instructions, not emulated.
    memory_bytes: most that one process could get; on a CPU, from the machine and its control groups.
    free_bytes, used_by_others_bytes: at the last look; `reserved_bytes` is what the driver keeps for itself.
    context_bytes: device memory of a process outside torch's allocator, with a training step's kernels loaded.
    workspace_bytes: memory of torch's allocator that cuBLAS takes at the first matrix product.
    cores: CPU cores that affinity and control groups allow; a fraction of a core is rounded up.
    cuda_driver: CUDA version that the driver supports. ecc_errors: uncorrected, since the driver was loaded.
    throttled: clock event reasons seen while measuring, other than idleness.
    launch_s: seconds of one small operator, when many are launched one after another.
    noise: median spread of the rates. cpu_share: share of the cores' time that the products got (CPU only).
    doubts: why the rates are not to be trusted, in words.
    peaks: of a device of the catalogue, which has no rates.
    """

    kind: Device
    name: str
    uuid: str
    memory_bytes: int
    free_bytes: int
    used_by_others_bytes: int
    cores: int
    host_memory_bytes: int | None
    host_free_bytes: int | None
    supports_bf16: bool = False
    supports_tf32: bool = False
    device_index: int | None = None
    other_devices: tuple[str, ...] = ()
    compute_capability: tuple[int, int] | None = None
    reserved_bytes: int | None = None
    context_bytes: int | None = None
    workspace_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    driver: str | None = None
    cuda_driver: str | None = None
    ecc: bool | None = None
    ecc_errors: int | None = None
    mig: bool | None = None
    power_limit_w: float | None = None
    clock_limit_mhz: int | None = None
    memory_clock_limit_mhz: int | None = None
    throttled: tuple[str, ...] | None = None
    peer_links: tuple[PeerLink, ...] = ()
    rates: tuple[RatePoint, ...] = ()
    launch_s: float | None = None
    launch_spread: float | None = None
    noise: float | None = None
    cpu_share: float | None = None
    doubts: tuple[str, ...] = ()
    measured_at: str | None = None
    measured_in_s: float | None = None
    peaks: Peaks | None = None

    @property
    def trustworthy(self) -> bool:
        """Whether the rates were measured, and there is no reason to doubt them."""
        return bool(self.rates) and not self.doubts

    @property
    def is_slow_in_bf16(self) -> bool:
        """Whether a CPU's products took more than twice as long in bf16 as in fp32: it lacks the instructions."""
        bf16, fp32 = (self.best("matmul", dtype) for dtype in ("bfloat16", "float32"))
        if self.kind != "cpu" or bf16 is None or fp32 is None:
            return False
        return 2 * bf16.per_second < fp32.per_second

    def curve(self, what: What, dtype: RateDtype) -> tuple[RatePoint, ...]:
        """The points of one operation in one dtype, by work; empty when it was not measured."""
        points = (point for point in self.rates if point.what == what and point.dtype == dtype)
        return tuple(sorted(points, key=lambda point: amount_of(point.what, point.shape, point.dtype)))

    def best(self, what: What, dtype: RateDtype) -> RatePoint | None:
        """The fastest point of a curve; None when it was not measured."""
        return max(self.curve(what, dtype), key=lambda point: point.per_second, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields; `from_dict` reads them back, also after JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, *, where: str = "hardware") -> "Hardware":
        """Read back what `to_dict` wrote. Raises UsageError listing all that is wrong, each with its place."""
        hardware = decode(values, cls, where=where, least=LEAST)
        if hardware.kind == "cuda" and hardware.compute_capability is None:
            problem = f"{where}.compute_capability: missing, expected a list of 2: it decides which kernels a GPU runs"
            raise UsageError(problem)
        return hardware


def amount_of(what: What, shape: Sequence[int], dtype: RateDtype) -> int:
    """Count the work of one operation, in FLOP, bytes or operators.

    - A product is 2 M N K.
    - Causal attention is half of two products forward, and half of five backward, because it computes the scores again
      (FlashAttention-2, arXiv:2307.08691, section 4.1). With a mask it is the whole of them.
    - A copy reads and writes. An addition reads twice and writes.
    - A transfer or dequantization counts the bytes of its result, a quantization those of its input.
    - A chain of operators counts the forward ones.
    """
    size = prod(shape)
    if what.endswith("operators"):
        return size
    if "attention" in what:
        pairs = shape[2] * (2 if what.startswith("masked") else 1)
        return (2 if what.endswith("forward") else 7) * size * pairs
    if "matmul" in what:
        return 2 * size
    return {"copy": 2, "add": 3}.get(what, 1) * size * ITEM_BYTES[dtype]


def noise_of(rates: Sequence[RatePoint]) -> float | None:
    """The median spread of the rates; None without rates."""
    return median(point.spread for point in rates) if rates else None


def find_doubts(*, noise: float | None, cpu_share: float | None, throttled: Sequence[str] | None) -> tuple[str, ...]:
    """List the reasons to doubt measured rates, each with what to do; empty when there are none."""
    doubts = []
    if noise is not None and noise > NOISE_LIMIT:
        doubts.append(
            f"the rates differ by {noise:.0%} from repeat to repeat (at most {NOISE_LIMIT:.0%} is steady): "
            "stop what else runs on this machine and probe again with refresh=true"
        )
    if cpu_share is not None and cpu_share < CPU_SHARE_LIMIT:
        doubts.append(
            f"other processes took {1 - cpu_share:.0%} of the cores' time during the measurement: "
            "stop them, or allow autotune fewer cores (taskset), and probe again with refresh=true"
        )
    if slow := [reason for reason in throttled or () if reason in SLOWDOWNS]:
        doubts.append(f"the GPU slowed itself down ({', '.join(slow)}): check its cooling and power supply")
    return tuple(doubts)
