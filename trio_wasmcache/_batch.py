"""Batches: one function called for every row of some columns, at the speed of wasm.

1. All columns are looked at first: what does not fit raises before any wasm runs.
2. A driver does the loop (`_core/driver`, `_core/memory_driver`): chunk by chunk, columns are
   copied into its scratch, it is driven like any call, and results are copied out (`_chunks`).
3. What no driver does, such as an ABI of the user's own, goes row by row (`_rows`).
4. Either all rows have a result, or the batch raises, and what there was of results is forgotten.
"""

from __future__ import annotations

import operator
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from . import _arrow, _calls
from ._abi.bulk import Bulk
from ._abi.pace import breathe, is_large
from ._abi.plain import PlainAbi, PlainType, cell_name
from ._abi.protocol import Crossing, Guest
from ._chunks import NumberChunks
from ._columns import Column, MisfitError, column
from ._core.driver import CELLS, Shape, layout
from ._core.errors import GuestError, ResultTooLargeError
from ._core.memory_driver import memory_layout
from ._core.tally import NUMBER, SLOT, Tally
from ._engine.seam import GuestFunction, GuestInstance
from ._memory_chunks import MemoryChunks, Packed
from ._metered import MeteredGuest
from ._packed import ArrowBytes, PackedColumn
from ._rows import in_row, map_rows, next_row
from ._sinks import BytesSink, Sink

if TYPE_CHECKING:
    from ._lease import Lease

# Values that are packed between two turns of the loop, at most, and how long that may take
# (seconds). Where each takes microseconds, many are packed in a thread.
PIECE, PIECE_TIME, HEAVY_ROWS = 2048, 0.0003, 64


async def map_columns(lease: Lease, columns: Any, rows: int | None) -> Any:
    """See `Lease.map`."""
    try:
        return await _map_columns(lease, columns, rows)
    except GuestError as error:
        if error.row is not None:
            # Frames of the batch have all of its columns once more, packed.
            error.__traceback__ = None
        raise


async def _map_columns(lease: Lease, columns: Any, rows: int | None) -> Any:
    share, runner = lease._share, lease._shell.runner
    if lease._guest is None:
        raise lease._unusable()
    await runner.pass_turn(share)
    guest = lease._guest
    if guest is None:
        raise lease._unusable()
    native = _calls._begin(lease)
    book = lease._shell.result_book
    tally = book.begin()
    try:
        crossing = lease._crossing
        numbers = isinstance(crossing, PlainAbi)
        arrow, found = await lease._unless_closed(
            _look_at, lease._name, columns, not numbers, lease._shell.runner
        )
        rows = _count(crossing, found, rows)
        if isinstance(crossing, PlainAbi):
            result = await _map_numbers(lease, native, crossing, found, rows, arrow, tally)
        else:
            result = await _map_values(lease, native, guest, found, rows, arrow, tally)
    except BaseException:
        if not lease._broken:
            lease._make_usable(guest)
        raise
    finally:
        book.end(tally)
        _calls._end(lease, native)
    lease._make_usable(guest)
    return result


async def _look_at(
    what: str, columns: Any, objects: bool, threads: _arrow.Threads
) -> tuple[bool, list[Column]]:
    """Whether some are Arrow's, and all columns."""
    if _arrow.is_arrow(columns):
        columns = await _arrow.table_columns(columns, threads)
    if not isinstance(columns, (list, tuple)):
        raise TypeError(
            "map takes a list with a column for each argument, such as map([column]), or a table "
            f"in Arrow's format, got {type(columns).__name__}"
        )
    found: list[Column] = []
    for number, value in enumerate(columns, start=1):
        if _arrow.is_arrow(value):
            found.append(await _arrow.arrow_column(value, threads))
            continue
        try:
            found.append(column(value, objects=objects))
        except (TypeError, ValueError) as error:
            raise type(error)(f"argument {number} of {what}: {error}") from None
    return any(isinstance(one, _arrow.ArrowColumn) for one in found), found


def _count(crossing: Crossing, columns: Sequence[Column], rows: int | None) -> int:
    """How many rows there are.

    Raises:
        TypeError: there are too many columns, or too few; `rows` is no int.
        ValueError: they differ in length, or nothing says how many rows there are.
    """
    if len(columns) != crossing.arity:
        raise crossing.explain(tuple(columns))
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
    if not known:
        raise ValueError("no column says how many rows there are; give map(columns, rows=...)")
    return known.pop()


