"""Untrainable models: what would train on tokens that it sees, or with another loss than its own, is refused."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from autotune.models.untrainable import skipped_by_trl, why_untrainable
from tests.models.test_positions import SMALL

DENSE = {**SMALL, "intermediate_size": 16}
EXPERTS = {**DENSE, "num_key_value_heads": 2, "num_local_experts": 2}


def model_of(model_type: str, values: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()


@pytest.mark.parametrize(
    ("model_type", "values", "words"),
    [
        ("bert", DENSE, "its attention sees later tokens"),
        ("bert", {**DENSE, "is_decoder": True}, "would leave out cls.predictions.transform.dense"),
        ("xlnet", {"vocab_size": 32, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}, "sees later tokens"),
        ("granitemoe", EXPERTS, "the configuration has no num_experts"),
        ("llama4_text", {**EXPERTS, "head_dim": 8, "intermediate_size_mlp": 16}, "under its base_model_prefix"),
    ],
)
def test_the_reason_is_said(model_type: str, values: dict[str, Any], words: str) -> None:
    """In words, by the class alone."""
    model = model_of(model_type, values)
    [problem] = why_untrainable(model.config, model)
    assert words in problem


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("llama", DENSE),
        ("gpt_neox", DENSE),
        ("bert-generation", {**DENSE, "is_decoder": True}),
        ("mamba", {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}),
        ("granitemoe", {**EXPERTS, "router_aux_loss_coef": 0.0}),
    ],
)
def test_decoders_are_taken(model_type: str, values: dict[str, Any]) -> None:
    """Also a decoder whose type is an encoder's by default, and experts without the loss that TRL cannot add."""
    model = model_of(model_type, values)
    assert list(why_untrainable(model.config, model)) == []


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("llama", DENSE),
        ("bert", {**DENSE, "is_decoder": True}),
        ("modernbert-decoder", {**DENSE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
        ("gpt_neox", DENSE),
    ],
)
def test_what_is_left_out_is_what_changes_trls_loss(model_type: str, values: dict[str, Any]) -> None:
    """The loss of TRL's fused head equals that of the class unless something is left out."""
    torch.manual_seed(0)
    model, tokens = model_of(model_type, values), torch.arange(5, 25)[None]
    skipped = skipped_by_trl(model.config.get_text_config(), model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
        own = model(input_ids=tokens, labels=tokens).loss
        add_fused_lm_head(model)
        fused = model(input_ids=tokens, labels=tokens, fused_lm_head=True).loss
    assert torch.isclose(own, fused, rtol=1e-4).item() == (not skipped)
