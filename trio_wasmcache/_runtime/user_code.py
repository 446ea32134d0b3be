"""Calls functions of the application's for the task that called the guest."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from types import MethodType

import trio

from .._abi.base import Value
from .._engine.base import GuestMemory, HostCall
from .._owner import calls_user

Elsewhere = Callable[[Awaitable[object], GuestMemory | None], Awaitable[object]]
"""Function that awaits, on another event loop, what a host function has returned. It also gets the
memory of the guest, which is suspended until the function returns."""

awaits_elsewhere: contextvars.ContextVar[Elsewhere] = contextvars.ContextVar(
    "trio_wasmcache_elsewhere"
)
"""Set in the tasks of callers that have an event loop of their own."""


@trio.lowlevel.disable_ki_protection
@calls_user
def call_unprotected(fn: Callable[..., object], values: tuple[object, ...]) -> Value:
    """Call user code, which Ctrl-C may interrupt, unlike the library around it."""
    return fn(*values)


@trio.lowlevel.disable_ki_protection
@calls_user
async def await_unprotected(result: Awaitable[object], call: HostCall) -> Value:
    """Await what a host function has returned; Ctrl-C may interrupt it."""
    elsewhere = awaits_elsewhere.get(None)
    return await (result if elsewhere is None else elsewhere(result, call.memory))


def identity(fn: object) -> object:
    """Return a key by which two functions are the same; some callables are equal but differ."""
    return fn if isinstance(fn, MethodType) else id(fn)