async def _map_numbers(
    lease: Lease,
    native: GuestInstance,
    crossing: PlainAbi,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
    tally: Tally,
) -> Any:
    assert lease._registered is not None
    for number, (one, kind) in enumerate(zip(columns, crossing.args, strict=True)):
        try:
            one.use(CELLS[cell_name(kind)])
        except MisfitError as misfit:
            if not rows:
                continue  # no row takes that scalar
            raise _misfit(crossing, columns, misfit.row) from None
        except TypeError as error:
            raise TypeError(f"{crossing.place(number + 1)}: {kind.name} {error}") from None
    refuses_none = lease._registered.called_on_null
    await _pack_all(lease, columns, columns, rows, refuses_none=refuses_none)
    shape = Shape(
        tuple(cell_name(kind) for kind in crossing.args),
        tuple(cell_name(kind, cut=True) for kind in crossing.returns),
        any(one.nullable for one in columns),
        crossing.post is not None,
    )
    nones = not arrow and any(one.holds_none for one in columns)
    sinks = _number_sinks(lease, shape.results, columns, rows, tally, arrow=arrow, nones=nones)
    if rows:
        code = await lease._unless_closed(lease._shell.engine.driver, shape)
        assert code is not None
        held = lease._held
        assert held is not None
        exports = {"function": held.registered.export}
        if crossing.post is not None:
            exports["post"] = crossing.post
        driver = held.attach(lease._shell, code, exports)
        batch = NumberChunks(
            native, driver, crossing, layout(shape), columns, rows, sinks, lease._total_fuel
        )
        await batch.run(lease)
    return _together([sink.result() for sink in sinks])


async def _map_values(
    lease: Lease,
    native: GuestInstance,
    guest: GuestFunction,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
    tally: Tally,
) -> Any:
    bulk = _bulk_of(lease._crossing, MeteredGuest(native, tally))
    packed = None
    held = lease._held
    assert held is not None
    if bulk is not None and rows:
        refuses_none = held.registered.called_on_null and not bulk.shape.passes_nulls
        packed = await _packed(lease, bulk, columns, refuses_none=refuses_none)
        if packed is not None:
            await _pack_all(lease, columns, packed, rows, refuses_none=refuses_none)
    if bulk is None or packed is None:
        return await map_rows(lease, native, guest, columns, rows, arrow, tally)
    made = memory_layout(bulk.shape)
    scalars = sum(one.size(0, 1) for one in packed if _is_packed(one) and one.rows is None)
    code = None
    if scalars <= made.data_size:
        code = await lease._unless_closed(lease._shell.engine.driver, bulk.shape)
    if code is None:
        return await map_rows(lease, native, guest, columns, rows, arrow, tally)
    sinks: list[Sink | BytesSink]
    if bulk.wire is not None:
        kind = held.registered.function.returns
        assert isinstance(kind, str)
        sinks = [BytesSink(kind, bulk.wire, bulk.lift, arrow, rows, tally)]
    else:
        nones = not arrow and any(one.holds_none for one in packed)
        names = bulk.shape.results
        sinks = [*_number_sinks(lease, names, packed, rows, tally, arrow=arrow, nones=nones)]
    driver = held.attach(lease._shell, code, bulk.exports)
    batch = MemoryChunks(native, driver, bulk, made, packed, rows, sinks, lease._total_fuel, tally)
    while batch.done < rows:
        await batch.run(lease)
        if batch.large is not None:
            await batch.settle(lease)
        elif batch.done < rows:
            row = batch.done
            batch.skip(await next_row(lease, native, guest, row, batch.values(row), tally))
    return _together([sink.result() for sink in sinks])


def _number_sinks(
    lease: Lease,
    names: Sequence[str],
    columns: Sequence[Column | Packed],
    rows: int,
    tally: Tally,
    *,
    arrow: bool,
    nones: bool,
) -> list[Sink]:
    """Where results go that are numbers, in cells of these names.

    Raises:
        ResultTooLargeError: they will exceed `max_result_size`; nothing has run.
    """
    memory, cells = lease._shell.results, [CELLS[name] for name in names]
    try:
        return [Sink(cell, arrow, nones, rows, memory, tally) for cell in cells]
    except ResultTooLargeError as error:
        each = sum(SLOT + NUMBER if nones else cell.size for cell in cells)
        error.row = tally.limit // each
        values = tuple(one.values(error.row, error.row + 1)[0] for one in columns)
        _calls.refuse(lease, error, values)
        raise


