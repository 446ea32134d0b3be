"""The cache for asyncio: its calls are awaited under asyncio, and cancelled with their tasks.

.. code-block::

    from trio_wasmcache import aio

    async with aio.open_cache() as cache:
        fib = await cache.register("fib", wasm, args=("i64",), returns="i64")
        async with asyncio.timeout(1.0):
            assert await fib.call(10) == 55

Trio and the cache run in a thread of their own, so that slices of guests do not delay the loop. The
way there and back makes a short call take five times as long as within Trio, or more if the machine
is busy. A batch (`AsyncioFunction.map`) has these costs once, and calls that are made at the same
time, as by `asyncio.gather`, share them. In a notebook, ``cache = await aio.open_cache()`` opens a
cache, and ``await cache.close()`` closes it.

- Each call runs in a copy of the caller's context (`contextvars`), so in the log it has what the
  caller has bound.
- Cancelling the task of a call stops the guest within a slice. The task ends when nothing uses its
  data any more.
- Sync host functions run in the cache's thread, on its event loop, which they should not block.
- A coroutine host function runs on the caller's loop, in a copy of the caller's context. In it,
  `trio_wasmcache.current_lease` has `memory`, and nothing else. If it is cancelled, or its loop is
  closed, the call raises `trio.ClosedResourceError`, and its instance is dropped. Its CPU time is
  not charged to the group.
- Closing the cache stops the guests, and cancels the coroutines of host functions and waits for
  them, while their loops run. Calls that are under way raise `trio.ClosedResourceError`.
- A cache may be used on several event loops in several threads. The program may end without closing
  it. After a fork, it belongs to the parent.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import threading
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Never,
    NoReturn,
    Self,
    TypeVar,
    Unpack,
    final,
    overload,
)

import trio

from . import _outside, _portal
from ._abi import names
from ._abi.base import Value
from ._abi.names import (
    AnyAbi,
    BoolName,
    BytesName,
    CqlBoolName,
    CqlBytesName,
    CqlFloatName,
    CqlIntName,
    CqlLongName,
    CqlStrName,
    FloatName,
    IntName,
    StrName,
)
from ._batch.failures import refuse_more
from ._cache.lease import Function, R_co, SuspendedLease, current_lease
from ._cache.open import open_cache as open_trio_cache
from ._cache.options import (
    AnyOptions,
    ComponentOptions,
    GroupChanges,
    Limits,
    RegisterOptions,
    SharedOptions,
    Wasm,
)
from ._core.config import CacheConfig, takes_config
from ._core.keys import INFERRED, Inferred
from ._core.metrics.stats import CacheStats, EntryInfo
from ._core.text import shown
from ._engine.base import GuestMemory
from ._outside import OutsideCache, OutsideFunction, OutsideGroup, plain
from ._portal import Completion, OpenGroup, Portal, Request
from ._profile.profile import Profile
from ._public import made, only_from
from ._runtime.runner import context_of_call
from ._runtime.user_code import awaits_elsewhere

__all__ = ["open_cache", "AsyncioCache", "AsyncioFunction", "AsyncioGroup"]

T = TypeVar("T")


@takes_config
def open_cache(
    config: CacheConfig | None = None, *, logger: object = None, label: str = ""
) -> AsyncioCache:
    """Return a cache that opens in a thread of its own when it is entered, or awaited.

    .. code-block::

        async with aio.open_cache(CacheConfig(max_size=100 * MiB)) as cache:
            await cache.register("fib", wasm, args=("i64",), returns="i64")

    The end of the block closes the cache, as `AsyncioCache.close` and the end of the program do.

    Args:
        config: the limits; `CacheConfig()` by default.
        logger: a structlog logger; ``structlog.get_logger("trio_wasmcache")`` by default. It is
            called from a thread of the cache's own.
        label: name of the cache in every event of its log, as in `trio_wasmcache.open_cache`.
    """
    return _open(partial(open_trio_cache, config, logger=logger, label=label))


def _open(opening: _portal.Opening) -> AsyncioCache:
    return made(AsyncioCache, Portal(opening, AsyncioCache.__name__))


# -- waiting on an event loop


@final
class _Mailbox:
    """Brings completions from a cache's thread to an event loop, all that wait in one step.

    It does not refer to the loop, by which it is found.
    """

    def __init__(self) -> None:
        self._box: collections.deque[_Waiting] = collections.deque()
        self._called = False  # whether the loop is to call `_deliver`

    def put(self, waiting: _Waiting) -> None:
        """Have `waiting` woken on its loop; in the cache's thread."""
        self._box.append(waiting)
        if not self._called:
            self._called = True
            try:
                waiting.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed, and nobody waits
                self._box.clear()

    def _deliver(self) -> None:
        # In this order: what is added from now on either is delivered below, or calls again.
        self._called = False
        try:
            while self._box:
                self._box[0].wake()
                self._box.popleft()
        finally:  # Ctrl-C may come here, and then the loop runs on for a while
            if self._box:
                asyncio.get_running_loop().call_soon(self._deliver)


