"""The faces of a cache that runs in a thread of its own, as far as `blocking` and `aio` share them.

What differs is how a caller waits: the methods that wait are in those two.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from ._abi.base import Value
from ._cache.cache import InstanceCache
from ._cache.lease import Function, Lease, R_co
from ._core.config import CacheConfig
from ._core.keys import FunctionKey
from ._core.text import shown
from ._owner import refuse_copy
from ._portal import OpenGroup, Portal, Request, outwait

T = TypeVar("T")


class OutsideFunction(Generic[R_co]):
    """A registered function, without the methods that call it."""

    def __init__(self, function: Function[R_co]) -> None:
        self._function = function

    if not TYPE_CHECKING:  # checkers find this mistake by themselves

        def __call__(self, *_: object, **_named: object) -> NoReturn:
            raise TypeError(
                f"{self._function.key} is called by function.call(...), and for each row of some "
                "columns by function.map([...])"
            )

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "keep its name and args, and register it in a cache of each process")

    @property
    def function(self) -> Function[R_co]:
        """The registered function, with all its facts, such as `Function.code_size`.

        Its own `acquire` and `call` work in the cache's thread only.
        """
        return self._function

    @property
    def name(self) -> str:
        """Name of the function."""
        return self._function.name

    @property
    def args(self) -> tuple[str, ...]:
        """Types of the arguments, in their normal spelling."""
        return self._function.args

    @property
    def returns(self) -> str | tuple[str, ...] | None:
        """Type of the result, as `Function.returns`."""
        return self._function.returns

    @property
    def key(self) -> FunctionKey:
        """Name and argument types; `str()` of it is the name in messages, such as ``fib(i64)``."""
        return self._function.key

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key}>"


class OutsideGroup:
    """A scheduling group, without the methods that wait."""

    def __init__(self, portal: Portal, name: str, limits: dict[str, Any]) -> None:
        self._portal = portal
        self._group = OpenGroup(name, limits)
        self._reset: contextvars.Token[Any] | None = None
        self._entered = False

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "open another with cache.scheduling_group(name, capacity=...)")

    @property
    def name(self) -> str:
        """Name of the group; unique among the open groups of its cache."""
        return self._group.name

    def __repr__(self) -> str:
        state = "open" if self._group.is_open else "closed"
        return f"<{type(self).__name__} {self.name!r} {state}>"

    def _check_entered_once(self) -> None:
        """Raise `RuntimeError` if its block was entered before."""
        if self._entered:
            raise RuntimeError("a scheduling group is entered once; make another")
        self._entered = True

    def _leave(self) -> None:
        """Have calls of this context run where they did before the block."""
        reset, self._reset = self._reset, None
        if reset is not None:
            self._portal.leave(reset)


class OutsideCache:
    """A cache, without the methods that wait."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def __reduce__(self) -> NoReturn:
        refuse_copy(self, "open one in each process, and register its functions there")

    @property
    def label(self) -> str:
        """Label of the cache, as it was given to `open_cache`."""
        return self._portal.cache.label

    @property
    def config(self) -> CacheConfig:
        """Configuration with the limits in force."""
        return self._portal.cache.config


def run_inside(cache: OutsideCache, what: str, function: Callable[[InstanceCache], T]) -> T:
    """Call a sync function with the cache, in the cache's thread, and wait for it.

    Raises:
        RuntimeError: the cache is not open yet, or this is its own thread, or a forked child.
        trio.ClosedResourceError: the cache is closed.
        Exception: whatever the function raises.
    """
    portal = cache._portal  # noqa: SLF001 - in its own file
    work = partial(at_once, partial(function, portal.cache))
    portal.check(what)
    lock = threading.Lock()
    lock.acquire()
    request = Request(work, what, None, None, lock.release)
    portal.submit(request)
    outwait(request, lock, lambda: None)
    return request.result()


def plain(function: OutsideFunction[T] | str) -> Function[T] | str:
    """Return the function of a cache that a function is, or its name."""
    return function.function if isinstance(function, OutsideFunction) else function


def check_timeout(timeout: object) -> None:
    """Check a timeout.

    Raises:
        TypeError: it is neither None nor a number.
        ValueError: it is negative, or no number of seconds.
    """
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, or None, got {shown(timeout)}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds from 0, got {shown(timeout)}")


def check_row_errors(row_errors: object) -> None:
    """Check what errors of rows are to be added to, before the guest runs.

    Raises:
        TypeError: it is neither None nor a dict.
    """
    if row_errors is not None and not isinstance(row_errors, MutableMapping):
        raise TypeError(f"row_errors must be a dict, or None, got {shown(row_errors)}")


# -- what requests do, in the cache's thread


def call_of(
    cache: InstanceCache,
    function: Function[T] | str,
    args: Sequence[str] | None,
    values: tuple[object, ...],
) -> Callable[[], Awaitable[T]]:
    """Return a function that calls a function of the cache once."""
    if isinstance(function, Function):
        return partial(function.call, *values)
    return partial(_call_by_name, cache, function, args, values)


async def _call_by_name(
    cache: InstanceCache, name: str, args: Sequence[str] | None, values: tuple[object, ...]
) -> Any:
    async with cache.acquire(name, args) as lease:
        return await lease.call(*values)


async def map_rows(
    cache: InstanceCache,
    function: Function[Any] | str,
    args: Sequence[str] | None,
    columns: object,
    row_errors: dict[int, Exception] | None,
    options: Mapping[str, Any],
) -> Value:
    """Call a function for every row of some columns; errors of rows are added to `row_errors`."""
    if isinstance(function, Function):
        lease: Lease[Any] = function.acquire()
    else:
        lease = cache.acquire(function, args)
    async with lease:
        try:
            return await lease.map(columns, **options)
        finally:
            if row_errors is not None:
                row_errors.update(lease.row_errors)


def what(verb: str, function: Function[Any] | str) -> str:
    """Return what a request does, for messages and as the name of its task."""
    if isinstance(function, Function):
        return f"{verb} of {function.name}({', '.join(function.args)})"
    return f"{verb} of {function!s:.100}"


async def at_once(function: Callable[[], T]) -> T:
    """Call a sync function."""
    return function()
