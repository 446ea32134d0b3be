"""CQL's single values, through the types of the driver package `scylla-driver`.

The driver packs and unpacks; this file checks the values and bytes more strictly than a driver has
to, since a server would check again, and a guest is not to be trusted as a server is. Only this
file imports the driver, and only when a type needs it.
"""

from __future__ import annotations

import datetime
import decimal
import functools
import importlib
import ipaddress
import operator
import struct
import uuid
from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import field, frozen

from ..._core.buffers import flat
from ..._core.tally import NUMBER, Tally, bytes_size, int_size, text_size
from ..base import Value
from ..plain import PlainType, shown, to_number
from .framing import Data, MalformedError

# The version of the CQL protocol whose encoding UDFs see; for single values all are the same.
PROTOCOL = 4
THREE_VINTS = tuple(range(3, 28))  # each has one to nine bytes
# Bytes of a value from which on its size in Python is computed before it is made.
LARGE = 4096
# {type: bytes of a value in Python, at most, including its ints}; all others are numbers.
_SIZES = {
    "uuid": 112,
    "timeuuid": 112,
    "inet": 96,
    "date": 128,
    "time": 112,
    "timestamp": 64,
    "duration": 192,
}
DAY = 24 * 60 * 60 * 10**9  # nanoseconds
# Size of a scale and of 4300 digits: Python converts no longer int.
MAX_DECIMAL_SIZE = 4 + 1785


class Driver(Protocol):
    """A type of the Python driver for Cassandra: how a value becomes bytes, and bytes a value."""

    def serialize(self, value: Value, protocol: int, /) -> bytes:
        """Return the bytes of a value in that version of the protocol."""

    def deserialize(self, data: bytes, protocol: int, /) -> Value:
        """Return the value of these bytes in that version of the protocol."""


@frozen
class ScalarCodec:
    """A `Codec` for one type of single values."""

    name: str
    driver: Driver
    """The driver's class for the type."""
    check: Callable[[Value], Value]
    """Checks a value and returns the one to serialize; raises TypeError, ValueError or
    OverflowError."""
    sizes: tuple[int, ...] = ()
    """Allowed sizes of a value (bytes); (): any size."""
    finish: Callable[[Value], Value] | None = None
    """Checks what was deserialized and returns the value; raises ValueError."""
    empty: bool = False
    """Whether no bytes are a value, too; if not, they are CQL's legacy "empty", read as None."""
    hashable: bool = True
    size: Callable[[bytes], int] = bytes_size
    """Returns the size in Python of a value of many bytes."""
    single: bool = field(default=True, init=False)
    each: int = field(init=False)

    @each.default
    def _each(self) -> int:
        return _SIZES.get(self.name, NUMBER if self.sizes else 0)

    def encode(self, value: object) -> Data:
        checked = self.check(value)
        if isinstance(checked, memoryview):  # a blob is passed as it is, without a copy
            return checked
        try:
            data: bytes = self.driver.serialize(checked, PROTOCOL)
        except (ValueError, OverflowError, struct.error) as error:
            raise ValueError(f"{self.name} can't hold {shown(value)}: {error}") from None
        # The driver calls methods of the value's own class, which may return anything.
        return data if type(data) is bytes else memoryview(data).tobytes()

    def decode(
        self,
        data: bytes,
        at: int,
        end: int,
        tally: Tally,
        hashable: bool = False,  # noqa: ARG002 -- only collections have two forms
    ) -> Value:
        if at == end and not self.empty:
            return None
        data = data[at:end]
        if len(data) > LARGE:
            tally.check(self.size(data))
        if self.sizes and len(data) not in self.sizes:
            raise MalformedError(f"{self.name} of {len(data)} bytes")
        try:
            value = self.driver.deserialize(data, PROTOCOL)
            return value if self.finish is None else self.finish(value)
        except (ValueError, OverflowError, IndexError, ArithmeticError, struct.error) as error:
            raise MalformedError(f"{self.name} that can't be: {error}") from None


