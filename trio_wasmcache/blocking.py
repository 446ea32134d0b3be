"""The cache for programs without an event loop: its calls wait in the calling thread.

.. code-block::

    from trio_wasmcache import blocking

    with blocking.open_cache() as cache:
        fib = cache.register("fib", wasm, args=("i64",), returns="i64")
        assert fib.call(10, timeout=1.0) == 55

Trio and the cache run in a thread of their own. All threads of the process may call. The way to
that thread and back makes a short call take four times as long as within Trio, or more if the
machine is busy. A batch (`BlockingFunction.map`) has these costs once. A thread whose small batches
follow each other is lent an instance for some of them, if the function has a concurrency above 1,
keeps its state, and calls no host functions: these batches run in the calling thread.

- Each call runs in a copy of the caller's context (`contextvars`), so in the log it has what the
  caller has bound.
- If a signal handler raises while a call waits, as Ctrl-C does, or another thread has an exception
  raised here (`_thread.interrupt_main`), the guest is stopped within a slice. The exception is
  raised when nothing uses the caller's data any more.
- Host functions run in the cache's thread, sync ones on its event loop, which they should not
  block, and async ones under Trio. They can't call the cache in turn.
- The program may end without closing the cache. Then calls that are under way raise
  `trio.ClosedResourceError`, and the log is written to its end.
- After a fork, the cache belongs to the parent. In the child, all methods raise `RuntimeError`; the
  child can open a cache of its own.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Never, Self, TypeVar, Unpack, final, overload

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
from ._cache.lease import Function, R_co
from ._cache.lent import Begun, Lent
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
from ._outside import OutsideCache, OutsideFunction, OutsideGroup, plain
from ._portal import OpenGroup, Portal, Request
from ._profile.profile import Profile
from ._public import made, only_from

__all__ = ["open_cache", "BlockingCache", "BlockingFunction", "BlockingGroup"]

T = TypeVar("T")

# Seconds between two batches of a thread within which it is lent an instance.
SOON: Final = 0.005
# Seconds after which a thread asks again that could not be lent any.
REFUSED: Final = 1.0


@takes_config
def open_cache(
    config: CacheConfig | None = None, *, logger: object = None, label: str = ""
) -> BlockingCache:
    """Open a cache in a thread of its own, and return it when it is open.

    .. code-block::

        with blocking.open_cache(CacheConfig(max_size=100 * MiB)) as cache:
            cache.register("fib", wasm, args=("i64",), returns="i64")

    The end of the block closes the cache, as `BlockingCache.close` and the end of the program do.

    Args:
        config: the limits; `CacheConfig()` by default.
        logger: a structlog logger; ``structlog.get_logger("trio_wasmcache")`` by default. It is
            called from a thread of the cache's own.
        label: name of the cache in every event of its log, as in `trio_wasmcache.open_cache`.

    Raises:
        TypeError: `config` is not a `CacheConfig`, `logger` is no structlog logger, or `label` is
            no str.
        ValueError: `label` is too long, or can't be printed.
        CacheDirError: `cache_dir` can't be used.
        RuntimeError: the system has no thread for it, or the program is ending.
    """
    return _open(partial(open_trio_cache, config, logger=logger, label=label))


def _open(opening: _portal.Opening) -> BlockingCache:
    portal = Portal(opening, BlockingCache.__name__)
    opened, lock = _portal.completion()
    try:
        portal.start(opened)
        _portal.wait_for(opened, lock)
    except BaseException:
        if portal.is_alive():
            _close(portal)
        raise
    portal.check_open()
    return made(BlockingCache, portal)


def _close(portal: Portal) -> None:
    """Close a cache; an exception that comes meanwhile, as Ctrl-C, is raised once it is closed."""
    portal.check_closing()
    closed, lock = _portal.completion()
    try:
        portal.close(closed)
        _portal.wait_for(closed, lock)
    except BaseException:
        closed, lock = _portal.completion()
        _portal.outwait(closed, lock, partial(portal.close, closed))
        raise
    finally:
        portal.join()
    portal.check_failure()


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

    @property
    def lends(self) -> bool:
        """Whether an instance may be lent to this thread: it is in no group, nor calls in one."""
        return self._group is None and self.portal.group_around() is None

    def run(self, what: str, work: Callable[[], Awaitable[T]], timeout: float | None = None) -> T:
        """Run an async function in the cache's thread, in the group."""
        group = self.portal.group_around() if self._group is None else self._group
        return self.run_in(group, what, work, timeout)

    def run_in(
        self,
        group: OpenGroup | None,
        what: str,
        work: Callable[[], Awaitable[T]],
        timeout: float | None = None,
    ) -> T:
        """Run an async function in the cache's thread, in a group or in none."""
        _outside.check_timeout(timeout)
        portal = self.portal
        portal.check(what)
        lock = threading.Lock()
        lock.acquire()
        request = Request(work, what, timeout, group, lock.release)
        try:
            portal.submit(request)
            _portal.wait_for(request, lock)
        except BaseException:
            _portal.outwait(request, lock, partial(portal.withdraw, request))
            request.error = None
            raise
        return request.result()

    def read(self, what: str, function: Callable[[], T]) -> T:
        """Call a function that only reads, in the cache's thread; here, if that has ended."""
        if self.portal.over:
            return function()
        return self.run_in(None, what, partial(_outside.at_once, function))

    # -- what cache, group and function have in common

    def call(
        self,
        function: Function[T] | str,
        args: Sequence[str] | None,
        values: tuple[object, ...],
        timeout: float | None,
    ) -> T:
        """Call a function once."""
        work = _outside.call_of(self.portal.cache, function, args, values)
        return self.run(_outside.what("call", function), work, timeout)

    def map(
        self,
        function: Function[Any] | str,
        args: Sequence[str] | None,
        columns: object,
        row_errors: dict[int, Exception] | None,
        timeout: float | None,
        **options: Any,
    ) -> Value:
        """Call a function for every row of some columns."""
        _outside.check_row_errors(row_errors)
        work = partial(
            _outside.map_rows, self.portal.cache, function, args, columns, row_errors, options
        )
        return self.run(_outside.what("map", function), work, timeout)

    def warm(
        self, name: str, args: Sequence[str] | None, count: int, timeout: float | None
    ) -> None:
        """Load instances of a function."""
        work = partial(self.portal.cache.warm, name, args, count)
        self.run(_outside.what("warm", name), work, timeout)


