"""Calls of core modules by the canonical ABI, without Trio: wasmtime runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import wasmtime
from abi.support import FakeGuest
from components.wit import function_type

from trio_wasmcache import Convert, Exports, Invoke
from trio_wasmcache._abi.base import PAUSE
from trio_wasmcache._abi.canonical import CanonicalAbi, Lifted
from trio_wasmcache._core.tally import Tally
from trio_wasmcache._core.wasm.reader import FuncType

_ENGINE = wasmtime.Engine()


class CoreGuest:
    """A core module in a store of wasmtime's, as the guest of an ABI, and what was invoked."""

    def __init__(self, text: str) -> None:
        self.store = wasmtime.Store(_ENGINE)
        module = wasmtime.Module(_ENGINE, wasmtime.wat2wasm(text))
        self.exports: Any = wasmtime.Instance(self.store, module, []).exports(self.store)
        self._memory = self.exports["memory"]
        self.state: dict[str, Any] = {}
        self.tally = Tally(2**40, allowed=2**40)
        self.invoked: list[Invoke] = []
        self.pauses = self.converts = 0

    @property
    def memory(self) -> CoreGuest:
        return self

    @property
    def size(self) -> int:
        return int(self._memory.data_len(self.store))

    def view(self) -> memoryview:
        return memoryview(self._memory.read(self.store, 0)).toreadonly()

    def read(self, at: int, n: int) -> bytes:
        if at < 0 or at + n > self.size:
            raise IndexError(at)
        return bytes(self._memory.read(self.store, at, at + n))

    def write(self, at: int, data: Any) -> None:
        if at < 0 or at + memoryview(data).nbytes > self.size:
            raise IndexError(at)
        self._memory.write(self.store, bytearray(data), at)

    def invoke(self, asked: Invoke) -> Any:
        self.invoked.append(asked)
        return self.exports[asked.export](self.store, *asked.values)


def exports_of(params: Sequence[str], results: Sequence[str], *more: str) -> Exports:
    """Of a module with an `echo`, what allocates, and what is called after it."""
    functions = {
        "echo": FuncType(tuple(params), tuple(results)),
        "cabi_realloc": FuncType(("i32",) * 4, ("i32",)),
        "cabi_post_echo": FuncType(tuple(results)),
    }
    return Exports(functions, {}, ("memory", *more))


def bind(params: Sequence[Any], result: Any, *, post: bool = False) -> Any:
    """The ABI, bound to a function `echo` of these types."""
    from trio_wasmcache._core.wit.layout import lifted_signature

    kind = function_type(tuple(params), result)
    core = lifted_signature(kind)
    lifted = Lifted("echo", kind, "cabi_realloc", "cabi_post_echo" if post else None)
    return CanonicalAbi((lifted,)).bind(
        "echo", "echo", (), (), exports_of(core.params, core.results), True
    )


def call(binding: Any, guest: CoreGuest, *values: Any) -> Any:
    """The result of one call."""
    if binding.steps is None:
        lowered = values if binding.lower is None else binding.lower(values)
        result = guest.exports["echo"](guest.store, *lowered)
        return result if binding.lift is None else binding.lift(result)
    return drive(binding.steps(guest, values), guest, guest.invoke)


def drive(steps: Any, guest: Any, invoke: Callable[[Invoke], Any]) -> Any:
    """The result of steps whose requests are answered at once."""
    send, sent = steps.send, None
    while True:
        try:
            asked = send(sent)
        except StopIteration as stop:
            return stop.value
        send = steps.send
        if asked is PAUSE:
            guest.pauses += 1
            sent = None
        elif isinstance(asked, Convert):
            guest.converts += 1
            try:
                sent = asked.function(*asked.values)
            except Exception as error:
                send, sent = steps.throw, error
        else:
            sent = invoke(asked)


__all__ = ["CoreGuest", "FakeGuest", "bind", "call", "drive"]
