"""Find out how much of its own stack a thread has left, for guests and compilers that run there.

Only on Linux with glibc, on processors whose layout of `ucontext_t` is known: `getcontext` stores
the stack pointer, `pthread_getattr_np` the stack's bounds. Anywhere else nothing is left. A pointer
outside of the bounds (a coroutine library that switches stacks) says so, too.

The main thread's stack grows by page faults, and one that the system refuses, for a limit of memory
or addresses, ends the process. So only a part of it counts that has been grown before, by reading
its end in a system call, which returns an error in place of the fault.

When wasmtime first runs a guest in a thread, it maps a stack for signal handlers, and aborts the
process if it gets no memory. A sliced call has mapped its own stack by then, which would have
failed as an error. So before anything runs on a thread's own stack for the first time, as much
memory is mapped here, and given back.

A compiler that runs out of stack ends the process, and a program may make its threads' stacks small
(`threading.stack_size`, ``ulimit -s``): Trio's threads, too. `on_usual_stack` is for that.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
import threading
from collections.abc import Callable
from ctypes import addressof, byref, c_size_t, c_void_p
from typing import Any, TypeVar

from ..base import NoMemoryError

T = TypeVar("T")

# More than a `pthread_attr_t` and a `ucontext_t` take anywhere.
ATTRIBUTES_SIZE, CONTEXT_SIZE = 256, 8192
# More than twice of what wasmtime maps for the signal handlers of a thread.
MAPPED_FIRST = 1024 * 1024
# As deep the main thread's stack is grown, below where it is when it is first looked at: more than
# any `instance_stack_size` by default, and little beside the 8 MiB that it mostly may have.
GROWN = 4 * 1024 * 1024
# Stack that a compiler must find, as in any of wasmtime's own threads; and that of a thread for it
# where there is less. The baseline compiler was seen to need between 256 and 512 KiB.
ENOUGH, USUAL = 2 * 1024 * 1024, 8 * 1024 * 1024
# {processor: index of the stack pointer in its `ucontext_t`, as one of 64 bits}
POINTER_AT = {"x86_64": 20, "aarch64": 54}

# It keeps the GIL: giving it up would take longer than the calls.
_libc: Any = ctypes.PyDLL(None) if sys.platform == "linux" else None
_at = POINTER_AT.get(platform.machine())
_get_context: Any = getattr(_libc, "getcontext", None)


class _Stack(threading.local):
    """The stack of a thread, which is looked at when it is asked for the first time."""

    def __init__(self) -> None:
        self.low, self.size = _bounds()
        self.ran = False
        """Whether a bounded function has run on it."""
        self.known = self.size > 0
        """Whether this is a system on which guests may run on it."""
        self.context = ctypes.create_string_buffer(CONTEXT_SIZE)
        self.place = c_void_p.from_param(addressof(self.context))
        self.words = memoryview(self.context).cast("B").cast("Q")
        self.mapped = False
        """Whether there was memory for what wasmtime maps first in a thread."""
        if self.size and threading.get_native_id() == os.getpid():
            self.grow()

    def pointer(self) -> int:
        """Return the stack pointer, or one a little below; 0: it isn't known."""
        if _at is None:
            return 0
        _get_context(self.place)
        return self.words[_at]

    def grow(self) -> None:
        """Count only what this stack has grown to; it is the main thread's."""
        top = self.low + self.size
        # Some pages above the end, so that no rounding of the limit is in the way.
        self.low = max(self.pointer() - GROWN, self.low + 16 * mmap.PAGESIZE)
        self.size = top - self.low if _is_readable(self.low) else 0

    def map_first(self) -> bool:
        """Return whether there is memory for what wasmtime maps first in a thread."""
        try:
            mmap.mmap(-1, MAPPED_FIRST, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        except OSError:
            return False
        self.mapped = True
        return True


def _is_readable(address: int) -> bool:
    """Return whether the byte at an address can be read; the stack grows down to it if it can."""
    try:
        end, begin = os.pipe()
    except OSError:
        return False
    try:
        return bool(_libc["write"](begin, c_void_p(address), c_size_t(1)) == 1)
    finally:
        os.close(end)
        os.close(begin)


def _bounds() -> tuple[int, int]:
    """Return the lowest address of this thread's stack, and its size; zeros: not known."""
    get_attributes: Any = getattr(_libc, "pthread_getattr_np", None)
    if _at is None or _get_context is None or get_attributes is None:
        return 0, 0
    this_thread: Callable[[], int] = _libc["pthread_self"]
    this_thread.restype = c_void_p  # type: ignore[attr-defined]
    attributes, low, size = ctypes.create_string_buffer(ATTRIBUTES_SIZE), c_void_p(), c_size_t()
    if get_attributes(c_void_p(this_thread()), attributes):
        return 0, 0
    try:
        refused = _libc["pthread_attr_getstack"](attributes, byref(low), byref(size))
        return (0, 0) if refused else (low.value or 0, size.value)
    finally:
        _libc["pthread_attr_destroy"](attributes)


_HERE = _Stack()


def room() -> int:
    """Return how many bytes are left of the stack of this thread; 0: no guest may run there."""
    here = _HERE
    if not here.size or not (here.mapped or here.map_first()):
        return 0
    left = here.pointer() - here.low
    return left if 0 < left <= here.size else 0


def may_run_here() -> bool:
    """Return whether a bounded function may be called next, on the stack of this thread.

    It is not measured how much of it is left, which would take as long as the call: it takes no
    more than a sliced call does. What wasmtime maps first is mapped here before the first one.
    """
    here = _HERE
    return here.ran or (here.known and here.map_first())


def note_ran_here() -> None:
    """Note that a bounded function has run: what wasmtime maps first in this thread is mapped."""
    _HERE.ran = True


# Only one of our threads at a time changes the size that new threads' stacks have.
_starting = threading.Lock()


def on_usual_stack(function: Callable[..., T], *values: object) -> T:
    """Call a function that needs a usual stack, in a thread of its own if this one's is small.

    Raises:
        NoMemoryError: the system has no memory for such a thread.
    """
    if not _is_small():
        return function(*values)
    results: list[T] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*values))
        except BaseException as error:
            failures.append(error)

    with _starting:
        before = threading.stack_size(USUAL)
        try:
            # As Trio's threads, it does not keep the program from ending.
            thread = threading.Thread(target=call, daemon=True)
            thread.start()
        except RuntimeError as error:
            raise NoMemoryError(f"no memory for the stack of a compiler: {error}") from None
        finally:
            threading.stack_size(before)
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _is_small() -> bool:
    """Return whether less than `ENOUGH` is left of the stack of this thread, as far as is known."""
    here = _HERE
    if here.size:
        left = here.pointer() - here.low
        return 0 < left < ENOUGH
    return 0 < threading.stack_size() < ENOUGH
