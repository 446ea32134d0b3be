"""Each CQL type against bytes written out by hand from the specification of CQL's native protocol.

Section 6 of the specification (version 5) says how each type is encoded; section 3, what an [int]
and a [bytes] are.
"""

from __future__ import annotations

import datetime
import decimal
import ipaddress
import uuid
from typing import Any

import pytest
from abi.support import FakeGuest, drive, scylla_exports
from cassandra.util import Date, Duration, Time

from trio_wasmcache import AbiError, Invoke, ScyllaAbi

UUID4 = uuid.UUID("00112233-4455-4677-8899-aabbccddeeff")
UUID1 = uuid.UUID("e8fde7a0-5dd1-11ee-8c99-0242ac120002")
USER_TYPES = {
    "address": {"street": "text", "zip": "int", "tags": "frozen<set<text>>"},
    "person": {"name": "text", "home": "address"},
}

# (type, value, hexadecimal)
GOLDEN: list[tuple[str, Any, str]] = [
    ("tinyint", 127, "7f"),
    ("tinyint", -128, "80"),
    ("smallint", 258, "0102"),
    ("smallint", -2, "fffe"),
    ("int", 1, "00000001"),
    ("int", -(2**31), "80000000"),
    ("bigint", 2**40 + 5, "00000100 00000005"),
    ("bigint", -1, "ffffffff ffffffff"),
    ("counter", 3, "00000000 00000003"),
    ("float", 1.5, "3fc00000"),
    ("float", float("-inf"), "ff800000"),
    ("double", -2.0, "c0000000 00000000"),
    ("boolean", True, "01"),
    ("boolean", False, "00"),
    ("text", "", ""),
    ("text", "aé€\U0001f600", "61 c3a9 e282ac f09f9880"),
    ("text", "a\0b", "610062"),
    ("varchar", "v", "76"),
    ("ascii", "A~", "417e"),
    ("ascii", "", ""),
    ("blob", b"\x00\xff", "00ff"),
    ("blob", b"", ""),
    # The table of the specification, section 6.23.
    ("varint", 0, "00"),
    ("varint", 1, "01"),
    ("varint", 127, "7f"),
    ("varint", 128, "0080"),
    ("varint", 129, "0081"),
    ("varint", -1, "ff"),
    ("varint", -128, "80"),
    ("varint", -129, "ff7f"),
    ("varint", 2**64, "01 00000000 00000000"),
    # An [int] scale, then the unscaled value as a varint.
    ("decimal", decimal.Decimal("1.25"), "00000002 7d"),
    ("decimal", decimal.Decimal("-0.001"), "00000003 ff"),
    ("decimal", decimal.Decimal("12E3"), "fffffffd 0c"),
    ("uuid", UUID4, "00112233 44554677 8899aabb ccddeeff"),
    ("timeuuid", UUID1, "e8fde7a0 5dd111ee 8c990242 ac120002"),
    ("inet", "192.168.0.1", "c0a80001"),
    ("inet", "2001:db8::1", "20010db8 00000000 00000000 00000001"),
    # Days, with 2**31 for 1970-01-01.
    ("date", Date(0), "80000000"),
    ("date", Date(-1), "7fffffff"),
    ("date", Date(19722), "80004d0a"),
    ("date", Date(-(2**31)), "00000000"),
    # Nanoseconds since midnight.
    ("time", Time(0), "00000000 00000000"),
    ("time", Time(3_600_000_000_001), "00000346 30b8a001"),
    # Milliseconds since 1970-01-01 00:00 UTC.
    ("timestamp", datetime.datetime(1970, 1, 1, 0, 0, 1), "00000000 000003e8"),
    ("timestamp", datetime.datetime(1969, 12, 31, 23, 59, 59, 999000), "ffffffff ffffffff"),
    ("timestamp", 2**62, "40000000 00000000"),
    # Three signed vints, zig-zag encoded: months, days, nanoseconds.
    ("duration", Duration(0, 0, 0), "00 00 00"),
    ("duration", Duration(1, 2, 3), "02 04 06"),
    ("duration", Duration(-1, -2, -3), "01 03 05"),
    ("duration", Duration(1, 64, 1_000_000_000), "02 8080 f0 77359400"),
    # A count, then each item as [bytes].
    ("list<int>", [], "00000000"),
    ("list<int>", [1, 2], "00000002 00000004 00000001 00000004 00000002"),
    ("list<text>", ["", None], "00000002 00000000 ffffffff"),
    ("frozen<list<tinyint>>", [7], "00000001 00000001 07"),
    ("set<text>", {"b", "a"}, "00000002 00000001 61 00000001 62"),
    ("set<frozen<list<tinyint>>>", {(1,)}, "00000001 00000009 00000001 00000001 01"),
    ("map<text,int>", {"k": 9}, "00000001 00000001 6b 00000004 00000009"),
    (
        "map<int,text>",
        {2: None, 1: "x"},
        "00000002 00000004 00000001 00000001 78 00000004 00000002 ffffffff",
    ),
    # Each as [bytes], no count.
    ("tuple<int,text>", (5, "t"), "00000004 00000005 00000001 74"),
    ("tuple<int,text>", (None, ""), "ffffffff 00000000"),
    ("tuple<tuple<int>>", ((None,),), "00000004 ffffffff"),
    ("address", ("s", 8, None), "00000001 73 00000004 00000008 ffffffff"),
    (
        "list<frozen<person>>",
        [("n", (None, None, {"t"}))],
        "00000001 0000001e 00000001 6e 00000015 ffffffff ffffffff 00000009 00000001 00000001 74",
    ),
]


