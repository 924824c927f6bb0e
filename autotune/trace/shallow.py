"""The shallow model that is traced: which layers stand for all of them, and the module itself.

The module has no weights: it is built under fake tensors (trace.py).
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
    """Return how many positions the model's sliding window reaches back; None without a window."""
    return architectures.sliding_window(AutoConfig.for_model(**config).get_text_config())


def layer_kinds(config: Mapping[str, Any], *, every: int) -> list[Any]:
    """Describe each decoder layer so that equal descriptions mean equal layers.

    A description has the layer's modules, parameter shapes and plain attributes, and its number modulo `every`.
    """
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
    """Return the model's list of `depth` decoder layers. Raises TraceError when it has no such list."""
    lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == depth)
    layers = next(lists, None)
    if layers is None:
        raise TraceError(f"{type(model).__name__} has no list of {depth} decoder layers")
    return layers


def shallow_model(config: Mapping[str, Any], depth: int, candidate: Candidate) -> Any:
    """Build the model of a configuration with its first `depth` layers, quantized as the candidate says."""
    known = AutoConfig.for_model(**config)
    text = known.get_text_config()
    layers, text.num_hidden_layers = text.num_hidden_layers, depth
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == layers:  # one entry a layer
            setattr(text, name, value[:depth])
    dtype = getattr(torch, candidate.weights_dtype)
    with no_init_weights():  # this skips tying weights, too
        model = AutoModelForCausalLM.from_config(known, dtype=dtype, attn_implementation=candidate.attention)
    model.tie_weights()
    quantization = sft.quantization_config(candidate)
    if quantization is not None:
        quantize(model, quantization)
    return model
