"""The bytes of a buffer, by nothing but Python's buffer protocol.

An object may say anything of itself: its `__len__` need not be that of its buffer, and its
`__bytes__` may give other bytes. Its buffer can't lie, and can't be resized while it is viewed.
"""

from __future__ import annotations

from typing import Any


def flat(data: Any) -> memoryview:
    """View the bytes of a buffer in one piece; they are copied only if they do not lie so.

    That may run code of the object's own (`__buffer__`), so whatever is to be looked at, such as a
    guest's memory, look at it afterwards.

    Raises:
        TypeError: it is no buffer.
    """
    view = memoryview(data)
    if view.c_contiguous:
        try:
            return view.cast("B")
        except (TypeError, ValueError):  # an empty one, or a format that `cast` does not know
            pass
    return memoryview(view.tobytes())
