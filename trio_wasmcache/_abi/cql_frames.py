"""How CQL frames values within others: how many there are, and before each its size; -1 is null.

What is read comes from a guest: a count or a size that leads out of the value is an error, where a
driver, which reads from a trusted server, would cut it there.
"""

from __future__ import annotations

import collections
import itertools
import struct
from collections.abc import Iterable, Sequence, Sized
from typing import Any, Protocol

from .pace import breathe

# Items between two breaths.
PACE = 64
# So many values of one hash are no accident: Python would compare each with all before.
MAX_SAME_HASH = 64
_COUNT = struct.Struct(">i")
_NULL = _COUNT.pack(-1)

Data = bytes | memoryview


class MalformedError(ValueError):
    """Bytes that are no value of their type."""


class Codec(Protocol):
    """One CQL type."""

    @property
    def name(self) -> str:
        """As CQL spells it, without spaces."""

    @property
    def hashable(self) -> bool:
        """Whether it may be in a set, or the key of a map."""

    def encode(self, value: Any) -> Data:
        """CQL's bytes of a value that is not None.

        Raises:
            TypeError, ValueError, OverflowError: it has none in this type.
        """

    def decode(self, data: bytes, hashable: bool = False) -> Any:
        """The value of CQL's bytes; `MalformedError` if they are none of this type."""


def counted(items: Sized, codec: Codec) -> list[Data]:
    """How many items there are, and each of them, framed."""
    parts: list[Data] = [write_count(count := len(items))]
    left = count
    for item in items:  # type: ignore[attr-defined]
        if not left:
            raise ValueError(f"a collection had {count} items, and then more")
        if not left % PACE:
            breathe()
        left -= 1
        put(parts, codec, item)
    if left:  # in a thread, they may change meanwhile
        raise ValueError(f"a collection had {count} items, and then {count - left}")
    return parts


def listed(name: str, items: Iterable[Any], count: int) -> list[Any]:
    """The items, which are said to be so many; `ValueError` if they are more, or have no end."""
    found = list(itertools.islice(items, count + 1))
    if len(found) > count:
        raise ValueError(f"{name} had {count} items, and then more")
    return found


def put(parts: list[Data], codec: Codec, value: Any) -> None:
    """Add a value, framed."""
    if value is None:
        parts.append(_NULL)
        return
    data = codec.encode(value)
    parts.append(write_count(len(data)))
    parts.append(data)


def check_hashes(name: str, items: list[Any]) -> None:
    """Numbers and UUIDs of one hash are easily made; a million of them would take hours."""
    if len(items) > MAX_SAME_HASH:
        ((_, most),) = collections.Counter(map(hash, items)).most_common(1)
        if most > MAX_SAME_HASH:
            raise MalformedError(f"{name} in which {most} values have the same hash")


def read_count(name: str, data: bytes, smallest: int) -> tuple[int, int]:
    """How many items of at least `smallest` bytes there are, and where they begin."""
    if len(data) < 4:
        raise MalformedError(f"{name} without a count")
    (count,) = _COUNT.unpack_from(data)
    if not 0 <= count * smallest <= len(data) - 4:
        raise MalformedError(f"{name} of {count} items in {len(data)} bytes")
    return count, 4


def take(name: str, data: bytes, at: int, codec: Codec, hashable: bool) -> tuple[Any, int]:
    """The value of the bytes at `at`, and where the next begin."""
    begin = at + 4
    if begin > len(data):
        raise MalformedError(f"{name} ends within a length")
    (size,) = _COUNT.unpack_from(data, at)
    if size == -1:
        return None, begin
    end = begin + size
    if size < 0 or end > len(data):
        raise MalformedError(f"{name} with an item of {size} bytes where {len(data) - begin} are")
    return codec.decode(data[begin:end], hashable), end


def check_end(name: str, data: bytes, at: int) -> None:
    """Whether that is all."""
    if at != len(data):
        raise MalformedError(f"{name} with {len(data) - at} bytes after its end")


def read_items(name: str, data: bytes, codec: Codec, hashable: bool) -> list[Any]:
    """The values of one type that are counted in `data`."""
    count, at = read_count(name, data, 4)
    items = []
    for number in range(count):
        if not number % PACE:
            breathe()
        item, at = take(name, data, at, codec, hashable)
        items.append(item)
    check_end(name, data, at)
    return items


def read_fields(name: str, data: bytes, codecs: Sequence[Codec], hashable: bool) -> tuple[Any, ...]:
    """Values that may end early: the rest are null."""
    at = 0
    items: list[Any] = []
    for codec in codecs:
        if at == len(data):
            break
        item, at = take(name, data, at, codec, hashable)
        items.append(item)
    check_end(name, data, at)
    return (*items, *[None] * (len(codecs) - len(items)))


def write_count(count: int) -> bytes:
    """A count, or a size; `OverflowError` if CQL has no place for one as large."""
    if count >> 31:
        raise OverflowError(f"CQL counts no further than {2**31 - 1}, got {count}")
    return _COUNT.pack(count)
