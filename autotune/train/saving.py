"""Saving, tried before the first step: what would fail at the first checkpoint fails before any time is spent.

Everything of a checkpoint that is small is written and removed again. The weights are not written, but the disk must
have room for one checkpoint. Leaves out checkpoints themselves, which are Trainer's own.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotune.core.units import format_bytes

STATE_BYTES = 8  # of AdamW for each trained number, in fp32; other optimizers take less


class CannotBeSaved(Exception):
    """A checkpoint could not be written. The message says why."""


class TrySaving(TrainerCallback):  # type: ignore[misc]
    """Tries to save when training begins, after Trainer has aligned the model's special tokens with the tokenizer's."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **_: Any,
    ) -> None:
        try_saving(model, processing_class, Path(args.output_dir))


def try_saving(model: Any, tokenizer: Any, out: Path) -> None:
    """Write what a checkpoint holds beside the weights into `out`, and remove it. Raises CannotBeSaved."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".saving-") as scratch:
            if isinstance(model, PeftModel):
                for config in model.peft_config.values():
                    config.save_pretrained(scratch)
            else:
                model.config.save_pretrained(scratch)
                if model.can_generate() and model.generation_config is not None:
                    model.generation_config.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
    except Exception as error:  # the libraries raise anything
        raise CannotBeSaved(f"the trained model could not be saved ({' '.join(str(error).split())})") from error
    needed, free = checkpoint_bytes(model), shutil.disk_usage(out).free
    if needed > free:
        raise CannotBeSaved(
            f"a checkpoint needs {format_bytes(needed)}, and {format_bytes(free)} are free in {out}: free some, or "
            "name another out"
        )


def checkpoint_bytes(model: Any) -> int:
    """Bytes of a checkpoint, about: the weights that are saved, and the optimizer's states."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if isinstance(model, PeftModel) else list(model.parameters())
    weights: int = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    states: int = STATE_BYTES * sum(parameter.numel() for parameter in trained)
    return weights + states
