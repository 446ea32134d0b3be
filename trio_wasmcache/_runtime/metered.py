"""The guest as the steps of an ABI see it: its memory, with all reading metered.

Every byte is counted before it is copied, and costs fuel of the call, whatever ABI reads it; see
`_core/tally`.
"""

from __future__ import annotations

from typing import final

from .._abi.base import Memory, Value
from .._core.errors import MemoryLimitError
from .._core.tally import Tally
from .._engine.base import GuestInstance, GuestPart, OwnMemory, Window


@final
class MeteredGuest:
    """A `Guest` for one call, or for all rows of a batch, whose memory is metered."""

    __slots__ = ("_memory", "_native", "tally")

    def __init__(self, native: GuestInstance, tally: Tally) -> None:
        self._native = native
        self._memory: MeteredMemory | None = None
        self.tally = tally

    @property
    def memory(self) -> Memory | None:
        if self._memory is None and (memory := self._native.memory) is not None:
            self._memory = MeteredMemory(memory, self.tally)
        return self._memory

    @property
    def state(self) -> dict[str, Value]:
        return self._native.state

    def part(self, name: str) -> MeteredPart:
        """Return a part of the instance, whose memories are metered, too."""
        return MeteredPart(self._native.part(name), self.tally)

    def global_value(self, name: str) -> int | float:
        return self._native.global_value(name)


@final
class MeteredPart:
    """A part of an instance, for an ABI that has put it there."""

    __slots__ = ("_part", "_tally")

    def __init__(self, part: GuestPart, tally: Tally) -> None:
        self._part = part
        self._tally = tally

    def memory(self, name: str) -> MeteredMemory:
        """Return a memory that the part exports."""
        return MeteredMemory(self._part.memory(name), self._tally)

    def window(self, name: str) -> Window:
        """Return the pages with which a memory begins, unmetered; see `MeteredMemory.view`."""
        return self._part.window(name)


@final
class MeteredMemory:
    """A `Memory` that counts the bytes that are read."""

    __slots__ = ("_memory", "_tally")

    def __init__(self, memory: OwnMemory, tally: Tally) -> None:
        self._memory = memory
        self._tally = tally

    @property
    def size(self) -> int:
        return self._memory.size

    def read(self, at: int, n: int) -> bytes:
        if 0 <= n <= self._memory.size:  # otherwise `read` raises and copies nothing
            self._tally.copy(n)
        return self._memory.read(at, n)

    def view(self) -> memoryview:
        """Return all bytes, unmetered, for an ABI of this library, which counts by itself."""
        return self._memory.view()

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        self._memory.write(at, data)

    def grow(self, pages: int) -> int:
        try:
            return self._memory.grow(pages)
        except MemoryLimitError as error:
            # It grows for arguments, unlike that of a lease.
            error.args = (f"{error.args[0]}; or pass less at once", *error.args[1:])
            raise
