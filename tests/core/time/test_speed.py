"""A machine's speed: curves of physical terms, no shorter than a launch, with other dtypes for what is missing."""

import numpy as np
import pytest

from autotune.core.time.speed import BOUNDS, Curve, MachineSpeed, blockwise_by_bytes, likeness

LAUNCH_S = 5e-6
COPY = Curve(operation="stream", seconds_per=np.array([LAUNCH_S, 1e-10]))
PRODUCT = Curve(operation="product", seconds_per=np.array([LAUNCH_S, 1e-12, 2e-10]))
SPEED = MachineSpeed(
    curves={("copy", "float32"): COPY, ("matmul", "float32"): PRODUCT},
    launch_s=LAUNCH_S,
    first_s={"float32": (np.array([10.0, 12.0]), np.array([1e-3, 3e-3]))},
    first_attention_s={"float32": (np.array([6.0, 8.0]), np.array([0.0, 1e-3]))},
)


def test_seconds_by_hand() -> None:
    """A product of 100 x 200 x 300: a launch, 6e6 multiplications, and 11e4 numbers that are moved."""
    [[launch, compute, bandwidth]] = SPEED.seconds("matmul", "float32", np.array([[1.0, 100, 200, 300]]))
    assert BOUNDS == ("launch", "compute", "bandwidth")
    assert (launch, compute) == (pytest.approx(LAUNCH_S), pytest.approx(6e-6))
    assert bandwidth == pytest.approx(2e-10 * (100 * 200 + 100 * 300 + 200 * 300))


def test_nothing_is_shorter_than_a_launch() -> None:
    """Where each operator has one: what is launched together with others takes its bytes alone."""
    slow = MachineSpeed(curves=SPEED.curves, launch_s=1.0)
    assert slow.seconds("copy", "float32", np.array([[8.0]])).tolist() == [[1.0, 0.0, 0.0]]
    apart = SPEED.seconds("copy", "float32", np.array([[8.0]]), launched=False)
    assert apart.tolist() == [[0.0, 0.0, pytest.approx(8e-10)]]


def test_what_was_not_measured_in_a_dtype_is_taken_from_another() -> None:
    """What was measured in none is an error."""
    sides = np.array([[1.0, 512, 512, 512]])
    assert np.array_equal(SPEED.seconds("matmul", "bfloat16", sides), SPEED.seconds("matmul", "float32", sides))
    with pytest.raises(KeyError, match="attention_forward was not measured"):
        SPEED.seconds("attention_forward", "float32", sides)


def test_new_shapes_take_longer_by_what_was_measured_around_them() -> None:
    """Weights of 1024 and 2048 numbers, whose logarithms are 10 and 11; nothing where nobody measured."""
    assert SPEED.first_products_s("float32", [1024, 2048]) == pytest.approx(1e-3 + 2e-3)
    assert SPEED.first_products_s("float32", []) == 0.0
    assert SPEED.first_attentions_s("float32", np.array([64.0, 128.0])).tolist() == [0.0, pytest.approx(5e-4)]
    assert SPEED.first_attentions_s("bfloat16", np.array([64.0])).tolist() == [0.0]


def test_eight_bits_take_their_bytes_where_nobody_measured_them() -> None:
    """A number in fp32, one in 8 bits, and its share of a scale."""
    found = MachineSpeed(curves=blockwise_by_bytes(SPEED.curves), launch_s=LAUNCH_S)
    states = found.seconds("blockwise_quantize", "float32", np.array([[2.0**20]]))
    assert states[0, BOUNDS.index("bandwidth")] == pytest.approx((5 + 4 / 256) * 2**20 * 1e-10)
    assert blockwise_by_bytes({}) == {}


def test_a_deviation_fades_with_the_distance() -> None:
    """All of it at its own place, six tenths 1.5 octaves away, and hardly any four octaves away."""
    [found] = likeness(np.array([[0.0, 0.0]]), np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 4.0]]))
    assert found.tolist() == [1.0, pytest.approx(np.exp(-0.5)), pytest.approx(np.exp(-16 / 4.5))]
