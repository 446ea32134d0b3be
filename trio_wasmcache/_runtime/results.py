"""Results of calls and batches: the book of their bytes, and reused memory for those of batches.

The book has a `Tally` for each call or batch until its results are returned or dropped. Returned
results belong to the caller.

The kernel takes one or two microseconds to map a page, as long as the guest takes to fill it with
numbers. The C library may keep freed memory or return it to the kernel, depending on the other
contents of its heap. So results have memory of their own, which is not filled with zeros first, and
the memory of the last results is used again once nothing refers to it: of several, as mostly the
result of one batch is still there when the next one runs.

Rejected: pages of 2 MiB. They are mapped ten times as fast, but some virtual machines have to ask
their host for each, and stand still for 5 ms.
"""

from __future__ import annotations

import mmap
import weakref
from typing import final

from .._core.config import KiB, MiB
from .._core.tally import Tally

# Size from which on results get memory of their own, and of all that is kept (bytes).
MAPPED, KEPT = 128 * KiB, 16 * MiB
# Pieces of memory that are kept, at most.
PIECES = 4


@final
class ResultBook:
    """The tallies of all results of one cache that are under way."""

    __slots__ = ("_tallies", "limit")

    def __init__(self, limit: int) -> None:
        self.limit: int = limit
        """`max_result_size` for calls and batches that begin from now on (bytes)."""
        self._tallies: set[Tally] = set()

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


def new_mapping(size: int, what: str) -> mmap.mmap:
    """Return new memory of `size` bytes, which the system maps as it is filled.

    Raises:
        MemoryError: the system has no memory for them.
    """
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(f"there is no memory for {size} bytes of {what}") from None


@final
class _Piece:
    """Memory that is kept for results."""

    __slots__ = ("lent", "memory")

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.lent: weakref.WeakKeyDictionary[Tally, int] = weakref.WeakKeyDictionary()
        """{tally of results in it: bytes of them}"""

    def lend(self, size: int, tally: Tally) -> memoryview:
        """Return `size` bytes of it, which the tally does not count any more."""
        tally.keep(size)
        self.lent[tally] = size
        return memoryview(self.memory)[:size]


@final
class ResultMemory:
    """Provides memory for the results of batches, and keeps some of it for later ones."""

    def __init__(self) -> None:
        self._kept: list[_Piece] = []  # the last lent at the end

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(len(piece.memory) for piece in self._kept)

    def forget(self) -> None:
        """Keep no memory: it is freed now, or when nothing refers to it any more."""
        while self._kept:
            self._drop()

    def _drop(self) -> None:
        """Keep the memory no longer that was lent longest ago."""
        for tally, size in self._kept.pop(0).lent.items():
            tally.unkeep(size)

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
        for piece in self._kept:
            if size <= len(piece.memory) <= 2 * size and _is_free(piece.memory):
                self._kept.remove(piece)
                self._kept.append(piece)
                return piece.lend(size, tally)
        made = new_mapping(size, "results")
        # Much smaller memory would be of no use for the next batch.
        if size > KEPT or any(len(piece.memory) > 2 * size for piece in self._kept):
            return memoryview(made)
        while self._kept and (len(self._kept) == PIECES or self.size + size > KEPT):
            self._drop()
        self._kept.append(_Piece(made))
        return self._kept[-1].lend(size, tally)


def _is_free(kept: mmap.mmap) -> bool:
    """Return whether no buffer refers to it, such as a slice or a NumPy array."""
    try:
        kept.resize(len(kept))
    except (BufferError, SystemError):  # SystemError: this system can't tell
        return False
    return True
