"""WASI preview 1, all 46 functions, for a guest to which nothing is granted.

1. Whatever lengths the guest gives, one call looks at no more than `Cost.most` items in the guest's
   memory, or writes no more than `RANDOM_PIECE` bytes between two pauses.
2. Each call costs `CALL_FUEL` (see `_core/policy/shares`), which the runner takes, and `Cost.fuel`
   for each item, which is taken here before the item is read.
3. An address outside of the memory returns EFAULT, a value that its type does not have EINVAL; no
   argument makes a trap. Otherwise the results are those of wasmtime's own implementation with an
   empty configuration: three standard streams are open; there are no files, folders, sockets,
   arguments or environment variables; input is at its end; output is discarded.
4. No function waits: one that would is a generator, which yields the seconds to wait (`Pause`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from typing import NoReturn, TypeAlias, cast, final

from attrs import frozen

from .._abi.base import Value
from .._core.errors import ExitError
from .._core.wasm.admission import WASI_MODULE, WASI_TYPES, signature
from .._core.wasm.reader import FuncType
from .._engine.base import GuestMemory, HostCall

SUCCESS, EBADF, EFAULT, EINVAL = 0, 8, 21, 28
ENOTDIR, ENOTSOCK, ENOTSUP, ESPIPE = 54, 57, 58, 70

Pause: TypeAlias = float
"""Seconds to wait; 0.0 lets others run."""
Steps: TypeAlias = Generator[Pause, None, int]
Results: TypeAlias = tuple[object, ...]

IN, OUT = "in", "out"
STREAMS = {0: IN, 1: OUT, 2: OUT}
"""{descriptor: direction} of the streams of a new instance."""
# Sizes of structures (bytes). fdstat: filetype (unknown), flags, padding, rights, inherited rights.
FDSTAT_SIZE, FILESTAT_SIZE = 24, 64
RIGHTS = {IN: 1 << 1, OUT: 1 << 6}
REALTIME, MONOTONIC, CLOCKS = 0, 1, 4

# A vectored write of more buffers is a short write, as on POSIX systems with this IOV_MAX.
MAX_IOVECS, IOVEC_SIZE, IOVEC_FUEL = 1024, 8, 100
MAX_SUBSCRIPTIONS, SUBSCRIPTION_SIZE, EVENT_SIZE, SUBSCRIPTION_FUEL = 64, 48, 32, 1000
EVENT_CLOCK, EVENT_READ, EVENT_WRITE = 0, 1, 2
# Bytes of one piece, about 0.2 ms of the system's generator; fuel a byte, which takes 4 ns.
RANDOM_PIECE, RANDOM_FUEL = 32 * 1024, 4
NANOSECONDS = 1e9
UNSIGNED = {"i32": 0xFFFFFFFF, "i64": 0xFFFFFFFFFFFFFFFF}

# Sources of time and randomness; used as globals of this module, so that tests can replace them.
wall_clock: Callable[[], int] = time.time_ns
monotonic_clock: Callable[[], int] = time.monotonic_ns
random_bytes: Callable[[int], bytes] = os.urandom


@frozen
class Cost:
    """Cost of one call of a function, in addition to `CALL_FUEL`."""

    fuel: int = 0
    """Units of fuel for each item."""
    item: str = ""
    """Name of an item; empty if the call reads nothing whose length the guest chooses."""
    most: int | None = 0
    """Largest number of items in one call; None for as many as the guest asks for, in pieces."""


@final
@frozen(eq=False)
class WasiFunction:
    """One function of preview 1, for the runner to serve."""

    name: str
    type: FuncType
    cost: Cost
    _run: Callable[..., int | Steps]

    @property
    def serve_alone(self) -> Callable[[HostCall], Value]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"the WASI function of that name is {signature(self.type)}"

    def serve(self, call: HostCall) -> Results | Generator[Pause, None, Results]:
        """Answer a call: return the result values, or steps that return them.

        Raises:
            FuelExhaustedError: it costs more fuel than the call has left.
            ExitError: the guest exits.
        """
        values = [
            value & UNSIGNED[kind]
            for value, kind in zip(call.values, self.type.params, strict=True)
        ]
        try:
            found = self._run(call, *values)
        except IndexError:
            return (EFAULT,)
        return (found,) if isinstance(found, int) else _in_steps(found)


def _in_steps(steps: Steps) -> Generator[Pause, None, Results]:
    try:
        return ((yield from steps),)
    except IndexError:  # an address is outside of the memory, or the instance was closed
        return (EFAULT,)


FUNCTIONS: dict[str, WasiFunction] = {}
"""{name: function} of all functions."""

Run = Callable[..., int | Steps]


def _preview1(fuel: int = 0, item: str = "", most: int | None = 0) -> Callable[[Run], Run]:
    """Decorate a function of this file to be the one of preview 1 with its name."""

    def add(run: Run) -> Run:
        name = run.__name__
        FUNCTIONS[name] = WasiFunction(name, WASI_TYPES[name], Cost(fuel, item, most), run)
        return run

    return add


@final
class _NoMemory:
    """The memory of a guest that exports none: no address is inside."""

    size = 0

    def read(self, _at: int, _n: int, /) -> NoReturn:
        raise IndexError("the module exports no memory")

    def write(self, _at: int, _data: bytes | bytearray | memoryview, /) -> NoReturn:
        raise IndexError("the module exports no memory")


NO_MEMORY = _NoMemory()


def _memory(call: HostCall) -> GuestMemory:
    return NO_MEMORY if call.memory is None else call.memory


def _streams(call: HostCall) -> dict[int, str]:
    """Return {descriptor: direction} of the open streams of the instance."""
    return cast("dict[int, str]", call.state.get("streams", STREAMS))


def _word(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _long(value: int) -> bytes:
    return value.to_bytes(8, "little")


# -- arguments and environment: there are none


@_preview1()
def args_get(call: HostCall, pointers: int, data: int) -> int:
    """Write no arguments."""
    return SUCCESS


@_preview1()
def args_sizes_get(call: HostCall, count_at: int, size_at: int) -> int:
    """Write that there are 0 arguments, in 0 bytes."""
    memory = _memory(call)
    memory.read(size_at, 4)  # write either both or none
    memory.write(count_at, bytes(4))
    memory.write(size_at, bytes(4))
    return SUCCESS


@_preview1()
def environ_get(call: HostCall, pointers: int, data: int) -> int:
    """Write no variables."""
    return SUCCESS


@_preview1()
def environ_sizes_get(call: HostCall, count_at: int, size_at: int) -> int:
    """Write that there are 0 variables, in 0 bytes."""
    return cast("int", args_sizes_get(call, count_at, size_at))


# -- clocks


@_preview1()
def clock_res_get(call: HostCall, clock: int, result_at: int) -> int:
    """Write the resolution of a clock, 1 ns; there are no clocks of CPU time."""
    if clock > MONOTONIC:
        return EBADF if clock < CLOCKS else EINVAL
    _memory(call).write(result_at, _long(1))
    return SUCCESS


@_preview1()
def clock_time_get(call: HostCall, clock: int, precision: int, result_at: int) -> int:
    """Write the time (nanoseconds) since 1970, or monotonic since the instance first asked."""
    if clock > MONOTONIC:
        return EBADF if clock < CLOCKS else EINVAL
    _memory(call).write(result_at, _long(_now(call, clock)))
    return SUCCESS


def _now(call: HostCall, clock: int) -> int:
    if clock == REALTIME:
        return wall_clock()
    now = monotonic_clock()
    # Relative, so that a guest can't see how long the machine has been up.
    return now - cast("int", call.state.setdefault("clock origin", now - 1))


# -- descriptors


def _refuse(call: HostCall, descriptor: int, *rest: int) -> int:
    """Return EBADF: no file or folder is open."""
    return EBADF


# They check the descriptor first, and no folder is open, so none of them reads a path or a buffer.
for _name in """
    fd_advise fd_allocate fd_datasync fd_fdstat_set_flags fd_fdstat_set_rights fd_filestat_set_size
    fd_prestat_get fd_readdir fd_sync path_create_directory path_filestat_get path_link path_open
    path_readlink path_remove_directory path_rename path_symlink path_unlink_file
