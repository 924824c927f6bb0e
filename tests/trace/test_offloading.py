"""Activation offloading: what waits in the host's memory is not on the device, and the bytes are the same."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import Qwen3MoeConfig

from autotune.core.memory.law import memory_law, peak
from autotune.core.step.deepening import deepen, with_growth
from autotune.core.step.profile import OFFLOADED, Profile, monomials
from autotune.trace.trace import set_up_trace, trace, trace_all_shapes, trace_deeper, trace_whole
from tests.trace.test_trace import request


def test_saved_activations_wait_on_the_host() -> None:
    """A step of TRL's own offloading: the device keeps little of them, the host has what left."""
    asked = request(5, capability=(8, 0), method="lora_int8", per_device_train_batch_size=2)
    shape = monomials(2, 4096, 2 * 4095)
    kept = peak(memory_law(trace(asked), layers=5, accumulation=1), shape)
    away = replace(asked, candidate=replace(asked.candidate, activation_offloading=True))
    profile = trace(away)
    least = peak(memory_law(profile, layers=5, accumulation=1), shape)
    assert least.items["activations"] < kept.items["activations"] / 2
    host = sum(
        sum(factor * value for factor, value in zip(block.size, shape, strict=True))
        for block in deepen(profile, 5).blocks
        if block.owner == OFFLOADED
    )
    assert kept.items["activations"] / 2 < host <= 1.5 * kept.items["activations"]


@pytest.mark.parametrize(("checkpointing", "every", "layers"), [("full", 1, 17), ("every_n", 2, 12)])
def test_what_waits_to_be_sent_is_no_more_in_a_deep_model(checkpointing: Any, every: int, layers: int) -> None:
    """TRL holds five tensors until they are sent: with checkpointing those are the inputs of five layers."""
    knobs = {"checkpointing": checkpointing, "every_n_layers": every, "activation_offloading": True}
    asked = request(layers, capability=(8, 0), mixed_precision="no", **knobs)
    shape = (2, 1000, 1500)
    setup = replace(set_up_trace(asked), shapes=(shape,))  # tracing other shapes too would say nothing about layers
    profile = with_growth(trace_all_shapes(setup), trace_deeper(setup), shape)
    assert profile.layers < layers
    assert held_for_the_loss(deepen(profile, layers), shape) == held_for_the_loss(trace_whole(asked, shape), shape)


@pytest.mark.parametrize(("coefficient", "layers"), [(0.001, 15), (0.0, 5)])
def test_losses_of_routers_wait_in_the_stash_too(coefficient: float, layers: int) -> None:
    """One a layer, so that a stash spans six of them; without such losses a layer fills it by itself."""
    config = Qwen3MoeConfig(num_hidden_layers=48, router_aux_loss_coef=coefficient).to_dict()
    asked = request(5, capability=(8, 0), checkpointing="off", activation_offloading=True)
    assert set_up_trace(replace(asked, config=config)).depth == layers


def held_for_the_loss(profile: Profile, shape: tuple[int, int, int]) -> int:
    """Bytes of activations on the device when the last layer has run."""
    live = 0
    for op in profile.ops:
        if op.phase == "loss":
            break
        for sign, places in ((1, op.allocates), (-1, op.frees)):
            blocks = [profile.blocks[place] for place in places if profile.blocks[place].owner == "activations"]
            live += sign * sum(
                sum(x * y for x, y in zip(block.size, monomials(*shape), strict=True)) for block in blocks
            )
    return live
