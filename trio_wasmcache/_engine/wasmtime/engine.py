"""wasmtime as an `Engine`: how modules are compiled, kept, loaded and linked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from ctypes import byref, c_void_p
from typing import cast, final

import trio
from attrs import evolve, frozen

from ..._core.config import WASM_PAGE, SystemLimits
from ..._core.errors import InvalidModuleError, LinkError
from ..._core.metrics.stats import ResidentBytes
from ..._core.wasm.admission import Edits, check_call, rest_size, table_elements
from ..._core.wasm.driver import Shape
from ..._core.wasm.editor import add_exports, clamp_maxima
from ..._core.wasm.memory_layout import MemoryShape
from ..._core.wasm.reader import Export, FuncType, MalformedModuleError, ModuleInfo, read_module
from ..._core.wasm.restorer import restorer
from ..._gil import Breath
from ..base import Artifact, HostImport
from ..compile_slots import CompileSlots, Turn
from . import native
from .code_cache import CodeCache, new_module
from .config import new_config
from .drivers import DriverCode, Drivers
from .errors import load_error, take_error
from .function import Caller, Frame
from .hosts import HostTable
from .instance import Start, Tally, WasmtimeInstance
from .reservations import IMAGE_MAPPINGS, instance_reservation, read_system_limits
from .residency import Range, count_resident, find_stacks
from .restore import RestorePlan, UnrestorableError, find_patches
from .subprocess import Apart
from .text import to_wasm

# Compiling is one thread's work (on all cores, it would starve a small machine's event loop, and
# never end in a forked process; `tests/bench/PROFILE.md` has more), and two at once, of which no
# group gets both, keep one group's modules from holding up another's.
MAX_COMPILES = 2
# Making code executable takes about 3 ms a MB: worth a thread hop (0.2 ms) from here on.
LOAD_IN_THREAD = 256 * 1024
# Of each kind of work, how much is done in threads at the same time. Each kind has a limiter of its
# own, so none waits for another, nor for Trio's default threads, which may all be taken by blocking
# work of the application: which may itself wait for this cache. None of this work waits for
# anything, so each limiter's turn always comes.
MAX_LOADS, MAX_TEXTS, MAX_DRIVER_COMPILES, MAX_COUNTS = 4, 2, 1, 1
# Seconds between two breaths of a thread that reads a module.
BREATH_EVERY = 0.0005
# No name that a toolchain emits, so it won't collide with the module's own exports.
HIDDEN = "\x00trio_wasmcache:"

NUMBERS = frozenset(native.VALUE_KINDS)

_numbers = itertools.count(1)


@frozen
class Plan:
    """What every instance of a module needs to know, worked out once."""

    room: tuple[int, int, int]
    """How many instances, tables and memories a store of one instance has."""
    memory_limit: int
    table_limit: int
    rest_size: int
    """Bytes that an instance takes beside what is measured."""
    memory_exports: tuple[tuple[str, bool, int], ...]
    """(export name, can it grow, bytes at the start) of each memory."""
    table_exports: tuple[tuple[str, bool, int], ...]
    """(export name, can it grow, elements at the start) of each table."""
    memory_name: str | None
    function_types: dict[str, FuncType]
    global_types: dict[str, str]
    """Of the exported globals that are numbers."""
    names: dict[tuple[str, int], str]
    """{(kind, index): the name it is exported by}"""


@final
class WasmtimeEngine:
    """See `Engine`. With `apart`, modules are compiled in processes of their own.

    With a `code_cache`, what is compiled is kept on disk.
    """

    def __init__(
        self, stack_size: int, apart: Apart | None = None, code_cache: CodeCache | None = None
    ) -> None:
        self._engine: int | None = native.wasm_engine_new_with_config(new_config(stack_size))
        self._apart = apart
        self._code_cache = code_cache
        self._stack_size = stack_size
        self._tally = Tally()
        self.system: SystemLimits = read_system_limits()
        self.compile_slots: CompileSlots = CompileSlots(MAX_COMPILES)
        self._loaders = trio.CapacityLimiter(MAX_LOADS)
        self._texts = trio.CapacityLimiter(MAX_TEXTS)
        self._driver_compilers = trio.CapacityLimiter(MAX_DRIVER_COMPILES)
        self._counters = trio.CapacityLimiter(MAX_COUNTS)
        self._drivers = Drivers()

    @property
    def open_instances(self) -> int:
        return self._tally.instances

    @property
    def scratch_size(self) -> int:
        return self._tally.scratch

    async def to_wasm(self, text: str) -> bytes:
        return await trio.to_thread.run_sync(
            to_wasm, text, abandon_on_cancel=True, limiter=self._texts
        )

    def turn(self, group: Hashable) -> Turn:
        return self.compile_slots.turn(group)

    async def compile(
        self, wasm: bytes, admit: Callable[[ModuleInfo], Edits], turn: Turn | None = None
    ) -> Artifact:
        apart, code_cache = self._apart, self._code_cache

        def work(engine: int) -> Artifact:
            make = functools.partial(build, engine, code_cache=code_cache)
            build_it = make if apart is None else apart.build
            return _compile(build_it, wasm, admit, self._stack_size)

        return await self._in_compiler(work, turn)

    async def _in_compiler(self, work: Callable[[int], Artifact], turn: Turn | None) -> Artifact:
        # The thread may be abandoned, and the engine closed, while it compiles: it works on a
        # reference of its own and leaves nothing native behind.
        # Whoever takes the reference out of `owned` frees it: the thread once it runs, or we if it
        # was never started.
        owned = [native.engine_clone(self.open())]

        def run() -> Artifact:
            engine = owned.pop()
            try:
                return work(engine)
            finally:
                native.wasm_engine_delete(engine)

        try:
            return await trio.to_thread.run_sync(
                run,
                abandon_on_cancel=True,
                # It has the two methods that are documented to be enough.
                limiter=cast("trio.CapacityLimiter", turn or self.turn(object())),
            )
        finally:
            with contextlib.suppress(IndexError):
                native.wasm_engine_delete(owned.pop())

    async def load(self, artifact: Artifact, hosts: Sequence[HostImport]) -> WasmtimeModule:
        # The engine may be closed while a thread loads: it works on a reference of its own, too,
        # and what it made by then goes.
        engine = native.engine_clone(self.open())
        try:
            make = functools.partial(WasmtimeModule, engine, artifact, tuple(hosts), self._tally)
            if len(artifact.data) < LOAD_IN_THREAD:
                return make()
            module = await trio.to_thread.run_sync(make, limiter=self._loaders)
        finally:
            native.wasm_engine_delete(engine)
        if self._engine is None:
            module.close()
        self.open()
        return module

    async def prove(
        self,
        artifact: Artifact,
        hosts: Sequence[HostImport],
        initialize: str | None,
        turn: Turn | None = None,
    ) -> Artifact:
        return await self._in_compiler(
            lambda engine: _prove(engine, artifact, tuple(hosts), initialize), turn
        )

    async def count_resident(
        self,
        *,
        idle: Sequence[WasmtimeInstance],
        running: Sequence[WasmtimeInstance],
        modules: Sequence[WasmtimeModule],
    ) -> ResidentBytes:
        # Where they are is asked here, as a store is one thread's at a time; what is there then
        # stays readable for the kernel, whatever becomes of it.
        groups: list[Iterable[Range]] = [
            [one for instance in instances for one in instance.ranges()]
            for instances in (idle, running)
        ]
        groups.append([image for module in modules for image in module.images])
        groups.append(find_stacks(self._stack_size))
        found = await trio.to_thread.run_sync(
            count_resident, groups, abandon_on_cancel=True, limiter=self._counters
        )
        return ResidentBytes(**dict(zip(("idle", "running", "code", "stacks"), found, strict=True)))

    async def driver(self, shape: Shape | MemoryShape) -> DriverCode:
        return await self._drivers.get(self.open, shape, self._driver_compilers)

    def close(self) -> None:
        self.compile_slots.close()
        self._drivers.close()
        self._code_cache = None
        if self._engine is not None:
            engine, self._engine = self._engine, None
            native.wasm_engine_delete(engine)

    def open(self) -> int:
        if self._engine is None:
            raise trio.ClosedResourceError("this engine is closed")
        return self._engine


@final
class WasmtimeModule:
    """See `LoadedModule`; made by `WasmtimeEngine.load`."""

    def __init__(
        self, engine: int, artifact: Artifact, hosts: tuple[HostImport, ...], tally: Tally
    ) -> None:
        self.tally = tally
        self.plan = _plan(artifact)
        self.reserved: tuple[int, int] = (artifact.address_space, artifact.mappings)
        self.hosts = HostTable(hosts)
        self.restore: RestorePlan | None = artifact.restore
        self.restorer: int = 0
        self.engine: int = native.engine_clone(engine)
        self.spare: Start | None = None
        self._callers: dict[FuncType, Caller] = {}
        self._exports: dict[str, Caller] = {}  # {name of a function: how it is called}
        self.pre: int = 0
        self._linker: int = native.linker_new(engine)
        self._module: int = 0
        try:
            self._module = _deserialize(engine, artifact.data)
            self.images: list[Range] = [image_of(self._module)]
            if self.restore is not None and self.restore.code:
                self.restorer = _deserialize(engine, self.restore.code)
                self.images.append(image_of(self.restorer))
            self._link()
        except BaseException:
            self.close()
            raise

    def instantiate(self, fuel: int, yield_fuel: int) -> WasmtimeInstance:
        return WasmtimeInstance(self, next(_numbers), fuel, yield_fuel)

    def frame(self, signature: FuncType) -> Frame:
        """Return where all functions of that signature are called, one after the other."""
        return self._caller(signature).frame

    def frame_of(self, export: str) -> Frame:
        """Return where the exported function of that name is called.

        Raises:
            AbiError: there is none of that name, or values of one of its types can't cross.
        """
        caller = self._exports.get(export)
        if caller is None:
            signature = check_call(self.plan.function_types.get(export), export)
            caller = self._exports[export] = self._caller(signature)
        return caller.frame

    def _caller(self, signature: FuncType) -> Caller:
        caller = self._callers.get(signature)
        if caller is None:
            caller = self._callers[signature] = Caller(signature, bool(self.hosts.imports))
        return caller

    def close(self) -> None:
        for name, delete in (
            ("pre", native.instance_pre_delete),
            ("_linker", native.linker_delete),
            ("_module", native.module_delete),
            ("restorer", native.module_delete),
            ("engine", native.wasm_engine_delete),
        ):
            pointer = getattr(self, name)
            if pointer:
                setattr(self, name, 0)
                delete(pointer)

    def _link(self) -> None:
        if problems := self.hosts.define(self._linker):
            raise LinkError("; ".join(problems))
        made = c_void_p()
        problem = native.linker_instantiate_pre(self._linker, self._module, byref(made))
        if problem:
            raise LinkError(take_error(problem))
        self.pre = native.pointer_in(made)


def _deserialize(engine: int, data: bytes) -> int:
    made = c_void_p()
    problem = native.module_deserialize(engine, data, len(data), byref(made))
    if problem:
        raise load_error("wasmtime would not load its own artifact", problem)
    return native.pointer_in(made)


def _compile(
    make: Callable[[bytes], tuple[bytes, int]],
    wasm: bytes,
    admit: Callable[[ModuleInfo], Edits],
    stack_size: int,
) -> Artifact:
    breathe = Breath(BREATH_EVERY)
    try:
        info = read_module(wasm, breathe)
    except MalformedModuleError as error:
        raise InvalidModuleError(str(error)) from None
    for export in info.exports:
        if export.name.startswith(HIDDEN):
            raise InvalidModuleError(f"the export name {export.name!r:.60} is kept for ourselves")
    edits = admit(info)
    edited = clamp_maxima(wasm, info, edits.memory_maxima, edits.table_maxima)
    hidden = _hidden_exports(info, edits)
    if hidden:
        edited = add_exports(edited, read_module(edited, breathe, weigh=False), hidden)
    data, code_size = make(edited)
    space, mappings = instance_reservation(info, table_elements(info, edits), stack_size)
    return Artifact(
        data,
        code_size,
        info,
        edits,
        address_space=space,
        mappings=mappings,
        module_mappings=IMAGE_MAPPINGS,
    )


def build(engine: int, wasm: bytes, code_cache: CodeCache | None = None) -> tuple[bytes, int]:
    """Compiled code at rest, and its bytes once it is loaded."""
    compile_it = new_module if code_cache is None else code_cache.compile
    made = compile_it(engine, wasm)
    try:
        out = native.ByteVec()
        if problem := native.module_serialize(made, byref(out)):
            raise InvalidModuleError(f"wasmtime can't serialize it: {take_error(problem)}")
        _, size = image_of(made)
        return native.take_bytes(out), _whole_pages(size)
    finally:
        native.module_delete(made)


def _prove(
    engine: int, artifact: Artifact, hosts: tuple[HostImport, ...], initialize: str | None
) -> Artifact:
    """See `Engine.prove`."""
    code, code_size, made = b"", 0, restorer(artifact.info)
    if made is not None:
        code, code_size = build(engine, made.wasm)
    plan = RestorePlan(code, made)
    tried = evolve(
        artifact,
        code_size=artifact.code_size + code_size,
        restore=plan,
        module_mappings=artifact.module_mappings + (IMAGE_MAPPINGS if code else 0),
    )
    module = WasmtimeModule(engine, tried, hosts, Tally())
    try:
        patches = find_patches(module, plan, artifact.info, initialize)
    except UnrestorableError as error:
        return evolve(artifact, obstacle=str(error))
    finally:
        module.close()
    return evolve(tried, restore=evolve(plan, patches=patches))


def image_of(module: int) -> Range:
    """Where the code of a module is."""
    start, end = c_void_p(), c_void_p()
    native.module_image_range(module, byref(start), byref(end))
    return start.value or 0, (end.value or 0) - (start.value or 0)


def _whole_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _hidden_exports(info: ModuleInfo, edits: Edits) -> list[Export]:
    """Exports for what has none: memories and tables for the books, globals to put them back."""
    named = {(export.kind, export.index) for export in info.exports}
    wanted = [("memory", index) for index in range(len(info.memories))]
    wanted += [("table", index) for index in range(len(info.tables))]
    if edits.reset:
        wanted += [("global", index) for index, one in enumerate(info.globals) if one.mutable]
    return [
        Export(f"{HIDDEN}{kind}:{index}", kind, index)
        for kind, index in wanted
        if (kind, index) not in named
    ]


def _plan(artifact: Artifact) -> Plan:
    info, edits = artifact.info, artifact.edits
    names: dict[tuple[str, int], str] = {}
    for export in (*info.exports, *_hidden_exports(info, edits)):
        names.setdefault((export.kind, export.index), export.name)
    memories = []
    for index, limits in enumerate(info.memories):
        maximum = edits.memory_maxima[index] if index < len(edits.memory_maxima) else None
        growable = limits.minimum not in (maximum, limits.maximum)
        memories.append((names["memory", index], growable, limits.minimum * WASM_PAGE))
    tables = []
    for index, table in enumerate(info.tables):
        maximum = edits.table_maxima[index] if index < len(edits.table_maxima) else None
        growable = table.limits.minimum not in (maximum, table.limits.maximum)
        tables.append((names["table", index], growable, table.limits.minimum))
    exported = [export for export in info.exports if export.kind == "memory"]
    chosen = next((e for e in exported if e.name == "memory"), exported[0] if exported else None)
    return Plan(
        room=(1, len(info.tables), len(info.memories)),
        # More than C can say is as good as no limit.
        memory_limit=min(edits.memory_limit, sys.maxsize),
        table_limit=min(edits.table_limit, sys.maxsize),
        rest_size=rest_size(info),
        memory_exports=tuple(memories),
        table_exports=tuple(tables),
        memory_name=names["memory", chosen.index] if chosen else None,
        function_types={
            export.name: info.functions[export.index]
            for export in info.exports
            if export.kind == "func"
        },
        global_types={
            export.name: info.globals[export.index].value_type
            for export in info.exports
            if export.kind == "global" and info.globals[export.index].value_type in NUMBERS
        },
        names=names,
    )
