"""Fixed knobs: what a user fixed must be possible here, and every problem is told at once."""

from typing import Any

import pytest

from autotune.core.candidate import Fidelity
from autotune.core.space.enumerate import Space, enumerate_space
from autotune.errors import UsageError
from tests.core.examples import CPU, PLAIN, workload


def space(fixed: dict[str, Any], fidelity: Fidelity = Fidelity.close, **recipe: Any) -> Space:
    work = workload(**{"method": "full", **recipe})
    return enumerate_space(workload=work, hardware=CPU, installed=PLAIN, fidelity=fidelity, fixed=fixed)


@pytest.mark.parametrize(
    ("fixed", "problems"),
    [
        (
            {"tf32": True, "attention": "flex_attention", "devices": 2, "batching": "padding_free"},
            [
                "candidate.devices=2: training on several",
                "candidate.batching=padding_free: TRL takes",
                "candidate.tf32=True: tf32 needs",
                "candidate.attention=flex_attention: flex",
            ],
        ),
        ({"packed_length": 896, "batching": "random"}, ["candidate.batching=random candidate.packed_length=896: "]),
        ({"packed_length": 896, "max_length": 448}, ["candidate.packed_length=896 candidate.max_length=448: nothing"]),
        ({"packed_length": 2048}, ["candidate.packed_length=2048: nothing is left to try: samples or packed rows"]),
        ({"max_length": 2048}, ["candidate.max_length=2048: samples or packed rows would be longer"]),
        (
            {"per_device_train_batch_size": 3},
            ["got 3, expected a divisor of recipe.effective_batch_size=8: 1, 2, 4, 8"],
        ),
        (
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
            ["got 2 x 2 = 4, expected recipe.effective_batch_size=8"],
        ),
        ({"method": "lora"}, ["candidate.method: got lora, expected recipe.method=full"]),
        ({"weights_dtype": "float16"}, ["fp16 weights train only under", "trained fp16 weights"]),
        ({"checkpointing": "full", "every_n_layers": 2}, ["candidate.checkpointing=full candidate.every_n_layers=2: "]),
        ({"every_n_layers": 9}, ["candidate.every_n_layers=9: nothing is left to try: with checkpointing=every_n"]),
        (
            {"batching": "batch_rebalance", "per_device_train_batch_size": 8},
            ["nothing is left to try: batch_rebalance moves samples between"],
        ),
    ],
)
def test_what_is_impossible_here(fixed: dict[str, Any], problems: list[str]) -> None:
    """Each problem names the knob and the reason; several come together."""
    with pytest.raises(UsageError) as refused:
        space(fixed)
    assert len(refused.value.problems) == len(problems)
    for problem, expected in zip(refused.value.problems, problems, strict=True):
        assert expected in problem


@pytest.mark.parametrize(
    ("fixed", "fidelity"),
    [
        ({"weights_dtype": "bfloat16"}, Fidelity.exact),
        ({"optimizer": "adafactor"}, Fidelity.exact),
        ({"batching": "pack_wrapped"}, Fidelity.exact),
        ({"max_length": 128}, Fidelity.exact),
        ({"packed_length": 896}, Fidelity.close),
        ({"per_device_train_batch_size": 2, "batching": "pack_bfd"}, Fidelity.close),
        ({"gradient_accumulation_steps": 8}, Fidelity.exact),
        ({"every_n_layers": 3}, Fidelity.exact),
        ({"torch_compile": True, "torch_threads": 2, "dataloader_num_workers": 1}, Fidelity.exact),
        ({"tuned_allocator": False, "dataloader_pin_memory": False, "pad_to_multiple_of": 32}, Fidelity.exact),
    ],
)
def test_every_candidate_has_what_is_fixed(fixed: dict[str, Any], fidelity: Fidelity) -> None:
    """A fixed value need not be among those that a search tries, and may exceed the fidelity: the user said so."""
    for candidate in space(fixed, fidelity).candidates:
        assert {knob: getattr(candidate, knob) for knob in fixed} == fixed


def test_a_method_may_be_fixed_where_the_recipe_leaves_it_open() -> None:
    """`candidate.method` chooses when `recipe.method` does not."""
    assert {c.method for c in space({"method": "qlora"}, Fidelity.exact, method=None).candidates} == {"qlora"}
