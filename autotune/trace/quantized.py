"""Quantized layers of fake tensors: bitsandbytes' own modules, holding what its own quantization makes.

Its parameters are tensor subclasses, which torch cannot make of fake tensors. So the modules are made on `meta` without
fake tensors, and their weights are plain fake parameters with the attributes that bitsandbytes and PEFT read.
bitsandbytes 0.50, transformers 5.23, peft 0.21. Leaves out what its kernels do inside (kernels.py).
"""

from typing import Any

import torch
from bitsandbytes import functional, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer


def quantize(model: Any, config: BitsAndBytesConfig) -> None:
    """Replace the linear layers that transformers would quantize on loading, in place."""
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    modules = dict(model.named_modules())
    with _disable_current_modes():
        quantizer.preprocess_model(model, device_map=None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear4bit | nn.Linear8bitLt):
            original = modules[name]
            weight = original.weight.T if isinstance(original, Conv1D) else original.weight
            module._parameters["weight"] = (_nf4 if isinstance(module, nn.Linear4bit) else _int8)(
                weight.detach(), module
            )
            module._parameters["bias"] = original.bias
            if original.bias is not None:
                original.bias.requires_grad_(False)
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)


def statistics(module: torch.nn.Module) -> list[torch.Tensor]:
    """What a quantized layer keeps beside its parameters; nothing for other modules."""
    if isinstance(module, nn.Linear8bitLt):
        return [module.weight.SCB]
    if not isinstance(module, nn.Linear4bit):
        return []
    state = module.weight.quant_state
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def _nf4(weight: torch.Tensor, module: nn.Linear4bit) -> torch.nn.Parameter:
    """What `Params4bit._quantize` leaves: two values a byte, and an 8-bit scale for each block."""
    wanted = module.weight
    data, state = functional.quantize_4bit(
        weight.contiguous(),
        blocksize=wanted.blocksize,
        compress_statistics=wanted.compress_statistics,
        quant_type=wanted.quant_type,
        quant_storage=wanted.quant_storage,
    )
    module.quant_state = state
    return _parameter(
        data,
        blocksize=wanted.blocksize,
        compress_statistics=wanted.compress_statistics,
        quant_type=wanted.quant_type,
        quant_storage=wanted.quant_storage,
        quant_state=state,
        bnb_quantized=True,
    )


def _int8(weight: torch.Tensor, module: nn.Linear8bitLt) -> torch.nn.Parameter:
    """What `Int8Params._quantize` leaves: a byte a value, and a scale for each row."""
    data, scales, _ = functional.int8_vectorwise_quant(weight.contiguous().to(torch.float16))
    return _parameter(data, CB=data, SCB=scales, has_fp16_weights=False)


def _parameter(data: torch.Tensor, **attributes: Any) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(data, requires_grad=False)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter
