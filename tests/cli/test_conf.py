"""conf/: every option of every group composes for every command that takes it, and is within the rules."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from autotune.cli.help import COMMANDS
from autotune.cli.requests import build_home
from autotune.cli.settings import RunSettings, SearchSettings, find_problems, options, store_configs
from autotune.errors import UsageError
from autotune.models.catalogue import CONF
from autotune.search.samplers import SAMPLERS

PRESETS = "experiment"  # a group whose options set keys of other groups


def composed(command: str, *overrides: str, run_file: dict[str, Any] | None = None) -> Any:
    """The settings that a command line gives, as Hydra composes them."""
    store_configs(run_file=run_file or {})
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_object(compose(command, overrides=list(overrides)))


def words_of_row(row: int, groups: Sequence[str]) -> list[str]:
    """Words that choose one option of each group: row by row the next one, and after the last the first again."""
    return [f"{group}={options(group)[row % len(options(group))]}" for group in groups if group != PRESETS]


def option_problems(settings: Any) -> list[str]:
    """What breaks a rule, other than what is only missing."""
    return [problem for problem in find_problems(settings) if "is missing" not in problem]


def test_every_option_composes() -> None:
    """An option gives settings of the command's own type, and no value of it breaks a rule.

    Composing takes a tenth of a second, so one composition takes an option of every group.
    """
    groups = COMMANDS["search"].groups
    for row in range(max(len(options(group)) for group in groups)):
        settings = composed("search", *words_of_row(row, groups))
        assert type(settings) is SearchSettings
        assert option_problems(settings) == []


def test_every_sampler_has_its_option() -> None:
    """The files of conf/sampler/ and the names that a search knows are the same."""
    assert sorted(options("sampler")) == sorted(SAMPLERS)
    for name in SAMPLERS:
        assert composed("search", f"sampler={name}").sampler.name == name


@pytest.mark.parametrize("option", options(PRESETS))
def test_every_preset_composes(option: str) -> None:
    """A preset keeps the rules by itself, where no other word hides what it sets."""
    assert option_problems(composed("search", f"{PRESETS}={option}")) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_composes_for_every_command_that_takes_its_group(command: str) -> None:
    """A command that shares a group with a search takes it by the same name, into settings with the same keys."""
    groups, hints = COMMANDS[command].groups, get_type_hints(COMMANDS[command].settings)
    for group in set(groups) - {PRESETS}:
        assert issubclass(hints[group], get_type_hints(SearchSettings)[group])
    settings = composed(command, *words_of_row(-1, groups))
    assert type(settings) is COMMANDS[command].settings
    assert option_problems(settings) == []


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


def test_an_empty_home_is_none_and_a_missing_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker -e AUTOTUNE_HOME=` is no wish to write here. A user without an entry has no `~`."""
    monkeypatch.setenv("AUTOTUNE_HOME", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert build_home(composed("probe")) == Path("/home/me/.cache/autotune")
    monkeypatch.delenv("AUTOTUNE_HOME")
    monkeypatch.delenv("HOME")
    assert build_home(composed("probe")).is_absolute()  # as the system's list of users has it

    def unknown(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(UsageError, match="this user has no home directory; name a place for the caches by home=DIR"):
        build_home(composed("probe"))
