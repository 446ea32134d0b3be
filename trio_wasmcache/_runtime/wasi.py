"""WASI preview 1, all 46 functions, for a guest to which no more is granted than a `Wasi` says.

1. Whatever lengths the guest gives, one call looks at no more than `Cost.most` items in the guest's
   memory, and copies no more than `PIECE` bytes between two pauses.
2. Each call costs `CALL_FUEL` (see `_core/policy/shares`), which the runner takes, and `Cost.fuel`
   for each item and `copy_fuel` for other bytes, which are taken here before the item is read or
   the bytes are copied.
3. An address outside of the memory returns EFAULT, a value that its type does not have EINVAL; no
   argument makes a trap. Otherwise the results are those of wasmtime's own implementation: three
   standard streams are open; there are no files, folders and sockets. What is kept for the length
   of a call (see `session`) is a matter of the host alone.
4. No function waits: one that would is a generator, which yields the seconds to wait (`Pause`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import ClassVar, NoReturn, TypeAlias, cast, final

from attrs import evolve, field, frozen

from .._abi.base import Value
from .._core.costs import copy_fuel
from .._core.errors import ExitError, MemoryLimitError
from .._core.output import TAIL, escapes
from .._core.wasm.admission import WASI_MODULE, WASI_TYPES, signature
from .._core.wasm.reader import FuncType
from .._engine.base import GuestMemory, HostCall
from .session import NOTHING, CallbackError, Grants, Session, Stream, Strings
from .wasi_config import MAX_STRINGS, MAX_STRINGS_SIZE

SUCCESS, EBADF, EFAULT, EINVAL = 0, 8, 21, 28
ENOTDIR, ENOTSOCK, ENOTSUP, ESPIPE = 54, 57, 58, 70

Pause: TypeAlias = float
"""Seconds to wait; 0.0 lets others run, and `IF_DUE` does if the group has run for long."""
Steps: TypeAlias = Generator[Pause, None, int]
Results: TypeAlias = tuple[object, ...]

IN, OUT, ERR = "stdin", "stdout", "stderr"
STREAMS = {0: IN, 1: OUT, 2: ERR}
"""{descriptor: stream} of a new instance."""
# Sizes of structures (bytes). fdstat: filetype (unknown), flags, padding, rights, inherited rights.
FDSTAT_SIZE, FILESTAT_SIZE = 24, 64
RIGHTS = {IN: 1 << 1, OUT: 1 << 6, ERR: 1 << 6}
REALTIME, MONOTONIC, CLOCKS = 0, 1, 4

# A vectored write of more buffers is a short write, as on POSIX systems with this IOV_MAX.
MAX_IOVECS, IOVEC_SIZE, IOVEC_FUEL = 1024, 8, 100
MAX_SUBSCRIPTIONS, SUBSCRIPTION_SIZE, EVENT_SIZE, SUBSCRIPTION_FUEL = 64, 48, 32, 1000
EVENT_CLOCK, EVENT_READ, EVENT_WRITE = 0, 1, 2
# Bytes that are copied at once: about 0.2 ms of the system's generator. Units of fuel for a random
# byte, which takes 4 ns; for a byte that is cut into lines; and for a string, for its pointer.
PIECE, RANDOM_FUEL, LINE_FUEL, STRING_FUEL = 32 * 1024, 4, 1, 100
# Units of fuel for a byte of a line that has to be escaped, as it is not UTF-8.
ESCAPE_FUEL = 300
UNSIGNED = {"i32": 0xFFFFFFFF, "i64": 0xFFFFFFFFFFFFFFFF}


@frozen
class Cost:
    """Cost of one call of a function, in addition to `CALL_FUEL`."""

    fuel: int = 0
    """Units of fuel for each item."""
    item: str = ""
    """Name of an item; empty if the call reads nothing whose length the guest chooses."""
    most: int | None = 0
    """Largest number of items in one call; None for as many as the guest asks for, in pieces."""
    copied: int = 0
    """Largest number of bytes besides items that one call copies, at `LINE_FUEL` at most."""


@final
@frozen
class WasiFunction:
    """One function of preview 1, for the runner to serve."""

    name: str
    type: FuncType = field(eq=False)
    cost: Cost = field(eq=False)
    _run: Callable[..., int | Steps] = field(eq=False, repr=False)
    grants: Grants = NOTHING
    of_preview_1: ClassVar[bool] = True
    """What tells it from other host functions."""

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
            Exception: what a function of the application has raised, as the clock.
        """
        values = [
            value & UNSIGNED[kind]
            for value, kind in zip(call.values, self.type.params, strict=True)
        ]
        call.grants = self.grants
        try:
            found = self._run(call, *values)
        except IndexError:
            return (EFAULT,)
        except CallbackError as failed:
            raise failed.error from None
        return (found,) if isinstance(found, int) else _in_steps(found)


