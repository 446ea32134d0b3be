"""The bytes of a buffer, read only by Python's buffer protocol.

An object may misreport itself: its `__len__` need not be that of its buffer, and its `__bytes__`
may return other bytes. Its buffer is reliable, and can't be resized while there is a view of it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, Protocol


class Exporter(Protocol):
    """An object with the buffer protocol, for type checkers (`collections.abc.Buffer` of 3.12)."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Return a view of the buffer."""


class Array(Protocol):
    """An array as NumPy's, which checkers do not take for an `Exporter` before Python 3.12."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """NumPy's description of the array."""


Buffer = Exporter | Array

_LETTERS: Final = frozenset("?bBhHiIlLqQefd")
"""Formats of numbers that `struct` knows with any byte order."""


def flat(data: Any) -> memoryview:
    """Return a view of the bytes of a buffer in one piece; copy them only if not contiguous.

    This may run the object's own code (`__buffer__`), so inspect anything that it could change,
    such as a guest's memory, afterwards.

    Raises:
        TypeError: `data` is no buffer.
    """
    view = memoryview(data)
    if view.c_contiguous:
        try:
            return view.cast("B")
        except (TypeError, ValueError):  # an empty one, or a format that `cast` does not know
            pass
    return memoryview(view.tobytes())


def items(view: memoryview) -> Sequence[Any]:
    """Return the items of a view of one dimension, in any byte order.

    Raises:
        TypeError: Python can't read them, such as those of NumPy's structures.
    """
    try:
        return view.tolist()
    except NotImplementedError:
        pass
    order, letter = view.format[:-1], view.format[-1:]
    if order in ("", "@", "=", "<", ">", "!") and letter in _LETTERS:
        try:
            return struct.unpack(f"{order}{view.shape[0]}{letter}", view.tobytes())  # type: ignore[index]
        except struct.error:  # it says another size of an item than it has
            pass
    raise TypeError(f"its items, of the format {view.format!r:.60}, are no numbers")
