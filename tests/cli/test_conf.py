"""conf/: every option of every group composes for every command that takes it, and is within the rules."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from autotune.cli.commands import COMMANDS
from autotune.cli.requests import build_home
from autotune.cli.settings import RunSettings, SearchSettings, find_problems, options, store_configs
from autotune.models.catalogue import CONF
from autotune.search.samplers import SAMPLERS

OPTIONS = [
    (command, group, option)
    for command, found in COMMANDS.items()
    for group in found.groups
    for option in options(group)
]
SEARCH = ["model=tiny", "data=demo"]


def composed(command: str, *overrides: str, run_file: dict[str, Any] | None = None) -> Any:
    """The settings that a command line gives, as Hydra composes them."""
    store_configs(run_file=run_file or {})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_object(compose(command, overrides=list(overrides)))


@pytest.mark.parametrize(("command", "group", "option"), OPTIONS)
def test_every_option_composes(command: str, group: str, option: str) -> None:
    """An option gives settings of the command's own type, and no value of it breaks a rule."""
    settings = composed(command, *SEARCH, f"{group}={option}")
    assert type(settings) is COMMANDS[command].settings
    assert [problem for problem in find_problems(settings) if "is missing" not in problem] == []


def test_every_sampler_has_its_option() -> None:
    """The files of conf/sampler/ and the names that a search knows are the same."""
    assert sorted(options("sampler")) == sorted(SAMPLERS)
    for name in SAMPLERS:
        assert composed("search", *SEARCH, f"sampler={name}").sampler.name == name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_by_itself(command: str) -> None:
    """A command without any words has settings, so that --cfg, --info and completion work before a choice is made."""
    assert type(composed(command)) is COMMANDS[command].settings


def test_every_group_belongs_to_a_command() -> None:
    """No folder of conf/ is left without a use, and every group has at least one option."""
    folders = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert folders == {group for command in COMMANDS.values() for group in command.groups}
    assert all(options(group) for group in folders)


def test_model_and_data_have_no_default() -> None:
    """Nothing is trained on by default."""
    settings = composed("search")
    assert (settings.model.path, settings.data.path) == (None, None)


def test_the_default_options_are_the_defaults_of_the_settings() -> None:
    """conf/ and settings.py tell the same defaults: help shows the one, a search uses the other."""
    settings, plain = composed("search"), SearchSettings()
    assert (settings.recipe, settings.budget, settings.sampler) == (plain.recipe, plain.budget, plain.sampler)
    assert (settings.hardware, settings.candidate) == (plain.hardware, plain.candidate)


def test_a_preset_loses_to_the_command_line() -> None:
    """experiment= sets what it wants; a word on the command line wins over it."""
    settings = composed("search", "experiment=demo", "model=tiny", "recipe.effective_batch_size=2")
    assert (settings.model.path, settings.data.path) == ("tiny", "demo")
    assert settings.recipe.effective_batch_size == 2
    assert settings.budget.trials == composed("search", "experiment=demo").budget.trials is not None


def test_a_run_file_loses_to_the_command_line() -> None:
    """What the file says stands until the command line says otherwise, for keys and for groups."""
    file = {"model": {"path": "smollm2"}, "data": {"path": "demo"}, "recipe": {"epochs": 2, "lora_rank": 8}}
    settings = composed("run", "model=tiny", "recipe.lora_rank=4", run_file=file)
    assert isinstance(settings, RunSettings)
    assert (settings.model.path, settings.data.path) == ("tiny", "demo")
    assert (settings.recipe.epochs, settings.recipe.lora_rank) == (2, 4)


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTOTUNE_HOME names the cache, else it is ~/.cache/autotune."""
    monkeypatch.setenv("AUTOTUNE_HOME", "/somewhere")
    assert build_home(composed("probe")) == Path("/somewhere")
    monkeypatch.delenv("AUTOTUNE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert build_home(composed("probe")) == Path("/home/me/.cache/autotune")