@final
class _Waiting:
    """Wakes a coroutine that waits for a completion."""

    __slots__ = ("_mailbox", "future", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, mailbox: _Mailbox) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.future: asyncio.Future[None] | None = None
        """Future that the coroutine awaits now."""
        self._mailbox = mailbox

    def notify(self) -> None:
        """Wake the coroutine; in the cache's thread."""
        self._mailbox.put(self)

    def wake(self) -> None:
        """Wake the coroutine; on its loop."""
        future = self.future
        if future is not None and not future.done():
            future.set_result(None)

    async def wait(self, end: Completion, give_up: Callable[[], object]) -> None:
        """Wait for a completion that calls `notify`, whether cancelled or not.

        **Checkpoint:** if it has not ended yet.
        **Cancellation:** `give_up` is called, and the end is waited for.
        """
        cancelled: asyncio.CancelledError | None = None
        while not end.over:
            self.future = self.loop.create_future()
            try:
                await self.future
            except asyncio.CancelledError as error:
                if cancelled is None:  # anyio cancels in each step of the loop, until it ends
                    cancelled = error
                    give_up()
            except BaseException:  # this coroutine is closed, so it can't wait any more
                give_up()
                raise
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # which is in the frames of its traceback


@final
class _Caller:
    """Has requests run in a cache's thread, and waits for them.

    Args:
        portal: the thread.
        group: group in which they run; None: the one around the caller.
    """

    def __init__(self, portal: Portal, group: OpenGroup | None = None) -> None:
        self.portal: Portal = portal
        self._group = group
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = (
            weakref.WeakKeyDictionary()
        )
        # (reference to the loop of the last call, its mailbox): so it is seldom looked up.
        self._last: tuple[Callable[[], object], _Mailbox] = (object, _Mailbox())

    def waiting(self) -> _Waiting:
        """Return a new way to wake the coroutine that is running."""
        loop = asyncio.get_running_loop()
        last, mailbox = self._last
        if last() is not loop:
            found = self._mailboxes.get(loop)
            if found is None:
                found = self._mailboxes[loop] = _Mailbox()
            mailbox = found
            self._last = weakref.ref(loop), mailbox
        return _Waiting(loop, mailbox)

    async def run(self, what: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run an async function in the cache's thread, in the group."""
        group = self.portal.group_around() if self._group is None else self._group
        return await self.run_in(group, what, work)

    async def run_in(
        self, group: OpenGroup | None, what: str, work: Callable[[], Awaitable[T]]
    ) -> T:
        """Run an async function in the cache's thread, in a group or in none."""
        portal = self.portal
        portal.check(what)
        waiting = self.waiting()
        bridge = _Bridge(waiting.loop, portal)
        request = Request(work, what, None, group, waiting.notify)
        request.context.run(awaits_elsewhere.set, bridge.run)
        portal.submit(request)
        await waiting.wait(request, partial(portal.withdraw, request))
        return request.result()

    async def read(self, what: str, function: Callable[[], T]) -> T:
        """Call a function that only reads, in the cache's thread; here, if that has ended."""
        if self.portal.over:
            return function()
        return await self.run_in(None, what, partial(_outside.at_once, function))

    # -- what cache, group and function have in common

    async def call(
        self, function: Function[T] | str, args: Sequence[str] | None, values: tuple[object, ...]
    ) -> T:
        """Call a function once."""
        work = _outside.call_of(self.portal.cache, function, args, values)
        return await self.run(_outside.what("call", function), work)

    async def map(
        self,
        function: Function[Any] | str,
        args: Sequence[str] | None,
        columns: object,
        row_errors: dict[int, Exception] | None,
        **options: Any,
    ) -> Value:
        """Call a function for every row of some columns."""
        _outside.check_row_errors(row_errors)
        work = partial(
            _outside.map_rows, self.portal.cache, function, args, columns, row_errors, options
        )
        return await self.run(_outside.what("map", function), work)

    async def warm(self, name: str, args: Sequence[str] | None, count: int) -> None:
        """Load instances of a function."""
        work = partial(self.portal.cache.warm, name, args, count)
        await self.run(_outside.what("warm", name), work)


# -- coroutines of host functions

# Those by which the coroutine that is running is awaited, or was.
_bridges: contextvars.ContextVar[tuple[_Bridge, ...]] = contextvars.ContextVar(
    "trio_wasmcache_bridges", default=()
)


@final
class _Bridge:
    """Runs coroutines of host functions on the loop of a caller, in a copy of its context.

    It is made on that loop. All coroutines of a call run in the same copy.
    """

    __slots__ = ("_context", "_loop", "_thread", "portal", "waits")

    def __init__(self, loop: asyncio.AbstractEventLoop, portal: Portal) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self._context = contextvars.copy_context()
        self._context.run(_bridges.set, (*_bridges.get(), self))
        self.portal: Portal = portal
        """The cache's thread."""
        self.waits: bool = False
        """Whether a coroutine is under way, for which closing the cache waits."""

    async def run(self, awaitable: Awaitable[object], memory: GuestMemory | None) -> Value:
        """Await something on the loop, from the cache's thread; see `awaits_elsewhere`.

        Raises:
            trio.ClosedResourceError: the coroutine was cancelled, or the loop is closed.
            Exception: whatever the coroutine raised.

        **Checkpoint:** always.
        **Cancellation:** the coroutine is cancelled, and waited for while its loop runs.
        """
        name = current_lease().function.name
        lease = SuspendedLease(name, memory, self._thread)
        coroutine = _Coroutine(awaitable)
        self.waits = True
        try:
            try:
                self._loop.call_soon_threadsafe(coroutine.start, self._context, lease)
            except RuntimeError:
                raise _closed(name, "the event loop of its caller is closed") from None
            try:
                await self._wait(coroutine)
            except trio.Cancelled:
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(coroutine.cancel)
                with trio.CancelScope(shield=True):
                    await self._wait(coroutine, only_while_running=True)
                raise
        finally:
            self.waits = False
            lease.end()
            coroutine.abandon()
        if not coroutine.over:
            raise _closed(name, "the event loop of its caller was closed meanwhile")
        error = coroutine.error
        if error is None:
            return coroutine.value
        try:
            if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
                raise _closed(name, "it was cancelled") from error
            raise error
        finally:
            del error, coroutine

    async def _wait(self, coroutine: _Coroutine, *, only_while_running: bool = False) -> None:
        """Wait until a coroutine has ended, or its loop is closed, or does not run."""
        loop = self._loop
        while not coroutine.over:
            with trio.move_on_after(_portal.POLL):
                await coroutine.ended.wait()
            if loop.is_closed() or (only_while_running and not loop.is_running()):
                return


def _closed(name: str, why: str) -> trio.ClosedResourceError:
    return trio.ClosedResourceError(
        f"a coroutine host function that {shown(name)} called did not end: {why}"
    )


@final
class _Coroutine:
    """A coroutine of a host function, which runs in a task of its own on the caller's loop.

    It is made in the cache's thread.
    """

    def __init__(self, awaitable: Awaitable[object]) -> None:
        self._awaitable: Awaitable[object] | None = awaitable
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()  # held by whoever takes the awaitable
        self._task: asyncio.Task[None] | None = None
        self.ended: trio.Event = trio.Event()
        self.over: bool = False
        """Whether it has ended; `ended` is set soon after."""
        self.value: Value = None
        self.error: BaseException | None = None

    def start(self, context: contextvars.Context, lease: SuspendedLease) -> None:
        """Start its task; on the loop."""
        awaitable = self._take()
        if awaitable is None:
            return  # it was given up
        context.run(context_of_call.set, lease)
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(awaitable), context=context)
        self._task.add_done_callback(partial(self._done, awaitable))

    def cancel(self) -> None:
        """Cancel its task; on the loop."""
        if self._task is not None:
            self._task.cancel()

    def abandon(self) -> None:
        """Close the coroutine if it has not been started; in the cache's thread."""
        _close_unrun(self._take())

    def _take(self) -> Awaitable[object] | None:
        with self._lock:
            awaitable, self._awaitable = self._awaitable, None
            return awaitable

    async def _run(self, awaitable: Awaitable[object]) -> None:
        try:
            self.value = await awaitable
        except Exception as error:
            self._end(error)
        except BaseException as error:
            self._end(error)
            raise
        else:
            self._end(None)

    def _done(self, awaitable: Awaitable[object], _task: asyncio.Task[None]) -> None:
        if not self.over:  # the task was cancelled before its first step
            _close_unrun(awaitable)
            self._end(asyncio.CancelledError())

    def _end(self, error: BaseException | None) -> None:
        if self.over:
            return
        self.error = error
        self.over = True
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.ended.set)


