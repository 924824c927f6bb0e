"""Activation offloading: what waits in the host's memory is not on the device, and the bytes are the same."""

from dataclasses import replace

from autotune.core.memory import memory_law, peak
from autotune.core.profile import OFFLOADED, deepen, monomials
from autotune.trace import trace
from tests.test_trace import request


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
