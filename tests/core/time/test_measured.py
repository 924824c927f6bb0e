"""Measured speed: physical terms are fitted to a probe's points, and near a point the curve goes through it."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.core.hardware import Hardware, RateDtype, RatePoint, What, amount_of
from autotune.core.time.measured import measured_speed
from tests.core.examples import CPU

LAUNCH_S, FLOPS, BANDWIDTH = 5e-6, 2e12, 2e10
SHAPES = ((64, 256, 256), (512, 512, 512), (2048, 512, 1024), (4096, 1024, 4096), (128, 4096, 1024), (1024, 256, 64))


def seconds_of(shape: tuple[int, int, int]) -> float:
    """A machine that is as the terms have it: a launch, multiplications, and bytes of four."""
    M, N, K = shape
    return LAUNCH_S + 2 * M * N * K / FLOPS + 4 * (M * N + M * K + N * K) / BANDWIDTH


def point(what: What, shape: tuple[int, ...], seconds: float, dtype: RateDtype = "float32") -> RatePoint:
    return RatePoint(
        what=what, dtype=dtype, shape=shape, per_second=amount_of(what, shape, dtype) / seconds, spread=0.01
    )


def machine(*further: RatePoint, slower: float = 1.0) -> Hardware:
    products = [point("matmul", shape, slower * seconds_of(shape)) for shape in SHAPES]
    copies = [point("copy", (size,), LAUNCH_S + 8 * size / BANDWIDTH) for size in (2**12, 2**18, 2**24)]
    return replace(CPU, rates=(*products, *copies, *further), launch_s=LAUNCH_S)


@pytest.mark.parametrize("shape", [(256, 256, 256), (3000, 700, 1500), (8192, 1024, 4096)])
def test_unmeasured_sizes_follow_the_physical_terms(shape: tuple[int, int, int]) -> None:
    """Within a fiftieth, also beyond what was measured."""
    found = measured_speed(machine()).seconds("matmul", "float32", np.array([[1.0, *shape]])).sum()
    assert found == pytest.approx(seconds_of(shape), rel=0.02)


def test_a_slow_size_is_slow_with_its_neighbours_alone() -> None:
    """One kernel of half the speed: believed there and nearby, not four octaves away."""
    odd = (1024, 1024, 1024)
    plain = measured_speed(machine())
    found = measured_speed(machine(point("matmul", odd, 2 * seconds_of(odd))))
    sides = np.array([[1.0, *odd], [1.0, 1280, 1024, 1024], [1.0, 16384, 16384, 64]])
    there, near, far = (found.seconds("matmul", "float32", sides) / plain.seconds("matmul", "float32", sides)).mean(
        axis=1
    )
    assert there > 1.6
    assert near > 1.4
    assert far < 1.35


def test_operations_of_one_kind_deviate_from_the_first() -> None:
    """A gradient at three quarters of the speed is so at sizes that were not measured for it."""
    gradients = [point("matmul_grad_weight", shape, seconds_of(shape) / 0.75) for shape in SHAPES[:3]]
    speed = measured_speed(machine(*gradients))
    sides = np.array([[1.0, 1024, 4096, 4096]])
    plain, gradient = (speed.seconds(what, "float32", sides).sum() for what in ("matmul", "matmul_grad_weight"))
    assert gradient == pytest.approx(plain / 0.75, rel=0.05)


def test_one_measured_weight_tells_of_others() -> None:
    """Dequantizing a small weight takes its elements and a launch; its product that and what a product takes."""
    per_element, shape = 2e-11, (4096, 4096, 4096)
    quantized = point("nf4_dequantize", (14336, 4096), LAUNCH_S + 14336 * 4096 * per_element)
    product = point("nf4_matmul", shape, seconds_of(shape) + 4096**2 * per_element)
    speed = measured_speed(machine(quantized, product))
    small = speed.seconds("nf4_dequantize", "float32", np.array([[4096.0 * 1024]])).sum()
    assert small == pytest.approx(LAUNCH_S + 4096 * 1024 * per_element, rel=0.05)
    one = speed.seconds("nf4_matmul", "float32", np.array([[1.0, 1024, 4096, 4096]])).sum()
    assert one == pytest.approx(seconds_of((1024, 4096, 4096)) + 4096**2 * per_element, rel=0.1)


def test_states_of_eight_bits_take_what_was_measured_of_them() -> None:
    """A search among 256 values is arithmetic, six nanoseconds each; where nobody measured it, it takes its bytes."""
    slow = [point("blockwise_quantize", (elements,), LAUNCH_S + 6e-9 * elements) for elements in (2**20, 2**25)]
    measured, unmeasured = (measured_speed(machine(*points)) for points in (slow, []))
    states = np.array([[2.0**22]])
    _, compute, bandwidth = measured.seconds("blockwise_quantize", "float32", states)[0]
    assert compute == pytest.approx(6e-9 * 2**22, rel=0.02)
    assert bandwidth == 0
    by_bytes = unmeasured.seconds("blockwise_quantize", "float32", states).sum()
    assert by_bytes == pytest.approx(5 * 2**22 / BANDWIDTH, rel=0.05)


def test_a_machine_without_rates_has_no_measured_speed() -> None:
    """It is an error, not a guess."""
    with pytest.raises(ValueError, match="no measured rates"):
        measured_speed(CPU)
