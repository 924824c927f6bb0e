"""Published speed: a GPU out of the catalogue does what its specification makes likely, and no more than that."""

import numpy as np
import pytest

from autotune.core.hardware import Peaks
from autotune.core.time.published import published_speed

PEAKS = Peaks(bandwidth_gb_s=2000, tflops={"float32": 20, "bfloat16": 300}, sustained_tflops=None)


def test_nothing_is_faster_than_its_peaks() -> None:
    """Products of any size, in FLOP/s and in bytes/s; large ones come within a third."""
    sides = np.array([[1.0, M, N, 4096] for M in (16, 512, 8192) for N in (64, 4096)])
    for dtype, peak, size in (("bfloat16", 300e12, 2), ("float32", 20e12, 4)):
        found = published_speed(PEAKS).seconds("matmul", dtype, sides).sum(axis=1)  # type: ignore[arg-type]
        _, M, N, K = sides.T
        assert (found > 2 * M * N * K / peak).all()
        assert (found > size * (M * N + M * K + N * K) / 2000e9).all()
        assert found[-1] < 1.5 * 2 * 8192 * 4096 * 4096 / peak


def test_a_published_product_counts_more_than_a_share_of_the_peak() -> None:
    """For numbers of 16 bits, which a power limit may hold down."""
    held = Peaks(bandwidth_gb_s=2000, tflops=PEAKS.tflops, sustained_tflops=100)
    sides = np.array([[1.0, 8192, 8192, 8192]])
    for dtype, slower in (("bfloat16", 2.4), ("float32", 1.0)):
        seconds = [published_speed(peaks).seconds("matmul", dtype, sides).sum() for peaks in (held, PEAKS)]  # type: ignore[arg-type]
        assert seconds[0] / seconds[1] == pytest.approx(slower, rel=0.05)


def test_a_quantized_product_dequantizes_first() -> None:
    """It takes as much as both apart."""
    speed = published_speed(PEAKS)
    sides = np.array([[1.0, 4096, 4096, 4096]])
    both = speed.seconds("matmul", "bfloat16", sides) + speed.seconds(
        "nf4_dequantize", "bfloat16", np.array([[2.0**24]])
    )
    assert speed.seconds("nf4_matmul", "bfloat16", sides) == pytest.approx(both)


def test_numbers_of_eight_bits_take_their_bytes() -> None:
    """A GPU's kernels search among 256 values while they wait for memory."""
    speed = published_speed(PEAKS)
    eight_bits = speed.seconds("blockwise_dequantize", "float32", np.array([[2.0**30]])).sum()
    copied = speed.seconds("copy", "float32", np.array([[2.0**30]])).sum()
    assert eight_bits / copied == pytest.approx(5, rel=0.01)  # four bytes, one, and a scale for 256


def test_a_gpu_without_peaks_is_not_guessed() -> None:
    """Its time is unknown."""
    with pytest.raises(ValueError, match="no published peak of fp32"):
        published_speed(Peaks(bandwidth_gb_s=2000, tflops={}, sustained_tflops=None))
