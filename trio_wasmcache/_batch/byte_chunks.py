"""Batches of functions whose values cross through memory: chunks for a memory driver.

A row whose arguments do not fit into the driver's scratch is left to the caller, who makes a single
call for it; the batch then continues with the next row.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Sequence
from typing import final

from .._abi.base import Binding, Guest, Value
from .._abi.batching import KEPT, Bulk
from .._abi.gil import LONG
from .._abi.guest_memory import memory_of, read_result
from .._core.errors import AbiError, GuestError, ResultTooLargeError
from .._core.tally import SLOT
from .._core.wasm.driver import CELLS
from .._core.wasm.memory_layout import (
    AT_AT,
    BASE_AT,
    CALLS_AT,
    FIRST_AT,
    KEPT_AT,
    PENDING_AT,
    READ_OUT,
    ROW_AT,
    RTTI_AT,
    SIZE_AT,
    WHY_AT,
    MemoryLayout,
)
from .._engine.base import GuestDriver
from .._runtime.call import Call
from .._runtime.metered import MeteredGuest
from .byte_columns import ArrowBytes, PackedColumn, row_values
from .chunks import ZERO, Chunks, Failing
from .collectors import BytesSink, Sink
from .columns import Column, valid_rows

_STATE = struct.Struct("<III")
_KEPT = struct.Struct("<II")
_HEAP = struct.Struct("<III")
_WORD = struct.Struct("<I")
Packed = PackedColumn | ArrowBytes


def bulk_of(binding: Binding, guest: Guest) -> Bulk | None:
    """Return how a memory driver makes the calls of a binding; None if it can't."""
    make = getattr(binding, "bulk", None)
    try:
        bulk: Bulk | None = None if make is None else make(guest)
    except GuestError:
        return None  # the first call raises it, and names its row
    return bulk


