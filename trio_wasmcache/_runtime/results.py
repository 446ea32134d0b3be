"""Results of calls and batches: the book of their bytes, and reused memory for those of batches.

The book has a `Tally` for each call or batch until its results are returned or dropped. Returned
results belong to the caller.

The kernel takes one or two microseconds to map a page, as long as the guest takes to fill it with
numbers. The C library may keep freed memory or return it to the kernel, depending on the other
contents of its heap. So results have memory of their own, which is not filled with zeros first, and
the memory of the last results is used again once nothing refers to it.

Rejected: pages of 2 MiB. They are mapped ten times as fast, but some virtual machines have to ask
their host for each, and stand still for 5 ms.
"""

from __future__ import annotations

import mmap
import weakref
from typing import final

from attrs import Factory, define

from .._core.config import KiB, MiB
from .._core.tally import Tally

# Sizes from which on results get memory of their own, and up to which it is kept (bytes).
MAPPED, KEPT = 128 * KiB, 16 * MiB


@final
@define(eq=False)
class ResultBook:
    """The tallies of all results of one cache that are under way."""

    limit: int
    """`max_result_size` for calls and batches that begin from now on (bytes)."""
    _tallies: set[Tally] = Factory(set)

    @property
    def size(self) -> int:
        """Bytes of all results under way."""
        return sum(tally.held for tally in self._tallies)

    def resize(self, limit: int) -> None:
        """Change the limit for results that begin from now on (bytes)."""
        self.limit = limit

    def begin(self) -> Tally:
        """Return a tally that counts the results of one call or batch, until `end`."""
        tally = Tally(self.limit)
        self._tallies.add(tally)
        return tally

    def end(self, tally: Tally) -> None:
        """End a tally, whose results were returned or dropped."""
        self._tallies.discard(tally)
        tally.end()


@final
class ResultMemory:
    """Provides memory for the results of batches, and keeps one piece of it for later ones."""

    def __init__(self) -> None:
        self._kept: mmap.mmap | None = None
        self._lent: weakref.WeakSet[Tally] = weakref.WeakSet()  # of results in the kept memory

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return 0 if self._kept is None else len(self._kept)

    def forget(self) -> None:
        """Keep no memory: it is freed now, or when nothing refers to it any more."""
        self._kept = None
        for tally in self._lent:
            tally.unkeep()
        self._lent.clear()

    def take(self, size: int, tally: Tally) -> memoryview:
        """Return `size` bytes of writable memory; it may contain old results, so fill all of it.

        The bytes are counted by `tally`, and not twice if the memory is kept here afterwards.

        Raises:
            ResultTooLargeError: with these bytes, the results exceed `max_result_size`.
            MemoryError: the system has no memory for them.
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
        # Much smaller memory would be of no use for the next batch.
        if size <= KEPT and (kept is None or len(kept) <= 2 * size):
            self.forget()
            self._kept = made
            self._lend(size, tally)
        return memoryview(made)[:size]

    def _lend(self, size: int, tally: Tally) -> None:
        tally.keep(size)
        self._lent.add(tally)


def _is_free(kept: mmap.mmap) -> bool:
    """Return whether no buffer refers to it, such as a slice or a NumPy array."""
    try:
        kept.resize(len(kept))
    except (BufferError, SystemError):  # SystemError: this system can't tell
        return False
    return True
