"""An instance in wasmtime: a store, what is instantiated in it, and the one call under way.

What C writes to must stay where it is while a call future lives: the instance keeps it (`ending`)
for as long. Nothing of it is needed while nothing is under way.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator
from ctypes import byref, c_char, c_uint8, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, final

import trio
from attrs import define

from ..._core.config import WASM_PAGE
from ..._core.errors import LoadError
from ..._core.wasm.admission import TABLE_ELEMENT_SIZE
from ..._core.wasm.driver import Shape
from ..._core.wasm.memory_layout import MemoryShape
from ..._core.wasm.reader import PAGE_LIMIT
from . import native
from .errors import Ending, take_error, told_apart
from .function import WasmtimeFunction
from .hosts import INSTANCES, RAISED, check_headroom, take_raised
from .memory import InstanceMemory, SuspendedMemory
from .reservations import MEMORY_SPACE, SCRATCH_MAPPINGS
from .restore import Measure, Restoring

if TYPE_CHECKING:
    from ..base import HostCall
    from .drivers import WasmtimeDriver
    from .engine import WasmtimeModule

DriverKey = tuple[Shape | MemoryShape, tuple[tuple[str, str], ...]]
"""The shape of a driver, and (import, export) of all that it gets of its instance."""


@define
class Tally:
    """What all instances of one engine have together."""

    instances: int = 0
    """Those that are not closed."""
    scratch: int = 0
    """Bytes of the drivers' scratches."""


@final
class Start(Ending):
    """What C writes to while an instance starts; afterwards the next one may use it."""

    __slots__ = ("handle",)

    def __init__(self) -> None:
        super().__init__()
        self.handle = _INSTANCE()