@final
class MemoryChunks(Chunks):
    """The rows of a batch whose values cross through memory, for the runner to drive.

    Args:
        call: the batch.
        driver: the memory driver, attached to the instance.
        bulk: how the driver makes the calls.
        layout: layout of the driver's scratch.
        columns: a column for each argument; those that are not numbers are packed.
        rows: number of rows.
        sinks: a sink for each column of results.
        failing: see `Chunks`.
    """

    def __init__(
        self,
        call: Call,
        driver: GuestDriver,
        bulk: Bulk,
        layout: MemoryLayout,
        columns: Sequence[Column | Packed],
        rows: int,
        sinks: Sequence[Sink | BytesSink],
        failing: Failing | None,
    ) -> None:
        super().__init__(
            call, driver, bulk.what, rows, layout.fuel_per_row, FIRST_AT, sinks, failing
        )
        self._tally = call.tally
        self._guest = MeteredGuest(call.native, call.tally)
        self._refused: ResultTooLargeError | None = None
        """Error to raise once the guest has freed the result that is too large."""
        self._bulk = bulk
        self._heap = None if bulk.objects is None else bulk.objects.heap
        self._layout = layout
        self._columns = columns
        self._packed = [one for one in columns if not isinstance(one, Column)]
        self._states = dict(zip(map(id, self._packed), layout.states, strict=False))
        self._moving = [one for one in self._packed if one.rows is not None]
        self._nullable = any(one.nullable for one in columns)
        self._passes_nulls = bulk.shape.passes_nulls
        self.large: bytes | None = None
        """Result whose conversion takes long; `settle` must convert it before the next `run`."""
        self._valid = 0  # a bit for each row of the chunk; 0 means that it is not called for
        self._data = layout.data  # address of the data of columns, behind that of scalars
        self._put_scalars()
        for one in columns:
            if isinstance(one, Column) or one.rows is not None:
                continue
            self._data += one.size(0, 1)

    def _put_scalars(self) -> None:
        """Put what is the same for all chunks into the scratch."""
        driver, layout = self.driver, self._layout
        data = layout.data
        for one, at in zip(self._columns, layout.args, strict=True):
            if one.rows is not None:
                continue
            if isinstance(one, Column):
                driver.put(at, one.raw(0, min(layout.rows, self.rows)))
            else:
                data += self._put(one, at, 0, 1, data)
        for at in layout.validity:
            driver.put(at, b"\xff" * (layout.rows // 8))
        objects = self._bulk.objects
        if objects is not None:
            driver.put(RTTI_AT, _WORD.pack(objects.rtti))
            for number, at in zip(objects.classes, layout.states, strict=True):
                driver.put(at + KEPT_AT, _WORD.pack(number))

    def values(self, row: int) -> tuple[object, ...]:
        return row_values(self._columns, row)

    def skip(self, result: Value) -> None:
        """Add the result of the next row, which the caller has called for."""
        results = result if len(self._sinks) > 1 else (result,)
        for number, sink in enumerate(self._sinks):
            sink.add_value(None if results is None else results[number])
        self.done += 1

    def skip_failed(self) -> None:
        """Add null for the next row, which the caller has called for in vain, and go on."""
        failing = self._failing
        assert failing is not None
        self.add_null()
        self.done += 1
        self.renew(self.call.attach(failing.code, failing.exports))

    # -- into the scratch

    def fill(self) -> int:
        driver, layout, start = self.driver, self._layout, self.done
        driver.put(ROW_AT, ZERO)  # a failure from here on is one of the first row
        most = self.limit(min(layout.rows, self.rows - start))
        stop = self._fitting(start, start + most)
        if self._bulk.shape.allocation == "grown":
            stop = self._grown(start, stop)
        if stop == start:
            return 0
        data = self._data
        for one, at in zip(self._columns, layout.args, strict=True):
            if one.rows is None:
                continue
            if isinstance(one, Column):
                driver.put(at, one.raw(start, stop))
            else:
                data += self._put(one, at, start, stop, data)
        self._put_validity(start, stop)
        driver.put(FIRST_AT, ZERO)
        driver.put(PENDING_AT, ZERO)
        self._put_kept()
        self._first = 0
        return stop - start

    def _put(self, one: Packed, at: int, start: int, stop: int, data_at: int) -> int:
        """Copy the offsets and data of these rows in; return the number of bytes of data."""
        offsets, first, width = one.offsets(start, stop)
        data = one.data(start, stop)
        self.driver.put(at, offsets)
        self.driver.put(data_at, data)
        bias = (data_at - first) & 0xFFFFFFFF
        step = 0 if one.rows is None else width
        self.driver.put(self._states[id(one)], _STATE.pack(bias, step, width))
        return len(data)

    def _put_validity(self, start: int, stop: int) -> None:
        rows = stop - start
        self._valid = every = (1 << rows) - 1
        if not self._nullable:
            return
        if not self._passes_nulls:
            for one in self._columns:
                valid = one.validity(start, stop)
                self._valid &= every if valid is None else valid
            (at,) = self._layout.validity
            self.driver.put(at, self._valid.to_bytes(-(-rows // 8), "little"))
            return
        for one, at in zip(self._packed, self._layout.validity, strict=True):
            valid = one.validity(start, stop)
            valid = every if valid is None else valid
            self.driver.put(at, valid.to_bytes(-(-rows // 8), "little"))

    def _fitting(self, start: int, stop: int) -> int:
        """Return the end of the rows that fit into the scratch together."""
        available = self._layout.data + self._layout.data_size - self._data

        def size(end: int) -> int:
            return sum(one.size(start, end) for one in self._moving)

        if size(stop) <= available:
            return stop
        return start + bisect.bisect_right(range(start, stop + 1), available, key=size) - 1

    def _grown(self, start: int, stop: int) -> int:
        """Grow the space for the first row's arguments; return the end of the rows that fit."""
        bulk = self._bulk
        bound = bulk.fixed_need + sum(
            one.size(start, stop) if one.rows is not None else one.size(0, 1)
            for one in self._packed
        )
        bound += len(self._packed) * (bulk.padded(0) + bulk.shape.align)
        at, size = bulk.grown(self._guest, 0)
        if bound > size and start < stop:
            at, size = bulk.grown(self._guest, self._need(start))
        end = stop
        if bound > size:
            end = next((row for row in range(start + 1, stop) if self._need(row) > size), stop)
        self.driver.put(BASE_AT, at.to_bytes(4, "little"))
        return end

    def _need(self, row: int) -> int:
        """Return the bytes of grown space that the arguments of a row take."""
        need = self._bulk.fixed_need
        for one in self._columns:
            null = one.nullable and one.validity(row, row + 1) == 0
            if null and not self._passes_nulls:
                return 0
            if not isinstance(one, Column) and not null:
                size = one.size(0, 1) if one.rows is None else one.size(row, row + 1)
                need += self._bulk.padded(size)
        return need

    def _put_kept(self) -> None:
        kept = self.native.state.get(KEPT, {})
        for name in self._bulk.kept:
            self.driver.put(self._kept_at(name), _KEPT.pack(*kept.get(name, (0, 0))))
        if self._heap is not None:
            heap = self._heap
            self.driver.put(CALLS_AT, _HEAP.pack(heap.calls, heap.interval, heap.pages))

    def _take_kept(self) -> None:
        for name in self._bulk.kept:
            at, size = _KEPT.unpack(self.driver.get(self._kept_at(name), _KEPT.size))
            if at:
                self.native.state.setdefault(KEPT, {})[name] = at, size
        if (heap := self._heap) is not None:
            got = self.driver.get(CALLS_AT, _HEAP.size)
            heap.calls, heap.interval, heap.pages = _HEAP.unpack(got)

    def _kept_at(self, name: int | str) -> int:
        number = name if isinstance(name, int) else len(self._packed)
        return self._layout.states[number] + KEPT_AT

    # -- out of the scratch

    def collect(self, done: int) -> bool:
        self._take_kept()
        if self._refused is not None:
            self.refusal, self._refused = self._refused, None
            raise self.refusal
        why = 0 if done == self._chunk else self._cell(WHY_AT)
        try:
            self._take(done)
        except ResultTooLargeError as error:
            return self._refuse(error, done, why)
        if done == self._chunk:
            return True
        at, size = self._cell(AT_AT), self._cell(SIZE_AT)
        tally = self._tally
        tally.begin_row()
        tally.allow(self.total_fuel)
        if why != READ_OUT:
            self._bulk.refuse(self._guest, why, at, size)
        data, refused = read_result(
            self._bulk.got,
            memory_of(self._guest),
            at,
            size,
            anywhere=self._bulk.shape.canonical,
        )
        if refused is not None:
            refused.row = self.done + done
            return self._refuse_one(refused, done)
        if self._bulk.shape.heavy and size > LONG:
            self.large = data
        else:
            try:
                self._add(done, data, (size,))
            except ResultTooLargeError as error:
                return self._refuse_one(error, done)
        self._free_behind(done)
        return False

    def _free_behind(self, row: int) -> None:
        """Have the driver free the result of this row of the chunk, and continue behind it."""
        self.driver.put(FIRST_AT, row.to_bytes(4, "little"))
        self._first = row + 1

    def go_on_behind(self, row: int) -> None:
        super().go_on_behind(row)
        self.driver.put(PENDING_AT, ZERO)

    def put_back(self) -> None:
        self._put_kept()

    def renew(self, driver: GuestDriver) -> None:
        super().renew(driver)
        self._guest = MeteredGuest(self.native, self._tally)
        made = bulk_of(self.call.bound.binding, self._guest)
        if made is None or made.shape != self._bulk.shape:
            raise AbiError(f"{self.what}: a new instance is not as the one before it was")
        self._bulk = made
        self._heap = None if made.objects is None else made.objects.heap
        self._put_scalars()

    def _refuse(self, error: ResultTooLargeError, done: int, why: int) -> bool:
        """Raise the error, now or once the driver has freed the result that the guest left."""
        if why == READ_OUT:
            self._free_behind(done)
            self._refused, self._chunk = error, done + 1
            return False
        if not why:
            self.refusal = error
        raise error

    def take_spent(self) -> int:
        return self._tally.take_spent()

    def _refuse_one(self, error: ResultTooLargeError, done: int) -> bool:
        """Do as `_refuse`, for the result of one row that the driver has left to the host."""
        if self._is_null(error, self.done + done):
            self._free_behind(done)
            return False
        return self._refuse(error, done, READ_OUT)

    def _is_null(self, error: ResultTooLargeError, row: int) -> bool:
        """Return whether the row is null: its result alone is too large. The guest is intact."""
        failing = self._failing
        if failing is None or not self._tally.alone or not failing.errors.may_go_on(self.call):
            return False
        self._tally.drop_row()
        self._put_null(row, error)
        return True

    def add_null(self) -> None:
        self._tally.begin_row()
        self._tally.allow(self.total_fuel)
        super().add_null()

    @property
    def paused(self) -> bool:
        return self.unsettled or super().paused

    @property
    def unsettled(self) -> bool:
        return self.large is not None

    async def settle(self) -> None:
        """Convert the large result in a thread.

        **Checkpoint:** always.
        **Cancellation:** the instance is unusable.
        """
        data, self.large = self.large, None
        (sink,) = self._sinks
        tally = self._tally
        try:
            tally.add(SLOT)
            sink.add_value(await self.call.convert(self._bulk.lift, data, tally))
            tally.begin_row()
        except ResultTooLargeError as error:
            error.row = self.done + self._first - 1
            if not self._is_null(error, error.row):
                self._refused, self._chunk = error, self._first
        except BaseException as error:
            if isinstance(error, GuestError):
                error.row = row = self.done + self._first - 1
                if self._failing is not None and not self.call.ended:
                    self._tally.drop_row()
                    try:
                        self.result_failed(row, error)
                    except GuestError:
                        self._blame(error)
                        raise
                    self.add_null()
                    return
            self._blame(error)
            raise
        finally:
            self.call.charge_spent()

    def take(self, stop: int) -> None:
        self._take(stop)

    def _cell(self, at: int) -> int:
        return int.from_bytes(self.driver.get(at, 4), "little")

    def _take(self, stop: int) -> None:
        """Take the results of the rows of the chunk up to `stop`."""
        start = self._first
        if start >= stop:
            return
        rows = stop - start
        self._tally.begin_row()
        self._tally.allowed = rows * self.total_fuel
        for sink, at in zip(self._sinks, self._layout.results, strict=True):
            if isinstance(sink, Sink):
                size = sink.cell.size
                valid = self._valid >> start & (1 << rows) - 1
                sink.add(self.driver.get(at + start * size, rows * size), rows, valid)
                continue
            if self._bulk.shape.style is None:
                self._add(start, *self._cells(at, start, rows))
                self._tally.begin_row()
                continue
            sizes = self.driver.get(at + start * 4, rows * 4).cast("i").tolist()
            total = sum(sizes) if min(sizes) >= 0 else sum(max(size, 0) for size in sizes)
            self._tally.copy_some(total)
            self._add(start, bytes(self.driver.get(self._layout.out, total)), sizes)
            self._tally.begin_row()
        self._first = stop

    def _cells(self, at: int, start: int, rows: int) -> tuple[bytes, Sequence[int]]:
        """Return the cells of rows that are not null, and the size of each; -1 for a null."""
        (name,) = self._bulk.shape.results
        size = CELLS[name].size
        data = bytes(self.driver.get(at + start * size, rows * size))
        valid = self._valid >> start & (1 << rows) - 1
        if valid.bit_count() == rows:
            return data, [size] * rows
        which = valid_rows(valid, rows)
        parts = [data[size * row : size * (row + 1)] for row, yes in enumerate(which) if yes]
        return b"".join(parts), [size if yes else -1 for yes in which]

    def _add(self, start: int, data: bytes, sizes: Sequence[int]) -> None:
        (sink,) = self._sinks
        assert isinstance(sink, BytesSink)
        first, tally = self.done + start, self._tally

        def failed(row: int, error: GuestError) -> None:
            self.result_failed(first + row, error)
            tally.allow(tally.spent + len(sizes) * self.total_fuel)

        try:
            sink.add(data, sizes, None if self._failing is None else failed)
        except GuestError as error:
            if self._failing is None or isinstance(error, ResultTooLargeError):
                error.row = first + (error.row or 0)
            raise
