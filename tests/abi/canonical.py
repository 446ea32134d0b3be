"""Calls of core modules by the canonical ABI, without Trio: wasmtime runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import wasmtime
from abi.support import FakeGuest
from attrs import evolve
from components.wit import function_type

from trio_wasmcache import Convert, Exports, Invoke
from trio_wasmcache._abi.base import BY_STEPS, PAUSE, InvokePart
from trio_wasmcache._abi.canonical import CanonicalAbi, Lifted
from trio_wasmcache._core.tally import Tally
from trio_wasmcache._core.wasm.reader import FuncType, read_module
from trio_wasmcache._core.wit.layout import lifted_signature

_ENGINE = wasmtime.Engine()


class CoreGuest:
    """A core module in a store of wasmtime's, as the guest of an ABI, and what was invoked."""

    def __init__(self, text: str, abi: CanonicalAbi | None = None) -> None:
        self.store = wasmtime.Store(_ENGINE)
        wasm = bytes(wasmtime.wat2wasm(text))
        module = wasmtime.Module(_ENGINE, wasm)
        self.exports: Any = wasmtime.Instance(self.store, module, []).exports(self.store)
        self._memory = self.exports["memory"]
        self.adapter: Any = None
        parts = () if abi is None else abi.layer("echo", read_module(wasm), {}, 0).after
        for part in parts:
            made = wasmtime.Module(_ENGINE, part.wasm)
            given = [self.exports[part.wiring["", one.name].export] for one in made.imports]
            self.adapter = wasmtime.Instance(self.store, made, given).exports(self.store)
        self.state: dict[str, Any] = {}
        self.tally = Tally(2**40, allowed=2**40)
        self.invoked: list[Invoke] = []
        self.pauses = self.converts = 0
        self.most_written = 0
        """Bytes of the largest write."""

    @property
    def memory(self) -> CoreGuest:
        return self

    @property
    def size(self) -> int:
        return int(self._memory.data_len(self.store))

    def view(self) -> memoryview:
        return memoryview(self._memory.read(self.store, 0)).toreadonly()

    # As a part of itself, with its one window.

    def part(self, _name: str) -> CoreGuest:
        return self

    def window(self, _name: str) -> Any:
        class Window:
            view = memoryview(self.adapter["scratch"].get_buffer_ptr(self.store)).cast("B")

        return Window

    def read(self, at: int, n: int) -> bytes:
        if at < 0 or at + n > self.size:
            raise IndexError(at)
        return bytes(self._memory.read(self.store, at, at + n))

    def write(self, at: int, data: Any) -> None:
        if at < 0 or at + memoryview(data).nbytes > self.size:
            raise IndexError(at)
        self.most_written = max(self.most_written, memoryview(data).nbytes)
        self._memory.write(self.store, bytearray(data), at)

    def invoke(self, asked: Invoke) -> Any:
        self.invoked.append(asked)
        if isinstance(asked, InvokePart):
            return self.adapter[asked.export](self.store, *asked.values)
        return self.exports[asked.export](self.store, *asked.values)


def exports_of(params: Sequence[str], results: Sequence[str], *more: str) -> Exports:
    """Of a module with an `echo`, what allocates, and what is called after it."""
    functions = {
        "echo": FuncType(tuple(params), tuple(results)),
        "cabi_realloc": FuncType(("i32",) * 4, ("i32",)),
        "cabi_post_echo": FuncType(tuple(results)),
    }
    return Exports(functions, {}, ("memory", *more))


def abi_of(params: Sequence[Any], result: Any, *, post: bool = False) -> CanonicalAbi:
    """The ABI of a function `echo` of these types."""
    kind = function_type(tuple(params), result)
    lifted = Lifted("echo", kind, "cabi_realloc", "cabi_post_echo" if post else None)
    return CanonicalAbi((lifted,))


def bind(abi: CanonicalAbi) -> Any:
    """The ABI, bound to its function."""
    core = lifted_signature(abi.functions[0].type)
    exports = exports_of(core.params, core.results)
    return abi.bind("echo", "echo", (), (), exports, True)


def call(binding: Any, guest: CoreGuest, *values: Any, way: str = "steps") -> Any:
    """The result of one call, in a way: by steps, or direct, as far as that goes."""
    if way == "direct" and binding.steps is not None:
        direct = binding.direct(guest)
        assert direct.lower(values), values
        status = guest.adapter["call 0"](guest.store)
        lifted = direct.lift(status)
        if lifted is not BY_STEPS:
            return lifted[0]
        return drive(binding.rest(guest, status), guest, guest.invoke)
    if binding.steps is None:
        lowered = values if binding.lower is None else binding.lower(values)
        result = guest.exports["echo"](guest.store, *lowered)
        return result if binding.lift is None else binding.lift(result)
    if way == "no adapter":
        binding = evolve(binding, calls=None)
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


__all__ = ["CoreGuest", "FakeGuest", "abi_of", "bind", "call", "drive"]
