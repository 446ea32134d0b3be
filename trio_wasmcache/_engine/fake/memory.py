"""The linear memory of a fake instance."""

from __future__ import annotations

from attrs import define, field

from ..._core.config import WASM_PAGE


@define(eq=False)
class FakeMemory:
    """See `GuestMemory`."""

    _data: bytearray = field(factory=bytearray, repr=False)

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, at: int, n: int) -> bytes:
        self._check(at, n)
        return bytes(self._data[at : at + n])

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        with memoryview(data) as view:
            raw = view.tobytes()
        self._check(at, len(raw))
        self._data[at : at + len(raw)] = raw

    def clear(self) -> None:
        """As it began: zeros."""
        self._data[:] = bytes(len(self._data))

    def grow(self, pages: int) -> int:
        before = len(self._data)
        self._data += bytes(pages * WASM_PAGE)
        return before

    def _check(self, at: int, n: int) -> None:
        if at < 0 or n < 0 or at + n > len(self._data):
            raise IndexError(f"{n} bytes at {at} are not inside the memory")
