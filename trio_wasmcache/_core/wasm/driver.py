"""Writes drivers: small modules that call a function for each row of columns in their own memory.

A call from Python costs microseconds, a call from wasm nanoseconds. So the loop over the rows is in
wasm: a driver imports the function and exports `run`, which takes a number of rows, calls the
function for each, and returns how many are done. Its memory, the *scratch*, holds one chunk:

    | row | which | raw result | first row | validity, a bit a row | column | ... | result | ... |

A result lies in the column of an argument with cells of its size, if there is one that no other
result has: a row's arguments are read before its results are written, and never again. So a chunk
has more rows, and each of them touches less memory.

1. Before each call the driver writes the number of the row, so that a reader of the scratch, after
   a trap or between two slices, knows which row the guest is at.
2. Columns have the layout of Python's buffers, an `i8` in one byte: the driver widens values that
   it loads and checks the range of values that it stores. A result out of range ends the loop at
   its row, with the number of the result in `which` and its value in `raw result`.
3. A row whose validity bit is 0 is not called; its results are 0.
4. It begins with `first row`, so that a chunk can go on behind a row that failed.
"""

from __future__ import annotations

import functools
from typing import Final

import attrs

from ..config import SCRATCH_LIMIT, WASM_PAGE
from .editor import encode_module, name_bytes, section, sleb, uleb, vector
from .types import VALUE_TYPES, Export, FuncType, Import, Limits

ROWS_LIMIT: Final = 16_000
"""Rows of a chunk, at most: bounds the work between two checks for other waiters. A single column
of eight bytes a row takes two pages then, with its header."""
ROW_AT: Final = 0
WHICH_AT: Final = 4
RAW_AT: Final = 8
FIRST_AT: Final = 12
VALIDITY_AT: Final = 64

_BLOCK, _LOOP, _IF, _ELSE, _END, _BR_IF, _RETURN, _CALL = 0x02, 0x03, 0x04, 0x05, 11, 13, 15, 16
_GET, _SET, _TEE, _I32_CONST, _I64_CONST, _F32_CONST, _F64_CONST = 32, 33, 34, 65, 66, 67, 68
_I32_LOAD, _I32_STORE, _NE, _LT_U, _ADD, _AND = 0x28, 0x36, 0x47, 0x49, 0x6A, 0x71
_SHL, _SHR_U = 0x74, 0x76
_LOAD8_U, _EXTEND8_S, _EXTEND16_S, _VOID = 0x2D, 0xC0, 0xC1, 0x40
_TRUTH: Final = bytes([_I32_CONST, 0, _NE])
_TYPE_BYTES: Final = {name: byte for byte, name in VALUE_TYPES.items()}
_ZEROS: Final = {
    "i32": bytes([_I32_CONST, 0]),
    "i64": bytes([_I64_CONST, 0]),
    "f32": bytes([_F32_CONST]) + bytes(4),
    "f64": bytes([_F64_CONST]) + bytes(8),
}


@attrs.frozen
class Cell:
    """The layout of a value of one type in a column."""

    name: str
    code: str
    """Type code for `struct` and `array`."""
    size: int
    wasm: str
    load: int
    store: int
    check: bytes = b""
    """Instructions that turn an i32 into 0 if, and only if, it is in range; empty: all are."""
    truth: bool = False
    """Whether every value except 0 stands for 1."""

    @property
    def shift(self) -> int:
        """Number of bits by which to shift a row's number left for its offset in the column."""
        return self.size.bit_length() - 1


def _shr(bits: int) -> bytes:
    return bytes([_I32_CONST, bits, _SHR_U])


