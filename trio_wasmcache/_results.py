"""Memory for the results of batches, which the kernel has to find but once.

To find a page costs the kernel one or two microseconds, so that for numbers it takes as long as the
rows that fill the page. The C library would keep what came back, or give it all to the kernel,
depending on what else lies there. So results have memory of their own, which is not filled with
zeros first, and that of the last ones is used again when nobody sees it any more.

Pages of 2 MiB were tried: ten times as fast to find, but some virtual machines have to ask their
host for each, and stand still for 5 ms.
"""

from __future__ import annotations

import mmap
from typing import final

from ._core.config import KiB, MiB

# Bytes from which on results get memory of their own, and up to which it is kept.
MAPPED, KEPT = 128 * KiB, 16 * MiB


@final
class ResultMemory:
    """Gives memory for results, and keeps one piece of it for the next."""

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return 0 if self._kept is None else len(self._kept)

    def forget(self) -> None:
        """Keep nothing: it goes, at the latest when nobody sees it any more."""
        self._kept = None

    def take(self, size: int) -> memoryview:
        """So many bytes to write to: all of them, as others' results may still lie there.

        Raises:
            MemoryError: there are not as many.
        """
        if size < MAPPED:
            return memoryview(bytearray(size))
        kept = self._kept
        if kept is not None and size <= len(kept) <= 2 * size and _is_free(kept):
            return memoryview(kept)[:size]
        try:
            made = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError):
            raise MemoryError(f"there is no memory for {size} bytes of results") from None
        # What is much smaller would be of no use to what comes next.
        if size <= KEPT and (kept is None or len(kept) <= 2 * size):
            self._kept = made
        return memoryview(made)[:size]


def _is_free(kept: mmap.mmap) -> bool:
    """Whether no buffer of it is left, however it came about: a slice, an array of NumPy."""
    try:
        kept.resize(len(kept))
    except (BufferError, SystemError):  # SystemError: this system can't tell
        return False
    return True
