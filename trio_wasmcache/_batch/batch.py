"""Batches: one function called for every row of some columns, at the speed of wasm.

1. All columns are checked first: a value that does not fit raises before any wasm runs.
2. A driver (`_core/wasm/driver`, `_core/wasm/memory_driver`) loops over the rows: chunk by chunk,
   columns are copied into its scratch, it is driven like any call, and results are copied out
   (`chunks`, `byte_chunks`).
3. Batches without a driver, such as those of an ABI of the user's own, run row by row (`row_loop`).
4. Either all rows have a result, or the batch raises and drops the results so far. With
   `RowErrors`, rows that fail have null as their result, and their errors are kept there.
"""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard, TypeVar, final

import attrs

from .._abi.base import Binding, Value
from .._abi.batching import Bulk
from .._abi.gil import breathe, is_large
from .._abi.plain import PlainAbi, PlainType, cell_name
from .._core.config import WASM_PAGE
from .._core.errors import GuestError, ResultTooLargeError
from .._core.keys import FunctionKey
from .._core.tally import NUMBER, SLOT
from .._core.text import listed, shown
from .._core.wasm.driver import CELLS, Shape, layout
from .._core.wasm.memory_driver import memory_layout
from .._core.wasm.memory_layout import MemoryShape
from .._core.wit.values import python_name
from .._runtime.call import Call
from .._runtime.metered import MeteredGuest
from . import arrow as _arrow, byte_chunks
from .byte_chunks import MemoryChunks, Packed
from .byte_columns import ArrowBytes, PackedColumn, row_values
from .chunks import Failing, NumberChunks
from .collectors import BytesSink, Sink
from .columns import Column, MisfitError, Misfits, column, to_collect
from .failures import RowErrors
from .row_loop import FAILED, in_row, map_rows, next_row
from .small import SmallBatches

# Values that are packed between two looks whether a turn of the loop is due, and how long that may
# take (seconds). More than `HEAVY_ROWS` values that take microseconds each are packed in a thread.
PIECE, PIECE_TIME, HEAVY_ROWS = 2048, 0.0003, 64

AnyShape = TypeVar("AnyShape", Shape, MemoryShape)


async def map_columns(
    call: Call, columns: object, rows: int | None, errors: RowErrors | None
) -> Value:
    """Call a function for every row of some columns: see `Lease.map`.

    Args:
        call: the batch.
        columns: the columns.
        rows: number of rows; None: that of the columns.
        errors: where errors of rows go that are null; None: the first one is raised.
    """
    try:
        return await _map_columns(call, columns, rows, errors)
    except GuestError as error:
        if error.row is not None:
            # Frames of the batch would keep its packed columns.
            error.__traceback__ = None
        raise


async def _map_columns(
    call: Call, columns: object, rows: int | None, errors: RowErrors | None
) -> Value:
    binding = call.bound.binding
    numbers = isinstance(binding, PlainAbi)
    if isinstance(columns, Mapping) and (names := getattr(binding, "names", ())):
        columns = _by_name(call.name, names, columns)
    if type(columns) in (list, tuple) and not any(map(_arrow.is_arrow, columns)):  # type: ignore[call-overload]
        # Without a cancel scope, which costs as much as some hundred rows.
        arrow, found = False, _plain_columns(call.name, columns, not numbers)  # type: ignore[arg-type]
        call.check_open()
    else:
        arrow, found = await call.unless_ended(
            _look_at, call.name, columns, not numbers, call.runner
        )
    rows = call.rows = _count(call.bound.entry.function.key, binding, found, rows)
    if isinstance(binding, PlainAbi):
        return await _map_numbers(call, binding, found, rows, arrow, errors)
    return await _map_values(call, found, rows, arrow, errors)


