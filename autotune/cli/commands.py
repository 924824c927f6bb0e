"""The commands, the keys that each can be told, and the help that lists them.

Everything is read off the settings (types, defaults, rules, and the docstring under each field) and off the files of
conf/. Leaves out judging what was told (usage.py). Imports no Hydra, which alone would cost a quarter of a second.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from autotune.cli import settings as module_of_settings
from autotune.cli.limits import Limit
from autotune.cli.settings import EstimateSettings, ProbeSettings, RunSettings, SearchSettings, group_words

WIDTH = 120  # columns of the help


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. groups: those of conf/ that it takes an option of."""

    settings: type[ProbeSettings]
    arguments: str
    summary: str
    groups: tuple[str, ...] = ()


COMMANDS: Mapping[str, Command] = {
    "probe": Command(
        settings=ProbeSettings,
        arguments="",
        summary="measures this machine and keeps the result in the cache",
    ),
    "estimate": Command(
        settings=EstimateSettings,
        arguments="model=...",
        summary="predicts the memory of one configuration on any machine; needs no GPU and no weights",
        groups=("model", "data", "hardware", "recipe"),
    ),
    "search": Command(
        settings=SearchSettings,
        arguments="model=... data=...",
        summary="finds the fastest configuration that trains as asked; writes run.yaml and result.json",
        groups=("model", "data", "hardware", "recipe", "budget", "sampler", "experiment"),
    ),
    "run": Command(
        settings=RunSettings,
        arguments="FILE",
        summary="trains with FILE, the run.yaml of a search or its directory; the command line wins over it",
        groups=("model", "data", "hardware", "recipe"),
    ),
}

HYDRA = """\
Each command is a Hydra application:
  -m              one job for each combination of values: -m recipe.method=full,lora
  --cfg job       print the configuration instead of using it
  --info          where the configuration comes from
  --config-dir D  options and presets of your own, in the layout of conf/
  --hydra-help    everything else; tab completion: eval "$(autotune -sc install=bash)"

Results go to stdout, progress and problems to stderr. Exit codes: 0 done; 1 could not be done; 2 the input is wrong;
130 after Ctrl-C.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key that can be set. hint: its type, without None when it may be null."""

    name: str
    hint: Any
    optional: bool
    default: Any
    doc: str
    limit: Limit | None

    @property
    def is_mapping(self) -> bool:
        """Whether it takes names of the user's own."""
        return get_origin(self.hint) is dict

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; empty when it takes others too."""
        if isinstance(self.hint, type) and issubclass(self.hint, Enum):
            return tuple(member.name for member in self.hint)
        return self.limit.choices if self.limit is not None else ()

    @property
    def expected(self) -> str:
        """What it takes, in words."""
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        else:
            kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
            composed = "a mapping such as '{a: b}'" if self.is_mapping else "a list such as [a,b]"
            words = kinds.get(self.hint, composed) + (f", {self.limit.words}" if self.limit is not None else "")
        return f"{words}, or null" if self.optional else words


def keys_of(settings: type[ProbeSettings]) -> dict[str, Key]:
    """List the keys of a command by their dotted names, in the order of the settings."""
    return {key.name: key for key in _keys(settings, "", _field_docs())}


def help_text(command: str | None = None) -> str:
    """Write the help of a command, or of autotune itself."""
    if command is None:
        return "\n".join(
            (
                "autotune COMMAND [FILE] [group=option ...] [key=value ...] [-m] [--cfg job] [--help]",
                "",
                "Finds the fastest safe fine-tuning configuration for one model, one dataset and one machine.",
                "",
                *_columns((name, found.summary) for name, found in COMMANDS.items()),
                "",
                "autotune COMMAND --help lists what a command can be told; autotune --version prints the version.",
                "",
                HYDRA,
            )
        )
    found = COMMANDS[command]
    words = ("autotune", command, found.arguments, "[group=option ...]" if found.groups else "", "[key=value ...]")
    groups = ((group, group_words(group)) for group in found.groups)
    keys = ((f"{key.name}={_shown(key.default)}", _described(key)) for key in keys_of(found.settings).values())
    return "\n".join(
        (
            " ".join((*filter(None, words), "[-m] [--cfg job]")),
            "",
            f"{found.summary[0].upper()}{found.summary[1:]}.",
            "",
            *(("Groups:", *_columns(groups), "") if found.groups else ()),
            "Keys, with their defaults:",
            *_columns(keys),
            "",
            HYDRA,
        )
    )


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    left = max(len(name) for name, _ in rows) + 4
    lines = []
    for name, words in rows:
        first, *rest = textwrap.wrap(words, WIDTH - left)
        lines += [f"  {name:{left - 2}}{first}", *(f"{'':{left}}{line}" for line in rest)]
    return lines


def _described(key: Key) -> str:
    return f"{key.doc} ({', '.join(key.choices)})" if key.choices else key.doc


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str) and "${" in value:
        return "DIR"  # an interpolation says nothing to people; the docstring does
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _keys(settings: type[Any], prefix: str, docs: Mapping[tuple[str, str], str]) -> Iterator[Key]:
    hints = get_type_hints(settings)
    owners = {name: cls.__name__ for cls in reversed(settings.__mro__) for name in vars(cls).get("__annotations__", {})}
    for item in fields(settings):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{item.name}.", docs)  # type: ignore[arg-type]
            continue
        inner = [argument for argument in get_args(hint) if argument is not type(None)]
        optional = type(None) in get_args(hint)
        yield Key(
            name=f"{prefix}{item.name}",
            hint=inner[0] if optional else hint,
            optional=optional,
            default=_default(item),
            doc=docs[owners[item.name], item.name],
            limit=item.metadata.get("limit"),
        )


def _default(item: "Field[Any]") -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _field_docs() -> dict[tuple[str, str], str]:
    """The docstring under each field of the settings, by class and field."""
    found = {}
    for cls in ast.parse(inspect.getsource(module_of_settings)).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, doc in zip(cls.body, cls.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                found[cls.name, ast.unparse(field.target)] = str(doc.value.value)
    return found
