"""A thread in which Trio and one cache run, for callers in other threads and on other event loops.

1. A call from outside is a `Request`: a task of the cache's Trio run, in a copy of the caller's
   context. Only the cache's thread changes it; its caller waits until it is over, whatever happens,
   as the guest may be using the caller's data.
2. All requests that wait when the thread wakes are started in that one pass.
3. Closing goes in this order: requests are refused, those under way are cancelled and waited for,
   with the coroutines that they have on other loops; then the cache is closed, its log is flushed,
   and the thread ends. The end of the program does the same, while its other threads still run.
4. A portal belongs to one process. After a fork, the child's copy refuses everything.

Rejected: the portal of anyio (`anyio.from_thread.start_blocking_portal`). It hangs at the end of a
program that does not close it, and in forked children; Ctrl-C in a waiting caller leaves the guest
running and its instance taken; a caller can't wait for the end of a call that it has cancelled; and
a call takes 2.4 times the CPU time. Code around it mends all but the children. Also rejected:
`trio.from_thread.run`, which has no timeout, and after Ctrl-C leaves the guest running; and Trio as
a guest of asyncio (`trio.lowlevel.start_guest_run`), where each slice of a guest delays asyncio.
"""

from __future__ import annotations

import atexit
import collections
import concurrent.futures.thread
import contextlib
import contextvars
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Generic, TypeVar, Unpack, final

import trio

from ._abi.base import Value
from ._cache.cache import InstanceCache
from ._cache.group import SchedulingGroup
from ._cache.lease import Function
from ._cache.lent import Lent
from ._cache.options import GroupChanges
from ._core.text import shown

T = TypeVar("T")

# Seconds after which a thread that waits looks whether it was interrupted: a signal wakes the main
# thread at once, but `_thread.interrupt_main` and exceptions set for a thread wake no lock.
POLL = 0.1
# Workers that are kept for later requests. One takes 2 KB, and making one about 20 us.
MAX_IDLE = 100

Opening = Callable[[], AbstractAsyncContextManager[InstanceCache]]
"""Function that returns the block of a cache, such as `trio_wasmcache.open_cache`."""


class Completion:
    """The end of something in the cache's thread, which a caller waits for.

    Args:
        notify: function that wakes the caller. The cache's thread calls it, once.
    """

    __slots__ = ("_notify", "over")

    def __init__(self, notify: Callable[[], object]) -> None:
        self._notify = notify
        self.over: bool = False
        """Whether it has ended; set just before `notify` is called."""

    def finish(self) -> None:
        """Note the end, and wake the caller."""
        if not self.over:
            self.over = True
            self._notify()


@final
class Request(Completion, Generic[T]):
    """A call from outside: an async function to run in the cache's thread.

    Args:
        work: the async function.
        what: what it does, for messages and as the name of its task.
        timeout: seconds from now after which it is cancelled; None: none.
        group: the open group to run it in; None: none.
        notify: function that wakes the caller.
    """

    __slots__ = (
        "_deadline",
        "_group",
        "_scope",
        "_timeout",
        "_value",
        "_work",
        "context",
        "error",
        "what",
        "withdrawn",
    )

    def __init__(
        self,
        work: Callable[[], Awaitable[T]],
        what: str,
        timeout: float | None,
        group: OpenGroup | None,
        notify: Callable[[], object],
    ) -> None:
        self._notify = notify
        self.over = False
        self._work = work
        self._timeout = timeout
        # The time until it is started counts, too.
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._group = group
        self._scope: trio.CancelScope | None = None
        self._value: T | None = None
        self.what: str = what
        self.context: contextvars.Context = contextvars.copy_context()
        """Copy of the caller's context, in which it runs."""
        self.error: BaseException | None = None
        """Exception by which it ended."""
        self.withdrawn: bool = False
        """Whether its caller has given it up."""

    @property
    def group(self) -> OpenGroup | None:
        """Group in which it runs; None: in none."""
        return self._group

    @property
    def timed(self) -> bool:
        """Whether it has a timeout."""
        return self._timeout is not None

    def begin(self, scope: trio.CancelScope) -> None:
        """Have it cancelled by a scope from now on, in which its task is to `run` it."""
        self._scope = scope
        if self._timeout is not None:
            scope.deadline = trio.current_time() + self._deadline - time.monotonic()

    async def run(self) -> None:
        """Run the function, in the scope that it began with, and finish.

        Raises:
            trio.Cancelled: it was cancelled; `cancelled` must be called after the scope.
        """
        try:
            self._value = await self._work()
        except BaseException as error:
            self.error = _without_cancelled(error)
            if self.error is None:
                raise
        self.finish()

    async def run_in_group(self) -> None:
        """Run the function in a task of its own, which belongs to the group."""
        scope = self._scope
        assert scope is not None
        # A task that is cancelled from outside may end without saying so.
        with suppress_cancelled(), scope:
            await self.run()
            return
        self.cancelled()

    def cancelled(self) -> None:
        """End it, as its task was cancelled."""
        group, scope = self._group, self._scope
        assert scope is not None
        if not scope.cancelled_caught:
            closed = "the cache" if group is None else f"group {shown(group.name)} or the cache"
            self.refuse(f"{closed} was closed meanwhile")
        elif self.withdrawn:
            self.refuse("it was cancelled")
        else:
            self.error = TimeoutError(
                f"{self.what} was stopped, as it did not end within its timeout of "
                f"{self._timeout:g} seconds"
            )
            self.finish()

    def withdraw(self) -> None:
        """Cancel it, as its caller no longer wants it; in the cache's thread."""
        if self.over:
            return
        self.withdrawn = True
        if self._scope is not None:
            self._scope.cancel()
        else:  # not started yet
            self.refuse("it was cancelled")

    def refuse(self, why: str) -> None:
        """End it before it was started, or as it is cancelled, with `ClosedResourceError`."""
        self.error = trio.ClosedResourceError(f"{self.what}: {why}")
        self.finish()

    def result(self) -> T:
        """Return what the function returned, or raise what it raised."""
        error, self.error = self.error, None
        if error is None:
            value: Any = self._value
            return value  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            del self, error  # they are in the frames of the error's traceback


