"""The work of a traced step against torch's own counter of operations, over a real step of the real model."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from autotune.core.candidate import Candidate
from autotune.core.profile import Profile, monomials
from autotune.core.recipe import Recipe
from autotune.trace import TraceRequest, trace

ROWS, LENGTH = 2, 48
CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
CANDIDATE = Candidate(
    max_length=LENGTH,
    per_device_train_batch_size=ROWS,
    gradient_accumulation_steps=1,
    method="full",
    attention="eager",  # products, which the counter knows on a CPU
    mixed_precision="no",
)


def traced(**knobs: Any) -> Profile:
    candidate = replace(CANDIDATE, **knobs)
    return trace(
        TraceRequest(
            config=CONFIG.to_dict(),
            candidate=candidate,
            recipe=Recipe(method="full"),
            masked=False,
            loss="full_logits",
        )
    )


def multiplications(profile: Profile) -> float:
    """Of all products of a step, two for each pair as torch counts them: one to multiply, one to add."""
    values = monomials(ROWS, LENGTH, ROWS * (LENGTH - 1))
    total = 0.0
    for work in profile.work:
        if work.kind == "product":
            sides = [sum(x * y for x, y in zip(side, values, strict=True)) for side in work.sides]
            total += 2.0 * work.count * sides[0] * sides[1] * sides[2] * sides[3]
    return total


@pytest.mark.parametrize("checkpointing", ["off", "full"])
def test_products_are_those_that_torch_counts(checkpointing: Any) -> None:
    """Forward and backward, and the forward once more where activations are recomputed."""
    model = AutoModelForCausalLM.from_config(CONFIG, attn_implementation="eager")
    model.train()
    if checkpointing == "full":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens = torch.ones(ROWS, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    assert multiplications(traced(checkpointing=checkpointing)) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_streams_of_the_optimizer_touch_every_parameter() -> None:
    """Fused AdamW reads and writes weights, gradients and two states of each parameter in fp32."""
    profile = traced(checkpointing="off", optimizer="adamw_torch_fused")
    parameters = AutoModelForCausalLM.from_config(CONFIG).num_parameters()
    moved = sum(work.count * work.sides[0][0] for work in profile.work if work.part == "optimizer")
    assert 7 * 4 * parameters <= moved <= 9 * 4 * parameters