def _close_unrun(awaitable: Awaitable[object] | None) -> None:
    """Close a coroutine that has not begun; otherwise Python warns that nobody awaited it."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


# -- what users hold


@final
@only_from("is made by register, and listed by functions()")
class AsyncioFunction(OutsideFunction[R_co]):
    """A registered function, to be called on any event loop.

    Use `AsyncioCache.register` or `AsyncioCache.functions` to get one. If the function is
    replaced, `call` and `map` use the new generation.
    """

    def __init__(self, caller: _Caller, function: Function[R_co]) -> None:
        super().__init__(function)
        self._caller = caller

    async def call(self, *values: object) -> R_co:
        """Acquire an instance, call it once, and give it back.

        Args:
            *values: an argument for each of the function's argument types.

        Returns:
            The result: see `Lease.call`.

        Raises:
            trio.ClosedResourceError: the cache or the group is closed, also while the call waits.
            RuntimeError: this is the cache's own thread, or a forked child.
            Exception: the errors of `Lease.__aenter__` and `Lease.call`.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice, and waited for.
        """
        return await self._caller.call(self._function, None, values)

    async def map(
        self,
        columns: object,
        *_more: Never,
        rows: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        max_errors: int = 1000,
        row_errors: dict[int, Exception] | None = None,
    ) -> Value:
        """Call the function for every row of some columns; much faster than one call for each row.

        Args:
            columns: a sequence with one column for each argument, or an Arrow table; see
                `Lease.map`. They must not be changed meanwhile.
            rows: number of rows; None: the length of the columns.
            on_error: what becomes of a row in which the guest fails: see `Lease.map`.
            max_errors: number of rows that may fail; the error of one more is raised.
            row_errors: dict to which the errors of failed rows are added, by row, at most 1,000;
                None: they are dropped.

        Returns:
            A column for each result: see `Lease.map`.

        Raises:
            trio.ClosedResourceError: the cache or the group is closed, also while the batch runs.
            RuntimeError: this is the cache's own thread, or a forked child.
            Exception: the errors of `Lease.__aenter__` and `Lease.map`.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice, and waited for.
        """
        if _more:
            refuse_more(_more)
        return await self._caller.map(
            self._function,
            None,
            columns,
            row_errors,
            rows=rows,
            on_error=on_error,
            max_errors=max_errors,
        )


class _Calls:
    """What a cache and a group have in common: calls of any function.

    Those of a group run in it, whatever group the caller is in. Those of a cache run in the
    innermost of its groups that is around the caller.
    """

    _caller: _Caller

    @overload
    async def call(
        self,
        function: AsyncioFunction[T],
        *values: object,
        args: Sequence[str] | None = None,
    ) -> T: ...

    @overload
    async def call(
        self,
        function: str,
        *values: object,
        args: Sequence[str] | None = None,
    ) -> Any: ...

    async def call(
        self,
        function: AsyncioFunction[Any] | str,
        *values: object,
        args: Sequence[str] | None = None,
    ) -> Any:
        """Call a function once: see `AsyncioFunction.call`.

        Args:
            function: the function, or its name.
            *values: an argument for each of its argument types.
            args: types of its arguments, as registered; None if there is only one function of that
                name.

        Raises:
            Exception: the errors of `AsyncioFunction.call`.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice, and waited for.
        """
        return await self._caller.call(plain(function), args, values)

    async def map(
        self,
        function: AsyncioFunction[Any] | str,
        columns: object,
        *_more: Never,
        args: Sequence[str] | None = None,
        rows: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        max_errors: int = 1000,
        row_errors: dict[int, Exception] | None = None,
    ) -> Value:
        """Call a function for every row of some columns: see `AsyncioFunction.map`.

        Args:
            function: the function, or its name.
            columns: a sequence with one column for each argument, or an Arrow table.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
            rows: number of rows; None: the length of the columns.
            on_error: what becomes of a row in which the guest fails: see `Lease.map`.
            max_errors: number of rows that may fail; the error of one more is raised.
            row_errors: dict to which the errors of failed rows are added, by row, at most 1,000;
                None: they are dropped.

        Raises:
            Exception: the errors of `AsyncioFunction.map`.

        **Checkpoint:** always.
        **Cancellation:** the guest is stopped within a slice, and waited for.
        """
        if _more:
            refuse_more(_more, "function, ")
        return await self._caller.map(
            plain(function),
            args,
            columns,
            row_errors,
            rows=rows,
            on_error=on_error,
            max_errors=max_errors,
        )

    async def warm(
        self,
        name: str,
        args: Sequence[str] | None = None,
        count: int = 1,
    ) -> None:
        """Load instances of a function ahead of use: see `InstanceCache.warm`.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
            count: number of instances; 1 to the function's concurrency.

        Raises:
            Exception: the errors of `InstanceCache.warm`.

        **Checkpoint:** always.
        **Cancellation:** instances that were loaded before stay.
        """
        await self._caller.warm(name, args, count)


@final
@only_from("is made by scheduling_group: async with cache.scheduling_group(name, ...) as group")
class AsyncioGroup(OutsideGroup, _Calls):
    """A scheduling group for calls of any tasks: a capacity, a part of the CPU, instances.

    .. code-block::

        async with cache.scheduling_group("reports", capacity=2, shares=50) as group:
            await fib.call(20)  # in the group, as the block is, and the tasks that it makes
            queue.put_nowait(group.call(fib, 20))  # so is this, in whatever task it is awaited

    Use `AsyncioCache.scheduling_group` to make one. When the block ends, calls in the group that
    are under way raise `trio.ClosedResourceError`, and its instances are evicted.
    """

    def __init__(self, portal: Portal, name: str, limits: dict[str, Any]) -> None:
        super().__init__(portal, name, limits)
        self._caller = _Caller(portal, self._group)

    if not TYPE_CHECKING:  # checkers find these mistakes by themselves

        def __enter__(self) -> NoReturn:
            raise self._misused("with")

        def __exit__(self, *_: object) -> NoReturn:
            raise AssertionError("it can't be entered so")

        def __await__(self) -> NoReturn:
            raise self._misused("await")

        def _misused(self, way: str) -> TypeError:
            right = f"async with cache.scheduling_group({shown(self.name)}, ...) as group"
            return TypeError(f"use {right}, not {way}")

    async def __aenter__(self) -> Self:
        """Open the group.

        Raises:
            RuntimeError: it was entered before, or this is the cache's own thread, or a forked
                child.
            Exception: the errors of `InstanceCache.scheduling_group`.

        **Checkpoint:** always.
        **Cancellation:** nothing is open.
        """
        self._check_entered_once()
        group, around = self._group, self._portal.group_around()
        what = f"scheduling_group {shown(group.name)}"
        try:
            await self._caller.run_in(around, what, partial(self._portal.open_group, group))
        except BaseException:
            if group.is_open:  # it was interrupted just then
                await self._close()
            raise
        self._reset = self._portal.enter(group)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the group; an exception of the block is raised unchanged.

        **Checkpoint:** always.
        **Cancellation:** the group is closed all the same.
        """
        self._leave()
        await self._close()

    async def _close(self) -> None:
        if self._portal.over or self._portal.is_copy():
            return
        with suppress(trio.ClosedResourceError):  # the cache is closed, and the group with it
            await self._caller.run_in(
                None, f"closing of group {shown(self.name)}", self._group.close
            )

    async def resize(self, **changes: Unpack[GroupChanges]) -> None:
        """Change limits of the group: see `SchedulingGroup.resize`.

        Args:
            **changes: `capacity`, `shares`, `max_size`, `reserved_size` or `cpu_limit`.

        Raises:
            Exception: the errors of `SchedulingGroup.resize`.

        **Checkpoint:** always.
        **Cancellation:** it may have been done.
        """
        work = partial(_outside.at_once, partial(self._group.resize, **changes))
        await self._caller.run_in(None, f"resize of group {shown(self.name)}", work)


