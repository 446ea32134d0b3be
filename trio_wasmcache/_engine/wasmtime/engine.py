"""Implement `Engine` with wasmtime: own the native engine, and decide what runs in which thread.

Each kind of work (compiles, loads, text, drivers, counts of memory) has a limit of its own on how
much of it runs at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast, final

import trio

from ..._core.config import SystemLimits
from ..._core.tiers import FIRST, OPTIMIZING, PROFILED, CompilerName, Tier, tiers_of
from ..._core.wasm.admission import Edits
from ..._core.wasm.reader import ModuleInfo
from ..._threads import importing, run_in_thread
from ..base import Artifact, HostImport, StartCall
from ..compile_slots import AnyTurn, CompileSlots, Turn
from . import native
from .compiler import Make, build, compile_module
from .config import new_config
from .instance import WasmtimeInstance
from .module import WasmtimeModule
from .reservations import read_system_limits
from .residency import Range, count_resident, find_stacks
from .store import Tally
from .text import to_wasm

if TYPE_CHECKING:
    from ..._core.metrics.stats import ResidentBytes
    from ..._core.wasm.driver import Shape
    from ..._core.wasm.graph import Graph
    from ..._core.wasm.memory_layout import MemoryShape
    from .code_cache import CodeCache
    from .drivers import Drivers, WasmtimeDriverCode
    from .subprocess import SubprocessCompiler

# Number of compiles at the same time. Each uses one thread: on all cores it would starve the event
# loop of a small machine, and never end in a forked process (`tests/bench/PROFILE.md` has more).
# There are two slots, of which no group gets both, so that a group does not wait for another's.
MAX_COMPILES = 2
# Time from which on code is made executable in a thread (nanoseconds). A hop takes half of it.
LOAD_IN_THREAD = 500_000
# Number of threads at the same time, for each kind of work. Each kind has a limiter of its own, so
# that none waits for another kind, or for the limiter of Trio's threads: work of the application
# may hold all of its tokens while it waits for this cache. None of the work here waits for
# anything, so whoever waits for one of these limiters gets a token.
MAX_LOADS, MAX_TEXTS, MAX_DRIVER_COMPILES, MAX_COUNTS, MAX_FILES = 4, 2, 1, 1, 2
# Number of parts of graphs that are kept compiled. Each is some KB. There are few of them, in some
# variants, as the maximum of its memory is written into each.
MAX_CONSTANTS = 16


@final
class Constants:
    """Compiled code at rest of parts that are the same for many modules. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # {(tier, module): code}, the last used at the end
        self._kept: OrderedDict[tuple[Tier, bytes], tuple[bytes, int]] = OrderedDict()

    def build(self, make: Make, tier: Tier, wasms: Sequence[bytes]) -> list[tuple[bytes, int]]:
        """Compile modules that are not kept yet; see `build`."""
        found = []
        for wasm in wasms:
            with self._lock:
                made = self._kept.pop((tier, wasm), None)
            if made is None:
                (made,) = make(tier, [wasm])
            with self._lock:
                self._kept[tier, wasm] = made
                if len(self._kept) > MAX_CONSTANTS:
                    self._kept.popitem(last=False)
            found.append(made)
        return found