async def go_on(
    call: Call,
    small: SmallBatches,
    columns: Sequence[Value],
    rows: int,
    arrow: bool,
    fuel: int,
    begun: object,
) -> Value:
    """Go on with a small batch that has not ended well in its first slice.

    Args:
        call: the batch.
        small: what has begun it.
        columns: its columns.
        rows: number of its rows.
        arrow: whether a column is Arrow's.
        fuel: units of fuel with which it has begun.
        begun: the exception, or the result, of `SmallBatches.begin`.
    """
    found = [
        _arrow.whole_column(value)
        if _arrow.is_arrow(value)
        else _plain_column(call.name, number, value, False)
        for number, value in enumerate(columns, 1)
    ]
    for one, kind in zip(found, small.binding.args, strict=True):
        one.use(CELLS[cell_name(kind)])
        if one.packs:
            one.pack(0, rows)
    names = tuple(cell_name(kind, cut=True) for kind in small.binding.returns)
    sinks = _number_sinks(call, names, found, rows, arrow=arrow, nones=False)
    for sink in sinks:
        sink.marked = False
    driver, binding, made = small.driver, small.binding, small.layout
    batch = NumberChunks(call, driver, binding, made, found, rows, sinks, None, begun=True)
    await batch.go_on_begun(fuel, begun)
    return _together([sink.result() for sink in sinks])


async def _look_at(
    what: str, columns: object, objects: bool, threads: _arrow.Threads
) -> tuple[bool, list[Column]]:
    """Return whether some columns are Arrow's, and all columns."""
    if _arrow.is_arrow(columns):
        columns = await _arrow.table_columns(columns, threads)
    if not isinstance(columns, (list, tuple)):
        raise TypeError(
            "map takes a list with a column for each argument, such as map([column]), or a table "
            f"in Arrow's format, got {type(columns).__name__}: {_to_list(columns)}"
        )
    found: list[Column] = []
    for number, value in enumerate(columns, start=1):
        if _arrow.is_arrow(value):
            found.append(await _arrow.arrow_column(value, threads))
        else:
            found.append(_plain_column(what, number, value, objects))
    return any(isinstance(one, _arrow.ArrowColumn) for one in found), found


def _by_name(what: str, names: Sequence[str], columns: Mapping[Any, Value]) -> list[Value]:
    """Return columns that are given by the names of arguments, in their order.

    Raises:
        TypeError: there is none for an argument, two, or one for something else.
    """
    given = dict(columns)
    found = [
        [given.pop(key) for key in dict.fromkeys((name, python_name(name))) if key in given]
        for name in names
    ]
    if given or any(len(values) != 1 for values in found):
        raise TypeError(
            f"{what} takes a column for each of {listed(list(map(python_name, names)))}, got "
            f"{shown(list(columns))}"
        )
    return [value for (value,) in found]


def _plain_columns(what: str, columns: Sequence[Value], objects: bool) -> list[Column]:
    """Return all columns, none of which is Arrow's."""
    found = enumerate(columns, start=1)
    return [_plain_column(what, number, value, objects) for number, value in found]


def _plain_column(what: str, number: int, value: Value, objects: bool) -> Column:
    try:
        return column(value, objects=objects)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"argument {number} of {what}: {error}") from None


def _to_list(columns: object) -> str:
    """Return how to make something a list of columns, for a message."""
    remedy = to_collect(columns)
    if isinstance(columns, Mapping):
        return "give a list of its values, in the order of the arguments"
    if remedy is not None:
        return remedy
    return "for one column, write map([column])"


def _count(what: FunctionKey, binding: Binding, columns: Sequence[Column], rows: int | None) -> int:
    """Return the number of rows.

    Raises:
        TypeError: there are too many columns, or too few; or `rows` is not an int.
        ValueError: columns differ in length; or none has a length, and `rows` is None.
    """
    if len(columns) != binding.arity:
        raise _wrong_number(what, binding.arity, columns)
    lengths = {n: one.rows for n, one in enumerate(columns, 1) if one.rows is not None}
    if rows is not None:
        try:
            rows = operator.index(rows)
        except TypeError:
            raise TypeError(f"rows takes an int, got {type(rows).__name__}") from None
        if not 0 <= rows <= sys.maxsize:
            raise ValueError(f"there can't be {rows} rows")
    known = set(lengths.values()) | (set() if rows is None else {rows})
    if len(known) > 1:
        listed = ", ".join(f"that of argument {n} has {length}" for n, length in lengths.items())
        asked = "" if rows is None else f"; rows={rows}"
        raise ValueError(f"columns differ in their number of rows: {listed}{asked}")
    if not known and not columns:
        raise ValueError(f"{what} takes no arguments: give the number of rows, map([], rows=...)")
    if not known:
        raise ValueError(
            f"no column of {what} says how many rows there are: give a list or an array as a "
            "column, or map(columns, rows=...)"
        )
    return known.pop()


