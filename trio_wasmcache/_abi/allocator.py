"""Detects a module's allocator, how it is called, and who owns what it allocates.

| exports | shape | arguments belong to |
|---|---|---|
| `__wbindgen_malloc`, `__wbindgen_free` | wasm-bindgen's: (size[, align]); (pointer, size[, align]) | the guest |
| `cabi_realloc` | the component model's: (old, old size, align, size) | the guest |
| `malloc`, `free` (or `_malloc`, `_free`) | C's: (size); (pointer) | the host |
| `alloc` or `allocate`; `free`, `dealloc` or `deallocate` | (size[, align]); (pointer[, size[, align]]) | the host |
| none of these | the host grows pages for arguments | the host |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Generator, Sequence

from attrs import frozen

from .._core.errors import ExportError
from .._core.integers import signed
from .._core.wasm.admission import exported, signature
from .base import Exports, Guest, Invoke, Value
from .guest_memory import check_allocated, grown_memory, memory_of

WBINDGEN = ("__wbindgen_malloc", "__wbindgen_free")
CABI = "cabi_realloc"
# (name of the allocating export, names of the possible freeing ones)
OTHERS = (
    ("malloc", ("free",)),
    ("_malloc", ("_free",)),
    ("alloc", ("dealloc", "free")),
    ("allocate", ("deallocate", "free")),
)
# Bytes and UTF-8 need no alignment; Rust must be given the same value when it frees.
ALIGN = 1


@frozen
class Allocator:
    """How memory is allocated and freed in one module."""

    what: str
    """The function's name for messages."""
    alloc: str | None
    """Name of the allocating export; None: pages are grown instead."""
    alloc_arity: int
    free: str | None
    free_arity: int
    guest_owns: bool
    """Whether the guest owns arguments and frees them; if not, the host does and reuses them."""

    def allocate(self, guest: Guest, size: int) -> Generator[Invoke, Value, int]:
        """Return the address of `size` bytes, at least one."""
        size = max(size, 1)
        if self.alloc is None:
            return grown_memory(guest, size)
        values = {1: (size,), 2: (size, ALIGN), 4: (0, 0, ALIGN, size)}[self.alloc_arity]
        at: int = (yield Invoke(self.alloc, tuple(map(signed, values)))) & 0xFFFFFFFF
        check_allocated(self.what, self.alloc, memory_of(guest), at, size)
        return at

    def release(self, at: int, size: int) -> Generator[Invoke, Value, None]:
        """Free memory that came from `allocate`, or from the guest."""
        if self.free is not None and at:
            values = (at, size, ALIGN)[: self.free_arity]
            yield Invoke(self.free, tuple(map(signed, values)))


def find_allocator(what: str, exports: Exports, alloc: str | None, free: str | None) -> Allocator:
    """Return the allocator of that name, or the first one that is detected.

    Raises:
        ExportError: it is not exported, or has no known signature.
    """
    if alloc is None and free is not None:
        raise ExportError(f"{what}: free={free!r} was given without alloc")
    if alloc is None:
        alloc, free = _detect(exports)
    if alloc is None:
        return Allocator(what, None, 0, None, 0, False)
    arity = _arity(what, exports, "alloc", alloc, (1, 2, 4), ("i32",))
    free_arity = 0 if free is None else _arity(what, exports, "free", free, (1, 2, 3), (), alloc)
    guest_owns = alloc in (WBINDGEN[0], CABI)
    return Allocator(what, alloc, arity, free, free_arity, guest_owns)


def _detect(exports: Exports) -> tuple[str | None, str | None]:
    names = exports.functions
    if all(name in names for name in WBINDGEN):
        return WBINDGEN
    if CABI in names:
        return CABI, None
    for alloc, frees in OTHERS:
        for free in frees:
            if alloc in names and free in names:
                return alloc, free
    return None, None


def _arity(
    what: str,
    exports: Exports,
    parameter: str,
    name: str,
    arities: Sequence[int],
    results: tuple[str, ...],
    taken: str | None = None,
) -> int:
    kind = exports.functions.get(name)
    if kind is None:
        said = exported(name, [*exports.functions], parameter + "={}", but=taken)
        raise ExportError(f"{what}: the module exports no function {name!r:.300}; {said}")
    arity = len(kind.params)
    if arity not in arities or set(kind.params) != {"i32"} or kind.results != results:
        raise ExportError(
            f"{what}: {name!r} is {signature(kind)}, which is not how memory is "
            f"{'allocated' if results else 'freed'}"
        )
    return arity