""".split():
    FUNCTIONS[_name] = WasiFunction(_name, WASI_TYPES[_name], Cost(), _refuse)


def _refuse_times(call: HostCall, descriptor: int, *rest: int) -> int:
    """Return EBADF, or EINVAL if a time is to be set both to a value and to now."""
    flags = rest[-1]
    return EINVAL if flags & 0b0011 == 0b0011 or flags & 0b1100 == 0b1100 else EBADF


for _name in ("fd_filestat_set_times", "path_filestat_set_times"):
    FUNCTIONS[_name] = WasiFunction(_name, WASI_TYPES[_name], Cost(), _refuse_times)


@_preview1()
def fd_close(call: HostCall, descriptor: int) -> int:
    """Close a stream."""
    streams = dict(_streams(call))
    if streams.pop(descriptor, None) is None:
        return EBADF
    call.state["streams"] = streams
    return SUCCESS


@_preview1()
def fd_renumber(call: HostCall, descriptor: int, to: int) -> int:
    """Move a stream to the descriptor of another, which is closed."""
    streams = dict(_streams(call))
    if descriptor not in streams or to not in streams:
        return EBADF
    streams[to] = streams.pop(descriptor)
    call.state["streams"] = streams
    return SUCCESS


@_preview1()
def fd_fdstat_get(call: HostCall, descriptor: int, result_at: int) -> int:
    """Write the rights of a stream: to be read, or to be written."""
    way = _streams(call).get(descriptor)
    if way is None:
        return EBADF
    rights = _long(RIGHTS[way])
    _memory(call).write(result_at, bytes(8) + rights + rights)
    return SUCCESS


@_preview1()
def fd_filestat_get(call: HostCall, descriptor: int, result_at: int) -> int:
    """Write zeros for a stream: nothing is known about it."""
    if descriptor not in _streams(call):
        return EBADF
    _memory(call).write(result_at, bytes(FILESTAT_SIZE))
    return SUCCESS


@_preview1()
def fd_prestat_dir_name(call: HostCall, descriptor: int, path: int, length: int) -> int:
    """Return ENOTDIR for a stream."""
    return ENOTDIR if descriptor in _streams(call) else EBADF


@_preview1()
def fd_seek(call: HostCall, descriptor: int, offset: int, whence: int, result_at: int) -> int:
    """Return ESPIPE for a stream."""
    if whence > 2:
        return EINVAL
    return ESPIPE if descriptor in _streams(call) else EBADF


@_preview1()
def fd_tell(call: HostCall, descriptor: int, result_at: int) -> int:
    """Return ESPIPE for a stream."""
    return ESPIPE if descriptor in _streams(call) else EBADF


@_preview1()
def fd_pread(
    call: HostCall, descriptor: int, iovecs: int, count: int, offset: int, result_at: int
) -> int:
    """Return ESPIPE for input."""
    return ESPIPE if _streams(call).get(descriptor) == IN else EBADF


@_preview1()
def fd_pwrite(
    call: HostCall, descriptor: int, iovecs: int, count: int, offset: int, result_at: int
) -> int:
    """Return ESPIPE for output."""
    return ESPIPE if _streams(call).get(descriptor) == OUT else EBADF


@_preview1()
def fd_read(call: HostCall, descriptor: int, iovecs: int, count: int, result_at: int) -> int:
    """Write that 0 bytes were read: input is at its end, so the buffers are not read."""
    if _streams(call).get(descriptor) != IN:
        return EBADF
    memory = _memory(call)
    if iovecs + min(count, MAX_IOVECS) * IOVEC_SIZE > memory.size:
        return EFAULT
    memory.write(result_at, bytes(4))
    return SUCCESS


@_preview1(IOVEC_FUEL, "iovec", MAX_IOVECS)
def fd_write(call: HostCall, descriptor: int, iovecs: int, count: int, result_at: int) -> int:
    """Write the length of the output, which is discarded: its bytes are not read.

    Only the first `MAX_IOVECS` buffers count; a guest must be ready for a short write.
    """
    if _streams(call).get(descriptor) != OUT:
        return EBADF
    memory = _memory(call)
    count = min(count, MAX_IOVECS)
    call.spend(count * IOVEC_FUEL)
    words = memoryview(memory.read(iovecs, count * IOVEC_SIZE)).cast("I").tolist()
    lengths = words[1::2]
    ends = map(int.__add__, words[0::2], lengths)
    written = sum(lengths)
    if max(ends, default=0) > memory.size:
        return EFAULT
    if written > UNSIGNED["i32"]:
        return EINVAL
    memory.write(result_at, _word(written))
    return SUCCESS


# -- sockets: there are none


def _sock(call: HostCall, descriptor: int, *rest: int) -> int:
    """Return ENOTSOCK for a stream."""
    return ENOTSOCK if descriptor in _streams(call) else EBADF


for _name in "sock_accept sock_recv sock_send sock_shutdown".split():
    FUNCTIONS[_name] = WasiFunction(_name, WASI_TYPES[_name], Cost(), _sock)


# -- the rest


@_preview1(SUBSCRIPTION_FUEL, "subscription", MAX_SUBSCRIPTIONS)
def poll_oneoff(
    call: HostCall, subscriptions: int, events: int, count: int, result_at: int
) -> int | Steps:
    """Report streams as ready at once; without streams, wait for the earliest clock.

    Return EINVAL for no subscriptions, for more than `MAX_SUBSCRIPTIONS`, for clocks of CPU time
    and for unknown kinds of subscriptions; EBADF for a stream that is closed, or of the other
    direction.
    """
    if not 0 < count <= MAX_SUBSCRIPTIONS:
        return EINVAL
    call.spend(count * SUBSCRIPTION_FUEL)
    memory = _memory(call)
    raw = memory.read(subscriptions, count * SUBSCRIPTION_SIZE)
    ready: list[bytes] = []
    clocks: list[tuple[int, bytes]] = []
    for start in range(0, len(raw), SUBSCRIPTION_SIZE):
        userdata, kind = raw[start : start + 8], raw[start + 8]
        if kind == EVENT_CLOCK:
            due = _due(call, raw[start + 16 : start + SUBSCRIPTION_SIZE])
            if due is None:
                return EINVAL
            clocks.append((due, _event(userdata, kind, 0)))
        elif kind in (EVENT_READ, EVENT_WRITE):
            descriptor = int.from_bytes(raw[start + 16 : start + 20], "little")
            if _streams(call).get(descriptor) != (IN if kind == EVENT_READ else OUT):
                return EBADF
            ready.append(_event(userdata, kind, 1))
        else:
            return EINVAL
    return _poll(memory, ready, clocks, events, result_at)


def _due(call: HostCall, clock: bytes) -> int | None:
    """Return the nanoseconds until the clock of a subscription is due; None for a bad clock."""
    number, flags = int.from_bytes(clock[:4], "little"), int.from_bytes(clock[24:26], "little")
    if number > MONOTONIC or flags > 1:
        return None
    timeout = int.from_bytes(clock[8:16], "little")
    return max(0, timeout - _now(call, number)) if flags else timeout


def _event(userdata: bytes, kind: int, size: int) -> bytes:
    return userdata + bytes([0, 0, kind, 0, 0, 0, 0, 0]) + _long(size) + bytes(8)


def _poll(
    memory: GuestMemory,
    ready: list[bytes],
    clocks: list[tuple[int, bytes]],
    events: int,
    result_at: int,
) -> Steps:
    if not ready:
        earliest = min(due for due, _ in clocks)
        ready = [event for due, event in clocks if due == earliest]
        yield earliest / NANOSECONDS
    memory.read(result_at, 4)  # write either both or none
    memory.write(events, b"".join(ready))
    memory.write(result_at, _word(len(ready)))
    return SUCCESS


@_preview1()
def proc_exit(call: HostCall, status: int) -> NoReturn:
    """End the call, with any status."""
    status -= (status & 0x80000000) << 1
    raise ExitError(f"the guest called proc_exit({status})", status=status)


@_preview1()
def proc_raise(call: HostCall, signal: int) -> int:
    """Return ENOTSUP: there are no signals."""
    return ENOTSUP


@_preview1(RANDOM_FUEL, "byte", None)
def random_get(call: HostCall, at: int, length: int) -> int | Steps:
    """Write random bytes from the system's source, a piece at a time."""
    if not length:
        return SUCCESS
    memory = _memory(call)
    if at + length > memory.size:
        return EFAULT
    if length > RANDOM_PIECE:
        return _fill(call, memory, at, length)
    call.spend(length * RANDOM_FUEL)
    memory.write(at, random_bytes(length))
    return SUCCESS


def _fill(call: HostCall, memory: GuestMemory, at: int, length: int) -> Steps:
    for start in range(0, length, RANDOM_PIECE):
        if start:
            yield 0.0
        size = min(RANDOM_PIECE, length - start)
        call.spend(size * RANDOM_FUEL)
        memory.write(at + start, random_bytes(size))
    return SUCCESS


@_preview1()
def sched_yield(call: HostCall) -> Steps:
    """Let other tasks run."""
    yield 0.0
    return SUCCESS


BUILT_IN: dict[tuple[str, str], WasiFunction] = {
    (WASI_MODULE, name): function for name, function in FUNCTIONS.items()
}
