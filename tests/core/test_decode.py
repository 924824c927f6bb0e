"""Plain values into dataclasses: what is taken, and that every problem is told with its place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal

import pytest

from autotune.core.decode import decode, encode
from autotune.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: float
    name: str = "origin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    points: tuple[Point, ...]
    pair: tuple[int, int]
    kind: Literal["line", "arc"] = "line"
    best: Point | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    closed: bool = False
    count: int = field(init=False, default=0)


def test_plain_values_become_what_the_hints_say() -> None:
    """Lists become tuples, objects dataclasses, whole numbers floats; what has a default may be left out."""
    values = {"points": [{"x": 1}, {"x": 2.5, "name": "b"}], "pair": [1, 2], "best": {"x": 3}, "notes": {"a": "b"}}
    decoded = decode(values, Curve, where="c")
    points = (Point(x=1.0), Point(x=2.5, name="b"))
    assert decoded == Curve(points=points, pair=(1, 2), best=Point(x=3.0), notes={"a": "b"})
    assert isinstance(decoded.points[0].x, float)


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ([], ["c: got [], expected an object with the fields of Curve"]),
        (
            {"points": [{"x": "1"}, 7], "pair": [1], "count": 3, "best": {"y": 1}},
            [
                "c.count: unknown, expected one of points, pair, kind, best, notes, closed",
                "c.points[0].x: got '1', expected a number",
                "c.points[1]: got 7, expected an object with the fields of Point",
                "c.pair: got [1], expected a list of 2",
                "c.best.y: unknown, expected one of x, name",
                "c.best.x: missing, expected a number",
            ],
        ),
        (
            {"pair": [1, True], "kind": "dot", "notes": {"a": 1}, "closed": 1},
            [
                "c.points: missing, expected a list",
                "c.pair[1]: got True, expected a whole number",
                "c.kind: got 'dot', expected one of line, arc",
                "c.notes.a: got 1, expected a string",
                "c.closed: got 1, expected true or false",
            ],
        ),
    ],
)
def test_every_problem_has_its_place(values: Any, problems: list[str]) -> None:
    """Where, what was given, what is expected; a truth value is no number."""
    with pytest.raises(UsageError) as error:
        decode(values, Curve, where="c")
    assert list(error.value.problems) == problems


def test_numbers_may_have_a_least_value() -> None:
    """By the name of the field, 0 for other names; NaN is below everything. Without such limits any number goes."""
    values = {"points": [{"x": -1}, {"x": float("nan")}], "pair": [1, 2]}
    decode(values, Curve, where="c")
    with pytest.raises(UsageError) as error:
        decode(values, Curve, where="c", least={})
    assert list(error.value.problems) == [
        "c.points[0].x: got -1.0, expected at least 0",
        "c.points[1].x: got nan, expected at least 0",
    ]
    decode({"x": 1}, Point, where="p", least={"x": 1})
    with pytest.raises(UsageError, match="at least 1"):
        decode({"x": 0.5}, Point, where="p", least={"x": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Circle:
    kind: ClassVar[str] = "circle"

    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Square:
    kind: ClassVar[str] = "square"

    side: float


class Colour(Enum):
    red = 1
    blue = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    shapes: tuple[Circle | Square, ...]
    note: Point | Curve | None = None
    title: str | int | None = None
    extra: Any = None
    colour: Colour | None = None


def test_unions_are_told_apart() -> None:
    """By `kind`, by the required fields, or by the type of a plain value; what is encoded is decoded to the same."""
    drawing = Drawing(
        shapes=(Circle(radius=1.0), Square(side=2.0)), note=Curve(points=(), pair=(1, 2)), title=3, colour=Colour.red
    )
    plain = encode(drawing)
    assert plain["shapes"] == [{"kind": "circle", "radius": 1.0}, {"kind": "square", "side": 2.0}]
    del plain["note"]["count"]  # no value can be given for it
    assert decode(plain, Drawing, where="d") == drawing


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"shapes": [{"kind": "line"}]},
            "d.shapes[0]: got {'kind': 'line'}, expected an object with the fields of Circle or an object with the "
            "fields of Square",
        ),
        ({"shapes": [{"kind": "circle", "side": 1}]}, "d.shapes[0].radius: missing, expected a number"),
        ({"shapes": [], "title": True}, "d.title: got True, expected a string or a whole number or null"),
        ({"shapes": [], "colour": ["red"]}, "d.colour: got ['red'], expected one of red, blue"),
    ],
)
def test_what_is_of_no_kind_is_a_problem(values: Any, problem: str) -> None:
    """The message names all kinds, or what is wrong with the kind that was given."""
    with pytest.raises(UsageError) as error:
        decode(values, Drawing, where="d", closed=False)
    assert list(error.value.problems) == [problem]


def test_unknown_keys_may_be_ignored() -> None:
    """A file of a newer version may have more keys, at any depth."""
    values = {"shapes": [{"kind": "square", "side": 1, "colour": "red"}], "author": "me", "extra": [1, {"a": None}]}
    assert decode(values, Drawing, where="d", closed=False) == Drawing(
        shapes=(Square(side=1.0),), extra=[1, {"a": None}]
    )
