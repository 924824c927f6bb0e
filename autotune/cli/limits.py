"""Limits: which values of a key make sense. The fields of settings.py carry them as metadata."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Which values of a key make sense, in addition to its type. named: a list needs a name, and none is empty."""

    choices: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    named: bool = False

    def allows(self, value: Any) -> bool:
        """Whether `value` is one of the choices, or within the limits. It must have the key's type already."""
        if self.named:
            return len(value) > 0 and all(value)
        if isinstance(value, str):
            return value in self.choices
        lower = -math.inf if self.at_least is None else self.at_least
        upper = math.inf if self.at_most is None else self.at_most
        inside = (self.above is None or value > self.above) and (self.below is None or value < self.below)
        return inside and lower <= value <= upper and math.isfinite(value)

    @property
    def words(self) -> str:
        """The limit in words: `one of a, b`, or `above 0 and at most 1`."""
        if self.named:
            return "with at least one name"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        limits = {"above": self.above, "at least": self.at_least, "below": self.below, "at most": self.at_most}
        return " and ".join(f"{words} {limit:.12g}" for words, limit in limits.items() if limit is not None)


def one_of(choices: tuple[str, ...], default: str | None = None) -> Any:
    """Make a field that holds one of `choices`."""
    return field(default=default, metadata={"limit": Limit(choices=choices)})


def number(default: float | None = None, **limits: Any) -> Any:
    """Make a field that holds a number. limits: the fields of Limit, such as `at_least=1`."""
    return field(default=default, metadata={"limit": Limit(**limits)})