def _wrong_number(what: FunctionKey, arity: int, columns: Sequence[Column]) -> TypeError:
    """Return the error for a number of columns that is not that of the arguments."""
    noun = "argument" if arity == 1 else "arguments"
    if arity == 1 and columns and all(one.rows is None for one in columns):
        remedy = "; for one column, write map([column])"
    elif len({one.rows for one in columns}) == 1 and columns[0].rows == arity:
        remedy = "; if they are rows, write map(list(zip(*rows)))"
    else:
        remedy = ""
    return TypeError(
        f"{what} takes {arity} {noun}, and map a column for each, "
        f"got {len(columns)} of them{remedy}"
    )


async def _map_numbers(
    call: Call,
    binding: PlainAbi,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
    errors: RowErrors | None,
) -> Value:
    packer = Packer(call, columns, rows, errors)
    for number, (one, kind) in enumerate(zip(columns, binding.args, strict=True)):
        try:
            one.use(CELLS[cell_name(kind)])
        except MisfitError:
            await packer.refuse_all()
        except TypeError as error:
            raise TypeError(f"{binding.place(number + 1)}: {kind.name} {error}") from None
    refuses_none = call.bound.definition.called_on_null
    misfits = await packer.pack_all(columns, refuses_none=refuses_none)
    shape = Shape(
        tuple(cell_name(kind) for kind in binding.args),
        tuple(cell_name(kind, cut=True) for kind in binding.returns),
        any(one.nullable for one in columns),
        binding.post is not None,
    )
    nones = not arrow and (errors is not None or any(one.holds_none for one in columns))
    sinks = _number_sinks(call, shape.results, columns, rows, arrow=arrow, nones=nones)
    for sink in sinks:
        sink.marked = shape.nullable
    if len(misfits) == rows:
        await _add_nulls(call, sinks, rows)
    else:
        exports = {"function": call.bound.definition.export}
        if binding.post is not None:
            exports["post"] = binding.post
        code, driver = call.bound.attached(shape) or (None, None)
        if code is None or driver is None:
            fitted = _fitted(call, shape)
            code = await call.unless_ended(call.engine.driver, fitted, call.bound.tier)
            assert code is not None
            driver = call.attach(code, exports)
            call.bound.note_attached(shape, code, driver)
        if call.bound.small is None and not (shape.nullable or call.bound.recorded):
            # Not only behind `attach`: the function may have been bound anew since.
            call.bound.small = SmallBatches(binding, code.shape, driver, call.bound.total_fuel)
        failing = None if errors is None else Failing(errors, misfits, code, exports)
        made = layout(code.shape)
        batch = NumberChunks(call, driver, binding, made, columns, rows, sinks, failing)
        await batch.run()
    return _together([sink.result() for sink in sinks])


def _fitted(call: Call, shape: AnyShape) -> AnyShape:
    """Return the shape, with a scratch with which the instance may be kept, if there is one."""
    config = call.runner.config
    room = min(config.max_instance_size, config.max_size) - call.native.measure()
    pages = room // WASM_PAGE
    return attrs.evolve(shape, pages=pages) if 0 < pages < shape.pages else shape


async def _map_values(
    call: Call,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
    errors: RowErrors | None,
) -> Value:
    native, tally = call.native, call.tally
    form = _arrow.form_of(call.bound.binding) if arrow else None
    bulk = byte_chunks.bulk_of(call.bound.binding, MeteredGuest(native, tally))
    packed: list[Column | Packed] | None = None
    misfits: tuple[int, ...] = ()
    if bulk is not None and rows:
        refuses_none = call.bound.definition.called_on_null and not bulk.shape.passes_nulls
        packer = Packer(call, columns, rows, errors)
        packed = await _packed(packer, bulk, columns, refuses_none=refuses_none)
        if packed is not None:
            misfits = await packer.pack_all(packed, refuses_none=refuses_none)
    if bulk is None or packed is None:
        return await map_rows(call, columns, rows, arrow, errors)
    code, driver = call.bound.attached(bulk.shape) or (None, None)
    shape = _fitted(call, bulk.shape) if code is None else code.shape
    made = memory_layout(shape)
    scalars = sum(one.size(0, 1) for one in packed if _is_packed(one) and one.rows is None)
    if scalars > made.data_size:
        return await map_rows(call, columns, rows, arrow, errors, misfits)
    if code is None:
        code = await call.unless_ended(call.engine.driver, shape, call.bound.tier)
    if code is None:
        return await map_rows(call, columns, rows, arrow, errors, misfits)
    sinks: list[Sink | BytesSink]
    if bulk.wire is not None:
        kind = call.bound.definition.returns
        assert isinstance(kind, str)
        sinks = [BytesSink(kind, bulk.wire, bulk.lift, arrow, rows, tally, form)]
    else:
        nones = not arrow and (errors is not None or any(one.holds_none for one in packed))
        names = bulk.shape.results
        sinks = [*_number_sinks(call, names, packed, rows, arrow=arrow, nones=nones)]
    if len(misfits) == rows:
        await _add_nulls(call, sinks, rows)
        return _together([sink.result() for sink in sinks])
    if driver is None:
        driver = call.attach(code, bulk.exports)
        call.bound.note_attached(bulk.shape, code, driver)
    failing = None if errors is None else Failing(errors, misfits, code, bulk.exports)
    batch = MemoryChunks(call, driver, bulk, made, packed, rows, sinks, failing)
    while batch.done < rows:
        await batch.run()
        if batch.large is not None:
            await batch.settle()
        elif batch.done < rows:
            row = batch.done
            result = await next_row(call, row, batch.values(row), errors)
            if result is FAILED:
                batch.skip_failed()
            else:
                batch.skip(result)
    return _together([sink.result() for sink in sinks])


