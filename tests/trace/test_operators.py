"""The work of a traced step against torch's own counter of operations, over a real step of the real model."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile, monomials
from autotune.core.time.common_steps import mixture
from autotune.core.time.law import TimeLaw, time_law
from autotune.trace.request import TraceRequest
from autotune.trace.trace import trace

ROWS, LENGTH = 2, 48
CANDIDATE = Candidate(
    max_length=LENGTH,
    per_device_train_batch_size=ROWS,
    gradient_accumulation_steps=1,
    method="full",
    attention="eager",  # products, which the counter knows on a CPU
    mixed_precision="no",
)


def llama(layers: int) -> LlamaConfig:
    """The model: a trace of one layer takes a second, and the work of a layer does not depend on how many there are."""
    return LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


CONFIG = llama(layers=1)


@cache  # several tests look at the same steps
def traced(
    *, layers: int = 1, loss: Any = "full_logits", capability: Any = None, masked: bool = False, **knobs: Any
) -> Profile:
    return trace(
        TraceRequest(
            config=llama(layers).to_dict(),
            candidate=replace(CANDIDATE, **knobs),
            recipe=Recipe(method="full"),
            masked=masked,
            loss=loss,
            capability=capability,
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


@pytest.mark.parametrize("capability", [None, (8, 0)])
def test_the_fused_head_computes_its_logits_twice(capability: Any) -> None:
    """Four products of it, over the labels; of full logits there are three, over all positions."""
    head = 2.0 * CONFIG.hidden_size * CONFIG.vocab_size
    full, fused = (
        multiplications(traced(loss=loss, capability=capability, checkpointing="off"))
        for loss in ("full_logits", "fused")
    )
    assert fused - full == pytest.approx(head * (4 * ROWS * (LENGTH - 1) - 3 * ROWS * LENGTH), rel=0.02)


@pytest.mark.parametrize(("rows", "masked", "kind"), [(1, False, "attention"), (2, True, "masked_attention")])
def test_padded_rows_are_attended_to_in_full(rows: int, masked: bool, kind: str) -> None:
    """Of sdpa on a GPU: a mask has all pairs computed, forward and backward, where a flag would have half of them."""
    knobs = {"attention": "sdpa", "per_device_train_batch_size": rows, "weights_dtype": "bfloat16"}
    profile = traced(capability=(8, 0), masked=masked, **knobs)
    assert {work.kind for work in profile.work if "attention" in work.kind} == {kind, f"{kind}_backward"}


def test_streams_of_the_optimizer_touch_every_parameter() -> None:
    """Fused AdamW reads and writes weights, gradients and two states of each parameter in fp32."""
    profile = traced(checkpointing="off", optimizer="adamw_torch_fused")
    parameters = AutoModelForCausalLM.from_config(CONFIG).num_parameters()
    moved = sum(work.count * work.sides[0][0] for work in profile.work if work.part == "optimizer")
    assert 7 * 4 * parameters <= moved <= 9 * 4 * parameters


def test_states_are_taken_out_of_eight_bits_and_put_back() -> None:
    """On a CPU both of bitsandbytes' AdamW, every step, with dozens of passes of four bytes between the two. Embeddings
    keep theirs in fp32, and so do parameters of fewer than 4096 numbers."""
    profile = traced(checkpointing="off", optimizer="adamw_8bit")
    model = AutoModelForCausalLM.from_config(CONFIG)
    embeddings = model.get_input_embeddings().weight
    quantized = sum(p.numel() for p in model.parameters() if p.numel() >= 4096 and p is not embeddings)
    work = [work for work in profile.work if work.part == "optimizer"]
    moved = sum(each.count * sum(side[0] for side in each.sides) for each in work if each.kind == "stream")
    assert moved >= 20 * 4 * model.num_parameters()
    end = time_law(profile, layers=1, accumulation=1).step_end
    for what in ("blockwise_quantize", "blockwise_dequantize"):
        assert sum(count * group.sides[0][0] for group, count in end.items() if group.what == what) == 2 * quantized


def law(*, layers: int = 1, **knobs: Any) -> TimeLaw:
    """Of a step of one micro-step, however many were traced."""
    return time_law(traced(layers=layers, **knobs), layers=layers, accumulation=1)


def counts(law: TimeLaw) -> dict[Any, float]:
    return {group: count for group, count in law.micro_step.items() if count}


def test_some_layers_recomputed_are_between_none_and_all() -> None:
    """Two of three layers: every operator as often as when such a step is traced itself."""
    found = mixture([law(layers=3, checkpointing="off"), law(layers=3, checkpointing="full")], [1 / 3, 2 / 3])
    some = law(layers=3, checkpointing="every_n", every_n_layers=2)
    assert counts(found) == pytest.approx(counts(some))
    assert found.operators == pytest.approx(some.operators)


def test_a_single_micro_step_is_the_first_of_two() -> None:
    """It makes the gradients, and adds to none: every operator as often as when it is traced by itself."""
    found, alone = (law(gradient_accumulation_steps=micro_steps) for micro_steps in (2, 1))
    assert counts(found) == pytest.approx(counts(alone))
    assert found.operators == pytest.approx(alone.operators)
