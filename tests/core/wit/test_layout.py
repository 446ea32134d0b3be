"""Layouts of the canonical ABI, against examples worked out by hand from its specification."""

from __future__ import annotations

import pytest

from trio_wasmcache._core.wit.layout import (
    Layout,
    layout,
    lifted_signature,
    lowered_signature,
)
from trio_wasmcache._core.wit.types import (
    BOOL,
    CHAR,
    F32,
    F64,
    S64,
    STRING,
    U8,
    U16,
    U32,
    Enum,
    Flags,
    Function,
    List,
    Option,
    Record,
    Result,
    Tuple,
    Type,
    Unsupported,
    Variant,
)


def _names(number: int) -> tuple[str, ...]:
    return tuple(f"n{one}" for one in range(number))


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (CHAR, Layout(4, 4, ("i32",))),
        (STRING, Layout(8, 4, ("i32", "i32"), has_pointers=True)),
        (List(F64), Layout(8, 4, ("i32", "i32"), has_pointers=True)),
        (
            Record((("a", U8), ("b", F64), ("c", U16))),
            Layout(24, 8, ("i32", "f64", "i32"), (0, 8, 16)),
        ),
        (Tuple((U8, U16, U8)), Layout(6, 2, ("i32", "i32", "i32"), (0, 2, 4))),
        (Option(U8), Layout(2, 1, ("i32", "i32"), tag=1, payload=1)),
        (Option(S64), Layout(16, 8, ("i32", "i64"), tag=1, payload=8)),
        (Result(), Layout(1, 1, ("i32",), tag=1, payload=1)),
        (
            Result(F32, STRING),
            Layout(12, 4, ("i32", "i32", "i32"), tag=1, payload=4, has_pointers=True),
        ),
        (
            Variant((("a", F32), ("b", Tuple((F64, F32))), ("c", Tuple((U32, F32))))),
            Layout(24, 8, ("i32", "i64", "f32"), tag=1, payload=8),
        ),
        (Enum(_names(256)), Layout(1, 1, ("i32",), tag=1, payload=1)),
        (Enum(_names(257)), Layout(2, 2, ("i32",), tag=2, payload=2)),
        (Flags(_names(8)), Layout(1, 1, ("i32",))),
        (Flags(_names(9)), Layout(2, 2, ("i32",))),
        (Flags(_names(17)), Layout(4, 4, ("i32",))),
    ],
    ids=str,
)
def test_layouts_are_those_of_the_specification(one: Type, expected: Layout) -> None:
    """Size, alignment, offsets and flat values follow from the parts of a type."""
    assert layout(one) == expected


def test_many_values_are_spilled() -> None:
    """More than 16 flat parameters, or more than one flat result, go through memory."""
    sixteen = Function(tuple((name, U8) for name in _names(16)), BOOL)
    assert lifted_signature(sixteen).params == ("i32",) * 16
    assert lifted_signature(sixteen).results == ("i32",)
    more = lifted_signature(Function((*sixteen.params, ("last", U8)), STRING))
    assert (more.params, more.results) == (("i32",), ("i32",))
    assert more.arguments is not None
    assert more.arguments.size == 17
    assert more.returned == layout(STRING)


def test_a_spilled_result_of_an_import_is_written_to_its_last_parameter() -> None:
    """An imported function gets the address for a result that is not flat."""
    one = lowered_signature(Function((("a", S64),), STRING))
    assert (one.params, one.results) == (("i64", "i32"), ())
    assert lowered_signature(Function((("a", S64),), F64)).results == ("f64",)
    assert lowered_signature(Function(())).params == ()


def test_a_type_whose_values_are_not_supported_has_no_layout() -> None:
    """The message names it."""
    with pytest.raises(ValueError, match="of the type stream<u8> are not supported"):
        lifted_signature(
            Function((("a", List(Unsupported("x"))), ("b", Unsupported("stream<u8>"))))
        )
