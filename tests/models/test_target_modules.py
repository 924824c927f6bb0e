"""Target modules of adapters: a name that the model has not is a mistake, and not a smaller training."""

from dataclasses import replace
from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.core.recipe import Recipe
from autotune.core.workload import ModelFacts
from autotune.errors import UsageError
from autotune.models.find import resolve_model
from autotune.models.target_modules import check_target_modules, problems_of_targets, refused_by_peft
from autotune.train.sft import lora_config

EXPECTED = "expected modules of the model, such as down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"


@pytest.fixture(scope="module")
def tiny(home: Path) -> ModelFacts:
    return resolve_model("tiny", home=home, progress=lambda line: None)


@pytest.mark.parametrize(
    "targets",
    [("all-linear",), ("q_proj", "v_proj"), ("self_attn.q_proj",), ("layers.3.mlp.up_proj",), ("embed_tokens",)],
)
def test_modules_of_the_model_are_taken(tiny: ModelFacts, targets: tuple[str, ...]) -> None:
    """By their last names or by longer ones, also of one layer; an embedding can have an adapter, too."""
    check_target_modules(tiny, targets)


@pytest.mark.parametrize(
    ("targets", "problems"),
    [
        (("q_proj", "gate_porj"), [f"recipe.lora_target_modules: got gate_porj, {EXPECTED}"]),
        (
            ("query_key_value", "W_pack"),
            [f"recipe.lora_target_modules: got {n}, {EXPECTED}" for n in ("query_key_value", "W_pack")],
        ),
        (("layers.9.mlp.up_proj",), [f"recipe.lora_target_modules: got layers.9.mlp.up_proj, {EXPECTED}"]),
        (
            ("input_layernorm",),
            [f"recipe.lora_target_modules: got input_layernorm, a LlamaRMSNorm, which LoRA cannot adapt; {EXPECTED}"],
        ),
    ],
)
def test_what_cannot_be_adapted_is_refused(tiny: ModelFacts, targets: tuple[str, ...], problems: list[str]) -> None:
    """Each by its name, and what the model has instead."""
    with pytest.raises(UsageError) as refused:
        check_target_modules(tiny, targets)
    assert list(refused.value.problems) == problems


def test_convolutions_that_are_linear_layers_count_as_such() -> None:
    """GPT-2 has no Linear but its head."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    )
    assert problems_of_targets(model, ("c_attn", "c_proj")) == []
    assert problems_of_targets(model, ("q_proj",))[0].endswith("such as c_attn, c_fc, c_proj")


def test_the_default_leaves_out_what_peft_refuses_and_says_so_once(tiny: ModelFacts) -> None:
    """PEFT refuses `out_proj` of Mamba, also where it chose the modules itself."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("mamba", vocab_size=32, hidden_size=16, num_hidden_layers=1)
    )
    assert refused_by_peft(model) == ("out_proj",)
    assert problems_of_targets(model, ("in_proj", "out_proj")) == [
        "recipe.lora_target_modules: got out_proj, which PEFT refuses in this type of model"
    ]
    said: list[str] = []
    check_target_modules(replace(tiny, not_adapted=("out_proj",)), ("all-linear",), progress=said.append)
    assert said == ["LoRA adapts all linear modules but out_proj, which PEFT refuses here"]
    adapted = get_peft_model(model, lora_config(Recipe(), ("out_proj",)))
    names = [name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert {name.rpartition(".")[2] for name in names} == {"in_proj", "x_proj", "dt_proj"}
