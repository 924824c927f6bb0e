"""Judge single values by the types and limits of a command's settings, and find the name that a wrong one means."""

import difflib
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from autotune.cli.help import COMMANDS
from autotune.cli.keys import Key, keys_of, shown
from autotune.cli.settings import ProbeSettings

_REFUSED = object()


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Find the known name that `word` most likely stands for; None when nothing is near.

    Its last part may be enough (`epochs` for `recipe.epochs`), or its beginning (`a100` for `a100_40gb`).
    """
    names = list(known)
    parts = {name.rpartition(".")[2]: name for name in reversed(names)}
    last = word.rpartition(".")[2]
    if last in parts:
        return parts[last]
    if word and (longer := [name for name in names if name.startswith(word)]):
        return min(longer, key=len)
    if close := difflib.get_close_matches(word, names, n=1):
        return close[0]
    return next((parts[part] for part in difflib.get_close_matches(last, parts, n=1)), None)


def hint_at(name: str | None) -> str:
    """Name the nearest right name at the end of a message."""
    return f"; the nearest is {name}" if name else ""


class Judge:
    """Judges single values against the types and rules of a command's settings."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.groups = COMMANDS[command].groups
        self.settings: type[ProbeSettings] = COMMANDS[command].settings
        self.keys = keys_of(self.settings)

    def mapping(self, name: str) -> Key | None:
        """Find the key, a mapping with names of the user's own, that `name` is or lies in; None without one."""
        mappings = (key for key in self.keys.values() if key.is_mapping)
        return next((key for key in mappings if f"{name}.".startswith(f"{key.name}.")), None)

    def problems(self, name: str, value: Any) -> list[str]:
        """List what is wrong with `name=value`. Interpolations (`${...}`) are left to Hydra."""
        inside = [key for key in self.keys if key.startswith(f"{name}.")]
        if inside and isinstance(value, dict):
            return [problem for part, item in value.items() for problem in self.problems(f"{name}.{part}", item)]
        said = f"{name}={shown(value)}"
        if inside:
            return [f"{said}: {name} holds keys, such as {inside[0]}"]
        key = self.keys.get(name) or self.mapping(name)
        if key is not None and key.name == "model.config" and self.command not in ("estimate", "probe"):
            return [f"{said}: is for estimate; {self.command} trains the model as its own files say"]
        if key is None:
            return [f"{said}: no such key{hint_at(nearest(name, (*self.keys, *self.groups)))}"]
        if isinstance(value, str) and "${" in value:
            return []
        found = self._converted(name, value)
        if found is not _REFUSED and (key.limit is None or found is None or key.limit.allows(found)):
            return []
        return [f"{said}: expected {key.expected}{hint_at(nearest(str(value), key.choices))}"]

    @cached_property
    def _node(self) -> Any:
        """The settings as OmegaConf has them. Values are tried on it, one after another."""
        from omegaconf import OmegaConf

        return OmegaConf.structured(self.settings)

    def _converted(self, name: str, value: Any) -> Any:
        """Convert a value to the key's type as OmegaConf does. Returns _REFUSED when OmegaConf refuses it."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            OmegaConf.update(self._node, name, value, force_add=name not in self.keys)
            return OmegaConf.select(self._node, name)
        except OmegaConfBaseException:
            return _REFUSED
