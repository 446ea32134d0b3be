"""The functions of WASI preview 1 that wasmtime's own implementation can't be trusted with here.

wasmtime serves the others; with nothing granted they answer at once. These would do work in
proportion to a length that the guest chooses, for next to no fuel and with no way to stop them, or
sleep on the event loop. So they are host functions: they run between two polls, charge for what
they do, and let others run meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol, final

import trio
from attrs import field, frozen

from ._core.admit import WASI_MODULE, WASI_TYPES
from ._core.errors import ExitError
from ._core.wasm import FuncType
from ._engine.seam import GuestMemory

SUCCESS, EBADF, EFAULT, EINVAL, ENOSYS = 0, 8, 21, 28, 52
SUBSCRIPTION_SIZE, EVENT_SIZE, EVENT_CLOCK = 48, 32, 0
IOVEC_SIZE = 8
STDOUT, STDERR = 1, 2
# What may be asked for at once; the rest of a longer list is not looked at.
MAX_SUBSCRIPTIONS, MAX_IOVECS = 64, 1024
# Random bytes made between two checkpoints: about 0.3 ms.
RANDOM_CHUNK = 64 * 1024
# Fuel for a random byte: about 4 ns each.
RANDOM_FUEL = 4


class WasiFunction(Protocol):
    """What the runner needs of a host function."""

    @property
    def type(self) -> FuncType:
        """What the guest sees."""

    def fuel(self, values: tuple[Any, ...], memory: GuestMemory | None) -> int:
        """What it did costs that much of the call's fuel, beyond the guest's own."""

    async def run(self, values: tuple[Any, ...], memory: GuestMemory | None) -> Sequence[Any]:
        """Do it; the wasm values to give back."""


@final
@frozen
class PollOneoff:
    """`poll_oneoff`: with nothing granted there is nothing to poll but clocks.

    The earliest timeout is slept, as a Trio sleep of the calling task, and reported; what asks for
    a file descriptor gets ENOSYS.
    """

    type: FuncType = field(factory=lambda: WASI_TYPES["poll_oneoff"])

    def fuel(self, values: tuple[Any, ...], memory: GuestMemory | None) -> int:
        return 0

    async def run(self, values: tuple[Any, ...], memory: GuestMemory | None) -> Sequence[Any]:
        at, events_at, count, result_at = (value & 0xFFFFFFFF for value in values)
        if memory is None or not 0 < count <= MAX_SUBSCRIPTIONS:
            return (EINVAL,)
        timeouts = []
        try:
            for number in range(count):
                raw = memory.read(at + number * SUBSCRIPTION_SIZE, SUBSCRIPTION_SIZE)
                if raw[8] != EVENT_CLOCK:
                    return (ENOSYS,)
                absolute = raw[40] & 1
                nanoseconds = int.from_bytes(raw[24:32], "little")
                # Absolute times are of clocks that we do not give: due at once.
                timeouts.append((0 if absolute else nanoseconds, raw[:8]))
            due, userdata = min(timeouts)
            await trio.sleep(due / 1e9)
            event = userdata + bytes([0, 0, EVENT_CLOCK]) + bytes(EVENT_SIZE - 11)
            memory.write(events_at, event)
            memory.write(result_at, (1).to_bytes(4, "little"))
        except IndexError:
            return (EFAULT,)
        return (SUCCESS,)


@final
@frozen
class RandomGet:
    """`random_get`: from the system's source, a chunk at a time."""

    type: FuncType = field(factory=lambda: WASI_TYPES["random_get"])

    def fuel(self, values: tuple[Any, ...], memory: GuestMemory | None) -> int:
        at, length = (value & 0xFFFFFFFF for value in values)
        inside = memory is not None and at + length <= memory.size
        return length * RANDOM_FUEL if inside else 0

    async def run(self, values: tuple[Any, ...], memory: GuestMemory | None) -> Sequence[Any]:
        at, left = (value & 0xFFFFFFFF for value in values)
        if memory is None or at + left > memory.size:
            return (EFAULT,)
        try:
            while left > RANDOM_CHUNK:
                memory.write(at, os.urandom(RANDOM_CHUNK))
                at, left = at + RANDOM_CHUNK, left - RANDOM_CHUNK
                await trio.lowlevel.checkpoint()
            memory.write(at, os.urandom(left))
        except IndexError:  # the cache was closed meanwhile
            return (EFAULT,)
        return (SUCCESS,)


@final
@frozen
class FdWrite:
    """`fd_write`: output is discarded, so only its length is reckoned, and nothing is copied."""

    type: FuncType = field(factory=lambda: WASI_TYPES["fd_write"])

    def fuel(self, values: tuple[Any, ...], memory: GuestMemory | None) -> int:
        return 0

    async def run(self, values: tuple[Any, ...], memory: GuestMemory | None) -> Sequence[Any]:
        fd, at, count, result_at = (value & 0xFFFFFFFF for value in values)
        if fd not in (STDOUT, STDERR):
            return (EBADF,)
        if memory is None:
            return (EFAULT,)
        written = 0
        try:
            raw = memory.read(at, min(count, MAX_IOVECS) * IOVEC_SIZE)
            for offset in range(0, len(raw), IOVEC_SIZE):
                start = int.from_bytes(raw[offset : offset + 4], "little")
                length = int.from_bytes(raw[offset + 4 : offset + 8], "little")
                if start + length > memory.size:
                    return (EFAULT,)
                written += length
            memory.write(result_at, (written & 0xFFFFFFFF).to_bytes(4, "little"))
        except IndexError:
            return (EFAULT,)
        return (SUCCESS,)


@final
@frozen
class ProcExit:
    """`proc_exit`: ends the call, with any status; wasmtime's own knows only those below 126."""

    type: FuncType = field(factory=lambda: WASI_TYPES["proc_exit"])

    def fuel(self, values: tuple[Any, ...], memory: GuestMemory | None) -> int:
        return 0

    async def run(self, values: tuple[Any, ...], memory: GuestMemory | None) -> Sequence[Any]:
        status: int = values[0]
        raise ExitError(f"the guest called proc_exit({status})", status=status)


BUILT_IN: dict[tuple[str, str], WasiFunction] = {
    (WASI_MODULE, "poll_oneoff"): PollOneoff(),
    (WASI_MODULE, "random_get"): RandomGet(),
    (WASI_MODULE, "fd_write"): FdWrite(),
    (WASI_MODULE, "proc_exit"): ProcExit(),
}
