"""Rounds, spreads and what is left out, with a clock that the test sets; and once with the real one."""

import time
from collections.abc import Callable
from statistics import mean, median, stdev

import pytest
import torch

from autotune.core.hardware import RateDtype
from autotune.machine.operations import Operations, Point, ProbedDevice, probed_cpu
from autotune.machine.rates import ROUNDS, SLOWEST_S, TimedPoint, measure, prepare_points

FOREVER = float("inf")


def product(side: int = 8, dtype: RateDtype = "float32") -> Point:
    return Point(what="matmul", dtype=dtype, shape=(side, side, side))


def device_that_takes(seconds: Callable[[int], float], limit_bytes: int = 2**20) -> ProbedDevice:
    """A device whose clock says what the test wants of the n-th reading; it really calls once.

    limit_bytes: small, because operations fill so much memory with random numbers.
    """
    readings = iter(range(10**6))

    def timer(work: Callable[[], object], count: int) -> float:
        work()
        return seconds(next(readings)) * count

    return ProbedDevice(device="cpu", time=timer, repeat_s=0.01, limit_bytes=limit_bytes, pin=lambda tensor: tensor)


def test_rates_on_the_real_cpu() -> None:
    """The whole way on a real device: every point gets a rate and every round a reading."""
    probed = probed_cpu(2**22)
    timed = prepare_points([product(16), product(256)], probed, until=FOREVER, progress=lambda line: None)
    rates = measure(timed, probed, deadline=FOREVER, progress=lambda line: None)
    assert [point.shape[0] for point in rates.points] == [16, 256]
    assert all(0 < point.per_second < 1e16 and 0 <= point.spread < 3 for point in rates.points)
    assert all(len(each.seconds) == ROUNDS for each in timed)
    assert 0 < rates.launch_s < 0.1


def test_rate_and_spread_by_hand() -> None:
    """The median repeat gives the rate, the standard deviation of the repeats over their mean the spread."""
    seconds = [0.5, 2.0, 1.0, 4.0, 0.25]
    timed = TimedPoint(product(10), lambda: None, count=3)
    rounds = iter(seconds)
    probed = device_that_takes(lambda n: next(rounds) if n % 2 else 1e-6)  # launches and the point take turns
    (point,) = measure([timed], probed, deadline=FOREVER, progress=lambda line: None).points
    assert point.per_second == pytest.approx(2000 / median(seconds))
    assert point.spread == pytest.approx(stdev(seconds) / mean(seconds))


def test_a_repeat_lasts_as_long_as_asked() -> None:
    """Short operations are called often enough for the clock, long ones once."""
    quick, slow = (
        prepare_points([product()], device_that_takes(lambda n, s=s: s), until=FOREVER, progress=lambda line: None)[0]  # type: ignore[misc]
        for s in (0.001, 0.2)
    )
    assert (quick.count, slow.count) == (10, 1)


def test_no_round_begins_after_the_deadline() -> None:
    """But two there are always, or there would be no spread."""
    lines: list[str] = []
    timed = TimedPoint(product(), lambda: None, count=1)
    measure([timed], device_that_takes(lambda n: 1.0), deadline=time.perf_counter(), progress=lines.append)
    assert len(timed.seconds) == 2
    assert lines[-1] == f"time is up after 2 of {ROUNDS} rounds"


def left_out(points: list[Point], probed: ProbedDevice, until: float = FOREVER) -> tuple[list[int], list[str]]:
    lines: list[str] = []
    timed = prepare_points(points, probed, until=until, progress=lines.append)
    return [each.point.shape[0] for each in timed], lines


def test_what_would_take_too_long_is_not_tried() -> None:
    """On a slow machine the large end of a curve is left out, judged by the best rate of its small end."""
    calls: list[int] = []
    probed = device_that_takes(lambda n: calls.append(n) or SLOWEST_S / 10)  # type: ignore[func-returns-value]
    sides, lines = left_out([product(8), product(64)], probed)  # 512 times the work
    assert sides == [8]
    assert len(calls) == 3
    assert lines == ["not measured, 1 of 2 rates: one operation takes more than 0.3 s"]


def test_what_needs_too_much_memory_is_not_tried() -> None:
    """A small or crowded GPU gets the small shapes."""
    sides, lines = left_out([product(8), product(64)], device_that_takes(lambda n: 1e-3, limit_bytes=1000))
    assert sides == [8]
    assert "too little free memory" in lines[0]


def test_trying_stops_in_time() -> None:
    """A machine so slow that a first run of everything would eat the budget."""
    sides, lines = left_out([product(8)], device_that_takes(lambda n: 1e-3), until=time.perf_counter())
    assert sides == []
    assert "too slow to try them all" in lines[0]


@pytest.mark.parametrize(
    "error", [ImportError("no bitsandbytes"), torch.OutOfMemoryError("CUDA out of memory.\nTried")]
)
def test_what_cannot_run_here_is_said_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A missing library or kernel costs its own rates and no others."""
    real = Operations.prepare

    def prepare(self: Operations, point: Point) -> Callable[[], object]:
        if point.dtype == "bfloat16":
            raise error
        return real(self, point)

    monkeypatch.setattr(Operations, "prepare", prepare)
    points = [product(8, "bfloat16"), product(8), product(16, "bfloat16")]
    sides, lines = left_out(points, device_that_takes(lambda n: 1e-3))
    assert sides == [8]
    reason = str(error).splitlines()[0]
    assert lines == [f"not measured, 2 of 3 rates: matmul in bfloat16: {reason}"]


def test_a_broken_device_ends_the_measurement() -> None:
    """After an illegal access every later call fails too: that is a failure and not a missing rate."""

    def broken(work: Callable[[], object], count: int) -> float:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    probed = ProbedDevice(device="cpu", time=broken, repeat_s=0.01, limit_bytes=2**20, pin=lambda tensor: tensor)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        left_out([product()], probed)


def test_tf32_is_on_for_its_own_products_only() -> None:
    """Else the fp32 curve of a GPU would silently be the tf32 one."""
    seen: list[tuple[str, str]] = []

    def timed(dtype: RateDtype) -> TimedPoint:
        return TimedPoint(
            product(8, dtype), lambda: seen.append((dtype, torch.get_float32_matmul_precision())), count=1
        )

    before = torch.get_float32_matmul_precision()
    measure([timed("tf32"), timed("float32")], device_that_takes(lambda n: 1.0), deadline=0, progress=lambda line: None)
    assert set(seen) == {("tf32", "high"), ("float32", "highest")}
    assert torch.get_float32_matmul_precision() == before


def test_cores_that_others_take_are_noticed() -> None:
    """A product that sleeps half the time got half the cores' time at most, however steady its rate is."""
    timed = TimedPoint(product(512), lambda: time.sleep(0.02), count=1)
    rates = measure([timed], probed_cpu(2**30), deadline=0, progress=lambda line: None)
    assert rates.cpu_share is not None
    assert rates.cpu_share < 0.5
