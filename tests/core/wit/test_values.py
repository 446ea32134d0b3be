"""Python values of WIT's types: named tuples for records, and the small classes."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest

from trio_wasmcache import Case, Err, Ok, Some, WasmCacheError, WitError
from trio_wasmcache._core.wit import values as module
from trio_wasmcache._core.wit.types import F64, STRING, U8, Record
from trio_wasmcache._core.wit.values import python_name, record_class

HOME = "demo:shapes/types@0.1.0"
POINT = Record((("pos-x", F64), ("class", STRING)), "labelled-point", HOME)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("a", "a"),
        ("a-b", "a_b"),
        ("HTTP-status", "http_status"),
        ("class", "class_"),
        ("none", "none"),
        ("is", "is_"),
        ("count", "count"),
        ("utf-8", "utf_8"),
    ],
)
def test_labels_become_python_names(label: str, name: str) -> None:
    """Labels are names in snake case; those that Python reserves get an underscore."""
    assert python_name(label) == name
    assert name.isidentifier()


def test_records_are_named_tuples_equal_to_tuples() -> None:
    """A record has attributes, a repr with its name, and the equality and hash of a tuple."""
    point = record_class(POINT)(1.5, "a")
    assert (point.pos_x, point.class_) == (1.5, "a")
    assert point == (1.5, "a")
    assert hash(point) == hash((1.5, "a"))
    assert repr(point) == "LabelledPoint(pos_x=1.5, class_='a')"
    assert point._replace(pos_x=2.0) == (2.0, "a")
    with pytest.raises(AttributeError):
        point.other = 1


def test_records_of_one_type_have_one_class() -> None:
    """The class is made once for each type, and not kept when nothing uses it."""
    assert record_class(POINT) is record_class(Record(POINT.fields, "labelled-point", HOME))
    assert record_class(POINT) is not record_class(Record(POINT.fields, "labelled-point", "a:b/c"))
    gc.collect()
    before = len(module._classes)
    one = record_class(Record((("a", U8),), "short-lived", HOME))
    assert len(module._classes) == before + 1
    del one
    gc.collect()
    assert len(module._classes) == before


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_records_are_pickled_without_their_class(protocol: int) -> None:
    """A pickle has the interface, the name, the fields and the values, and needs nothing else."""
    point = record_class(POINT)(1.5, "a")
    data = pickle.dumps([point, point], protocol)
    again, _ = pickle.loads(data)
    assert again == point
    assert type(again) is type(point)
    assert again.__reduce_ex__(protocol)[1] == (
        HOME,
        "labelled-point",
        ("pos_x", "class_"),
        (1.5, "a"),
    )
    assert copy.deepcopy(point) == point


@pytest.mark.parametrize("value", [Case("a"), Case("b", 1), Some(None), Ok(), Ok(2), Err("x")])
def test_the_small_classes_are_values(value: object) -> None:
    """They are equal by content, hashable, frozen, picklable, and match by position."""
    assert pickle.loads(pickle.dumps(value)) == value
    assert len({value, copy.copy(value)}) == 1
    with pytest.raises(AttributeError):
        value.value = 3  # type: ignore[attr-defined]
    assert type(value).__module__ == "trio_wasmcache"


def test_a_variant_is_matched_by_position() -> None:
    """`match` takes a case apart."""
    match Case("circle", 2.0):
        case Case("circle", radius):
            assert radius == 2.0


def test_a_wit_error_carries_the_value() -> None:
    """It is an error of this library, made of any value, with the function in its message."""
    error = WitError(Case("too-large", 3), function="area")
    assert isinstance(error, WasmCacheError)
    assert str(error) == "area returned an error: Case(name='too-large', value=3)"
    again = pickle.loads(pickle.dumps(error))
    assert (again.value, again.function, str(again)) == (error.value, "area", str(error))
    assert str(WitError()) == "an error without a value"
    assert WitError("just text").value == "just text"
