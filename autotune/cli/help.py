"""The commands, and the help that lists their keys.

The help is made of the settings (keys.py) and of the files of conf/. Imports no Hydra, because that alone would take a
quarter of a second.
"""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from autotune.cli.keys import Key, keys_of, shown
from autotune.cli.settings import EstimateSettings, ProbeSettings, RunSettings, SearchSettings, group_words

WIDTH = 120  # columns of the help


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. groups: the groups of conf/ that it takes an option from."""

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
        summary="predicts memory and time of one configuration on any machine; needs no GPU and no weights",
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
        summary="trains with FILE: the run.yaml of a search, or its directory; the command line wins over the file",
        groups=("model", "data", "hardware", "recipe"),
    ),
}

HYDRA = """\
Each command is a Hydra application:
  -m              one job for each combination of values: -m recipe.method=full,lora
  --cfg job       print the configuration instead of using it
  --info          where the configuration comes from
  --config-dir D  a folder with options and presets of your own, laid out like conf/
  --hydra-help    all other flags; tab completion: eval "$(autotune -sc install=bash)"

Results go to stdout, progress and problems to stderr. Exit codes: 0 done; 1 could not be done; 2 the input is wrong;
130 after Ctrl-C.
"""


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
                "autotune COMMAND --help lists the keys of a command; autotune --version prints the version.",
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
        return "DIR"  # people would not understand the interpolation; the docstring explains it
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    return shown(value)
