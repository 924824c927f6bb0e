"""Decode plain values, such as those of a JSON file, into our dataclasses, with every problem at once.

The type hints of a dataclass are the schema. They may name other dataclasses, `tuple`, `Mapping` with names as keys,
`Literal`, enums (by their names), `str`, `int`, `float`, `bool` and `Any`, each of them optional, and unions of these.
The dataclasses of a union are told apart by their class variable `kind` if they have one, else by their required
fields.
`encode` is the way back. Leaves out where the values come from.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from autotune.errors import UsageError

Facts = TypeVar("Facts")


def decode(
    values: Any, cls: type[Facts], *, where: str, least: Mapping[str, float] | None = None, closed: bool = True
) -> Facts:
    """Read plain values as a dataclass. Raises UsageError with every problem: where, got what, expected what.

    where: the place of `values`, for the messages. A whole number may stand for a `float`, and a list for a `tuple`.
    least: the least value of numbers, by the name of their field, and 0 for other names; None allows any number.
    closed: whether a key that is no field is a problem; otherwise it is ignored.
    """
    decoder = _Decoder(least, closed=closed)
    decoded = decoder.dataclass(values, cls, where)
    if decoder.problems:
        raise UsageError(*decoder.problems)
    assert isinstance(decoded, cls)
    return decoded


def encode(value: Any) -> Any:
    """Turn dataclasses, mappings, sequences and enums into plain values; a class variable `kind` becomes a key."""
    if isinstance(value, Enum):
        return value.name
    if is_dataclass(value):
        kind = kind_of(type(value))
        plain = {field.name: encode(getattr(value, field.name)) for field in fields(value)}
        return plain if kind is None else {"kind": kind, **plain}
    if isinstance(value, Mapping):
        return {str(key): encode(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(each) for each in value]
    return value


def kind_of(cls: type[Any]) -> str | None:
    """Return the class variable `kind` of a dataclass, which tells the kinds of a union apart; None without one."""
    kind = vars(cls).get("kind")  # not a text where `kind` is the name of a field
    return kind if isinstance(kind, str) else None


class _Decoder:
    """Decodes values and notes what is wrong with them. What it returns counts only if it noted nothing."""

    def __init__(self, least: Mapping[str, float] | None, *, closed: bool) -> None:
        self.problems: list[str] = []
        self._least = least
        self._closed = closed

    def dataclass(self, value: Any, cls: type[Any], where: str) -> Any:
        if not isinstance(value, Mapping):
            self.problems.append(f"{where}: got {value!r:.60}, expected {_expected(cls)}")
            return None
        before, hints, required = len(self.problems), get_type_hints(cls), _required(cls)
        if self._closed:
            known = {*required, *(("kind",) if kind_of(cls) else ())}
            unknown = (key for key in value if key not in known)
            self.problems += [f"{where}.{key}: unknown, expected one of {', '.join(required)}" for key in unknown]
        self.problems += [
            f"{where}.{name}: missing, expected {_expected(hints[name])}"
            for name, is_required in required.items()
            if is_required and name not in value
        ]
        decoded = {name: self.value(v, hints[name], f"{where}.{name}") for name, v in value.items() if name in required}
        if self._least is not None:
            self._check_numbers(decoded, where, self._least)
        return cls(**decoded) if len(self.problems) == before else None

    def value(self, value: Any, hint: Any, where: str) -> Any:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            kinds = [kind for kind in arguments if kind is not type(None)]
            like = kinds if len(kinds) == 1 else [kind for kind in kinds if _is_like(value, kind)]
            if like:
                return self.value(value, like[0], where)
        if is_dataclass(hint):
            return self.dataclass(value, typing.cast("type[Any]", hint), where)
        if origin is tuple and isinstance(value, (list, tuple)):
            if arguments[-1] is Ellipsis:
                return tuple(self.value(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
            if len(value) == len(arguments):
                pairs = enumerate(zip(value, arguments, strict=True))
                return tuple(self.value(v, kind, f"{where}[{i}]") for i, (v, kind) in pairs)
        if origin is Mapping and isinstance(value, Mapping):
            return {str(key): self.value(v, arguments[1], f"{where}.{key}") for key, v in value.items()}
        if origin is Literal and value in arguments:
            return value
        if isinstance(hint, type) and issubclass(hint, Enum):
            if isinstance(value, str) and value in hint.__members__:
                return hint[value]
            self.problems.append(f"{where}: got {value!r:.60}, expected {_expected(hint)}")
            return None
        if hint is Any:
            return value
        if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
        self.problems.append(f"{where}: got {value!r:.60}, expected {_expected(hint)}")
        return None

    def _check_numbers(self, decoded: Mapping[str, Any], where: str, least: Mapping[str, float]) -> None:
        for name, number in decoded.items():
            if isinstance(number, (int, float)) and not isinstance(number, bool) and not number >= least.get(name, 0):
                self.problems.append(f"{where}.{name}: got {number!r}, expected at least {least.get(name, 0)}")


def _required(cls: type[Any]) -> dict[str, bool]:
    """The fields of a dataclass, and whether a value must be given."""
    return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls) if f.init}


def _is_like(value: Any, kind: Any) -> bool:
    """Whether a value has the form of one kind of a union."""
    if is_dataclass(kind):
        cls = typing.cast("type[Any]", kind)
        if not isinstance(value, Mapping):
            return False
        if (tag := kind_of(cls)) is not None:
            return bool(value.get("kind") == tag)
        return all(name in value for name, required in _required(cls).items() if required)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _expected(hint: Any) -> str:
    """Say in words what a type hint expects."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _expected(kind) for kind in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    if is_dataclass(hint):
        return f"an object with the fields of {typing.cast('type[Any]', hint).__name__}"
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    if origin is Mapping:
        return "an object of strings"
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))
