"""What other projects' examples train with: their own settings, written as candidates of ours.

Each was read in 2026-11 in its repository, at the commit behind its path (path@commit), which need not be the newest.
Left out is what is no knob here: kernels, ranks, Axolotl's trained embeddings, LLaMA-Factory's loader workers and other
loss, and Unsloth's training for quantization and its way of moving checkpoints to the host, which costs time.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.space.context import Context

Settings = Mapping[str, Mapping[str, Any]]


def example(method: str, dtype: str, length: int, rows: int, checkpointing: str, optimizer: str, batching: str) -> Any:
    """Return the knobs that an example sets. dtype: of the weights. rows: of a micro-batch, each of `length` tokens."""
    return {
        "method": method,
        "weights_dtype": dtype,
        "max_length": length,
        "per_device_train_batch_size": rows,
        "checkpointing": checkpointing,
        "optimizer": optimizer,
        "batching": batching,
    }


LORA_7B: Settings = {
    # unslothai/notebooks python_scripts/Qwen2.5_(7B)-Alpaca.py@016b8dce: load_in_4bit, packing = False
    "Unsloth's example": example("qlora", "bfloat16", 2048, 2, "full", "adamw_8bit", "random"),
    # axolotl-ai-cloud/axolotl examples/llama-3/lora-8b.yml@107c67ae: load_in_8bit, sample_packing; it has no example of
    # Qwen2.5 on one GPU
    "Axolotl's example": example("lora_int8", "bfloat16", 4096, 2, "full", "adamw_8bit", "pack_bfd"),
    # hiyouga/LLaMA-Factory examples/train_lora/llama3_lora_sft.yaml@13d252fa: a base in the type of bf16: true
    # (src/llamafactory/model/patcher.py@01a67004), checkpointing on unless it is disabled (model_utils/checkpointing.py
    # @06d78ff1), and the optimizer that transformers 5.23 takes unasked with torch 2.8 and later
    "LLaMA-Factory's example": example("lora", "bfloat16", 2048, 1, "full", "adamw_torch_fused", "random"),
}
FULL_0_5B: Settings = {
    # unslothai/notebooks python_scripts/Qwen3_(0_6B)-Phone_Deployment.py@03b0cdad: full_finetuning, which trains bf16
    # weights and checkpoints unless told otherwise (unslothai/unsloth unsloth/models/loader.py@0050c73e, vision.py)
    "Unsloth's example": example("full", "bfloat16", 1024, 2, "full", "adamw_8bit", "random"),
    # axolotl-ai-cloud/axolotl examples/LiquidAI/lfm2-350m-fft.yaml@2d8ecc4e, its full training of the nearest size:
    # bf16 weights follow from bf16: true (src/axolotl/utils/config/__init__.py)
    "Axolotl's example": example("full", "bfloat16", 4096, 4, "off", "adamw_torch_fused", "pack_bfd"),
    # hiyouga/LLaMA-Factory examples/extras/eaft/qwen25_05b_eaft_full.yaml@4c1eb922: trained weights become fp32
    # (src/llamafactory/model/adapter.py@01d87b82); the rest as above
    "LLaMA-Factory's example": example("full", "float32", 2048, 2, "full", "adamw_torch_fused", "random"),
}


def as_published(knobs: Mapping[str, Any], defaults: Candidate, context: Context) -> Candidate:
    """Return TRL's defaults with an example's settings, at the samples per optimizer step that are asked for.

    knobs: the example's. A step of packed rows has the nearest whole number of them. No row is longer than the model's
    limit, and no micro-batch larger than a step. The candidate may be illegal.
    """
    length = min(knobs["max_length"], context.workload.model.limit or knobs["max_length"])
    candidate = replace(defaults, **{**knobs, "max_length": length})
    rows = context.workload.recipe.effective_batch_size
    if candidate.packs:
        candidate = replace(candidate, packed_length=length)
        rows = context.packing(candidate).rows_per_step(rows)
    candidate = replace(candidate, per_device_train_batch_size=min(rows, candidate.per_device_train_batch_size))
    return replace(candidate, gradient_accumulation_steps=context.accumulation(candidate) or 1)
