"""Deepening: make the profile of a deep model from the profile of a shallow one whose layers repeat.

The trace runs a few layers only. `deepen` repeats the middle ones, with everything that they allocate and free. This
gives the profile of a model of any depth. Leaves out which layers are alike, which the trace finds out
(trace/shallow.py).

Symbols: D traced layers, L layers of the model, p layers after which the kinds of layers repeat, q leading layers of
other kinds, before the kinds repeat.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from autotune.core.step.profile import NEIGHBOURS, Block, Op, Profile, monomials


def repetition(kinds: Sequence[Any]) -> tuple[int, int]:
    """Find q and p with the smallest q + p: after the first q layers, the kinds of layers repeat every p layers."""
    for total in range(1, len(kinds) + 1):
        for leading in range(total):
            period = total - leading
            if all(kinds[layer] == kinds[layer - period] for layer in range(total, len(kinds))):
                return leading, period
    raise ValueError("a model without layers")


def traced_layers(layers: int, period: int, leading: int = 0, reach: int = 1) -> int:
    """Return how many layers to trace so that `deepen` can make `layers` of them.

    The period that is repeated needs periods of the same kinds on both sides. reach: the largest distance, in layers,
    between the op that makes a block and the op that frees it.
    """
    beside = -(-(reach + 1) // period)  # periods on each side; the model's first and last layer may be special
    least = (2 * beside + 1) * period + (layers - leading) % period
    return min(layers, leading + least)


def repeated_layers(profile: Profile) -> range:
    """Return the traced layers that `deepen` repeats: the middle period."""
    periods = (profile.layers - profile.leading) // profile.period
    first = profile.leading + periods // 2 * profile.period
    return range(first, first + profile.period)


def with_growth(profile: Profile, deeper: Profile, shape: tuple[int, int, int]) -> Profile:
    """Return the profile with `per_layer` of the blocks outside the layers, from a second trace one period deeper.

    shape: (B, S, N) of the second trace, whose sizes are plain bytes. Raises ValueError when the blocks of the two do
    not match, or grow by anything but a whole number of bytes for each layer.
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
    """Return the same step of a model with more layers. Raises ValueError when the traced layers do not repeat.

    Each layer of the deeper model is a copy of a traced one: the first and the last traced layers are copied once, the
    middle period between them again and again. A block is copied with its layer. A free is copied with the block that
    it frees, which may belong to a neighbouring layer. That is why the period needs traced neighbours of its own kinds.
    """
    if layers == profile.layers:
        return profile
    if layers < profile.layers or (layers - profile.layers) % profile.period:
        raise ValueError(f"{profile.layers} traced layers in periods of {profile.period} cannot make {layers}")
    return _Deepening(profile, layers).result()


class _Deepening:
    """The state of one call of `deepen`."""

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
        """Yield (traced index, new layer) for each copy of an op's blocks.

        An op of a layer is copied for each new layer, and so are its blocks. An op outside the layers, such as one of
        the optimizer, is copied once, and names the blocks of all layers.
        """
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
        """Return the new layer of a block.

        own: the traced layer of the block. source: the traced layer of the op that names it. layer: the new layer of
        that op's copy. The block stays as far from the op as it was, unless it is handed from one end of the layers to
        the other.
        """
        end_to_end = self.profile.layers - self.profile.leading - self.profile.period
        if abs(own - source) >= end_to_end:
            return own + (self.layers - self.profile.layers if own > source else 0)
        return own + layer - source


def _names(profile: Profile) -> list[Any]:
    """Name each block so that the blocks of other layers that correspond to it have the same name.

    The name says which op allocated the block: its micro-step, phase and name, and how many blocks of the same layer
    such ops had allocated before. Counting by name matters because the first layer of a kind may run additional ops.
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
    """Yield runs: consecutive ops of one micro-step and phase that go over the layers once.

    - An op outside the layers that stands between two layers belongs to the layer before it. If it frees blocks of
      many layers, it is a run of its own.
    - An optimizer goes over the layers once for each group of parameters, so it has several runs.
    - An op at one end of the layers that follows an op at the other end begins a new run: the head's input may belong
      to the last layer, and the losses of routers begin at the first.
    """
    run: list[Op] = []
    seen: set[int] = set()
    current: int | None = None
    for op in profile.ops:
        again = op.layer is not None and op.layer != current and op.layer in seen
        if op.layer is not None and current is not None:
            again |= abs(op.layer - current) == profile.layers - 1 > 1
        apart = _frees_for_all(op, profile.blocks)
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


def _frees_for_all(op: Op, blocks: Sequence[Block]) -> bool:
    """Whether an op outside the layers frees blocks of more than NEIGHBOURS layers: it works for the whole model."""
    return op.layer is None and len({blocks[place].layer for place in op.frees} - {None}) > NEIGHBOURS


def _filled(run: list[Op]) -> list[Op]:
    """Give each op between two layers the layer before it."""
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
    """Split a run into consecutive ops of one layer each."""
    return [(layer, list(ops)) for layer, ops in groupby(run, key=lambda op: op.layer)]
