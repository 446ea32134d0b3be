"""Values as JSON with tags, and the answers of hosts: what is written can be read, and no more."""

from __future__ import annotations

import array
import ctypes
import datetime
import decimal
import ipaddress
import json
import math
import struct
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache import Case, Err, Ok, Some
from trio_wasmcache._core.answers import (
    Answer,
    Answers,
    Grew,
    Invoked,
    Raised,
    Returned,
    Spent,
    Wrote,
    from_json,
    to_json,
)
from trio_wasmcache._core.tagged import (
    Copier,
    TooLargeError,
    UnreadableError,
    decode,
    decode_float,
    dumps,
    encode,
    encode_float,
    loads,
    unchanged,
)

ROOM = 64 * 1024
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.binary()),
    # Any characters, halves of surrogate pairs included.
    st.text(st.characters()),
    *(st.dates(), st.times(), st.datetimes(), st.timedeltas(), st.uuids()),
    *(st.decimals(allow_nan=False), st.ip_addresses(), st.binary().map(bytearray)),
)
HASHABLE = SCALARS.filter(lambda value: not isinstance(value, bytearray))
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
        st.builds(Case, st.text(), inner),
        *(st.builds(kind, inner) for kind in (Some, Ok, Err)),
    ),
    max_leaves=10,
)


@given(VALUES)
def test_values_come_back_with_their_types(value: Any) -> None:
    """And their text is one line that a terminal can show."""
    text = encode(value, ROOM)
    assert text.isprintable()
    assert text.isascii()
    made = decode(text)
    assert made == value
    assert type(made) is type(value)
    assert encode(made, ROOM) == text or isinstance(value, (set, frozenset, dict, list, tuple))


@given(st.integers(0, 2**64 - 1))
def test_floats_keep_their_bits(bits: int) -> None:
    """Those that are no number, too."""
    (number,) = struct.unpack(">d", struct.pack(">Q", bits))
    assert struct.pack(">d", decode_float(encode_float(number))) == struct.pack(">d", number)


@pytest.mark.parametrize(
    "value",
    [
        array.array("d", [1.5, math.inf]),
        array.array("i", []),
        memoryview(array.array("q", [1, -(2**63)])),
    ],
    ids=["floats", "none", "view"],
)
def test_buffers_of_numbers_come_back_as_arrays_or_lists(value: Any) -> None:
    """With the items that they had."""
    assert list(decode(encode((value,), ROOM))[0]) == list(value)  # type: ignore[index]


def test_buffers_of_another_byte_order_come_back_as_lists() -> None:
    """NumPy's, and others; those whose items are no numbers are unknown."""
    view = memoryview((ctypes.c_uint32.__ctype_be__ * 2)(1, 2**31))
    assert decode(encode(view, ROOM)) == [1, 2**31]
    numpy = pytest.importorskip("numpy")
    assert decode(encode(numpy.array([1.5], ">f4"), ROOM)) == [1.5]
    with pytest.raises(TooLargeError):
        encode(numpy.zeros(ROOM, ">u8"), ROOM)
    with pytest.raises(UnreadableError):
        decode(encode(numpy.zeros(1, "i4,i4"), ROOM))


class Pair(NamedTuple):
    """As of a user type."""

    one: object
    other: object


def test_a_copy_can_be_changed_without_the_value() -> None:
    """At any depth; and the change is noticed. What can't be changed is the same object."""
    numpy = pytest.importorskip("numpy")
    changes: list[tuple[Any, Callable[[Any], object]]] = [
        ([1, 2], list.clear),
        ({1: 2}, dict.clear),
        ({1, 2}, set.clear),
        ({"a": [1]}, lambda it: it["a"].append(2)),
        (Pair([1], (2, [3])), lambda it: it.other[1].append(it)),
        (bytearray(b"abc"), lambda it: it.__setitem__(0, 42)),
        (array.array("d", [math.nan]), lambda it: it.__setitem__(0, 0.0)),
        (numpy.arange(3), lambda it: it.fill(0)),
        (Case("a", [1]), lambda it: it.value.append(2)),
        (Some([Ok([1])]), lambda it: it.value[0].value.append(2)),
    ]
    for value, change in changes:
        kept, text = Copier(ROOM).copy(value), encode(value, ROOM)
        copy = Copier(ROOM).copy(kept)
        assert unchanged(copy, kept)
        assert type(copy) is type(value)
        assert encode(copy, ROOM) == text
        change(copy)
        assert not unchanged(copy, kept)
        assert encode(value, ROOM) == text
    with pytest.raises(TypeError):
        Copier(ROOM).copy(memoryview(bytearray(1)))[0] = 1
    odd = Odd()
    assert Copier(0).copy(odd) is odd
    endless: list[Any] = []
    endless.append(endless)
    for large in (endless, [0] * ROOM, {i: i for i in range(ROOM)}, bytearray(ROOM + 1)):
        with pytest.raises(TooLargeError):
            Copier(ROOM).copy(large)


class Odd:
    """A class of the application's."""


class Number(int):
    """An int that is more than that."""


