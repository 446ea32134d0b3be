"""Contents of AssemblyScript's objects: text in UTF-16, bytes, and numbers one after the other.

Text may hold half of a surrogate pair, in Python as in JavaScript. Such a half crosses as it is;
two halves that make a pair arrive as the one character that they stand for.
"""

from __future__ import annotations

import array
import itertools
import re
import struct
import sys
from collections.abc import Callable, Sequence, Sized
from typing import Final, final

from attrs import field, frozen

from .._core.buffers import flat, items
from .._core.costs import NUMBER_FUEL
from .._core.errors import AbiError
from .._core.tally import ASCII_SIZE, BYTES_SIZE, NUMBER, SLOT, WIDE_SIZE, Tally
from .base import Value
from .gil import breathe
from .packing import WIDEST
from .plain import PlainType, shown, to_number, truths

# Bytes or numbers that are converted between two releases of the GIL: about 0.2 ms.
PIECE: Final = 64 * 1024
NUMBERS_PIECE: Final = 8192
# Characters, bytes or numbers from which on a conversion is left to a thread: about 1 ms.
LARGE_TEXT, LARGE_LIST = 1 << 20, 1 << 15
UTF16: Final = "utf-16-le"
HALVES: Final = "surrogatepass"
LIST_SIZE: Final = sys.getsizeof([])
# A first and a second half of a surrogate pair, by the upper bytes of their units.
_PAIR = re.compile(rb"[\xd8-\xdb][\xdc-\xdf]")
_NATIVE: Final = sys.byteorder == "little"


def encode_text(text: str) -> bytes:
    """Return text in UTF-16, a piece at a time if it is long."""
    text = str.__str__(text)  # a subclass may override its slices
    if len(text) <= PIECE:
        return text.encode(UTF16, HALVES)
    parts = []
    for start in range(0, len(text), PIECE):
        parts.append(text[start : start + PIECE].encode(UTF16, HALVES))
        breathe()
    return b"".join(parts)


def decode_text(data: bytes) -> str:
    """Return the text of an even number of bytes of UTF-16."""
    if len(data) <= PIECE:
        return data.decode(UTF16, HALVES)
    parts, start = [], 0
    while start < len(data):
        stop = start + PIECE
        if stop < len(data) and data[stop - 1] & 0xFC == 0xD8:
            stop += 2  # do not cut a pair
        parts.append(data[start:stop].decode(UTF16, HALVES))
        start = stop
        breathe()
    return "".join(parts)


def text_size(data: bytes) -> int:
    """Return the size of the `str` decoded from `data` (bytes), without making it."""
    units, upper = len(data) // 2, data[1::2]
    if upper.count(0) == units:
        if data[::2].isascii():
            return ASCII_SIZE + units
        return WIDE_SIZE + units + 1
    pairs = sum(1 for _ in _PAIR.finditer(upper))
    width = 4 if pairs else 2
    return WIDE_SIZE + width * (units - pairs + 1)


def lift_text(data: bytes, tally: Tally) -> str:
    """Count and return the text of an even number of bytes of UTF-16."""
    tally.add_made(text_size(data), 1)
    return decode_text(data)


def lift_bytes(data: bytes, tally: Tally) -> bytes:
    """Count and return bytes."""
    tally.add_made(BYTES_SIZE + len(data), 1)
    return data


