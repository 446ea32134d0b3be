"""Keep the linear memory of a fake instance, as sparse bytes with a limit."""

from __future__ import annotations

from attrs import define, field

from ..._core.config import WASM_PAGE
from ..._core.errors import MemoryLimitError
from ..._core.wasm.types import PAGE_LIMIT

MAX_SIZE = PAGE_LIMIT * WASM_PAGE


@define(eq=False)
class FakeMemory:
    """See `GuestMemory`. Pages that were never written to take no memory."""

    size: int = 0
    """Bytes, in whole pages."""
    limit: int = MAX_SIZE
    """Bytes that it can grow to."""
    remedy: str = field(default="", repr=False)
    """What `memory_remedy` returns."""
    pages: dict[int, bytearray] = field(factory=dict, repr=False)
    """{number: page} of the pages that were written to."""
    _first: dict[int, bytes] = field(factory=dict, repr=False)

    def read(self, at: int, n: int) -> bytes:
        self._check(at, n)
        data = bytearray(n)
        for page, start, offset, length in _parts(at, n):
            held = self.pages.get(page)
            if held is not None:
                data[offset : offset + length] = held[start : start + length]
        return bytes(data)

    def view(self) -> memoryview:
        return memoryview(self.read(0, self.size))

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            raw = view.tobytes()
        self._check(at, len(raw))
        for page, start, offset, length in _parts(at, len(raw)):
            held = self.pages.get(page)
            if held is None:
                held = self.pages[page] = bytearray(WASM_PAGE)
            held[start : start + length] = raw[offset : offset + length]

    def end(self) -> None:
        """Do nothing: it can be used as long as anybody has it."""

    def clear(self) -> None:
        """Make it as it began: all zeros, unless it was prepared."""
        self.pages = {number: bytearray(page) for number, page in self._first.items()}

    def begin_so(self) -> None:
        """Let it begin with what it contains now."""
        self._first = {number: bytes(page) for number, page in self.pages.items()}

    def grow(self, pages: int) -> int:
        before = self.size
        if before + pages * WASM_PAGE > self.limit:
            raise MemoryLimitError(
                f"its memory of {before // WASM_PAGE} pages of 64 KiB can't have {pages} more: "
                f"{self.remedy}"
            )
        self.size += pages * WASM_PAGE
        return before

    def _check(self, at: int, n: int) -> None:
        if at < 0 or n < 0 or at + n > self.size:
            raise IndexError(f"{n} bytes at {at} are not inside the memory")


def _parts(at: int, n: int) -> list[tuple[int, int, int, int]]:
    """Return [(page, where in it, where in the data, bytes)] of a range, page by page."""
    parts, offset = [], 0
    while offset < n:
        page, start = divmod(at + offset, WASM_PAGE)
        length = min(WASM_PAGE - start, n - offset)
        parts.append((page, start, offset, length))
        offset += length
    return parts
