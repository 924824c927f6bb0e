"""`model=tiny`: a Llama of 3 million random weights with its own tokenizer, made on first use.

It is large enough that every knob does something (grouped-query attention, quantizable layers), and small enough for
tests.
"""

import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from hashlib import blake2b
from io import StringIO
from pathlib import Path

from autotune import cache
from autotune.demo import TINY

SEED = 0


def build_tiny(home: Path, progress: Callable[[str], None]) -> Path:
    """Return the directory of the model under `home`, making it if it is not there (about 5 s, 13 MB)."""
    key = blake2b(digest_size=6)
    for path in sorted(TINY.iterdir()):
        key.update(path.name.encode() + path.read_bytes())
    directory = home / "models" / f"tiny-{key.hexdigest()}"
    if not cache.is_whole(directory):
        progress(f"making model=tiny in {directory}")
    with redirect_stderr(StringIO()):  # transformers draws bars there; `progress` has said enough
        return cache.build(directory, _fill)


def _fill(directory: Path) -> None:
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(TINY)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEED)
        LlamaForCausalLM(config).save_pretrained(directory)
    for path in TINY.iterdir():
        shutil.copyfile(path, directory / path.name)
