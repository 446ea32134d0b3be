"""What names a function: its name and types, how they are spelt, and what was meant instead."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.keys import (
    MAX_NAME_LENGTH,
    FunctionKey,
    check_name,
    near_misses,
    normalise_type,
    normalise_types,
)


def key(name: str, *args: str) -> FunctionKey:
    return FunctionKey(name, args)


def test_a_key_is_a_value_that_reads_like_a_signature() -> None:
    """Overloads are separate keys; the order of the types counts."""
    assert str(key("f", "i64", "text")) == "f(i64, text)"
    assert str(key("f")) == "f()"
    assert key("f", "i64") == key("f", "i64") != key("f", "i32")
    assert key("f", "i64", "i32") != key("f", "i32", "i64")
    assert len({key("f", "i64"), key("f", "i64"), key("f")}) == 2


@pytest.mark.parametrize(
    ("spelt", "normal"),
    [
        ("i64", "i64"),
        ("I64", "i64"),
        ("  bigint ", "bigint"),
        ("List< Int >", "list<int>"),
        ("map<text,\tfrozen<list<\nint>>>", "map<text,frozen<list<int>>>"),
    ],
)
def test_a_type_has_one_spelling(spelt: str, normal: str) -> None:
    """Lower case, no white space of any kind."""
    assert normalise_type(spelt) == normal


@given(st.text())
def test_normalising_twice_changes_nothing_more(name: str) -> None:
    """What is normal stays as it is (letters that have no single lower case apart)."""
    once = normalise_type(name)
    assert not any(letter.isspace() for letter in once)
    assert normalise_type(once) == once


def test_types_are_normalised_one_by_one() -> None:
    """Any sequence of strings is taken, and a tuple is given."""
    assert normalise_types(["I64", "List< Int >"]) == ("i64", "list<int>")
    assert normalise_types(()) == ()


def test_a_string_is_not_a_sequence_of_types() -> None:
    """The common mistake `args="i64"` is told with the right form, not read as three types."""
    with pytest.raises(TypeError) as caught:
        normalise_types("i64")
    assert str(caught.value) == """args must be a sequence of types, such as ("i64",), got 'i64'"""
    with pytest.raises(
        TypeError,
        match=r"must be a sequence .*, got None: args are types, the values go to call\(\)$",
    ):
        normalise_types(None)


def test_a_type_that_is_no_string_is_named() -> None:
    """`int` instead of `"int"` is refused with the value got."""
    with pytest.raises(
        TypeError, match=r"must be names of types.*, got <class 'int'>: write \"i64\"$"
    ):
        normalise_types(("i64", int))


@pytest.mark.parametrize("name", ["f", "my udf", "größe", "a.b/c-d", "x" * MAX_NAME_LENGTH])
def test_a_printable_name_is_a_name(name: str) -> None:
    """It comes back as it is."""
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m", "a\0", "\u202e", "\ud800"])
def test_a_name_that_would_spoil_a_log_is_refused(name: str) -> None:
    """Empty, or with control characters: the message shows it escaped."""
    with pytest.raises(ValueError, match="1 to 256 printable characters") as caught:
        check_name(name)
    assert str(caught.value).isprintable()


def test_a_name_that_is_too_long_is_not_repeated_in_full() -> None:
    """The message shows its beginning."""
    with pytest.raises(ValueError, match=r"got 'x{40}\.\.\.'$"):
        check_name("x" * (MAX_NAME_LENGTH + 1))


@pytest.mark.parametrize("name", [None, b"f", 1])
def test_a_name_is_a_string(name: object) -> None:
    """Bytes and numbers are not."""
    with pytest.raises(TypeError, match="a function name must be a str, got"):
        check_name(name)


def test_near_misses_are_overloads_then_similar_names() -> None:
    """At most four, the overloads first; what is quite different is left out."""
    known = [
        *(key("fib", "i32"), key("fibb", "i64"), key("fob", "i64"), key("unrelated", "i64")),
        *(key("fib", "f64"), key("sum", "i64")),
    ]
    assert near_misses(key("fib", "i64"), known) == (
        *("fib(i32)", "fib(f64)", "fibb(i64)", "fob(i64)"),
    )
    assert near_misses(key("nothing", "i64"), known) == ()
    assert near_misses(key("fib"), []) == ()
    many = [key("f", *["i64"] * count) for count in range(1, 9)]
    assert len(near_misses(key("f"), many)) == 4


def test_an_unknown_name_is_compared_with_a_few() -> None:
    """However many there are: those that are about as long, and begin alike."""
    known = [key("x" * length + str(number), "i64") for length in (9, 99) for number in range(5000)]
    known += [key("function", "i64"), key("funktions", "i64")]
    assert near_misses(key("funktion", "i64"), known) == ("function(i64)", "funktions(i64)")
    assert near_misses(key("x" * 100_000, "i64"), known) == ()


def test_what_is_asked_for_is_shown_in_short_and_without_control_characters() -> None:
    """A message may name what a stranger asked for, and end up on a terminal."""
    assert str(key("a\x1b[2J", "i64\n\u2028", "größe")) == "a?[2J(i64??, größe)"
    long = str(key("f" * 5000, "i64"))
    assert (len(long), long[-4:]) == (1000, "f...")
