"""Batches under way: chunks of rows in the scratch of a driver, which is driven like any call.

A poll either copies a chunk in and runs its first slice, or runs a further slice; after the last
slice of the chunk, it copies the results out. For the runner, the whole batch is one `Polled`.

If rows may fail, a failed one is null in the result, and the batch goes on behind it: in the same
chunk if the instance can be put back; in a new chunk in a new instance otherwise. As then rows may
fail soon again, the first chunks are small.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import final

import trio
from attrs import frozen

from .._abi.plain import PlainAbi, lift_number
from .._core.errors import FuelExhaustedError, GuestError, ResultTooLargeError
from .._core.wasm.driver import FIRST_AT, RAW_AT, ROW_AT, VALIDITY_AT, WHICH_AT, Layout
from .._core.wasm.graph import FromPart
from .._engine.base import (
    MAX_FUEL,
    UNDER_WAY,
    DriverCode,
    GuestDriver,
    HostCall,
    NoMemoryError,
    UnderWay,
)
from .._runtime.call import Call
from .._runtime.runner import Job
from .._runtime.user_code import add_note, is_of_guest
from .byte_columns import row_values
from .collectors import BytesSink, Sink
from .columns import Column
from .failures import RowErrors

# Units of fuel, more than any batch can burn.
BATCH_FUEL = 2**200
# A thread looks this often (seconds) whether the loop's thread uses CPU time within `LOOK` seconds.
# If so, it waits for the loop to have the GIL, but not for long: the loop may be busy without it.
LOOK_EVERY, LOOK, REST = 0.0005, 0.0001, 0.0003
# To wake a loop that sleeps takes 0.15 to 0.2 ms, so it is waited for anyway only this often
# (seconds), as that clock may not show all: a guest run of Trio waits in another thread, and some
# systems count CPU time in ticks. The second one is for systems without such a clock.
WAKE_EVERY, WAKE_UNSEEN_EVERY = 0.005, 0.001
# In a thread, slices of a batch are this many times as long: the loop does not wait for them, and a
# chunk of cheap rows ends with its first slice, as each further one costs as much as a thousand.
LONG = 4
# Rows, at least, of the first chunk of a new instance in the middle of a batch. A new scratch costs
# half a microsecond for 4 KiB, and a further chunk as much as 100 KiB. So it has twice as many rows
# as there were before the one that failed, and each further one twice as many again.
FIRST_CHUNK = 256
# What a failed row costs beside its fuel, and beside another instance: about 30 microseconds.
FAILED_FUEL = 30_000
ZERO = bytes(4)


@frozen
class Failing:
    """What a batch needs if rows may fail in it."""

    errors: RowErrors
    misfits: tuple[int, ...]
    """Rows whose values do not fit, in order: they are null, and the guest is not called."""
    code: DriverCode
    """The driver, to be attached to a new instance."""
    exports: Mapping[str, str | FromPart]
    """Exports of the guest that the driver calls."""


@final
class Way:
    """Lets the event loop have the GIL if it is awake, in a thread that takes it often.

    Copying takes the GIL. If a thread copies between slices of some microseconds, the loop may wait
    for the GIL for 15 ms, even if the thread gives it up for most of the time: it is back before
    the loop is awake, again and again. A loop that waits so uses CPU time, and one that sleeps does
    not.

    Args:
        token: the loop's; this must be called in the loop's thread.
    """

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._clock = _clock_of_thread()
        self._every = WAKE_UNSEEN_EVERY if self._clock is None else WAKE_EVERY
        self._look_at = self._wake_at = 0.0  # when to look next, and when to wait for it anyway
        self._used: float | None = None  # CPU time of the loop's thread, while that is looked at

    def make(self) -> None:
        """In the other thread, wait for the loop if it is awake, or has not been for long."""
        now = time.perf_counter()
        if now < self._look_at:
            return
        if not self._look_at:  # the loop has run until now
            self._look_at, self._wake_at = now + LOOK_EVERY, now + self._every
            return
        before, self._used = self._used, None
        used = None if self._clock is None else self._clock()
        if before is None and used is not None:
            self._used, self._look_at = used, now + LOOK
            return
        if used != before or now >= self._wake_at:
            has_run = threading.Lock()
            has_run.acquire()
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(has_run.release)
                has_run.acquire(timeout=REST)
            now = time.perf_counter()
            self._wake_at = now + self._every
        self._look_at = now + LOOK_EVERY


def _clock_of_thread() -> Callable[[], float] | None:
    """Return a function by which any thread may read the CPU time of this one (seconds).

    None: the system has no such clock.
    """
    try:
        clock = time.pthread_getcpuclockid(threading.get_ident())
    except (AttributeError, OSError):
        return None
    return functools.partial(time.clock_gettime, clock)


class Chunks:
    """The rows of a batch, for the runner to drive: a `Polled`.

    Args:
        call: the batch.
        driver: the driver, attached to the instance.
        what: name of the function, for messages.
        rows: number of rows.
        fuel_per_row: units of fuel that the driver itself burns for a row.
        first_at: address in the scratch of the row of the chunk with which the driver begins.
        sinks: a sink for each column of results.
        failing: what it needs if rows may fail; None: the first that fails ends the batch.
    """

    def __init__(
        self,
        call: Call,
        driver: GuestDriver,
        what: str,
        rows: int,
        fuel_per_row: int,
        first_at: int,
        sinks: Sequence[Sink | BytesSink],
        failing: Failing | None,
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
        self._first = 0  # the next row of the chunk whose result is to be taken
        self._first_at = first_at
        self._sinks = sinks
        self._failing = failing
        self._misfit = 0  # number of rows among `misfits` that are done
        self._most: int | None = None  # rows of the next chunk at most; None: as many as fit
        self._unlike: GuestError | None = None  # error of a result, after which it must be renewed
        self._renewed = 0  # row with which the instance began, if it is not the first
        self._clean = 0, 0  # rows that did not fail, fuel of these as far as it is known
        # (row, fuel that was left) when a row was last seen to run, and when one before it was.
        self._seen = self._before = 0, 0
        self._chunk_fuel = 0  # given to the chunk that runs; 0 while none runs
        self._burnt = 0  # fuel of the chunks that are over
        self._watched = -1  # the row that was running at the end of the last slice
        self._watched_since = 0  # fuel that was left when that row was first seen
        self.refusal: ResultTooLargeError | None = None
        """Error that was raised while nothing ran in the guest, so that the instance is intact."""
        self._yield_fuel = call.native.yield_fuel  # of slices on the loop
        # A guest that calls the host goes on in the loop afterwards, in the middle of a chunk.
        self._long = 1 if call.bound.definition.module.hosts else LONG
        self._are_long = False  # whether slices are those of a thread
        self._way = Way(trio.lowlevel.current_trio_token())

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
        return self._unlike is not None

    @property
    def unsettled(self) -> bool:
        """Whether the caller must add the next result before `run` continues."""
        return False

    def take(self, stop: int) -> None:
        """Take the results of the rows of the chunk up to `stop`, as far as they are not taken.

        Raises:
            GuestError: a result of these can't be converted.
        """

    def go_on_behind(self, row: int) -> None:
        """Have the driver go on behind this row of the chunk, in the instance that was put back."""
        self.driver.put(self._first_at, (row + 1).to_bytes(4, "little"))
        self._first = row + 1

    def renew(self, driver: GuestDriver) -> None:
        """Go on in another instance, with the next row."""
        self.native, self.driver, self._are_long = self.call.native, driver, False

    def add_null(self) -> None:
        """Add the result of a row that is null."""
        for sink in self._sinks:
            sink.add_null()

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
        # In a batch of cheap rows, what this, `fill` and `collect` do takes a tenth of the time.
        job, failing, native = self.job, self._failing, self.native
        in_thread = job is not None and job.in_thread
        if not self._chunk_fuel:
            if in_thread is not self._are_long:
                self._set_slices(long=in_thread)
            chunk, first = self._chunk, self._first
            if not chunk:
                if failing is not None and self._pass_misfits(failing.misfits):
                    return True
                self._chunk = chunk = self.fill()
                if not chunk:
                    return True
            rows = chunk - first + 1 if first else chunk
            fuel = rows * self._row_fuel
            if fuel > MAX_FUEL:
                fuel = MAX_FUEL
            self._chunk_fuel, self._watched = fuel, -1
            self._seen = self._before = self.done + first, fuel
            try:
                done: int | UnderWay = self.driver.begin(chunk, fuel)
            except NoMemoryError:
                self._chunk_fuel = 0  # it has not begun, and can begin again
                raise
        else:
            done = self.driver.finish() if native.poll() else UNDER_WAY
        if done is UNDER_WAY:
            self._watch()
            return False
        burnt = self._chunk_fuel - native.fuel_left()
        self._burnt += burnt
        self._chunk_fuel = 0
        if failing is not None:
            self._clean = self._clean[0] + self._chunk - self._first, self._clean[1] + burnt
        try:
            over = self.collect(done)
        finally:
            self._burnt += self.take_spent()
        if over:
            self._end_chunk()
        if in_thread:
            self._way.make()
        return self.paused or self.done == self.rows

    def _set_slices(self, *, long: bool) -> None:
        """Have the next chunks run in slices as long as those of a call, or longer ones."""
        self._are_long = long
        fuel = min((self._long if long else 1) * self._yield_fuel, MAX_FUEL)
        if self.native.yield_fuel != fuel:
            self.native.set_yield_fuel(fuel)

    def _end_chunk(self) -> None:
        """End the chunk, of which all rows are done."""
        self.done, self._chunk = self.done + self._chunk, 0
        if self._first:
            self.driver.put(self._first_at, ZERO)
            self._first = 0
        if self._most is not None:
            self._most *= 2

    def limit(self, most: int) -> int:
        """Return how many of the next `most` rows may be in one chunk."""
        if self._failing is not None and self._misfit < len(self._failing.misfits):
            most = min(most, self._failing.misfits[self._misfit] - self.done)
        return most if self._most is None else min(most, self._most)

    def _pass_misfits(self, misfits: Sequence[int]) -> bool:
        """Add nulls for the next rows if their values do not fit; return whether all are done."""
        while self._misfit < len(misfits) and misfits[self._misfit] == self.done:
            self.add_null()
            self._misfit += 1
            self.done += 1
        return self.done == self.rows

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
            self._before = self._seen
        elif self._watched_since - left >= self.total_fuel:
            raise FuelExhaustedError("the row burnt all of its fuel")
        self._seen = row, left

    # -- for the batch

    async def run(self, *, begun: bool = False) -> None:
        """Run until all rows are done, it is paused, or the next row does not fit.

        `begun` says that a slice has run already, in `go_on_begun`.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and its instance is unusable.
        """
        failed: GuestError | None = None
        while True:
            # Not in the handler, where the errors of what follows would have that as context.
            if failed is not None or self._unlike is not None:
                await self.go_on(failed)
                failed = None
                if self.done == self.rows:
                    return
            try:
                await self._drive(begun)
            except BaseException as error:
                failed = error if isinstance(error, GuestError) else None
                if failed is None or not self._may_go_on(failed):
                    self._fail(error)
                    raise
            else:
                if self._unlike is None or self.unsettled:
                    return

    async def go_on_begun(self, fuel: int, begun: object) -> None:
        """Go on with all rows, in one chunk, which the driver has begun.

        Args:
            fuel: units of fuel with which it has begun.
            begun: the exception, or the result, of `GuestDriver.begin`.

        **Checkpoint:** between slices.
        **Cancellation:** the guest is stopped, and its instance is unusable.
        """
        self._chunk, self._chunk_fuel = self.rows, fuel
        self._seen = self._before = 0, fuel
        try:
            self.call.account(fuel - self.native.fuel_left())
            if isinstance(begun, BaseException):
                raise begun
            if begun is UNDER_WAY:
                self._watch()
            else:
                self._chunk_fuel = 0
                self.collect(int(begun))  # type: ignore[call-overload]
        except BaseException as error:
            self._fail(error)
            raise
        await self.run(begun=True)

    def _fail(self, error: BaseException) -> None:
        """End the batch with an error, or raise that of an earlier row from here."""
        refusal, self.refusal = self.refusal, None
        if refusal is not None and error is refusal:
            self.call.refuse(refusal, self.values(refusal.row or 0))
            return
        earlier = self._earlier(error)
        self._blame(earlier or error)
        if earlier is not None:
            raise earlier from None

    # -- behind a row that has failed

    def _may_go_on(self, error: GuestError) -> bool:
        """Return whether the batch may go on without the row that has failed."""
        failing = self._failing
        if failing is None or not is_of_guest(error) or isinstance(error, ResultTooLargeError):
            return False  # if only one result is too large, the row is null already
        return failing.errors.may_go_on(self.call, self._fuel_of_failed(error))

    def _fuel_of_failed(self, error: BaseException) -> int:
        """Return about how many units the row has burnt that has failed.

        Fuel is known between slices only. What the rows in the same slice have burnt is estimated
        by the mean of all rows so far.
        """
        if isinstance(error, FuelExhaustedError):
            return self.total_fuel
        if not self._chunk_fuel:
            return 0
        failed, now = self.row(), self.native.fuel_left()
        row, left = self._before if failed == self._watched else self._seen
        rows, fuel = self._clean
        burnt, before = left - now, failed - row
        others = before * fuel // rows if rows else before * burnt // (before + 1)
        seen = self._watched_since - now if failed == self._watched else 0
        return min(max(burnt - others, seen, 0), self.total_fuel)

    async def go_on(self, error: GuestError | None) -> None:
        """Note a row that has failed, if one has, put back the instance or replace it, and go on.

        **Checkpoint:** maybe.
        **Cancellation:** the instance is unusable.
        """
        failing = self._failing
        assert failing is not None
        unlike, self._unlike = self._unlike, None
        self.call.share.charge(0, FAILED_FUEL)
        try:
            if error is not None:
                row = self.row() if error.row is None else error.row
                if self._chunk_fuel:
                    self._burnt += self._chunk_fuel - self.native.fuel_left()
                    self._chunk_fuel = 0
                self.native.abandon()
                self.take(row - self.done)
                self._put_null(row, error)
                self._first = row + 1 - self.done
            await self._renew(failing, error or unlike)
            await self.call.yield_if_due()
        except BaseException as problem:
            self._fail(problem)
            raise

    def _put_null(self, row: int, error: GuestError) -> None:
        """Add null as the result of the row, and keep its error."""
        assert self._failing is not None
        self._failing.errors.note(self.call, row, error, self.values(row))
        self.add_null()
        self._burnt += self.take_spent()

    def result_failed(self, row: int, error: GuestError) -> None:
        """Note that the result of a row can't be converted, or raise the error to end the batch.

        The rows behind it in its chunk have run already.
        """
        failing = self._failing
        if failing is None or not (is_of_guest(error) and failing.errors.may_go_on(self.call)):
            error.row = row
            raise error
        failing.errors.note(self.call, row, error, self.values(row))
        self._unlike = error

    async def _renew(self, failing: Failing, error: BaseException | None) -> None:
        assert error is not None
        call = self.call
        if await call.renew(error, self.driver):
            if self._first < self._chunk:
                self.go_on_behind(self._first - 1)
            else:
                self._chunk = max(self._chunk, self._first)
                self._end_chunk()
            self.put_back()
        else:
            self.done, self._first, self._chunk = self.done + self._first, 0, 0
            self.renew(call.attach(failing.code, failing.exports))
            self._most = max(FIRST_CHUNK, 2 * (self.done - self._renewed))
            self._renewed = self.done

    def put_back(self) -> None:
        """Note that the instance was put back, and knows nothing of the rows so far."""

    async def _drive(self, begun: bool) -> None:
        call, driver = self.call, self.driver
        self.job = job = call.new_job(self, self.fuel_left())
        call.find_row = self.row
        brief = None if self._failing is None else self._failing.errors.brief
        try:
            if brief:
                driver.abridge(brief)
            over = False if begun else call.with_stack(self.poll)
            job.charge()
            if not over:
                await call.runner.drive(job)
        finally:
            if brief:
                driver.abridge(frozenset())  # which the instance keeps for other batches
            # Break the cycles, so that large results are freed at once.
            self.job = call.find_row = None
            call.end_job(job)
        if not call.ended:
            self._set_slices(long=False)

    def _earlier(self, error: BaseException) -> GuestError | None:
        """Return the error of a row before the one that failed, or None."""
        if self._chunk_fuel and isinstance(error, Exception) and not self.call.ended:
            try:
                self.take(self.row() - self.done)
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
            blame(error, self.row(), self.what)
        self.call.fail(error, values)


def blame(error: Exception, row: int, what: object) -> None:
    """Add its row to an exception that is not the guest's, as of a host function."""
    add_note(error, f"in row {row} of a batch of {what}")
    with contextlib.suppress(Exception):  # of a class that takes no attributes
        if getattr(error, "row", None) is None:
            error.row = row  # type: ignore[attr-defined]


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
        failing: see `Chunks`.
        begun: whether the rows are in the scratch, and the driver has begun: see `go_on_begun`.
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
        failing: Failing | None,
        *,
        begun: bool = False,
    ) -> None:
        super().__init__(
            call, driver, binding.what, rows, layout.fuel_per_row, FIRST_AT, sinks, failing
        )
        self._binding = binding
        self._layout = layout
        self._columns = columns
        results = zip(sinks, layout.results, strict=True)
        self._giving = [(sink, at, sink.cell.size) for sink, at in results]
        self._moving: list[tuple[Column, int]] = []
        self._staying: list[tuple[Column, int]] = []
        self._nullable = any(one.nullable for one in columns)
        self._marks = self._nullable or any(sink.arrow for sink in sinks)
        self._valid = 0  # a bit for each row of the chunk, if `_marks`
        for one, at in zip(columns, layout.args, strict=True):
            # The results of one chunk may lie where a scalar has to be for the next one.
            moves = one.rows is not None or at in layout.results
            (self._moving if moves else self._staying).append((one, at))
        if not begun:
            self._put_scalars()

    def _put_scalars(self) -> None:
        """Put what is the same for all chunks into the scratch."""
        self.driver.put(FIRST_AT, ZERO)
        for one, at in self._staying:
            self.driver.put(at, one.raw(0, min(self._layout.rows, self.rows)))

    def renew(self, driver: GuestDriver) -> None:
        super().renew(driver)
        self._put_scalars()

    def values(self, row: int) -> tuple[object, ...]:
        return row_values(self._columns, row)

    def fill(self) -> int:
        start = self.done
        chunk = min(self._layout.rows, self.rows - start)
        if self._failing is not None:
            chunk = self.limit(chunk)
        if self._burnt and start:
            chunk = self._fitting(chunk)
        stop, put = start + chunk, self.driver.put
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
        fuel = self.native.yield_fuel
        slices = most * self._burnt // (self.done * fuel)
        if not slices:
            return most
        # A little less, as rows differ.
        return slices * fuel * self.done * 63 // (64 * self._burnt) or most

    def collect(self, done: int) -> bool:
        if done != self._chunk:
            self._refuse()
        self.take(done)
        return True

    def take(self, stop: int) -> None:
        start, rows = self._first, stop - self._first
        if rows <= 0:
            return
        valid = self._valid >> start & (1 << rows) - 1 if start else self._valid
        if stop < self._chunk:
            valid &= (1 << rows) - 1
        for sink, at, size in self._giving:
            sink.add(self.driver.get(at + start * size, rows * size), rows, valid)

    def _refuse(self) -> None:
        """Raise `AbiError` for the row that gave a result out of its range."""
        which = int.from_bytes(self.driver.get(WHICH_AT, 4), "little")
        raw = int.from_bytes(self.driver.get(RAW_AT, 4), "little", signed=True)
        lift_number(self._binding.got, self._binding.returns[which], raw)
        raise AssertionError(f"{raw} is in range")