@final
class WasmtimeInstance:
    """See `GuestInstance`; made by `WasmtimeModule.instantiate`."""

    __slots__ = (
        "_fixed_size",
        "_functions",
        "_handle",
        "_memories",
        "_restoring",
        "_room",
        "_sizes",
        "_state",
        "_store",
        "answered",
        "context",
        "drivers",
        "ending",
        "future",
        "host_call",
        "host_state",
        "hosts",
        "memory",
        "module",
        "number",
        "plan",
        "yield_fuel",
    )

    def __init__(self, module: WasmtimeModule, number: int, fuel: int, yield_fuel: int) -> None:
        plan = module.plan
        self.module = module
        self.plan = plan
        self.hosts = module.hosts
        self.host_call: HostCall | None = None
        self.answered: Any = _ANSWERED() if self.hosts.imports else None
        """A C string, where there is anything to answer: not empty once `host_call` is."""
        self.host_state: dict[str, Any] = {} if self.hosts.imports else NO_STATE
        """See `HostCall.state`."""
        self._state: dict[str, Any] | None = None
        self.memory: InstanceMemory | None = None
        self.number = number
        self.yield_fuel = yield_fuel
        self.future: int = 0
        """0 while nothing is under way."""
        self.ending: Ending | None = None
        """Of what is under way, or was."""
        self._sizes: tuple[tuple[Measure, bytes, int], ...] = ()
        self._fixed_size = plan.rest_size
        self._functions: tuple[WasmtimeFunction, ...] = ()
        self._room = plan.room
        self._restoring: Restoring | None = None
        self.drivers: dict[DriverKey, WasmtimeDriver] = NO_DRIVERS
        """{(shape, export): driver}; kept for as long as the store."""
        self._handle = b""
        # (handle, address, bytes if it can't grow) of each memory. It stays where it is, as
        # addresses are reserved for all that it could grow to.
        self._memories: tuple[tuple[bytes, int, int | None], ...] = ()
        if not module.pre:
            raise trio.ClosedResourceError("this module is closed: no instance can be made of it")
        module.tally.instances += 1
        self._store: int = native.store_new(module.engine, number or None, None)
        self.context: native.Context = c_void_p.from_param(native.store_context(self._store))
        native.store_limiter(self._store, plan.memory_limit, plan.table_limit, *self._room)
        problem = native.context_set_fuel(self.context, fuel)
        problem = problem or native.context_fuel_async_yield_interval(self.context, yield_fuel)
        if problem:
            self.close()
            raise LoadError(f"wasmtime would not set up a store: {take_error(problem)}")
        if self.hosts.imports:
            INSTANCES[number] = self
        self.ending = start = module.spare or Start()
        module.spare = None
        self.future = native.instance_pre_instantiate_async(
            module.pre, self.context, start.handle, start.trap_ref, start.error_ref
        )

    def poll(self) -> bool:
        if not self.hosts.imports:
            return native.call_future_poll(self.future)
        check_headroom()
        over = native.call_future_poll(self.future)
        if RAISED.error is not None:
            raise take_raised()
        return over

    def set_yield_fuel(self, fuel: int) -> None:
        self.yield_fuel = fuel
        native.context_fuel_async_yield_interval(self.context, fuel)

    def started(self) -> None:
        start = self.end()
        assert isinstance(start, Start)
        if start.trap or start.error:
            raise told_apart(start.take_error())
        self._handle = start.handle.raw
        self.module.spare = start
        for name, growable, size in self.plan.memory_exports:
            handle = self.export(name)
            base = native.memory_data(self.context, handle) or 0
            self._memories += ((handle, base, size if not growable else None),)
            if growable:
                self._sizes += ((native.memory_data_size, handle, 1),)
            else:
                self._fixed_size += size
            if name == self.plan.memory_name:
                self.memory = InstanceMemory(self.context, handle)
        for name, growable, elements in self.plan.table_exports:
            if growable:
                self._sizes += ((native.table_size, self.export(name), TABLE_ELEMENT_SIZE),)
            else:
                self._fixed_size += elements * TABLE_ELEMENT_SIZE

    def mark(self) -> None:
        assert self.module.restore is not None
        self._restoring = Restoring(self, self.module, self.module.restore)
        self._fixed_size += self._restoring.size

    def reset(self) -> bool:
        return self._restoring is not None and self._restoring.reset()

    def function(self, name: str) -> WasmtimeFunction:
        for made in self._functions:  # one, or the few that an ABI calls
            if made.name == name:
                return made
        frame = self.module.frame_of(name)  # first, as it knows whether there is such an export
        made = WasmtimeFunction(self, name, self.export(name), frame)
        self._functions += (made,)
        return made

    def global_value(self, name: str) -> int | float:
        if name not in self.plan.global_types:
            raise LookupError(f"the module exports no global {name!r} that is a number")
        if not self._store:
            raise LookupError(f"the instance with the global {name!r} is closed")
        cell = ctypes.create_string_buffer(native.VALUE_SIZE)
        native.global_get(self.context, self.export(name), cell)
        value: int | float
        (value,) = _VALUES[self.plan.global_types[name]].unpack_from(cell, native.VALUE_OFFSET)
        return value

    @property
    def state(self) -> dict[str, Any]:
        if self._state is None:
            self._state = {}
        return self._state

    def end(self) -> Ending:
        """What was under way is over; how it ended."""
        future, self.future = self.future, 0
        native.hot_delete(future)
        ending, self.ending = self.ending, None
        assert ending is not None
        return ending

    def abandon(self) -> None:
        call, self.host_call = self.host_call, None
        if call is not None and isinstance(call.memory, SuspendedMemory):
            call.memory.end()  # a host function may still be running
        if self.future:
            future, self.future = self.future, 0
            native.call_future_delete(future)
        # The future may be gone, and how it ended be there still.
        ending, self.ending = self.ending, None
        if ending is not None:
            if ending.trap or ending.error:
                ending.take_error()
            ending.leave()

    def take_fuel(self, fuel: int) -> int:
        """See `HostCall.take_fuel`; the guest waits for the host, so its counter is at rest."""
        if self.host_call is None:
            return fuel  # it was abandoned meanwhile, and nothing of it is counted any more
        left = self.fuel_left()
        taken = min(fuel, left)
        native.context_set_fuel(self.context, left - taken)
        return taken

    def fuel_left(self) -> int:
        left = c_uint64()  # of this call, for it may be any thread's
        native.hot_get_fuel(self.context, byref(left))
        return left.value

    def measure(self) -> int:
        size = self._fixed_size
        for measure, handle, unit in self._sizes:
            size += measure(self.context, handle) * unit
        return size

    @property
    def reserved(self) -> tuple[int, int]:
        space, mappings = self.module.reserved
        drivers = len(self.drivers)
        return space + drivers * MEMORY_SPACE, mappings + drivers * SCRATCH_MAPPINGS

    def ranges(self) -> list[tuple[int, int]]:
        """(address, bytes) of all memory that it may touch, scratches included."""
        ranges = [driver.range for driver in self.drivers.values()]
        most = min(self.plan.memory_limit, PAGE_LIMIT * WASM_PAGE)
        for handle, base, size in self._memories:
            if size is None:
                # While something is under way, it must not be asked.
                quiet = not self.future and self._store
                size = native.memory_data_size(self.context, handle) if quiet else most
            ranges.append((base, size))
        return ranges

    def close(self) -> None:
        self.abandon()
        for driver in self.drivers.values():
            driver.close()
            self.module.tally.scratch -= driver.size
        self.drivers = NO_DRIVERS
        self._functions = ()
        INSTANCES.pop(self.number, None)
        if self._store:
            store, self._store = self._store, 0
            self.module.tally.instances -= 1
            if self.memory is not None:
                self.memory.end()
            native.store_delete(store)

    @contextlib.contextmanager
    def room_for(self, *, memory: int = 0, tables: int = 0) -> Iterator[None]:
        """From now on one more instance fits into the store, and meanwhile its memory and tables.

        Args:
            memory: bytes of its one memory; 0: it has none.
            tables: how many it has.
        """
        # One that found no memory counts, too: the store never forgets an instance.
        plan, (instances, all_tables, memories) = self.plan, self._room
        self._room = counts = instances + 1, all_tables + tables, memories + (memory > 0)
        memory_limit = max(plan.memory_limit, memory)
        native.store_limiter(self._store, memory_limit, plan.table_limit, *counts)
        try:
            yield
        finally:
            native.store_limiter(self._store, plan.memory_limit, plan.table_limit, *counts)

    def add_driver(self, key: DriverKey, driver: WasmtimeDriver) -> None:
        """From now on it is part of the instance, and of its size."""
        self.drivers = {**self.drivers, key: driver}
        self._fixed_size += driver.size
        self.module.tally.scratch += driver.size

    def extern(self, name: str) -> native.Buffer:
        """An export, as it is given to a linker."""
        found = _EXTERN()
        raw = name.encode()
        if not native.instance_export_get(self.context, self._handle, raw, len(raw), found):
            raise AssertionError(f"wasmtime does not know the export {name!r}")
        return found

    def export(self, name: str) -> bytes:
        """The handle of an export, copied out so that it can be passed by itself."""
        return self.extern(name).raw[native.EXTERN_OFFSET :]


NO_DRIVERS: dict[DriverKey, WasmtimeDriver] = {}
NO_STATE: dict[str, Any] = {}
# What C writes to. The types are made once: `create_string_buffer` looks for them every time.
_ANSWERED = c_uint8 * 2
_INSTANCE = c_char * native.INSTANCE_SIZE
_EXTERN = c_char * native.EXTERN_SIZE
# {value type: how its value looks in a cell}
_VALUES = {name: struct.Struct("<" + code) for name, (_, code) in native.VALUE_KINDS.items()}
