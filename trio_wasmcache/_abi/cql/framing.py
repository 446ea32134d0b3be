"""How CQL frames values within others: how many there are, and before each its size; -1 is null.

What is read comes from a guest: a count or a size that leads out of the value is an error, where a
driver, which reads from a trusted server, would cut it there.
"""

from __future__ import annotations

import collections
import itertools
import struct
import sys
from collections.abc import Iterable, Sequence, Sized
from typing import Any, Protocol

from ..._core.tally import SLOT, Tally
from ..gil import breathe

# Items between two breaths.
PACE = 64
# So many values of one hash are no accident: Python would compare each with all before.
MAX_SAME_HASH = 64
# Bytes of an empty list and an empty tuple; and those that a set, a map or the hashes of their
# values take for each of them while they are made, at most.
LIST_SIZE, TUPLE_SIZE, HASHED = sys.getsizeof([]), sys.getsizeof(()), 110
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

    @property
    def single(self) -> bool:
        """Whether its values hold no others; whoever has them decoded counts what they take."""

    @property
    def each(self) -> int:
        """Bytes that each of such values takes in Python at most; 0 where that varies."""

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Any:
        """The value of CQL's bytes from `at` to `end`, which are not copied but for single values.

        The tally has what a collection takes before it is made, with all that is in it.

        Raises:
            MalformedError: they are none of this type.
            ResultTooLargeError, FuelExhaustedError: it is too large.
        """


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


def read_count(name: str, data: bytes, at: int, end: int, smallest: int) -> tuple[int, int]:
    """How many items of at least `smallest` bytes there are, and where they begin."""
    if end - at < 4:
        raise MalformedError(f"{name} without a count")
    (count,) = _COUNT.unpack_from(data, at)
    if not 0 <= count * smallest <= end - at - 4:
        raise MalformedError(f"{name} of {count} items in {end - at} bytes")
    return count, at + 4


def take(
    name: str, data: bytes, at: int, end: int, codec: Codec, tally: Tally, hashable: bool
) -> tuple[Any, int]:
    """The value of the bytes at `at`, and where the next begin.

    The tally has it, but for what single values take.
    """
    begin = at + 4
    if begin > end:
        raise MalformedError(f"{name} ends within a length")
    (size,) = _COUNT.unpack_from(data, at)
    if size == -1:
        return None, begin
    stop = begin + size
    if size < 0 or stop > end:
        raise MalformedError(f"{name} with an item of {size} bytes where {end - begin} are")
    return codec.decode(data, begin, stop, tally, hashable), stop


def check_end(name: str, at: int, end: int) -> None:
    """Whether that is all."""
    if at != end:
        raise MalformedError(f"{name} with {end - at} bytes after its end")


def read_items(
    name: str, data: bytes, at: int, end: int, codec: Codec, tally: Tally, hashable: bool
) -> list[Any]:
    """The values of one type that are counted in `data`."""
    count, at = read_count(name, data, at, end, 4)
    tally.add_made(LIST_SIZE + (SLOT + codec.each) * count, count if codec.each else 1)
    varies = codec.single and not codec.each
    items: list[Any] = [None] * count
    for number in range(count):
        if not number % PACE:
            breathe()
            if varies and number:
                tally.add_values(items[number - PACE : number])
        items[number], at = take(name, data, at, end, codec, tally, hashable)
    if varies and count:
        tally.add_values(items[(count - 1) // PACE * PACE :])
    check_end(name, at, end)
    return items


def count_one(value: Any, codec: Codec, tally: Tally) -> None:
    """Count a value that holds no others."""
    if codec.each:
        tally.add_made(codec.each, 1)
    else:
        tally.add_values((value,))


def read_fields(
    name: str, data: bytes, at: int, end: int, codecs: Sequence[Codec], tally: Tally, hashable: bool
) -> tuple[Any, ...]:
    """Values that may end early: the rest are null."""
    tally.add_made(TUPLE_SIZE + SLOT * len(codecs), 1)
    items: list[Any] = []
    for codec in codecs:
        if at == end:
            break
        item, at = take(name, data, at, end, codec, tally, hashable)
        items.append(item)
        if codec.single:
            count_one(item, codec, tally)
    check_end(name, at, end)
    return (*items, *[None] * (len(codecs) - len(items)))


def write_count(count: int) -> bytes:
    """A count, or a size; `OverflowError` if CQL has no place for one as large."""
    if count >> 31:
        raise OverflowError(f"CQL counts no further than {2**31 - 1}, got {count}")
    return _COUNT.pack(count)