@contextlib.contextmanager
def suppress_cancelled() -> Iterator[None]:
    """Drop `trio.Cancelled`, also in a group, from the end of a task."""
    try:
        yield
    except BaseException as error:
        if _without_cancelled(error) is not None:
            raise


def _without_cancelled(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        rest: BaseException | None = error.split(trio.Cancelled)[1]
        return rest
    return None if isinstance(error, trio.Cancelled) else error


@final
class Worker:
    """A task of a cache's run that runs requests one after the other, to save making a task.

    Each runs in its own context, and all that are not cancelled in one cancel scope.

    Args:
        idle: workers that wait for a request.
    """

    def __init__(self, idle: list[Worker]) -> None:
        self._idle = idle
        self._request: Request[Any] | None = None
        self._scope = trio.CancelScope()
        self._task: trio.lowlevel.Task | None = None

    def give(self, request: Request[Any], nursery: trio.Nursery) -> None:
        """Have a request run; the worker is new, or was taken from `idle`."""
        self._request = request
        request.begin(self._scope)
        task = self._task
        if task is None:
            request.context.run(partial(nursery.start_soon, self._run, name=request.what))
        else:
            # Trio enters the context for each step of a task, so it may change between two.
            task.context = request.context
            task.name = request.what
            trio.lowlevel.reschedule(task)

    async def _run(self) -> None:
        self._task = trio.lowlevel.current_task()
        with suppress_cancelled():
            while await self._serve():
                self._scope = trio.CancelScope()
        self._end_request()

    async def _serve(self) -> bool:
        """Run requests until one is cancelled; return whether to go on in a new scope."""
        task = self._task
        assert task is not None
        with self._scope as scope:
            while True:
                request = self._request
                if request is not None:
                    await request.run()
                    if request.timed:
                        scope.deadline = math.inf
                    self._request = request = None
                if len(self._idle) >= MAX_IDLE:
                    return False
                task.context = contextvars.Context()  # or it keeps what the caller has bound
                self._idle.append(self)
                await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._end_request()
        return True

    def _end_request(self) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.cancelled()

    def _abort(self, _: object) -> trio.lowlevel.Abort:
        self._idle.remove(self)
        return trio.lowlevel.Abort.SUCCEEDED


@final
class OpenGroup:
    """A scheduling group that is open in the cache's thread, held by a task of its own there."""

    def __init__(self, name: str, limits: dict[str, Any]) -> None:
        self.name: str = name
        self._limits = limits
        self.trio: SchedulingGroup | None = None
        """The group, once it is open."""
        self.closed: bool = False
        """Whether it takes no more requests."""
        self._gone: trio.Event | None = None

    async def hold(self, cache: InstanceCache, *, task_status: trio.TaskStatus[None]) -> None:
        """Open the group, and keep it open until it is closed.

        Raises:
            Exception: the errors of `InstanceCache.scheduling_group`.
        """
        self._gone = trio.Event()
        try:
            async with cache.scheduling_group(self.name, **self._limits) as self.trio:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.closed = True
            self._gone.set()

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self.trio is not None and not self.closed

    def resize(self, **changes: Unpack[GroupChanges]) -> None:
        """Change limits of the group; in the cache's thread.

        Raises:
            trio.ClosedResourceError: the group is not open.
            Exception: the errors of `SchedulingGroup.resize`.
        """
        if self.trio is None:
            raise trio.ClosedResourceError(f"group {shown(self.name)} is not open")
        self.trio.resize(**changes)

    def start(self, request: Request[Any]) -> None:
        """Start a request as a task of the group, or refuse it."""
        if self.trio is None or self.closed:
            request.refuse(f"group {shown(self.name)} is closed")
            return
        request.begin(trio.CancelScope())
        start_soon = self.trio.start_soon
        request.context.run(partial(start_soon, request.run_in_group, name=request.what))

    async def close(self) -> None:
        """Close the group: refuse requests, cancel those under way, and wait for their end."""
        if self.trio is None or self._gone is None:
            return
        self.closed = True
        self.trio.cancel_scope.cancel()
        await self._gone.wait()


_groups_around: contextvars.ContextVar[tuple[tuple[Portal, OpenGroup], ...]] = (
    contextvars.ContextVar("trio_wasmcache_portal_groups", default=())
)
"""The groups in whose blocks the caller is, of all portals, innermost last."""


@final
class Portal:
    """The thread, for callers in other threads of the process.

    Args:
        opening: function that returns the block of the cache.
        kind: name of the class that its users see, for messages.
    """

    def __init__(self, opening: Opening, kind: str) -> None:
        self._opening = opening
        self._kind = kind
        self._pid = os.getpid()
        self._inbox: collections.deque[Request[Any]] = collections.deque()
        self._endings: collections.deque[Completion] = collections.deque()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._failure: BaseException | None = None
        self._cache: InstanceCache | None = None
        self._idle: list[Worker] = []
        self._lent: set[Lent] = set()  # instances that are lent to other threads
        self._woken = False  # whether `_take` is going to run
        self._closing = False  # whether requests are refused
        self._over = False  # whether nothing runs in the thread any more
        self._thread: threading.Thread | None = None
        self._ident = 0  # identifier of the thread while it runs

    def start(self, opened: Completion) -> None:
        """Start the thread, and open the cache in it; `opened` is when that is done, or failed.

        Raises:
            RuntimeError: the system has no thread, or the program is ending.
        """
        thread = threading.Thread(
            target=self._main,
            args=(opened,),
            name="trio_wasmcache",
            # Only in case that closing fails: the end of the program waits for the thread.
            daemon=True,
        )
        self._thread = thread
        _all.start(self, thread)

    @property
    def cache(self) -> InstanceCache:
        """The cache, once it is open.

        Raises:
            RuntimeError: it is not open yet.
        """
        if self._cache is None:
            raise RuntimeError(
                f"this {self._kind} is not open yet: use async with open_cache(...) as cache, or "
                "cache = await open_cache(...)"
            )
        return self._cache

    @property
    def is_open(self) -> bool:
        """Whether the cache has been opened; it may be closed by now."""
        return self._cache is not None

    def check_open(self) -> None:
        """Raise the exception by which opening the cache failed, if it did."""
        if self._cache is None:
            self.join()
            self.check_failure()

    @property
    def over(self) -> bool:
        """Whether the cache is closed, so that it may be read anywhere."""
        return self._over

    def is_alive(self) -> bool:
        """Return whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def is_copy(self) -> bool:
        """Return whether this is a copy in a forked child, where the thread does not run."""
        return os.getpid() != self._pid

    def check(self, what: str) -> None:
        """Check that this thread may wait for the cache's.

        Args:
            what: what it asks for, for the message.

        Raises:
            RuntimeError: this is the cache's own thread, or a forked child.
        """
        if self.is_copy():
            raise RuntimeError(
                f"{what}: this {self._kind} belongs to process {self._pid}, which forked this one, "
                f"{os.getpid()}, where its thread does not run: open another here"
            )
        if threading.get_ident() == self._ident:
            raise RuntimeError(
                f"{what}: this is the {self._kind}'s own thread, in which its sync host functions "
                "run, and which can't wait for itself: do it in another thread"
            )

    def check_closing(self) -> None:
        """Check that this thread may close the cache, and wait for that.

        Raises:
            RuntimeError: this is the cache's own thread, or a forked child; or it is a signal
                handler or a finalizer that has interrupted a batch in a lent instance.
        """
        self.check("close")
        if any(lent.used_here for lent in self._lent.copy()):
            raise RuntimeError(
                f"close: this thread is in the midst of a batch, which the {self._kind} would wait "
                "for, as a signal handler or a finalizer may be: raise an exception there, such as "
                "SystemExit, or close it afterwards"
            )

    def submit(self, request: Request[Any]) -> None:
        """Have a request started in the cache's thread; see `check` for where it can't be."""
        token = self._token
        assert token is not None
        self._inbox.append(request)
        if self._woken:
            return  # `_take` finds it, which runs after this, or before `_woken` was read
        try:
            self._woken = True
            token.run_sync_soon(self._take)
        except trio.RunFinishedError:
            self._refuse_all()
        except BaseException:
            # Such as Ctrl-C: whether it will run is unknown, and others rely on it by now.
            try:
                token.run_sync_soon(self._take)
            except trio.RunFinishedError:
                self._refuse_all()
            raise

    def withdraw(self, request: Request[Any]) -> None:
        """Have a request cancelled, whether it was submitted, is under way, or is over."""
        token = self._token
        assert token is not None
        try:
            token.run_sync_soon(request.withdraw)
        except trio.RunFinishedError:
            self._inbox.append(request)  # it may have been interrupted before it was submitted
            self._refuse_all()

    def close(self, closed: Completion) -> None:
        """Close the cache and end the thread; `closed` is when that is done. Twice does no harm.

        Raises:
            RuntimeError: this is the cache's own thread.
        """
        self.check("close")
        self._endings.append(closed)
        if self._over:
            self._finish_endings()
            return
        token = self._token
        if token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(self._begin_closing)

    def join(self) -> None:
        """Wait for the last moments of the thread, once `close` has completed."""
        thread = self._thread
        assert thread is not None
        thread.join()
        _all.discard(self)

    def check_failure(self) -> None:
        """Raise the exception that ended the thread, if one did."""
        error, self._failure = self._failure, None
        if error is not None:
            try:
                raise error
            finally:
                del self, error

    # -- groups

    def group_around(self) -> OpenGroup | None:
        """Return the innermost group of this portal in whose block the caller is."""
        for portal, group in reversed(_groups_around.get()):
            if portal is self:
                return group
        return None

    def enter(self, group: OpenGroup) -> contextvars.Token[Any]:
        """Have calls of this context run in a group; return what `leave` takes."""
        return _groups_around.set((*_groups_around.get(), (self, group)))

    @staticmethod
    def leave(reset: contextvars.Token[Any]) -> None:
        """End what `enter` began; a block may end in another context, as a generator's does."""
        with contextlib.suppress(ValueError):
            _groups_around.reset(reset)

    async def open_group(self, group: OpenGroup) -> None:
        """Open a group; in the cache's thread."""
        nursery = self._nursery
        assert nursery is not None
        await nursery.start(partial(group.hold, self.cache))

    async def lend(
        self, function: Function[Any], columns: object, former: Lent | None
    ) -> tuple[Value, Lent | None]:
        """Map in a lease, and lend its instance to the caller; in the cache's thread.

        Args:
            function: the function.
            columns: its columns.
            former: what it has lent to the caller before, which is taken back.
        """
        if former is not None:
            former.give_up()
        nursery = self._nursery
        assert nursery is not None
        started: tuple[Value, Lent | None] = await nursery.start(
            self._map_and_lend, function, columns
        )
        return started

    async def _map_and_lend(
        self,
        function: Function[Any],
        columns: object,
        *,
        task_status: trio.TaskStatus[tuple[Value, Lent | None]],
    ) -> None:
        async with function.acquire() as lease:
            result = await lease.map(columns)
            lent = lease.lend()
            if lent is None:
                task_status.started((result, None))
                return
            self._lent.add(lent)
            try:
                task_status.started((result, lent))
                await lent.hold()
            finally:
                self._lent.discard(lent)

    # -- in the thread

    def _main(self, opened: Completion) -> None:
        """Be the thread: run Trio, then end whatever anybody still waits for.

        In this order, as other threads look in between:

        1. From `_closing` on, nothing is started. A request that comes later is refused here, or by
           the thread that has submitted it, which finds that the run is over.
        2. From `_over` on, `close` has nothing to wait for, and readings are made by who asks.
        3. Those are woken that wait for the opening, and for the end.
        """
        self._ident = threading.get_ident()
        try:
            trio.run(self._serve, opened)
        except BaseException as error:
            self._failure = error
        self._closing = True
        self._refuse_all()
        self._over, self._ident = True, 0  # which another thread may get
        if not opened.over:
            opened.finish()
        self._finish_endings()

    async def _serve(self, opened: Completion) -> None:
        async with self._opening() as cache:
            self._cache = cache
            async with trio.open_nursery() as self._nursery:
                self._token = trio.lowlevel.current_trio_token()
                opened.finish()
                if self._endings:  # the program ends meanwhile
                    self._begin_closing()
                await trio.sleep_forever()

    def _take(self) -> None:
        # First: whoever reads it later calls this again, and whoever read it before is served here.
        self._woken = False
        nursery = self._nursery
        assert nursery is not None
        while self._inbox:
            request = self._inbox.popleft()
            if request.over:
                continue  # it was withdrawn
            group = request.group
            if self._closing:
                request.refuse("the cache is closed")
            elif group is not None:
                group.start(request)
            else:
                worker = self._idle.pop() if self._idle else Worker(self._idle)
                worker.give(request, nursery)

    def _begin_closing(self) -> None:
        self._closing = True
        nursery = self._nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()

    def _refuse_all(self) -> None:
        """Refuse the requests that came too late; in any thread, each of which gets others."""
        # First, as in `_take`: nobody else is going to look for a request that comes later.
        self._woken = False
        with contextlib.suppress(IndexError):
            while True:
                request = self._inbox.popleft()
                if not request.over:
                    request.refuse("the cache is closed")

    def _finish_endings(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._endings.popleft().finish()


# -- waiting in a thread


def completion() -> tuple[Completion, threading.Lock]:
    """Return a completion, and the lock that it releases."""
    lock = threading.Lock()
    lock.acquire()
    return Completion(lock.release), lock


def wait_for(end: Completion, lock: threading.Lock) -> None:
    """Wait in this thread for a completion that releases `lock`, which was taken before.

    Exceptions of signal handlers, and those that others set for this thread, end the wait.
    """
    while not end.over:
        lock.acquire(timeout=POLL)


def outwait(end: Completion, lock: threading.Lock, ask: Callable[[], object]) -> None:
    """Call `ask`, and wait to the end, whatever exceptions come meanwhile, which are dropped."""
    while True:
        try:
            ask()
            wait_for(end, lock)
        except BaseException:
            continue
        return


# -- the end of the program


@final
class _Portals:
    """All portals of this process, which are closed when the program ends.

    That is before it waits for its other threads, which may use one until then. None is opened
    afterwards, as nobody would close it.
    """

    def __init__(self) -> None:
        # Reentrant, as the handler of a signal may open a cache, too.
        self._lock = threading.RLock()
        self._open: set[Portal] = set()
        self._registered = False
        self._ending = False  # whether `close_all` has been called

    def start(self, portal: Portal, thread: threading.Thread) -> None:
        """Start the thread of a portal.

        Raises:
            RuntimeError: the program is ending, or the system has no thread.
        """
        # Until it is alive: `close_all` must find it, or be over before it.
        with self._lock:
            self._close_at_exit()
            self._open.add(portal)
            try:
                thread.start()
            except BaseException:
                if not thread.is_alive():
                    self._open.discard(portal)
                raise

    def discard(self, portal: Portal) -> None:
        """Forget a portal, whose thread has ended."""
        self._open.discard(portal)

    def _close_at_exit(self) -> None:
        if self._registered and not self._ending:
            return
        # Functions registered later are called earlier. That of `concurrent.futures` waits for the
        # threads of all executors, in which guests may run for ever: so it is imported by now.
        assert concurrent.futures.thread
        register: Callable[..., object] = getattr(threading, "_register_atexit", atexit.register)
        try:
            if self._ending:
                raise RuntimeError
            register(self.close_all)
        except RuntimeError:
            raise RuntimeError(
                "open_cache: the program is ending, and would not wait for another cache to be "
                "closed: open it before the end of the main thread"
            ) from None
        os.register_at_fork(after_in_child=self._begin_again)
        self._registered = True

    def _begin_again(self) -> None:
        """Leave all portals to the process that has forked this one."""
        self._lock = threading.RLock()  # another thread may have held it
        self._open.clear()
        self._ending = False

    def close_all(self) -> None:
        """Close all portals, and refuse to start others."""
        with self._lock:
            self._ending = True
            portals = [one for one in self._open.copy() if one.is_alive() and not one.is_copy()]
        waits = []
        for portal in portals:
            closed, lock = completion()
            portal.close(closed)
            waits.append((portal, closed, lock))
        for portal, closed, lock in waits:
            outwait(closed, lock, lambda: None)
            portal.join()


_all = _Portals()