def _in_steps(steps: Steps) -> Generator[Pause, None, Results]:
    try:
        return ((yield from steps),)
    except IndexError:  # an address is outside of the memory, or the instance was closed
        return (EFAULT,)


FUNCTIONS: dict[str, WasiFunction] = {}
"""{name: function} of all functions."""

Run = Callable[..., int | Steps]


def _preview1(
    fuel: int = 0, item: str = "", most: int | None = 0, copied: int = 0
) -> Callable[[Run], Run]:
    """Decorate a function of this file to be the one of preview 1 with its name."""

    def add(run: Run) -> Run:
        name = run.__name__
        cost = Cost(fuel, item, most, copied)
        FUNCTIONS[name] = WasiFunction(name, WASI_TYPES[name], cost, run)
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

    def grow(self, _pages: int, /) -> NoReturn:
        raise MemoryLimitError("the module exports no memory")


NO_MEMORY = _NoMemory()


def _memory(call: HostCall) -> GuestMemory:
    return NO_MEMORY if call.memory is None else call.memory


def _session(call: HostCall) -> Session:
    return Session.of(call, _grants(call))


def _streams(call: HostCall) -> dict[int, str]:
    """Return {descriptor: stream} of the open streams of the instance."""
    return cast("dict[int, str]", call.state.get("streams", STREAMS))


def _note_change(call: HostCall) -> None:
    """Note that the open streams of the instance change."""
    if call.caller is not None and call.caller.watch is not None:
        call.caller.watch.changed("closes a standard stream")


