"""Keys: what is read off the settings of a command."""

from dataclasses import dataclass, field

from autotune.cli.keys import field_docs, keys_of
from autotune.cli.settings import SearchSettings
from autotune.core.candidate import Fidelity


@dataclass
class Parent:
    """A parent."""

    inherited: int
    """from the parent"""


@dataclass
class Child(Parent):
    """A child."""

    own: int
    """its own"""
    told: int = field(metadata={"doc": "by metadata"})
    silent: int = 0


def test_keys_know_their_type_and_default() -> None:
    """Types, limits and defaults are read off the settings, also through a parent class and a nested one."""
    keys = keys_of(SearchSettings)
    assert keys["recipe.effective_batch_size"].expected == "a whole number, at least 1"
    assert keys["recipe.max_steps"].expected == "a whole number, at least 1, or null"
    assert keys["refresh"].expected == "true or false"
    assert (keys["fidelity"].choices, keys["fidelity"].default) == (("exact", "close", "free"), Fidelity.close)
    assert keys["data.columns"].is_mapping
    assert keys["recipe.lora_target_modules"].default == ["all-linear"]


def test_descriptions_are_read_from_the_source() -> None:
    """The docstring under a field, also of a parent, or the field's metadata; a field without one is left out."""
    assert field_docs(Child) == {"inherited": "from the parent", "own": "its own", "told": "by metadata"}
