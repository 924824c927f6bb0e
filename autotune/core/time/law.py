"""Time: how long the steps of a training take, item by item, from the work that a trace saw.

The work of a micro-step depends on its batch, the work of clipping and of the optimizer does not. Operators of all
layers that do the same are one group of a law. A law is evaluated for many batches at once. Leaves out the machine
(speed.py) and the batches of a dataset (core/batches/batches.py).

Symbols: R groups of a law, C batches, M monomials; others as in core/step/profile.py and core/step/work.py.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autotune.core.hardware import RateDtype, What
from autotune.core.step.deepening import repeated_layers
from autotune.core.step.profile import MONOMIALS, Profile
from autotune.core.step.regime import TILE
from autotune.core.step.work import Work
from autotune.core.time.speed import BOUNDS, Bound, MachineSpeed

Floats = NDArray[np.float64]

PRODUCTS, ATTENTION, DEQUANTIZATION, OTHER = "matrix products", "attention", "dequantization", "other operators"
FORMAT = 2  # of the files that hold laws; raise it when they change
BOOKKEEPING = "data and bookkeeping"
NEW_SHAPES = "kernels for new shapes"
REMEMBERED = 1024  # kernels that oneDNN keeps: the default of ONEDNN_PRIMITIVE_CACHE_CAPACITY
# Kernels that the backward pass of attention makes for a new length (torch 2.13; ONEDNN_VERBOSE=profile_create lists
# them): for each of three products one for a whole block of queries, and one for the last block, which is shorter.
# Above ATTENTION_BLOCK positions the keys are divided into blocks, too, and there are twice as many kernels.
ATTENTION_KERNELS, ATTENTION_BLOCK = 6, 512
LOSS, CLIPPING, OPTIMIZER = "loss", "gradient clipping", "optimizer"
ITEM_OF_PART: Mapping[str, str] = {"loss": LOSS, "clip": CLIPPING, "optimizer": OPTIMIZER}  # parts that are one item
ATTENTION_BACKWARD_SHARE = 5 / 7  # of forward and backward together: five products of seven (hardware.amount_of)
HOST_S = 2e-3  # seconds of a micro-step beside its operators: to load, collate and move data, and for the trainer
Spent = Bound | Literal["host"]
SPENT: tuple[Spent, ...] = (*BOUNDS, "host")  # what seconds are spent on, in this order everywhere


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorGroup:
    """Operators that do the same.

    item: the name under which an estimate lists their seconds. what, dtype: the measured operation that stands for
    them. sides: as in core/step/work.py. factor: seconds of one operator, as a multiple of the measured operation's.
    launched: whether each has a launch of its own.
    """

    item: str
    what: What
    dtype: RateDtype
    sides: tuple[tuple[int, ...], ...]
    factor: float
    launched: bool


GroupCounts = Mapping[OperatorGroup, float]  # how many operators each group has


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TimeLaw:
    """The operators of a step.

    micro_step: of a micro-step, on average over the step. step_end: of clipping and the optimizer. operators: how many
    operators the forward pass of a micro-step runs. The key is the chain of operators that a probe times to learn how
    long the host takes for one of them.
    """

    micro_step: GroupCounts
    step_end: GroupCounts
    operators: Mapping[What, float]

    def products(self, dtype: RateDtype) -> list[int]:
        """Find the products of a micro-step that depend on the micro-batch, one for each shape.

        Returns the size of the weight of each: the product of the sides that do not depend on the micro-batch.
        """
        products = {
            (each.what, each.sides) for each in self.micro_step if "matmul" in each.what and each.dtype == dtype
        }
        return [
            prod(side[0] for side in sides if not any(side[1:]))
            for _, sides in products
            if any(any(s[1:]) for s in sides)
        ]

    def attentions(self, dtype: RateDtype) -> list[tuple[int, ...]]:
        """Find the attentions of a micro-step, one for each shape. A forward and its backward count as one.

        Returns the length of each, as a polynomial of the micro-batch's shape.
        """
        sides = {each.sides for each in self.micro_step if "attention" in each.what and each.dtype == dtype}
        return [length for _, _, length, _ in sides]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `time_law_from_dict` reads them back."""

        def groups(counts: GroupCounts) -> list[dict[str, Any]]:
            return [{**asdict(group), "count": count} for group, count in counts.items()]

        return {
            "micro_step": groups(self.micro_step),
            "step_end": groups(self.step_end),
            "operators": dict(self.operators),
        }


def time_law_from_dict(values: Mapping[str, Any]) -> TimeLaw:
    """Read a law back."""

    def groups(name: str) -> GroupCounts:
        counts: dict[OperatorGroup, float] = {}
        for each in values[name]:
            known = {key: value for key, value in each.items() if key != "count"}
            counts[OperatorGroup(**{**known, "sides": tuple(map(tuple, each["sides"]))})] = each["count"]
        return counts

    return TimeLaw(micro_step=groups("micro_step"), step_end=groups("step_end"), operators=dict(values["operators"]))


