"""Calls functions of the application's for the task that called the guest."""

from __future__ import annotations

import contextlib
import contextvars
import weakref
from collections.abc import Awaitable, Callable
from types import MethodType

import trio

from .._abi.base import Value
from .._core.errors import GuestError
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
    try:
        return fn(*values)
    except GuestError as error:
        _raised.add(error)
        raise


@trio.lowlevel.disable_ki_protection
@calls_user
async def await_unprotected(result: Awaitable[object], call: HostCall) -> Value:
    """Await what a host function has returned; Ctrl-C may interrupt it."""
    elsewhere = awaits_elsewhere.get(None)
    try:
        return await (result if elsewhere is None else elsewhere(result, call.memory))
    except GuestError as error:
        _raised.add(error)
        raise


# Errors of guests that user code has raised, and that were raised by an export that it invoked.
_raised: weakref.WeakSet[GuestError] = weakref.WeakSet()
_invoked: weakref.WeakSet[GuestError] = weakref.WeakSet()


def note_invoked(error: BaseException) -> None:
    """Note the error of an export that a host function has invoked: the guest's, who ever passes it
    on."""
    if isinstance(error, GuestError):
        _invoked.add(error)


def is_of_guest(error: BaseException) -> bool:
    """Return whether an error is one of the guest that was called.

    It is not if a host function has made it, or had it from another guest.
    """
    return (
        isinstance(error, GuestError)
        and not error.function
        and (error not in _raised or error in _invoked)
    )


# Notes of this library on one exception, at most: it may be raised again and again.
MAX_NOTES = 16


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of user code, unless it has that one, or too many."""
    with contextlib.suppress(Exception):  # of a class that takes no attributes
        notes = getattr(error, "__notes__", ())
        if note not in notes and len(notes) < MAX_NOTES:
            error.add_note(note)


def identity(fn: object) -> object:
    """Return a key by which two functions are the same; some callables are equal but differ."""
    return fn if isinstance(fn, MethodType) else id(fn)
