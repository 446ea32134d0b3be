"""An instance in wasmtime: a store, what is instantiated in it, and the one call under way.

The store's context, the argument and result cells and the two error slots must stay where they are
while a call future lives; they are allocated once for each instance and function, so that a call
allocates nothing.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import byref, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, final

from .._core.config import WASM_PAGE
from .._core.errors import GuestError, LoadError
from .._core.wasm import FuncType
from . import native
from .hosts import INSTANCES, cells, kinds
from .memory import InstanceMemory
from .traps import guest_error, trap_error

if TYPE_CHECKING:
    from .engine import WasmtimeModule
    from .seam import HostCall

TABLE_ELEMENT_SIZE = 8


@final
class WasmtimeInstance:
    """See `GuestInstance`; made by `WasmtimeModule.instantiate`."""

    def __init__(self, module: WasmtimeModule, number: int, fuel: int, yield_fuel: int) -> None:
        plan = module.plan
        self.plan = plan
        self.hosts = module.hosts
        self.host_call: HostCall | None = None
        self.memory: InstanceMemory | None = None
        self.number = number
        self._future: int | None = None
        self._fuel = c_uint64()
        self._trap = c_void_p()
        self._error = c_void_p()
        self._errors = byref(self._trap), byref(self._error)
        self._sizes: list[tuple[Any, Any, int]] = []
        self._fixed_size = WASM_PAGE
        self._functions: dict[str, WasmtimeFunction] = {}
        self._handle = ctypes.create_string_buffer(native.INSTANCE_SIZE)
        self._store: int | None = native.store_new(module.engine, number or None, None)
        self.context = c_void_p(native.store_context(self._store))
        native.store_limiter(
            self._store, plan.memory_limit, plan.table_limit, 1, plan.tables, plan.memories
        )
        problem = native.context_set_fuel(self.context, fuel)
        problem = problem or native.context_fuel_async_yield_interval(self.context, yield_fuel)
        if not problem and module.wasi:
            problem = native.context_set_wasi(self.context, native.wasi_config_new())
        if problem:
            self.close()
            raise LoadError(f"wasmtime would not set up a store: {native.take_error(problem)}")
        if self.hosts.imports:
            INSTANCES[number] = self
        self._future = native.instance_pre_instantiate_async(
            module.pre, self.context, self._handle, *self._errors
        )

    def poll(self) -> bool:
        over: bool = native.call_future_poll(self._future)
        return over

    def started(self) -> None:
        self._end()
        for name, growable, size in self.plan.memory_exports:
            handle = self._export(name)
            if growable:
                self._sizes.append((native.memory_data_size, handle, 1))
            else:
                self._fixed_size += size
            if name == self.plan.memory_name:
                self.memory = InstanceMemory(self.context, handle)
        for name, growable, elements in self.plan.table_exports:
            if growable:
                self._sizes.append((native.table_size, self._export(name), TABLE_ELEMENT_SIZE))
            else:
                self._fixed_size += elements * TABLE_ELEMENT_SIZE

    def function(self, name: str) -> WasmtimeFunction:
        try:
            return self._functions[name]
        except KeyError:
            made = WasmtimeFunction(self, self._export(name), self.plan.function_types[name])
            self._functions[name] = made
            return made

    def abandon(self) -> None:
        self.host_call = None
        if self._future is not None:
            future, self._future = self._future, None
            native.call_future_delete(future)
            self._drop_errors()

    def fuel_left(self) -> int:
        native.context_get_fuel(self.context, byref(self._fuel))
        return self._fuel.value

    def measure(self) -> int:
        size = self._fixed_size
        for measure, handle, unit in self._sizes:
            size += measure(self.context, handle) * unit
        return size

    def close(self) -> None:
        self.abandon()
        INSTANCES.pop(self.number, None)
        if self._store is not None:
            store, self._store = self._store, None
            native.store_delete(store)

    def begin(self, function: WasmtimeFunction, fuel: int) -> None:
        """Put a call of `function`, whose cells are filled, under way."""
        native.context_set_fuel(self.context, fuel)
        self._future = native.func_call_async(*function.call, *self._errors)

    def _end(self) -> None:
        """Delete the future of what is over; raise what it ended with."""
        future, self._future = self._future, None
        native.call_future_delete(future)
        if self._trap.value or self._error.value:
            raise self._take_error()

    def _take_error(self) -> GuestError:
        trap, error = self._trap.value, self._error.value
        self._trap.value = self._error.value = None
        if trap:
            return trap_error(trap)
        assert error is not None
        return guest_error(error)

    def _drop_errors(self) -> None:
        if self._trap.value or self._error.value:
            self._take_error()

    def _export(self, name: str) -> Any:
        found = ctypes.create_string_buffer(native.EXTERN_SIZE)
        raw = name.encode()
        if not native.instance_export_get(self.context, self._handle, raw, len(raw), found):
            raise AssertionError(f"wasmtime does not know the export {name!r}")
        # The handle behind the kind, copied out so that it can be passed by itself.
        return ctypes.create_string_buffer(found.raw[native.EXTERN_OFFSET :])


@final
class WasmtimeFunction:
    """See `GuestFunction`; made by `WasmtimeInstance.function`."""

    __slots__ = ("_arguments", "_instance", "_kinds", "_lift", "_lower", "_results", "call", "type")

    def __init__(self, instance: WasmtimeInstance, handle: Any, signature: FuncType) -> None:
        self.type = signature
        self._instance = instance
        self._kinds = kinds(signature.params)
        self._lower = cells(signature.params)
        self._lift = cells(signature.results)
        self._arguments = ctypes.create_string_buffer(max(self._lower.size, 1))
        self._results = ctypes.create_string_buffer(max(self._lift.size, 1))
        self.call = (
            instance.context,
            handle,
            self._arguments,
            len(signature.params),
            self._results,
            len(signature.results),
        )

    def begin(self, values: Sequence[Any], fuel: int) -> None:
        packed: list[Any] = []
        for kind, value in zip(self._kinds, values, strict=True):
            packed += [kind, value]
        try:
            self._lower.pack_into(self._arguments, 0, *packed)
        except struct.error as error:
            raise _misfit(values, self.type, error) from None
        self._instance.begin(self, fuel)

    def finish(self) -> Any:
        self._instance._end()
        results = self._lift.unpack_from(self._results)[1::2]
        if len(results) == 1:
            return results[0]
        return results or None


def _misfit(values: Sequence[Any], signature: FuncType, error: struct.error) -> Exception:
    kind = OverflowError if all(isinstance(value, (int, float)) for value in values) else TypeError
    return kind(f"{tuple(values)!r} does not fit {signature.params}: {error}")
