"""An instance that its lease lends to another thread, which begins small batches in it.

So a thread that calls for one small batch after the other, as DuckDB does for each vector, need not
go to the Trio run and back for each of them, which takes longer than the batch.

1. The thread holds the lock while it uses the instance: for a slice at most. The Trio run holds it
   while it takes the instance back.
2. The thread keeps what has ended in its first slice. Whatever else has come of a batch, the Trio
   run goes on with, for as long as it takes. If the instance was taken back before that, the batch
   begins anew in another: it has no host functions, so nobody sees that.
3. An instance is lent for a short time, and shorter if it is not used, or if others wait for one.
   In between, the lease ends as any does, so that all who wait get their turn.
4. The thread counts, and the Trio run books: fuel, calls and charges.
5. A signal handler, or a finalizer, that has interrupted the thread while it holds the lock must
   not wait for the end of the lease: see `Lent.used_here`.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, final

import trio

from .._abi.base import Value
from .._engine.base import MAX_FUEL, NoMemoryError
from .._runtime.bound import BoundFunction

if TYPE_CHECKING:
    from .._batch.small import SmallBatches

# Seconds after which an instance that is not used is taken back, and how long it is lent at most.
# Taking it back and lending it again costs 0.2 ms.
UNUSED: Final = 0.005
LONGEST: Final = 0.05
LOOKS: Final = round(LONGEST / UNUSED)
# Seconds between two attempts to take it back from a thread that uses it.
AGAIN: Final = 0.001


@final
class Begun:
    """A batch that the other thread has begun, and that has not ended well in its first slice."""

    __slots__ = ("arrow", "columns", "fuel", "result", "rows")

    def __init__(self, columns: Any, rows: int, arrow: bool, fuel: int, result: object) -> None:
        self.columns: Any = columns
        self.rows: int = rows
        self.arrow: bool = arrow
        self.fuel: int = fuel
        """Units of fuel with which it has begun."""
        self.result: object = result
        """The exception, or the result, of `SmallBatches.begin`."""


@final
class Lent:
    """An instance while it is lent. `Lease.lend` makes it.

    Args:
        bound: the function in the instance.
        small: what begins its small batches.
        limit: bytes of the results of a batch, at most.
        book: function that books the fuel of some batches.
        take_back: function that ends it, with the fuel of the last batches; and whether one has
            begun that has not ended, so that the instance can't be used.
        go_on: function that goes on with a batch in the lease.
    """

    def __init__(
        self,
        bound: BoundFunction,
        small: SmallBatches,
        limit: int,
        book: Callable[[list[int]], None],
        take_back: Callable[[list[int], bool], None],
        go_on: Callable[[Begun], Awaitable[Value]],
    ) -> None:
        self._bound = bound
        self._small = small
        self._limit = limit
        self._book = book
        self._take_back = take_back
        self._go_on = go_on
        self._lock = threading.Lock()
        self._user = 0  # identifier of the thread that has the lock for a batch, or takes it
        self._burnt: list[int] = []  # fuel of batches that are not booked yet
        self._dirty = False  # whether one has begun, and has not ended
        self._ended = False
        self._leaving = False  # set by the Trio run, for the thread to begin no further batch
        self._wanted = trio.Event()
        self._went_on: trio.Event | None = None  # set when `go_on` has ended

    # -- in the other thread

    @property
    def used_here(self) -> bool:
        """Whether this thread is in the midst of a batch: a signal handler, or a finalizer, asks.

        Then nothing may wait here for the instance, which the thread has until they return.
        """
        return self._user == get_ident() and self._lock.locked()

    def map(self, columns: object) -> tuple[Value] | Begun | None:
        """Map a small batch; return its results, or what has begun.

        None: nothing has begun, as it is no small batch, or the instance is to be taken back.
        """
        small = self._small
        looked = small.look_at(columns)
        if looked is None:
            return None
        rows, cells, arrow = looked
        fuel = rows * small.row_fuel
        if rows * small.result_size > self._limit or fuel > MAX_FUEL:
            return None
        if self._leaving or self._lock.locked():
            return None  # the Trio run has it; or this is a signal handler, in the midst of a batch
        entry = self._bound.entry
        self._user = get_ident()
        try:
            with self._lock:
                if self._ended or self._dirty or entry.waiting or entry.function.retired:
                    return None
                self._dirty = True
                begun: object
                try:
                    begun = small.begin(rows, cells, fuel)
                except NoMemoryError:  # for its stack: the guest has not run
                    self._dirty = False
                    return None
                except BaseException as error:
                    begun = error
                if begun != rows:
                    return Begun(columns, rows, arrow, fuel, begun)
                self._burnt.append(fuel - self._bound.native.fuel_left())
                self._dirty = False
                return (small.results(rows, arrow),)
        finally:
            self._user = 0

    # -- in the Trio run

    async def go_on(self, begun: Begun) -> tuple[Value] | None:
        """Go on with a batch that the other thread has begun; the instance is not lent any more.

        Returns:
            The results; None if the instance has been taken back.

        Raises:
            trio.ClosedResourceError: the cache has been closed meanwhile.
            Exception: the errors of `Lease.map`.
        """
        with self._lock:
            if self._ended:
                return None
            self._dirty = False
            self._end()
            self._went_on = trio.Event()
        try:
            return (await self._go_on(begun),)
        finally:
            self._went_on.set()
            self._wanted.set()

    async def hold(self) -> None:
        """Wait until the instance is not used any more, or others should have it.

        A batch that `go_on` has under way is waited for to its end.

        **Checkpoint:** always.
        **Cancellation:** it is taken back.
        """
        try:
            for _ in range(LOOKS):
                with trio.move_on_after(UNUSED):
                    await self._wanted.wait()
                    break
                if self._ended:
                    break
                if not self._lock.acquire(blocking=False):
                    continue  # it is used
                burnt, self._burnt = self._burnt, []
                begun = self._dirty  # `go_on` will soon be called
                self._lock.release()
                if burnt:
                    self._book(burnt)
                elif not begun:
                    break
        finally:
            self._leaving = True
            with trio.CancelScope(shield=True):
                # Not by waiting for the lock: a signal handler may have interrupted the thread that
                # holds it, and ask something of this run.
                while not self._lock.acquire(blocking=False):  # noqa: ASYNC110 -- as above
                    await trio.sleep(AGAIN)
            self._end()
            self._lock.release()
        if self._went_on is not None:
            await self._went_on.wait()

    def give_up(self) -> None:
        """Have the instance taken back soon."""
        self._leaving = True
        self._wanted.set()

    def end(self) -> None:
        """Take the instance back now."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        burnt, self._burnt = self._burnt, []
        self._take_back(burnt, self._dirty)
