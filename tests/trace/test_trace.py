"""The trace: what it says of the real trainer is what torch's own allocator counts, byte by byte."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.estimate import demand_of
from autotune.core.memory.law import memory_law, peak
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile, monomials
from autotune.core.step.regime import micro_batch
from autotune.trace.request import TraceRequest, reduced
from autotune.trace.trace import trace, trace_whole
from tests.core.test_candidate import OTHER_VALUES

CONFIG = LlamaConfig(
    vocab_size=600, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2
).to_dict()


def request(layers: int, capability: Any = None, **knobs: Any) -> TraceRequest:
    """A step of a small llama, on a CPU unless a capability says which GPU."""
    values: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "method": "full"}
    candidate = Candidate(**{"max_length": 256, **values, **knobs})
    config = {**CONFIG, "num_hidden_layers": layers}
    recipe = Recipe(method=candidate.method)
    return TraceRequest(config=config, candidate=candidate, recipe=recipe, masked=False, capability=capability)


@pytest.mark.parametrize(
    "knobs",
    [
        {"checkpointing": "full", "gradient_accumulation_steps": 2},
        {"method": "lora", "checkpointing": "selective", "per_device_train_batch_size": 1},
        {"optimizer": "adamw_torch", "weights_dtype": "bfloat16", "capability": (8, 0)},
        {"method": "qlora", "batching": "pack_bfd", "packed_length": 256, "optimizer": "adamw_8bit"},
    ],
)
def test_a_deep_model_follows_from_a_shallow_one(knobs: dict[str, Any]) -> None:
    """Five layers traced and seven deduced are seven traced, to the byte, at a shape that was not traced."""
    asked = request(7, **knobs)
    accumulation = asked.candidate.gradient_accumulation_steps
    rows, length = micro_batch(asked.candidate, 777)
    assert_deduced_is_traced(asked, (rows, length, rows * (length - 1)), accumulation=accumulation)


def assert_deduced_is_traced(asked: TraceRequest, shape: tuple[int, int, int], *, accumulation: int = 1) -> None:
    """The peak of a shape (B, S, N): as it follows from a trace, and as it is where all layers are traced with it."""
    deduced, traced = (
        memory_law(profile, layers=asked.config["num_hidden_layers"], accumulation=accumulation)
        for profile in (trace(asked), trace_whole(asked, shape))
    )
    assert peak(deduced, monomials(*shape)) == peak(traced, monomials(*shape))


def test_all_micro_steps_follow_from_two() -> None:
    """Three micro-steps traced have what two have, and one more micro-batch."""
    asked = request(1, gradient_accumulation_steps=3, method="lora", capability=(8, 0))
    assert_deduced_is_traced(asked, (2, 100, 150), accumulation=3)


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of storages that operators make, for as long as these live; the most that did at one time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in tree_leaves(args) if isinstance(value, torch.Tensor)}
        for value in tree_leaves(result):
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            if (key := storage.data_ptr()) not in given and key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, key)
        self.most = max(self.most, sum(self.sizes.values()))
        return result


@pytest.fixture(scope="module")
def step_without_recomputation() -> tuple[TraceRequest, Profile]:
    """What was asked, and the profile: of three layers whose vocabulary is larger than their activations."""
    asked = replace(request(3, checkpointing="off", mixed_precision="no", optimizer="adamw_torch"), loss="full_logits")
    asked = replace(asked, config={**asked.config, "vocab_size": 2000})
    return asked, trace(asked)


@pytest.mark.parametrize(("rows", "length"), [(2, 100), (3, 700)])
def test_an_evaluation_holds_what_a_forward_without_gradients_does(
    step_without_recomputation: tuple[TraceRequest, Profile], rows: int, length: int
) -> None:
    """Of a training step's forward it keeps each tensor to its last use."""
    asked, profile = step_without_recomputation
    law = memory_law(profile, layers=3, accumulation=1)
    batch = Batch(rows=rows, positions=length, labels=rows * (length - 1))
    demand = demand_of(profile, law, None, candidate=asked.candidate, batch=batch)
    model = LlamaForCausalLM(LlamaConfig(**asked.config)).eval()
    trained = 3 * sum(parameter.nbytes for parameter in model.parameters())  # weights, and two states of AdamW
    tokens = torch.ones(rows, length, dtype=torch.long)
    with Living() as living, torch.no_grad():
        model(input_ids=tokens, labels=tokens, use_cache=False)
    real = trained + living.most
    assert real <= demand.phases["evaluation"] <= 1.03 * real  # what a layer makes is taken to live until it is over


def test_experts_and_their_losses_repeat_like_layers() -> None:
    """Each layer's router has a loss of its own after the last layer; kept logits and padding beside them."""
    config = Qwen3MoeConfig(
        vocab_size=600,
        hidden_size=64,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        output_router_logits=True,
    )
    asked = replace(request(7), config=config.to_dict(), masked=True, loss="full_logits")
    assert_deduced_is_traced(asked, (2, 777, 2 * 776))


def test_three_tiles_follow_from_two() -> None:
    """TRL's head scores 4096 positions at a time; only what is left for the last tile makes it shorter."""
    assert_deduced_is_traced(replace(request(1), tiled=True), (2, 4200, 2 * 4199))


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "sdpa"])
def test_rows_shorter_than_a_small_window_are_traced(attention: str) -> None:
    """There is no room for lengths that fill a kernel's tiles: sizes must be laws of the length all the same."""
    asked = request(1, (8, 0), attention=attention, per_device_train_batch_size=1, weights_dtype="bfloat16")
    config = {**asked.config, "model_type": "mistral", "sliding_window": 512}
    assert trace(replace(asked, config=config)).layers == 1


def test_a_trace_depends_on_nothing_that_a_reduced_request_leaves_out() -> None:
    """Or steps that differ would share one kept profile. Every knob has another value than by default.

    A compiled step is traced as an eager one (docs/memory.md).
    """
    unusual = {**OTHER_VALUES, "checkpointing": "every_n", "optimizer": "adamw_torch", "batching": "group_by_length"}
    asked = request(2, capability=(8, 0), **{**unusual, "packed_length": None})  # a length would mean packing
    assert trace(asked) == trace(reduced(asked))
