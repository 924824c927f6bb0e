"""The operations of a training step that a probe times, as functions on one device.

Products, attention, bitsandbytes' layers, copies and transfers. The device comes in as a `ProbedDevice`, so the code
that runs on a GPU also runs on a CPU. Leaves out when and how often they run (rates.py). Symbols as in
core/hardware.py.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.core.hardware import Device, RateDtype, What, amount_of

if TYPE_CHECKING:
    import torch

CPU_REPEAT_S, CUDA_REPEAT_S = 0.03, 0.02  # one repeat of one rate
INT8_THRESHOLD = 6.0  # transformers' BitsAndBytesConfig.llm_int8_threshold

# (M, N, K). Squares show where the curve saturates. The others are layers of SmolLM2-135M and of an 8B model: up and
# down projections, a part of the head, and a LoRA factor of rank 16.
CPU_SQUARES = (128, 256, 512, 1024, 2048)
CPU_LAYERS = ((512, 1536, 576), (512, 576, 1536), (2048, 1536, 576), (512, 8192, 576), (512, 16, 576))
CUDA_SQUARES = (256, 512, 1024, 2048, 4096, 8192)
CUDA_LAYERS = (
    (4096, 14336, 4096),
    (4096, 4096, 14336),
    (1024, 4096, 4096),
    (4096, 1024, 4096),
    (2048, 1536, 576),
    (4096, 32768, 4096),
    (4096, 16, 4096),
)
CPU_ATTENTION = ((4, 9, 128, 64), (1, 9, 512, 64), (4, 9, 512, 64), (1, 9, 2048, 64))  # (B, H, S, D)
CUDA_ATTENTION = ((4, 9, 512, 64), (8, 32, 512, 128), (1, 32, 2048, 128), (4, 32, 2048, 128), (1, 32, 8192, 128))
# Not measured with a mask: other shapes say enough about masks, or the mask is too large.
CAUSAL = ((1, 9, 512, 64), (1, 32, 2048, 128), (1, 32, 8192, 128))
# First shapes: M or S grows with every call, so oneDNN has to make a new kernel each time.
CPU_FIRST = ((1000, 256, 256), (1000, 1536, 576))
CPU_FIRST_ATTENTION = ((4, 4, 150, 64), (1, 4, 1100, 64))
KERNELS, KERNELS_SIDE = 1200, 64  # small products, of more shapes than oneDNN keeps (ONEDNN_PRIMITIVE_CACHE_CAPACITY)
CHAIN = 30  # forward operators: ten times a linear layer, an activation and an addition, and then a small copy
CHAIN_SIDE = 8  # sides of its tensors: small, so that only Python and the launches take time
SCALE_BLOCK = 256  # states that share a scale (bitsandbytes 0.50.2: optim/optimizer.py)
CPU_STREAMS = (2**18, 2**22, 2**25)  # elements: 1 MiB to 128 MiB of fp32
CUDA_STREAMS = (2**20, 2**24, 2**27)
CUDA_TRANSFERS = (2**20, 2**26, 2**28)  # bytes

Timer = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One operation to be timed, before it has a rate."""

    what: What
    dtype: RateDtype
    shape: tuple[int, ...]

    @property
    def amount(self) -> int:
        return amount_of(self.what, self.shape, self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedDevice:
    """A device under measurement.

    device: torch's name. time: calls a function a number of times and returns the seconds until the device is done.
    repeat_s: how long one repeat should last. limit_bytes: most memory for the tensors of one operation.
    pin: moves a host tensor into memory that the device can read directly.
    """

    device: str
    time: Timer
    repeat_s: float
    limit_bytes: int
    pin: Callable[["torch.Tensor"], "torch.Tensor"]


def list_points(kind: Device, *, tf32: bool = False) -> tuple[Point, ...]:
    """List the points that are worth timing on a kind of device, each curve in ascending order of work.

    No CPU trains in fp16 or tf32. The bf16 curves of a GPU that has no bf16 show what emulation costs.
    """
    cuda = kind == "cuda"
    dtypes: tuple[RateDtype, ...] = ("bfloat16", "float16", "float32") if cuda else ("bfloat16", "float32")
    points: list[Point] = []

    def add(whats: Sequence[What], dtypes: Sequence[RateDtype], shapes: Sequence[tuple[int, ...]]) -> None:
        points.extend(Point(what=w, dtype=d, shape=s) for s in shapes for d in dtypes for w in whats)

    layers = CUDA_LAYERS if cuda else CPU_LAYERS
    quantized = (CUDA_LAYERS[0], CUDA_LAYERS[2]) if cuda else CPU_LAYERS[:1]
    products: tuple[RateDtype, ...] = (*dtypes, "tf32") if tf32 else dtypes
    add(("matmul",), products, [(side,) * 3 for side in (CUDA_SQUARES if cuda else CPU_SQUARES)])
    add(("matmul", "matmul_grad_input", "matmul_grad_weight"), products, layers)
    attention: tuple[What, ...] = ("attention_forward", "attention_forward_backward")
    masked: tuple[What, ...] = ("masked_attention_forward", "masked_attention_forward_backward")
    shapes = CUDA_ATTENTION if cuda else CPU_ATTENTION
    add(attention, dtypes, shapes)
    add(masked, dtypes, [shape for shape in shapes if shape not in CAUSAL])
    add(("nf4_matmul", "int8_matmul"), dtypes[:2], quantized)
    add(("nf4_dequantize", "int8_dequantize"), dtypes[:2], [shape[1:] for shape in quantized[:1]])
    add(("copy",), ("float32",), [(n,) for n in (CUDA_STREAMS if cuda else CPU_STREAMS)])
    add(("add",), ("float32", "bfloat16"), [(n,) for n in (CUDA_STREAMS if cuda else CPU_STREAMS)])
    if not cuda:
        add(("blockwise_quantize", "blockwise_dequantize"), ("float32",), [(n,) for n in CPU_STREAMS])
        add(("first_matmul",), dtypes, CPU_FIRST)
        add(("first_attention",), dtypes, CPU_FIRST_ATTENTION)
        add(("eager_operators", "checkpointed_operators", "selective_operators"), ("float32",), [(CHAIN,)])
    if cuda:
        add(("host_to_device_pinned", "host_to_device_pageable"), ("uint8",), [(n,) for n in CUDA_TRANSFERS])
        add(("device_to_host_pinned", "device_to_host_pageable"), ("uint8",), [(n,) for n in CUDA_TRANSFERS])
    return tuple(sorted(points, key=lambda point: point.amount))


def probed_cpu(limit_bytes: int) -> ProbedDevice:
    """The CPU, timed by the clock of this process."""

    def seconds(call: Callable[[], object], count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            call()
        return time.perf_counter() - started

    return ProbedDevice(
        device="cpu", time=seconds, repeat_s=CPU_REPEAT_S, limit_bytes=limit_bytes, pin=lambda tensor: tensor
    )


def probed_cuda(limit_bytes: int) -> ProbedDevice:
    """The only CUDA device that this process sees, timed by its own events."""
    import torch

    def seconds(call: Callable[[], object], count: int) -> float:
        event: Callable[..., Any] = torch.cuda.Event  # untyped in torch 2.13
        start, end = event(enable_timing=True), event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000  # milliseconds

    return ProbedDevice(
        device="cuda",
        time=seconds,
        repeat_s=CUDA_REPEAT_S,
        limit_bytes=limit_bytes,
        pin=lambda tensor: tensor.pin_memory(),
    )


def largest_bytes(point: Point) -> int:
    """Count the bytes of an operation's tensors in fp32, whatever its dtype: quantized weights are made from fp32."""
    if "attention" in point.what:
        return 10 * 4 * math.prod(point.shape)  # q, k, v, the result, their gradients, and what is saved
    if len(point.shape) == 3:
        m, n, k = point.shape
        return 4 * (m * n + n * k + m * k)
    return 3 * 4 * math.prod(point.shape)


class Operations:
    """Makes the functions that are timed. Their tensors are views of a few random buffers that all of them share.

    The buffers are random because a GPU draws less power on zeros, and so runs faster. Products and streams take the
    next part of a buffer at each call, because an operator of a training step does not find its operands in the nearest
    cache.
    """

    def __init__(self, probed: ProbedDevice) -> None:
        self._probed = probed
        walked = (CPU_STREAMS if probed.device == "cpu" else CUDA_STREAMS)[-1]
        self._walked = min(walked, probed.limit_bytes // (3 * 4))  # elements, of which an operation has three tensors
        self._buffers: dict[tuple[str, str], torch.Tensor] = {}
        self._kernel_cache_is_full = False

    def prepare(self, point: Point) -> Callable[[], object]:
        """Make the function that does the point's work once. Raises what torch or bitsandbytes raise."""
        if point.what.startswith("first"):
            self._fill_kernel_cache()
            return self._first_product(point) if point.what == "first_matmul" else self._first_attention(point)
        if "attention" in point.what:
            return self._attention(point)
        if point.what.endswith("operators"):
            return self._chain(point)
        if point.what.startswith(("nf4", "int8")):
            return self._quantized(point)
        if point.what.startswith("blockwise"):
            return self._blockwise(point)
        if point.what.startswith(("host_to", "device_to")):
            return self._transfer(point)
        if point.what in ("copy", "add"):
            return self._stream(point)
        return self._product(point)

    def launch(self) -> Callable[[], object]:
        """Make a function that runs one small operator. Nearly all of its time goes into the launch."""
        tiny = self._tensor("tiny", "float32", 1)
        return lambda: tiny.add_(1.0)

    def _product(self, point: Point) -> Callable[[], object]:
        import torch

        m, n, k = point.shape
        x, w = self._walk("x", point.dtype, m, k), self._walk("w", point.dtype, n, k)
        dy = self._walk("y", point.dtype, m, n)
        if point.what == "matmul":
            return lambda: torch.mm(x(), w().t(), out=dy())
        if point.what == "matmul_grad_input":
            dx = self._walk("out", point.dtype, m, k)
            return lambda: torch.mm(dy(), w(), out=dx())
        dw = self._walk("out", point.dtype, n, k)
        return lambda: torch.mm(dy().t(), x(), out=dw())

    def _fill_kernel_cache(self) -> None:
        """Fill oneDNN's cache of kernels, so that each new kernel has to replace another one.

        That is slower, and it is the state of a training soon after its beginning. Done once in a process, because it
        takes 1.4 s on two cores.
        """
        import torch

        if self._kernel_cache_is_full:
            return
        w = self._tensor("w", "bfloat16", KERNELS_SIDE, KERNELS_SIDE)
        for rows in range(KERNELS):
            torch.mm(self._tensor("x", "bfloat16", rows + 1, KERNELS_SIDE), w)
        self._kernel_cache_is_full = True

    def _first_product(self, point: Point) -> Callable[[], object]:
        """Make the products of a layer, forward and backward in turn, with more rows at each call."""
        import torch

        m, n, k = point.shape
        w, dw = self._tensor("w", point.dtype, n, k), self._tensor("out", point.dtype, n, k)
        calls = itertools.count()

        def run() -> "torch.Tensor":
            call = next(calls)
            rows = m + call
            x, dy = self._tensor("x", point.dtype, rows, k), self._tensor("y", point.dtype, rows, n)
            if call % 3 == 0:
                return torch.mm(x, w.t(), out=dy)
            return torch.mm(dy, w, out=x) if call % 3 == 1 else torch.mm(dy.t(), x, out=dw)

        return run

    def _first_attention(self, point: Point) -> Callable[[], object]:
        B, H, S, D = point.shape
        calls = itertools.count()
        return lambda: self._attention(replace(point, shape=(B, H, S + next(calls), D)))()

    def _chain(self, point: Point) -> Callable[[], object]:
        import torch
        from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

        linear = torch.nn.Linear(CHAIN_SIDE, CHAIN_SIDE, bias=False, device=self._probed.device)
        activation = torch.nn.SiLU()
        x = torch.randn(1, CHAIN_SIDE, CHAIN_SIDE, device=self._probed.device, requires_grad=True)

        stream = self._stream(Point(what="copy", dtype="float32", shape=CPU_STREAMS[:1]))

        def fade(_: Any) -> None:
            stream()  # as a step's tensors do, it pushes the data of Python and torch out of the nearest caches

        def chain(y: "torch.Tensor") -> "torch.Tensor":
            for _ in range(CHAIN // 3):
                y = activation(linear(y)) + y
                fade(y)
                y.register_hook(fade)  # type: ignore[no-untyped-call]  # of torch 2.13
            return y

        def recompute(*_: Any, **__: Any) -> CheckpointPolicy:
            return CheckpointPolicy.PREFER_RECOMPUTE

        policy: dict[str, Any] = {}
        if point.what == "selective_operators":
            contexts: Callable[..., Any] = create_selective_checkpoint_contexts  # untyped in torch 2.13
            policy["context_fn"] = lambda: contexts(recompute)

        def run() -> "torch.Tensor":
            eager = point.what == "eager_operators"
            y = chain(x) if eager else checkpoint(chain, x, use_reentrant=False, **policy)
            return torch.autograd.grad(y.sum(), x)[0]

        return run

    def _attention(self, point: Point) -> Callable[[], object]:
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        q, k, v = (self._tensor(name, point.dtype, *point.shape).detach().requires_grad_() for name in "qkv")
        gradient = self._tensor("out", point.dtype, *point.shape)
        mask = self._padding(point.shape[0], point.shape[2]) if point.what.startswith("masked") else None

        def forward() -> "torch.Tensor":
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

        if point.what.endswith("forward"):
            return forward
        return lambda: torch.autograd.grad(forward(), (q, k, v), gradient)

    def _padding(self, B: int, S: int) -> "torch.Tensor":
        """Make a causal model's mask of padded rows, (B, 1, S, S). The last row is half as long as the first."""
        import torch

        places = torch.arange(S, device=self._probed.device)
        lengths = torch.linspace(S, S // 2, B, device=self._probed.device).long()
        causal = places[None, :] <= places[:, None]
        return (causal & (places[None, None, :] < lengths[:, None, None]))[:, None]

    def _quantized(self, point: Point) -> Callable[[], object]:
        """As in training: the input requires a gradient, and the weight is frozen."""
        import torch

        *m, n, k = point.shape
        quantization = point.what.split("_")[0]
        layer = self._layer(quantization, point.dtype, n, k)
        if point.what.endswith("matmul"):
            x = self._tensor("x", point.dtype, *m, k).detach().requires_grad_()
            return lambda: layer(x)
        if quantization == "nf4":
            from bitsandbytes.functional import dequantize_4bit

            return lambda: dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        dtype = getattr(torch, point.dtype)
        weight, scale = layer.weight.CB, layer.weight.SCB
        # bitsandbytes 0.50's MatMul8bitLt.backward; training never calls its int8_vectorwise_dequant
        return lambda: weight.to(dtype, copy=True).mul_(scale.unsqueeze(1).mul(1.0 / 127.0))

    def _layer(self, quantization: str, dtype: RateDtype, n: int, k: int) -> Any:
        import bitsandbytes
        import torch

        if quantization == "nf4":
            layer: Any = bitsandbytes.nn.Linear4bit(
                k, n, bias=False, quant_type="nf4", compress_statistics=True, compute_dtype=getattr(torch, dtype)
            )
        else:
            layer = bitsandbytes.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=INT8_THRESHOLD)
        return layer.to(getattr(torch, dtype)).to(self._probed.device)  # moving quantizes

    def _blockwise(self, point: Point) -> Callable[[], object]:
        """Quantize other numbers at each call, as a step does. Dequantize the same ones: their bytes are a fifth."""
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        states = self._walk("x", point.dtype, *point.shape)
        if point.what == "blockwise_quantize":
            return lambda: quantize_blockwise(states(), blocksize=SCALE_BLOCK)
        quantized, scales = quantize_blockwise(states(), blocksize=SCALE_BLOCK)
        return lambda: dequantize_blockwise(quantized, scales)

    def _stream(self, point: Point) -> Callable[[], object]:
        import torch

        a, b, out = (self._walk(name, point.dtype, *point.shape) for name in ("x", "w", "out"))
        return (lambda: out().copy_(a())) if point.what == "copy" else (lambda: torch.add(a(), b(), out=out()))

    def _transfer(self, point: Point) -> Callable[[], object]:
        import torch

        host = torch.ones(point.shape, dtype=torch.uint8)  # written once, so that its pages exist
        pinned = point.what.endswith("pinned")
        if pinned:
            host = self._probed.pin(host)
        device = torch.ones(point.shape, dtype=torch.uint8, device=self._probed.device)
        if point.what.startswith("host"):
            return lambda: device.copy_(host, non_blocking=pinned)
        return lambda: host.copy_(device, non_blocking=pinned)

    def _walk(self, name: str, dtype: RateDtype, *shape: int) -> "Callable[[], torch.Tensor]":
        """Make a function that returns a tensor of this shape, at each call from the next place of its buffer."""
        size = math.prod(shape)
        count = max(1, self._walked // size)
        places = itertools.cycle(self._tensor(name, dtype, count, *shape).unbind())
        return lambda: next(places)

    def _tensor(self, name: str, dtype: RateDtype, *shape: int) -> "torch.Tensor":
        import torch

        size, key = math.prod(shape), (name, "float32" if dtype == "tf32" else dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = torch.randn(size, dtype=getattr(torch, key[1]), device=self._probed.device)
            self._buffers[key] = buffer
        return buffer[:size].view(shape)
