"""Calls functions of the application's, in the task that called the guest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import MethodType

import trio

from .._abi.base import Value
from .._owner import calls_user


@trio.lowlevel.disable_ki_protection
@calls_user
def call_unprotected(fn: Callable[..., object], values: tuple[object, ...]) -> Value:
    """Call user code, which Ctrl-C may interrupt, unlike the library around it."""
    return fn(*values)


@trio.lowlevel.disable_ki_protection
@calls_user
async def await_unprotected(result: Awaitable[object]) -> Value:
    """Await what user code has returned; Ctrl-C may interrupt it."""
    return await result


def identity(fn: object) -> object:
    """Return a key by which two functions are the same; some callables are equal but differ."""
    return fn if isinstance(fn, MethodType) else id(fn)
