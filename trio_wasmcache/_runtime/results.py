"""Results of calls and batches: the book of what they take, and memory for those of batches.

The book holds a `Tally` for each call or batch whose results are under way. It is over when they
are returned or dropped: what was returned is the caller's.

Memory for the results of batches is found by the kernel but once.

To find a page costs the kernel one or two microseconds, so that for numbers it takes as long as the
rows that fill the page. The C library would keep what came back, or give it all to the kernel,
depending on what else lies there. So results have memory of their own, which is not filled with
zeros first, and that of the last ones is used again when nobody sees it any more.

Pages of 2 MiB were tried: ten times as fast to find, but some virtual machines have to ask their
host for each, and stand still for 5 ms.
"""

from __future__ import annotations

import mmap
import weakref
from typing import final

from attrs import Factory, define

from .._core.config import KiB, MiB
from .._core.tally import Tally

# Bytes from which on results get memory of their own, and up to which it is kept.
MAPPED, KEPT = 128 * KiB, 16 * MiB


@final
@define(eq=False)
class ResultBook:
    """The tallies of all results of one cache that are under way."""

    limit: int
    """`max_result_size` for those that begin from now on (bytes)."""
    _tallies: set[Tally] = Factory(set)

    @property
    def size(self) -> int:
        """Bytes that results under way take."""
        return sum(tally.held for tally in self._tallies)

    def resize(self, limit: int) -> None:
        """Change the limit for results that begin from now on (bytes)."""
        self.limit = limit

    def begin(self) -> Tally:
        """Count the result of one call, or those of one batch, until `end`."""
        tally = Tally(self.limit)
        self._tallies.add(tally)
        return tally

    def end(self, tally: Tally) -> None:
        """They were returned, or dropped."""
        self._tallies.discard(tally)
        tally.end()


@final
class ResultMemory:
    """Gives memory for results, and keeps one piece of it for the next."""

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None
        self._lent: weakref.WeakSet[Tally] = weakref.WeakSet()  # whose results lie in what is kept

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return 0 if self._kept is None else len(self._kept)

    def forget(self) -> None:
        """Keep nothing: it goes, at the latest when nobody sees it any more."""
        self._kept = None
        for tally in self._lent:
            tally.kept = 0
        self._lent.clear()

    def take(self, size: int, tally: Tally) -> memoryview:
        """So many bytes to write to: all of them, as others' results may still lie there.

        They are counted, and not twice if they are kept here afterwards.

        Raises:
            ResultTooLargeError: they exceed `max_result_size`.
            MemoryError: there are not as many.
        """
        tally.add(size)
        if size < MAPPED:
            return memoryview(bytearray(size))
        kept = self._kept
        if kept is not None and size <= len(kept) <= 2 * size and _is_free(kept):
            self._lend(size, tally)
            return memoryview(kept)[:size]
        try:
            made = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError):
            raise MemoryError(f"there is no memory for {size} bytes of results") from None
        # What is much smaller would be of no use to what comes next.
        if size <= KEPT and (kept is None or len(kept) <= 2 * size):
            self.forget()
            self._kept = made
            self._lend(size, tally)
        return memoryview(made)[:size]

    def _lend(self, size: int, tally: Tally) -> None:
        tally.kept += size
        self._lent.add(tally)


def _is_free(kept: mmap.mmap) -> bool:
    """Whether no buffer of it is left, however it came about: a slice, an array of NumPy."""
    try:
        kept.resize(len(kept))
    except (BufferError, SystemError):  # SystemError: this system can't tell
        return False
    return True
