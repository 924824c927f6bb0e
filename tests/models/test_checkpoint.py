"""Checkpoints: the weights that would be trained are those of the files, all of them, or the model is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from autotune.core.workload import ModelFacts
from autotune.errors import UsageError
from autotune.models.checkpoint import check_weights
from tests.core.examples import workload

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"


def saved(directory: Path, kind: str = "llama", *, shard: str = "1GB", **values: Any) -> Path:
    """A model of random weights, as `save_pretrained` writes it."""
    config = AutoConfig.for_model(kind, **{**SMALL, **values})
    AutoModelForCausalLM.from_config(config).save_pretrained(directory, max_shard_size=shard)
    return directory


def problems(directory: Path) -> list[str]:
    """What is found wrong with a model, without its directory."""
    facts: ModelFacts = replace(workload([8]).model, path=str(directory), fingerprint=directory.name)
    try:
        check_weights(facts, home=directory.parent / "home", progress=lambda line: None)
    except UsageError as error:
        return [problem.removeprefix(f"{directory}: ") for problem in error.problems]
    return []


def rewritten(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Change the tensors of a checkpoint of one file."""
    file = directory / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),  # experts are stacked
        ("gemma2", {"head_dim": 16}),
    ],
)
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_what_transformers_saves_is_whole(kind: str, values: dict[str, Any], shard: str, tmp_path: Path) -> None:
    """Tied weights, weights that transformers renames, and shards."""
    directory = saved(tmp_path / "model", kind, shard=shard, **values)
    assert (directory / "model.safetensors.index.json").exists() == (shard == "20KB")
    assert problems(directory) == []


def test_a_pickled_checkpoint_is_read_too(tmp_path: Path) -> None:
    """It has the same names, and the same faults."""
    directory = saved(tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    assert problems(directory) == []
    torch.save({f"module.{name}": weight for name, weight in weights.items()}, directory / "pytorch_model.bin")
    lacks, has = problems(directory)
    assert lacks.startswith("the checkpoint lacks 21 weights of LlamaForCausalLM, which would be drawn at random: lm_")
    assert has.endswith("DistributedDataParallel put 'module.' before the names: save the model that is inside")


def test_weights_that_would_be_drawn_at_random_are_refused(tmp_path: Path) -> None:
    """A layer that is not there, and an output head that is neither there nor tied."""
    directory = rewritten(
        saved(tmp_path / "model"), lambda weights: {n: w for n, w in weights.items() if ".layers.1." not in n}
    )
    [problem] = problems(directory)
    assert problem == (
        "the checkpoint lacks 9 weights of LlamaForCausalLM, which would be drawn at random: "
        "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "
        "model.layers.1.mlp.gate_proj.weight and 6 more"
    )
    directory = rewritten(
        saved(tmp_path / "headless"), lambda weights: {n: w for n, w in weights.items() if "lm_" not in n}
    )
    assert problems(directory) == [
        "the checkpoint lacks 1 weight of LlamaForCausalLM, which would be drawn at random: lm_head.weight"
    ]


def test_weights_that_would_be_dropped_are_refused(tmp_path: Path) -> None:
    """What transformers itself passes over, as old rotary tables, is no fault."""
    directory = rewritten(
        saved(tmp_path / "model"),
        lambda weights: {
            **weights,
            "model.layers.2.self_attn.q_proj.weight": torch.zeros(32, 32),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        },
    )
    assert problems(directory) == [
        "the checkpoint has 1 tensor that LlamaForCausalLM has no place for: model.layers.2.self_attn.q_proj.weight"
    ]


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    """An embedding of more tokens than config.json says."""
    directory = rewritten(
        saved(tmp_path / "model"), lambda weights: {**weights, "model.embed_tokens.weight": torch.zeros(66, 32)}
    )
    assert problems(directory) == [
        "model.embed_tokens.weight has the shape (66, 32) in the checkpoint, and (64, 32) by config.json"
    ]


def test_files_that_are_not_whole_are_named(tmp_path: Path) -> None:
    """Each with what mends it."""
    directory = saved(tmp_path / "model", shard="20KB")
    first, second, *_ = sorted(directory.glob("*.safetensors"))
    first.write_text(POINTER)
    second.write_bytes(second.read_bytes()[:-1])
    assert problems(directory) == [
        f"{first.name} is a pointer of git-lfs and not the file itself; `git lfs pull` fetches it",
        f"{second.name} is not whole (Error while deserializing header: incomplete metadata, file not fully covered); "
        "fetch it again",
    ]
    first.unlink()
    second.unlink()
    assert problems(directory) == [
        f"model.safetensors.index.json names {first.name}, {second.name}, which are not there"
    ]
    index = directory / "model.safetensors.index.json"
    index.write_text(POINTER)
    assert problems(directory) == [
        f"{index.name} is a pointer of git-lfs and not the file itself; `git lfs pull` fetches it"
    ]
    index.write_text(json.dumps([]))
    assert problems(directory) == [f"{index.name} is no list of weight files (a JSON object with weight_map)"]


def test_a_checkpoint_is_looked_at_again_when_a_file_changes(tmp_path: Path) -> None:
    """And only then: what passed is remembered."""
    directory = saved(tmp_path / "model")
    assert problems(directory) == []
    kept = shutil.copytree(tmp_path / "home", tmp_path / "kept")
    assert problems(directory) == []
    [before], [after] = (list(home.rglob("*.json")) for home in (kept, tmp_path / "home"))
    assert before.read_text() == after.read_text()
    rewritten(directory, lambda weights: {n: w for n, w in weights.items() if "norm" not in n})
    assert len(problems(directory)) == 1
