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
from collections.abc import Iterable, Sequence
from ctypes import c_void_p
from typing import TYPE_CHECKING, Any, TypeAlias, final

import trio

from ..._core.errors import LoadError
from ..._core.wasm.admission import no_crossing, signature
from ..._core.wasm.arms import DONE, TABLE, TRAMPOLINE, Arm, Returned, widened
from ..._core.wasm.reader import FuncType
from ..._core.wasm.values import wasm_values
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
        self.types: list[FuncType] = [
            widened(host.type) if host.reentrant else host.type for host in imports
        ]
        """Type of each, as it is linked."""
        types = [FuncType() if type.uncrossable() is not None else type for type in self.types]
        self.params = [cells(type.params) for type in types]
        self.results = [cells(type.results) for type in types]
        self.result_kinds = [kinds(type.results) for type in types]
        self.helpers: dict[int, Arm | Returned] = {
            index: host.helper for index, host in enumerate(imports) if host.helper is not None
        }
        """{index: what it is for} of the imports of a trampoline that need no host function."""
        self.reentrant: bool = any(host.reentrant for host in imports)
        """Whether some of them may call exports of the guest."""
        self.arms: dict[FuncType, int] = {
            helper.export: helper.number
            for helper in self.helpers.values()
            if isinstance(helper, Arm)
        }
        """{type of an export: number of the arm that calls it}"""

    def define(self, linker: int, names: Iterable[tuple[str, str, int]] | None = None) -> list[str]:
        """Define host functions in a linker; return the messages of what could not be.

        Args:
            linker: where they are defined.
            names: module, name and index of each; None: all of them, by their own names.
        """
        if names is None:
            names = [(host.module, host.name, index) for index, host in enumerate(self.imports)]
        # Making one takes longer than all the rest, and many functions have the same.
        made: dict[FuncType, int] = {}
        problems = []
        try:
            for module, name, index in names:
                type = self.types[index]
                if type not in made:
                    made[type] = _function_type(type)
                raw_module, raw_name = module.encode(), name.encode()
                error = native.linker_define_async_func(
                    linker,
                    raw_module,
                    len(raw_module),
                    raw_name,
                    len(raw_name),
                    made[type],
                    _CALLBACK,
                    index + 1,  # a null pointer would arrive as None
                    None,
                )
                if error:
                    problems.append(take_error(error))
        finally:
            for function_type in made.values():
                native.wasm_functype_delete(function_type)
        return problems

    def put(self, index: int, values: Sequence[object], results: int) -> None:
        """Write results of one of them to their cells, which begin at an address."""
        packed: list[object] = []
        for kind, value in zip(self.result_kinds[index], values, strict=True):
            packed += [kind, value]
        data = self.results[index].pack(*packed)
        if data:
            ctypes.memmove(results, data, len(data))


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
    values = table.params[index].unpack(raw)[1::2]
    if index in table.helpers:
        call = Invokes.of(store).help(store, context, index, values, results)
        if call is None:
            continuation[0] = _AT_ONCE
        else:
            _wait(store, call, continuation)
        return
    memory = None
    handle = None if store.stages is None else store.stages.memory_of(index)
    if handle is None and store.memory is not None:
        handle = store.memory.handle
    if handle is not None:
        memory = SuspendedMemory(
            native.memory_data(context, handle),
            native.memory_data_size(context, handle),
            store.context,
            handle,
            store.plan.remedy,
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
        table.put(index, values, results)
        store.resume()
        if memory is not None:
            memory.end()

    call = HostCall(index, values, memory, answer, store.take_fuel, store.host_state)
    if table.imports[index].reentrant:
        ReentrantCall(store, call, memory, results)
    _wait(store, call, continuation)


def _wait(store: Store, call: HostCall, continuation: Continuations) -> None:
    """Suspend the guest until a host call is answered."""
    answered = store.suspend(call)
    continuation[0].callback = ANSWERED
    continuation[0].env = answered
    continuation[0].finalizer = None


@final
class Invokes:
    """The exports that one guest calls for its reentrant host functions: see `trampoline`."""

    __slots__ = ("_functions", "_given", "_table", "hosts", "under_way")

    def __init__(self, hosts: HostTable) -> None:
        self.hosts = hosts
        self.under_way: list[ReentrantCall] = []
        """Host calls that wait for an export, the innermost last."""
        self._given: tuple[str, tuple[int | float, ...]] | None = None
        """Name and arguments of the export that is to be called next."""
        self._functions: dict[str, bytes] = {}
        """{name of an export: it, as a wasmtime_val_t}"""
        self._table = b""
        """Handle of the trampoline's table; empty before the first use."""

    @staticmethod
    def of(store: Store) -> Invokes:
        """Return those of the guest in a store that has a trampoline."""
        invokes = None if store.stages is None else store.stages.invokes
        assert isinstance(invokes, Invokes)
        return invokes

    def begin(self, call: ReentrantCall, export: str, values: tuple[int | float, ...]) -> None:
        """Note what is to be called for a host call."""
        self.under_way.append(call)
        self._given = export, values

    def help(
        self, store: Store, context: int, index: int, values: tuple[Any, ...], results: int
    ) -> HostCall | None:
        """Answer a call of the trampoline, or return the host call that goes on.

        Args:
            store: the guest's.
            context: context of the caller.
            index: which import it is.
            values: arguments.
            results: address of the cells of the results.
        """
        helper = self.hosts.helpers[index]
        if not isinstance(helper, Arm):
            return self.under_way.pop().returned(context, index, values, results)
        given, self._given = self._given, None
        assert given is not None
        export, arguments = given
        function = self._functions.get(export)
        if function is None:
            kind = native.FUNCTION_KIND.to_bytes(native.VALUE_OFFSET, "little")
            function = self._functions[export] = kind + store.export(export)
        if not self._table:
            self._table = store.export(TABLE, store.piece(TRAMPOLINE))
        # Each time, as a reset has emptied the table.
        problem = native.table_set(context, self._table, helper.number, function)
        if problem:
            raise LoadError(f"wasmtime would not fill a table: {take_error(problem)}")
        self.hosts.put(index, arguments, results)
        return None


@final
class ReentrantCall:
    """A host call that may have the guest call exports before it is answered.

    Args:
        store: the guest's.
        call: the host call; its `answer` and `invoke` are set.
        memory: its memory.
        results: address of the cells of its results.
    """

    __slots__ = ("_call", "_index", "_invokes", "_memory", "_results", "_store")

    def __init__(
        self, store: Store, call: HostCall, memory: SuspendedMemory | None, results: int
    ) -> None:
        self._store = store
        self._invokes = Invokes.of(store)
        self._call = call
        self._memory = memory
        self._index = call.index
        self._results = results
        call.answer, call.invoke = self._answer, self._invoke

    def returned(self, context: int, index: int, values: tuple[Any, ...], results: int) -> HostCall:
        """Take the results of an export, and return the host call, which goes on.

        Its answer goes where the trampoline waits now.
        """
        call = self._call
        call.result = values[0] if len(values) == 1 else values or None
        if self._memory is not None:
            # The export may have grown it.
            call.memory = self._memory = self._memory.now(context, self._store.context)
            if call.lend is not None:
                call.memory = call.lend(self._memory)
        self._index, self._results = index, results
        return call

    def _answer(self, values: Sequence[object]) -> None:
        self._go_on((*values, DONE))

    def _invoke(self, export: str, values: Sequence[object]) -> None:
        hosts = self._invokes.hosts
        function = self._store.plan.function_types.get(export)
        what = f"invoke({export!r:.100})"
        if function is None:
            raise LookupError(f"{what}: the module exports no function {export!r:.100}")
        arm = hosts.arms.get(function)
        if arm is None:
            name = function.uncrossable()
            raise LookupError(
                f"{what}: that export is {signature(function)}, and "
                + (no_crossing(name) if name else "the module has too many types of exports")
            )
        exact = wasm_values(what, function, values)
        zeros = [0] * (len(hosts.result_kinds[self._index]) - 1)
        self._go_on((*zeros, arm))
        self._invokes.begin(self, export, exact)

    def _go_on(self, values: Sequence[object]) -> None:
        store = self._store
        if store.host_call is not self._call:
            raise RuntimeError("this host call is over")  # its result cells are gone
        self._invokes.hosts.put(self._index, values, self._results)
        store.resume()
        if self._memory is not None:
            self._memory.end()
