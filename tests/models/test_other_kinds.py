"""Directories that are no model to train: each kind has a sentence of its own, before any weight is read."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from autotune.demo import TINY
from autotune.errors import UsageError
from autotune.models.find import resolve_model

LLAMA = json.loads((TINY / "config.json").read_text())
T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 16, "num_layers": 1}
BERT = {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}


def quantized(**values: Any) -> dict[str, Any]:
    return {**LLAMA, "quantization_config": values}


def of_class(name: str) -> dict[str, Any]:
    return {**LLAMA, "architectures": [name]}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (quantized(quant_method="gptq", bits=4), "4-bit integers of GPTQ"),
        (quantized(quant_method="awq"), "4-bit integers of AWQ"),
        (quantized(quant_method="bitsandbytes", load_in_4bit=True), "bitsandbytes' own 4-bit numbers"),
        (quantized(load_in_8bit=True, load_in_4bit=False), "bitsandbytes' own 8-bit numbers"),
        (quantized(quant_method="fp8"), "8-bit floating-point numbers"),
        (quantized(quant_method="mxfp4"), "Mxfp4Config(dequantize=True)"),
        (quantized(quant_method="quark"), "numbers quantized by quark"),
        (of_class("LlamaForSequenceClassification"), "a classifier, whose head gives classes"),
        (of_class("LlamaForTokenClassification"), "a classifier, whose head gives classes"),
        (of_class("LlamaForRewardModel"), "a reward model, whose head gives scores"),
        (of_class("LlamaForQuestionAnswering"), "a model that marks answers in a text"),
        (of_class("LlamaModel"), "without a head that gives tokens, such as one for embeddings"),
        ({**BERT, "architectures": ["BertForMaskedLM"]}, "an encoder, which fills in words"),
        ({**BERT, "architectures": ["BertModel"]}, "without a head that gives tokens"),
        (T5, "an encoder-decoder, which reads one text"),
        ({"model_type": "mine", "architectures": ["Mine"], "auto_map": {"AutoConfig": "a.B"}}, "needs code of its own"),
        ({"model_type": "mine"}, "model_type 'mine' is unknown to transformers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_configuration_says_what_the_model_is(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(TINY, directory)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "model.safetensors").touch()
    with pytest.raises(UsageError) as refused:
        resolve_model(str(directory), home=tmp_path, progress=lambda line: None)
    (problem,) = refused.value.problems
    assert said in problem


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model-q4.gguf"], "weights for llama.cpp (GGUF)"),
        (["config.json", "model-q4.gguf"], "weights for llama.cpp (GGUF)"),
        (["model_index.json"], "a pipeline of diffusers"),
        (["modules.json", "config.json"], "a model of sentence-transformers"),
        (["config.json", "zero_to_fp32.py"], "`python zero_to_fp32.py"),
        (["__0_0.distcp"], "a distributed checkpoint in pieces"),
        (["params.json", "consolidated.00.pth"], "in the form of the model's makers"),
        (["config.json", "trainer_state.json"], "a checkpoint of a training without the model's weights"),
        (["config.json"], "holds no weights"),
        ([], "has no config.json"),
    ],
)
def test_files_say_what_a_directory_is(files: list[str], said: str, tmp_path: Path) -> None:
    """Where weights or a configuration are lacking; one sentence where it is known."""
    directory = tmp_path / "model"
    shutil.copytree(TINY, directory)
    (directory / "config.json").unlink()
    for name in files:
        (directory / name).write_text(json.dumps(LLAMA) if name == "config.json" else "x")
    with pytest.raises(UsageError) as refused:
        resolve_model(str(directory), home=tmp_path, progress=lambda line: None)
    assert said in refused.value.problems[0]


def test_a_gguf_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model-q4.gguf"
    file.touch()
    with pytest.raises(UsageError, match=r"is a file for llama\.cpp \(GGUF\)"):
        resolve_model(str(file), home=tmp_path, progress=lambda line: None)
