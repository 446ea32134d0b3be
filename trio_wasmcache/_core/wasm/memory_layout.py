"""The parameters of memory drivers, and the layout of their scratch; see `memory_driver`.

A column of bytes consists of offsets into its data, 32 or 64 bits each, as in Arrow: the bytes of
row n lie between the offsets n and n + 1. Results that are bytes are a column of sizes, and their
data without gaps.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs

from ..config import VALUES_SCRATCH_LIMIT, WASM_PAGE
from .driver import CELLS
from .types import FuncType

BYTES: Final = "bytes"
"""Name of a column of bytes, in place of that of a cell."""
ROWS_LIMIT: Final = 2048
"""Rows of a chunk, at most: keeps Python's work on one short, at 0.1 microseconds a row."""
HEAVY_ROWS, HEAVY_SIZE = 128, 16 * 1024
"""Rows and bytes of results in a chunk, at most, where each result takes Python microseconds."""
LEAST_DATA: Final = 8 * 1024
"""Bytes for the data of columns and results, at least."""

ROW_AT, WHY_AT, AT_AT, SIZE_AT, FIRST_AT, PENDING_AT, RAW_AT, BASE_AT = 0, 4, 8, 12, 16, 20, 24, 32
STATES_AT: Final = 64
"""Address of the state of the first argument of bytes."""
BIAS, STEP, WIDTH, KEPT_AT, KEPT_SIZE, STATE_SIZE = 0, 4, 8, 12, 16, 20
"""Offsets in the state of an argument of bytes: address of its data less its first offset; distance
between the offsets of two rows; distance from a row's offset to that of its end; address and size
of memory kept for it, or the class of its objects. And the size of a state."""
AREA_SIZE: Final = 16
"""Size of what a guest writes about its result: address, size; in wasm-bindgen an error, a flag."""

RTTI_AT, CALLS_AT, INTERVAL_AT, PAGES_AT = 36, 40, 44, 48
"""Addresses for objects: the guest's table of classes; calls since garbage was collected, calls
after which to collect it, and pages of the memory when it was last looked at."""

NO_ROOM, OUTSIDE, AREA_OUTSIDE, FAILED, RANGE, READ_OUT, ALLOCATED_OUTSIDE = range(1, 8)
NO_OBJECT, NEW_OUTSIDE, AREA_MISALIGNED = 8, 9, 10
"""Reasons for which a driver stops."""

Style = Literal["cql", "packed", "packed_low", "pair", "area", "out", "object", "image"]

# Objects of AssemblyScript: see `_abi/managed`.
HEADER_SIZE: Final = 20
"""Bytes before an object that belong to its runtime; the last eight are its class and its size."""
BUFFER_CLASS, TEXT_CLASS = 1, 2
"""Numbers of the classes `ArrayBuffer` and `String`."""
TYPED_ARRAY, ARRAY, STATIC_ARRAY, SIGNED, FLOATS = 1 << 0, 1 << 1, 1 << 2, 1 << 11, 1 << 12
CLASS_FLAGS: Final = 0b111_1111_1101_1111
"""Flags of a class that tell its layout: kind, alignment and type of what is in it."""


@attrs.frozen(cache_hash=True)
class Contents:
    """The objects that a result may be, and what they hold."""

    text: bool
    """Whether only strings are accepted."""
    flags: tuple[int, ...]
    """Flags of the classes that are accepted."""
    size: int
    """Size of an element (bytes)."""
    buffers: bool = attrs.field(kw_only=True)
    """Whether an `ArrayBuffer` is accepted."""


