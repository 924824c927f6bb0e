"""The keys of a command, read off its settings: name, type, default, limit and description."""

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from autotune.cli.limits import Limit
from autotune.cli.settings import ProbeSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key that can be set. hint: its type, without None. optional: whether it may be null."""

    name: str
    hint: Any
    optional: bool
    default: Any
    doc: str
    limit: Limit | None

    @property
    def is_mapping(self) -> bool:
        """Whether it is a mapping with names of the user's own."""
        return get_origin(self.hint) is dict

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes; empty if it takes any other value too."""
        if isinstance(self.hint, type) and issubclass(self.hint, Enum):
            return tuple(member.name for member in self.hint)
        return self.limit.choices if self.limit is not None else ()

    @property
    def expected(self) -> str:
        """Say what it takes."""
        if self.choices:
            words = "one of " + ", ".join(self.choices)
        else:
            kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
            composed = "a mapping such as '{a: b}'" if self.is_mapping else "a list such as [a,b]"
            words = kinds.get(self.hint, composed) + (f", {self.limit.words}" if self.limit is not None else "")
        return f"{words}, or null" if self.optional else words


def keys_of(settings: type[ProbeSettings]) -> dict[str, Key]:
    """List the keys of a command by their dotted names, in the order of the settings."""
    return {key.name: key for key in _keys(settings, "")}


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Describe each field of a dataclass, also the inherited ones; those without a description are left out.

    The description is the docstring under the field, or the field's metadata has it.
    """
    owners = [owner for owner in reversed(cls.__mro__) if "__annotations__" in vars(owner)]
    docs = {field: doc for owner in owners for field, doc in _docs_of(owner.__module__).get(owner.__name__, {}).items()}
    return docs | {item.name: item.metadata["doc"] for item in fields(cls) if "doc" in item.metadata}


@cache
def _docs_of(module: str) -> dict[str, dict[str, str]]:
    """The docstrings under fields, by class and field. Python keeps them only in the source."""
    found: dict[str, dict[str, str]] = {}
    for cls in ast.parse(inspect.getsource(sys.modules[module])).body:
        if not isinstance(cls, ast.ClassDef):
            continue
        for field, doc in zip(cls.body, cls.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                found.setdefault(cls.name, {})[ast.unparse(field.target)] = str(doc.value.value)
    return found


def _keys(settings: type[Any], prefix: str) -> Iterator[Key]:
    hints, docs = get_type_hints(settings), field_docs(settings)
    for item in fields(settings):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from _keys(hint, f"{prefix}{item.name}.")  # type: ignore[arg-type]
            continue
        inner = [argument for argument in get_args(hint) if argument is not type(None)]
        optional = type(None) in get_args(hint)
        yield Key(
            name=f"{prefix}{item.name}",
            hint=inner[0] if optional else hint,
            optional=optional,
            default=default_of(item),
            doc=docs[item.name],
            limit=item.metadata.get("limit"),
        )


def default_of(item: "Field[Any]") -> Any:
    """The default of a field, or MISSING."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def shown(value: Any) -> str:
    """Write a value as a command line has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