_SMALL: Final = (
    Cell("bool", "?", 1, "i32", 0x2D, 0x3A, _shr(1), truth=True),
    Cell("i8", "b", 1, "i32", 0x2C, 0x3A, bytes([_EXTEND8_S])),
    Cell("u8", "B", 1, "i32", 0x2D, 0x3A, _shr(8)),
    Cell("i16", "h", 2, "i32", 0x2E, 0x3B, bytes([_EXTEND16_S])),
    Cell("u16", "H", 2, "i32", 0x2F, 0x3B, _shr(16)),
)
CELLS: Final = {
    cell.name: cell
    for cell in (
        *_SMALL,
        *(attrs.evolve(cell, name=f"cut {cell.name}", check=b"") for cell in _SMALL),
        Cell("i32", "i", 4, "i32", 0x28, 0x36),
        Cell("u32", "I", 4, "i32", 0x28, 0x36),
        Cell("i64", "q", 8, "i64", 0x29, 0x37),
        Cell("u64", "Q", 8, "i64", 0x29, 0x37),
        Cell("f32", "f", 4, "f32", 0x2A, 0x38),
        Cell("f64", "d", 8, "f64", 0x2B, 0x39),
    )
}
"""{name: cell}: the types of the plain ABI, and variants whose results are cut, not checked."""


@attrs.frozen(cache_hash=True)
class Shape:
    """The parameters of a driver: its columns, and whether rows may be null."""

    args: tuple[str, ...]
    """Names of cells."""
    results: tuple[str, ...]
    nullable: bool = False
    post: bool = False
    """Whether a function is called with the results of each row once they are stored."""
    pages: int = SCRATCH_LIMIT // WASM_PAGE
    """Pages of the scratch, at most, unless eight rows need more."""

    @property
    def signature(self) -> FuncType:
        """The wasm type of the function that the driver calls."""
        return FuncType(
            tuple(CELLS[name].wasm for name in self.args),
            tuple(CELLS[name].wasm for name in self.results),
        )


@attrs.frozen
class Layout:
    """The addresses in the scratch of a shape, and the driver itself."""

    rows: int
    """Rows of a chunk, at most; a multiple of 8."""
    pages: int
    args: tuple[int, ...]
    """Address of each column."""
    results: tuple[int, ...]
    """Address of each column of results, which may be that of an argument."""
    wasm: bytes
    fuel_per_row: int
    """Fuel that the driver itself burns for a row, at most."""


