"""A candidate: one complete configuration. Two equal candidates train identically.

It has a value for every knob of core/knobs.py. What the user asked for (learning rate, epochs, LoRA rank) is in the
recipe.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from autotune.core.knobs import KNOBS, Knobs


class Fidelity(IntEnum):
    """How far a knob's value moves the training from what was asked. A candidate has the fidelity of its worst knob."""

    exact = 0  # only rounding differs: same samples, same mathematics
    close = 1  # what practice treats as equal
    free = 2  # another result


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate(Knobs):
    """One complete configuration."""

    @property
    def packs(self) -> bool:
        """Whether several samples share a row."""
        return self.batching.startswith("pack_")

    @property
    def row_length(self) -> int:
        """The most tokens that a row can have, before it is padded to a multiple."""
        return self.packed_length if self.packed_length is not None else self.max_length

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all devices."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.devices

    def to_dict(self) -> dict[str, Any]:
        """Plain values in the order of the knobs; `Candidate(**c.to_dict()) == c`."""
        return {knob: getattr(self, knob) for knob in KNOBS}


def differences(candidate: Candidate, other: Candidate) -> dict[str, tuple[Any, Any]]:
    """Knobs in which two candidates differ, as {knob: (value here, value there)}."""
    return {
        knob: (here, there) for knob in KNOBS if (here := getattr(candidate, knob)) != (there := getattr(other, knob))
    }


def short_name(candidate: Candidate) -> str:
    """Name a candidate in one line of about 60 characters. The knobs that move speed and memory most come first."""
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
    values = {knob: value for knob in KNOBS if (value := getattr(candidate, knob))}
    parts += [KNOBS[knob].short.format(value) for knob, value in values.items() if KNOBS[knob].short]
    return " ".join(parts)
