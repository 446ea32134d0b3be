"""Reading and writing a guest's linear memory, with every address checked first."""

from __future__ import annotations

import ctypes
from operator import index
from typing import final

from ..._core.buffers import flat
from ..._core.config import WASM_PAGE
from ..._core.errors import MemoryLimitError
from . import native
from .errors import take_error


def check_range(at: int, n: int, size: int) -> None:
    """Raise `IndexError` unless `n` bytes from `at` lie inside a memory of `size` bytes."""
    if at < 0 or n < 0 or at + n > size:
        raise IndexError(f"{n} bytes at {at} are not inside the guest's memory of {size} bytes")


@final
class SuspendedMemory:
    """The memory of a guest that waits for a host function: it can't move or grow meanwhile."""

    __slots__ = ("_base", "size")

    def __init__(self, base: int | None, size: int) -> None:
        self._base = base or 0
        self.size = size

    def end(self) -> None:
        """Have nothing inside any more: the guest is gone, or goes on."""
        self._base = self.size = 0

    def read(self, at: int, n: int) -> bytes:
        at, n = index(at), index(n)
        check_range(at, n, self.size)
        return ctypes.string_at(self._base + at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        at = index(at)
        with flat(data) as raw:
            self.put(at, raw)

    def put(self, at: int, raw: memoryview) -> None:
        """Write bytes that lie in one piece: their length is the view's own."""
        size = raw.nbytes
        check_range(at, size, self.size)
        if size:
            with native.memory_view(self._base + at, size) as to:
                to[:] = raw


@final
class InstanceMemory:
    """The memory of an instance that has no call under way.

    Base and size are asked for every time: any call may have grown it, and growing may move it.
    It can't outlive its instance: an ABI may still have it when that is closed, and clean up.
    """

    __slots__ = ("_context", "handle")

    def __init__(self, context: native.Context, handle: bytes) -> None:
        self._context: native.Context | None = context
        self.handle = handle

    def end(self) -> None:
        """Have nothing inside any more: the instance is closed."""
        self._context = None

    @property
    def size(self) -> int:
        if self._context is None:
            return 0
        return native.memory_data_size(self._context, self.handle)

    def read(self, at: int, n: int) -> bytes:
        at, n = index(at), index(n)
        return self._now().read(at, n)

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        at = index(at)
        with flat(data) as raw:
            self._now().put(at, raw)

    def grow(self, pages: int) -> int:
        if self._context is None:
            raise MemoryLimitError("the instance is closed: its memory can't grow")
        before = ctypes.c_uint64()
        problem = native.memory_grow(self._context, self.handle, pages, ctypes.byref(before))
        if problem:
            raise MemoryLimitError(
                f"its memory of {self.size // WASM_PAGE} pages of 64 KiB can't have {pages} more: "
                "pass less at once, or raise memory_limit, unless the module itself limits its "
                f"memory to less ({take_error(problem)})"
            )
        return before.value * WASM_PAGE

    def _now(self) -> SuspendedMemory:
        if self._context is None:
            return SuspendedMemory(None, 0)
        return SuspendedMemory(native.memory_data(self._context, self.handle), self.size)
