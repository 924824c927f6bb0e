"""Decode plain values, as JSON has them, into our dataclasses, with every problem at once.

The type hints of a dataclass are the schema. They may name other dataclasses, `tuple`, `Mapping` with names as keys,
`Literal`, `str`, `int`, `float` and `bool`, each of them optional. Leaves out where the values come from.
"""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from autotune.errors import UsageError

Facts = TypeVar("Facts")


def decode(values: Any, cls: type[Facts], *, where: str, least: Mapping[str, float] | None = None) -> Facts:
    """Read plain values as a dataclass. Raises UsageError with every problem: where, got what, expected what.

    where: the place of `values`, for the messages. A whole number may stand for a `float`, and a list for a `tuple`.
    least: the least value of numbers, by the name of their field, and 0 for other names; None allows any number.
    """
    decoder = _Decoder(least)
    decoded = decoder.dataclass(values, cls, where)
    if decoder.problems:
        raise UsageError(*decoder.problems)
    assert isinstance(decoded, cls)
    return decoded


def problems_of(value: Any, hint: Any, *, where: str) -> list[str]:
    """List what is wrong with a plain value that should be what a type hint says; empty when nothing is."""
    decoder = _Decoder(None)
    decoder.value(value, hint, where)
    return decoder.problems


class _Decoder:
    """Decodes values and notes what is wrong with them. What it returns counts only if it noted nothing."""

    def __init__(self, least: Mapping[str, float] | None) -> None:
        self.problems: list[str] = []
        self._least = least

    def dataclass(self, value: Any, cls: type[Any], where: str) -> Any:
        if not isinstance(value, Mapping):
            self.problems.append(f"{where}: got {value!r:.60}, expected an object with the fields of {cls.__name__}")
            return None
        before, hints = len(self.problems), get_type_hints(cls)
        required = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls) if f.init}
        self.problems += [
            f"{where}.{key}: unknown, expected one of {', '.join(required)}" for key in value if key not in required
        ]
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
            (hint,) = (kind for kind in arguments if kind is not type(None))
            return None if value is None else self.value(value, hint, where)
        if is_dataclass(hint):
            return self.dataclass(value, typing.cast("type[Any]", hint), where)
        if origin is tuple and isinstance(value, (list, tuple)):
            if arguments[-1] is Ellipsis:
                return tuple(self.value(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
            if len(value) == len(arguments):
                return tuple(self.value(v, kind, where) for v, kind in zip(value, arguments, strict=True))
        if origin is Mapping and isinstance(value, Mapping):
            return {str(key): self.value(v, arguments[1], f"{where}.{key}") for key, v in value.items()}
        if origin is Literal and value in arguments:
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


def _expected(hint: Any) -> str:
    """Say in words what a type hint expects."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if kind is type(None) else _expected(kind) for kind in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)}"
    if origin is Mapping:
        return "an object of strings"
    return {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}.get(hint, str(hint))