@attrs.frozen(cache_hash=True)
class MemoryShape:
    """The parameters of a memory driver."""

    args: tuple[str, ...]
    """Names of cells, or `BYTES`."""
    results: tuple[str, ...]
    """Names of cells, or `BYTES` alone."""
    argument: Literal["pair", "nul", "packed", "object"]
    """Form of an argument of bytes: address and size; address, followed by a zero byte;
    size << 32 | address; address of an object with them."""
    style: Style | None
    """Form of a result of bytes; see `BufferAbi`. In "cql", a size of -1 is null."""
    allocation: Literal["grown", "kept", "guest"]
    """Owner of the memory for arguments: the host, in pages of its own; the host, allocated by the
    guest and reused; or the guest, allocated for each row."""
    align: int = 1
    """Alignment of arguments in grown memory (bytes)."""
    alloc: int = 0
    """Number of parameters of the allocating function; 0: there is none."""
    free: int = 0
    """Number of parameters of the freeing function; 0: there is none."""
    frees: bool = False
    """Whether the host frees results, unless they lie in an argument of the host's."""
    post: bool = False
    """Whether a function is called after a result has been read."""
    flagged: bool = False
    """Whether the area of a result has a flag for an error."""
    passes_nulls: bool = False
    """Whether nulls are passed; if not, a row with one is not called, and its result is null."""
    heavy: bool = False
    """Whether converting a result takes long."""
    views: tuple[int, ...] = ()
    """For each argument of bytes, as objects: size of an element of a view; 0: it is no view."""
    contents: Contents | None = None
    """Objects that are accepted as a result."""
    count: int | None = None
    """Number of arguments, if the guest is told before each call; else None."""
    defaults: tuple[str, ...] = ()
    """Wasm types of further parameters, which are 0."""
    collects: bool = False
    """Whether garbage of the guest is collected."""
    cells: tuple[tuple[str, ...], ...] = ()
    """For each argument of bytes that is no bytes to the guest: wasm types of the values that it
    is, which are in cells of eight bytes; empty for others, or if there are none."""
    image: tuple[int, int] = (0, 0)
    """Size and alignment of a result of the style "image", of which the guest returns the address.
    """
    canonical: bool = False
    """Whether the canonical ABI's rules hold: memory may begin at address 0, nothing is allocated
    as such, and the area of a result is aligned."""
    pages: int = VALUES_SCRATCH_LIMIT // WASM_PAGE
    """Pages of the scratch, at most, unless its columns need more."""

    @property
    def signature(self) -> FuncType:
        """The wasm type of the function that the driver calls."""
        params: list[str] = ["i32"] if self.style == "out" else []
        cells = iter(self.cells)
        for name in self.args:
            if name == BYTES and (kinds := next(cells, ())):
                params += kinds
                continue
            passed = {"pair": ("i32", "i32"), "packed": ("i64",)}.get(self.argument, ("i32",))
            params += passed if name == BYTES else (CELLS[name].wasm,)
        params += self.defaults
        results = [CELLS[name].wasm for name in self.results if name != BYTES]
        if self.style is not None:
            one, two = ["i32"], ["i32", "i32"]
            results = {"pair": two, "area": one, "object": one, "image": one, "out": []}.get(
                self.style, ["i64"]
            )
        return FuncType(tuple(params), tuple(results))

    @property
    def areas(self) -> int:
        """Number of areas that the host makes for the result."""
        return int(self.style == "out")


@attrs.frozen
class MemoryLayout:
    """The addresses in the scratch of a shape, and the driver itself."""

    rows: int
    """Rows of a chunk, at most; a multiple of 8."""
    pages: int
    validity: tuple[int, ...]
    """Address of the bits of each column of bytes if nulls are passed; else one, for the rows."""
    args: tuple[int, ...]
    """Address of each column: its cells, or its offsets."""
    states: tuple[int, ...]
    """Address of the state of each column of bytes, and of the result's area if there is one."""
    results: tuple[int, ...]
    """Address of each column of results: its cells, or its sizes."""
    data: int
    data_size: int
    out: int
    out_size: int
    text: str = ""
    fuel_per_row: int = 0
    """Fuel that the driver itself burns for a row, at most."""


def scratch_of(shape: MemoryShape) -> MemoryLayout:
    """Return the layout of a shape, without its driver."""
    limit = shape.pages * WASM_PAGE
    buffers = shape.args.count(BYTES)
    at = -(-(STATES_AT + STATE_SIZE * (buffers + shape.areas)) // 8) * 8
    bitmaps = buffers if shape.passes_nulls else 1
    # In bits.
    bits = bitmaps + 8 * (
        sum(8 if name == BYTES else CELLS[name].size for name in shape.args)
        + sum(4 if name == BYTES else CELLS[name].size for name in shape.results)
    )
    room = limit // 2 - at - 8 * (buffers + len(shape.results) + bitmaps)
    most = HEAVY_ROWS if shape.heavy else ROWS_LIMIT
    # Eight rows of the most parameters allowed, 1000, leave some space for data.
    rows = max(min(8 * room // max(bits, 1), most) // 8 * 8, 8)

    def take(size: int) -> int:
        nonlocal at
        begin, at = at, at + -(-size // 8) * 8
        return begin

    validity = tuple(take(rows // 8) for _ in range(bitmaps))
    args = tuple(take(8 * (rows + 1) if n == BYTES else CELLS[n].size * rows) for n in shape.args)
    results = tuple(take((4 if n == BYTES else CELLS[n].size) * rows) for n in shape.results)
    left = limit - at
    if left < LEAST_DATA:  # with a few hundred columns of bytes, and not all pages
        return scratch_of(attrs.evolve(shape, pages=shape.pages + 1))
    out_size = left if not buffers else left // 2 if shape.style else 0
    if shape.heavy:
        out_size = min(out_size, HEAVY_SIZE)
    data_size = left - out_size if buffers else 0
    states = tuple(STATES_AT + STATE_SIZE * n for n in range(buffers + shape.areas))
    return MemoryLayout(
        rows,
        -(-(at + data_size + out_size) // WASM_PAGE),
        validity,
        args,
        states,
        results,
        data=at,
        data_size=data_size,
        out=at + data_size,
        out_size=out_size,
    )