@functools.lru_cache(maxsize=256)
def layout(shape: Shape) -> Layout:
    """Return the layout of a shape, with its driver. Columns are aligned to their cells."""
    shared = _shared_columns(shape)
    own = [name for name, number in zip(shape.results, shared, strict=True) if number is None]
    size = sum(CELLS[name].size for name in (*shape.args, *own))
    # Computed in bits, as validity takes one.
    room = 8 * (shape.pages * WASM_PAGE - VALIDITY_AT - 8)
    rows = max(8, min(room // (8 * size + 1), ROWS_LIMIT) // 8 * 8)
    at = VALIDITY_AT + -(-rows // 64) * 8
    places = []
    for name in (*shape.args, *own):
        places.append(at)
        at += rows * CELLS[name].size
    args, rest = tuple(places[: len(shape.args)]), iter(places[len(shape.args) :])
    results = tuple(next(rest) if number is None else args[number] for number in shared)
    pages = -(-at // WASM_PAGE)
    body = _body(shape, args, results)
    signature, run = shape.signature, FuncType(("i32",), ("i32",))
    post = FuncType(signature.results)
    imports = [Import("", "function", "func", signature)]
    if shape.post:
        imports.append(Import("", "post", "func", post))
    wasm = encode_module(
        types=[signature, run, *([post] if shape.post else [])],
        imports=imports,
        functions=[1],
        memories=[Limits(pages, pages)],
        exports=[Export("run", "func", len(imports)), Export("scratch", "memory", 0)],
        code=[body],
        # For backtraces: subsection 1, the name of the only function that is not imported.
        custom=[
            (
                "name",
                section(1, vector([uleb(len(imports)) + name_bytes("trio_wasmcache driver")])),
            )
        ],
    )
    # An instruction has at least one byte and burns at most one unit.
    return Layout(rows, pages, args, results, wasm, len(body))


def _shared_columns(shape: Shape) -> list[int | None]:
    """Return for each result the number of the argument in whose column it lies, or None."""
    free: dict[int, list[int]] = {}  # {size of a cell: numbers of arguments, the first one last}
    for number, name in reversed(list(enumerate(shape.args))):
        free.setdefault(CELLS[name].size, []).append(number)
    sizes = [CELLS[name].size for name in shape.results]
    return [free[size].pop() if free.get(size) else None for size in sizes]


# Locals: number of rows, the row, its offset in columns of 2, 4 and 8 bytes, and the results.
_ROWS, _ROW, _OFFSETS, _RESULTS = 0, 1, {0: 1, 1: 2, 2: 3, 3: 4}, 5


def _body(shape: Shape, args: tuple[int, ...], results: tuple[int, ...]) -> bytes:
    cells = [CELLS[name] for name in shape.results]
    declared = [uleb(4) + bytes([_TYPE_BYTES["i32"]])]
    declared += [uleb(1) + bytes([_TYPE_BYTES[cell.wasm]]) for cell in cells]
    shifts = sorted({CELLS[name].shift for name in (*shape.args, *shape.results)} - {0})
    code = bytearray([_I32_CONST, 0, _I32_LOAD, 2, FIRST_AT, _SET, _ROW])
    code += bytes([_LOOP, _VOID, _I32_CONST, 0, _GET, _ROW, _I32_STORE, 2, ROW_AT])
    for shift in shifts:
        code += bytes([_GET, _ROW, _I32_CONST, shift, _SHL, _SET, _OFFSETS[shift]])
    if shape.nullable:
        code += bytes([_GET, _ROW, _I32_CONST, 3, _SHR_U, _LOAD8_U, 0]) + uleb(VALIDITY_AT)
        code += bytes([_GET, _ROW, _I32_CONST, 7, _AND, _SHR_U, _I32_CONST, 1, _AND, _IF, _VOID])
    code += _call(shape, args, results)
    if shape.nullable:
        code.append(_ELSE)
        for cell, at in zip(cells, results, strict=True):
            code += _offset(cell) + _ZEROS[cell.wasm] + _access(cell.store, cell, at)
        code.append(_END)
    code += bytes([_GET, _ROW, _I32_CONST, 1, _ADD, _TEE, _ROW, _GET, _ROWS, _LT_U, _BR_IF, 0])
    code += bytes([_END, _GET, _ROW, _END])
    return vector(declared) + bytes(code)


def _call(shape: Shape, args: tuple[int, ...], results: tuple[int, ...]) -> bytes:
    """Return the code that calls one row: load its arguments, call, store its results."""
    code = bytearray()
    cells = [CELLS[name] for name in shape.results]
    direct = len(cells) == 1 and not cells[0].check and not shape.post
    if direct:
        code += _offset(cells[0])  # below the value, as a store needs it
    for name, at in zip(shape.args, args, strict=True):
        cell = CELLS[name]
        code += _offset(cell) + _access(cell.load, cell, at)
        if cell.truth:
            code += _TRUTH  # a buffer of bools may contain any bytes
    code += bytes([_CALL, 0])
    if direct:
        code += _TRUTH if cells[0].truth else b""
        return bytes(code + _access(cells[0].store, cells[0], results[0]))
    for number in reversed(range(len(cells))):
        code += bytes([_SET]) + uleb(_RESULTS + number)
    for number, (cell, at) in enumerate(zip(cells, results, strict=True)):
        get = bytes([_GET]) + uleb(_RESULTS + number)
        if cell.check:
            signed = len(cell.check) == 1  # extending a value in range changes nothing
            code += get + cell.check + (get + bytes([_NE]) if signed else b"")
            code += bytes([_IF, _VOID, _I32_CONST, 0]) + get + bytes([_I32_STORE, 2, RAW_AT])
            code += bytes([_I32_CONST, 0, _I32_CONST]) + sleb(number)
            code += bytes([_I32_STORE, 2, WHICH_AT, _GET, _ROW, _RETURN, _END])
        cut = _TRUTH if cell.truth and not cell.check else b""
        code += _offset(cell) + get + cut + _access(cell.store, cell, at)
    if shape.post:
        for number in range(len(cells)):
            code += bytes([_GET]) + uleb(_RESULTS + number)
        code += bytes([_CALL, 1])
    return bytes(code)


def _offset(cell: Cell) -> bytes:
    """Return the code that pushes the offset of the row in a column of such cells."""
    return bytes([_GET, _OFFSETS[cell.shift]])


def _access(opcode: int, cell: Cell, at: int) -> bytes:
    return bytes([opcode, cell.shift]) + uleb(at)