class Echo:
    """A guest of version 1 that says what it got, and gives back what it is told, or the same."""

    def __init__(self, name: str, back: bytes | None = None) -> None:
        self.got: bytes | None = b"nothing"
        self._back = back
        self._guest = FakeGuest(_scylla_abi=8)
        self._guest.write(8, bytes([1, 0, 0, 0]))
        self._binding = ScyllaAbi(user_types=USER_TYPES).bind(
            "echo", "run", (name,), (name,), scylla_exports("i64"), True
        )

    def call(self, value: Any) -> Any:
        return drive(self._binding, self._guest, (value,), self._answer)

    def _answer(self, invoke: Invoke) -> int:
        assert invoke.export == "run"
        (packed,) = invoke.values
        size, at = packed >> 32, packed & 0xFFFFFFFF
        self.got = None if size == -1 else self._guest.read(at, size)
        if self._back is None:
            return int(packed)
        self._guest.write(100, self._back)
        return len(self._back) << 32 | 100


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        (datetime.datetime(1970, 1, 1, 0, 0, 0, 1999), 1),
        (datetime.datetime(1969, 12, 31, 23, 59, 59, 999999), -1),
        (datetime.datetime(1969, 12, 31, 23, 59, 59, 998001), -2),
    ],
)
def test_a_timestamp_is_cut_to_the_millisecond_before(
    value: datetime.datetime, milliseconds: int
) -> None:
    """CQL has no shorter time; before 1970 as well as after."""
    echo = Echo("timestamp")
    echo.call(value)
    assert echo.got == milliseconds.to_bytes(8, "big", signed=True)


@pytest.mark.parametrize(("name", "value", "raw"), GOLDEN)
def test_a_value_is_the_bytes_of_the_specification(name: str, value: Any, raw: str) -> None:
    """What the guest gets is what the specification says, and the same bytes give the value."""
    echo = Echo(name)
    result = echo.call(value)
    assert echo.got is not None
    assert echo.got.hex() == raw.replace(" ", "")
    assert result == value
    assert type(result) is type(value) or name.endswith(("address", "person>>"))


@pytest.mark.parametrize("name", sorted({name for name, _, _ in GOLDEN}))
def test_null_is_size_minus_one(name: str) -> None:
    """None of any type is no bytes at all, both ways."""
    echo = Echo(name)
    assert echo.call(None) is None
    assert echo.got is None


@pytest.mark.parametrize(
    ("name", "value", "raw"),
    [
        ("double", 3, "40080000 00000000"),
        ("int", True, "00000001"),
        ("decimal", 7, "00000000 07"),
        ("blob", bytearray(b"ab"), "6162"),
        ("blob", memoryview(b"abcd")[::2], "6163"),
        ("inet", ipaddress.ip_address("::1"), "00000000 00000000 00000000 00000001"),
        ("date", datetime.date(1970, 1, 2), "80000001"),
        ("time", datetime.time(0, 0, 0, 1), "00000000 000003e8"),
        ("timestamp", 1000, "00000000 000003e8"),
        (
            "timestamp",
            datetime.datetime(1970, 1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=1))),
            "00000000 00000000",
        ),
        ("list<int>", (1,), "00000001 00000004 00000001"),
        ("set<int>", [2, 1], "00000002 00000004 00000001 00000004 00000002"),
        ("map<int,int>", ((1, 2),), "00000001 00000004 00000001 00000004 00000002"),
        ("address", {"zip": 8}, "ffffffff 00000004 00000008 ffffffff"),
        ("tuple<int,int>", [1, None], "00000004 00000001 ffffffff"),
    ],
)
def test_other_python_values_go_in(name: str, value: Any, raw: str) -> None:
    """What Python has more than one type for, or a looser one, goes in all the same."""
    echo = Echo(name)
    echo.call(value)
    assert echo.got is not None
    assert echo.got.hex() == raw.replace(" ", "")


