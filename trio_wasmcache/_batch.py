"""Batches: one function called for every row of some columns, at the speed of wasm.

1. All columns are looked at first: what does not fit raises before any wasm runs.
2. Where all values are numbers, a driver does the loop (`_core/driver`): chunk by chunk, columns
   are copied into its scratch, it is driven like any call, and results are copied out. To the
   runner, the whole batch is one thing under way: slices, threads and shares are those of a call.
3. Other ABIs go row by row (`_rows`).
4. Either all rows have a result, or the batch raises, and what there was of results is forgotten.
"""

from __future__ import annotations

import array
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

from attrs import Factory, define

from . import _arrow, _calls
from ._abi.plain import PlainAbi, PlainType, lift_number
from ._abi.protocol import Crossing
from ._columns import Column, MisfitError, column, valid_rows
from ._core.driver import CELLS, RAW_AT, ROW_AT, VALIDITY_AT, WHICH_AT, Cell, Shape
from ._core.errors import FuelExhaustedError, GuestError
from ._engine.seam import UNDER_WAY, GuestDriver, GuestInstance, HostCall
from ._rows import map_rows
from ._runner import Job

if TYPE_CHECKING:
    from ._lease import Lease

# Values of lists that are packed between two turns of the loop: about 0.1 ms.
PIECE = 2048
MAX_FUEL = 2**63 - 1
# Copying takes the GIL. In a thread, between slices of some microseconds, the event loop would wait
# for Python's switch interval, 5 ms, to get it; so a thread lets go of it this often (seconds), and
# for long enough for another thread to wake.
REST_EVERY, REST = 0.001, 0.00005
NO_BOOLS = memoryview(b"\0").cast("?")[:0]  # an empty buffer can't be cast


async def map_columns(lease: Lease, columns: Any, rows: int | None) -> Any:
    """See `Lease.map`."""
    share, runner = lease._share, lease._shell.runner
    if lease._guest is None:
        raise lease._unusable()
    await runner.pass_turn(share)
    guest = lease._guest
    if guest is None:
        raise lease._unusable()
    native = _calls._begin(lease)
    batch: Batch | None = None
    try:
        crossing, registered = lease._crossing, lease._registered
        assert registered is not None
        numbers = isinstance(crossing, PlainAbi)
        arrow, found = await _look_at(lease._name, columns, objects=not numbers)
        _check_open(lease)
        rows = _count(crossing, found, rows)
        if isinstance(crossing, PlainAbi):
            shape, sinks = await _check(lease, crossing, found, rows, arrow)
            if rows:
                code = await lease._shell.engine.driver(shape)
                _check_open(lease)
                driver = code.attach(native, registered.export)
                batch = Batch(native, driver, crossing, found, rows, sinks, lease._total_fuel)
                await _run(lease, batch)
            results = [sink.result(rows) for sink in sinks]
            result = results[0] if len(results) == 1 else tuple(results) or None
        else:
            result = await map_rows(lease, native, guest, found, rows, arrow)
    except BaseException as error:
        if batch is not None:
            _blame(lease, batch, error)
        elif not lease._broken:
            lease._make_usable(guest)
        raise
    finally:
        _calls._end(lease, native)
    lease._make_usable(guest)
    return result


async def _look_at(what: str, columns: Any, *, objects: bool) -> tuple[bool, list[Column]]:
    """Whether some are Arrow's, and all columns."""
    if _arrow.is_arrow(columns):
        columns = await _arrow.table_columns(columns)
    if not isinstance(columns, (list, tuple)):
        raise TypeError(
            "map takes a list with a column for each argument, such as map([column]), or a table "
            f"in Arrow's format, got {type(columns).__name__}"
        )
    found: list[Column] = []
    for number, value in enumerate(columns, start=1):
        if _arrow.is_arrow(value):
            found.append(await _arrow.arrow_column(value))
            continue
        try:
            found.append(column(value, objects=objects))
        except (TypeError, ValueError) as error:
            raise type(error)(f"argument {number} of {what}: {error}") from None
    return any(isinstance(one, _arrow.ArrowColumn) for one in found), found


def _count(crossing: Crossing, columns: Sequence[Column], rows: int | None) -> int:
    """How many rows there are.

    Raises:
        TypeError: there are too many columns, or too few.
        ValueError: they differ in length, or nothing says how many rows there are.
    """
    if len(columns) != crossing.arity:
        raise crossing.explain(tuple(columns))
    lengths = {n: one.rows for n, one in enumerate(columns, 1) if one.rows is not None}
    if rows is not None and rows < 0:
        raise ValueError(f"there can't be {rows} rows")
    known = set(lengths.values()) | (set() if rows is None else {rows})
    if len(known) > 1:
        listed = ", ".join(f"that of argument {n} has {length}" for n, length in lengths.items())
        asked = "" if rows is None else f"; rows={rows}"
        raise ValueError(f"columns differ in their number of rows: {listed}{asked}")
    if not known:
        raise ValueError("no column says how many rows there are; give map(columns, rows=...)")
    return known.pop()


