"""CQL's single values, through the types of the driver package `scylla-driver`.

The driver packs and unpacks; what is here checks what goes in and what comes out more strictly
than a driver has to, since a server would check again, and a guest is no server to be trusted.
Only this file imports the driver, and only when a type needs it.
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
from typing import Any

from attrs import frozen

from .cql import Data, MalformedError
from .plain import PlainType, shown, to_number

# The version of the CQL protocol whose encoding UDFs see; for single values all are the same.
PROTOCOL = 4
DAY = 24 * 60 * 60 * 10**9
# Python turns no int into decimal digits that has more (4300), and 1 bit is 0.3 of a digit.
MAX_DECIMAL_SIZE = 4 + 1700


@frozen
class Scalar:
    """A `Codec` for one type of single values."""

    name: str
    driver: Any
    """The driver's class for it."""
    check: Callable[[Any], Any]
    """A value to what is serialized; TypeError, ValueError or OverflowError if it does not fit."""
    sizes: tuple[int, ...] = ()
    """How many bytes a value has; (): any number."""
    finish: Callable[[Any], Any] | None = None
    """What was deserialized to a value; ValueError if it is none."""
    empty: bool = False
    """No bytes are a value, too; otherwise they are CQL's leftover "empty", which gives None."""
    hashable: bool = True

    def encode(self, value: Any) -> Data:
        checked = self.check(value)
        if isinstance(checked, memoryview):  # a blob is its bytes: nothing to copy
            return checked
        try:
            data: bytes = self.driver.serialize(checked, PROTOCOL)
        except (ValueError, OverflowError, struct.error) as error:
            raise ValueError(f"{self.name} can't hold {shown(value)}: {error}") from None
        return data

    def decode(self, data: bytes, hashable: bool = False) -> Any:
        if not data and not self.empty:
            return None
        if self.sizes and len(data) not in self.sizes:
            raise MalformedError(f"{self.name} of {len(data)} bytes")
        try:
            value = self.driver.deserialize(data, PROTOCOL)
            return value if self.finish is None else self.finish(value)
        except (ValueError, OverflowError, IndexError, ArithmeticError, struct.error) as error:
            raise MalformedError(f"{self.name} that can't be: {error}") from None


class _Driver:
    """The driver's modules, or a clear word about how to get them."""

    def __init__(self) -> None:
        try:
            self.types = importlib.import_module("cassandra.cqltypes")
            self.util = importlib.import_module("cassandra.util")
        except ImportError as error:
            raise ImportError(
                "CQL values that cross through memory need a driver package: "
                "pip install 'trio-wasmcache[scylla]'"
            ) from error


class _Varint:
    """As the driver's, which takes over a second for what fits into a guest's memory."""

    @staticmethod
    def serialize(value: int, protocol: int) -> bytes:
        size = (value + (value < 0)).bit_length() // 8 + 1
        return value.to_bytes(size, "big", signed=True)

    @staticmethod
    def deserialize(data: bytes, protocol: int) -> int:
        return int.from_bytes(data, "big", signed=True)


class _Timestamp:
    """As the driver's, but what `datetime` can't hold is the number of milliseconds, both ways."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def serialize(self, value: Any, protocol: int) -> Any:
        if isinstance(value, int):
            return value.to_bytes(8, "big", signed=True)
        return self._driver.serialize(value, protocol)

    def deserialize(self, data: bytes, protocol: int) -> Any:
        try:
            return self._driver.deserialize(data, protocol)
        except (ValueError, OverflowError):
            return int.from_bytes(data, "big", signed=True)


@functools.cache
def scalars() -> Mapping[str, Scalar]:
    """{CQL type name: codec}.

    Raises:
        ImportError: the driver package is not installed.
    """
    driver = _Driver()
    types, util = driver.types, driver.util
    date, time = functools.partial(_date, util), functools.partial(_time, util)
    duration, to_duration = functools.partial(_duration, util), functools.partial(_duration, util)
    known = [
        *_numbers(types),
        Scalar("boolean", types.BooleanType, _number(PlainType("boolean", "i32", 0, 1, truth=True)), (1,)),
        Scalar("varint", _Varint, _varint),
        Scalar("decimal", types.DecimalType, _decimal),
        Scalar("text", types.UTF8Type, functools.partial(_text, "text"), empty=True),
        Scalar("varchar", types.UTF8Type, functools.partial(_text, "varchar"), empty=True),
        Scalar("ascii", types.AsciiType, _ascii, empty=True),
        Scalar("blob", types.BytesType, _blob, empty=True),
        Scalar("uuid", types.UUIDType, functools.partial(_uuid, "uuid"), (16,)),
        Scalar("timeuuid", types.TimeUUIDType, _timeuuid, (16,), _timeuuid),
        Scalar("inet", types.InetAddressType, _inet, (4, 16)),
        Scalar("date", types.SimpleDateType, date, (4,)),
        Scalar("time", types.TimeType, time, (8,), time),
        Scalar("timestamp", _Timestamp(types.DateType), _timestamp, (8,)),
        Scalar("duration", types.DurationType, duration, finish=to_duration, hashable=False),
    ]
    return {scalar.name: scalar for scalar in known}
