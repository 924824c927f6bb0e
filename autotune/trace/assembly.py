"""Assemble a profile from a record: one steady optimizer step whose block sizes are polynomials of the shape.

The recorded steps have the same structure at different shapes, so the n-th block of each step is the same block.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from autotune.core.step.profile import MONOMIALS, NEIGHBOURS, Block, Op, Phase, Profile, monomials
from autotune.core.step.regime import Shapes
from autotune.core.step.work import Work
from autotune.trace.recorder import Made, Ran, Recorder

WARMUP = 2  # steps: the first allocates optimizer states; the second starts with what a step leaves behind


class TraceError(Exception):
    """The step cannot be traced. The message says why."""


def assemble(record: Recorder, shapes: Shapes, depth: int, period: int, leading: int = 0) -> Profile:
    """Assemble one steady step from the recorded ones, with sizes as polynomials of the shape.

    shapes: (B, S, N) of the recorded steps. depth, period, leading: of the traced model (core/step/profile.py).
    Raises TraceError when the steps differ in structure, or a size is no such polynomial.
    """
    steps = [_TracedStep(record, WARMUP + number) for number in range(len(shapes))]
    first = steps[0]
    for shape, other in zip(shapes[1:], steps[1:], strict=True):
        if other.structure != first.structure:
            raise TraceError(f"from {shapes[0]} to {shape} {_difference(first.structure, other.structure)}")
    blocks = []
    for place, made in enumerate(first.blocks):
        likes = [step.blocks[place] for step in steps]
        size = fit([like.bytes for like in likes], [_monomials(like.shape, shapes) for like in likes])
        blocks.append(Block(owner=first.owner(place), layer=made.layer, size=size))
    micro_steps = max(op.micro for op in first.ops)
    return Profile(
        layers=depth,
        period=period,
        leading=leading,
        micro_steps=micro_steps,
        blocks=tuple(blocks),
        ops=tuple(first.ops),
        work=tuple(_work(record, shapes)),
    )


def _work(record: Recorder, shapes: Shapes) -> Iterator[Work]:
    """List the work of a step; equal operators become one entry with a count.

    Sides are polynomials of the shape. The tensors of a stream are added up.
    """
    values = [monomials(*shape) for shape in shapes]
    steps = [[each for each in record.worked if each.step == WARMUP + number] for number in range(len(shapes))]
    structures = [[(w.micro, w.part, w.layer, w.done.kind, len(w.done.sides)) for w in step] for step in steps]
    for shape, structure in zip(shapes[1:], structures[1:], strict=True):
        if structure != structures[0]:
            raise TraceError(f"from {shapes[0]} to {shape} {_difference(structures[0], structure)}")
    counts: Counter[Any] = Counter()
    for likes in zip(*steps, strict=True):
        one = likes[0]
        sides = tuple(fit(sizes, values) for sizes in zip(*(like.done.sides for like in likes), strict=True))
        if one.done.kind in ("stream", "share"):
            sides = (tuple(map(sum, zip(*sides, strict=True))),)
        counts[one.done.kind, one.part, one.micro, one.layer, one.done.dtype, sides] += 1
    for (kind, part, micro, layer, dtype, sides), count in counts.items():
        yield Work(kind=kind, part=part, micro=micro, layer=layer, dtype=dtype, sides=sides, count=count)


def _monomials(step: int, shapes: Shapes) -> tuple[int, ...]:
    """The monomials at the shape of a recorded step."""
    return monomials(*shapes[min(max(step - WARMUP, 0), len(shapes) - 1)])


class _TracedStep:
    """One recorded optimizer step. Its blocks are numbered in the order of allocation."""

    def __init__(self, record: Recorder, number: int) -> None:
        self.record, self.number = record, number
        self.blocks: list[Made] = []
        self.places: dict[int, int] = {}  # number in the record -> number here
        self.freed_in: dict[int, tuple[int, str]] = {}
        ran = [op for op in record.ran if op.step == number]
        self.used_last: dict[int, list[int]] = defaultdict(list)  # by id() of the operator
        for place, at in record.used.items():
            self.used_last[id(record.ran[at])].append(place)
        before = {place for op in record.ran if op.step < number for place in op.made}
        before -= {place for op in record.ran if op.step < number for place in op.died}
        persistent = sorted(before, key=lambda place: (record.made[place].phase == "batch", place))
        self.ops = [self._op(Ran(number, 0, "load", None, "load", persistent, []))]
        self.ops.append(self._op(self._collated([op for op in ran if op.phase == "batch"])))
        self.ops += [self._op(op) for op in ran if op.phase != "batch"]
        self.ops = [part for op in self.ops for part in self._parts(op)]
        self.of_the_loss = self._of_the_loss()
        for op in self.ops:
            for place in op.frees:
                self.freed_in[place] = (op.micro, op.phase)

    def _collated(self, ran: Sequence[Ran]) -> Ran:
        """Join all operators of collating into one op: their number depends on the rows."""
        died = {place for op in ran for place in op.died}
        made = [place for op in ran for place in op.made if place not in died]
        old = sorted(died - {place for op in ran for place in op.made})
        return Ran(self.number, 0, "batch", None, "collate", made, old)

    def _op(self, ran: Ran) -> Op:
        for place in ran.made:
            self.places[place] = len(self.blocks)
            self.blocks.append(self.record.made[place])
        phase: Phase = ran.phase  # type: ignore[assignment]
        return Op(
            name=ran.name.removeprefix("aten.").removesuffix(".default"),
            micro=ran.micro,
            phase=phase,
            layer=ran.layer,
            allocates=tuple(self.places[place] for place in ran.made),
            frees=tuple(sorted(self.places[place] for place in ran.died)),
            last_uses=tuple(sorted(self.places[place] for place in self.used_last[id(ran)] if place in self.places)),
        )

    def _parts(self, op: Op) -> Sequence[Op]:
        """Split an op of one layer that frees blocks of many layers: an op of the whole model then frees them."""
        layers = {self.blocks[place].layer for place in op.frees} - {None}
        if op.layer is None or len(layers) <= NEIGHBOURS:
            return [op]
        return [replace(op, frees=()), replace(op, name="release", layer=None, allocates=(), last_uses=())]

    def _of_the_loss(self) -> set[int]:
        """Blocks that the backward allocates before it reaches the last layer: gradients of the logits."""
        reached: set[int] = set()  # micro-steps whose backward is in the layers
        found: set[int] = set()
        for op in self.ops:
            if op.phase == "backward":
                if op.layer is not None:
                    reached.add(op.micro)
                elif op.micro not in reached:
                    found.update(op.allocates)
        return found

    @property
    def structure(self) -> list[Any]:
        """Everything of the step that must not depend on the shape."""
        return [(op.name, op.micro, op.phase, op.layer, op.allocates, op.frees) for op in self.ops]

    def owner(self, place: int) -> str:
        """What a block holds, in words ('activations', 'workspace', ...)."""
        made = self.blocks[place]
        if made.owner is not None:
            return made.owner
        if made.step < self.number:
            return "other"
        if made.phase == "forward":
            return "workspace" if self.freed_in.get(place) == (made.micro, "forward") else "activations"
        if made.phase == "loss" or place in self.of_the_loss:
            return "logits and loss"
        return "other" if made.phase == "batch" else "workspace"


def _difference(one: Sequence[Any], other: Sequence[Any]) -> str:
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            return f"{mine} becomes {theirs}"
    return f"{len(one)} operators become {len(other)}"


def fit(sizes: Sequence[int], values: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Fit sizes by a polynomial of the fewest monomials, at most two, that gives every size exactly.

    sizes: at each shape. values: the monomials at each shape. Returns a factor for each monomial. Raises TraceError
    when no two monomials give all sizes.
    """
    if len(set(sizes)) == 1:
        return _size({0: sizes[0]})
    for column in range(1, len(MONOMIALS)):
        if not values[0][column]:
            continue
        factor, rest = divmod(sizes[0], values[0][column])
        if rest == 0 and all(size == factor * row[column] for size, row in zip(sizes, values, strict=True)):
            return _size({column: factor})
    for first in range(len(MONOMIALS)):
        for second in range(first + 1, len(MONOMIALS)):
            if (pair := _solve(sizes, values, first, second)) is not None:
                return _size({first: pair[0], second: pair[1]})
    raise TraceError(f"sizes {list(sizes)} follow no law of two monomials")


def _solve(sizes: Sequence[int], values: Sequence[Sequence[int]], first: int, second: int) -> tuple[int, int] | None:
    for one, other in combinations(range(len(sizes)), 2):
        (a, b), (c, d) = ((values[place][first], values[place][second]) for place in (one, other))
        if (determinant := a * d - b * c) == 0:
            continue
        x, x_rest = divmod(sizes[one] * d - b * sizes[other], determinant)
        y, y_rest = divmod(a * sizes[other] - sizes[one] * c, determinant)
        fits = all(size == x * row[first] + y * row[second] for size, row in zip(sizes, values, strict=True))
        return (x, y) if not x_rest and not y_rest and fits else None
    return None


def _size(factors: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(factors.get(column, 0) for column in range(len(MONOMIALS)))
