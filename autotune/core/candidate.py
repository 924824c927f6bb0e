"""A candidate: one complete configuration. Two equal candidates train identically.

Field names are the libraries' own; their values are listed here once, and `core/space/enumerate.py` says which of them
a machine can have. What the user asked for (learning rate, epochs, LoRA rank) is the recipe's, not the candidate's.
"""

from dataclasses import asdict, dataclass, fields
from enum import IntEnum
from typing import Any, Literal, get_args

from autotune.core.recipe import Method

Checkpointing = Literal["off", "selective", "every_n", "full"]
Batching = Literal[
    "random", "batch_rebalance", "group_by_length", "pack_bfd", "pack_bfd_split", "pack_wrapped", "padding_free"
]
Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "adafactor"]
Dtype = Literal["float32", "bfloat16", "float16"]
MixedPrecision = Literal["bf16", "fp16", "no"]
Sharding = Literal["none", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"]

CHECKPOINTINGS: tuple[Checkpointing, ...] = get_args(Checkpointing)
BATCHINGS: tuple[Batching, ...] = get_args(Batching)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)


class Fidelity(IntEnum):
    """How far a knob's value moves the training from what was asked; a candidate's is that of its worst knob."""

    exact = 0  # other rounding only: same samples, same mathematics
    close = 1  # what practice treats as equal
    free = 2  # another result


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One complete configuration.

    max_length: tokens at which a sample is cut; TRL cuts a packed one at its row's length, so there they are equal.
    packed_length: tokens of a packed row, None without packing.
    gradient_accumulation_steps: derived, so that a step holds the samples that were asked for; with packing, rows.
    every_n_layers: one decoder layer in so many is checkpointed; 1 unless checkpointing is `every_n`.
    tuned_allocator: `expandable_segments` on CUDA; on a CPU glibc keeps freed pages instead of giving them back.
    torch_threads: threads of one CPU operator; None leaves torch's choice (and is the only value on a GPU).
    """

    max_length: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    method: Method
    packed_length: int | None = None
    checkpointing: Checkpointing = "off"
    every_n_layers: int = 1
    activation_offloading: bool = False
    batching: Batching = "random"
    attention: Attention = "sdpa"
    optimizer: Optimizer = "adamw_torch_fused"
    weights_dtype: Dtype = "float32"
    mixed_precision: MixedPrecision = "bf16"
    tf32: bool = False
    pad_to_multiple_of: int | None = None
    torch_compile: bool = False
    use_kernels: bool = False
    dataloader_num_workers: int = 0
    dataloader_pin_memory: bool = True
    torch_threads: int | None = None
    tuned_allocator: bool = True
    devices: int = 1
    sharding: Sharding = "none"

    @property
    def packs(self) -> bool:
        """Whether several samples share a row."""
        return self.batching.startswith("pack_")

    @property
    def row_length(self) -> int:
        """Most tokens that a row of a micro-batch can have before padding to a multiple."""
        return self.packed_length if self.packed_length is not None else self.max_length

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.devices

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the fields; `Candidate(**c.to_dict()) == c`."""
        return asdict(self)


KNOBS: tuple[str, ...] = tuple(field.name for field in fields(Candidate))


def differences(candidate: Candidate, other: Candidate) -> dict[str, tuple[Any, Any]]:
    """Knobs in which two candidates differ, as {knob: (value here, value there)}."""
    return {
        knob: (here, there) for knob in KNOBS if (here := getattr(candidate, knob)) != (there := getattr(other, knob))
    }


def short_name(candidate: Candidate) -> str:
    """Name a candidate in one line of about 60 characters: what moves speed and memory most comes first."""
    parts = [
        candidate.method,
        f"{candidate.per_device_train_batch_size}x{candidate.gradient_accumulation_steps}",
        f"{candidate.batching}" + (f"@{candidate.packed_length}" if candidate.packs else ""),
        f"len {candidate.max_length}",
        f"ckpt {candidate.checkpointing}"
        + (f"/{candidate.every_n_layers}" if candidate.checkpointing == "every_n" else ""),
        candidate.attention,
        candidate.optimizer.removeprefix("adamw_torch_"),
        {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[candidate.weights_dtype]
        + ("" if candidate.mixed_precision == "no" else f"+amp {candidate.mixed_precision}"),
    ]
    parts += [
        word
        for word, there in (
            ("offload", candidate.activation_offloading),
            ("tf32", candidate.tf32),
            (f"pad {candidate.pad_to_multiple_of}", candidate.pad_to_multiple_of is not None),
            ("compile", candidate.torch_compile),
            ("kernels", candidate.use_kernels),
            (f"workers {candidate.dataloader_num_workers}", candidate.dataloader_num_workers > 0),
            (f"threads {candidate.torch_threads}", candidate.torch_threads is not None),
            ("malloc", candidate.tuned_allocator),
        )
        if there
    ]
    return " ".join(parts)
