"""Columns in Arrow's format, as arguments and results, for all that has its C data interface.

They are converted by pyarrow, which is imported for the first such column, in a thread, as the
import takes long.
"""

from __future__ import annotations

import bisect
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, final

from .._abi.arrow_forms import ArrowForm
from .._core.text import printable
from .._core.wasm.driver import Cell
from .columns import Column, numpy_name

Arrow: TypeAlias = Any
"""pyarrow, which has no types, or an object of it."""
T = TypeVar("T")

# {cell: pyarrow's name of its type}
TYPES = {
    "bool": "bool",
    "f32": "float",
    "f64": "double",
    **{f"i{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"u{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
MAX_OFFSET = 2**31 - 1
# Number of rows up to which a column is converted on the event loop.
FEW = 1000
# {type of a function, of any ABI: name of pyarrow's factory}; pyarrow infers other types.
FACTORIES = {name: kind for name, kind in TYPES.items() if name[0] in "iu"} | dict(
    pair.split(":")
    for pair in (
        "bool:bool_ boolean:bool_ f32:float32 float:float32 f64:float64 double:float64 "
        "tinyint:int8 smallint:int16 int:int32 bigint:int64 "
        "str:string text:string ascii:string varchar:string bytes:binary blob:binary "
        "s8:int8 s16:int16 s32:int32 s64:int64 char:string string:string list<u8>:binary"
    ).split()
)


class Threads(Protocol):
    """Ways to run code that takes long in threads."""

    async def import_module(self, name: str) -> Arrow:
        """Import a module, and return it."""

    async def read(self, function: Callable[..., T], *values: object) -> T:
        """Call a function that may run the user's code, for any time; return its result."""

    async def convert(self, function: Callable[..., T], *values: object) -> T:
        """Call a function that takes a while but waits for nothing; return its result."""


def shown_type(kind: Arrow) -> str:
    """Return the name of an Arrow type for messages; that of a struct has all of its fields."""
    return printable(str(kind), 100)


def is_arrow(value: object) -> bool:
    """Return whether a value has Arrow's C data interface."""
    return hasattr(value, "__arrow_c_array__") or hasattr(value, "__arrow_c_stream__")


async def load(threads: Threads) -> Arrow:
    """Import pyarrow, and return it.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    if "pyarrow" in sys.modules:
        return sys.modules["pyarrow"]
    try:
        return await threads.import_module("pyarrow")
    except ImportError as error:
        raise ImportError(
            "columns in Arrow's format take pyarrow: pip install '.[arrow]'"
        ) from error


async def table_columns(table: Arrow, threads: Threads) -> list[Arrow]:
    """Return the columns of a table or record batch, as pyarrow's objects."""
    pa = await load(threads)
    if not isinstance(table, (pa.Table, pa.RecordBatch)):
        kind = type(table)
        try:
            # Reading a stream may run a query.
            table = await threads.read(pa.table, table)
        except (pa.ArrowInvalid, TypeError, ValueError) as error:
            if hasattr(kind, "columns") or hasattr(kind, "column_names"):
                raise
            raise TypeError(
                "map takes a list with a column for each argument, or a table in Arrow's format, "
                f"got {kind.__name__}: for one column, write map([column])"
            ) from error
    return list(table.columns)


async def arrow_column(value: Arrow, threads: Threads) -> ArrowColumn:
    """Return the column for a value that has Arrow's C data interface."""
    pa = await load(threads)
    library = type(value).__module__.partition(".")[0]
    if isinstance(value, pa.Array):
        return ArrowColumn(pa, value.type, [value])
    if not isinstance(value, pa.ChunkedArray):
        if not hasattr(value, "__arrow_c_stream__"):
            array = pa.array(value)
            return ArrowColumn(pa, array.type, [array], library)
        value = await threads.read(pa.chunked_array, value)
    if pa.types.is_struct(value.type) and value.type.num_fields == 1:
        (value,) = value.flatten()  # a table of one column
    return ArrowColumn(pa, value.type, value.chunks, library)


def whole_column(column: Arrow) -> ArrowColumn:
    """Return the column for one of pyarrow's that has one chunk, or is an array."""
    array = one_chunk(column)
    return ArrowColumn(sys.modules["pyarrow"], array.type, [array])


@final
class ArrowColumn(Column):
    """A column of an Arrow array in one or several chunks.

    Args:
        pa: pyarrow.
        kind: its type.
        chunks: the chunks.
        library: the package that it came from, for messages.
    """

    def __init__(
        self, pa: Arrow, kind: Arrow, chunks: Sequence[Arrow], library: str = "pyarrow"
    ) -> None:
        self._pa = pa
        self._library = library
        self._type = kind
        self._chunks = [chunk for chunk in chunks if len(chunk)]
        self._starts = [0, *itertools.accumulate(map(len, self._chunks))]
        self.rows: int = self._starts[-1]
        self.nullable = any(chunk.null_count for chunk in self._chunks)

    def use(self, cell: Cell) -> None:
        wanted = TYPES[cell.name]
        if str(self._type) == "null":
            # An array of type null has only nulls, and no bytes for them.
            kind = getattr(self._pa, FACTORIES[cell.name])()
            self._chunks = [self._pa.nulls(len(chunk), kind) for chunk in self._chunks]
        elif str(self._type) != wanted:
            raise TypeError(
                f"takes an Arrow array of {wanted}, got one of {shown_type(self._type)}: "
                f"give {self._cast(cell)}"
            )
        self._cell = cell

    def _cast(self, cell: Cell) -> str:
        name = numpy_name(cell)
        if self._library == "polars":
            name = "Boolean" if cell.truth else name.capitalize().replace("Uint", "UInt")
            return f"column.cast(polars.{name})"
        column = "column" if self._library == "pyarrow" else "pyarrow.chunked_array(column)"
        return f"{column}.cast(pyarrow.{FACTORIES[cell.name]}())"

    async def bytes_chunks(self, name: str, threads: Threads) -> list[Arrow] | None:
        """Return the chunks of a column of text or bytes, or None if it has another type.

        Dictionaries and views become plain arrays, in a thread if there are many rows.

        Args:
            name: ``"string"`` or ``"binary"``.
            threads: where to convert many rows.

        Raises:
            ValueError: the array is damaged, or not UTF-8.
        """
        pa, kind = self._pa, str(self._type)
        if kind.startswith("dictionary<values="):
            kind = str(self._type.value_type)
        if kind not in (name, f"large_{name}", f"{name}_view"):
            return None
        wanted = getattr(pa, name)() if str(self._type) == name else getattr(pa, f"large_{name}")()

        def convert() -> list[Arrow]:
            chunks = []
            for chunk in self._chunks:
                if pa.types.is_dictionary(chunk.type):
                    plain = chunk.dictionary.cast(wanted)  # pyarrow can't take from views
                    chunk = pa.DictionaryArray.from_arrays(chunk.indices, plain)
                chunks.append(chunk.cast(wanted))
            for chunk in chunks:
                chunk.validate(full=True)
            return chunks

        try:
            return await threads.convert(convert) if self.rows > FEW else convert()
        except pa.ArrowInvalid as error:
            raise ValueError(f"its Arrow array is damaged: {error}") from None

    def _parts(self, start: int, stop: int) -> list[Arrow]:
        """Return the arrays that make up these rows."""
        parts = []
        number = bisect.bisect_right(self._starts, start) - 1
        while start < stop:
            begin, end = self._starts[number : number + 2]
            part = self._chunks[number].slice(start - begin, min(stop, end) - start)
            parts.append(part)
            start, number = start + len(part), number + 1
        return parts

    def raw(self, start: int, stop: int) -> bytes | memoryview:
        parts = [self._bytes(part) for part in self._parts(start, stop)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _bytes(self, part: Arrow) -> memoryview:
        if self._cell.truth:
            part = part.cast(self._pa.uint8())  # a bool of Arrow's takes a bit
        size = self._cell.size
        data = memoryview(part.buffers()[1]).cast("B")
        return data[part.offset * size : (part.offset + len(part)) * size]

    def validity(self, start: int, stop: int) -> int | None:
        if not self.nullable:
            return None
        bits = place = 0
        for part in self._parts(start, stop):
            bits |= valid_bits(part) << place
            place += len(part)
        return bits

    def values(self, start: int, stop: int) -> Sequence[object]:
        return [value for part in self._parts(start, stop) for value in part.to_pylist()]


def one_chunk(column: Arrow) -> Arrow:
    """Return the array of a column of pyarrow's; None: it has several chunks, or none."""
    if not hasattr(column, "num_chunks"):
        return column
    return column.chunk(0) if column.num_chunks == 1 else None


def cells_of(cell: Cell, column: Arrow) -> memoryview | None:
    """Return the bytes of a column of pyarrow's; None: it is not an array of just such cells."""
    array = one_chunk(column)
    if array is None or cell.truth or str(array.type) != TYPES[cell.name] or array.null_count:
        return None
    start = array.offset * cell.size
    return memoryview(array.buffers()[1]).cast("B")[start : start + len(array) * cell.size]


def valid_bits(part: Arrow) -> int:
    """Return a bit for each row of an array, the first row's lowest; 0 means null."""
    every: int = (1 << len(part)) - 1
    if not part.null_count:
        return every
    data = memoryview(part.buffers()[0]).cast("B")
    first, odd = divmod(part.offset, 8)
    end = -(-(part.offset + len(part)) // 8)
    bits: int = int.from_bytes(data[first:end], "little") >> odd & every
    return bits


def from_cells(cell: Cell, rows: int, data: object, validity: bytes | None) -> Arrow:
    """Return an Arrow array of the cells in a buffer, which is not copied."""
    pa = sys.modules["pyarrow"]
    name = "uint8" if cell.truth else FACTORIES[cell.name.removeprefix("cut ")]
    buffers = [None if validity is None else pa.py_buffer(validity), pa.py_buffer(data)]
    array = pa.Array.from_buffers(getattr(pa, name)(), rows, buffers)
    return array.cast(pa.bool_()) if cell.truth else array


def from_bytes(kind: str, rows: int, validity: bytes | None, ends: Arrow, data: Arrow) -> Arrow:
    """Return an Arrow array of text or bytes, with 64-bit offsets and data in buffers."""
    pa = sys.modules["pyarrow"]
    small = getattr(pa, FACTORIES[kind])()
    large = pa.large_string() if small == pa.string() else pa.large_binary()
    buffers = [
        None if validity is None else pa.py_buffer(validity),
        *map(pa.py_buffer, (ends, data)),
    ]
    array = pa.Array.from_buffers(large, rows, buffers)
    # Where 32-bit offsets suffice, which is nearly always, the array has the usual type.
    return array.cast(small) if len(data) <= MAX_OFFSET else array


def together(parts: Sequence[object]) -> Arrow:
    """Return one Arrow array of several."""
    return sys.modules["pyarrow"].concat_arrays(parts)


def form_of(binding: object) -> ArrowForm | None:
    """Return the form of the results of a binding; None: the ABI does not say it.

    Raises:
        TypeError: Arrow has no type for them.
    """
    known: Callable[[], ArrowForm | None] | None = getattr(binding, "arrow_form", None)
    return None if known is None else known()


def from_values(kind: str, values: Sequence[Any], form: ArrowForm | None = None) -> Arrow:
    """Return an Arrow array of Python values.

    Args:
        kind: type of the values.
        values: the values.
        form: their form; None: it is that of `kind`, or Arrow infers it.

    Raises:
        TypeError: Arrow has no type for them.
    """
    pa = sys.modules["pyarrow"]
    found: Arrow = None
    if form is not None:
        found = _type_of(pa, form)
        if (convert := form.convert) is not None:
            values = [None if one is None else convert(one) for one in values]
    elif kind in FACTORIES:
        found = getattr(pa, FACTORIES[kind])()
    try:
        return pa.array(values, found)
    except (pa.ArrowException, OverflowError) as error:
        raise TypeError(f"values of type {kind} don't fit into an Arrow array: {error}") from None


def _type_of(pa: Arrow, form: ArrowForm) -> Arrow:
    """Return pyarrow's type of a form."""
    parts = [(name, _type_of(pa, part)) for name, part in form.parts]
    if form.factory == "struct":
        return pa.struct(parts)
    return getattr(pa, form.factory)(*(part for _, part in parts))
