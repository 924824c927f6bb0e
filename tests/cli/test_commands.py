"""Help: frozen word by word, complete, and taken from the settings alone."""

from pathlib import Path

import pytest

from autotune.cli.commands import COMMANDS, HYDRA, help_text, keys_of
from autotune.core.candidate import Fidelity

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_is_frozen(command: str | None) -> None:
    """The surface of the command line changes only on purpose: write the golden file anew to agree to a change."""
    assert help_text(command) == (GOLDEN / f"help_{command or 'autotune'}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_has_a_description(command: str) -> None:
    """No key is without a line of help, and every key and group stands in it."""
    text = help_text(command)
    for key in keys_of(COMMANDS[command].settings).values():
        assert key.doc, key.name
        assert f"  {key.name}=" in text
    assert all(f"\n  {group} " in text for group in COMMANDS[command].groups)
    assert text.endswith(HYDRA)


def test_keys_know_their_type_and_default() -> None:
    """Types, limits and defaults are read off the settings, also through a parent class and a nested one."""
    keys = keys_of(COMMANDS["search"].settings)
    assert keys["recipe.effective_batch_size"].expected == "a whole number, at least 1"
    assert keys["recipe.max_steps"].expected == "a whole number, at least 1, or null"
    assert keys["refresh"].expected == "true or false"
    assert (keys["fidelity"].choices, keys["fidelity"].default) == (("exact", "close", "free"), Fidelity.close)
    assert keys["data.columns"].is_mapping
    assert keys["recipe.lora_target_modules"].default == ["all-linear"]
