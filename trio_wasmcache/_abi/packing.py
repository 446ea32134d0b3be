"""Converts columns of values to contiguous bytes and back, many values at a time.

The ABI's conversion of single values is the reference: a wire gives the same bytes and the same
values, or raises; then its caller converts value by value, and finds the one that does not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Protocol, final

from attrs import field, frozen

from .._core.tally import ASCII_SIZE, BYTES_SIZE, NUMBER, SMALL, Tally
from .base import Value
from .plain import truths

Data = bytes | memoryview
# Bytes of a character outside the basic plane, the most that a byte of UTF-8 can lead to.
WIDEST = 4


class Wire(Protocol):
    """Conversion of many values of one type. A size of -1 is a null."""

    @property
    def arrow(self) -> str:
        """ "string" or "binary" if Arrow has the same bytes for values of the type; else empty."""

    @property
    def heavy(self) -> bool:
        """Whether converting a value takes microseconds."""

    def pack(self, values: Sequence[object], /) -> tuple[Data, Sequence[int]]:
        """Return the bytes of all values together, and the size of each.

        Raises any exception if a value does not fit, or is None.
        """

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally, /) -> Sequence[object]:
        """Return the values of such bytes; raise any exception if some are invalid or too large."""


@final
@frozen
class Text:
    """UTF-8 or ASCII."""

    encoding: str = "utf-8"
    nul: bool = False
    """Whether a zero ends a text, which may contain none then."""
    heavy: bool = field(default=False, init=False)

    @property
    def arrow(self) -> str:
        return "string" if self.encoding == "utf-8" and not self.nul else ""

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        joined = "".join(values)
        if self.nul and "\0" in joined:
            raise ValueError("there is a zero in it")
        if joined.isascii() and {str}.issuperset(map(type, values)):
            # In a subclass of str, `len` may return anything.
            return joined.encode(), list(map(len, values))
        encoded = [str.encode(value, self.encoding) for value in values]
        return b"".join(encoded), list(map(len, encoded))

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        at = 0
        if data.isascii():
            tally.add_made(len(data) + ASCII_SIZE * len(sizes), len(sizes))
            text = data.decode()
            if min(sizes, default=0) >= 0:
                return [text[at : (at := at + size)] for size in sizes]
            return [None if size < 0 else text[at : (at := at + size)] for size in sizes]
        if len(data) > SMALL:
            tally.check(WIDEST * len(data))  # raises: then each is converted by itself
        encoding = self.encoding
        values = [
            None if size < 0 else data[at : (at := at + size)].decode(encoding) for size in sizes
        ]
        tally.add_values(values)
        return values


@final
@frozen
class Blob:
    """Bytes as they are."""

    nul: bool = False
    heavy: bool = field(default=False, init=False)

    @property
    def arrow(self) -> str:
        return "" if self.nul else "binary"

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        if not {bytes}.issuperset(map(type, values)):
            # Others may change between two reads, or return any length.
            values = [
                value if type(value) is bytes else memoryview(value).tobytes() for value in values
            ]
        data = b"".join(values)
        if self.nul and 0 in data:
            raise ValueError("there is a zero in it")
        return data, list(map(len, values))

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        tally.add_made(len(data) + BYTES_SIZE * len(sizes), len(sizes))
        at = 0
        return [None if size < 0 else data[at : (at := at + size)] for size in sizes]


@final
@frozen
class Fixed:
    """Numbers of a fixed size, big-endian."""

    code: str
    """Type code of `struct`."""
    size: int
    arrow: str = field(default="", init=False)
    heavy: bool = field(default=False, init=False)

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        if self.code == "?":
            values = truths(values)
        return struct.pack(f">{len(values)}{self.code}", *values), [self.size] * len(values)

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        tally.add_made(NUMBER * len(sizes), len(sizes))
        found = iter(struct.unpack(f">{len(data) // self.size}{self.code}", data))
        if sizes.count(self.size) == len(sizes):
            return list(found)
        if any(size not in (-1, self.size) for size in sizes):
            raise ValueError("not all have that size")
        return [None if size < 0 else next(found) for size in sizes]


@final
@frozen
class Single:
    """Conversion of one value after the other by an ABI's functions."""

    encode: Callable[[Value], Data]
    decode: Callable[[bytes, Tally], Value]
    arrow: str = field(default="", init=False)
    heavy: bool = field(default=True, init=False)

    def pack(self, values: Sequence[Value]) -> tuple[bytes, Sequence[int]]:
        if any(value is None for value in values):
            raise TypeError("None is no value")
        encoded = [self.encode(value) for value in values]
        return b"".join(encoded), list(map(len, encoded))

    def unpack(self, data: bytes, sizes: Sequence[int], tally: Tally) -> Sequence[object]:
        at, values = 0, []
        for size in sizes:
            values.append(None if size < 0 else self.decode(data[at : at + size], tally))
            at += max(size, 0)
        return values