def _word(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _long(value: int) -> bytes:
    return value.to_bytes(8, "little")


# -- arguments and environment


def _write_strings(call: HostCall, strings: Strings, pointers: int, data: int) -> int:
    count, size = len(strings.offsets), len(strings.data)
    if not count:
        return SUCCESS
    memory = _memory(call)
    if pointers + 4 * count > memory.size or data + size > memory.size:
        return EFAULT
    call.spend(count * STRING_FUEL + copy_fuel(size))
    memory.write(pointers, struct.pack(f"<{count}I", *(data + at for at in strings.offsets)))
    memory.write(data, strings.data)
    return SUCCESS


def _write_sizes(call: HostCall, strings: Strings, count_at: int, size_at: int) -> int:
    memory = _memory(call)
    memory.read(size_at, 4)  # write either both or none
    memory.write(count_at, _word(len(strings.offsets)))
    memory.write(size_at, _word(len(strings.data)))
    return SUCCESS


def _grants(call: HostCall) -> Grants:
    return cast("Grants", call.grants)


@_preview1(STRING_FUEL, "string", MAX_STRINGS, MAX_STRINGS_SIZE)
def args_get(call: HostCall, pointers: int, data: int) -> int:
    """Write the arguments, and a pointer to each."""
    return _write_strings(call, _grants(call).args, pointers, data)


@_preview1()
def args_sizes_get(call: HostCall, count_at: int, size_at: int) -> int:
    """Write the number of arguments, and of their bytes."""
    return _write_sizes(call, _grants(call).args, count_at, size_at)


@_preview1(STRING_FUEL, "string", MAX_STRINGS, MAX_STRINGS_SIZE)
def environ_get(call: HostCall, pointers: int, data: int) -> int:
    """Write the variables, and a pointer to each."""
    return _write_strings(call, _grants(call).env, pointers, data)


@_preview1()
def environ_sizes_get(call: HostCall, count_at: int, size_at: int) -> int:
    """Write the number of variables, and of their bytes."""
    return _write_sizes(call, _grants(call).env, count_at, size_at)


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
    return _session(call).now(clock == REALTIME, call.state)


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
    _note_change(call)
    call.state["streams"] = streams
    return SUCCESS


@_preview1()
def fd_renumber(call: HostCall, descriptor: int, to: int) -> int:
    """Move a stream to the descriptor of another, which is closed."""
    streams = dict(_streams(call))
    if descriptor not in streams or to not in streams:
        return EBADF
    _note_change(call)
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
    return ESPIPE if _streams(call).get(descriptor) in (OUT, ERR) else EBADF


def _buffers(call: HostCall, memory: GuestMemory, at: int, count: int) -> list[tuple[int, int]]:
    """Return (address, size) of the first `MAX_IOVECS` buffers of a list.

    Raises:
        IndexError: the list, or a buffer, is outside of the memory.
        FuelExhaustedError: the call has not enough fuel left to look at them.
    """
    count = min(count, MAX_IOVECS)
    call.spend(count * IOVEC_FUEL)
    words = memoryview(memory.read(at, count * IOVEC_SIZE)).cast("I").tolist()
    found = list(zip(words[0::2], words[1::2], strict=True))
    if max(map(sum, found), default=0) > memory.size:
        raise IndexError("a buffer is outside of the memory")
    return found


@_preview1(IOVEC_FUEL, "iovec", MAX_IOVECS, PIECE)
def fd_read(call: HostCall, descriptor: int, iovecs: int, count: int, result_at: int) -> int:
    """Read the next bytes of the input into buffers, at most `PIECE`.

    Of input that was empty from the beginning, the buffers are not looked at.
    """
    if _streams(call).get(descriptor) != IN:
        return EBADF
    memory, stdin = _memory(call), _grants(call).wasi.stdin
    if not stdin:
        if iovecs + min(count, MAX_IOVECS) * IOVEC_SIZE > memory.size:
            return EFAULT
        memory.write(result_at, bytes(4))
        return SUCCESS
    buffers = _buffers(call, memory, iovecs, count)
    memory.read(result_at, 4)  # before anything is read from the input
    session = _session(call)
    size = min(sum(size for _, size in buffers), len(stdin) - session.read, PIECE)
    call.spend(copy_fuel(size))
    data, start = session.read_input(size), 0
    for at, length in buffers:
        if start == size:
            break
        part = data[start : start + length]
        memory.write(at, part)
        start += len(part)
    memory.write(result_at, _word(size))
    return SUCCESS


@_preview1(IOVEC_FUEL, "iovec", MAX_IOVECS, PIECE)
def fd_write(
    call: HostCall, descriptor: int, iovecs: int, count: int, result_at: int
) -> int | Steps:
    """Write buffers to an output, and the number of bytes that it took.

    Only the first `MAX_IOVECS` buffers count, and at most `PIECE` bytes are cut into lines; a guest
    must be ready for a short write. Of what nobody wants, no bytes are read; of what is only kept
    for an error, the last.
    """
    way = _streams(call).get(descriptor)
    if way not in (OUT, ERR):
        return EBADF
    memory = _memory(call)
    buffers = _buffers(call, memory, iovecs, count)
    written = sum(size for _, size in buffers)
    if written > UNSIGNED["i32"]:
        return EINVAL
    memory.read(result_at, 4)  # before anything is written
    stream = _session(call).streams[way == ERR]
    if stream.lines is not None:
        return _write_lines(call, memory, stream, buffers, result_at)
    if stream.keeps and written:
        size = min(written, TAIL)
        call.spend(copy_fuel(size))
        stream.tail.add(written, _end_of(memory, buffers, size))
    memory.write(result_at, _word(written))
    return SUCCESS


def _end_of(memory: GuestMemory, buffers: Sequence[tuple[int, int]], size: int) -> bytes:
    """Return the last `size` bytes of some buffers."""
    parts: list[bytes] = []
    for at, length in reversed(buffers):
        part = min(length, size)
        if part:
            parts.append(memory.read(at + length - part, part))
            size -= part
        if not size:
            break
    return b"".join(reversed(parts))


def _write_lines(
    call: HostCall,
    memory: GuestMemory,
    stream: Stream,
    buffers: Sequence[tuple[int, int]],
    result_at: int,
) -> Steps:
    parts, left = [], PIECE
    for at, length in buffers:
        part = min(length, left)
        call.spend(part * LINE_FUEL)
        if part:
            parts.append(memory.read(at, part))
            left -= part
        if not left:
            break
    data = b"".join(parts)
    yield from pass_lines(call, _session(call), stream, data, charged=True)
    memory.write(result_at, _word(len(data)))
    return SUCCESS


def pass_lines(
    call: HostCall, session: Session, stream: Stream, data: bytes, *, charged: bool = False
) -> Generator[Pause, None, None]:
    """Cut what a guest wrote into lines, and pass them on; yields pauses.

    Args:
        call: the call, which is charged.
        session: what is kept for it.
        stream: where the guest wrote, which has `lines`.
        data: what it wrote, at most `PIECE` bytes.
        charged: whether its bytes were charged before.
    """
    call.spend((0 if charged else len(data) * LINE_FUEL) + escapes(data) * ESCAPE_FUEL)
    stream.tail.add(len(data), data[-TAIL:])
    yield from session.write_lines(call, stream, data)


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

    A fixed clock is set ahead, without waiting.

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
            if _streams(call).get(descriptor) not in ((IN,) if kind == EVENT_READ else (OUT, ERR)):
                return EBADF
            ready.append(_event(userdata, kind, 1))
        else:
            return EINVAL
    return _poll(call, memory, ready, clocks, events, result_at)


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
    call: HostCall,
    memory: GuestMemory,
    ready: list[bytes],
    clocks: list[tuple[int, bytes]],
    events: int,
    result_at: int,
) -> Steps:
    if not ready:
        earliest = min(due for due, _ in clocks)
        ready = [event for due, event in clocks if due == earliest]
        yield _session(call).wait(earliest)
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
    """Write random bytes, of the system's source or of the seed's stream, a piece at a time."""
    if not length:
        return SUCCESS
    memory = _memory(call)
    if at + length > memory.size:
        return EFAULT
    if length > PIECE:
        return _fill(call, memory, at, length)
    call.spend(length * RANDOM_FUEL)
    memory.write(at, _session(call).random(length))
    return SUCCESS


def _fill(call: HostCall, memory: GuestMemory, at: int, length: int) -> Steps:
    for start in range(0, length, PIECE):
        if start:
            yield 0.0
        size = min(PIECE, length - start)
        call.spend(size * RANDOM_FUEL)
        memory.write(at + start, _session(call).random(size))
    return SUCCESS


@_preview1()
def sched_yield(call: HostCall) -> Steps:
    """Let other tasks run."""
    yield 0.0
    return SUCCESS


BUILT_IN: dict[tuple[str, str], WasiFunction] = {
    (WASI_MODULE, name): function for name, function in FUNCTIONS.items()
}


def functions_of(grants: Grants) -> Mapping[tuple[str, str], WasiFunction]:
    """Return {(module, name): function} of all functions, with what is granted."""
    if grants is NOTHING:
        return BUILT_IN
    return {name: evolve(function, grants=grants) for name, function in BUILT_IN.items()}
