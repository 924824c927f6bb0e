"""Trials that draw their weights, through the real worker."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured
from autotune.demo import TINY
from autotune.train.random_weights import draw_model
from autotune.train.sft import quantization_config
from autotune.train.workers import Workers


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """`tiny` without any weights."""
    return shutil.copytree(TINY, tmp_path / "bare").as_posix()


@pytest.mark.parametrize("method", ["full", "qlora", "lora_int8"])
def test_a_directory_without_weights_trains(
    workers: Workers, make_task, candidate: Candidate, recipe, bare: str, method
) -> None:
    """Every method trains on drawn weights, quantized ones too, and its loss is a number near that of a guess."""
    from dataclasses import replace

    task = make_task(
        candidate=replace(candidate, method=method), recipe=replace(recipe, method=method), model_path=bare,
        random_weights=True,
    )  # fmt: skip
    outcome = workers.perform(task, limit_s=600)
    assert isinstance(outcome, Measured), outcome
    assert outcome.warmup_steps[0].loss == pytest.approx(torch.tensor(1152.0).log().item(), rel=0.1)


def test_drawn_weights_are_those_of_a_checkpoint(bare: str, workload) -> None:
    """Names, shapes, dtypes and ties are what loading the checkpoint of the same configuration gives."""
    from transformers import AutoModelForCausalLM

    plain = {"dtype": "bfloat16", "attn_implementation": "sdpa", "device_map": None}
    drawn, loaded = draw_model(bare, **plain), AutoModelForCausalLM.from_pretrained(workload.model.path, **plain)
    facts = [
        {name: (tuple(value.shape), value.dtype, value.device) for name, value in model.state_dict().items()}
        for model in (drawn, loaded)
    ]
    assert facts[0] == facts[1]
    assert len(set(map(id, drawn.parameters()))) == len(set(map(id, loaded.parameters())))
    norms = [value for name, value in drawn.named_parameters() if value.dim() == 1]
    assert norms
    assert all((norm == 1).all() for norm in norms)


def test_a_quantized_layer_holds_what_was_drawn(bare: str, candidate: Candidate) -> None:
    """bitsandbytes quantizes the very weights that are drawn, the same ones at every load."""
    from dataclasses import replace

    from bitsandbytes.functional import dequantize_4bit

    plain = {"dtype": "bfloat16", "attn_implementation": "sdpa", "device_map": None}
    dense = draw_model(bare, **plain)
    quantization = quantization_config(replace(candidate, method="qlora"))
    name = "model.layers.0.mlp.up_proj"
    quantized = draw_model(bare, quantization_config=quantization, **plain).get_submodule(name).weight
    restored = dequantize_4bit(quantized.data, quantized.quant_state)
    wanted = dense.get_submodule(name).weight
    assert (restored - wanted).float().norm() < 0.15 * wanted.float().norm()
    assert json.loads((Path(bare) / "config.json").read_text()).get("quantization_config") is None
