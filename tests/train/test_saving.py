"""Saving is tried first: a run must not fail at its first checkpoint."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from autotune.core.workload import Workload
from autotune.train.saving import CannotBeSaved, checkpoint_bytes, try_saving


@pytest.fixture
def model() -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def tokenizer(workload: Workload) -> Any:
    return AutoTokenizer.from_pretrained(workload.model.path)


def test_nothing_is_left_where_saving_works(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Of a whole model, and of adapters."""
    for one in (model, get_peft_model(model, LoraConfig(target_modules=["q_proj"]))):
        try_saving(one, tokenizer, tmp_path / "run")
        assert list((tmp_path / "run").iterdir()) == []


def test_a_generation_config_that_cannot_be_saved_is_told_first(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Sampling values without do_sample, as Llama 2 and Vicuna shipped them. Adapters are saved without it."""
    model.generation_config.temperature = 0.9
    with pytest.raises(CannotBeSaved, match=r"could not be saved \(GenerationConfig is invalid: - `temperature`"):
        try_saving(model, tokenizer, tmp_path)
    try_saving(get_peft_model(model, LoraConfig(target_modules=["q_proj"])), tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_a_file_is_told_first(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """As is any other place where nothing can be written."""
    (tmp_path / "run").write_text("")
    with pytest.raises(CannotBeSaved, match="File exists"):
        try_saving(model, tokenizer, tmp_path / "run")


def test_a_disk_without_room_for_a_checkpoint_is_told_first(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and AdamW's two states: twelve bytes for each number in fp32."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint_bytes(model) == 12 * numbers
    monkeypatch.setattr("autotune.train.saving.shutil.disk_usage", lambda path: SimpleNamespace(free=12 * numbers - 1))
    with pytest.raises(CannotBeSaved, match=r"a checkpoint needs .* are free in .*: free some, or name another out"):
        try_saving(model, tokenizer, tmp_path)
    adapters = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert checkpoint_bytes(adapters) < 12 * numbers / 4
    try_saving(adapters, tokenizer, tmp_path)
