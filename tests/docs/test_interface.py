"""docs/interface.md names every key that a command takes."""

import json
import re
from pathlib import Path

import pytest

from autotune.cli.help import COMMANDS
from autotune.cli.keys import keys_of

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
WORDS = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", PAGE))))
BEHIND_A_GROUP = {"model.path", "data.path", "hardware.device", "hardware.file", "hardware.gpu"}  # options set these


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_key_is_on_the_page(command: str) -> None:
    """Keys of `recipe.*` and `candidate.*` are listed by their last word, others by their whole name."""
    assert command in WORDS
    names = (name.removeprefix("recipe.").removeprefix("candidate.") for name in keys_of(COMMANDS[command].settings))
    assert set(names) - BEHIND_A_GROUP - WORDS == set()


@pytest.mark.parametrize("name", ["result.schema.json", "run.schema.json"])
def test_every_key_of_the_files_is_on_the_page(name: str) -> None:
    """The first keys of result.json and run.yaml; what is inside them has its descriptions in the schema."""
    schema = json.loads((ROOT / "docs" / "schema" / name).read_text(encoding="utf-8"))
    assert set(schema["properties"]) - WORDS == set()
