"""The command line of autotune, for benchmarks: run a command, or ask what a search would make of its words."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from autotune.cli import usage
from autotune.cli.requests import build_home, build_search
from autotune.cli.settings import SearchSettings, store_configs
from autotune.core.hardware import Hardware
from autotune.machine.probe import probe
from autotune.models.catalogue import CONF
from autotune.search.request import SearchRequest
from autotune.search.result import Result, parse_result
from benchmarks.command import say
from benchmarks.rows import RESULTS


def run(*words: str) -> str:
    """Run a command as a user would, and return its JSON answer. Ends this process with the command's exit code."""
    done = subprocess.run([sys.executable, "-m", "autotune", *words, "format=json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def search(asked: Mapping[str, Any], *words: str) -> Result:
    """Search as a user would. asked: values of keys, as Hydra takes them. words: further ones."""
    return parse_result(run("search", *(f"{key}={value}" for key, value in asked.items()), *words))


def request_of(words: Sequence[str]) -> SearchRequest:
    """Return the request that `autotune search` would make of these words."""
    return build_search(_settings(words), new=RESULTS)


def hardware_of(words: Sequence[str]) -> Hardware:
    """Return the machine that `autotune search` would probe with these words."""
    settings = _settings(words)
    use_gpu = settings.hardware.device != "cpu"
    return probe(home=build_home(settings), refresh=settings.refresh, use_gpu=use_gpu, progress=say)


def _settings(words: Sequence[str]) -> SearchSettings:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    store_configs(run_file={})
    overrides = usage.check("search", words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings: Any = OmegaConf.to_object(compose("search", overrides=overrides))
    assert isinstance(settings, SearchSettings)
    return settings


def words_of(header: Mapping[str, Any], data: str) -> list[str]:
    """Return the words of a search of a table's space. header: the table's. data: what `data=` takes."""
    keys = {f"recipe.{key}": value for key, value in header["recipe"].items()}
    keys |= {f"candidate.{knob}": value for knob, value in header["fixed"].items()}
    keys |= {"model": header["model"], "data": data, "fidelity": header["fidelity"], "seed": header["seed"]}
    return [f"{key}={_word(value)}" for key, value in keys.items()]


def _word(value: Any) -> str:
    """Write a value as Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_word, value))}]"
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)
