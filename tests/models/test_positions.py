"""Positions: the limit is the longest row that the class takes, or that the model was made for."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.models.positions import limit_of

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BART = {"vocab_size": 32, "d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
TABLES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_positions": 12, "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32},
    "opt": {"max_position_embeddings": 12, "word_embed_proj_dim": 16, "ffn_dim": 16, **SMALL},
    "bart": {"max_position_embeddings": 12, **BART},
    "biogpt": {"max_position_embeddings": 12, "intermediate_size": 16, **SMALL},
    "roberta": {"max_position_embeddings": 12, "is_decoder": True, "intermediate_size": 16, **SMALL},
    "bert-generation": {"max_position_embeddings": 12, "is_decoder": True, "intermediate_size": 16, **SMALL},
    "prophetnet": {
        "max_position_embeddings": 12, "vocab_size": 32, "hidden_size": 16, "num_decoder_layers": 1,
        "num_decoder_attention_heads": 2, "decoder_ffn_dim": 16,
    },
    "mpt": {"max_seq_len": 12, "d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 32},
}  # fmt: skip


def model_of(model_type: str, values: dict[str, Any]) -> tuple[Any, Any]:
    config = AutoConfig.for_model(model_type, **values)
    return config.get_text_config(), AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("model_type", TABLES)
def test_a_table_of_positions_takes_the_limit_and_no_more(model_type: str) -> None:
    """Whatever name the limit has, and however many rows of the table no token can reach."""
    text, model = model_of(model_type, TABLES[model_type])
    limit = limit_of(text, model)
    assert limit is not None
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "yarn", "factor": 4.0}, 16384),
        (
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "original_max_position_embeddings": 1024,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            4096,
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 1024,
            },
            4096,
        ),
    ],
)
def test_rotary_positions_reach_as_far_as_their_scaling_says(rope: dict[str, Any], limit: int) -> None:
    """A factor of x serves x times the length of the pretraining, wherever the configuration has that length."""
    rope = {"rope_theta": 10000.0, **rope}
    values = {**SMALL, "intermediate_size": 16, "max_position_embeddings": 4096, "rope_parameters": rope}
    assert limit_of(*model_of("llama", values)) == limit


@pytest.mark.parametrize(
    ("model_type", "values", "limit"),
    [
        ("bloom", {"vocab_size": 32, "hidden_size": 16, "n_layer": 1, "n_head": 2}, None),
        ("falcon", {**SMALL, "alibi": True}, None),
        ("falcon", {**SMALL, "alibi": False}, 2048),
        ("mamba", {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}, None),
        ("mistral", {**SMALL, "intermediate_size": 16, "num_key_value_heads": 2, "sliding_window": 8}, 131072),
        ("rwkv", {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 12}, 12),
    ],
)
def test_models_without_a_table_have_the_limit_that_they_name(
    model_type: str, values: dict[str, Any], limit: int | None
) -> None:
    """ALiBi and states have none; a sliding window is none."""
    assert limit_of(*model_of(model_type, values)) == limit
