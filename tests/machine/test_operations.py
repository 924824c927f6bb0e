"""The operations that a probe times, run for real on the CPU in small sizes: the same code measures a GPU."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autotune.core.hardware import RateDtype, What
from autotune.machine.operations import (
    Operations,
    Point,
    ProbedDevice,
    largest_bytes,
    list_points,
    probed_cpu,
    probed_cuda,
)

SMALL = {2: (64, 128), 3: (8, 64, 128), 1: (1000,)}
THREE_TENSORS = 3 * 4  # bytes of one element in fp32, of three tensors: how `limit_bytes` is counted


@pytest.fixture(scope="module")
def operations() -> Operations:
    """Operations on buffers of 4 MiB. One for all tests: filling the cache of kernels takes more than a second."""
    return Operations(probed_cpu(2**22))


def small(what: What, dtype: RateDtype) -> Point:
    dimensions = 3 if "matmul" in what else 2 if what in ("nf4_dequantize", "int8_dequantize") else 1
    shape = (2, 3, 16, 8) if "attention" in what else SMALL[dimensions]
    return Point(what=what, dtype=dtype, shape=shape)


class Noted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run inside, with their arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, Sequence[Any], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((str(func), args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def arguments(self, name: str) -> Sequence[Any]:
        """The arguments of the only operator of this name."""
        [arguments] = [args for called, args, _ in self.calls if called == name]
        return arguments


@pytest.mark.parametrize("what", get_args(What))
def test_every_operation_runs(operations: Operations, what: What) -> None:
    """Each kind of rate in bf16 (transfers in bytes), on the device that is probed."""
    transfer = what.startswith(("host_to", "device_to"))
    result = operations.prepare(small(what, "uint8" if transfer else "bfloat16"))()
    found = result[0] if isinstance(result, tuple) else result
    assert isinstance(found, torch.Tensor)
    assert torch.isfinite(found.float()).all()


@pytest.mark.parametrize(
    ("what", "left", "right"),
    [
        ("matmul", ((4, 8), (8, 1)), ((8, 6), (1, 8))),  # x w^T
        ("matmul_grad_input", ((4, 6), (6, 1)), ((6, 8), (8, 1))),  # dy w
        ("matmul_grad_weight", ((6, 4), (1, 6)), ((4, 8), (8, 1))),  # dy^T x
    ],
)
def test_the_three_products_of_a_layer(operations: Operations, what: What, left: Any, right: Any) -> None:
    """Shapes and strides are those of x (4, 8), w (6, 8) and dy (4, 6) in training: layouts have rates of their own."""
    work = operations.prepare(Point(what=what, dtype="float32", shape=(4, 6, 8)))
    with Noted() as noted:
        work()
    found = [(tuple(tensor.shape), tensor.stride()) for tensor in noted.arguments("aten.mm.out")]
    assert found == [left, right]


@pytest.mark.parametrize(
    ("what", "reads", "bits"),
    [("nf4_dequantize", "bitsandbytes.dequantize_4bit.default", 4), ("int8_dequantize", "aten._to_copy.default", 8)],
)
def test_a_weight_is_quantized_and_comes_back_whole(operations: Operations, what: What, reads: str, bits: int) -> None:
    """What is timed reads 4 or 8 bits of each element, and makes a weight of the layer's shape and dtype."""
    work = operations.prepare(Point(what=what, dtype="bfloat16", shape=(64, 128)))
    with Noted() as noted:
        weight = work()
    assert isinstance(weight, torch.Tensor)
    assert (weight.shape, weight.dtype) == ((64, 128), torch.bfloat16)
    assert 8 * noted.arguments(reads)[0].nbytes == bits * weight.numel()


def test_a_quantized_product_wants_the_input_s_gradient(operations: Operations) -> None:
    """As in training: without it bitsandbytes takes its inference kernels."""
    result = operations.prepare(small("nf4_matmul", "float32"))()
    assert isinstance(result, torch.Tensor)
    assert result.requires_grad


def test_numbers_to_eight_bits_and_back() -> None:
    """In blocks of 256, each with its scale, which bound the error: the largest of 256 values are 1 % apart or more."""
    operations = Operations(probed_cpu(1000 * THREE_TENSORS))  # room for one place: every call takes the same numbers
    quantize, dequantize = (
        operations.prepare(Point(what=what, dtype="float32", shape=(1000,)))
        for what in ("blockwise_quantize", "blockwise_dequantize")
    )
    with Noted() as noted:
        result: Any = quantize()
    numbers, (quantized, state) = noted.arguments("bitsandbytes.quantize_blockwise.default")[0], result
    restored = dequantize()
    assert isinstance(restored, torch.Tensor)
    assert (quantized.dtype, len(state.absmax)) == (torch.uint8, 4)
    assert restored.dtype == torch.float32
    torch.testing.assert_close(restored, numbers, rtol=0, atol=0.02 * float(numbers.abs().max()))


