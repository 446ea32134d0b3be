r"""Values of Python as JSON with a tag for each type, which nothing has to be unpickled to read.

1. A value is an object with one key, its type: ``{"int": "7"}``, ``{"bytes": "aGk="}``,
   ``{"list": [{"str": "a"}]}``. Ints are text, as JSON's numbers are floats to many readers; floats
   are hexadecimal, and so exact.
2. The text is ASCII that can be printed, whatever it was made of.
3. Only types of the list below are made again, those of WIT's values included. Anything else is
   noted by the name of its type, and refused when it is read.
4. Reading makes nothing but these values, and calls nothing of theirs.
"""

from __future__ import annotations

import array
import base64
import binascii
import datetime
import decimal
import ipaddress
import json
import operator
import struct
import uuid
from collections.abc import Callable, Mapping, MutableSequence, MutableSet
from itertools import islice
from typing import Any, Final, TypeAlias, final

from attrs import evolve

from .buffers import items
from .text import printable
from .wit.values import Case, Err, Ok, Some

Json: TypeAlias = Any
"""What `json` reads and writes."""
MAX_DEPTH: Final = 50
"""Collections within collections; a value of the ABIs has at most 32."""
MAX_DIGITS: Final = 4000
"""Digits of an int; Python converts no longer ones."""
LEAST_SIZE: Final = 8
"""Characters of a value, at least."""
MAX_TYPE: Final = 100
"""Characters of the name of a type that is not known."""
UNKNOWN: Final = "unknown"
"""Tag of a value of another type, which is its name."""


class TooLargeError(ValueError):
    """A value would take more characters than there are."""


class UnreadableError(ValueError):
    """A text is none that `encode` writes, or stands for a value that it could not write."""


def dumps(made: Json) -> str:
    """Return JSON in one line of ASCII that can be printed."""
    text = json.dumps(made, separators=(",", ":"), allow_nan=False)
    return text.replace("\x7f", "\\u007f")


