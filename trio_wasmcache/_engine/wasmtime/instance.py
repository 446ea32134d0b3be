"""An instance in wasmtime: a module instantiated in a store, with its exports."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, final

import trio

from ..._core.config import WASM_PAGE
from ..._core.errors import GuestError, LoadError
from ..._core.wasm.admission import TABLE_ELEMENT_SIZE
from ..._core.wasm.reader import PAGE_LIMIT, FuncType
from ..._core.wasm.types import BOUNDED_FUEL
from ..._threads import importing
from ..base import GuestDriver, Samples
from . import native
from .errors import told_apart
from .function import Callers, WasmtimeFunction
from .hosts import INSTANCES
from .linking import LinkedModule, Start
from .memory import InstanceMemory, MemoryWindow, SuspendedMemory
from .plan import START, Plan
from .reservations import MEMORY_SPACE, SCRATCH_MAPPINGS
from .residency import Range
from .restore import Restoring
from .starting import Lent, Starting
from .store import Pieces, Store

if TYPE_CHECKING:
    from ..._core.wasm.coredump import DumpedInstance
    from ..._core.wasm.preparation import FrozenState

# To initialize memories and tables may burn some, however short a slice is.
ENOUGH_FUEL = 2**62
# A memory is measured in bytes.
MEMORY_UNIT = 1


class WasmtimeInstance(Store):
    """See `GuestInstance`; made by `WasmtimeModule.instantiate`."""

    __slots__ = ("_bases", "_functions", "_restoring", "module")

    def __init__(self, module: LinkedModule, number: int, fuel: int, yield_fuel: int) -> None:
        if not module.pre and not module.parts:
            raise trio.ClosedResourceError("this module is closed: no instance can be made of it")
        self.module = module
        self._functions: tuple[WasmtimeFunction, ...] = ()
        self._restoring: Restoring | None = None
        # Address of each memory, in the order of the plans. It stays where it is, as addresses are
        # reserved for all that it could grow to.
        self._bases: tuple[int, ...] = ()
        super().__init__(module.engine, module.plan, module.tally, number, fuel, yield_fuel)
        if number:
            INSTANCES[number] = self, module.hosts
        self.ending = start = module.starts.pop() if module.starts else Start(module.plan.offsets)
        if module.at_once:
            # Keeps the GIL: there is no code of the guest's to run, and waiting to get it again
            # could take longer than this.
            start.error.value = native.instance_pre_instantiate(
                module.pre, self.context, start.handle, start.trap_ref
            )
            return
        try:
            self.slice_calls()
        except BaseException:
            self.close()
            raise
        if module.pre:
            self.future = native.instance_pre_instantiate_async(
                module.pre, self.context, start.handle, start.trap_ref, start.error_ref
            )
            return
        self.stages = stages = Starting(module, start)
        try:
            stages.begin(self)
        except BaseException:
            self.close()
            raise

    def started(self) -> None:
        start = self.end()
        assert isinstance(start, Start)
        if start.trap or start.error:
            raise told_apart(start)
        pieces: Pieces = ((start.handle.raw, self.plan),)
        if self.stages is not None:
            pieces = self.stages.pieces
        self._handle = pieces[self.plan.user][0]
        if not self.module.starts:
            self.module.starts.append(start)
        for instance, plan in pieces:
            for name, growable, size in plan.memory_exports:
                handle = self.export(name, instance)
                self._bases += (native.memory_data(self.context, handle) or 0,)
                if growable:
                    self._sizes += ((native.memory_data_size, handle, MEMORY_UNIT),)
                else:
                    self._fixed_size += size
                if name == plan.memory_name and instance is self._handle:
                    self.own_memory = InstanceMemory(self.context, handle, self.plan.remedy)
            for name, growable, elements in plan.table_exports:
                if growable:
                    table = self.export(name, instance)
                    self._sizes += ((native.table_size, table, TABLE_ELEMENT_SIZE),)
                else:
                    self._fixed_size += elements * TABLE_ELEMENT_SIZE

        self.untouched = self.module.at_once and not self.sampled
        self.at_once = self.untouched and self.yield_fuel >= BOUNDED_FUEL

    def renew(self) -> None:
        self.spent = True
        other = WasmtimeInstance(self.module, 0, ENOUGH_FUEL, self.yield_fuel)
        try:
            try:
                other.started()
            except GuestError as error:
                raise LoadError(f"a call can't be made in slices: {error}") from None
            # No calls: a signal handler may raise in one, and leave half of it done.
            mine = self._store, self.context, self._handle, self.own_memory
            sizes = self._bases, self._sizes, self._fixed_size
            self._store, self.context = other._store, other.context
            self._handle, self.own_memory = other._handle, other.own_memory
            self._bases, self._sizes = other._bases, other._sizes
            self._fixed_size = other._fixed_size
            other._store, other.context, other._handle, other.own_memory = mine
            other._bases, other._sizes, other._fixed_size = sizes
        finally:
            other.close()
        for function in self._functions:
            function.bind(self.export(function.name))
        self.spent = False

    def start_function(self) -> WasmtimeFunction | None:
        if not self.plan.starts_later:
            return None
        self.untouched = False  # it is no export by its name
        frame = self.module.callers.frame(FuncType())
        return WasmtimeFunction(self, "start", self.export(START), frame)

    def mark(self) -> None:
        if self.module.restore is None:
            raise AssertionError("it was not proved that this can be put back")
        self.untouched = False
        self._restoring = Restoring(self, self.module, self.module.restore)
        self._fixed_size += self._restoring.size

    def reset(self, keep: GuestDriver | None = None) -> bool:
        return self._restoring is not None and self._restoring.reset(keep)

    def freeze(self) -> dict[str, FrozenState]:
        with importing:
            from .freezing import freeze

        self.untouched = False
        return freeze(self, self.module.callers)

    def pass_samples(self, sink: Samples | None) -> None:
        """Do nothing: its code takes no samples. See `sampling`."""

    def dump(self, most: int) -> tuple[DumpedInstance, ...]:
        from .dumping import dump

        return dump(self, most)

    def function(self, name: str) -> WasmtimeFunction:
        for made in self._functions:  # one, or the few that an ABI calls
            if made.name == name:
                return made
        # First, as it knows whether there is such an export.
        frame = self.module.callers.frame_of(name)
        bounded = name in self.plan.bounded
        made = WasmtimeFunction(self, name, self.export(name), frame, bounded)
        self._functions += (made,)
        return made

    def refused_memory(self) -> int | None:
        if self.future or not self._store or not (self._handle or self.stages):
            return None
        for instance, plan in self.pieces:
            for name, memory, note in plan.notes:
                cell = ctypes.create_string_buffer(native.VALUE_SIZE)
                native.global_get(self.context, self.export(name, instance), cell)
                (asked,) = _VALUES["i64"].unpack_from(cell, native.VALUE_OFFSET)
                size = native.memory_data_size(self.context, self.export(memory, instance))
                if (refused := note.refused(asked, size)) is not None:
                    return refused
        return None

    def global_value(self, name: str) -> int | float:
        return self.global_of(self._handle, self.plan, name)

    def global_of(self, instance: bytes, plan: Plan, name: str) -> int | float:
        """Return the value of an exported global of a part; see `global_value`."""
        if name not in plan.global_types:
            raise LookupError(f"the module exports no global {name!r} that is a number")
        if not self._store:
            raise LookupError(f"the instance with the global {name!r} is closed")
        cell = ctypes.create_string_buffer(native.VALUE_SIZE)
        native.global_get(self.context, self.export(name, instance), cell)
        value: int | float
        (value,) = _VALUES[plan.global_types[name]].unpack_from(cell, native.VALUE_OFFSET)
        return value

    def part(self, name: str) -> WasmtimePart:
        for number, part in enumerate(self.plan.parts):
            if part.name == name:
                handle, plan = self.pieces[number]
                assert isinstance(self.stages, Starting)
                callers = self.module.part_callers[number]
                return WasmtimePart(self, name, handle, plan, callers, self.stages.lend)
        raise LookupError(f"the instance has no part {name!r:.100}")

    @property
    def reserved(self) -> tuple[int, int]:
        space, mappings = self.module.reserved
        drivers = len(self.drivers)
        return space + drivers * MEMORY_SPACE, mappings + drivers * SCRATCH_MAPPINGS

    def ranges(self) -> list[Range]:
        """Return where all memory is that it may touch, scratches included."""
        ranges = [driver.range for driver in self.drivers.values()]
        most = min(self.plan.memory_limit, PAGE_LIMIT * WASM_PAGE)
        # While something is under way, it must not be asked.
        quiet = not self.future and self._store
        growable = iter([handle for _, handle, unit in self._sizes if unit == MEMORY_UNIT])
        memories = (memory for _, plan in self.pieces for memory in plan.memory_exports)
        for base, (_, can_grow, size) in zip(self._bases, memories, strict=False):
            if can_grow:
                handle = next(growable)
                size = native.memory_data_size(self.context, handle) if quiet else most
            ranges.append((base, size))
        return ranges

    def close(self) -> None:
        self._functions = ()
        INSTANCES.pop(self.number, None)
        super().close()


@final
class WasmtimePart:
    """See `GuestPart`; made by `WasmtimeInstance.part`."""

    __slots__ = ("_callers", "_handle", "_instance", "_lend", "_name", "_plan")

    def __init__(
        self,
        instance: WasmtimeInstance,
        name: str,
        handle: bytes,
        plan: Plan,
        callers: Callers,
        lend: Callable[[Hashable, Callable[[], Lent]], Lent],
    ) -> None:
        self._lend = lend
        self._name = name
        self._instance = instance
        self._handle = handle
        self._plan = plan
        self._callers = callers

    def function(self, name: str) -> WasmtimeFunction:
        frame = self._callers.frame_of(name)  # it knows whether there is such an export
        return WasmtimeFunction(
            self._instance, name, self._instance.export(name, self._handle), frame
        )

    def memory(self, name: str) -> InstanceMemory:
        def make() -> InstanceMemory:
            instance = self._instance
            return InstanceMemory(instance.context, self._memory(name), instance.plan.remedy)

        memory = self._lend((self._name, name), make)
        assert isinstance(memory, InstanceMemory)
        return memory

    def window(self, name: str) -> MemoryWindow:
        def make() -> MemoryWindow:
            # It stays where it is: see `WasmtimeInstance._bases`.
            handle, context = self._memory(name), self._instance.context
            size = native.memory_data_size(context, handle)
            return MemoryWindow(native.memory_data(context, handle) or 0, size)

        window = self._lend((self._name, name, "window"), make)
        assert isinstance(window, MemoryWindow)
        return window

    def fixed_memory(self, name: str) -> SuspendedMemory:
        size = self._plan.memory_sizes.get(name, 0)
        if size is None:
            raise LookupError(f"the memory {name!r:.100} of that part can grow")

        def make() -> SuspendedMemory:
            handle = self._memory(name)
            return SuspendedMemory(native.memory_data(self._instance.context, handle), size)

        memory = self._lend((self._name, name, "fixed"), make)
        assert isinstance(memory, SuspendedMemory)
        return memory

    def global_value(self, name: str) -> int | float:
        return self._instance.global_of(self._handle, self._plan, name)

    def _memory(self, name: str) -> bytes:
        if name not in self._plan.memory_sizes:
            raise LookupError(f"that part has no memory {name!r:.100}")
        return self._instance.export(name, self._handle)


# {value type: how its value looks in a cell}
_VALUES = {name: struct.Struct("<" + code) for name, (_, code) in native.VALUE_KINDS.items()}
