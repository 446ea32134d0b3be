"""Reading and writing a guest's linear memory, with every address checked first."""

from __future__ import annotations

import ctypes
from operator import index
from typing import final

from ..._core.buffers import flat
from ..._core.config import WASM_PAGE
from ..._core.errors import MemoryLimitError
from ..._core.wasm.types import PAGE_LIMIT
from . import native
from .errors import take_error


def check_range(at: int, n: int, size: int) -> None:
    """Raise `IndexError` unless `n` bytes from `at` lie inside a memory of `size` bytes."""
    if at < 0 or n < 0 or at + n > size:
        raise IndexError(f"{n} bytes at {at} are not inside the guest's memory of {size} bytes")


def grow_memory(context: native.Context, handle: bytes, size: int, pages: int, remedy: str) -> int:
    """Add pages to a memory of `size` bytes, and return where they begin.

    Raises:
        MemoryLimitError: the memory would exceed a limit, or there is no room for it.
    """
    before = ctypes.c_uint64()
    # More than any memory can have would be cut to 64 bits.
    few = min(pages, PAGE_LIMIT + 1)
    problem = native.memory_grow(context, handle, few, ctypes.byref(before))
    if problem:
        take_error(problem)  # it names the pages that wasmtime was asked for, which may be fewer
        raise MemoryLimitError(
            f"its memory of {size // WASM_PAGE} pages of 64 KiB can't have {pages} more: {remedy}"
        )
    return before.value * WASM_PAGE


@final
class SuspendedMemory:
    """The memory of a guest that waits for a host function: only `grow` moves or grows it.

    Args:
        base: address of its first byte.
        size: bytes.
        context: context of the store; None: it can't grow.
        handle: handle of the memory.
        remedy: `Plan.remedy`.
    """

    __slots__ = ("_base", "_context", "_handle", "_remedy", "size")

    def __init__(
        self,
        base: int | None,
        size: int,
        context: native.Context | None = None,
        handle: bytes = b"",
        remedy: str = "",
    ) -> None:
        self._base = base or 0
        self._context = context
        self._handle = handle
        self._remedy = remedy
        self.size = size

    def end(self) -> None:
        """Have nothing inside any more: the guest is gone, or goes on."""
        self._base = self.size = 0
        self._context = None

    def now(self, caller: int, context: native.Context) -> SuspendedMemory:
        """Return the same memory after the guest went on, and was suspended again.

        Args:
            caller: context of the guest that calls.
            context: context of the store.
        """
        return SuspendedMemory(
            native.memory_data(caller, self._handle),
            native.memory_data_size(caller, self._handle),
            context,
            self._handle,
            self._remedy,
        )

    def grow(self, pages: int) -> int:
        context, handle = self._context, self._handle
        if context is None:
            raise MemoryLimitError("the guest has gone on, or is starting: its memory can't grow")
        # The guest reads anew where its memory is when it goes on, as after any host call.
        before = grow_memory(context, handle, self.size, pages, self._remedy)
        self._base = native.memory_data(context, handle) or 0
        self.size = native.memory_data_size(context, handle)
        return before

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
class MemoryWindow:
    """The pages with which a memory begins: see `Window`."""

    __slots__ = ("view",)

    def __init__(self, base: int, size: int) -> None:
        self.view: memoryview = native.memory_view(base, size)

    def end(self) -> None:
        """Have nothing inside any more: the instance is closed."""
        self.view = memoryview(b"")


@final
class InstanceMemory:
    """The memory of an instance that has no call under way.

    Base and size are asked for every time: any call may have grown it, and growing may move it.
    It can't outlive its instance: an ABI may still have it when that is closed, and clean up.
    """

    __slots__ = ("_context", "_remedy", "handle")

    def __init__(self, context: native.Context, handle: bytes, remedy: str) -> None:
        self._context: native.Context | None = context
        self._remedy = remedy
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
        return grow_memory(self._context, self.handle, self.size, pages, self._remedy)

    def view(self) -> memoryview:
        context = self._context
        if context is None:
            return memoryview(b"")
        base = native.memory_data(context, self.handle)
        return native.memory_view(base, self.size).toreadonly() if base else memoryview(b"")

    def _now(self) -> SuspendedMemory:
        if self._context is None:
            return SuspendedMemory(None, 0)
        return SuspendedMemory(native.memory_data(self._context, self.handle), self.size)