@final
class _Here(threading.local):
    """What a thread has of a function."""

    lent: Lent | None = None
    """Instance that is, or was, lent to it."""
    mapped: float = -math.inf
    """Time at which its last batch on the way to the cache's thread ended."""
    refused_until: float = -math.inf
    """Time until which it asks for no instance, as it was given none."""


@final
@only_from("is made by register, and listed by functions()")
class BlockingFunction(OutsideFunction[R_co]):
    """A registered function, to be called in any thread.

    Use `BlockingCache.register` or `BlockingCache.functions` to get one. If the function is
    replaced, `call` and `map` use the new generation.
    """

    def __init__(self, caller: _Caller, function: Function[R_co]) -> None:
        super().__init__(function)
        self._caller = caller
        self._here = _Here()

    def call(self, *values: object, timeout: float | None = None) -> R_co:
        """Acquire an instance, call it once, and give it back.

        Args:
            *values: an argument for each of the function's argument types.
            timeout: seconds after which the guest is stopped, the time of waiting for an instance
                included; from 0. None: no limit but `total_fuel`.

        Returns:
            The result: see `Lease.call`.

        Raises:
            TimeoutError: it did not end in time; nothing uses the values any more.
            trio.ClosedResourceError: the cache or the group is closed, also while the call waits.
            RuntimeError: this is the cache's own thread, or a forked child.
            TypeError, ValueError: `timeout` is no number of seconds.
            Exception: the errors of `Lease.__aenter__` and `Lease.call`.
        """
        return self._caller.call(self._function, None, values, timeout)

    def map(
        self,
        columns: object,
        *_more: Never,
        rows: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        max_errors: int = 1000,
        row_errors: dict[int, Exception] | None = None,
        timeout: float | None = None,
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
            timeout: seconds after which the guest is stopped, as for `call`; None: no limit but
                `total_fuel` for each row.

        Returns:
            A column for each result: see `Lease.map`.

        Raises:
            TimeoutError: it did not end in time; nothing uses the columns any more.
            trio.ClosedResourceError: the cache or the group is closed, also while the batch runs.
            RuntimeError: this is the cache's own thread, or a forked child.
            TypeError, ValueError: `timeout` is no number of seconds.
            Exception: the errors of `Lease.__aenter__` and `Lease.map`.
        """
        if _more:
            refuse_more(_more)
        if row_errors is not None:
            _outside.check_row_errors(row_errors)
        defaults = rows is None and on_error == "raise" and max_errors == 1000
        if defaults and self._caller.lends:
            return self._map_again(columns, timeout)
        return self._caller.map(
            self._function,
            None,
            columns,
            row_errors,
            timeout,
            rows=rows,
            on_error=on_error,
            max_errors=max_errors,
        )

    def _map_again(self, columns: object, timeout: float | None) -> Value:
        """Map in an instance that is lent to this thread, or borrow one if that seems worth it."""
        here, caller = self._here, self._caller
        portal, lent = caller.portal, here.lent
        if lent is not None:
            _outside.check_timeout(timeout)
            portal.check("map")
            result = lent.map(columns)
            if type(result) is tuple:
                return result[0]
            here.lent = None
            if isinstance(result, Begun):
                what = _outside.what("map", self._function)
                ended = caller.run(what, partial(lent.go_on, result), timeout)
                if ended is not None:
                    return ended[0]
                lent = None  # it was taken back
        now = time.perf_counter()
        if lent is None and (now - here.mapped > SOON or now < here.refused_until):
            result = caller.map(self._function, None, columns, None, timeout)
        else:
            work = partial(portal.lend, self._function, columns, lent)
            what = _outside.what("map", self._function)
            result, here.lent = caller.run(what, work, timeout)
            if here.lent is None:
                here.refused_until = now + REFUSED
        here.mapped = time.perf_counter()
        return result


class _Calls:
    """What a cache and a group have in common: calls of any function.

    Those of a group run in it, whatever group the caller is in. Those of a cache run in the
    innermost of its groups that is around the caller.
    """

    _caller: _Caller

    @overload
    def call(
        self,
        function: BlockingFunction[T],
        *values: object,
        args: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> T: ...

    @overload
    def call(
        self,
        function: str,
        *values: object,
        args: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Any: ...

    def call(
        self,
        function: BlockingFunction[Any] | str,
        *values: object,
        args: Sequence[str] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Call a function once: see `BlockingFunction.call`.

        Args:
            function: the function, or its name.
            *values: an argument for each of its argument types.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
            timeout: seconds after which the guest is stopped; None: no limit but `total_fuel`.

        Raises:
            Exception: the errors of `BlockingFunction.call`.
        """
        return self._caller.call(plain(function), args, values, timeout)

    def map(
        self,
        function: BlockingFunction[Any] | str,
        columns: object,
        *_more: Never,
        args: Sequence[str] | None = None,
        rows: int | None = None,
        on_error: Literal["raise", "null"] = "raise",
        max_errors: int = 1000,
        row_errors: dict[int, Exception] | None = None,
        timeout: float | None = None,
    ) -> Value:
        """Call a function for every row of some columns: see `BlockingFunction.map`.

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
            timeout: seconds after which the guest is stopped; None: no limit but `total_fuel` for
                each row.

        Raises:
            Exception: the errors of `BlockingFunction.map`.
        """
        if _more:
            refuse_more(_more, "function, ")
        return self._caller.map(
            plain(function),
            args,
            columns,
            row_errors,
            timeout,
            rows=rows,
            on_error=on_error,
            max_errors=max_errors,
        )

    def warm(
        self,
        name: str,
        args: Sequence[str] | None = None,
        count: int = 1,
        *,
        timeout: float | None = None,
    ) -> None:
        """Load instances of a function ahead of use: see `InstanceCache.warm`.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None if there is only one function of that
                name.
            count: number of instances; 1 to the function's concurrency.
            timeout: seconds after which it is given up; None: no limit.

        Raises:
            TimeoutError: it did not end in time; instances that were loaded before stay.
            Exception: the errors of `InstanceCache.warm`.
        """
        self._caller.warm(name, args, count, timeout)


@final
@only_from("is made by scheduling_group: with cache.scheduling_group(name, ...) as group")
class BlockingGroup(OutsideGroup, _Calls):
    """A scheduling group for calls of any threads: a capacity, a part of the CPU, instances.

    .. code-block::

        with cache.scheduling_group("reports", capacity=2, shares=50) as group:
            fib.call(20)  # in the group, as the block is
            pool.submit(group.call, fib, 20)  # so is this, in another thread

    Use `BlockingCache.scheduling_group` to make one. When the block ends, calls in the group that
    are under way raise `trio.ClosedResourceError`, and its instances are evicted.
    """

    def __init__(self, portal: Portal, name: str, limits: dict[str, Any]) -> None:
        super().__init__(portal, name, limits)
        self._caller = _Caller(portal, self._group)

    def __enter__(self) -> Self:
        """Open the group.

        Raises:
            RuntimeError: it was entered before, or this is the cache's own thread, or a forked
                child.
            Exception: the errors of `InstanceCache.scheduling_group`.
        """
        self._check_entered_once()
        group, around = self._group, self._portal.group_around()
        what = f"scheduling_group {shown(group.name)}"
        try:
            self._caller.run_in(around, what, partial(self._portal.open_group, group))
        except BaseException:
            if group.is_open:  # it was interrupted just then
                self._close()
            raise
        self._reset = self._portal.enter(group)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the group; an exception of the block is raised unchanged."""
        self._leave()
        self._close()

    def _close(self) -> None:
        if self._portal.over or self._portal.is_copy():
            return
        with suppress(trio.ClosedResourceError):  # the cache is closed, and the group with it
            self._caller.run_in(None, f"closing of group {shown(self.name)}", self._group.close)

    def resize(self, **changes: Unpack[GroupChanges]) -> None:
        """Change limits of the group: see `SchedulingGroup.resize`.

        Args:
            **changes: `capacity`, `shares`, `max_size`, `reserved_size` or `cpu_limit`.

        Raises:
            Exception: the errors of `SchedulingGroup.resize`.
        """
        work = partial(_outside.at_once, partial(self._group.resize, **changes))
        self._caller.run_in(None, f"resize of group {shown(self.name)}", work)


@final
@only_from("is made by blocking.open_cache: with open_cache(...) as cache")
class BlockingCache(OutsideCache, _Calls):
    """Registered functions, and their instances, to be used in any thread.

    Use `open_cache` to make one; the end of its ``with`` block, `close` and the end of the program
    close it. A call in the cache's own thread, where host functions run, raises `RuntimeError`, as
    it would wait for itself; so does any call in a forked child.
    """

    def __init__(self, portal: Portal) -> None:
        super().__init__(portal)
        self._caller = _Caller(portal)

    def __enter__(self) -> Self:
        """Return the cache, which is open already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the cache; an exception of the block is raised unchanged."""
        self.close()

    def close(self) -> None:
        """Close the cache: refuse calls, stop the guests, free their memory, write the log out.

        Calls that other threads wait for raise `trio.ClosedResourceError`. It may be called again,
        and does nothing in a forked child.

        Raises:
            RuntimeError: this is the cache's own thread; or a signal handler, or a finalizer, that
                has interrupted a batch of this thread in an instance that is lent to it. There, an
                exception such as `SystemExit` ends the batch.
        """
        if not self._portal.is_copy():
            _close(self._portal)

    @property
    def closed(self) -> bool:
        """Whether the cache is closed, so that all calls raise `trio.ClosedResourceError`."""
        return self._portal.over

    def check_caller(self, what: str) -> None:
        """Check that this thread may wait for the cache, as each call does.

        It is for code that takes a lock around calls of the cache: to be called before that.

        Args:
            what: what the thread is going to do, for the message.

        Raises:
            RuntimeError: this is the cache's own thread, or a forked child.
        """
        self._portal.check(what)

    # -- functions

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: IntName | CqlIntName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[int]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: FloatName | CqlFloatName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[float]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BoolName | CqlBoolName,
        abi: names.KnownAbi | None = None,
        called_on_null: Literal[False] = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[bool]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: StrName,
        abi: names.TextAbi | None = None,
        called_on_null: Literal[False] = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[str]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: StrName,
        abi: names.ScriptAbi,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[str | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BytesName,
        abi: names.TextAbi | None = None,
        called_on_null: Literal[False] = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[bytes]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: BytesName,
        abi: names.ScriptAbi,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[bytes | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: None = None,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlIntName | CqlLongName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[int | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlFloatName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[float | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlBoolName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[bool | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlStrName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[str | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: CqlBytesName,
        abi: names.KnownAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[bytes | None]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | Sequence[str] | None = None,
        abi: AnyAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[RegisterOptions],
    ) -> BlockingFunction[Any]: ...

    @overload
    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | None = ...,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[ComponentOptions],
    ) -> BlockingFunction[Any]: ...

    def register(
        self,
        name: str,
        wasm: Wasm,
        *,
        returns: str | Sequence[str] | Inferred | None = INFERRED,
        abi: AnyAbi | None = None,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[AnyOptions],
    ) -> BlockingFunction[Any]:
        """Compile a module, and register one of its exports: see `InstanceCache.register`.

        Args:
            name: name of the function.
            wasm: bytes of a module, WebAssembly text as a `str`, or the path of a file with either.
            returns: type of the result; several types for a tuple; None: it returns nothing. It may
                be left out for components.
            abi: convention by which values cross; None: chosen by the module's exports.
            called_on_null: whether the function is called if an argument is None.
            timeout: seconds after which it is given up; None: no limit.
            **options: `args`, `export`, `imports`, `wasi`, `prepare`, `missing`, `concurrency`,
                `isolation` and `replace`, as for `InstanceCache.register`.

        Raises:
            TimeoutError: it did not end in time; nothing is registered.
            trio.ClosedResourceError: the cache is closed.
            Exception: the errors of `InstanceCache.register`.
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
        function = self._caller.run(_outside.what("register", name), work, timeout)
        return made(BlockingFunction, self._caller, function)

    def register_component(
        self,
        wasm: Wasm,
        interface: str | None = None,
        prefix: str = "",
        *,
        called_on_null: bool = False,
        timeout: float | None = None,
        **options: Unpack[SharedOptions],
    ) -> tuple[BlockingFunction[Any], ...]:
        """Register all functions of a component: see `InstanceCache.register_component`.

        Args:
            wasm: bytes of a component, its text as a `str`, or the path of a file with either.
            interface: name of the interface whose functions are registered; None: all functions.
            prefix: beginning of the functions' names in the cache.
            called_on_null: whether functions are called if an argument is None.
            timeout: seconds after which it is given up; None: no limit.
            **options: `imports`, `wasi`, `prepare`, `missing`, `concurrency`, `isolation` and
                `replace`, as for `InstanceCache.register`.

        Raises:
            TimeoutError: it did not end in time; nothing is registered.
            trio.ClosedResourceError: the cache is closed.
            Exception: the errors of `InstanceCache.register_component`.
        """
        work: Callable[[], Awaitable[tuple[Function[Any], ...]]] = partial(
            self._portal.cache.register_component,
            wasm,
            interface,
            prefix,
            called_on_null=called_on_null,
            **options,
        )
        functions = self._caller.run(_outside.what("register_component", prefix), work, timeout)
        return tuple(made(BlockingFunction, self._caller, function) for function in functions)

    def remove(self, name: str, args: Sequence[str] | None = None) -> None:
        """Remove a function, or all functions of a name: see `InstanceCache.remove`.

        Args:
            name: name of the function.
            args: types of its arguments, as registered; None: all functions of that name.

        Raises:
            Exception: the errors of `InstanceCache.remove`.
        """
        work = partial(_outside.at_once, partial(self._portal.cache.remove, name, args))
        self._caller.run(_outside.what("remove", name), work)

    def functions(self) -> tuple[BlockingFunction[Any], ...]:
        """Return the registered functions, in order of registration; also of a closed cache.

        Raises:
            trio.ClosedResourceError: the cache is just being closed, and not closed yet.
        """
        found = self._caller.read("functions", self._portal.cache.functions)
        return tuple(made(BlockingFunction, self._caller, function) for function in found)

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
    ) -> BlockingGroup:
        """Return a `BlockingGroup`, which opens when its block is entered.

        Calls in the block run in the group, unless they are in other threads, as these have
        contexts of their own: they use the methods of the group.

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
        return made(BlockingGroup, self._portal, name, limits)

    # -- limits and numbers

    def resize(self, **limits: Unpack[Limits]) -> None:
        """Change fields of the configuration: see `InstanceCache.resize`.

        Args:
            **limits: fields of `CacheConfig`, in their units.

        Raises:
            Exception: the errors of `InstanceCache.resize`.
        """
        work = partial(_outside.at_once, partial(self._portal.cache.resize, **limits))
        self._caller.run("resize", work)

    def profile(
        self,
        seconds: float = 10,
        group: str | None = None,
        function: str | None = None,
        *,
        timeout: float | None = None,
    ) -> Profile:
        """Find out where guests burn their fuel, while they serve: see `InstanceCache.profile`.

        Args:
            seconds: length of the window, without the time for compiling; greater than 0.
            group: name of the group whose instances are profiled; None: those of all groups.
            function: name of the function to profile; None: all that have been called, or
                all if none has been.
            timeout: seconds after which it is given up; None: no limit.

        Raises:
            TimeoutError: it did not end in time; what was found is lost.
            Exception: the errors of `InstanceCache.profile`.
        """
        work = partial(self._portal.cache.profile, seconds, group, function)
        return self._caller.run("profile", work, timeout)

    def stats(self) -> CacheStats:
        """Return counters, distributions and gauges of this moment; also of a closed cache.

        Raises:
            trio.ClosedResourceError: the cache is just being closed, and not closed yet.
        """
        return self._caller.read("stats", self._portal.cache.stats)

    def entries(self) -> tuple[EntryInfo, ...]:
        """Return an `EntryInfo` for each function and group with instances or waiters.

        Raises:
            trio.ClosedResourceError: the cache is just being closed, and not closed yet.
        """
        return self._caller.read("entries", self._portal.cache.entries)

    def __repr__(self) -> str:
        return f"<BlockingCache of {self._portal.cache!r}>"
