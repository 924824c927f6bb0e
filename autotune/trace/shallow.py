"""The shallow model that is traced: which layers stand for all of them, and the module itself.

Leaves out its weights: it is made where tensors have no data (trace.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights

from autotune.core.candidate import Candidate
from autotune.models import architectures
from autotune.trace.assembly import TraceError
from autotune.trace.quantized import quantize
from autotune.train import sft


def sliding_window(config: Mapping[str, Any]) -> int | None:
    """Positions that the sliding window of a configuration's model reaches back; None without one."""
    return architectures.sliding_window(AutoConfig.for_model(**config).get_text_config())


def layer_kinds(config: Mapping[str, Any], *, every: int) -> list[Any]:
    """What tells each decoder layer from others: modules, parameters, plain attributes, and its place in `every`."""
    known = AutoConfig.for_model(**config)
    text = known.get_text_config()
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(known)
    types = getattr(text, "layer_types", None) or [None] * text.num_hidden_layers
    layers = decoder_layers(model, text.num_hidden_layers)
    return [(types[number], number % every, *_traits(layer)) for number, layer in enumerate(layers)]


def _traits(layer: torch.nn.Module) -> Iterator[Any]:
    for name, module in layer.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        plain.pop("layer_idx", None)
        yield name, type(module).__name__, tuple(sorted(plain.items()))
    for name, parameter in layer.named_parameters():
        yield name, tuple(parameter.shape)


def decoder_layers(model: Any, depth: int) -> torch.nn.ModuleList:
    """The list of a model's decoder layers. Raises TraceError when there is none of so many."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == depth)
    layers = next(lists, None)
    if layers is None:
        raise TraceError(f"{type(model).__name__} has no list of {depth} decoder layers")
    return layers


def shallow_model(config: Mapping[str, Any], depth: int, candidate: Candidate) -> Any:
    """The module of a configuration with its first `depth` layers, quantized if the candidate asks for it."""
    known = AutoConfig.for_model(**config)
    text = known.get_text_config()
    layers, text.num_hidden_layers = text.num_hidden_layers, depth
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == layers:  # an entry for each layer
            setattr(text, name, value[:depth])
    dtype = getattr(torch, candidate.weights_dtype)
    with no_init_weights():  # ties no weights either
        model = AutoModelForCausalLM.from_config(known, dtype=dtype, attn_implementation=candidate.attention)
    model.tie_weights()
    quantization = sft.quantization_config(candidate)
    if quantization is not None:
        quantize(model, quantization)
    return model
