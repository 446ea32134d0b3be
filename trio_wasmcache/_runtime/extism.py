"""The host functions of Extism's kernel: its traps, its log, and functions of the application.

The kernel (see `_core/wasm/extism_kernel`) does the rest within wasm. It gives a block as address
and size in its own memory, of which it has made sure; the sizes that it is given back are those of
results that are kept here until it has made blocks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeAlias, final

from attrs import field, frozen

from .._abi.base import Value
from .._abi.bytes_and_text import BUFFERS, lower_buffer
from .._abi.extism import KERNEL, KernelHost
from .._abi.plain import TYPES, lift_number, to_number
from .._core.costs import copy_fuel
from .._core.errors import AbiError, TrapError
from .._core.output import TAIL
from .._core.text import escaped
from .._core.wasm.admission import signature
from .._core.wasm.extism_kernel import (
    HANDLES,
    LOG_LEVELS,
    MAX_BLOCKS,
    NO_BLOCK,
    NO_HTTP,
    OUT_OF_MEMORY,
    OUTSIDE,
    TOO_MANY_BLOCKS,
    VARS_LIMIT,
)
from .._core.wasm.reader import FuncType
from .._engine.base import HostCall
from .host import HostFunction
from .session import Grants, Session
from .user_code import await_unprotected

KEY: Final = "extism"
"""Key of the results in `HostCall.state` for which the kernel makes blocks."""
LINE_LIMIT: Final = 16 * 1024
"""Bytes of a line of the log that are read, at most."""
REQUEST_LIMIT: Final = 200
"""Bytes of a refused request that are shown, at most."""

Results: TypeAlias = tuple[object, ...]
_NO_NETWORK = (
    'which it can only do by a host function: give imports={"extism:host/env": '
    '{"http_request": HostFunction(fetch, params=("bytes", "bytes"), results=("bytes",))}}'
)


@final
@frozen
class KernelFunction:
    """A host function that the kernel calls, and that needs no task."""

    name: str
    type: FuncType
    grants: Grants
    part: str = KERNEL
    """Name of the part whose memory it uses."""

    @property
    def serve_alone(self) -> Callable[[HostCall], Value]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"the kernel's function of that name is {signature(self.type)}"

    def serve(self, call: HostCall) -> Results | Generator[float, None, Results]:
        """Answer a call: return the result values, or steps that return them.

        Raises:
            TrapError: the kernel ends the call.
            FuelExhaustedError: it costs more fuel than the call has left.
        """
        if self.name == "deliver":
            return _deliver(call)
        if self.name == "log":
            return _log(call, self.grants)
        raise _trap(call)


def _trap(call: HostCall) -> TrapError:
    reason, first, second = (value % (1 << 64) for value in call.values)
    if reason == OUT_OF_MEMORY:
        return TrapError(
            f"the plugin asked Extism's host for {first} bytes of memory, which with the "
            f"{second} bytes that it has exceed its share of memory_limit: raise it, unless the "
            "plugin allocates without end",
            code="out of memory",
        )
    if reason == TOO_MANY_BLOCKS:
        return TrapError(
            f"the plugin has made {MAX_BLOCKS} blocks of memory of Extism's host, which are all "
            "that one call may have: let it free blocks (extism_free) that it does not need any "
            "more, or make fewer, larger ones",
            code="out of memory",
        )
    if reason == NO_BLOCK:
        return TrapError(
            f"the plugin gave {second} as its {HANDLES[first]}, an offset at which no block of "
            "Extism's memory begins",
            code="no block",
        )
    if reason == OUTSIDE:
        return TrapError(
            f"the plugin's output, {second} bytes at offset {first}, is not inside a block of "
            "Extism's memory",
            code="output outside",
        )
    if reason == NO_HTTP:
        request = _read(call, first, min(second, REQUEST_LIMIT)).decode(errors="replace")
        return TrapError(
            f"the plugin made an HTTP request, {escaped(request)}, {_NO_NETWORK}", code="no http"
        )
    return TrapError(
        f"the plugin's variables have {first} bytes, and {second} more, with the 48 bytes that "
        f"each counts, exceed {VARS_LIMIT}",
        code="vars full",
    )


def _read(call: HostCall, at: int, size: int) -> bytes:
    call.spend(copy_fuel(size))
    return b"" if call.memory is None or not size else call.memory.read(at, size)


def _deliver(call: HostCall) -> Results:
    which, at = call.values
    results: list[bytes] = call.state[KEY]
    data, results[which] = results[which], b""
    call.spend(copy_fuel(len(data)))
    assert call.memory is not None
    call.memory.write(at % (1 << 64), data)
    return ()


def _log(call: HostCall, grants: Grants) -> Results | Generator[float, None, Results]:
    level, at, size = call.values
    stream = Session.of(call, grants).streams[1]
    if not stream.keeps:
        return ()
    line = _read(call, at, min(size, LINE_LIMIT))
    words = b"%s: %s\n" % (LOG_LEVELS[level].encode(), line)
    stream.tail.add(len(words), words[-TAIL:])
    return () if stream.lines is None else _log_lines(call, grants, words)


def _log_lines(call: HostCall, grants: Grants, words: bytes) -> Generator[float, None, Results]:
    session = Session.of(call, grants)
    yield from session.write_lines(call, session.streams[1], words)
    return ()


@final
@frozen
class BlockHost:
    """A function of the application that the kernel calls with the contents of blocks."""

    type: FuncType
    """Type of the function for the kernel: address and size of a block, and size of a result."""
    function: HostFunction
    part: str = KERNEL
    serve_alone: None = field(default=None, init=False, eq=False)

    def misfit(self, wanted: FuncType) -> str:
        """Return words for a message: its type."""
        return self.function.misfit(wanted)

    def serve(self, call: HostCall) -> Results | Coroutine[object, object, Results]:
        """Call the function with the guest's arguments; return wasm values, or a coroutine.

        Args:
            call: the call that the kernel made.

        Raises:
            AbiError: a text is not UTF-8.
            TypeError, ValueError: the function returned something else than its `results`.
            FuelExhaustedError: it costs more fuel than the call has left.
        """
        result = self.function.call(self._arguments(call))
        if inspect.isawaitable(result):
            return self._rest(call, result)
        return self._results(call, result)

    async def _rest(self, call: HostCall, result: Awaitable[object]) -> Results:
        return self._results(call, await await_unprotected(result, call))

    def _arguments(self, call: HostCall) -> tuple[object, ...]:
        taken: list[Any] = []
        values = iter(call.values)
        for name in self.function.params:
            value = next(values)
            if name not in BUFFERS:
                taken.append(
                    lift_number(f"{self.function.what} was called with", TYPES[name], value)
                )
                continue
            data = _read(call, value % (1 << 64), next(values))
            if name == "str":
                try:
                    taken.append(data.decode())
                except UnicodeDecodeError as error:
                    raise AbiError(
                        f"{self.function.what} was called with what is not UTF-8: {error}"
                    ) from None
            else:
                taken.append(data)
        return tuple(taken)

    def _results(self, call: HostCall, result: object) -> Results:
        """Return numbers, and sizes of buffers, which are kept until they are delivered."""
        made: list[object] = []
        kept: list[bytes] = []
        for number, (name, value) in enumerate(
            zip(self.function.results, self.function.given(result), strict=True), start=1
        ):
            place = f"result {number} of {self.function.what}"
            if name not in BUFFERS:
                kept.append(b"")
                made.append(_lowered(place, name, value))
                continue
            with ExitStack() as views:
                data = b"" if value is None else bytes(lower_buffer(place, name, value, views))
            call.spend(copy_fuel(len(data)))
            kept.append(data)
            made.append(-1 if value is None else len(data))
        call.state[KEY] = kept
        return tuple(made)


def _lowered(place: str, name: str, value: object) -> Value:
    try:
        return to_number(TYPES[name], value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{place}: {error}") from None


def kernel_hosts(hosts: Sequence[object], grants: Grants) -> tuple[KernelFunction | BlockHost, ...]:
    """Return the host functions for what a layer of the Extism ABI imports."""
    made: list[KernelFunction | BlockHost] = []
    for one in hosts:
        assert isinstance(one, KernelHost)
        if isinstance(one.function, HostFunction):
            made.append(BlockHost(one.type, one.function))
        else:
            made.append(KernelFunction(one.name, one.type, grants))
    return tuple(made)