class _Varint:
    """A replacement of the driver's, which takes over a second for large values from a guest."""

    @staticmethod
    def serialize(value: int, protocol: int) -> bytes:  # noqa: ARG004 -- as the driver calls it
        bits = (~value if value < 0 else value).bit_length()
        return value.to_bytes(bits // 8 + 1, "big", signed=True)

    @staticmethod
    def deserialize(data: bytes, protocol: int) -> int:  # noqa: ARG004
        return int.from_bytes(data, "big", signed=True)


class _Decimal:
    """The driver's class, with a limit on the number of digits."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def serialize(self, value: decimal.Decimal, protocol: int) -> Value:
        return self._driver.serialize(value, protocol)

    def deserialize(self, data: bytes, protocol: int) -> Value:
        if len(data) > MAX_DECIMAL_SIZE:
            raise ValueError(f"its {len(data)} bytes are more digits than Python converts")
        return self._driver.deserialize(data, protocol)


class _Timestamp:
    """The driver's class; times out of the range of `datetime` are ints (ms), both ways."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def serialize(self, value: Value, protocol: int) -> Value:
        if isinstance(value, int):
            return value.to_bytes(8, "big", signed=True)
        return self._driver.serialize(value, protocol)

    def deserialize(self, data: bytes, protocol: int) -> Value:
        try:
            return self._driver.deserialize(data, protocol)
        except (ValueError, OverflowError):
            return int.from_bytes(data, "big", signed=True)


@functools.cache
def scalars() -> Mapping[str, ScalarCodec]:
    """Return {CQL type name: codec}.

    Raises:
        ImportError: the driver package is not installed.
    """
    try:
        types = importlib.import_module("cassandra.cqltypes")
        util = importlib.import_module("cassandra.util")
    except ImportError as error:
        raise ImportError(
            "CQL values that cross through memory take a driver package: pip install '.[scylla]'"
        ) from error
    time = functools.partial(_time, util.Time)
    duration = functools.partial(_duration, util.Duration)
    text = functools.partial(_text, "text", "utf-8")
    ascii_text = functools.partial(_text, "ascii", "ascii")
    known = [
        ScalarCodec("tinyint", types.ByteType, _integer("tinyint", 8), (1,)),
        ScalarCodec("smallint", types.ShortType, _integer("smallint", 16), (2,)),
        ScalarCodec("int", types.Int32Type, _integer("int", 32), (4,)),
        ScalarCodec("bigint", types.LongType, _integer("bigint", 64), (8,)),
        ScalarCodec("counter", types.CounterColumnType, _integer("counter", 64), (8,)),
        ScalarCodec("float", types.FloatType, _number(PlainType("float", "f32")), (4,)),
        ScalarCodec("double", types.DoubleType, _number(PlainType("double", "f64")), (8,)),
        ScalarCodec("boolean", types.BooleanType, _number(BOOLEAN), (1,)),
        ScalarCodec("varint", _Varint, _varint, size=int_size),
        ScalarCodec("decimal", _Decimal(types.DecimalType), _decimal),
        ScalarCodec("text", types.UTF8Type, text, empty=True, size=text_size),
        ScalarCodec("varchar", types.UTF8Type, text, empty=True, size=text_size),
        ScalarCodec("ascii", types.AsciiType, ascii_text, empty=True, size=text_size),
        ScalarCodec("blob", types.BytesType, _blob, empty=True),
        ScalarCodec("uuid", types.UUIDType, _uuid, (16,)),
        ScalarCodec("timeuuid", types.TimeUUIDType, _timeuuid, (16,), _timeuuid),
        ScalarCodec("inet", types.InetAddressType, _inet, (4, 16)),
        ScalarCodec("date", types.SimpleDateType, functools.partial(_date, util.Date), (4,)),
        ScalarCodec("time", types.TimeType, time, (8,), time),
        ScalarCodec("timestamp", _Timestamp(types.DateType), _timestamp, (8,)),
        ScalarCodec(
            "duration", types.DurationType, duration, THREE_VINTS, duration, hashable=False
        ),
    ]
    return {scalar.name: scalar for scalar in known}


BOOLEAN = PlainType("boolean", "i32", 0, 1, truth=True)


def _number(kind: PlainType) -> Callable[[Value], Value]:
    return functools.partial(to_number, kind)


def _integer(name: str, bits: int) -> Callable[[Value], Value]:
    wasm = "i64" if bits == 64 else "i32"
    return _number(PlainType(name, wasm, -(1 << (bits - 1)), (1 << (bits - 1)) - 1))


def _varint(value: Value) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"varint takes an int, got {shown(value)}") from None