async def _add_nulls(call: Call, sinks: Sequence[Sink | BytesSink], rows: int) -> None:
    """Add nulls for all rows, as no row's values fit."""
    for start in range(0, rows, PIECE):
        for sink in sinks:
            for _ in range(start, min(start + PIECE, rows)):
                sink.add_null()
        await call.runner.pass_turn(call.share)
        call.check_open()


def _number_sinks(
    call: Call,
    names: Sequence[str],
    columns: Sequence[Column | Packed],
    rows: int,
    *,
    arrow: bool,
    nones: bool,
) -> list[Sink]:
    """Return sinks for results that are numbers, in cells of these names.

    Raises:
        ResultTooLargeError: the results will exceed `max_result_size`; nothing has run.
    """
    tally, memory, cells = call.tally, call.results, [CELLS[name] for name in names]
    try:
        return [Sink(cell, arrow, nones, rows, memory, tally) for cell in cells]
    except ResultTooLargeError as error:
        each = sum(SLOT + NUMBER if nones else cell.size for cell in cells)
        error.row = tally.limit // each
        call.refuse(error, row_values(columns, error.row))
        raise


async def _packed(
    packer: Packer, bulk: Bulk, columns: Sequence[Column], *, refuses_none: bool
) -> list[Column | Packed] | None:
    """Return the columns for a memory driver; None if the batch must run row by row.

    Raises:
        TypeError, ValueError, OverflowError: a scalar does not fit.
        ValueError: an Arrow array is damaged.
    """
    call = packer.call
    packed: list[Column | Packed] = []
    for number, (one, kind) in enumerate(zip(columns, bulk.args, strict=True), start=1):
        if isinstance(kind, PlainType):
            try:
                one.use(CELLS[cell_name(kind)])
            except MisfitError:
                await packer.refuse_all()
            except TypeError:
                return None  # numbers of another type, which may fit one by one
            packed.append(one)
            continue
        chunks = None
        if isinstance(one, _arrow.ArrowColumn) and kind.arrow:
            try:
                chunks = await call.unless_ended(one.bytes_chunks, kind.arrow, call.runner)
            except ValueError as error:
                raise ValueError(f"argument {number} of {bulk.what}: {error}") from None
        if isinstance(one, _arrow.ArrowColumn) and chunks is not None:
            packed.append(ArrowBytes(one, chunks))
        else:
            packed.append(PackedColumn(one, kind, refuses_none=refuses_none))
    return packed


def _is_packed(one: Column | Packed) -> TypeGuard[Packed]:
    return not isinstance(one, Column)