def test_what_is_not_known_is_named_and_refused() -> None:
    """Nothing of it is called, and nothing is unpickled."""
    text = encode((1, Odd()), ROOM)
    assert "test_tagged.Odd" in text
    with pytest.raises(UnreadableError, match=r"a value of type .*test_tagged\.Odd"):
        decode(text)
    assert decode(encode(Number(5), ROOM)) == 5
    assert type(decode(encode(Number(5), ROOM))) is int
    numpy = pytest.importorskip("numpy")
    assert decode(encode(numpy.int64(7), ROOM)) == 7
    assert decode(encode(numpy.float64(0.5), ROOM)) == 0.5
    assert decode(encode(numpy.bool_(True), ROOM)) is True
    assert list(decode(encode(numpy.arange(3), ROOM))) == [0, 1, 2]  # type: ignore[call-overload]
    with pytest.raises(UnreadableError, match="numpy"):
        decode(encode(numpy.zeros((2, 2)), ROOM))


def test_equal_sets_have_equal_texts() -> None:
    """In whatever order they are."""
    words = [f"word {number}" for number in range(50)]
    assert encode(set(words), ROOM) == encode({*words[25:], *words[:25]}, ROOM)
    text = encode(set(words), ROOM)
    assert text.index("word 10") < text.index("word 11") < text.index("word 9")


def test_large_values_are_refused_before_they_are_written() -> None:
    """However they are large: long, many, or deep."""
    for value in ("a" * ROOM, b"a" * ROOM, [0] * ROOM, 10**70_000, {i: i for i in range(ROOM)}):
        if isinstance(value, int):
            with pytest.raises(UnreadableError, match="digits"):
                decode(encode(value, ROOM))
            continue
        with pytest.raises(TooLargeError):
            encode(value, ROOM)
    with pytest.raises(TooLargeError):
        encode("\x00" * (ROOM // 5), ROOM)  # six characters each
    deep: Any = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(UnreadableError):
        decode(encode(deep, ROOM))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(UnreadableError):
        decode(encode(endless, ROOM))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["int", "str", "list", "dict", "array", "bytes", "float", "ipv4"])
            | st.text(),
            inner,
            max_size=2,
        )
    ),
)


@given(JSON)
def test_reading_refuses_by_one_error(made: Any) -> None:
    """Whatever a stranger has written into a log."""
    text = json.dumps(made)
    for read in (decode, lambda text: from_json(loads(text))):
        try:
            read(text)
        except UnreadableError as error:
            assert str(error).isprintable()  # noqa: PT017 -- it may also be a good value


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[" * 100_000, "{}", '{"int":7}', '{"int":"x"}', '{"set":[{"list":[]}]}'),
        *('{"float":"nan:00"}', '{"float":"nan:3ff0000000000000"}', '{"bytes":"?"}'),
        *('{"array":["c","AA=="]}', '{"array":["d","AA=="]}', '{"date":"x"}', '{"uuid":"x"}'),
        *('{"timedelta":"1 2"}', '{"decimal":"x"}', '{"dict":[1]}', '{"pickle":"gASVAA=="}'),
        f'{{"int":"{"9" * 5000}"}}',
    ],
)
def test_damaged_texts_are_refused(text: str) -> None:
    """With a message that is one short line."""
    with pytest.raises(UnreadableError) as caught:
        decode(text)
    assert len(str(caught.value)) < 300


def test_some_values_that_matter() -> None:
    """The text itself, which is an interface."""
    value = (
        *(7, 0.5, "a\x7f\x1b", b"hi", None, True, decimal.Decimal("1.50")),
        datetime.timedelta(1, 2, 3),
        uuid.UUID(int=1),
        ipaddress.ip_address("::1"),
    )
    assert encode(value, ROOM) == (
        '{"tuple":[{"int":"7"},{"float":"0x1.0000000000000p-1"},{"str":"a\\u007f\\u001b"},'
        '{"bytes":"aGk="},{"none":null},{"bool":true},{"decimal":"1.50"},'
        '{"timedelta":"1 2 3"},{"uuid":"00000000-0000-0000-0000-000000000001"},{"ipv6":"::1"}]}'
    )


ANSWER = [
    Answer(
        3,
        [Spent(5), Wrote(8, b"\0\xff"), Grew(1), Invoked("malloc", (5, 0.5))],
        Returned((7, -1, math.inf)),
    ),
    Answer(0, [], Raised("ExitError", 3)),
    Answer(1, [Invoked("f", ())]),
]


def test_answers_come_back() -> None:
    """With all that the host has done, in order."""
    made = from_json(loads(dumps(to_json(ANSWER))))
    for one, other in zip(made, ANSWER, strict=True):
        parts = [(it.host, it.operations, it.outcome) for it in (one, other)]
        assert parts[0] == parts[1]


def test_fuel_of_an_answer_is_added_up() -> None:
    """What an invoke costs by itself is no part of it."""
    answer = Answer(0)
    for fuel in (5, 0, 7, 4000):
        answer.take_fuel(fuel)
    answer.give_back(4000)
    assert answer.operations == [Spent(12)]
    answer.operations.append(Grew(1))
    answer.take_fuel(4000)
    answer.give_back(4000)
    assert answer.operations == [Spent(12), Grew(1)]


def test_answers_that_do_not_fit_are_all_given_up() -> None:
    """A part of them would be of no use."""
    answers = Answers(100)
    answers.begin(0)
    assert not answers.cut
    answers.count(100)
    assert answers.cut
    answers.begin(1).take_fuel(5)
    assert answers.answers == []
