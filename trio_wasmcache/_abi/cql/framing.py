"""CQL's framing of values within others: a count, and before each value its size; -1 is null.

The bytes come from a guest: a count or a size that exceeds the value is an error, where a driver,
which reads from a trusted server, would cut it off.
"""

from __future__ import annotations

import collections
import itertools
import struct
import sys
from collections.abc import Iterable, Sequence, Sized
from typing import Protocol, final

from ..._core.tally import SLOT, Tally
from ..base import Value
from ..gil import breathe

# Number of items between two calls of `breathe`.
PACE = 64
# More values with one hash are no accident: Python would compare each with all before it.
MAX_SAME_HASH = 64
# Size of an empty list and an empty tuple (bytes), and the most that a set, a map or a list of
# hashes takes for each value while it is made.
LIST_SIZE, TUPLE_SIZE, HASHED = sys.getsizeof([]), sys.getsizeof(()), 110
_COUNT = struct.Struct(">i")
_NULL = _COUNT.pack(-1)

Data = bytes | memoryview


class MalformedError(ValueError):
    """The bytes are not a value of their type."""


class Codec(Protocol):
    """The conversion of one CQL type."""

    @property
    def name(self) -> str:
        """The type's name as CQL spells it, without spaces."""

    @property
    def hashable(self) -> bool:
        """Whether its values may be in a set, or keys of a map."""

    def encode(self, value: object) -> Data:
        """Return CQL's bytes of a value that is not None.

        Raises:
            TypeError, ValueError, OverflowError: the type can't represent it.
        """

    @property
    def single(self) -> bool:
        """Whether its values contain no others; the caller of `decode` counts their size then."""

    @property
    def each(self) -> int:
        """Bytes that such a value takes in Python at most; 0 where that varies."""

    def decode(self, data: bytes, at: int, end: int, tally: Tally, hashable: bool = False) -> Value:
        """Return the value of CQL's bytes from `at` to `end`; only single values copy them.

        A collection is counted in the tally before it is made, with all values in it.

        Raises:
            MalformedError: the bytes are not a value of this type.
            ResultTooLargeError, FuelExhaustedError: the value is too large.
        """


@final
class Joined:
    """Joins the parts of a collection piece by piece, which lets others run in between.

    To join a quarter of a million parts at once, and to free them, takes 10 to 20 ms with the GIL.
    """

    __slots__ = ("_pieces", "parts")

    def __init__(self, first: Data) -> None:
        self.parts = [first]
        """The last parts, which are not joined yet."""
        self._pieces: list[bytes] = []

    def pace(self) -> None:
        """Join the last parts; called after every `PACE` items."""
        breathe()
        self._pieces.append(b"".join(self.parts))
        self.parts.clear()

    def result(self) -> bytes:
        """Return all parts as one."""
        last = b"".join(self.parts)
        return b"".join((*self._pieces, last)) if self._pieces else last


def counted(items: Sized, codec: Codec) -> bytes:
    """Return the number of items, and each of them, framed."""
    joined = Joined(write_count(count := len(items)))
    left = count
    for item in items:  # type: ignore[attr-defined]
        if not left:
            raise ValueError(f"a collection had {count} items, and then more")
        if not left % PACE:
            joined.pace()
        left -= 1
        put(joined.parts, codec, item)
    if left:  # in a thread, the collection may change meanwhile
        raise ValueError(f"a collection had {count} items, and then {count - left}")
    return joined.result()


def listed(name: str, items: Iterable[object], count: int) -> list[object]:
    """Return `count` items as a list; raise `ValueError` if there are more, or no end."""
    found = list(itertools.islice(items, count + 1))
    if len(found) > count:
        raise ValueError(f"{name} had {count} items, and then more")
    return found


def put(parts: list[Data], codec: Codec, value: object) -> None:
    """Add a value, framed."""
    if value is None:
        parts.append(_NULL)
        return
    data = codec.encode(value)
    parts.append(write_count(len(data)))
    parts.append(data)


def check_hashes(name: str, items: list[object]) -> None:
    """Raise `MalformedError` if too many items have one hash.

    Numbers and UUIDs with the same hash are easily made; a million of them would take hours.
    """
    if len(items) > MAX_SAME_HASH:
        ((_, most),) = collections.Counter(map(hash, items)).most_common(1)
        if most > MAX_SAME_HASH:
            raise MalformedError(f"{name} in which {most} values have the same hash")


def read_count(name: str, data: bytes, at: int, end: int, smallest: int) -> tuple[int, int]:
    """Read the number of items, of at least `smallest` bytes each, and the offset of the first."""
    if end - at < 4:
        raise MalformedError(f"{name} without a count")
    (count,) = _COUNT.unpack_from(data, at)
    if not 0 <= count * smallest <= end - at - 4:
        raise MalformedError(f"{name} of {count} items in {end - at} bytes")
    return count, at + 4


def take(
    name: str, data: bytes, at: int, end: int, codec: Codec, tally: Tally, hashable: bool
) -> tuple[Value, int]:
    """Return the value at `at`, and the offset of the next one.

    The value is counted in the tally, unless it is a single one.
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
    """Raise `MalformedError` unless `at` is the end."""
    if at != end:
        raise MalformedError(f"{name} with {end - at} bytes after its end")


def read_items(
    name: str, data: bytes, at: int, end: int, codec: Codec, tally: Tally, hashable: bool
) -> list[object]:
    """Return the values of a list or a set, all of one type."""
    count, at = read_count(name, data, at, end, 4)
    tally.add_made(LIST_SIZE + (SLOT + codec.each) * count, count if codec.each else 1)
    varies = codec.single and not codec.each
    items: list[object] = [None] * count
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


def count_one(value: object, codec: Codec, tally: Tally) -> None:
    """Count a value that contains no others."""
    if codec.each:
        tally.add_made(codec.each, 1)
    else:
        tally.add_values((value,))


def read_fields(
    name: str, data: bytes, at: int, end: int, codecs: Sequence[Codec], tally: Tally, hashable: bool
) -> tuple[object, ...]:
    """Return the values of a tuple; missing ones at its end are null."""
    tally.add_made(TUPLE_SIZE + SLOT * len(codecs), 1)
    items: list[object] = []
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
    """Return the bytes of a count or a size; raise `OverflowError` if it exceeds 31 bits."""
    if count >> 31:
        raise OverflowError(f"CQL counts no further than {2**31 - 1}, got {count}")
    return _COUNT.pack(count)