def loads(text: str) -> Json:
    """Return what a JSON text says.

    Raises:
        UnreadableError: it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"no JSON: {error}") from None


def encode(value: object, room: int) -> str:
    """Return the text of a value.

    Raises:
        TooLargeError: it has more than `room` characters.
    """
    encoder = _Encoder(room)
    text = dumps(encoder.value(value, 0))
    if len(text) > room:
        raise TooLargeError(f"over {room} characters")
    return text


def decode(text: str) -> object:
    """Return the value of a text.

    Raises:
        UnreadableError: it is no such text, or has a value of another type.
    """
    return decoded(loads(text))


def decoded(made: Json, depth: int = 0) -> Any:
    """Return the value of the object that JSON has for it; as `decode`."""
    if depth > MAX_DEPTH or not isinstance(made, dict) or len(made) != 1:
        raise UnreadableError("no value with the tag of its type")
    ((tag, data),) = made.items()
    if tag == UNKNOWN:
        raise UnreadableError(f"a value of type {printable(str(data), MAX_TYPE)}")
    make = _MAKERS.get(tag)
    if make is None:
        raise UnreadableError(f"a value of type {printable(tag, MAX_TYPE)}")
    try:
        return make(data, depth + 1)
    except UnreadableError:
        raise
    except (
        *(TypeError, ValueError, KeyError, OverflowError, binascii.Error, struct.error),
        decimal.InvalidOperation,
    ) as error:
        raise UnreadableError(f"no {tag}: {type(error).__name__}") from None


@final
class Copier:
    """Copies values in depth, for a function of the application that may change what it gets.

    Collections and buffers are copied, and arrays of numpy. Those of other classes than Python's
    own become plain ones: a mapping a dict, a sequence a list. Other objects stay as they are. It
    copies no more of a value than `encode` would take.

    Args:
        room: number of characters of all texts.
    """

    def __init__(self, room: int) -> None:
        self._left = room

    def copy(self, value: Any, depth: int = 0) -> Any:
        """Return a copy of a value, or the value itself if it can't be changed.

        Raises:
            TooLargeError: there is no room, or collections are nested too deep.
        """
        kind = type(value)
        if isinstance(value, bytearray):
            self._take(bytearray.__len__(value))
            return bytearray.__getitem__(value, slice(None))
        if isinstance(value, array.array):
            self._take(array.array.__len__(value) * value.itemsize)
            return array.array.__getitem__(value, slice(None))
        if _is_numpys(kind):
            self._take(value.nbytes)
            return value.copy()
        if kind is memoryview:
            return value.toreadonly()
        if isinstance(value, set):
            self._take(LEAST_SIZE * set.__len__(value))
            return set(set.__iter__(value))
        if isinstance(value, dict):
            # Not by methods of its own, which may be overridden.
            items = self._items(list(dict.values(value)), depth)
            return dict(zip(dict.__iter__(value), items, strict=True))
        if isinstance(value, list):
            return self._items(list(list.__iter__(value)), depth)
        if isinstance(value, tuple):
            made = self._items(list(tuple.__iter__(value)), depth)
            return tuple.__new__(kind if hasattr(kind, "_fields") else tuple, made)
        if kind in _WRAPPERS:
            return evolve(value, value=self._items([value.value], depth)[0])
        if isinstance(value, (Mapping, MutableSequence, MutableSet)):
            return self._foreign(value, depth)
        return value

    def _foreign(self, value: Any, depth: int) -> Any:
        """Return a copy of a collection of another class, such as a deque, by its own methods."""
        most = max(self._left // LEAST_SIZE, 0) + 1
        try:
            if isinstance(value, Mapping):
                pairs = list(islice(value.items(), most))
                items = self._items([item for _, item in pairs], depth)
                return dict(zip([key for key, _ in pairs], items, strict=True))
            return self._items(list(islice(value, most)), depth)
        except TooLargeError:
            raise
        except Exception:
            raise TooLargeError("a collection that can't be copied") from None

    def _items(self, items: list[Any], depth: int) -> list[Any]:
        self._take(LEAST_SIZE * len(items))
        if depth > MAX_DEPTH:
            raise TooLargeError("too many collections within collections")
        return [self.copy(item, depth + 1) for item in items]

    def _take(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise TooLargeError("too large")


def unchanged(one: Any, other: Any) -> bool:
    """Return whether two copies of one value, as `Copier` makes them, are still alike."""
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is set:
        return set(map(id, one)) == set(map(id, other))
    if kind is dict:
        return unchanged(list(one.items()), list(other.items()))
    if kind is list or isinstance(one, tuple):
        return len(one) == len(other) and all(map(unchanged, one, other))
    if kind in _WRAPPERS:
        names = (one.name, other.name) if kind is Case else (None, None)
        return names[0] == names[1] and unchanged(one.value, other.value)
    if kind is memoryview:
        return True  # they can't be changed
    if kind is bytearray:
        return bool(one == other)
    if kind is array.array or _is_numpys(kind):
        return bool(one.tobytes() == other.tobytes())
    return False


def _is_numpys(kind: type) -> bool:
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray"


def encode_float(number: float) -> str:
    """Return a float as text: hexadecimal, or the bits of what is no number."""
    if number != number:
        return f"nan:{struct.pack('>d', number).hex()}"
    return number.hex()


def decode_float(text: object) -> float:
    """Return the float of a text.

    Raises:
        ValueError, TypeError, struct.error: it is none.
    """
    if not isinstance(text, str):
        raise TypeError("no text")
    if text.startswith("nan:"):
        (number,) = struct.unpack(">d", bytes.fromhex(text[4:]))
        if number == number:
            raise ValueError("a number")
        return float(number)
    return float.fromhex(text)


def encode_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return bytes as text."""
    return base64.b64encode(data).decode()


def decode_bytes(text: object) -> bytes:
    """Return the bytes of a text.

    Raises:
        ValueError, TypeError: it is none.
    """
    if not isinstance(text, str):
        raise TypeError("no text")
    return base64.b64decode(text, validate=True)