async def _check(
    lease: Lease, crossing: PlainAbi, columns: Sequence[Column], rows: int, arrow: bool
) -> tuple[Shape, list[Sink]]:
    """Check all values; the shape of the driver, and where its results go.

    **Checkpoint:** maybe.
    **Cancellation:** nothing has run.
    """
    assert lease._registered is not None
    for number, (one, kind) in enumerate(zip(columns, crossing.args, strict=True), start=1):
        try:
            one.use(CELLS[cell_name(kind)])
            await _pack(lease, one, rows)
        except MisfitError as misfit:
            raise _misfit(crossing, columns, misfit.row) from None
        except TypeError as error:
            raise TypeError(f"{crossing.place(number)}: {kind.name} {error}") from None
        if one.nullable and lease._registered.called_on_null and rows:
            raise _misfit(crossing, columns, _first_null(one, rows))
    shape = Shape(
        tuple(cell_name(kind) for kind in crossing.args),
        tuple("cut " * kind.cut + cell_name(kind) for kind in crossing.returns),
        any(one.nullable for one in columns),
    )
    nones = not arrow and any(one.holds_none for one in columns)
    return shape, [Sink(CELLS[name], arrow, nones) for name in shape.results]


async def _pack(lease: Lease, one: Column, rows: int) -> None:
    for start in range(0, rows if one.packs else 0, PIECE):
        one.pack(start, min(start + PIECE, rows))
        if start:  # the first piece of each column is free
            await lease._shell.runner.pass_turn(lease._share)
            _check_open(lease)


def _check_open(lease: Lease) -> None:
    """Closing may have taken the instance away while this task let others run."""
    if lease._closed:
        raise lease._unusable()


def _misfit(crossing: Crossing, columns: Sequence[Column], row: int) -> Exception:
    """The error for values that don't fit, with their row; scalars are the same in all."""
    values = tuple(one.values(row, row + 1)[0] for one in columns)
    error = crossing.explain(values)
    return type(error)(f"row {row}: {error}")


def _first_null(one: Column, rows: int) -> int:
    bits = one.validity(0, rows) or 0
    return (~bits & bits + 1).bit_length() - 1


def cell_name(kind: PlainType) -> str:
    """The cell in which values of a type lie in columns."""
    if kind.real:
        return kind.wasm
    if kind.truth:
        return "bool"
    return f"{'i' if kind.low else 'u'}{(kind.high - kind.low).bit_length()}"


async def _run(lease: Lease, batch: Batch) -> None:
    """Drive a batch to its end.

    **Checkpoint:** between slices.
    **Cancellation:** the guest is stopped, to be abandoned.
    """
    assert lease._registered is not None
    job = Job(batch, lease._share, lease._registered.slot.hosts, lease, batch.fuel)
    batch.job = lease._job = job
    try:
        over = batch.poll()
        job.charge()
        if not over:
            await lease._shell.runner.drive(job)
    finally:
        batch.job = lease._job = None  # no cycle: large results go when nobody uses them any more
        if not lease._closed:
            job.charge()
        lease._fuel = job.burnt


def _blame(lease: Lease, batch: Batch, error: BaseException) -> None:
    """A batch failed half-way: its instance is spoilt, and the error says in which row."""
    values: tuple[Any, ...] = ()
    if isinstance(error, GuestError) and not error.function:
        error.row = row = batch.row()
        values = tuple(one.values(row, row + 1)[0] for one in batch.columns)
    elif isinstance(error, Exception) and not lease._closed and batch.host_call is not None:
        error.add_note(f"in row {batch.row()} of a batch of {batch.crossing.what}")
    _calls._spoil(lease, batch.native, error, values)


