"""Quantized layers of fake tensors: bitsandbytes' own modules with the tensors that its quantization makes.

bitsandbytes' parameters are tensor subclasses, which torch cannot make from fake tensors. So the modules are made on
`meta`, and their weights become plain fake parameters with the attributes that bitsandbytes and PEFT read.
bitsandbytes 0.50, transformers 5.23, peft 0.21. Leaves out what bitsandbytes' kernels allocate inside (kernels.py).
"""

from typing import Any

import torch
from bitsandbytes import functional, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers import AutoHfQuantizer


def quantize(model: Any, config: BitsAndBytesConfig) -> None:
    """Replace, in place, the linear layers that transformers would quantize on loading."""
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
    """List the tensors that a quantized layer keeps beside its parameters; none for other modules."""
    if isinstance(module, nn.Linear8bitLt):
        return [module.weight.SCB]
    if not isinstance(module, nn.Linear4bit):
        return []
    state = module.weight.quant_state
    nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return [state.absmax, state.code, *nested]


def _nf4(weight: torch.Tensor, module: nn.Linear4bit) -> torch.nn.Parameter:
    """Make what `Params4bit._quantize` makes: two values a byte, and an 8-bit scale for each block."""
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
    """Make what `Int8Params._quantize` makes: a byte a value, and a scale for each row."""
    data, scales, _ = functional.int8_vectorwise_quant(weight.contiguous().to(torch.float16))
    return _parameter(data, CB=data, SCB=scales, has_fp16_weights=False)


def _parameter(data: torch.Tensor, **attributes: Any) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(data, requires_grad=False)
    for name, value in attributes.items():
        setattr(parameter, name, value)
    return parameter
