"""The listing of a component's functions as Python signatures: it is Python, and says all types."""

from __future__ import annotations

import ast

from trio_wasmcache._core.wit.stubs import list_functions
from trio_wasmcache._core.wit.types import (
    F64,
    S64,
    STRING,
    U8,
    Enum,
    Flags,
    Function,
    List,
    Option,
    Record,
    Result,
    Tuple,
    Type,
    Variant,
)

HOME = "demo:shapes/types@0.1.0"
POINT = Record((("pos-x", F64), ("class", F64)), "point", HOME)
SHAPE = Variant((("circle", F64), ("box", POINT), ("none", None)), "shape", HOME)
HUE = Enum(("red", "dark-blue"), "hue")
MODES = Flags(("a", "b"), "modes")


def listed(*types: Type, result: Type | None = None, name: str = "f") -> str:
    params = tuple((f"p{number}", one) for number, one in enumerate(types))
    text = "\n".join(list_functions([(name, Function(params, result))]))
    ast.parse(text)
    return text


def test_the_whole_of_a_listing() -> None:
    functions = [
        ("area", Function((("of", SHAPE),), F64)),
        ("paint-all", Function((("in", List(SHAPE)), ("as", Option(HUE))), Result(MODES))),
    ]
    text = "\n".join(list_functions(functions))
    ast.parse(text)
    assert (
        text
        == """\
from typing import Literal, NamedTuple
from trio_wasmcache import Case

class Point(NamedTuple):  # record point of demo:shapes/types@0.1.0
    pos_x: float
    class_: float

Shape = Case  # Case("circle", float) | Case("box", Point) | Case("none");  \
# variant shape of demo:shapes/types@0.1.0

Hue = Literal["red", "dark-blue"]  # enum hue

Modes = frozenset[Literal["a", "b"]]  # flags modes

def area(of: Shape) -> float: ...  # area: func(of: shape) -> f64
def paint_all(in_: list[Shape], as_: Hue | None) -> Modes: ...  \
# paint-all: func(in: list<shape>, as: option<hue>) -> result<modes>; raises WitError()"""
    )


def test_each_kind_of_type() -> None:
    text = listed(
        *(S64, STRING, List(U8), List(S64), Tuple((F64, STRING)), Option(S64)),
        *(Option(Option(S64)), Result(S64, STRING), Record((("x", S64),))),
    )
    assert (
        "def f(p0: int, p1: str, p2: bytes, p3: list[int], p4: tuple[float, str], p5: int | None, "
        "p6: Some | None, p7: Ok | Err, p8: tuple[object, ...]) -> None: ..." in text
    )
    assert "from trio_wasmcache import Err, Ok, Some" in text
    raises = listed(result=Result(None, STRING))
    assert raises == "def f() -> None: ...  # f: func() -> result<_, string>; raises WitError(str)"


def test_two_types_of_one_name_are_told_apart() -> None:
    other = Record((("y", F64),), "point", "demo:other/types")
    text = listed(POINT, other)
    assert "class Point(NamedTuple)" in text
    assert "class Point2(NamedTuple)" in text
    assert "def f(p0: Point, p1: Point2)" in text
    assert "class Case2(NamedTuple)" in listed(Record((("y", F64),), "case"), SHAPE)
