"""A model of random weights, drawn on the device, so that a trial need not read a checkpoint.

`from_pretrained` loads it like any other model, so that dtypes, devices, tied weights and quantized layers are those of
real loading (transformers 5.23). Only matrices are drawn. The class itself initialises vectors, such as norms.
"""

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SPREAD = 0.02  # standard deviation: `initializer_range` of most models


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A weight that is drawn when a part of it is read, like a slice of a safetensors file. Its name is its seed."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, place: Any) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(crc32(self.name.encode()))
        weight = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return weight.normal_(0.0, SPREAD, generator=generator)[place]


def draw_model(path: str, *, dtype: str, device_map: Any, **keywords: Any) -> Any:
    """Make the model that `path` configures, with matrices drawn at random. keywords: of `from_pretrained`."""
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        hollow = AutoModelForCausalLM.from_config(config)
    device = torch.device("cpu" if device_map is None else "cuda")
    weights = {
        name: Drawn(name=name, shape=tuple(parameter.shape), dtype=getattr(torch, dtype), device=device)
        for name, parameter in hollow.named_parameters()  # which names tied weights once
        if parameter.dim() > 1
    }
    model = type(hollow).from_pretrained(
        None, config=config, state_dict=weights, dtype=getattr(torch, dtype), device_map=device_map, **keywords
    )
    model.config._name_or_path = path  # where TRL looks for the tokenizer
    return model
