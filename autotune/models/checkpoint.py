"""The checkpoint of a model: whether its files are whole, and hold the weights of the model and no others.

transformers draws a weight at random when the checkpoint lacks it, and drops what it has no place for. Then another
model is trained than the one that was named, so such a checkpoint is refused. Only the headers of the files are read.
Leaves out finding the directory (find.py) and loading the weights (train/).
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autotune import cache
from autotune.core.units import count_of
from autotune.core.workload import ModelFacts
from autotune.errors import UsageError, first_line

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # as `from_pretrained` looks for them, each also as an index
LFS = b"version https://git-lfs"  # how a pointer of git-lfs begins, which stands where a file was not fetched
SHOWN = 3  # names of a list that are shown

# What wrappers put before the names of the weights of the model that they hold.
WRAPPERS: Mapping[str, str] = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel",
    "_fsdp_wrapped_module.": "FSDP",
    "base_model.model.": "PEFT",
}


def check_weights(facts: ModelFacts, *, home: Path, progress: Callable[[str], None]) -> None:
    """Check that a model's checkpoint is whole and has exactly the weights of the model.

    facts: `path` is the model's directory. A checkpoint that passed is not looked at again until a file changes.
    Raises UsageError with every problem.
    """
    directory = Path(facts.path)
    files, problems = weight_files(directory)
    if problems:
        raise UsageError(*(f"{directory}: {problem}" for problem in problems))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    question = {"model": facts.fingerprint, "files": stats, "transformers": version("transformers")}

    def answer() -> bool:
        problems = [problem for file in files for problem in problems_of_file(file)]
        if problems := problems or list(_problems_of_weights(directory, files)):
            raise UsageError(*(f"{directory}: {problem}" for problem in problems))
        return True

    cache.remember(home / "models" / "checkpoints" / f"{facts.fingerprint}.json", question, answer, progress)


def weight_files(directory: Path) -> tuple[list[Path], list[str]]:
    """Find the files that `from_pretrained` would read the weights from, and what is wrong with their list."""
    for name in WEIGHTS:
        if (directory / name).is_file():
            return [directory / name], []
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    expected = ", ".join(f"{name} or {name}.index.json" for name in WEIGHTS)
    return [], [f"holds no weights, expected {expected}"]


def _shards(index: Path) -> tuple[list[Path], list[str]]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], [_pointer(index) or f"{index.name} is no list of weight files (a JSON object with weight_map)"]
    absent = [name for name in names if not (index.parent / name).is_file()]
    return (
        [index.parent / name for name in names if name not in absent],
        [f"{index.name} names {_some(absent)}, which {'are' if len(absent) > 1 else 'is'} not there"] if absent else [],
    )


def problems_of_file(file: Path) -> Iterator[str]:
    """Say why a weight file cannot be read, from its header. A pickle's tensors are not read either."""
    if pointer := _pointer(file):
        yield pointer
        return
    try:
        _header(file)
    except Exception as error:  # a damaged file may raise anything
        yield f"{file.name} is not whole ({first_line(error)}); fetch it again"


def _pointer(file: Path) -> str | None:
    with file.open("rb") as content:
        if content.read(len(LFS)) != LFS:
            return None
    return f"{file.name} is a pointer of git-lfs and not the file itself; `git lfs pull` fetches it"


def _header(file: Path) -> dict[str, Any]:
    """Read names, shapes and dtypes of a file's tensors. Returns tensors without data, on the meta device."""
    from transformers.modeling_utils import load_state_dict

    tensors: dict[str, Any] = load_state_dict(str(file), map_location="meta")
    return tensors


def _problems_of_weights(directory: Path, files: Sequence[Path]) -> Iterator[str]:
    """Load the checkpoint without data, and read transformers' own report of what fits the model and what does not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tensors = {name: tensor for file in files for name, tensor in _header(file).items()}
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    with torch.device("meta"):
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    with silence():
        _, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,  # or the first one would be an error
            output_loading_info=True,
        )
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing:
        yield (
            f"the checkpoint lacks {count_of(len(missing), 'weight')} of {kind.__name__}, which would be drawn at "
            f"random: {_some(missing)}"
        )
    if unexpected:
        yield (
            f"the checkpoint has {count_of(len(unexpected), 'tensor')} that {kind.__name__} has no place for: "
            f"{_some(unexpected)}{_wrapper(unexpected)}"
        )
    for name, theirs, ours in sorted(report["mismatched_keys"])[:SHOWN]:
        yield f"{name} has the shape {tuple(theirs)} in the checkpoint, and {tuple(ours)} by config.json"
    yield from report["error_msgs"]


@contextmanager
def silence() -> Iterator[None]:
    """Keep transformers' reports, warnings and progress bars from stderr."""
    from transformers.utils import logging as reports

    shown = reports.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    reports.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if shown:
            reports.enable_progress_bar()


def _wrapper(names: Sequence[str]) -> str:
    for prefix, wrapper in WRAPPERS.items():
        if all(name.startswith(prefix) for name in names):
            return f". {wrapper} put {prefix!r} before the names: save the model that is inside"
    return ""


def _some(names: Sequence[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
