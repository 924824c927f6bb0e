"""Splits: which part of a dataset is trained on, and which files of a directory hold it.

A file belongs to the split that its name says, by the rules of the package datasets: `train-00000-of-00002.parquet`,
`gsm8k_test.jsonl`, `validation/a.csv`. A directory that `save_to_disk` wrote says it by itself. Leaves out how a file
is read (rows.py) and datasets on the hub (source.py), whose splits have names already.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.core.units import count_of
from autotune.data import SUFFIXES
from autotune.data.rows import kind_of_file
from autotune.errors import UsageError

TRAIN = "train"  # the split that is trained on, unless another one is asked for
# Words in a name by which the package datasets recognises splits. The first that is found counts.
KEYWORDS: Mapping[str, str] = {
    "test": "test|testing|eval|evaluation",
    "validation": "validation|valid|val|dev",
    "train": "train|training",
}
SHARD = re.compile(r"(?P<split>\w+)-\d{5}-of-\d{5}\..*")
NAMED = 3  # files of a split that are named; of more than that the number is said
# Beside the data of a directory: what tools write about it, and files of a model's checkpoint.
BOOKKEEPING = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "package.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "trainer_state.json",
)
Files = tuple[Path, ...]


def files_in(directory: Path, asked: str | None, progress: Callable[[str], None]) -> tuple[str | None, Files]:
    """Find the split of a directory to train on, and its files in the order of their rows.

    asked: the split that the user named. The split is None where the directory names none. Raises UsageError.
    """
    if _is_saved(directory):
        return _own_split(directory, asked), _saved_files(directory)
    files = _data_files(directory)
    saved = {path.name: path for path in sorted(directory.iterdir()) if path.is_dir() and _is_saved(path)}
    if (directory / "dataset_dict.json").is_file() or (saved and not files):
        chosen = choose_split({name: name for name in saved}, asked, where=str(directory), progress=progress)
        return chosen, _saved_files(saved[chosen])
    named, unnamed = _by_split(files)
    if not files:
        there = sorted(path.name for path in directory.iterdir())[:5]
        raise UsageError(
            f"data={directory}: holds no file ending in {', '.join(SUFFIXES)}; it has {', '.join(there) or 'nothing'}"
        )
    has_names = bool(named)
    if unnamed and TRAIN in named:
        progress(f"not used, because the name says no split: {_in_words(unnamed)}")
    elif unnamed:
        named[TRAIN] = unnamed
    words = {split: f"{split} ({_in_words(files)})" for split, files in named.items()}
    chosen = choose_split(words, asked, where=str(directory), progress=progress)
    if len({kind_of_file(file) for file in named[chosen]}) > 1:
        progress(f"files of different kinds are trained together: {_in_words(named[chosen])}")
    return chosen if has_names else None, named[chosen]


def choose_split(there: Mapping[str, str], asked: str | None, *, where: str, progress: Callable[[str], None]) -> str:
    """Choose the split to train on: the one that was asked for, else `train`, else the only one.

    there: the names of the splits, and the words for each. Says which ones are not used. Raises UsageError.
    """
    names, short = ", ".join(there) or "none", Path(where).name
    if asked is not None and asked not in there:
        raise UsageError(f"data.split={asked}: {where} has no such split, but {names}")
    if asked is None and TRAIN not in there and len(there) != 1:
        raise UsageError(f"data={where}: has no split {TRAIN}, but {names}; choose one by data.split=NAME")
    chosen = asked or (TRAIN if TRAIN in there else next(iter(there)))
    if others := [words for split, words in there.items() if split != chosen]:
        progress(f"the split {chosen} of {short} is trained on; not used: {', '.join(others)}")
    elif chosen != TRAIN and asked is None:
        progress(f"the split {chosen} of {short} is trained on; it has no other")
    return chosen


def split_of(file: Path, *, inside: str = "") -> str | None:
    """The split that a file belongs to: by its name as a shard, else by its folder, else by its name. None without one.

    inside: the name of the folder.
    """
    if shard := SHARD.fullmatch(file.name):
        return shard["split"]
    for name in (inside, file.name):
        for split, keywords in KEYWORDS.items():
            if re.search(rf"(^|[^a-z])({keywords})([^a-z]|$)", name.lower()):
                return split
    return None


def _data_files(directory: Path) -> list[tuple[Path, str]]:
    """The data files of a directory, with the name of the folder that says their split.

    A directory without any may have them in folders, one for each split, or in a folder `data`.
    """
    if here := [(path, "") for path in sorted(directory.iterdir()) if _is_data(path)]:
        return here
    folders = [path for path in sorted(directory.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return [
        (path, folder.name)
        for folder in folders
        if folder.name == "data" or split_of(folder)
        for path in sorted(folder.iterdir())
        if _is_data(path)
    ]


def _by_split(files: list[tuple[Path, str]]) -> tuple[dict[str, Files], Files]:
    """Sort files by their splits. The second are those whose names say none."""
    named: dict[str, Files] = {}
    unnamed: Files = ()
    for file, inside in files:
        if split := split_of(file, inside=inside):
            named[split] = (*named.get(split, ()), file)
        else:
            unnamed = (*unnamed, file)
    return named, unnamed


def _is_data(path: Path) -> bool:
    """Whether a file of a directory is one of its data files."""
    hidden = path.name.startswith((".", "_")) or path.name in BOOKKEEPING
    return path.is_file() and not hidden and kind_of_file(path) in SUFFIXES


def _in_words(files: Files) -> str:
    return ", ".join(file.name for file in files) if len(files) <= NAMED else count_of(len(files), "file")


def _is_saved(directory: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote a directory."""
    return (directory / "state.json").is_file() and (directory / "dataset_info.json").is_file()


def _own_split(directory: Path, asked: str | None) -> str | None:
    """The split that a `Dataset.save_to_disk` says it is. Raises UsageError when another one is asked for."""
    own: str | None = _state(directory).get("_split")
    if asked is not None and asked != own:
        says = f"it is the split {own}" if own else "it is a dataset without splits"
        raise UsageError(f"data.split={asked}: {directory} has no such split; {says}")
    return own


def _saved_files(directory: Path) -> Files:
    """List the files of a `Dataset.save_to_disk` in the order of their rows."""
    try:
        files = tuple(directory / entry["filename"] for entry in _state(directory)["_data_files"])
    except (KeyError, TypeError) as error:
        raise UsageError(f"data={directory}: state.json is not as `save_to_disk` writes it ({error})") from error
    if absent := [file.name for file in files if not file.is_file()]:
        raise UsageError(f"data={directory}: state.json names {', '.join(absent)}, which is not there")
    return files


def _state(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"data={directory}: state.json is not as `save_to_disk` writes it ({error})") from error