def test_what_a_gpu_is_asked() -> None:
    """Everything that the issue names, tf32 only where the device has it, each curve from small to large."""
    points = list_points("cuda", tf32=True)
    of_a_cpu = {
        what for what in get_args(What) if what.startswith(("first", "blockwise")) or what.endswith("operators")
    }
    assert {point.what for point in points} == set(get_args(What)) - of_a_cpu
    assert {p.dtype for p in points if p.what == "matmul"} == {"bfloat16", "float16", "float32", "tf32"}
    assert not any(point.dtype == "tf32" for point in list_points("cuda"))
    assert [point.amount for point in points] == sorted(point.amount for point in points)
    assert len({(p.what, p.dtype, p.shape) for p in points}) == len(points)


def test_what_a_cpu_is_asked() -> None:
    """bf16 against fp32, and nothing that only a second memory could answer."""
    points = list_points("cpu")
    assert {point.dtype for point in points} == {"bfloat16", "float32"}
    assert not any(point.what.startswith(("host_to", "device_to")) for point in points)
    of_its_own = {
        "first_matmul",
        "first_attention",
        "selective_operators",
        "blockwise_quantize",
        "blockwise_dequantize",
    }
    assert of_its_own <= {point.what for point in points}


def test_a_first_product_has_a_new_shape_each_time(operations: Operations) -> None:
    """Else the kernel of the call before would do."""
    work = operations.prepare(Point(what="first_matmul", dtype="float32", shape=(5, 3, 4)))
    shapes = [tuple(result.shape) for result in (work() for _ in range(6)) if isinstance(result, torch.Tensor)]
    assert shapes == [(5, 3), (6, 4), (3, 4), (8, 3), (9, 4), (3, 4)]  # y, dx and dw in turn


def test_a_mask_hides_what_comes_later_and_what_is_padding(operations: Operations) -> None:
    """Of two rows of four positions the second is half padding."""
    work = operations.prepare(Point(what="masked_attention_forward", dtype="float32", shape=(2, 3, 4, 8)))
    with Noted() as noted:
        work()
    mask = noted.arguments("aten.where.self")[0]  # by which torch makes numbers of it
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].tolist() == torch.ones(4, 4, dtype=torch.bool).tril().tolist()
    assert mask[1, 0].sum(dim=1).tolist() == [1, 2, 2, 2]


def test_streams_walk_through_memory() -> None:
    """Each call copies what the one before left, until all was walked through."""
    operations = Operations(probed_cpu(3 * 1000 * THREE_TENSORS))
    work = operations.prepare(Point(what="copy", dtype="float32", shape=(1000,)))
    places = [result.storage_offset() for result in (work() for _ in range(5)) if isinstance(result, torch.Tensor)]
    assert places == [0, 1000, 2000, 0, 1000]


def test_products_read_other_weights_each_time() -> None:
    """A layer of a model has other weights than the one before it."""
    operations = Operations(probed_cpu(2 * 64 * 64 * THREE_TENSORS))
    work = operations.prepare(Point(what="matmul_grad_weight", dtype="float32", shape=(8, 64, 64)))
    results = [result for result in (work() for _ in range(3)) if isinstance(result, torch.Tensor)]
    assert len({result.data_ptr() for result in results}) == 2


def test_bytes_by_hand() -> None:
    """The limit on memory counts three matrices of a product in fp32."""
    assert largest_bytes(Point(what="matmul", dtype="bfloat16", shape=(2, 3, 5))) == 4 * (6 + 15 + 10)
    assert largest_bytes(Point(what="add", dtype="float32", shape=(10,))) == 120


def test_the_cpu_s_timer() -> None:
    """Seconds of all calls together."""
    calls: list[int] = []
    assert 0 <= probed_cpu(1).time(lambda: calls.append(1), 5) < 1
    assert len(calls) == 5


def test_the_gpu_s_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events bracket the calls on the stream, and their milliseconds become seconds."""
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("sync"))
    probed = probed_cuda(1)
    assert probed.time(lambda: log.append("work"), 2) == 0.25
    assert log == ["sync", "record", "work", "work", "record", "wait"]
    pinned = SimpleNamespace(pin_memory=lambda: "pinned")
    assert (probed.device, probed.pin(pinned)) == ("cuda", "pinned")  # type: ignore[arg-type, comparison-overlap]


def test_pinned_transfers_do_not_wait() -> None:
    """Only a pinned buffer can be copied without the host waiting for it, and only those are pinned."""
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.numel())
        return tensor

    probed = ProbedDevice(device="cpu", time=lambda work, count: 0.0, repeat_s=0.01, limit_bytes=2**30, pin=pin)
    for what in ("host_to_device_pinned", "device_to_host_pageable", "device_to_host_pinned"):
        Operations(probed).prepare(Point(what=what, dtype="uint8", shape=(10,)))()
    assert pinned == [10, 10]
