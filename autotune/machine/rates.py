"""Time operations in several rounds, so that the spread of a rate shows what other load does to it.

Each rate is timed once in a round. Its repeats then lie seconds apart, and other load rarely meets them all. Leaves out
what is timed (operations.py) and the process that this runs in (process.py).
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean, median, stdev

from autotune.core.hardware import RateDtype, RatePoint, What
from autotune.errors import first_line
from autotune.machine.operations import Operations, Point, ProbedDevice, largest_bytes

ROUNDS = 5
LEAST_ROUNDS = 2  # a spread needs two
SLOWEST_S = 0.3  # a longer operation is left out: the smaller points of its curve must be enough
TOO_LONG = f"one operation takes more than {SLOWEST_S} s"
LAUNCHES = 1000
MOST_FIRST = 9  # operations of new shapes in a repeat: each is a little larger, and they should not differ much
LARGE_SIDE = 512  # products with every side at least this keep all cores busy


@dataclass(slots=True)
class TimedPoint:
    """A point that runs here. count: calls in a repeat. seconds: of one call, for each round."""

    point: Point
    call: Callable[[], object]
    count: int
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What was measured; `launch_s` and `cpu_share` as in core/hardware.py."""

    points: tuple[RatePoint, ...]
    launch_s: float
    launch_spread: float
    cpu_share: float | None


def prepare_points(
    points: Sequence[Point], probed: ProbedDevice, *, until: float, progress: Callable[[str], None]
) -> list[TimedPoint]:
    """Run every point once and choose how many calls make a repeat. Points that cannot run here are left out.

    until: as time.perf_counter() counts; points that would begin after it are left out.
    Raises RuntimeError when the device broke, and not the point alone.
    """
    operations = Operations(probed)
    timed: list[TimedPoint] = []
    fastest: dict[tuple[What, RateDtype], float] = {}  # work per second, the best of the curve so far
    left_out: Counter[str] = Counter()
    for point in points:
        if time.perf_counter() > until:
            left_out["too slow to try them all"] += 1
            continue
        curve = (point.what, point.dtype)
        if largest_bytes(point) > probed.limit_bytes:
            left_out["too little free memory"] += 1
            continue
        if curve in fastest and point.amount / fastest[curve] > SLOWEST_S:
            left_out[TOO_LONG] += 1
            continue
        try:
            with _precision(point.dtype):
                call = operations.prepare(point)
                probed.time(call, 1)  # this call loads kernels and fills caches
                seconds = min(probed.time(call, 1) for _ in range(2))
        except (ImportError, NotImplementedError, RuntimeError) as error:
            probed.time(operations.launch(), 1)  # raises when the device broke
            left_out[f"{point.what} in {point.dtype}: {first_line(error):.120}"] += 1
            continue
        fastest[curve] = max(fastest.get(curve, 0.0), point.amount / seconds)
        if seconds > SLOWEST_S:
            left_out[TOO_LONG] += 1
        else:
            most = MOST_FIRST if point.what.startswith("first") else LAUNCHES
            timed.append(TimedPoint(point, call, max(1, min(most, math.ceil(probed.repeat_s / seconds)))))
    for reason, count in left_out.items():
        progress(f"not measured, {count} of {len(points)} rates: {reason}")
    return timed


def measure(
    timed: Sequence[TimedPoint], probed: ProbedDevice, *, deadline: float, progress: Callable[[str], None]
) -> Rates:
    """Time the points round by round.

    deadline: as time.perf_counter() counts; after two rounds, none begins that would end later.
    """
    launch = Operations(probed).launch()
    launches: list[float] = []
    shares: list[float] = []
    round_s = 0.0
    for number in range(1, ROUNDS + 1):
        started = time.perf_counter()
        if number > LEAST_ROUNDS and started + round_s > deadline:
            progress(f"time is up after {number - 1} of {ROUNDS} rounds")
            break
        progress(f"round {number} of {ROUNDS}, {len(timed)} rates")
        launches.append(probed.time(launch, LAUNCHES) / LAUNCHES)
        for each in timed:
            with _precision(each.point.dtype), _cpu_share(each.point, probed, shares):
                each.seconds.append(probed.time(each.call, each.count) / each.count)
        round_s = time.perf_counter() - started
    return Rates(
        points=tuple(_rate(each) for each in timed),
        launch_s=median(launches),
        launch_spread=_spread(launches),
        cpu_share=median(shares) if shares else None,
    )


@contextmanager
def _precision(dtype: RateDtype) -> Iterator[None]:
    """Compute fp32 products in tf32, or not. This call works in all versions of torch, newer ones too."""
    import torch

    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    yield
    torch.set_float32_matmul_precision("highest")


@contextmanager
def _cpu_share(point: Point, probed: ProbedDevice, shares: list[float]) -> Iterator[None]:
    """Note the share of the cores' time that a large product got.

    OpenMP's threads never sleep while they compute, so what they did not get went to other processes. Without this, a
    busy machine can look steady: with one of two cores taken, a tenth of the usual rate was measured, with a spread of
    0.2 %.
    """
    import torch

    wall, processor = time.perf_counter(), time.process_time()
    yield
    if probed.device == "cpu" and len(point.shape) == 3 and min(point.shape) >= LARGE_SIDE:
        wall = time.perf_counter() - wall
        shares.append((time.process_time() - processor) / (wall * torch.get_num_threads()))


def _rate(timed: TimedPoint) -> RatePoint:
    point = timed.point
    return RatePoint(
        what=point.what,
        dtype=point.dtype,
        shape=point.shape,
        per_second=point.amount / median(timed.seconds),
        spread=_spread(timed.seconds),
    )


def _spread(seconds: Sequence[float]) -> float:
    return stdev(seconds) / mean(seconds)
