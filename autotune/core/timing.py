"""Timing: how long the steps of a training take, item by item, from the work that a trace saw.

The work of a micro-step depends on its batch, that of clipping and the optimizer does not; alike operators of all
layers are one row of a law, which is evaluated for many batches at once. Leaves out the machine (speed.py) and what a
dataset's batches are (batches.py).

Symbols: R rows of a law, C batches, M monomials; others as in core/profile.py and core/work.py.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autotune.core.hardware import RateDtype, What
from autotune.core.profile import MONOMIALS, Profile, repeated_layers
from autotune.core.regime import TILE
from autotune.core.speed import BOUNDS, Bound, Speed
from autotune.core.work import Work

Floats = NDArray[np.float64]

PRODUCTS, ATTENTION, DEQUANTIZATION, OTHER = "matrix products", "attention", "dequantization", "other operators"
BOOKKEEPING = "data and bookkeeping"
LOSS, CLIPPING, OPTIMIZER = "loss", "gradient clipping", "optimizer"
WHOLE: Mapping[str, str] = {"loss": LOSS, "clip": CLIPPING, "optimizer": OPTIMIZER}  # parts that are an item each
ATTENTION_BACKWARD_SHARE = 5 / 7  # of forward and backward together: five products of seven (hardware.work_of)
HOST_S = 2e-3  # of a micro-step beside its operators: loading, collating and moving data, the trainer's own work
Spent = Bound | Literal["host"]
SPENT: tuple[Spent, ...] = (*BOUNDS, "host")  # what seconds go into, in this order everywhere
HALF_OF_ALL = 2.0  # causal attention computes half of the pairs of positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Operators that do the same. sides: as in core/work.py. count: of them in a micro-step, or in a step's end.

    factor: seconds of each in those of the measured operation. launched: whether each has a launch of its own.
    """

    item: str
    what: What
    dtype: RateDtype
    sides: tuple[tuple[int, ...], ...]
    factor: float
    count: float
    launched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLaw:
    """The operators of a step: those of each micro-step, in the mean over its micro-steps, and those at its end."""

    micro_step: tuple[Row, ...]
    step_end: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `time_law_from_dict` reads them back."""
        return asdict(self)


def time_law_from_dict(values: Mapping[str, Any]) -> TimeLaw:
    """Read a law back."""

    def rows(name: str) -> tuple[Row, ...]:
        return tuple(Row(**{**row, "sides": tuple(map(tuple, row["sides"]))}) for row in values[name])

    return TimeLaw(micro_step=rows("micro_step"), step_end=rows("step_end"))


def time_law(profile: Profile, *, layers: int, accumulation: int, tf32: bool = False) -> TimeLaw:
    """The law of a profile for a model of so many layers and so many micro-steps.

    profile: as it was traced. The first micro-step makes the gradients, to which the later ones add.
    """
    repeated = repeated_layers(profile)
    extra = (layers - profile.layers) / profile.period
    counts: dict[bool, dict[Any, float]] = {True: defaultdict(float), False: defaultdict(float)}
    for work in profile.work:
        at_end = work.part in ("clip", "optimizer")
        count = work.count * (1 + extra if work.layer in repeated else 1)
        if not at_end and profile.micro_steps > 1:
            count *= (1 if work.micro == 1 else accumulation - 1) / accumulation
        what, factor, sides = _measured_as(work)
        row = (_item(work), what, _dtype(work.dtype, tf32), sides, factor, work.kind != "share")
        counts[at_end][row] += count
    micro_step, step_end = (
        tuple(
            Row(item=item, what=what, dtype=dtype, sides=sides, factor=factor, count=count, launched=launched)
            for (item, what, dtype, sides, factor, launched), count in counts[at_end].items()
        )
        for at_end in (False, True)
    )
    return TimeLaw(micro_step=micro_step, step_end=step_end)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """How long training takes: seconds of an optimizer step in the mean over the epoch.

    items, spent: what they are needed for, and what they are spent on; each adds up to step_s.
    steps: of the epoch; useful_tokens: labels of it that reach the loss. Both are None where the dataset is unknown.
    """

    step_s: float
    items: Mapping[str, float]
    spent: Mapping[Spent, float]
    steps: float | None
    useful_tokens: int | None


def estimate_time(
    law: TimeLaw, speed: Speed, shapes: Floats, *, accumulation: int, useful_tokens: int | None
) -> TimeEstimate:
    """Time an epoch. shapes: the monomials of its micro-batches, (C, M). useful_tokens: of the whole epoch.

    The head's second tile stands for all that follow the first: it has as many labels as they have together.
    Raises KeyError for an operation that the machine's speed does not know.
    """
    shapes = shapes.copy()
    shapes[:, MONOMIALS.index("T")] = np.maximum(shapes[:, MONOMIALS.index("N")] - TILE, 0)
    alike, counts = np.unique(shapes, axis=0, return_counts=True)
    per_step = accumulation * counts / counts.sum()
    items = {item: per_step @ each for item, each in seconds(law.micro_step, speed, alike).items()}
    for item, each in seconds(law.step_end, speed, shapes[:1]).items():
        items[item] = items.get(item, 0.0) + each[0]
    host_s = accumulation * HOST_S
    spent = [*np.sum(list(items.values()), axis=0).tolist(), host_s]
    return TimeEstimate(
        step_s=sum(spent),
        items={**{item: float(each.sum()) for item, each in items.items()}, BOOKKEEPING: host_s},
        spent=dict(zip(SPENT, spent, strict=True)),
        steps=None if useful_tokens is None else len(shapes) / accumulation,
        useful_tokens=useful_tokens,
    )


def seconds(rows: tuple[Row, ...], speed: Speed, shapes: Floats) -> dict[str, Floats]:
    """Seconds by item. shapes: values of the monomials, (C, M). Returns shape (C, BOUNDS) for each item."""
    items: dict[str, Floats] = {}
    groups: dict[tuple[What, RateDtype, bool], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.what, row.dtype, row.launched].append(row)
    for (what, dtype, launched), alike in groups.items():
        polynomials = np.array([row.sides for row in alike], dtype=np.float64)  # (R, d, M)
        sides = np.einsum("cm,rdm->crd", shapes, polynomials)
        each = speed.seconds(what, dtype, sides.reshape(-1, sides.shape[2]), launched=launched)
        each = each.reshape(*sides.shape[:2], len(BOUNDS))
        for place, row in enumerate(alike):
            items[row.item] = items.get(row.item, 0.0) + row.count * row.factor * each[:, place]
    return items


def _measured_as(work: Work) -> tuple[What, float, tuple[tuple[int, ...], ...]]:
    """The measured operation that a work's seconds follow, its factor, and the sides in that one's order."""
    if work.kind == "product":
        if work.part != "backward":
            return "matmul", 1.0, work.sides
        over_tokens = any(work.sides[3][1:])  # what it sums over depends on the shape: the gradient of a weight
        return ("matmul_grad_weight" if over_tokens else "matmul_grad_input"), 1.0, work.sides
    if work.kind == "nf4_product":
        return "nf4_matmul", 1.0, work.sides
    if work.kind == "nf4_dequantize":
        return "nf4_dequantize", 1.0, work.sides
    if work.kind in ("stream", "share"):
        return "copy", 1.0, work.sides
    pairs = HALF_OF_ALL if work.kind.startswith("masked") else 1.0
    if work.kind.endswith("backward"):
        return "attention_forward_backward", pairs * ATTENTION_BACKWARD_SHARE, work.sides
    return "attention_forward", pairs, work.sides


def _item(work: Work) -> str:
    if whole := WHOLE.get(work.part):
        return whole
    if work.kind.endswith("dequantize"):
        return DEQUANTIZATION
    name = PRODUCTS if "product" in work.kind else ATTENTION if "attention" in work.kind else OTHER
    return f"{name}, {work.part}"


def _dtype(dtype: str, tf32: bool) -> RateDtype:
    """The dtype whose rates count: products of fp32 may be computed in tf32; what is no number moves bytes."""
    if dtype == "float32":
        return "tf32" if tf32 else "float32"
    return dtype if dtype in ("bfloat16", "float16") else "uint8"  # type: ignore[return-value]
