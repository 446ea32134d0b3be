"""Batches under way: rows in chunks through the scratch of a driver, driven like any call.

Whatever the columns are, a poll either copies a chunk in and runs its first slice, or runs a
further slice; and if that was the chunk's last, it copies the results out. To the runner, the whole
batch is one thing under way.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any, final

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
# More than any batch can burn.
BATCH_FUEL = 2**200
# Copying takes the GIL. In a thread, between slices of some microseconds, the event loop might wait
# for Python's switch interval, 5 ms, to get it. So a thread asks the loop to come round this often
# (seconds). If it has not by the next time, the thread stands back for it, but not for long: the
# loop may be busy with what needs no GIL, or have no core just now.
LOOP_EVERY, REST = 0.001, 0.0003


class Chunks:
    """The rows of a batch as one thing under way, for the runner to drive: a `Polled`."""

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
        self.what = what  # names the function in messages
        self.rows = rows
        self.total_fuel = total_fuel  # for a row
        self._row_fuel = min(total_fuel + fuel_per_row, MAX_FUEL)  # what the driver burns included
        self.job: Job | None = None
        self.done = 0  # rows whose chunks are over
        self._chunk = 0  # rows of the chunk that is under way
        self._chunk_fuel = 0
        self._burnt = 0  # by what is over
        self._watched = -1  # the row that was running at the end of the last slice
        self._watched_since = 0  # how much of its fuel was left then
        self.refusal: ResultTooLargeError | None = None
        """Raised while nothing is under way in the guest: its instance is intact."""
        self._asked: threading.Lock | None = None  # held until the loop comes round
        self._since = 0.0  # when it was asked to, or came, or was waited for
        self._token = trio.lowlevel.current_trio_token()

    # -- what differs

    def fill(self) -> int:
        """Copy the next chunk in; how many rows it has. 0: the next row has to go otherwise."""
        raise NotImplementedError

    def collect(self, done: int) -> bool:
        """Copy results out; whether the chunk is over. Otherwise the driver is to run again."""
        raise NotImplementedError

    def take_spent(self) -> int:
        """The fuel that collecting results has cost since the last time."""
        return 0

    @property
    def paused(self) -> bool:
        """Whether something has to be done outside before the driver goes on."""
        return False

    def look_back(self) -> None:
        """The running row failed: raise what one before it would have raised, were it looked at."""

    def values(self, row: int) -> tuple[Any, ...]:
        """The arguments of a row."""
        raise NotImplementedError

    # -- as the runner sees it

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
                self._chunk_fuel = 0  # it has not begun, and may begin anew
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
        """The row that is running, or was the last to run."""
        return self.done + int.from_bytes(self.driver.get(ROW_AT, 4), "little")

    def _watch(self) -> None:
        """A slice is over: stop a row that has burnt its `total_fuel`.

        What it burnt before it was first seen is not known, which gives it a slice more.
        """
        row, left = self.row(), self.native.fuel_left()
        if row != self._watched:
            self._watched, self._watched_since = row, left
        elif self._watched_since - left >= self.total_fuel:
            raise FuelExhaustedError(f"the row burnt all of its fuel, {self.total_fuel} units")

    def _make_way(self) -> None:
        """In a thread: see that the event loop gets the GIL now and then."""
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

    # -- as who makes it sees it

    async def run(self) -> None:
        """Drive it until all rows are done, it is paused, or a row has to go otherwise.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and its instance is spoilt.
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

    def _first_poll(self) -> bool:
        """Poll; idle instances go for its stack if the system has no memory for that."""
        while True:
            try:
                return self.poll()
            except NoMemoryError as error:
                self.call.relieve_stack(error)

    async def _drive(self) -> None:
        call = self.call
        self.job = job = call.new_job(self, self.fuel_left())
        try:
            over = self._first_poll()
            job.charge()
            if not over:
                await call.runner.drive(job)
        finally:
            self.job = None  # no cycle: large results go when nobody uses them any more
            call.end_job(job)

    def _earlier(self, error: BaseException) -> GuestError | None:
        """What was wrong with a row before the one that failed, if anything was."""
        if self._chunk_fuel and isinstance(error, Exception) and not self.call.ended:
            try:
                self.look_back()
            except GuestError as earlier:
                return earlier
        return None

    def _blame(self, error: BaseException) -> None:
        """The batch failed half-way: its instance is spoilt, and the error says in which row."""
        values: tuple[Any, ...] = ()
        if isinstance(error, GuestError) and not error.function:
            if error.row is None:
                error.row = self.row()
            values = self.values(error.row)
        elif isinstance(error, Exception) and not self.call.ended and self.host_call is not None:
            error.add_note(f"in row {self.row()} of a batch of {self.what}")
        self.call.fail(error, values)


@final
class NumberChunks(Chunks):
    """A batch in which all values are numbers."""

    def __init__(
        self,
        call: Call,
        driver: GuestDriver,
        crossing: PlainAbi,
        layout: Layout,
        columns: Sequence[Column],
        rows: int,
        sinks: Sequence[Sink],
    ) -> None:
        super().__init__(call, driver, crossing.what, rows, layout.fuel_per_row)
        self._crossing = crossing
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
        self._valid = 0  # a bit for each row of the chunk, where anyone asks for it

    def values(self, row: int) -> tuple[Any, ...]:
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
        """How many of so many rows end together with a slice, if they burn what others did.

        Each slice costs as much as a thousand short rows, however few are left for it.
        """
        if not self._burnt:
            return most
        fuel = self.native.yield_fuel
        slices = most * self._burnt // (self.done * fuel)
        # A little less: rows are not all alike.
        return slices * fuel * self.done * 63 // (64 * self._burnt) or most

    def collect(self, done: int) -> bool:
        if done != self._chunk:
            self._refuse()
        for sink, at in zip(self._sinks, self._layout.results, strict=True):
            sink.add(self.driver.get(at, done * sink.cell.size), done, self._valid)
        return True

    def _refuse(self) -> None:
        """A row gave a result out of its range."""
        which = int.from_bytes(self.driver.get(WHICH_AT, 4), "little")
        raw = int.from_bytes(self.driver.get(RAW_AT, 4), "little", signed=True)
        lift_number(self._crossing.got, self._crossing.returns[which], raw)
        raise AssertionError(f"{raw} is in range")
