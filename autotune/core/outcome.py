"""The outcome of a trial. Out of memory, a timeout, a crash and NaN are answers that the search learns from.

Symbols of a measured trial: a step is one optimizer step; t_k its seconds, p_k the positions it computed (padding
included), P and U the positions and useful tokens of the whole epoch under the same batching. Measured steps give the
seconds per position r = sum(t_k) / sum(p_k); the epoch's rate is U / (r P), whatever steps were drawn.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from autotune.core.decode import decode
from autotune.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimizer step as it was measured.

    number: its place in the epoch. positions: all token positions computed, padding included.
    useful: labels that reached the loss. loss: mean over the useful tokens.
    disturbed: share of what the step needed that other processes had meanwhile, 0 to 1 (machine/disturbance.py).
    """

    number: int
    seconds: float
    rows: int
    positions: int
    useful: int
    loss: float
    disturbed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Useful tokens per second over a whole epoch, with the standard error as a share of it (None below 2 steps)."""

    useful_tokens_per_s: float
    relative_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A trial that ran.

    useful_tokens_per_s: of the whole epoch, extrapolated from the steps.
    relative_error: standard error of that rate, as a share of it. step_s: seconds of the epoch's mean step.
    peak_bytes: torch's allocated peak on CUDA; on a CPU the resident peak above the idle worker.
    reserved_bytes: CUDA only. host_peak_bytes: resident peak above the idle worker.
    reference_flops_per_s: rate of a fixed matrix product right before and right after, to see the machine drift.
    ended_by: `precision` (the rate is known well enough), `outpaced` (another candidate is faster), `budget` (the time
    was up) or `steps` (there are no more steps to measure).
    padding_epoch: share of the whole epoch's positions that is padding.
    """

    kind: ClassVar[str] = "measured"

    useful_tokens_per_s: float
    relative_error: float | None
    step_s: float
    peak_bytes: int
    reserved_bytes: int | None
    host_peak_bytes: int
    steps: tuple[Step, ...]
    warmup_steps: tuple[Step, ...]
    ended_by: str
    reference_flops_per_s: tuple[float, float]
    padding_epoch: float
    load_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """The device, the host limit or the kernel refused memory. peak_bytes: the last peak seen, None when unknown."""

    kind: ClassVar[str] = "out_of_memory"

    message: str
    peak_bytes: int | None
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOut:
    """The trial was not done after `limit_s`, and was killed."""

    kind: ClassVar[str] = "timed_out"

    limit_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """The worker raised or died. log_tail: the last lines of its log."""

    kind: ClassVar[str] = "crashed"

    message: str
    log_tail: str
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverged:
    """The loss became NaN or infinite. step: the first such optimizer step, counted from 1."""

    kind: ClassVar[str] = "diverged"

    step: int
    loss: str
    wall_s: float


Outcome = Measured | OutOfMemory | TimedOut | Crashed | Diverged
_KINDS: dict[str, type[Any]] = {cls.kind: cls for cls in (Measured, OutOfMemory, TimedOut, Crashed, Diverged)}
_GONE = frozenset({"padding_drawn"})  # fields that earlier versions wrote


def epoch_rate(steps: Sequence[Step], *, epoch_positions: int, epoch_useful: int) -> Rate:
    """Extrapolate measured steps to the epoch by their seconds per position. Raises ValueError without steps."""
    if not steps:
        raise ValueError("no measured steps")
    seconds_per_position, error = ratio([step.seconds for step in steps], [step.positions for step in steps])
    rate = epoch_useful / (seconds_per_position * epoch_positions)
    return Rate(useful_tokens_per_s=rate, relative_error=error)


def ratio(seconds: Sequence[float], sizes: Sequence[float]) -> tuple[float, float | None]:
    """The ratio r of the sums of t_k and p_k, and its standard error as a share of it, None below 2 steps.

    The error is sqrt(sum((t_k - r p_k)^2) / (n (n - 1))) / mean(t) (Cochran, Sampling Techniques, 3rd ed., eq. 6.13).
    """
    n, total = len(seconds), sum(seconds)
    r = total / sum(sizes)
    if n < 2:
        return r, None
    residuals = sum((t - r * p) ** 2 for t, p in zip(seconds, sizes, strict=True))
    return r, math.sqrt(residuals / (n * (n - 1))) / (total / n)


def outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """Turn an outcome into plain values, the kind first."""
    return {"kind": outcome.kind, **asdict(outcome)}


def outcome_from_dict(values: Any, *, where: str = "outcome") -> Outcome:
    """Read back what `outcome_to_dict` wrote. Raises UsageError with every problem of anything else."""
    kind = values.get("kind") if isinstance(values, Mapping) else None
    if kind not in _KINDS:
        raise UsageError(f"{where}.kind: got {kind!r}, expected one of {', '.join(_KINDS)}")
    rest = {name: value for name, value in values.items() if name not in {"kind", *_GONE}}
    outcome: Outcome = decode(rest, _KINDS[kind], where=where)
    return outcome