@final
@frozen
class Elements:
    """Numbers of one type, as they lie in an array."""

    kind: PlainType
    code: str
    """Type code of `struct` and `array`."""
    title: str = "list[{}]"
    """How messages name the list, with the name of the number's type."""
    size: int = field(init=False)
    """Size of a number (bytes)."""

    @size.default
    def _size(self) -> int:
        return struct.calcsize(f"<{self.code}")

    @property
    def name(self) -> str:
        """The name of the list's type."""
        return self.title.format(self.kind.name)

    def lower(self, value: Value) -> bytes:
        """Return the bytes of the numbers in a sequence or a buffer.

        Raises:
            TypeError: it is no sequence, or holds something that is no such number.
            OverflowError: a number is out of the type's range.
        """
        if type(value) in (list, tuple):
            return self._packed(value, value.__getitem__)
        try:
            view = memoryview(value)
        except TypeError:
            listed = self._listed(value)
            return self._packed(listed, listed.__getitem__)
        with view:
            if view.ndim != 1:
                raise TypeError(
                    f"{self.name} takes an array of one dimension, this one has {view.ndim}"
                )
            if _NATIVE and self._is_format(view):
                with flat(view) as data:
                    return data.tobytes()
            return self._packed(view, lambda part: self._items(view[part]))

    def _items(self, view: memoryview) -> Sequence[Value]:
        try:
            return items(view)
        except TypeError as error:
            raise TypeError(f"{self.name} takes an array of numbers: {error}") from None

    def _packed(self, values: Sized, part: Callable[[slice], Sequence[Value]]) -> bytes:
        """Return the bytes of values, of which `part` returns some."""
        parts = []
        for start in range(0, len(values), NUMBERS_PIECE):
            parts.append(self._pack(part(slice(start, start + NUMBERS_PIECE)), start))
            breathe()
        return b"".join(parts)

    def _is_format(self, view: memoryview) -> bool:
        wanted = {"b": "bhilq", "B": "BHILQ", "f": "fd"}
        form = view.format.lstrip("@=<")
        group = next((group for group in wanted.values() if self.code in group), "")
        return bool(form) and form in group and view.itemsize == self.size

    def _listed(self, value: Value) -> Value:
        if isinstance(value, (str, set, frozenset, dict)) or not isinstance(value, Sequence):
            raise TypeError(
                f"{self.name} takes a sequence or an array of numbers, got {shown(value)}"
            )
        # By Python's own methods, whatever a subclass overrides; others may be without end.
        if isinstance(value, list):
            return list(list.__iter__(value))
        if isinstance(value, tuple):
            return list(tuple.__iter__(value))
        return list(itertools.islice(value, len(value)))

    def _pack(self, values: Sequence[Value], start: int) -> bytes:
        try:
            if self.kind.truth:
                return bytes(truths(values))
            if self.code == "f":
                # An `array` takes numbers too large for the type, as infinite ones.
                return struct.pack(f"<{len(values)}f", *values)
            made = array.array(self.code, values)
        except Exception:
            for number, value in enumerate(values, start):
                try:
                    to_number(self.kind, value)
                except (TypeError, ValueError, OverflowError) as error:
                    raise type(error)(f"item {number}: {error}") from None
            # Numbers of other classes, which `array` and `struct` do not take.
            return struct.pack(
                f"<{len(values)}{self.code}",
                *(self._whole(to_number(self.kind, value)) for value in values),
            )
        if not _NATIVE:
            made.byteswap()
        return made.tobytes()

    def _whole(self, number: Value) -> Value:
        """Return a wasm number as it lies in an array, where unsigned ones are not negative."""
        if self.kind.real or self.kind.low or number >= 0:
            return number
        return number + (1 << 8 * self.size)

    def lift(self, data: bytes, tally: Tally) -> list[object]:
        """Count and return the numbers of a whole number of elements.

        Raises:
            AbiError: one of them is not in the range of its type.
        """
        count = len(data) // self.size
        tally.spend(NUMBER_FUEL * count)
        tally.add_made(LIST_SIZE + count * (SLOT + NUMBER), 1)
        if self.kind.truth:
            if data.translate(None, b"\0\1"):
                raise AbiError(f"an item out of the range of {self.kind.name}, 0 to 1")
            return list(map(bool, data))
        values: list[object] = []
        for start in range(0, count, NUMBERS_PIECE):
            piece = data[start * self.size : (start + NUMBERS_PIECE) * self.size]
            values += struct.unpack(f"<{len(piece) // self.size}{self.code}", piece)
            breathe()
        return values


@final
@frozen
class Utf16:
    """Wire of text: see `packing.Wire`."""

    arrow: str = field(default="", init=False)
    heavy: bool = field(default=False, init=False)

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        if {str}.issuperset(map(type, values)):
            joined = "".join(values)
            data = joined.encode(UTF16, HALVES)
            if len(data) == 2 * len(joined):  # each character has one unit
                return data, [2 * len(value) for value in values]
        encoded = [str.encode(value, UTF16, HALVES) for value in values]
        return b"".join(encoded), list(map(len, encoded))

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        at, upper = 0, data[1::2]
        if upper.count(0) == len(upper) and data.isascii():
            tally.add_made(len(upper) + ASCII_SIZE * len(sizes), len(sizes))
            text = data.decode(UTF16)
            if min(sizes, default=0) >= 0:
                return [text[at : (at := at + size // 2)] for size in sizes]
            return [None if size < 0 else text[at : (at := at + size // 2)] for size in sizes]
        tally.check(WIDEST * len(upper))  # raises: then each is converted by itself
        values = [
            None if size < 0 else data[at : (at := at + size)].decode(UTF16, HALVES)
            for size in sizes
        ]
        tally.add_values(values)
        return values


# {name of a number's type: its code}
CODES: Final = {
    "i8": "b",
    "u8": "B",
    "i16": "h",
    "u16": "H",
    "i32": "i",
    "u32": "I",
    "i64": "q",
    "u64": "Q",
    "f32": "f",
    "f64": "d",
    "bool": "?",
}
