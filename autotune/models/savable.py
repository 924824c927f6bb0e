"""Saving, judged from the files: what would fail at the first checkpoint is refused before the machine is probed.

Adapters are small, and are saved without the model's generation_config, so both checks are for full fine-tuning.
train/saving.py tries again with the loaded model, before the first step. Leaves out whether the directory can be
written (files.py).
"""

import shutil
import tempfile
from pathlib import Path

from autotune.core.units import format_bytes
from autotune.core.workload import ModelFacts
from autotune.errors import UsageError
from autotune.models.checkpoint import silence

LEAST_BYTES = 4  # of a checkpoint for each weight: two of the weight in bf16, two of an optimizer in 8 bits


def check_generation(facts: ModelFacts) -> None:
    """Save the generation_config as a checkpoint will have it, with the special tokens of the tokenizer.

    transformers 5.23 saves an unchanged one back whatever it says, and refuses contradictions in a changed one, such as
    Llama 2's sampling values without do_sample. Raises UsageError.
    """
    file = Path(facts.path) / "generation_config.json"
    if not file.exists():
        return
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(facts.path, trust_remote_code=False)
    tokens = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id}
    tokens["pad"] = tokens["eos"] if tokenizer.pad_token_id is None else tokenizer.pad_token_id  # as TRL sets it
    try:
        with silence():
            config = GenerationConfig.from_pretrained(facts.path)
        for name, token in tokens.items():
            known = getattr(config, f"{name}_token_id")
            if token is not None and token not in (known if isinstance(known, list) else [known]):
                setattr(config, f"{name}_token_id", token)
        with silence(), tempfile.TemporaryDirectory() as scratch:
            config.save_pretrained(scratch)
    except Exception as error:  # the library raises anything over a file that it cannot read
        raise UsageError(
            f"{file}: transformers would refuse to save the trained model with it ({' '.join(str(error).split())}); "
            "mend the file, or remove it"
        ) from error


def check_room(facts: ModelFacts, out: Path) -> None:
    """Check that the disk of `out` has room for the smallest checkpoint that full fine-tuning writes there.

    Raises UsageError.
    """
    place = next(place for place in (out, *out.absolute().parents) if place.exists())
    needed, free = LEAST_BYTES * facts.parameters, shutil.disk_usage(place).free
    if needed > free:
        raise UsageError(
            f"out={out}: a checkpoint needs at least {format_bytes(needed)}, and {format_bytes(free)} are free there; "
            "free some, or name another out"
        )
