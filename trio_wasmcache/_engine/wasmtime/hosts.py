"""Register host functions with wasmtime: two C callbacks, which suspend the guest and resume it.

No user code runs here. wasmtime calls `_on_call` on the guest's stack; it records the request as a
`HostCall` and suspends the guest. The runner runs the Python function between two polls, on the
ordinary stack, and writes the results to their cells. The next poll asks `ANSWERED`, a function of
C, and the guest continues.

This is safe because, while the guest is suspended:

- wasmtime keeps the cells of arguments and results where they are
  (crates/c-api/include/wasmtime/async.h);
- the guest's memory can't move, as only the guest grows it;
- a callback uses nothing but the instance that called it.

The callback must not raise: the C API would find no continuation, and abort the process. Python
runs a signal handler in the Python code that runs next in the main thread, which after a slice is
the callback. So Ctrl-C is deferred, as Trio sees that the frame is protected. The exception of any
other handler is kept in `RAISED`, and ends the call after the poll. The space on Python's stack
that the callback needs is checked before each poll.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import c_void_p
from typing import TYPE_CHECKING, TypeAlias, final

import trio

from ..._core.wasm.reader import FuncType
from ..base import HostCall, HostImport
from . import native
from .errors import take_error
from .exception_table import holds_from_the_start, tried_from_the_start
from .memory import SuspendedMemory
from .store import RAISED, Store

if TYPE_CHECKING:
    from ctypes import _Pointer as Pointer

    Continuations: TypeAlias = Pointer[native.Continuation]

# Whether a suspended guest may go on: `strlen` of the C string `Store.answered`, 1 or 0.
# So no Python code runs to tell.
ANSWERED = native.CONTINUE(("strlen", ctypes.CDLL(None)))
# For a guest that may go on at once, as its call is over for us.
_TEXT = ctypes.create_string_buffer(b"!")
_AT_ONCE = native.Continuation(ANSWERED, ctypes.addressof(_TEXT), None)


def cells(types: Sequence[str]) -> struct.Struct:
    """Return how consecutive wasmtime_val_t look to `struct`: kind and value of each, in turn."""
    return struct.Struct("<" + "".join(_CELL[native.VALUE_KINDS[name][1]] for name in types))


# A kind byte, padding up to the value, the value, padding up to the next cell.
_CELL = {"i": "B7xi20x", "q": "B7xq16x", "f": "B7xf20x", "d": "B7xd16x"}


def kinds(types: Sequence[str]) -> tuple[int, ...]:
    """Return the kind bytes that go with `cells`."""
    return tuple(native.VALUE_KINDS[name][0] for name in types)


@final
class HostTable:
    """The host imports of one module: what to read and write for each. Shared by its instances."""

    def __init__(self, imports: Sequence[HostImport]) -> None:
        self.imports = tuple(imports)
        # A function with references is one that only traps: it reads and returns nothing.
        types = [
            FuncType() if host.type.uncrossable() is not None else host.type for host in imports
        ]
        self.params = [cells(type.params) for type in types]
        self.results = [cells(type.results) for type in types]
        self.result_kinds = [kinds(type.results) for type in types]

    def define(self, linker: int) -> list[str]:
        """Define all of them in a linker; return the messages of what could not be."""
        problems = []
        for index, host in enumerate(self.imports):
            problem = self.define_as(linker, index, host.module, host.name)
            if problem is not None:
                problems.append(problem)
        return problems

    def define_as(self, linker: int, index: int, module: str, name: str) -> str | None:
        """Define one of them in a linker by a name; return the message if it could not be."""
        raw_module, raw_name = module.encode(), name.encode()
        function_type = _function_type(self.imports[index].type)
        error = native.linker_define_async_func(
            linker,
            raw_module,
            len(raw_module),
            raw_name,
            len(raw_name),
            function_type,
            _CALLBACK,
            index + 1,  # a null pointer would arrive as None
            None,
        )
        native.wasm_functype_delete(function_type)
        return take_error(error) if error else None


# {number in the store's data: (store, host imports)} of the stores whose guests have such imports.
INSTANCES: dict[int, tuple[Store, HostTable]] = {}


def _function_type(signature: FuncType) -> int:
    vectors = []
    for types in (signature.params, signature.results):
        array = (ctypes.c_void_p * len(types))(
            *(native.wasm_valtype_new(native.TYPE_KINDS[name]) for name in types)
        )
        vector = native.PointerVec()
        native.wasm_valtype_vec_new(
            ctypes.byref(vector), len(types), ctypes.cast(array, ctypes.POINTER(ctypes.c_void_p))
        )
        vectors.append(vector)
    return native.wasm_functype_new(ctypes.byref(vectors[0]), ctypes.byref(vectors[1]))


@trio.lowlevel.enable_ki_protection
@tried_from_the_start
def _on_call(
    env: int,
    caller: int,
    args: int,
    nargs: int,
    results: int,
    nresults: int,
    trap: Pointer[c_void_p],
    continuation: Continuations,
) -> None:
    try:
        _note(env, caller, args, results, continuation)
    except BaseException as error:
        # Another signal may be waiting. Nothing is called here, as after calls Python looks for it.
        continuation[0] = _AT_ONCE
        RAISED.error = error


_CALLBACK = native.HOST_CALL(_on_call)
NO_GAP = holds_from_the_start(_on_call)
"""Whether `_on_call` keeps all that signal handlers raise. Where this Python has tables of another
format, it does not keep what comes before its first instruction is over, which ends the process."""


def _note(env: int, caller: int, args: int, results: int, continuation: Continuations) -> None:
    """Note what the guest asks for; it goes on once that is answered."""
    context = native.caller_context(caller)
    number = native.context_get_data(context)
    store, table = INSTANCES[number]
    index = env - 1
    size = table.params[index].size
    raw = ctypes.string_at(args, size) if size else b""
    memory = None
    handle = None if store.stages is None else store.stages.memory_of(index)
    if handle is None and store.memory is not None:
        handle = store.memory.handle
    if handle is not None:
        memory = SuspendedMemory(
            native.memory_data(context, handle), native.memory_data_size(context, handle)
        )
    elif store.plan.memory_name is not None and store.stages is None:
        # Its start function runs: the exports are not known yet, but the caller has them.
        found = ctypes.create_string_buffer(native.EXTERN_SIZE)
        name = store.plan.memory_name.encode()
        if native.caller_export_get(caller, name, len(name), found):
            handle = found.raw[native.EXTERN_OFFSET :]
            memory = SuspendedMemory(
                native.memory_data(context, handle), native.memory_data_size(context, handle)
            )

    def answer(values: Sequence[object]) -> None:
        if store.host_call is not call:
            raise RuntimeError("this host call is over")  # its result cells are gone
        packed: list[object] = []
        for kind, value in zip(table.result_kinds[index], values, strict=True):
            packed += [kind, value]
        data = table.results[index].pack(*packed)
        if data:
            ctypes.memmove(results, data, len(data))
        store.resume()
        if memory is not None:
            memory.end()

    values = table.params[index].unpack(raw)[1::2]
    call = HostCall(index, values, memory, answer, store.take_fuel, store.host_state)
    answered = store.suspend(call)
    continuation[0].callback = ANSWERED
    continuation[0].env = answered
    continuation[0].finalizer = None