def time_law(
    profile: Profile, *, layers: int, accumulation: int, tf32: bool = False, selective: bool = False
) -> TimeLaw:
    """Derive the law of a profile.

    profile: as it was traced, not deepened. layers: of the whole model. accumulation: micro-steps of a step. The first
    one allocates the gradients, and the later ones add to them. selective: whether a policy decides what is recomputed.
    """
    repeated = repeated_layers(profile)
    extra = (layers - profile.layers) / profile.period
    micro_step: dict[OperatorGroup, float] = defaultdict(float)
    step_end: dict[OperatorGroup, float] = defaultdict(float)
    forward: dict[bool, float] = {True: 0.0, False: 0.0}  # operators, recomputed or not
    for work in profile.work:
        at_end = work.part in ("clip", "optimizer")
        count = work.count * (1 + extra if work.layer in repeated else 1)
        if not at_end and profile.micro_steps > 1:
            count *= (1 if work.micro == 1 else accumulation - 1) / accumulation
        what, factor, sides = _measured_as(work)
        group = OperatorGroup(
            item=_item(work),
            what=what,
            dtype=_dtype(work.dtype, tf32),
            sides=sides,
            factor=factor,
            launched=work.kind != "share",
        )
        (step_end if at_end else micro_step)[group] += count
        if work.part in ("forward", "loss", "recomputed"):
            forward[work.part == "recomputed"] += count
    recomputed: What = "selective_operators" if selective else "checkpointed_operators"
    operators = {"eager_operators": forward[False] - forward[True], recomputed: forward[True]}
    return TimeLaw(micro_step=micro_step, step_end=step_end, operators=operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """How long training takes: seconds of an optimizer step, on average over the epoch.

    parts: seconds by item, and within each item by what they are spent on, in the order of SPENT. steps: of the epoch.
    useful_tokens: labels of the epoch that reach the loss. Both are None where the dataset is unknown.
    """

    parts: Mapping[str, tuple[float, ...]]
    steps: float | None
    useful_tokens: int | None

    @property
    def step_s(self) -> float:
        """Seconds of a step."""
        return sum(self.items.values())

    @property
    def items(self) -> dict[str, float]:
        """Seconds by item. They add up to step_s."""
        return {item: sum(seconds) for item, seconds in self.parts.items()}

    @property
    def spent(self) -> dict[Spent, float]:
        """Seconds by what they are spent on. They add up to step_s, too."""
        return dict(zip(SPENT, map(sum, zip(*self.parts.values(), strict=True)), strict=True))

    def scaled(self, factors: Sequence[float]) -> "TimeEstimate":
        """Multiply the seconds by a factor for each thing that they are spent on. factors: in the order of SPENT."""
        parts = {
            item: tuple(each * factor for each, factor in zip(seconds, factors, strict=True))
            for item, seconds in self.parts.items()
        }
        return replace(self, parts=parts)


def estimate_time(
    law: TimeLaw,
    speed: MachineSpeed,
    shapes: Floats,
    *,
    accumulation: int,
    useful_tokens: int | None,
    new_shapes: Callable[[int], float] = lambda remembered: 0.0,
) -> TimeEstimate:
    """Time an epoch.

    shapes: the monomials of its micro-batches, (C, M). A trace knows two tiles of the head at most. Here the second one
    stands for all later ones, so T is set to the labels of all of them. accumulation: micro-steps of a step.
    useful_tokens: of the whole epoch.
    new_shapes: as batches.Epoch.new_shapes. Raises KeyError for an operation that the speed does not know.
    """
    shapes = shapes.copy()
    shapes[:, MONOMIALS.index("T")] = np.maximum(shapes[:, MONOMIALS.index("N")] - TILE, 0)
    alike, counts = np.unique(shapes, axis=0, return_counts=True)
    per_step = accumulation * counts / counts.sum()
    items = {item: per_step @ each for item, each in seconds(law.micro_step, speed, alike).items()}
    for item, each in seconds(law.step_end, speed, shapes[:1]).items():
        items[item] = items.get(item, 0.0) + each[0]
    making_s, kernels = making(law, speed, alike)
    if making_s.any() and (share := new_shapes(remembered(per_step @ kernels / accumulation))):
        items[NEW_SHAPES] = np.array([share * (per_step @ making_s), 0.0, 0.0])
    host_s = accumulation * host_seconds(law, speed)
    return TimeEstimate(
        parts={**{item: (*each.tolist(), 0.0) for item, each in items.items()}, BOOKKEEPING: (0.0, 0.0, 0.0, host_s)},
        steps=None if useful_tokens is None else len(shapes) / accumulation,
        useful_tokens=useful_tokens,
    )


def host_seconds(law: TimeLaw, speed: MachineSpeed) -> float:
    """Seconds that the host takes in a micro-step, beside launches."""
    return HOST_S + sum(count * speed.operator_s.get(what, 0.0) for what, count in law.operators.items())


def making(law: TimeLaw, speed: MachineSpeed, shapes: Floats) -> tuple[Floats, Floats]:
    """Seconds of making the kernels of a micro-step whose shape is new, and the number of these kernels, (C,) each.

    shapes: values of the monomials, (C, M).
    """
    making_s, kernels = np.zeros(len(shapes)), np.zeros(len(shapes))
    for dtype in speed.first_s:
        sizes = law.products(dtype)
        making_s += speed.first_products_s(dtype, sizes)
        kernels += len(sizes)
        for length in law.attentions(dtype):
            positions = shapes @ np.array(length, dtype=np.float64)
            making_s += speed.first_attentions_s(dtype, positions)
            kernels += ATTENTION_KERNELS * np.where(positions > ATTENTION_BLOCK, 2, 1)
    return making_s, kernels


def remembered(kernels: float) -> int:
    """For how many shapes oneDNN keeps the kernels, if each shape has `kernels` of them."""
    return int(REMEMBERED / max(1.0, kernels))


def seconds(counts: GroupCounts, speed: MachineSpeed, shapes: Floats) -> dict[str, Floats]:
    """Seconds by item, each of shape (C, BOUNDS). shapes: values of the monomials, (C, M).

    Raises KeyError for an operation that the speed does not know.
    """
    items: dict[str, Floats] = {}
    each = operator_seconds(list(counts), speed, shapes)
    for (group, count), of_one in zip(counts.items(), each, strict=True):
        items[group.item] = items.get(group.item, 0.0) + count * of_one
    return items


def operator_seconds(groups: Sequence[OperatorGroup], speed: MachineSpeed, shapes: Floats) -> Floats:
    """Seconds of one operator of each group, (R, C, BOUNDS). shapes: values of the monomials, (C, M).

    Raises KeyError for an operation that the speed does not know.
    """
    found = np.zeros((len(groups), len(shapes), len(BOUNDS)))
    by_operation: dict[tuple[What, RateDtype, bool], list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        by_operation[group.what, group.dtype, group.launched].append(place)
    for (what, dtype, launched), places in by_operation.items():
        polynomials = np.array([groups[place].sides for place in places], dtype=np.float64)  # (R, d, M)
        sides = np.einsum("cm,rdm->rcd", shapes, polynomials)
        each = speed.seconds(what, dtype, sides.reshape(-1, sides.shape[2]), launched=launched)
        factors = np.array([groups[place].factor for place in places])
        found[places] = factors[:, None, None] * each.reshape(*sides.shape[:2], len(BOUNDS))
    return found


def _measured_as(work: Work) -> tuple[What, float, tuple[tuple[int, ...], ...]]:
    """The measured operation that stands for a work, the factor between their seconds, and the work's sides."""
    if work.kind == "product":
        if work.part != "backward":
            return "matmul", 1.0, work.sides
        over_tokens = any(work.sides[3][1:])  # the summed side depends on the shape: the gradient of a weight
        return ("matmul_grad_weight" if over_tokens else "matmul_grad_input"), 1.0, work.sides
    if work.kind == "nf4_product":
        return "nf4_matmul", 1.0, work.sides
    if work.kind in ("nf4_dequantize", "blockwise_quantize", "blockwise_dequantize"):
        return work.kind, 1.0, work.sides
    if work.kind in ("stream", "share"):
        return "copy", 1.0, work.sides
    masked = work.kind.startswith("masked")
    if work.kind.endswith("backward"):
        what: What = "masked_attention_forward_backward" if masked else "attention_forward_backward"
        return what, ATTENTION_BACKWARD_SHARE, work.sides
    return ("masked_attention_forward" if masked else "attention_forward"), 1.0, work.sides


def _item(work: Work) -> str:
    if item := ITEM_OF_PART.get(work.part):
        return item
    if work.kind.endswith("dequantize"):
        return DEQUANTIZATION
    name = PRODUCTS if "product" in work.kind else ATTENTION if "attention" in work.kind else OTHER
    return f"{name}, {work.part}"


def _dtype(dtype: str, tf32: bool) -> RateDtype:
    """The dtype whose rates are taken. Products of fp32 may be computed in tf32. Of integers only the bytes count."""
    if dtype == "float32":
        return "tf32" if tf32 else "float32"
    return dtype if dtype in ("bfloat16", "float16") else "uint8"  # type: ignore[return-value]
