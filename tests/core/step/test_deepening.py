"""A profile of a shallow model stands for a deep one."""

import pytest

from autotune.core.step.deepening import deepen, repetition, traced_layers
from autotune.core.step.profile import Profile
from tests.core.step.test_profile import ACTIVATION, Writer, block, step


@pytest.mark.parametrize("layers", [5, 6, 9, 33])
def test_a_deepened_profile_is_that_of_the_deep_model(layers: int) -> None:
    """Five layers alike: the first, the last, and a middle one that is repeated with everything it frees."""
    assert plain(deepen(step(traced_layers(layers, 1)), layers)) == plain(step(layers))


@pytest.mark.parametrize(("layers", "period"), [(8, 2), (9, 2), (26, 6), (3, 6), (48, 6)])
def test_layers_of_several_kinds_keep_their_order(layers: int, period: int) -> None:
    """Sliding and global attention alternate: the kinds of the last layers depend on the depth."""
    assert plain(deepen(step(traced_layers(layers, period), period), layers)) == plain(step(layers, period))


@pytest.mark.parametrize(("layers", "period"), [(14, 1), (33, 1), (24, 2), (25, 2), (24, 4)])
def test_what_is_freed_several_layers_later_is_so_in_a_deep_model(layers: int, period: int) -> None:
    """A layer's input on its way to the host stays on the device while four more are sent."""

    def stash(depth: int) -> Profile:
        writer, made = Writer(depth, period), list[int]()
        writer.op("load", "load", None, [block("weights", None, 500)])
        for layer in range(depth):
            sent = [block("activations", layer, 2 + layer % period, ACTIVATION)]
            made += writer.op("send", "forward", layer, sent, made[-5:-4])
        writer.op("head", "loss", None, [block("logits and loss", None, 50, ACTIVATION)], made[-5:])
        return writer.profile()

    shallow = stash(traced_layers(layers, period, reach=5))
    assert shallow.layers < layers
    assert plain(deepen(shallow, layers)) == plain(stash(layers))


def test_what_all_layers_leave_is_freed_once_for_all_of_them() -> None:
    """Routers' logits outlive their layers; the last layer's loss goes on when they are gone."""

    def routed(depth: int) -> Profile:
        writer, made = Writer(depth, 1), list[int]()
        writer.op("load", "load", None, [block("weights", None, 500)])
        for layer in range(depth):
            made += writer.op("route", "forward", layer, [block("activations", layer, 2, ACTIVATION)])
        losses = [writer.op("score", "loss", layer, [block("logits and loss", layer, 3)])[0] for layer in range(depth)]
        writer.op("release", "loss", None, [], made)
        writer.op("sum", "loss", depth - 1, [block("logits and loss", depth - 1, 1)], losses[-1:])
        writer.op("update", "optimizer", None, [], losses[:-1])
        return writer.profile()

    assert plain(deepen(routed(traced_layers(12, 1)), 12)) == plain(routed(12))


def test_the_head_takes_what_the_last_layer_left_before_losses_begin_at_the_first() -> None:
    """Two ways over the layers in one phase, the first of which has but one stop."""

    def scored(depth: int) -> Profile:
        writer = Writer(depth, 1)
        writer.op("load", "load", None, [block("weights", None, 500)])
        [hidden] = writer.op("cast", "loss", depth - 1, [block("logits and loss", depth - 1, 9, ACTIVATION)])
        for layer in range(depth):
            writer.op("score", "loss", layer, [block("logits and loss", layer, 3)])
        writer.op("release", "loss", None, [], [hidden])
        return writer.profile()

    assert plain(deepen(scored(traced_layers(12, 1)), 12)) == plain(scored(12))


def plain(profile: Profile) -> object:
    """A profile with the frees of each op in order."""
    ops = [(op.name, op.layer, op.allocates, sorted(op.frees), sorted(op.last_uses)) for op in profile.ops]
    return profile.layers, profile.blocks, ops


def test_a_depth_of_another_rest_is_refused() -> None:
    """Seven layers of period two cannot stand for eight: the last would be of the wrong kind."""
    with pytest.raises(ValueError, match="cannot make 8"):
        deepen(step(7, 2), 8)


def test_leading_layers_of_another_kind_stay_where_they_are() -> None:
    """Dense layers before those of experts: only what repeats behind them is repeated."""
    assert repetition(["dense", "moe", "moe", "moe", "moe"]) == (1, 1)
    assert repetition(["near", "far", "near", "far", "near"]) == (0, 2)
    assert repetition(["a", "a", "b", "c", "b", "c"]) == (2, 2)
    assert traced_layers(61, 1, 3) == 8