@final
@define(eq=False)
class Batch:
    """The rows of a batch as one thing under way, for the runner to drive: a `Polled`.

    A poll either copies a chunk in and runs its first slice, or runs a further slice; and if that
    was the chunk's last, it copies the results out.
    """

    native: GuestInstance
    driver: GuestDriver
    crossing: PlainAbi
    columns: Sequence[Column]
    rows: int
    sinks: list[Sink]
    total_fuel: int
    """For a row."""
    fuel: int = 2**200
    """More than any batch can burn."""
    job: Job | None = None
    _done: int = 0  # rows whose results are out
    _chunk: int = 0  # rows of the chunk that is under way
    _chunk_fuel: int = 0
    _valid: int = 0
    _burnt: int = 0  # by the chunks that are done
    _watched: int = -1  # the row of the chunk that was running at the end of the last slice
    _watched_since: int = 0  # how much of its fuel was left then
    _rested: float = 0.0  # when the GIL was let go of for long

    def __attrs_post_init__(self) -> None:
        layout, chunk = self.driver.layout, min(self.driver.layout.rows, self.rows)
        for one, at in zip(self.columns, layout.args, strict=True):
            if one.rows is None:
                self.driver.put(at, one.raw(0, chunk))

    @property
    def host_call(self) -> HostCall | None:
        return self.native.host_call

    def fuel_left(self) -> int:
        running = self._chunk_fuel - self.native.fuel_left() if self._chunk else 0
        return self.fuel - self._burnt - running

    def poll(self) -> bool:
        if not self._chunk:
            self._fill()
            done = self.driver.begin(self._chunk, self._chunk_fuel)
        else:
            done = self.driver.finish() if self.native.poll() else UNDER_WAY
        if done is UNDER_WAY:
            if self.native.host_call is None:
                self._watch()
            return False
        self._collect(done)
        return self._done == self.rows

    def row(self) -> int:
        """The row that is running, or was the last to run."""
        return self._done + int.from_bytes(self.driver.get(ROW_AT, 4), "little")

    def _fill(self) -> None:
        """Copy the next chunk in."""
        layout = self.driver.layout
        chunk = min(layout.rows, self.rows - self._done)
        start, stop = self._done, self._done + chunk
        for one, at in zip(self.columns, layout.args, strict=True):
            if one.rows is not None:
                self.driver.put(at, one.raw(start, stop))
        self._valid = (1 << chunk) - 1
        if any(one.nullable for one in self.columns):
            for one in self.columns:
                valid = one.validity(start, stop)
                self._valid &= self._valid if valid is None else valid
            self.driver.put(VALIDITY_AT, self._valid.to_bytes(-(-chunk // 8), "little"))
        self._chunk_fuel = min(chunk * (self.total_fuel + layout.fuel_per_row), MAX_FUEL)
        self._chunk, self._watched = chunk, -1

    def _watch(self) -> None:
        """A slice is over: stop a row that has burnt its `total_fuel`.

        What it burnt before it was first seen is not known, which gives it a slice more.
        """
        row, left = self.row(), self.native.fuel_left()
        if row != self._watched:
            self._watched, self._watched_since = row, left
        elif self._watched_since - left >= self.total_fuel:
            raise FuelExhaustedError(f"the row burnt all of its fuel, {self.total_fuel} units")

    def _collect(self, done: int) -> None:
        """Copy the results of a chunk out."""
        if done != self._chunk:
            self._refuse()
        self._burnt += self._chunk_fuel - self.native.fuel_left()
        for sink, at in zip(self.sinks, self.driver.layout.results, strict=True):
            sink.add(self.driver.get(at, done * sink.cell.size), done, self._valid)
        self._done, self._chunk = self._done + done, 0
        if self.job is not None and self.job.in_thread:
            self._rest()

    def _rest(self) -> None:
        now = time.perf_counter()
        if now - self._rested > REST_EVERY:
            self._rested = now
            time.sleep(REST)

    def _refuse(self) -> None:
        """A row gave a result out of its range."""
        which = int.from_bytes(self.driver.get(WHICH_AT, 4), "little")
        raw = int.from_bytes(self.driver.get(RAW_AT, 4), "little", signed=True)
        lift_number(self.crossing.got, self.crossing.returns[which], raw)
        raise AssertionError(f"{raw} is in range")


@final
@define(eq=False)
class Sink:
    """Gathers the results of one column."""

    cell: Cell
    arrow: bool
    nones: bool
    """Rows that are null come out as None, in a list."""
    _array: array.array[Any] = Factory(
        lambda self: array.array("B" if self.cell.truth else self.cell.code), takes_self=True
    )
    _list: list[Any] = Factory(list)
    _validity: bytearray = Factory(bytearray)
    _nulls: bool = False

    def add(self, data: memoryview, rows: int, valid: int) -> None:
        """The results of the next chunk, and a bit for each that is valid."""
        if self.nones:
            which = valid_rows(valid, rows)
            values = data.cast(self.cell.code).tolist()  # type: ignore[call-overload]
            self._list += [v if yes else None for v, yes in zip(values, which, strict=True)]
            return
        self._array.frombytes(data)
        if self.arrow:
            # A chunk has a multiple of eight rows, unless it is the last.
            self._validity += valid.to_bytes(-(-rows // 8), "little")
            self._nulls = self._nulls or valid.bit_count() < rows

    def result(self, rows: int) -> Any:
        """All of them: a list, an Arrow array, or a buffer of the type."""
        if self.nones:
            return self._list
        if self.arrow:
            return _arrow.from_cells(
                self.cell, rows, self._array, bytes(self._validity) if self._nulls else None
            )
        if self.cell.truth:
            return memoryview(self._array).cast("?") if rows else NO_BOOLS
        return self._array