def _decimal(value: object) -> decimal.Decimal:
    if not isinstance(value, (decimal.Decimal, int)) or isinstance(value, bool):
        raise TypeError(f"decimal takes a Decimal or an int, got {shown(value)}")
    exact = decimal.Decimal(value)
    if not exact.is_finite():
        raise ValueError(f"decimal takes finite numbers, got {shown(value)}")
    return exact


def _text(name: str, encoding: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} takes a str, got {shown(value)}")
    exact = str.__str__(value)  # a subclass may encode in its own way
    try:
        exact.encode(encoding)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} can't hold {shown(value)}: {error.reason}") from None
    return exact


def _blob(value: Value) -> memoryview:
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(f"blob takes bytes, got {shown(value)}") from None
    return flat(view)


def _uuid(value: object) -> uuid.UUID:
    if not isinstance(value, uuid.UUID):
        raise TypeError(f"a uuid is a uuid.UUID, got {shown(value)}")
    return value


def _timeuuid(value: Value) -> uuid.UUID:
    if _uuid(value).version != 1:
        raise ValueError(f"a timeuuid is a UUID of version 1, got {shown(value)}")
    made: uuid.UUID = value
    return made


def _inet(value: object) -> Value:
    if not isinstance(value, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        raise TypeError(f"inet takes a str or an address of ipaddress, got {shown(value)}")
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"inet takes an IP address, got {shown(value)}") from None
    if getattr(address, "scope_id", None) is not None:
        raise ValueError(f"inet can't hold the scope of {shown(value)}")
    return address


def _date(made: Value, value: Value) -> Value:
    if isinstance(value, datetime.datetime) or not isinstance(value, (datetime.date, made)):
        raise TypeError(f"date takes a datetime.date or the driver's Date, got {shown(value)}")
    day = value if isinstance(value, made) else made(value)
    if not -(1 << 31) <= day.days_from_epoch < 1 << 31:
        raise OverflowError(f"{shown(value)} is out of the range of date")
    return day


def _time(made: Value, value: Value) -> Value:
    if not isinstance(value, (datetime.time, made)):
        raise TypeError(f"time takes a datetime.time or the driver's Time, got {shown(value)}")
    if isinstance(value, datetime.time):
        if value.tzinfo is not None:
            raise ValueError(f"time can't hold the time zone of {shown(value)}")
        return made(value)
    if not 0 <= value.nanosecond_time < DAY:
        raise OverflowError(f"{shown(value)} is out of the range of time")
    return value


def _timestamp(value: object) -> datetime.datetime | int:
    if isinstance(value, datetime.datetime):
        # Whole milliseconds, always rounded down; the driver rounds towards 1970.
        return value.replace(microsecond=value.microsecond // 1000 * 1000)
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"timestamp takes a datetime or an int (ms), got {shown(value)}")
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError(f"{shown(value)} is out of the range of timestamp")
    return value


def _duration(made: Value, value: Value) -> Value:
    if not isinstance(value, made):
        raise TypeError(f"duration takes the driver's Duration, got {shown(value)}")
    parts = value.months, value.days, value.nanoseconds
    if not all(isinstance(part, int) for part in parts):
        raise TypeError(f"the parts of a duration are ints, got {shown(value)}")
    for part, bits in zip(parts, (31, 31, 63), strict=True):
        if not -(1 << bits) <= part < 1 << bits:
            raise OverflowError(f"{shown(value)} is out of the range of duration")
    if min(parts) < 0 < max(parts):
        raise ValueError(f"the parts of a duration have one sign, got {shown(value)}")
    return value
