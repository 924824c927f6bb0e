"""Read the file of `autotune run`: the run.yaml of a search, or one that a person wrote.

It is judged by the rules of the command line, and every problem is reported. Leaves out writing it
(search/run_file.py).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.cli.judge import Judge
from autotune.cli.keys import Key
from autotune.formats import RUN_FORMAT, format_problem


def take_run_file(overrides: list[str], *, multirun: bool) -> tuple[dict[str, Any], list[str]]:
    """Take FILE out of the words of a run and read it. Returns its values and its problems."""
    files = (word for word in overrides if Path(word).exists() or ("=" not in word and word[:1] not in "~+"))
    if (word := next(files, None)) is None:
        return {}, ["FILE is missing: autotune run FILE, the run.yaml of a search or its directory"]
    overrides.remove(word)
    file = Path(word).expanduser()
    values, problems = load_run_file(file)
    directory = file if file.is_dir() else file.parent
    values.setdefault("out", f"{directory / 'run'}" + ("-${hydra:job.num}" if multirun else ""))
    return values, problems


def load_run_file(file: Path) -> tuple[dict[str, Any], list[str]]:
    """Read a run file, or the `run.yaml` of a directory. Returns the values that are right and a list of problems."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = file / "run.yaml" if file.is_dir() else file
    if not path.is_file():
        return {}, [f"{path}: no such file; run takes the run.yaml of a search, or its directory"]
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        return {}, [f"{path}: cannot be read: {' '.join(str(error).split())}"]
    if not isinstance(loaded, dict):
        return {}, [f"{path}: holds a {type(loaded).__name__}, expected the keys of a run (autotune run --help)"]
    if (refusal := format_problem(loaded, newest=RUN_FORMAT, where=str(path))) is not None:
        return {}, [refusal]  # a newer file may mean something else by any of its keys
    loaded.pop("format", None)  # a number here; `format=json` can only stand on the command line
    for group in ("model", "data"):
        if isinstance(loaded.get(group), str):
            loaded[group] = {"path": loaded[group]}
    judge = Judge("run")
    values: dict[str, Any] = {}
    problems = []
    for name, value in _flat(loaded, judge.keys):
        if value is False and name in judge.keys:  # YAML 1.1 reads `off` and `no` as false, unless they are quoted
            value = next((word for word in judge.keys[name].choices if word in ("off", "no")), value)
        if found := judge.problems(name, value):
            problems += [f"{path}: {problem}" for problem in found]
        else:
            _put(values, name, value)
    return values, problems


def _flat(values: Mapping[Any, Any], keys: Mapping[str, Key], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names with their values. A mapping that is itself the value of a key stays whole."""
    for part, value in values.items():
        name = f"{prefix}{part}"
        if isinstance(value, dict) and name not in keys:
            yield from _flat(value, keys, f"{name}.")
        else:
            yield name, value


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value