@final
@only_from("is made by aio.open_cache: async with open_cache(...) as cache")
class AsyncioCache(OutsideCache, _Calls):
    """Registered functions, and their instances, to be used on any event loop.

    Use `open_cache` to make one; the end of its block, `close` and the end of the program close it.
    A call in the cache's own thread, where sync host functions run, raises `RuntimeError`; so does
    any call in a forked child.
    """

    def __init__(self, portal: Portal) -> None:
        super().__init__(portal)
        self._caller = _Caller(portal)
        self._begun = False  # whether it was opened, or is being opened

    if not TYPE_CHECKING:  # checkers find this mistake by themselves

        def __enter__(self) -> NoReturn:
            raise TypeError("use async with aio.open_cache(...) as cache, not with")

        def __exit__(self, *_: object) -> NoReturn:
            raise AssertionError("it can't be entered so")

    def __await__(self) -> Generator[Any, None, Self]:
        """Open the cache, which `close` is to close."""
        return self._opened().__await__()

    async def __aenter__(self) -> Self:
        """Open the cache, unless it is open.

        Raises:
            TypeError, ValueError, CacheDirError: see `trio_wasmcache.open_cache`.
            RuntimeError: another task is opening it, the program is ending, or the system has no
                thread for it.
            trio.ClosedResourceError: it was closed.

        **Checkpoint:** unless it is open.
        **Cancellation:** nothing is open.
        """
        return await self._opened()

    async def _opened(self) -> Self:
        portal = self._portal
        if self._begun:
            if portal.over:
                raise trio.ClosedResourceError("the cache is closed; open another")
            assert portal.cache  # raises if it is still being opened
            return self
        self._begun = True
        waiting = self._caller.waiting()
        opened = Completion(waiting.notify)
        try:
            portal.start(opened)
        except BaseException:
            self._begun = False  # or `close` would wait for a thread that there is not
            raise
        try:
            await waiting.wait(opened, lambda: None)
        except asyncio.CancelledError:
            await self.close()
            raise
        except BaseException:  # this coroutine is closed
            portal.close(Completion(lambda: None))
            raise
        portal.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the cache; an exception of the block is raised unchanged.

        **Checkpoint:** always.
        **Cancellation:** the cache is closed all the same.
        """
        await self.close()

    async def close(self) -> None:
        """Close the cache: refuse calls, stop the guests, free their memory, write the log out.

        Calls that others await raise `trio.ClosedResourceError`. Coroutines of host functions are
        cancelled, and waited for while their loops run. It may be called again, and does nothing in
        a forked child.

        Raises:
            RuntimeError: this is the cache's own thread, or a coroutine host function of the cache.

        **Checkpoint:** if it was open.
        **Cancellation:** the cache is closed all the same.
        """
        portal = self._portal
        if portal.is_copy() or not self._begun:
            return
        portal.check("close")
        if any(bridge.waits and bridge.portal is portal for bridge in _bridges.get()):
            raise RuntimeError(
                "close: a coroutine host function can't wait for the cache to be closed, which "
                "waits for it: close the cache once the call has ended"
            )
        waiting = self._caller.waiting()
        closed = Completion(waiting.notify)
        portal.close(closed)
        try:
            await waiting.wait(closed, lambda: None)
        finally:
            if closed.over:
                portal.join()
        portal.check_failure()

    # -- functions

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: IntName | CqlIntName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[int]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: FloatName | CqlFloatName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[float]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BoolName | CqlBoolName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[bool]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: StrName,
        abi: names.TextAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[str]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: StrName,
        abi: names.ScriptAbi,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[str | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BytesName,
        abi: names.TextAbi | None = None,
        called_on_null: Literal[False] = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[bytes]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BytesName,
        abi: names.ScriptAbi,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[bytes | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: None = None,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlIntName | CqlLongName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[int | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlFloatName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[float | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlBoolName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[bool | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlStrName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[str | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlBytesName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[bytes | None]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | Sequence[str] | None = None,
        abi: AnyAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[RegisterOptions],
    ) -> AsyncioFunction[Any]: ...

    @overload
    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | None = ...,
        called_on_null: bool = False,
        **options: Unpack[ComponentOptions],
    ) -> AsyncioFunction[Any]: ...

    async def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | Sequence[str] | Inferred | None = INFERRED,
        abi: AnyAbi | None = None,
        called_on_null: bool = False,
        **options: Unpack[AnyOptions],
    ) -> AsyncioFunction[Any]:
        """Compile a module, and register one of its exports: see `InstanceCache.register`.

        Args:
            name: name of the function.
            wasm: bytes of a module, WebAssembly text as a `str`, or the path of a file with either.
            returns: type of the result; several types for a tuple; None: it returns nothing. It may
                be left out for components.
            abi: convention by which values cross; None: chosen by the module's exports.
            called_on_null: whether the function is called if an argument is None.
            **options: `args`, `export`, `imports`, `wasi`, `prepare`, `missing`, `concurrency`,
                `isolation` and `replace`, as for `InstanceCache.register`.

        Raises:
            trio.ClosedResourceError: the cache is closed.
            Exception: the errors of `InstanceCache.register`.

        **Checkpoint:** always.
        **Cancellation:** nothing is registered.
        """
        work: Callable[[], Awaitable[Function[Any]]] = partial(
            self._portal.cache.register,
            name,
            wasm,
            returns=returns,
            abi=abi,
            called_on_null=called_on_null,
            **options,
        )
        function = await self._caller.run(_outside.what("register", name), work)
        return made(AsyncioFunction, self._caller, function)

    async def register_component(
        self,
        wasm: Wasm,
        interface: str | None = None,
        prefix: str = "",
        *,
        called_on_null: bool = False,
        **options: Unpack[SharedOptions],
    ) -> tuple[AsyncioFunction[Any], ...]:
        """Register all functions of a component: see `InstanceCache.register_component`.

        Args:
            wasm: bytes of a component, its text as a `str`, or the path of a file with either.
            interface: name of the interface whose functions are registered; None: all functions.
            prefix: beginning of the functions' names in the cache.
            called_on_null: whether functions are called if an argument is None.
            **options: `imports`, `wasi`, `prepare`, `missing`, `concurrency`, `isolation` and
                `replace`, as for `InstanceCache.register`.

        Raises:
            trio.ClosedResourceError: the cache is closed.
            Exception: the errors of `InstanceCache.register_component`.

        **Checkpoint:** always.
        **Cancellation:** nothing is registered.
        """
        work: Callable[[], Awaitable[tuple[Function[Any], ...]]] = partial(
            self._portal.cache.register_component,
            wasm,
            interface,
            prefix,
            called_on_null=called_on_null,
            **options,
        )
        functions = await self._caller.run(_outside.what("register_component", prefix), work)
        return tuple(made(AsyncioFunction, self._caller, function) for function in functions)

    async def remove(self, name: str, args: Sequence[str] | None = None) -> None:
        """Remove a function, or all functions of a name: see `InstanceCache.remove`.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None: all functions of that name.

        Raises:
            Exception: the errors of `InstanceCache.remove`.

        **Checkpoint:** always.
        **Cancellation:** it may have been done.
        """
        work = partial(_outside.at_once, partial(self._portal.cache.remove, name, args))
        await self._caller.run(_outside.what("remove", name), work)

    async def functions(self) -> tuple[AsyncioFunction[Any], ...]:
        """Return the registered functions, in order of registration; also of a closed cache.

        Raises:
            trio.ClosedResourceError: the cache is just being closed, and not closed yet.

        **Checkpoint:** unless the cache is closed.
        **Cancellation:** nothing changes.
        """
        found = await self._caller.read("functions", self._portal.cache.functions)
        return tuple(made(AsyncioFunction, self._caller, function) for function in found)

    # -- groups

    def scheduling_group(
        self,
        name: str,
        *,
        capacity: float,
        shares: int = 100,
        max_size: int | None = None,
        reserved_size: int = 0,
        cpu_limit: float | None = None,
    ) -> AsyncioGroup:
        """Return an `AsyncioGroup`, which opens when its block is entered.

        Calls in the block run in the group, and those of tasks that are made in it. Other tasks use
        the methods of the group.

        Args:
            name: name of the group, different from those of other open groups.
            capacity: number of calls that may hold or wait for instances at the same time.
            shares: part of the CPU, relative to other groups; 1 to 1,000,000.
            max_size: bytes of the group's idle instances together, at most. None: only the
                `max_size` of the cache limits them.
            reserved_size: bytes of the group's idle instances that others' need does not evict for
                size.
            cpu_limit: cores that the group's guests may use. None: no limit.
        """
        limits = {
            "capacity": capacity,
            "shares": shares,
            "max_size": max_size,
            "reserved_size": reserved_size,
            "cpu_limit": cpu_limit,
        }
        return made(AsyncioGroup, self._portal, name, limits)

    # -- limits and numbers

    async def resize(self, **limits: Unpack[Limits]) -> None:
        """Change fields of the configuration: see `InstanceCache.resize`.

        Args:
            **limits: fields of `CacheConfig`, in their units.

        Raises:
            Exception: the errors of `InstanceCache.resize`.

        **Checkpoint:** always.
        **Cancellation:** it may have been done.
        """
        work = partial(_outside.at_once, partial(self._portal.cache.resize, **limits))
        await self._caller.run("resize", work)

    async def profile(
        self,
        seconds: float = 10,
        group: str | None = None,
        function: str | None = None,
    ) -> Profile:
        """Find out where guests burn their fuel, while they serve: see `InstanceCache.profile`.

        Args:
            seconds: length of the window, without the time for compiling; greater than 0.
            group: name of the group whose instances are profiled; None: those of all groups.
            function: name of the function to profile; None: all that have been called, or
                all if none has been.

        Raises:
            Exception: the errors of `InstanceCache.profile`.

        **Checkpoint:** always.
        **Cancellation:** the window ends, and what was found is lost.
        """
        work = partial(self._portal.cache.profile, seconds, group, function)
        return await self._caller.run("profile", work)

    async def stats(self) -> CacheStats:
        """Return counters, distributions and gauges of this moment; also of a closed cache.

        Raises:
            trio.ClosedResourceError: the cache is just being closed, and not closed yet.

        **Checkpoint:** unless the cache is closed.
        **Cancellation:** nothing changes.
        """
        return await self._caller.read("stats", self._portal.cache.stats)

    async def entries(self) -> tuple[EntryInfo, ...]:
        """Return an `EntryInfo` for each function and group with instances or waiters.

        Raises:
            trio.ClosedResourceError: the cache is just being closed, and not closed yet.

        **Checkpoint:** unless the cache is closed.
        **Cancellation:** nothing changes.
        """
        return await self._caller.read("entries", self._portal.cache.entries)

    def __repr__(self) -> str:
        what = f"of {self._portal.cache!r}" if self._portal.is_open else "not open"
        return f"<AsyncioCache {what}>"