def _bulk_of(crossing: Crossing, guest: Guest) -> Bulk | None:
    """How a memory driver makes the calls; None if it can't."""
    make = getattr(crossing, "bulk", None)
    try:
        bulk: Bulk | None = None if make is None else make(guest)
    except GuestError:
        return None  # the first call raises it, and names its row
    return bulk


async def _packed(
    lease: Lease, bulk: Bulk, columns: Sequence[Column], *, refuses_none: bool
) -> list[Column | Packed] | None:
    """The columns as a memory driver takes them; None if they go row by row.

    Raises:
        MisfitError, ValueError: a scalar does not fit, or what is Arrow's is damaged.
    """
    packed: list[Column | Packed] = []
    for number, (one, kind) in enumerate(zip(columns, bulk.args, strict=True), start=1):
        if isinstance(kind, PlainType):
            try:
                one.use(CELLS[cell_name(kind)])
            except MisfitError as misfit:
                raise _misfit(lease._crossing, columns, misfit.row) from None
            except TypeError:
                return None  # numbers of another type, which may fit one by one
            packed.append(one)
            continue
        chunks = None
        if isinstance(one, _arrow.ArrowColumn) and kind.arrow:
            try:
                chunks = await lease._unless_closed(
                    one.bytes_chunks, kind.arrow, lease._shell.runner
                )
            except ValueError as error:
                raise ValueError(f"argument {number} of {bulk.what}: {error}") from None
        if isinstance(one, _arrow.ArrowColumn) and chunks is not None:
            packed.append(ArrowBytes(one, chunks))
        else:
            packed.append(PackedColumn(one, kind, refuses_none=refuses_none))
    return packed


def _is_packed(one: Column | Packed) -> TypeGuard[Packed]:
    return not isinstance(one, Column)


async def _pack_all(
    lease: Lease,
    columns: Sequence[Column],
    packed: Sequence[Column | Packed],
    rows: int,
    *,
    refuses_none: bool,
) -> None:
    """Check all values of columns.

    Args:
        refuses_none: a null is a value that does not fit.

    **Checkpoint:** maybe.
    **Cancellation:** nothing has run.
    """
    for one in packed:
        try:
            await _pack(lease, one, rows)
        except MisfitError as misfit:
            raise _misfit(lease._crossing, columns, misfit.row) from None
        if one.nullable and refuses_none and rows:
            raise _misfit(lease._crossing, columns, _first_null(one, rows))


async def _pack(lease: Lease, one: Column | Packed, rows: int) -> None:
    end = 0 if not one.packs else rows if one.rows is not None else 1
    if isinstance(one, PackedColumn) and one.heavy and end:
        if end > HEAVY_ROWS or is_large(one.values(0, end)):
            await _pack_in_thread(lease, one, end)
        else:
            one.pack(0, end)
        return
    start, piece = 0, PIECE
    while start < end:
        stop = min(start + piece, end)
        began = time.perf_counter()
        with lease._shell.runner.meter(lease._share):
            one.pack(start, stop)
        took = time.perf_counter() - began
        if start:  # the first piece of each column is free
            await lease._shell.runner.pass_turn(lease._share)
            _check_open(lease)
        start = stop
        if took > PIECE_TIME:
            piece = max(1, piece // 2)
        elif took < PIECE_TIME / 4:
            piece = min(2 * piece, PIECE)


async def _pack_in_thread(lease: Lease, one: Packed, end: int) -> None:
    abandoned = False

    def pack() -> None:
        for start in range(0, end, HEAVY_ROWS):
            if abandoned:
                return
            one.pack(start, min(start + HEAVY_ROWS, end))
            breathe()

    try:
        await _calls.convert(lease, pack)
    finally:
        abandoned = True


def _check_open(lease: Lease) -> None:
    """Closing may have taken the instance away while this task let others run."""
    if lease._closed:
        raise lease._unusable()


def _misfit(crossing: Crossing, columns: Sequence[Column], row: int) -> Exception:
    """The error for values that don't fit, with their row; scalars are the same in all."""
    values = tuple(one.values(row, row + 1)[0] for one in columns)
    return in_row(crossing.explain(values), row, values)


def _first_null(one: Column | Packed, rows: int) -> int:
    bits = one.validity(0, rows) or 0
    return (~bits & bits + 1).bit_length() - 1


def _together(results: list[Any]) -> Any:
    """What `map` returns: a column, several in a tuple, or None."""
    return results[0] if len(results) == 1 else tuple(results) or None
