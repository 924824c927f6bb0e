"""The text backbone of a checkpoint of text and images: its very weights, and no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from autotune.core.workload import ModelFacts
from autotune.demo import TINY
from autotune.errors import UsageError
from autotune.models.checkpoint import check_weights
from autotune.models.find import configuration_of, resolve_architecture, resolve_model

TEXT = {
    "vocab_size": 1152,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
WHOLES: dict[str, dict[str, Any]] = {
    "gemma3": {"text_config": {**TEXT, "model_type": "gemma3_text"}, "mm_tokens_per_image": 4},
    "mistral3": {"text_config": {**TEXT, "model_type": "mistral", "tie_word_embeddings": False}},
    "llava": {"text_config": {**TEXT, "model_type": "llama", "tie_word_embeddings": False}},
}


def whole(model_type: str, out: Path, **settings: Any) -> Any:
    """Save a model of text and images, of random weights, with `tiny`'s tokenizer."""
    torch.manual_seed(0)
    vision = {**VISION, **({"head_dim": 8} if model_type == "mistral3" else {})}
    config = AutoConfig.for_model(model_type, **{**WHOLES[model_type], **settings}, image_token_index=5)
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(out)
    for path in TINY.iterdir():
        if path.name != "config.json":
            shutil.copyfile(path, out / path.name)
    return model


def text_of(directory: Path, home: Path, lines: list[str]) -> ModelFacts:
    facts = resolve_model(f"{directory}:text", home=home, progress=lines.append)
    check_weights(facts, home=home, progress=lines.append)
    return facts


@pytest.mark.parametrize("model_type", WHOLES)
def test_its_weights_are_those_of_the_checkpoint(model_type: str, tmp_path: Path) -> None:
    """It gives the logits of the whole model for text, and what is left out is counted."""
    model, lines = whole(model_type, tmp_path / "whole"), list[str]()
    facts = text_of(tmp_path / "whole", tmp_path / "home", lines)
    backbone = AutoModelForCausalLM.from_pretrained(facts.path)
    tokens = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.allclose(backbone(tokens).logits, model.eval()(input_ids=tokens).logits, atol=1e-5)
    assert facts.name == "whole:text"
    assert facts.parameters == backbone.num_parameters() < model.num_parameters()
    left_out = len(set(model.state_dict())) - len(set(backbone.state_dict()))
    assert any(f"left out: {left_out} tensors of " in line and "vision_tower" in line for line in lines)


def test_it_is_taken_out_once(tmp_path: Path) -> None:
    """Again only after the checkpoint has changed."""
    whole("llava", tmp_path / "whole")
    lines: list[str] = []
    first = text_of(tmp_path / "whole", tmp_path, lines)
    assert text_of(tmp_path / "whole", tmp_path, lines).path == first.path
    assert sum("taking the text backbone" in line for line in lines) == 1
    config = tmp_path / "whole" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "note": "another file"}))
    assert text_of(tmp_path / "whole", tmp_path, lines).path != first.path


def test_an_estimate_and_a_search_see_one_architecture(tmp_path: Path) -> None:
    """An estimate reads the configuration alone."""
    whole("llava", tmp_path / "whole")
    name = f"{tmp_path / 'whole'}:text"
    config, facts = resolve_architecture(name, None, home=tmp_path, progress=lambda line: None)
    taken = text_of(tmp_path / "whole", tmp_path, [])
    assert (facts.parameters, facts.model_type, facts.limit) == (taken.parameters, "llama", 128)
    kept = configuration_of(name, Path(taken.path))
    assert {key: kept[key] for key in TEXT} == {key: config[key] for key in TEXT} == TEXT


def test_a_whole_model_says_how_to_ask_for_its_text(tmp_path: Path) -> None:
    whole("llava", tmp_path / "whole")
    with pytest.raises(UsageError, match="behind its name, :text asks for its text backbone alone"):
        resolve_model(str(tmp_path / "whole"), home=tmp_path, progress=lambda line: None)


def test_a_model_of_text_has_none(tmp_path: Path, home: Path) -> None:
    tiny = resolve_model("tiny", home=home, progress=lambda line: None)
    with pytest.raises(UsageError, match="is a model of text alone; name it without :text"):
        resolve_model(f"{tiny.path}:text", home=tmp_path, progress=lambda line: None)


def test_a_name_that_is_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is neither a directory nor a hub id"):
        resolve_model(f"{tmp_path / 'nothing'}:text", home=tmp_path, progress=lambda line: None)


def rewritten(directory: Path, change: Any) -> None:
    """Change the tensors of a checkpoint."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_head_that_is_lacking_is_not_made_up(tmp_path: Path) -> None:
    """The configuration says that the head is not tied."""
    whole("llava", tmp_path / "whole")
    rewritten(tmp_path / "whole", lambda tensors: tensors.pop(next(n for n in tensors if n.endswith("lm_head.weight"))))
    with pytest.raises(UsageError, match=r"lacks 1 weight of LlamaForCausalLM.*lm_head\.weight"):
        text_of(tmp_path / "whole", tmp_path / "home", [])


def test_two_heads_are_not_chosen_from(tmp_path: Path) -> None:
    whole("llava", tmp_path / "whole")

    def second(tensors: dict[str, torch.Tensor]) -> None:
        head = next(name for name in tensors if name.endswith("lm_head.weight"))
        tensors["mtp.lm_head.weight"] = tensors[head].clone()

    rewritten(tmp_path / "whole", second)
    with pytest.raises(UsageError, match="has several heads"):
        text_of(tmp_path / "whole", tmp_path / "home", [])


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    whole("llava", tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"model\.safetensors is not whole"):
        text_of(tmp_path / "whole", tmp_path / "home", [])
