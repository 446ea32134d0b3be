"""The types of WIT: what is refused, and how they are written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trio_wasmcache._core.wit.text import (
    body_text,
    definition_text,
    function_text,
    named_types,
    type_text,
)
from trio_wasmcache._core.wit.types import (
    F64,
    S64,
    STRING,
    U8,
    U32,
    Enum,
    Flags,
    Function,
    Handle,
    List,
    Option,
    Record,
    Resource,
    Result,
    Tuple,
    Type,
    Unsupported,
    Variant,
    is_label,
)

HOME = "demo:shapes/types@0.1.0"
POINT = Record((("x", F64), ("y", F64)), "point", HOME)
SHAPE = Variant((("circle", Tuple((POINT, F64))), ("nothing", None)), "shape", HOME)


@pytest.mark.parametrize(
    ("one", "text"),
    [
        (U8, "u8"),
        (List(U8), "list<u8>"),
        (Tuple((U32, STRING)), "tuple<u32, string>"),
        (Option(List(POINT)), "option<list<point>>"),
        (Result(), "result"),
        (Result(S64), "result<s64>"),
        (Result(None, STRING), "result<_, string>"),
        (Result(S64, SHAPE), "result<s64, shape>"),
        (Record((("a-b", U8),)), "record { a-b: u8 }"),
        (Enum(("red", "blue")), "enum { red, blue }"),
        (Flags(("r", "w")), "flags { r, w }"),
        (Handle(Resource("file"), owned=True), "file"),
        (List(Handle(Resource("file"), owned=False)), "list<borrow<file>>"),
        (Option(Unsupported("stream<u8>")), "option<stream<u8>>"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_type_is_written_as_in_wit_without_homes(one: Type, text: str) -> None:
    """Types are written as WIT writes references to them; named ones by their name alone."""
    assert type_text(one) == text


def test_definitions_and_functions_are_written_as_in_wit() -> None:
    """A named type's definition and a function's type are WIT text in one line."""
    assert body_text(SHAPE) == "variant { circle(tuple<point, f64>), nothing }"
    assert definition_text(POINT) == "record point { x: f64, y: f64 }"
    assert function_text(Function((("s", SHAPE),), F64)) == "func(s: shape) -> f64"
    assert function_text(Function(())) == "func()"


def test_named_types_come_after_those_that_they_need() -> None:
    """Each named type is found once, in an order in which definitions may be written."""
    assert named_types(List(SHAPE), POINT, Option(SHAPE)) == [POINT, SHAPE]


def test_types_are_compared_by_structure_name_and_home() -> None:
    """Equal types are equal and have one hash, however deep; another home is another type."""
    again = Record((("x", F64), ("y", F64)), "point", HOME)
    assert again == POINT
    assert hash(List(again)) == hash(List(POINT))
    assert Record(POINT.fields, "point", "demo:shapes/others@0.1.0") != POINT


def _nested(depth: int) -> Type:
    one: Type = U8
    for _ in range(depth - 1):
        one = Option(one)
    return one


def _doubled(times: int) -> Type:
    one: Type = U8
    for _ in range(times):
        one = Tuple((one, one))
    return one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Record(()), "a record must have at least one field"),
        (lambda: Tuple(()), "a tuple must have at least one item"),
        (lambda: Variant((), "v"), "variant v must have at least one case"),
        (lambda: Enum(()), "an enum must have at least one case"),
        (lambda: Flags(()), "flags must have at least one label"),
        (lambda: Flags(tuple(f"f{n}" for n in range(33))), "flags may have 32 labels at most"),
        (lambda: Enum(("a-b", "A-B")), "two cases are named 'a-b' and 'A-B'"),
        (lambda: Record((("a_b", U8),)), "'a_b' can't be the name of a field"),
        (lambda: Record((("a", U8),), "Ab"), "'Ab' can't be the name of a record"),
        (lambda: Function((("a", U8), ("a", U8))), "two parameters are named 'a' and 'a'"),
        (lambda: Function(tuple((f"p{n}", U8) for n in range(1001))), "1000 parameters at most"),
        (lambda: _nested(101), "nested 101 deep, more than 100"),
        (lambda: _doubled(30), "more than 10000"),
    ],
)
def test_a_type_that_wit_has_not_is_refused(make: Callable[[], object], message: str) -> None:
    """Types without parts, with labels that WIT refuses, or of a hostile size can't be made."""
    with pytest.raises(ValueError, match=message):
        make()


def test_the_deepest_type_can_be_hashed_compared_and_written() -> None:
    """A type of the greatest depth takes no more of Python's stack than there is."""
    assert _nested(100) == _nested(100)
    assert hash(_nested(100)) == hash(_nested(100))
    assert type_text(_nested(100)).count("option") == 99


def test_a_name_is_looked_at_in_linear_time() -> None:
    """Words of digits have no case: trying both for each word would take years here."""
    words = "-1" * 2000
    assert is_label(f"a{words}")
    assert not is_label(f"a{words}!")
    assert not is_label(f"a{words}-aA")
