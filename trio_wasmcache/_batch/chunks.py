"""Batches under way: chunks of rows in the scratch of a driver, which is driven like any call.

A poll either copies a chunk in and runs its first slice, or runs a further slice; after the last
slice of the chunk, it copies the results out. For the runner, the whole batch is one `Polled`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import final

import trio

from .._abi.plain import PlainAbi, lift_number
from .._core.errors import FuelExhaustedError, GuestError, ResultTooLargeError
from .._core.wasm.driver import RAW_AT, ROW_AT, VALIDITY_AT, WHICH_AT, Layout
from .._engine.base import UNDER_WAY, GuestDriver, HostCall, NoMemoryError, UnderWay
from .._runtime.call import Call
from .._runtime.runner import Job
from .collectors import Sink
from .columns import Column

MAX_FUEL = 2**63 - 1
# Units of fuel, more than any batch can burn.
BATCH_FUEL = 2**200
# Copying takes the GIL. If a thread copies between slices of some microseconds, the event loop may
# wait for Python's switch interval, 5 ms, to get it. So a thread schedules a callback in the loop
# this often (seconds). If the loop has not run it by the next time, the thread waits for the loop,
# but not for long: the loop may be busy without the GIL, or have no core at the moment.
LOOP_EVERY, REST = 0.001, 0.0003


class Chunks:
    """The rows of a batch, for the runner to drive: a `Polled`.

    Args:
        call: the batch.
        driver: the driver, attached to the instance.
        what: name of the function, for messages.
        rows: number of rows.
        fuel_per_row: units of fuel that the driver itself burns for a row.
    """

    def __init__(
        self,
        call: Call,
        driver: GuestDriver,
        what: str,
        rows: int,
        fuel_per_row: int,
    ) -> None:
        total_fuel = call.bound.total_fuel
        self.call = call
        self.native = call.native
        self.driver = driver
        self.what = what
        self.rows = rows
        self.total_fuel = total_fuel  # of a row
        self._row_fuel = min(total_fuel + fuel_per_row, MAX_FUEL)  # of a row and the driver's loop
        self.job: Job | None = None
        self.done = 0  # rows whose chunks are over
        self._chunk = 0  # rows of the chunk that is under way
        self._chunk_fuel = 0  # given to the chunk that runs; 0 while none runs
        self._burnt = 0  # fuel of the chunks that are over
        self._watched = -1  # the row that was running at the end of the last slice
        self._watched_since = 0  # fuel that was left when that row was first seen
        self.refusal: ResultTooLargeError | None = None
        """Error that was raised while nothing ran in the guest, so that the instance is intact."""
        self._asked: threading.Lock | None = None  # held until the loop has run the callback
        self._since = 0.0  # time of the last callback: asked for, run or waited for
        self._token = trio.lowlevel.current_trio_token()

    # -- for subclasses

    def fill(self) -> int:
        """Copy the next chunk in; return its number of rows, or 0 if the next row does not fit."""
        raise NotImplementedError

    def collect(self, done: int) -> bool:
        """Copy results out of `done` rows; return False if the driver must run again for the chunk.

        Raises:
            GuestError: a result can't be converted.
        """
        raise NotImplementedError

    def take_spent(self) -> int:
        """Return the fuel that collecting results has cost since the last time."""
        return 0

    @property
    def paused(self) -> bool:
        """Whether `run` must return before the driver continues, as a result is unfinished."""
        return False

    def look_back(self) -> None:
        """After the failure of a row, collect the rows before it in its chunk.

        Raises:
            GuestError: a result of these can't be converted.
        """

    def values(self, row: int) -> tuple[object, ...]:
        """Return the arguments of a row."""
        raise NotImplementedError

    # -- for the runner

    @property
    def host_call(self) -> HostCall | None:
        return self.native.host_call

    def fuel_left(self) -> int:
        running = self._chunk_fuel - self.native.fuel_left() if self._chunk_fuel else 0
        return BATCH_FUEL - self._burnt - running

    def poll(self) -> bool:
        if not self._chunk_fuel:
            if not self._chunk:
                self._chunk = self.fill()
                if not self._chunk:
                    return True
            self._watched = -1
            self._chunk_fuel = min(self._chunk * self._row_fuel, MAX_FUEL)
            try:
                done: int | UnderWay = self.driver.begin(self._chunk, self._chunk_fuel)
            except NoMemoryError:
                self._chunk_fuel = 0  # it has not begun, and can begin again
                raise
        else:
            done = self.driver.finish() if self.native.poll() else UNDER_WAY
        if done is UNDER_WAY:
            self._watch()
            return False
        self._burnt += self._chunk_fuel - self.native.fuel_left()
        self._chunk_fuel = 0
        try:
            over = self.collect(done)
        finally:
            self._burnt += self.take_spent()
        if over:
            self.done, self._chunk = self.done + self._chunk, 0
        if self.job is not None and self.job.in_thread:
            self._make_way()
        return self.paused or self.done == self.rows

    def row(self) -> int:
        """Return the row that is running, or was the last to run."""
        return self.done + int.from_bytes(self.driver.get(ROW_AT, 4), "little")

    def _watch(self) -> None:
        """After a slice, stop a row that has burnt its `total_fuel`.

        The fuel that it burnt before it was first seen is unknown, which allows it one slice more.

        Raises:
            FuelExhaustedError: the row has burnt its fuel.
        """
        row, left = self.row(), self.native.fuel_left()
        if row != self._watched:
            self._watched, self._watched_since = row, left
        elif self._watched_since - left >= self.total_fuel:
            raise FuelExhaustedError("the row burnt all of its fuel")

    def _make_way(self) -> None:
        """In a thread, let the event loop have the GIL every `LOOP_EVERY` seconds."""
        now, asked = time.perf_counter(), self._asked
        if now - self._since < LOOP_EVERY:
            if asked is not None and asked.acquire(blocking=False):
                self._asked, self._since = None, now
            return
        if asked is None:
            asked = threading.Lock()
            asked.acquire()
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(asked.release)
                self._asked = asked
        else:
            asked.acquire(timeout=REST)
            self._asked = None
        self._since = time.perf_counter()

    # -- for the batch

    async def run(self) -> None:
        """Run until all rows are done, it is paused, or the next row does not fit.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and its instance is unusable.
        """
        try:
            await self._drive()
        except BaseException as error:
            refusal, self.refusal = self.refusal, None
            if refusal is not None and error is refusal:
                self.call.refuse(refusal, self.values(refusal.row or 0))
                raise
            earlier = self._earlier(error)
            self._blame(earlier or error)
            if earlier is None:
                raise
            raise earlier from None

    async def _drive(self) -> None:
        call = self.call
        self.job = job = call.new_job(self, self.fuel_left())
        call.find_row = self.row
        try:
            over = call.with_stack(self.poll)
            job.charge()
            if not over:
                await call.runner.drive(job)
        finally:
            # Break the cycles, so that large results are freed at once.
            self.job = call.find_row = None
            call.end_job(job)

    def _earlier(self, error: BaseException) -> GuestError | None:
        """Return the error of a row before the one that failed, or None."""
        if self._chunk_fuel and isinstance(error, Exception) and not self.call.ended:
            try:
                self.look_back()
            except GuestError as earlier:
                return earlier
        return None

    def _blame(self, error: BaseException) -> None:
        """Note that the batch failed half-way, and add its row to the error."""
        values: tuple[object, ...] = ()
        if isinstance(error, GuestError) and not error.function:
            if error.row is None:
                error.row = self.row()
            values = self.values(error.row)
        elif isinstance(error, Exception) and not self.call.ended and self._chunk_fuel:
            error.add_note(f"in row {self.row()} of a batch of {self.what}")
        self.call.fail(error, values)


@final
class NumberChunks(Chunks):
    """The rows of a batch in which all values are numbers, for the runner to drive.

    Args:
        call: the batch.
        driver: the driver, attached to the instance.
        binding: how values cross.
        layout: layout of the driver's scratch.
        columns: a column for each argument.
        rows: number of rows.
        sinks: a sink for each column of results.
    """

    def __init__(
        self,
        call: Call,
        driver: GuestDriver,
        binding: PlainAbi,
        layout: Layout,
        columns: Sequence[Column],
        rows: int,
        sinks: Sequence[Sink],
    ) -> None:
        super().__init__(call, driver, binding.what, rows, layout.fuel_per_row)
        self._binding = binding
        self._layout = layout
        self._columns = columns
        self._sinks = sinks
        self._moving: list[tuple[Column, int]] = []
        for one, at in zip(columns, layout.args, strict=True):
            if one.rows is None:
                driver.put(at, one.raw(0, min(layout.rows, rows)))
            else:
                self._moving.append((one, at))
        self._nullable = any(one.nullable for one in columns)
        self._marks = self._nullable or any(sink.arrow for sink in sinks)
        self._valid = 0  # a bit for each row of the chunk, if `_marks`

    def values(self, row: int) -> tuple[object, ...]:
        return tuple(one.values(row, row + 1)[0] for one in self._columns)

    def fill(self) -> int:
        chunk = self._fitting(min(self._layout.rows, self.rows - self.done))
        start, stop = self.done, self.done + chunk
        put = self.driver.put
        for one, at in self._moving:
            put(at, one.raw(start, stop))
        if self._marks:
            self._valid = (1 << chunk) - 1
        if self._nullable:
            for one in self._columns:
                valid = one.validity(start, stop)
                self._valid &= self._valid if valid is None else valid
            put(VALIDITY_AT, self._valid.to_bytes(-(-chunk // 8), "little"))
        return chunk

    def _fitting(self, most: int) -> int:
        """Return how many of `most` rows end with a slice, if they burn as much as those before.

        A slice costs as much as a thousand short rows, however few rows are left for it.
        """
        if not self._burnt:
            return most
        fuel = self.native.yield_fuel
        slices = most * self._burnt // (self.done * fuel)
        # A little less, as rows differ.
        return slices * fuel * self.done * 63 // (64 * self._burnt) or most

    def collect(self, done: int) -> bool:
        if done != self._chunk:
            self._refuse()
        for sink, at in zip(self._sinks, self._layout.results, strict=True):
            sink.add(self.driver.get(at, done * sink.cell.size), done, self._valid)
        return True

    def _refuse(self) -> None:
        """Raise `AbiError` for the row that gave a result out of its range."""
        which = int.from_bytes(self.driver.get(WHICH_AT, 4), "little")
        raw = int.from_bytes(self.driver.get(RAW_AT, 4), "little", signed=True)
        lift_number(self._binding.got, self._binding.returns[which], raw)
        raise AssertionError(f"{raw} is in range")