def test_an_object_with_the_fields_is_a_user_type() -> None:
    """Any object that has all the fields as attributes does; a named tuple comes back."""

    class Home:
        street, zip, tags = "s", 8, None

    result = Echo("address").call(Home())
    assert result == ("s", 8, None)
    assert (result.street, result.zip, result.tags) == ("s", 8, None)


def test_user_types_and_tuples_may_end_early() -> None:
    """Fields that a guest leaves out at the end are null, as the specification allows."""
    assert Echo("address", bytes.fromhex("0000000173")).call(None) == ("s", None, None)
    assert Echo("tuple<int,int>", bytes.fromhex("0000000400000001")).call(None) == (1, None)


def test_nothing_where_something_should_be_is_none() -> None:
    """CQL's leftover "empty" value of types that have no empty value gives None."""
    for name in ("int", "uuid", "varint", "decimal", "timestamp", "date", "inet", "boolean"):
        assert Echo(name, b"").call(None) is None


def framed(*items: bytes) -> str:
    """A list or a set of these, in hexadecimal."""
    parts = [len(items).to_bytes(4, "big")]
    for item in items:
        parts += [len(item).to_bytes(4, "big"), item]
    return b"".join(parts).hex()


# Python's hash of an int is what remains of a division by this.
SAME_HASH = [(7 + n * (2**61 - 1)).to_bytes(16, "big") for n in range(65)]


def test_values_of_one_hash_are_no_set_if_they_are_many() -> None:
    """What is made to keep Python busy for hours is refused; a few of one hash are fine."""
    few = Echo("set<varint>", bytes.fromhex(framed(*SAME_HASH[:64])))
    assert len(few.call(None)) == 64
    for name in ("set<varint>", "set<uuid>", "frozen<set<tuple<varint>>>"):
        items = SAME_HASH
        if "tuple" in name:
            items = [len(item).to_bytes(4, "big") + item for item in items]
        with pytest.raises(AbiError, match="in which 65 values have the same hash"):
            Echo(name, bytes.fromhex(framed(*items))).call(None)
    pairs = bytes.fromhex(framed(*(half for item in SAME_HASH for half in (item, b""))))
    pairs = (65).to_bytes(4, "big") + pairs[4:]
    with pytest.raises(AbiError, match="in which 65 values have the same hash"):
        Echo("map<varint,blob>", pairs).call(None)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("int", "000001"),
        ("int", "0000000001"),
        ("bigint", "00000001"),
        ("boolean", "0001"),
        ("float", "00"),
        ("text", "ff"),
        ("ascii", "c3a9"),
        ("uuid", "00"),
        ("timeuuid", "00112233 44554677 8899aabb ccddeeff"),
        ("inet", "0102030405"),
        ("time", "ffffffff ffffffff"),
        ("time", "00004e94 914f0000"),
        ("duration", "0204"),
        ("duration", "02040608"),
        ("duration", "02"),
        ("duration", "ff"),
        ("duration", "02 03 06"),
        ("duration", "ff ffffffff ffffffff 00 00"),
        ("duration", "00" * 28),
        ("decimal", "0000"),
        ("decimal", "00000000" + "7f" * 5000),
        ("list<int>", "00"),
        ("list<int>", "ffffffff"),
        ("list<int>", "7fffffff"),
        ("list<int>", "00000001 00000004 0000"),
        ("list<int>", "00000001 fffffffe"),
        ("list<int>", "00000001 00000004 00000001 00"),
        ("list<text>", "00000002 00000009 61 00000001 62"),
        ("list<text>", "00000002 00000002 6161 0000"),
        ("set<int>", "00000001 ffffffff"),
        ("map<int,int>", "00000001 00000004 00000001"),
        ("map<int,int>", "00000001 ffffffff ffffffff"),
        ("tuple<int>", "00000004 00000001 ffffffff"),
        ("tuple<int,int>", "0000"),
    ],
)
def test_bytes_that_are_no_value_break_the_abi(name: str, raw: str) -> None:
    """What can't be a value of the declared type gives AbiError, and never another value."""
    echo = Echo(name, bytes.fromhex(raw))
    with pytest.raises(AbiError, match="echo returned no "):
        echo.call(None)
