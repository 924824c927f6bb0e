"""A profile: what one training step allocates, as plain numbers that hold for any depth, batch and length.

The trace (trace/trace.py) runs the real trainer on a shallow model at a few shapes. What it saw is kept here: blocks of
memory with sizes as polynomials of the shape, and the operators that allocate and free them, each with the phase and
decoder layer it belongs to. `deepen` repeats the middle layers, so that a model of any depth follows from a shallow
one. Leaves out the allocator, which rounds and fragments, and what it all adds up to (core/memory/law.py).

Symbols: B rows of a micro-batch, S positions of a row (padding included), N label positions that the head scores, T
those in the second of its tiles, D traced layers, L layers of the model, p layers after which their kinds repeat,
behind q leading ones of other kinds.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Literal

from autotune.core.step.regime import ALIGNMENT, SUMS_ALIGNMENT, TILE
from autotune.core.step.work import Work, work_from_dict

Phase = Literal["load", "batch", "forward", "loss", "backward", "clip", "optimizer", "end"]
FORWARD: tuple[Phase, ...] = ("forward", "loss")
MONOMIALS = ("1", "B", "S", "BS", "SS", "BSS", "N", "T", "BV", "BSU")
PAGED = "paged optimizer states"
OFFLOADED = "offloaded activations"
NEIGHBOURS = 2  # layers whose blocks an op of one layer frees: its own, and what the one beside it handed over
ON_THE_HOST = (PAGED, OFFLOADED)  # owners whose blocks are not in the device's memory
OF_BLOCKS = ("allocates", "frees", "last_uses")  # what ops say of blocks
Size = tuple[int, ...]  # bytes per monomial, shape (len(MONOMIALS),)


def monomials(rows: int, positions: int, labels: int) -> Size:
    """The values of MONOMIALS for one micro-batch.

    U and V are S rounded up, as CUDA's memory-efficient attention does for a mask and for its sums of rows.
    Two tiles are traced, the second as long as what is left. Of more than two it is a whole one, and none after it
    needs more.
    """
    B, S, N = rows, positions, labels
    T = (abs(N - TILE) - abs(N - 2 * TILE) + TILE) // 2  # N - TILE, at least 0 and at most TILE; also for arrays
    U, V = (-(-S // multiple) * multiple for multiple in (ALIGNMENT, SUMS_ALIGNMENT))
    return (1, B, S, B * S, S * S, B * S * S, N, T, B * V, B * S * U)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One piece of memory: a tensor's storage.

    owner: what it holds, in the words of core/memory/law.py. layer: decoder layer it belongs to, None outside of them.
    size: bytes per monomial. per_layer: further bytes for each layer that the model has more than was traced.
    """

    owner: str
    layer: int | None
    size: Size
    per_layer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator that allocated: the blocks it made, then those freed before the next one; both by index.

    micro: micro-step within the optimizer step, from 1; 0 before the first. last_uses: blocks of a forward that nothing
    after it in this forward needs; without a backward to come they would be freed.
    """

    name: str
    micro: int
    phase: Phase
    layer: int | None
    allocates: tuple[int, ...]
    frees: tuple[int, ...]
    last_uses: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One optimizer step in its steady state. The first op (phase `load`) holds what was there before it.

    layers: D. period: p. leading: q. work: what the operators do; of the D layers, also once it is deepened.
    """

    layers: int
    period: int
    micro_steps: int
    blocks: tuple[Block, ...]
    ops: tuple[Op, ...]
    leading: int = 0
    work: tuple[Work, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `profile_from_dict` reads them back."""
        return asdict(self)


def profile_from_dict(values: Mapping[str, Any]) -> Profile:
    """Read a profile back. Raises KeyError, TypeError or ValueError when it is not one."""
    blocks = tuple(Block(**{**block, "size": tuple(block["size"])}) for block in values["blocks"])
    ops = tuple(Op(**{**op, **{name: tuple(op[name]) for name in OF_BLOCKS}}) for op in values["ops"])
    if any(index >= len(blocks) for op in ops for name in OF_BLOCKS for index in getattr(op, name)):
        raise ValueError("a profile names a block that it does not have")
    return Profile(**{**values, "blocks": blocks, "ops": ops, "work": tuple(map(work_from_dict, values["work"]))})


def blocks_per_micro_step(profile: Profile) -> list[int]:
    """Blocks whose number goes with the micro-steps: all micro-batches of a step are fetched before the first.

    Not so the micro-batch that accelerate fetched ahead in the step before, of which there is one.
    """
    load, *ops = profile.ops
    ahead = set(load.allocates).difference(*(op.frees for op in ops))
    return [place for place, block in enumerate(profile.blocks) if block.owner == "batch" and place not in ahead]


def frees_for_all(op: Op, blocks: Sequence[Block]) -> bool:
    """Whether an op frees blocks of more layers than one has neighbours, hence for the whole model."""
    return op.layer is None and len({blocks[place].layer for place in op.frees} - {None}) > NEIGHBOURS


def repetition(kinds: Sequence[Any]) -> tuple[int, int]:
    """(q, p) with the smallest sum such that the kinds of layers repeat after p behind the first q."""
    for total in range(1, len(kinds) + 1):
        for leading in range(total):
            period = total - leading
            if all(kinds[layer] == kinds[layer - period] for layer in range(total, len(kinds))):
                return leading, period
    raise ValueError("a model without layers")


def traced_layers(layers: int, period: int, leading: int = 0, reach: int = 1) -> int:
    """How many layers to trace so that `deepen` makes `layers` of them: a period with its like on both sides.

    reach: layers from one that frees a block to the one that made it.
    """
    beside = -(-(reach + 1) // period)  # periods; the first and last layer of all may be special
    least = (2 * beside + 1) * period + (layers - leading) % period
    return min(layers, leading + least)


def repeated_layers(profile: Profile) -> range:
    """The traced layers that `deepen` repeats: the middle period."""
    periods = (profile.layers - profile.leading) // profile.period
    first = profile.leading + periods // 2 * profile.period
    return range(first, first + profile.period)


def with_growth(profile: Profile, deeper: Profile, shape: tuple[int, int, int]) -> Profile:
    """Note what each block outside the layers gains with a layer, from a second trace that is a period deeper.

    shape: (B, S, N) of the second trace. Raises ValueError where what grows does not grow with the layers.
    """
    outside: dict[int, list[int]] = defaultdict(list)
    for number, traced in enumerate((profile, deeper)):
        for op in traced.ops:
            outside[number] += [place for place in op.allocates if traced.blocks[place].layer is None]
    if len(outside[0]) != len(outside[1]):
        raise ValueError(f"{len(outside[0])} blocks outside the layers, {len(outside[1])} in a deeper model")
    values = monomials(*shape)
    blocks = list(profile.blocks)
    for here, there in zip(outside[0], outside[1], strict=True):
        gain = deeper.blocks[there].size[0] - sum(x * y for x, y in zip(blocks[here].size, values, strict=True))
        if gain % profile.period:
            raise ValueError(f"{gain} bytes more in {profile.period} layers more")
        blocks[here] = replace(blocks[here], per_layer=gain // profile.period)
    return replace(profile, blocks=tuple(blocks))


def deepen(profile: Profile, layers: int) -> Profile:
    """The same step of a model with more layers. Raises ValueError when the traced layers do not repeat.

    Layer t of the deeper model is a copy of traced layer sigma(t): the first and last ones are themselves, those
    between repeat the middle period. A block is copied with its layer, and a free follows the block it freed, which
    may belong to a neighbouring layer; that is why the repeated layers have traced neighbours of their own kind.
    """
    if layers == profile.layers:
        return profile
    if layers < profile.layers or (layers - profile.layers) % profile.period:
        raise ValueError(f"{profile.layers} traced layers in periods of {profile.period} cannot make {layers}")
    return _Deepening(profile, layers).result()


class _Deepening:
    """One call of `deepen`."""

    def __init__(self, profile: Profile, layers: int) -> None:
        self.profile, self.layers = profile, layers
        self.source = [self._source(layer) for layer in range(layers)]
        self.blocks: list[Block] = []
        self.ops: list[Op] = []
        self.place: dict[tuple[Any, int | None], int] = {}  # (name of a block, its new layer) -> its new index
        self.names = _names(profile)

    def _source(self, layer: int) -> int:
        middle, added = repeated_layers(self.profile), self.layers - self.profile.layers
        if layer < middle.stop:
            return layer
        if layer >= middle.stop + added:
            return layer - added
        return middle.start + (layer - middle.start) % self.profile.period

    def result(self) -> Profile:
        for run in _runs(self.profile):
            layered = [op.layer for op in run if op.layer is not None]
            if not layered:
                for op in run:
                    self._copy(op, None)
                continue
            groups = _by_layer(run)
            order = [layer for layer, _ in groups]
            inner = [layer for layer in order if layer is not None]
            if inner not in (sorted(set(inner)), sorted(set(inner), reverse=True)):
                raise ValueError(f"layers are not visited in order: {inner}")
            rising = inner == sorted(inner)
            by_layer = {layer: ops for layer, ops in groups if layer is not None}
            for op in groups[0][1] if order[0] is None else ():
                self._copy(op, None)
            for layer in range(self.layers) if rising else range(self.layers - 1, -1, -1):
                for op in by_layer.get(self.source[layer], ()):
                    self._copy(op, layer)
            for op in groups[-1][1] if order[-1] is None and len(groups) > 1 else ():
                self._copy(op, None)
        extra = self.layers - self.profile.layers
        blocks = tuple(
            replace(block, size=(block.size[0] + extra * gain, *block.size[1:])) if (gain := block.per_layer) else block
            for block in self.blocks
        )
        return replace(self.profile, layers=self.layers, blocks=blocks, ops=tuple(self.ops))

    def _copy(self, op: Op, layer: int | None) -> None:
        """Append a copy of an op at a new layer, or once for the whole model."""
        made = []
        for index, target in self._copies(op.allocates, op, layer):
            made.append(len(self.blocks))
            self.place[self.names[index], target] = len(self.blocks)
            block = self.profile.blocks[index]
            self.blocks.append(block if block.layer == target else replace(block, layer=target))
        used = [
            self.place[self.names[index], target]
            for index, target in self._copies(op.last_uses, op, layer)
            if (self.names[index], target) in self.place
        ]
        freed = []
        for index, target in self._copies(op.frees, op, layer):
            place = self.place.pop((self.names[index], target), None)
            if place is None:
                raise ValueError(f"{op.name} of layer {layer} frees what layer {target} does not have")
            freed.append(place)
        self.ops.append(replace(op, layer=layer, allocates=tuple(made), frees=tuple(freed), last_uses=tuple(used)))

    def _copies(self, indexes: Sequence[int], op: Op, layer: int | None) -> Iterable[tuple[int, int | None]]:
        """What becomes of an op's blocks, as (traced index, new layer); an op of the whole model has all layers'."""
        owning = self.profile.blocks
        if layer is not None and op.layer is not None:
            for index in indexes:
                own = owning[index].layer
                yield index, None if own is None else self._target(own, op.layer, layer)
            return
        for is_layered, group in groupby(indexes, key=lambda index: owning[index].layer is not None):
            members = list(group)
            if not is_layered:
                yield from ((index, None) for index in members)
                continue
            for target, source in enumerate(self.source):
                yield from ((index, target) for index in members if owning[index].layer == source)

    def _target(self, own: int, source: int, layer: int) -> int:
        """The new layer of a block of traced layer `own`, named by the copy at `layer` of an op of layer `source`.

        It is as far from that layer as it was, except where it is handed from one end of the layers to the other.
        """
        end_to_end = self.profile.layers - self.profile.leading - self.profile.period
        if abs(own - source) >= end_to_end:
            return own + (self.layers - self.profile.layers if own > source else 0)
        return own + layer - source


def _names(profile: Profile) -> list[Any]:
    """A name for each block that its likes in other layers share: which op of its layer's turn allocated it.

    Counted are the ops of one name: the first layer of its kind may do more than its likes, and seldom more of each.
    """
    names: list[Any] = [None] * len(profile.blocks)
    counts: dict[Any, int] = defaultdict(int)
    for op in profile.ops:
        for index in op.allocates:
            kind = (op.micro, op.phase, op.name, op.layer is None)
            turn = (*kind, profile.blocks[index].layer)
            names[index] = (*kind, profile.blocks[index].layer is None, counts[turn])
            counts[turn] += 1
    return names


def _runs(profile: Profile) -> Iterable[list[Op]]:
    """Consecutive ops of one micro-step and phase that go over the layers once.

    What stands between two layers counts to the one before it, unless it frees blocks of many for the whole model: that
    is a run of its own. An optimizer goes over the layers once for each group of parameters. A step from one end to the
    other begins anew: the head's input may be the last layer's, and losses of the routers begin at the first.
    """
    run: list[Op] = []
    seen: set[int] = set()
    current: int | None = None
    for op in profile.ops:
        again = op.layer is not None and op.layer != current and op.layer in seen
        if op.layer is not None and current is not None:
            again |= abs(op.layer - current) == profile.layers - 1 > 1
        apart = frees_for_all(op, profile.blocks)
        if run and (again or apart or (op.micro, op.phase) != (run[0].micro, run[0].phase)):
            yield _filled(run)
            run, seen, current = [], set(), None
        if apart:
            yield [op]
            continue
        run.append(op)
        if op.layer is not None:
            seen.add(op.layer)
            current = op.layer
    if run:
        yield _filled(run)


def _filled(run: list[Op]) -> list[Op]:
    layered = [place for place, op in enumerate(run) if op.layer is not None]
    if not layered:
        return run
    filled, layer = [], None
    for place, op in enumerate(run):
        if op.layer is not None:
            layer = op.layer
        elif layered[0] < place < layered[-1]:
            op = replace(op, layer=layer)
        filled.append(op)
    return filled


def _by_layer(run: Sequence[Op]) -> list[tuple[int | None, list[Op]]]:
    return [(layer, list(ops)) for layer, ops in groupby(run, key=lambda op: op.layer)]