@final
class Packer:
    """Checks and converts the values of all columns of a batch, before anything runs.

    Args:
        call: the batch.
        columns: the columns as they were given, for the values in errors.
        rows: number of rows.
        errors: where errors of rows go that are null; None: the first one is raised.
    """

    def __init__(
        self, call: Call, columns: Sequence[Column], rows: int, errors: RowErrors | None
    ) -> None:
        self.call = call
        self._columns = columns
        self._rows = rows
        self._errors = errors
        self._misfits = None if errors is None else Misfits(errors.max_errors)

    async def refuse_all(self) -> None:
        """Note that one value for all rows does not fit.

        Raises:
            TypeError, ValueError, OverflowError: of the first row that may not be null.
        """
        try:
            for row in range(self._rows):
                self._refuse(row)
        except MisfitError as misfit:
            raise await self._error(misfit.row) from None

    def _refuse(self, row: int) -> None:
        if self._misfits is None:
            raise MisfitError(row)
        self._misfits.add(row)

    async def pack_all(
        self, packed: Sequence[Column | Packed], *, refuses_none: bool
    ) -> tuple[int, ...]:
        """Check and convert all values of columns.

        Args:
            packed: the columns to convert.
            refuses_none: whether a null is a value that does not fit.

        Returns:
            The rows whose values do not fit, and which are null; their errors are noted.

        Raises:
            TypeError, ValueError, OverflowError: a value does not fit.

        **Checkpoint:** maybe.
        **Cancellation:** nothing has run.
        """
        rows = self._rows
        for one in packed:
            if one.rows is not None:
                one.misfits = self._misfits
            try:
                if one.packs:
                    await _pack(self.call, one, rows)
            except MisfitError as misfit:
                if one.rows is not None:
                    raise await self._error(misfit.row) from None
                await self.refuse_all()
            if one.nullable and refuses_none and rows:
                try:
                    for row in _nulls(one, rows):
                        self._refuse(row)
                except MisfitError as misfit:
                    raise await self._error(misfit.row) from None
        if self._misfits is None or not self._misfits.rows:
            return ()
        return await self._note()

    async def _note(self) -> tuple[int, ...]:
        """Note the errors of all rows so far whose values do not fit; return the rows."""
        assert self._misfits is not None
        assert self._errors is not None
        call, binding = self.call, self.call.bound.binding
        found = tuple(sorted(self._misfits.rows))
        for start in range(0, len(found), HEAVY_ROWS):
            with call.runner.meter(call.share):
                for row in found[start : start + HEAVY_ROWS]:
                    self._errors.note_misfit(row, partial(_misfit, binding, self._columns, row))
            await call.yield_if_due()
        return found

    async def _error(self, row: int) -> Exception:
        """Return the error that ends the batch, in a row whose values do not fit."""
        if self._misfits is not None:
            await self._note()
        return _misfit(self.call.bound.binding, self._columns, row)


async def _pack(call: Call, one: Column | Packed, rows: int) -> None:
    end = 0 if not one.packs else rows if one.rows is not None else 1
    if isinstance(one, PackedColumn) and one.heavy and end:
        if end > HEAVY_ROWS or is_large(one.values(0, end)):
            await _pack_in_thread(call, one, end)
        else:
            one.pack(0, end)
        return
    start, piece = 0, PIECE
    while start < end:
        stop = min(start + piece, end)
        if isinstance(one, PackedColumn):
            stop = one.stop_of_piece(start, stop)
        began = time.perf_counter()
        with call.runner.meter(call.share):
            one.pack(start, stop)
        took = time.perf_counter() - began
        if start or took > PIECE_TIME:  # a short first piece of each column is free
            await call.yield_if_due()
        start = stop
        if took > PIECE_TIME:
            piece = max(1, piece // 2)
        elif took < PIECE_TIME / 4:
            piece = min(2 * piece, PIECE)


async def _pack_in_thread(call: Call, one: Packed, end: int) -> None:
    abandoned = False

    def pack() -> None:
        for start in range(0, end, HEAVY_ROWS):
            if abandoned:
                return
            one.pack(start, min(start + HEAVY_ROWS, end))
            breathe()

    try:
        await call.convert(pack)
    finally:
        abandoned = True


def _misfit(binding: Binding, columns: Sequence[Column], row: int) -> Exception:
    """Return the error for a row whose values don't fit."""
    values = row_values(columns, row)
    return in_row(binding.explain(values), row, values)


def _nulls(one: Column | Packed, rows: int) -> Iterator[int]:
    """Return the rows with a null, in order."""
    digits = f"{~(one.validity(0, rows) or 0) & (1 << rows) - 1:b}"[::-1]
    row = digits.find("1")
    while row >= 0:
        yield row
        row = digits.find("1", row + 1)


def _together(results: list[object]) -> Value:
    """Return the result of `map`: a column, several in a tuple, or None."""
    return results[0] if len(results) == 1 else tuple(results) or None
