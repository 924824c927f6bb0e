"""Help: frozen word by word, complete, and taken from the settings alone."""

from pathlib import Path

import pytest

from autotune.cli.help import COMMANDS, HYDRA, help_text
from autotune.cli.keys import keys_of

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
