"""What memory drivers are made for, and where things lie in their scratch; see `memory_driver`.

A column of bytes is offsets into its data, 32 or 64 bits each, as Arrow has them: those of row n
and n + 1 are around its bytes. Results that are bytes are sizes, and data one behind the other.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs

from ..config import WASM_PAGE
from .driver import CELLS, SCRATCH_LIMIT
from .types import FuncType

BYTES: Final = "bytes"
"""The name of what is no cell."""
ROWS_LIMIT: Final = 2048
"""Rows of a chunk, at most: what Python does with one is short, at 0.1 microseconds a row."""
HEAVY_ROWS, HEAVY_SIZE = 128, 16 * 1024
"""Rows and bytes of results in a chunk, at most, where each result takes Python microseconds."""

ROW_AT, WHY_AT, AT_AT, SIZE_AT, FIRST_AT, PENDING_AT, RAW_AT, BASE_AT = 0, 4, 8, 12, 16, 20, 24, 32
STATES_AT: Final = 64
"""Where the cells of each argument of bytes begin."""
BIAS, STEP, WIDTH, KEPT_AT, KEPT_SIZE, STATE_SIZE = 0, 4, 8, 12, 16, 20
"""Of an argument of bytes: its data's address less its first offset; from one row's offset to the
next's; from its offset to its end's; room that is kept for it; and how far it is to the next."""
AREA_SIZE: Final = 16
"""What a guest writes about its result: address and size; wasm-bindgen adds an error, a flag."""

NO_ROOM, OUTSIDE, AREA_OUTSIDE, FAILED, RANGE, READ_OUT, ALLOCATED_OUTSIDE = range(1, 8)
"""Why a driver stopped."""

Style = Literal["cql", "packed", "packed_low", "pair", "area", "out"]


@attrs.frozen(cache_hash=True)
class MemoryShape:
    """What a memory driver is made for."""

    args: tuple[str, ...]
    """Names of cells, or `BYTES`."""
    results: tuple[str, ...]
    """Names of cells, or `BYTES` alone."""
    argument: Literal["pair", "nul", "packed"]
    """How bytes are passed: address and size; address, with a zero behind; size << 32 | address."""
    style: Style | None
    """How bytes come back; see `BufferAbi`. As "cql", size -1 is null."""
    room: Literal["grown", "kept", "guest"]
    """Whose the room of arguments is: the host's own pages; allocated by the guest, but the host's
    to use again; or the guest's, allocated for each row."""
    align: int = 1
    """Arguments in grown room begin at multiples of this."""
    alloc: int = 0
    """How many parameters the function has that allocates; 0: there is none."""
    free: int = 0
    """Likewise."""
    frees: bool = False
    """The host frees results, unless they lie in an argument of its own."""
    post: bool = False
    """There is a function to call when a result has been read."""
    flagged: bool = False
    """The area of a result says whether it is an error."""
    passes_nulls: bool = False
    """Nulls are passed; otherwise a row with one is not called for, and its result is null."""
    heavy: bool = False
    """Converting a result takes long."""

    @property
    def signature(self) -> FuncType:
        """The wasm type of the function that it calls."""
        params: list[str] = ["i32"] if self.style == "out" else []
        for name in self.args:
            passed = {"pair": ("i32", "i32"), "nul": ("i32",), "packed": ("i64",)}[self.argument]
            params += passed if name == BYTES else (CELLS[name].wasm,)
        results = [CELLS[name].wasm for name in self.results if name != BYTES]
        if self.style is not None:
            results = {"pair": ["i32", "i32"], "area": ["i32"], "out": []}.get(self.style, ["i64"])
        return FuncType(tuple(params), tuple(results))

    @property
    def areas(self) -> int:
        """How many areas the host makes for the result."""
        return int(self.style == "out")


@attrs.frozen
class MemoryLayout:
    """Where things lie in the scratch of a shape, and the driver itself."""

    rows: int
    """Of a chunk, at most; a multiple of 8."""
    pages: int
    validity: tuple[int, ...]
    """Address of the bits of each column of bytes if nulls are passed; else one, for the rows."""
    args: tuple[int, ...]
    """Address of each column: its cells, or its offsets."""
    states: tuple[int, ...]
    """Address of the cells of each column of bytes, and of the result's area if there is one."""
    results: tuple[int, ...]
    """Address of each column of results: its cells, or its sizes."""
    data: int
    data_size: int
    out: int
    out_size: int
    text: str = ""
    fuel_per_row: int = 0
    """What the driver itself burns for a row, at most."""


def scratch_of(shape: MemoryShape) -> MemoryLayout:
    """The scratch of a shape, without its driver."""
    buffers = shape.args.count(BYTES)
    at = -(-(STATES_AT + STATE_SIZE * (buffers + shape.areas)) // 8) * 8
    bitmaps = buffers if shape.passes_nulls else 1
    # In bits.
    bits = bitmaps + 8 * (
        sum(8 if name == BYTES else CELLS[name].size for name in shape.args)
        + sum(4 if name == BYTES else CELLS[name].size for name in shape.results)
    )
    room = SCRATCH_LIMIT // 2 - at - 8 * (buffers + len(shape.results) + bitmaps)
    limit = HEAVY_ROWS if shape.heavy else ROWS_LIMIT
    # Eight rows of the most parameters that there may be, 1000, leave some for data.
    rows = max(min(8 * room // max(bits, 1), limit) // 8 * 8, 8)

    def take(size: int) -> int:
        nonlocal at
        begin, at = at, at + -(-size // 8) * 8
        return begin

    validity = tuple(take(rows // 8) for _ in range(bitmaps))
    args = tuple(take(8 * (rows + 1) if n == BYTES else CELLS[n].size * rows) for n in shape.args)
    results = tuple(take((4 if n == BYTES else CELLS[n].size) * rows) for n in shape.results)
    left = SCRATCH_LIMIT - at
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