@final
class WasmtimeEngine:
    """See `Engine`. With a `subprocess`, modules are compiled in processes of their own.

    With a `code_cache`, what is compiled is kept on disk.

    There is a native engine for each tier in which `compiler` may have modules compiled; those for
    samples are made when they are first used. Stacks have `stack_size` bytes in all of them.
    """

    def __init__(
        self,
        stack_size: int,
        subprocess: SubprocessCompiler | None = None,
        code_cache: CodeCache | None = None,
        compiler: CompilerName = "optimizing",
    ) -> None:
        self._engines: dict[Tier, int] = {
            tier: native.wasm_engine_new_with_config(new_config(stack_size, tier))
            for tier in tiers_of(compiler)
        }
        self._first = FIRST[compiler]
        self._subprocess = subprocess
        self._code_cache = code_cache
        self._stack_size = stack_size
        self._tallies = {tier: Tally(stack_size) for tier in self._engines}
        self.system: SystemLimits = read_system_limits()
        self.compile_slots: CompileSlots = CompileSlots(MAX_COMPILES)
        self._loaders = trio.CapacityLimiter(MAX_LOADS)
        self._texts = trio.CapacityLimiter(MAX_TEXTS)
        self._driver_compilers = trio.CapacityLimiter(MAX_DRIVER_COMPILES)
        self._counters = trio.CapacityLimiter(MAX_COUNTS)
        self._files = trio.CapacityLimiter(MAX_FILES)
        self._drivers: dict[Tier, Drivers] = {}
        self._constants = Constants()

    @property
    def open_instances(self) -> int:
        return sum(tally.stores for tally in self._tallies.values())

    @property
    def scratch_size(self) -> int:
        return sum(tally.scratch for tally in self._tallies.values())

    @property
    def code_sizes(self) -> dict[Tier, int]:
        return {
            tier: tally.code
            for tier, tally in self._tallies.items()
            if tally.code or tier in PROFILED
        }

    def _make_profiled(self, tier: Tier) -> None:
        """Make the engine of a tier for samples, if it is one and has none yet."""
        if tier not in PROFILED and tier not in self._engines and self._engines:
            config = new_config(self._stack_size, tier)
            self._engines[tier] = native.wasm_engine_new_with_config(config)
            self._tallies[tier] = Tally(self._stack_size)

    def substitute(self, name: str, wasm: object) -> None:
        """Return None: it runs what it is given."""

    async def to_wasm(self, text: str) -> bytes:
        return await run_in_thread(to_wasm, text, abandon_on_cancel=True, limiter=self._texts)

    def turn(self, group: Hashable) -> Turn:
        return self.compile_slots.turn(group)

    async def compile(
        self,
        wasm: bytes,
        admit: Callable[[ModuleInfo], Edits | Graph],
        turn: AnyTurn | None = None,
        tier: Tier | None = None,
    ) -> Artifact:
        first = tier or self._first
        self._make_profiled(first)
        subprocess, code_cache, constants = self._subprocess, self._code_cache, self._constants

        def admitted(info: ModuleInfo) -> Edits | Graph:
            with importing:
                return admit(info)

        def work(engines: Mapping[Tier, int]) -> Artifact:
            make = functools.partial(build, engines, code_cache=code_cache)
            build_it = make if subprocess is None else subprocess.build
            make_constant = functools.partial(constants.build, make)
            return compile_module(build_it, wasm, admitted, self._stack_size, make_constant, first)

        # Before there is a slot, which others could use while this one waits.
        # One that nobody waits for has a lock of its own, on which no other process waits.
        name = wasm if first is self._first else first.value.encode() + wasm
        alone = contextlib.nullcontext() if code_cache is None else code_cache.locks.held(name)
        async with alone:
            return await self._in_compiler(work, turn)

    async def _in_compiler(
        self, work: Callable[[Mapping[Tier, int]], Artifact], turn: AnyTurn | None
    ) -> Artifact:
        # The thread may be abandoned, and the engine closed, while it compiles: it works on
        # references of its own and leaves nothing native behind.
        # Whoever takes the references out of `owned` frees them: the thread once it runs, or we if
        # it was never started.
        self.open()
        owned = [{tier: native.engine_clone(one) for tier, one in self._engines.items()}]

        def run() -> Artifact:
            engines = owned.pop()
            try:
                return work(engines)
            finally:
                _delete(engines)

        try:
            return await run_in_thread(
                run,
                abandon_on_cancel=True,
                # It has the two methods that are documented to be enough.
                limiter=cast("trio.CapacityLimiter", turn or self.turn(object())),
            )
        finally:
            with contextlib.suppress(IndexError):
                _delete(owned.pop())

    async def find_state(self, key: str) -> bytes | memoryview | None:
        if self._code_cache is None:
            return None
        find = self._code_cache.states.find
        return await run_in_thread(find, key, abandon_on_cancel=True, limiter=self._files)

    async def keep_state(self, key: str, data: bytes) -> None:
        if self._code_cache is not None:
            keep = self._code_cache.states.keep
            await run_in_thread(keep, key, data, abandon_on_cancel=True, limiter=self._files)

    def load_nowait(self, artifact: Artifact, hosts: Sequence[HostImport]) -> WasmtimeModule | None:
        if artifact.load_time >= LOAD_IN_THREAD:
            return None
        engine = self.open(artifact.tier)
        module = WasmtimeModule(engine, artifact, tuple(hosts), self._tallies[artifact.tier])
        module.count()
        return module

    async def load(self, artifact: Artifact, hosts: Sequence[HostImport]) -> WasmtimeModule:
        if (loaded := self.load_nowait(artifact, hosts)) is not None:
            return loaded
        # The engine may be closed while a thread loads: it works on a reference of its own, too,
        # and what it made by then goes.
        engine = native.engine_clone(self.open(artifact.tier))
        try:
            tally = self._tallies[artifact.tier]
            make = functools.partial(WasmtimeModule, engine, artifact, tuple(hosts), tally)
            module = await run_in_thread(make, limiter=self._loaders)
        finally:
            native.wasm_engine_delete(engine)
        if not self._engines:
            module.close()
        self.open()
        module.count()
        return module

    async def prove(
        self,
        artifact: Artifact,
        hosts: Sequence[HostImport],
        initialize: Sequence[StartCall],
        turn: AnyTurn | None = None,
    ) -> Artifact:
        def proved(engines: Mapping[Tier, int]) -> Artifact:
            with importing:
                from .restore_trial import prove

            return prove(engines, artifact, tuple(hosts), tuple(initialize))

        return await self._in_compiler(proved, turn)

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
        groups.append(list(find_stacks(self._stack_size)))
        found = await run_in_thread(
            count_resident, groups, abandon_on_cancel=True, limiter=self._counters
        )
        from ..._core.metrics.stats import ResidentBytes

        return ResidentBytes(**dict(zip(("idle", "running", "code", "stacks"), found, strict=True)))

    async def driver(self, shape: Shape | MemoryShape, tier: Tier) -> WasmtimeDriverCode:
        from .drivers import Drivers

        engine = functools.partial(self.open, tier)
        drivers = self._drivers.setdefault(tier, Drivers())
        return await drivers.get(engine, shape, self._driver_compilers)

    def close(self) -> None:
        self.compile_slots.close()
        for drivers in self._drivers.values():
            drivers.close()
        self._code_cache = None
        engines, self._engines = self._engines, {}
        _delete(engines)

    def open(self, tier: Tier = OPTIMIZING) -> int:
        """Return the native engine of a tier; raise `trio.ClosedResourceError` if it is closed."""
        if not self._engines:
            raise trio.ClosedResourceError("this engine is closed")
        return self._engines[tier]


def _delete(engines: dict[Tier, int]) -> None:
    for engine in engines.values():
        native.wasm_engine_delete(engine)