@final
class _Encoder:
    """Makes objects for JSON, and looks at no more of a value than fits."""

    def __init__(self, room: int) -> None:
        self._left = room

    def value(self, value: object, depth: int) -> Json:
        """Return the object of a value."""
        self._take(LEAST_SIZE)
        if depth > MAX_DEPTH:
            return {UNKNOWN: "too many collections within collections"}
        kind = type(value)
        if value is None:
            return {"none": None}
        if kind is bool:
            return {"bool": value}
        if isinstance(value, int):
            return self._int(value)
        if isinstance(value, float):
            return {"float": encode_float(float.__pos__(value))}
        if isinstance(value, str):
            text = str.__str__(value)
            self._take(len(text))
            return {"str": text}
        if kind in (bytes, bytearray):
            assert isinstance(value, (bytes, bytearray))
            return {kind.__name__: self._bytes(value)}
        if kind in _COLLECTIONS:
            return self._collection(value, depth)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):  # a named one, of a user type
            return self._collection(tuple(value), depth)
        if kind in _WRAPPERS:
            return self._wrapped(value, depth)
        found = _TEXTS.get(kind)
        if found is not None:
            tag, write = found
            text = write(value)
            self._take(len(text))
            return {tag: text}
        return self._other(value)

    def _int(self, value: int) -> Json:
        number = int.__pos__(value)
        if number.bit_length() > 3 * MAX_DIGITS:
            return {UNKNOWN: f"int of over {MAX_DIGITS} digits"}
        text = str(number)
        self._take(len(text))
        return {"int": text}

    def _bytes(self, data: bytes | bytearray | memoryview) -> str:
        self._take(memoryview(data).nbytes * 4 // 3)
        return encode_bytes(data)

    def _collection(self, value: Any, depth: int) -> Json:
        tag = type(value).__name__
        if isinstance(value, dict):
            pairs = []
            for key, item in dict.items(value):
                pairs.append([self.value(key, depth + 1), self.value(item, depth + 1)])
            return {tag: pairs}
        items = [self.value(item, depth + 1) for item in tuple(value)[: self._left + 1]]
        if isinstance(value, (set, frozenset)):
            items.sort(key=dumps)  # so that equal ones have the same text
        return {tag: items}

    def _wrapped(self, value: Any, depth: int) -> Json:
        """Return the object of a value of WIT's that Python has no type for."""
        inner = self.value(value.value, depth + 1)
        if type(value) is not Case:
            return {_WRAPPERS[type(value)]: inner}
        return {"case": [self.value(value.name, depth + 1), inner]}

    def _other(self, value: object) -> Json:
        """Return the object of a buffer, of a number of another class, or of no known value."""
        kind = type(value)
        name = printable(f"{kind.__module__}.{kind.__qualname__}", MAX_TYPE)
        if kind.__module__ == "cassandra.util":  # the driver's date, time and duration
            return {UNKNOWN: printable(f"{name} {value}", MAX_TYPE)}
        try:
            if kind is array.array or kind is memoryview or kind.__module__ == "numpy":
                with memoryview(value) as view:  # type: ignore[arg-type] # it may have none
                    if view.ndim == 1 and view.contiguous and view.format in _FORMATS:
                        return {"array": [view.format, self._bytes(view)]}
                    if view.ndim == 1 and view.format[:1] in ("<", ">"):
                        self._take(LEAST_SIZE * view.shape[0])  # type: ignore[index]
                        return self.value(list(items(view)), 0)
                    if view.ndim == 0 and view.format in _FORMATS:
                        item = view.tolist()
                        return self.value(bool(item) if view.format == "?" else item, 0)
        except TooLargeError:
            raise
        except Exception:
            return {UNKNOWN: name}
        if hasattr(kind, "__index__"):
            try:
                return self._int(operator.index(value))  # type: ignore[arg-type]
            except Exception:
                return {UNKNOWN: name}
        return {UNKNOWN: name}

    def _take(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise TooLargeError("too large")


_COLLECTIONS: Final = frozenset({list, tuple, dict, set, frozenset})
# {type of WIT's values: tag}
_WRAPPERS: Final[Mapping[type, str]] = {Case: "case", Some: "some", Ok: "ok", Err: "err"}
# Formats of buffers whose items are numbers, in the machine's order; of a bytes-like one, too.
_FORMATS: Final = frozenset("?bBhHiIlLqQfd")
# {type: (tag, text of it)}
_TEXTS: Final[Mapping[type, tuple[str, Callable[[Any], str]]]] = {
    decimal.Decimal: ("decimal", str),
    datetime.date: ("date", datetime.date.isoformat),
    datetime.time: ("time", datetime.time.isoformat),
    datetime.datetime: ("datetime", datetime.datetime.isoformat),
    datetime.timedelta: ("timedelta", lambda it: f"{it.days} {it.seconds} {it.microseconds}"),
    uuid.UUID: ("uuid", str),
    ipaddress.IPv4Address: ("ipv4", str),
    ipaddress.IPv6Address: ("ipv6", str),
}


def _items(data: Json, depth: int) -> list[Any]:
    if not isinstance(data, list):
        raise TypeError("no list")
    return [decoded(item, depth) for item in data]


def _int(data: Json, _depth: int) -> int:
    if not isinstance(data, str) or len(data) > MAX_DIGITS + 1:
        raise TypeError("no text")
    return int(data)


def _bool(data: Json, _depth: int) -> bool:
    if not isinstance(data, bool):
        raise TypeError("no bool")
    return data


def _str(data: Json, _depth: int = 0) -> str:
    if not isinstance(data, str):
        raise TypeError("no text")
    return data


def _dict(data: Json, depth: int) -> dict[Any, Any]:
    if not isinstance(data, list):
        raise TypeError("no list")
    return {decoded(key, depth): decoded(item, depth) for key, item in data}


def _case(data: Json, depth: int) -> Case:
    name, value = data
    return Case(_str(decoded(name, depth)), decoded(value, depth))


def _array(data: Json, _depth: int) -> array.array[Any] | list[bool]:
    form, raw = data
    if form not in _FORMATS:
        raise ValueError("no format")
    if form == "?":
        return [bool(byte) for byte in decode_bytes(raw)]
    made: array.array[Any] = array.array(form)
    made.frombytes(decode_bytes(raw))
    return made


def _timedelta(data: Json, _depth: int) -> datetime.timedelta:
    days, seconds, microseconds = map(int, _str(data).split(" "))
    return datetime.timedelta(days, seconds, microseconds)


# {tag: function that makes the value}
_MAKERS: Final[Mapping[str, Callable[[Json, int], Any]]] = {
    "none": lambda _data, _depth: None,
    "bool": _bool,
    "int": _int,
    "float": lambda data, _depth: decode_float(data),
    "str": _str,
    "bytes": lambda data, _depth: decode_bytes(data),
    "bytearray": lambda data, _depth: bytearray(decode_bytes(data)),
    "list": _items,
    "tuple": lambda data, depth: tuple(_items(data, depth)),
    "set": lambda data, depth: set(_items(data, depth)),
    "frozenset": lambda data, depth: frozenset(_items(data, depth)),
    "dict": _dict,
    "array": _array,
    "case": _case,
    "some": lambda data, depth: Some(decoded(data, depth)),
    "ok": lambda data, depth: Ok(decoded(data, depth)),
    "err": lambda data, depth: Err(decoded(data, depth)),
    "decimal": lambda data, _depth: decimal.Decimal(_str(data)),
    "date": lambda data, _depth: datetime.date.fromisoformat(_str(data)),
    "time": lambda data, _depth: datetime.time.fromisoformat(_str(data)),
    "datetime": lambda data, _depth: datetime.datetime.fromisoformat(_str(data)),
    "timedelta": _timedelta,
    "uuid": lambda data, _depth: uuid.UUID(_str(data)),
    "ipv4": lambda data, _depth: ipaddress.IPv4Address(_str(data)),
    "ipv6": lambda data, _depth: ipaddress.IPv6Address(_str(data)),
}
