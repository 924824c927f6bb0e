"""Find every mistake on a command line at once.

Hydra stops at its first error. So the overrides are read here before Hydra composes them: keys are compared with the
settings, options with the groups of conf/, values with types and limits (judge.py). Free forms (`model=owner/name`,
`data=FILE`) become keys that Hydra knows. Leaves out composing for real (application.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune import data
from autotune.cli.help import COMMANDS
from autotune.cli.judge import Judge, hint_at, nearest
from autotune.cli.keys import shown
from autotune.cli.settings import FREE_FORM, find_problems
from autotune.errors import UsageError
from autotune.models.catalogue import CONF, TEXT_BACKBONE

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

SUFFIXES = {"data": data.SUFFIXES, "hardware": (".json",)}  # these name a file, with no slash
SEARCH_PATH = "hydra.searchpath="


def check(
    command: str,
    overrides: Sequence[str],
    *,
    before: Sequence[str] = (),
    config_name: str | None = None,
    config_dir: str | None = None,
    multirun: bool = False,
    to_be_used: bool = True,
) -> list[str]:
    """Rewrite the overrides of a command for Hydra. Raises UsageError with every problem.

    before: problems of a run file, found by load_run_file. The file's values must be in Hydra's config store already.
    config_name, config_dir, multirun: Hydra's flags of these names.
    to_be_used: whether the command will do its work; then a missing key is a problem too.
    """
    from hydra import initialize_config_dir

    with initialize_config_dir(str(CONF), version_base="1.3"):
        reader = _Reader(command, config_name=config_name or command, multirun=multirun)
        reader.look_in(config_dir, overrides)
        good = [text for override in overrides for text in reader.read(override)]
        reader.compose(good, to_be_used=to_be_used and not before)
    if before or reader.problems:
        raise UsageError(*before, *reader.problems)
    return good


def twice_named(overrides: Sequence[str]) -> list[str]:
    """Say so where the name of an option, which counts, is that of a file or directory here, too."""
    given = [(group, value) for group, _, value in (text.partition("=") for text in overrides) if group in FREE_FORM]
    return [
        f"{group}={value} is an option of autotune; what is called {value} here is {group}=./{value}"
        for group, value in given
        if "/" not in value and (CONF / group / f"{value}.yaml").is_file() and Path(value).exists()
    ]


class _Reader:
    """Reads overrides one by one and collects problems. Needs an initialized Hydra, which knows the groups' options."""

    def __init__(self, command: str, *, config_name: str, multirun: bool) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.command = command
        self.config_name = config_name
        self.judge = Judge(command)
        self.multirun = multirun
        self.search_path: list[str] = []
        self.parser = OverridesParser.create()
        self.options: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.faulty: set[str] = set()  # groups with a problem; they are not reported as missing too

    def look_in(self, config_dir: str | None, overrides: Sequence[str]) -> None:
        """Add the directories of --config-dir and hydra.searchpath to those that options come from."""
        places = []
        if config_dir is not None and Path(config_dir).is_dir():
            places.append(f"file://{Path(config_dir).resolve()}")
        elif config_dir is not None:
            self._refuse("", f"--config-dir {config_dir}: no such directory")
        for text in overrides:
            if text.startswith(SEARCH_PATH) and isinstance(value := self.parser.parse_override(text).value(), list):
                places += value
        self.search_path = [f"{SEARCH_PATH}[{','.join(places)}]"] if places else []

    def read(self, text: str) -> list[str]:
        """Rewrite one override for Hydra, as one or more texts. A wrong one gives no text and adds a problem."""
        from hydra.errors import HydraException

        name, _, value = text.partition("=")
        if not name:
            return self._refuse("", f"{text}: has no key before the equals sign")
        is_path = value and name in FREE_FORM and name in self.judge.groups and _is_there(name, value)
        if is_path and value not in self._options(name):
            return _free_form(name, [value])  # a path may hold characters that Hydra's grammar refuses
        try:
            override = self.parser.parse_override(text)
        except HydraException:
            if self._is_plain_text(name, value):  # such as out=runs/lr=1e-4
                return [f"{name}={_quoted(value)}"]
            return self._refuse(name, f"{text}: cannot be read; expected key=value, with quotes as in key='a (b)'")
        name = override.key_or_group
        if name.startswith(("hydra.", "hydra/")):
            return [text]
        if override.is_sweep_override() and not self.multirun:
            return self._refuse(name, f"{text}: several values need -m; a list is [a,b], a text with commas 'a,b'")
        if options := self._options(name):
            return self._read_group(text, override, options)
        if override.is_delete():
            return self._refuse(name, f"{text}: only a group can be left out")
        if problems := [problem for value in self._values(override) for problem in self.judge.problems(name, value)]:
            return self._refuse(name, *problems)
        # Hydra adds a new name to a mapping only after `++`, and refuses `+` before any other key, since that exists.
        return [f"{'++' if self.judge.mapping(name) else ''}{name}={override.get_value_string()}"]

    def compose(self, overrides: Sequence[str], *, to_be_used: bool) -> None:
        """Compose the overrides that are right, to find wrong values in presets and, if asked, missing keys."""
        from hydra import compose
        from hydra.core.hydra_config import HydraConfig
        from hydra.errors import HydraException
        from omegaconf import OmegaConf, open_dict, read_write
        from omegaconf.errors import OmegaConfBaseException

        parsed = (self.parser.parse_override(text) for text in overrides if not text.startswith(SEARCH_PATH))
        singles = [single for override in parsed for single in _singles(override)[:1]]
        singles += [
            *self.search_path,
            "hydra.job.num=0",
            "hydra.job.id=0",
        ]  # values may use ${hydra:job.num}
        try:
            config = compose(self.config_name, overrides=singles, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            with read_write(config), open_dict(config):
                del config["hydra"]
            settings: Any = OmegaConf.to_object(config)
        except (HydraException, OmegaConfBaseException) as error:
            self.problems.append(" ".join(f"{error} {error.__cause__ or ''}".split()))
            return
        finally:
            HydraConfig.instance().cfg = None
        found = find_problems(settings) if to_be_used else []
        self.problems += [problem for problem in found if problem.partition("=")[0] not in self.faulty]

    def _read_group(self, text: str, override: "Override", options: Sequence[str]) -> list[str]:
        group = override.key_or_group
        if override.package is not None or (override.is_add() and group not in COMMANDS["search"].groups):
            return [text]  # a group of the user's own
        if group not in self.judge.groups:
            return self._refuse(group, f"{text}: {self.command} takes no {group}")
        values = self._values(override)
        if override.is_delete() or values == [None]:
            return [f"~{group}"]
        free = [value for value in values if value not in options and _is_free_form(group, value)]
        if free and len(free) == len(values):
            return _free_form(group, free)
        if wrong := [value for value in values if value not in options and value not in free]:
            known = ", ".join(options) + (f", {FREE_FORM[group][1]}" if group in FREE_FORM else "")
            said = (
                f"{group}={shown(value)}: expected {known}{hint_at(nearest(str(value), options))}" for value in wrong
            )
            return self._refuse(group, *said)
        if free:
            return self._refuse(group, f"{text}: options and free forms cannot be mixed in one sweep")
        return [f"{group}={override.get_value_string()}"]

    def _is_plain_text(self, name: str, value: str) -> bool:
        """Whether a key takes any text and `value` is meant as one, although Hydra's grammar refuses it."""
        key = self.judge.keys.get(name)
        return key is not None and key.hint is str and not key.choices and value[:1] not in ("", *"'\"[{$")

    def _values(self, override: "Override") -> list[Any]:
        return [self.parser.parse_override(single).value() for single in _singles(override)]

    def _options(self, group: str) -> list[str]:
        """The options of a group; none for a key. Hydra looks at the directories anew each time, so they are kept."""
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.object_type import ObjectType

        if group not in self.options:
            loader = GlobalHydra.instance().config_loader()
            found = loader.get_group_options(group, ObjectType.CONFIG, self.config_name, self.search_path)
            self.options[group] = found
        return self.options[group]

    def _refuse(self, name: str, *problems: str) -> list[str]:
        self.faulty.add(name.partition(".")[0])
        self.problems += problems
        return []


def _is_free_form(group: str, value: Any) -> bool:
    if group not in FREE_FORM or not isinstance(value, str) or not value:
        return False
    named = "/" in value or value.startswith((".", "~")) or value.endswith(SUFFIXES.get(group, ()))
    return named or _is_there(group, value)


def _is_there(group: str, value: str) -> bool:
    """Whether a value names a file or a directory here, with or without what may stand behind the name of a model."""
    return Path(value.removesuffix(TEXT_BACKBONE) if group == "model" else value).exists()


def _free_form(group: str, values: Sequence[str]) -> list[str]:
    """Remove the group and set the key that its option would have set. Several values stay one sweep."""
    return [f"~{group}", f"{FREE_FORM[group][0]}={','.join(map(_quoted, values))}"]


def _quoted(text: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _singles(override: "Override") -> list[str]:
    """Split a sweep into one override for each value. An interval or a glob gives none: only a sweeper knows them."""
    from hydra.core.override_parser.types import ValueType

    if not override.is_sweep_override():
        return [override.input_line or ""]
    if override.is_interval_sweep() or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        return []
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
