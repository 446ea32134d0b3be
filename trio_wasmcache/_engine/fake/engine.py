"""The fake engine of `trio_wasmcache.testing`: what it does is chosen, and counted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, final

import trio
from attrs import define, evolve, field, frozen

from ..._core.config import WASM_PAGE, KiB, SystemLimits
from ..._core.errors import FuelExhaustedError, InvalidModuleError, LoadError, TrapError
from ..._core.metrics.stats import ResidentBytes
from ..._core.wasm.admission import Edits, check_call
from ..._core.wasm.driver import Shape
from ..._core.wasm.editor import encode_module
from ..._core.wasm.memory_layout import MemoryShape
from ..._core.wasm.reader import (
    Export,
    FuncType,
    Import,
    Limits,
    MalformedModuleError,
    ModuleInfo,
    read_module,
)
from ..base import Artifact, HostCall, HostImport, NoMemoryError
from ..compile_slots import CompileSlots, Turn
from .driver import FakeDriver, FakeDriverCode
from .function import FakeFunction
from .memory import FakeMemory

FAKE_SECTION = "trio_wasmcache.fake"


class FakeFailure(TrapError):
    """What `FakeEngine(fail_at=n)` makes of the n-th native step, where that is the guest's."""


@frozen
class Behaviour:
    """What a fake module does; made by `FakeEngine.module`."""

    run: Callable[..., Any]
    code_size: int
    fuel: float
    start_fuel: float
    grow_pages: int
    host_calls: int
    resettable: bool
    address_space: int
    mappings: int


@final
class FakeEngine:
    """An engine in which nothing is native and everything can be chosen.

    .. code-block::

        engine = FakeEngine()
        double = engine.module(lambda x: 2 * x)
        async with open_fake_cache(engine=engine) as cache:
            await cache.register("double", double, args=("i64",), returns="i64", export="run")

    Compiling, loading and starting an instance are native steps with a checkpoint each; so is each
    call, with a checkpoint between its slices. `steps` names those taken so far.

    Args:
        fail_at: the number of the native step (from 1) that fails; None: none does.
    """

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.refusals: int = 0
        """How many compiles, loads and instantiations from now on get no memory from the system."""
        self.system: SystemLimits = SystemLimits()
        """What the system leaves the cache; by default, there is no limit."""
        self.steps: list[str] = []
        self.modules: dict[str, Behaviour] = {}
        self.loaded_modules: int = 0
        """Executable modules that were not closed yet."""
        self.open_instances = 0
        """Instances that were not closed yet."""
        self.scratch_size: int = 0
        self.closed: bool = False
        self._slots = CompileSlots(1)

    def module(
        self,
        run: Callable[..., Any] = lambda *values: values[0] if values else 0,
        *,
        params: Sequence[str] = ("i64",),
        results: Sequence[str] = ("i64",),
        export: str = "run",
        memory_pages: int = 1,
        max_pages: int | None = None,
        code_size: int = 16 * KiB,
        fuel: float = 100,
        start_fuel: float = 0,
        grow_pages: int = 0,
        host_imports: Sequence[tuple[str, str]] = (),
        resettable: bool = True,
        address_space: int = 0,
        mappings: int = 0,
    ) -> bytes:
        """Bytes to register: a well-formed module whose export behaves as said here.

        Args:
            run: gives the result; what it raises is what the call raises.
            params, results: wasm types of the export; host imports have the same.
            memory_pages, max_pages: its memory, exported as ``"memory"``.
            code_size: bytes, once loaded.
            fuel: burnt by a call; `math.inf`: it never ends by itself.
            start_fuel: burnt by its start.
            grow_pages: added to the memory by each call.
            host_imports: (module, name) of host functions; a call calls each, in order, with its
                own arguments, and then `run` with their results.
            resettable: whether its instances can be put back, as ``isolation="reset"`` asks.
            address_space: bytes of addresses that an instance reserves, and each of its drivers.
            mappings: memory mappings of an instance, and of each of its drivers.
        """
        name = f"fake module {len(self.modules) + 1}"
        signature = FuncType(tuple(params), tuple(results))
        self.modules[name] = Behaviour(
            run,
            code_size,
            fuel,
            start_fuel,
            grow_pages,
            len(host_imports),
            resettable,
            address_space,
            mappings,
        )
        return encode_module(
            types=[signature],
            imports=[Import(module, item, "func", signature) for module, item in host_imports],
            functions=[0],
            memories=[Limits(memory_pages, max_pages)],
            exports=[Export(export, "func", len(host_imports)), Export("memory", "memory", 0)],
            code=[b"\x00\x00\x0b"],  # no locals; unreachable; end
            custom=[(FAKE_SECTION, name.encode())],
        )

    def step(self, name: str) -> bool:
        """Count a native step; True if this is the one that fails."""
        self.steps.append(name)
        return len(self.steps) == self.fail_at

    def check_memory(self) -> None:
        """Raise `NoMemoryError` as often as `refusals` says."""
        if self.refusals:
            self.refusals -= 1
            raise NoMemoryError("Cannot allocate memory (os error 12)")

    async def to_wasm(self, text: str) -> bytes:
        raise InvalidModuleError("the fake engine reads no text: use FakeEngine.module")

    def turn(self, group: Hashable) -> Turn:
        return self._slots.turn(group)

    async def compile(
        self, wasm: bytes, admit: Callable[[ModuleInfo], Edits], turn: Turn | None = None
    ) -> Artifact:
        await trio.lowlevel.checkpoint()
        if self.step("compile"):
            raise InvalidModuleError("the fake engine was told to fail")
        self.check_memory()
        try:
            info = read_module(wasm)
        except MalformedModuleError as error:
            raise InvalidModuleError(str(error)) from None
        edits, behaviour = admit(info), self._behaviour(wasm)
        return Artifact(
            wasm,
            behaviour.code_size,
            info,
            edits,
            address_space=behaviour.address_space,
            mappings=behaviour.mappings,
        )

    async def prove(
        self,
        artifact: Artifact,
        hosts: Sequence[HostImport],
        initialize: str | None,
        turn: Turn | None = None,
    ) -> Artifact:
        await trio.lowlevel.checkpoint()
        resettable = self._behaviour(artifact.data).resettable
        return evolve(artifact, obstacle=None if resettable else "the fake module says so")

    async def load(self, artifact: Artifact, hosts: Sequence[HostImport]) -> FakeModule:
        await trio.lowlevel.checkpoint()
        if self.step("load"):
            raise LoadError("the fake engine was told to fail")
        self.check_memory()
        self.loaded_modules += 1
        return FakeModule(self, artifact, self._behaviour(artifact.data), len(hosts))

    async def count_resident(
        self,
        *,
        idle: Sequence[FakeInstance],
        running: Sequence[FakeInstance],
        modules: Sequence[FakeModule],
    ) -> ResidentBytes:
        """All memory of a fake is resident."""
        await trio.lowlevel.checkpoint()
        return ResidentBytes(
            idle=sum(instance.resident_size for instance in idle),
            running=sum(instance.resident_size for instance in running),
            code=sum(module.behaviour.code_size for module in modules),
            stacks=0,
        )

    async def driver(self, shape: Shape | MemoryShape) -> FakeDriverCode | None:
        await trio.lowlevel.checkpoint()
        if isinstance(shape, MemoryShape):
            return None
        if self.step("driver"):
            raise LoadError("the fake engine was told to fail")
        return FakeDriverCode(shape)

    def close(self) -> None:
        self.closed = True

    def _behaviour(self, wasm: bytes) -> Behaviour:
        for section in read_module(wasm).sections:
            payload = wasm[section.start : section.end]
            marker = bytes([len(FAKE_SECTION)]) + FAKE_SECTION.encode()
            if section.id == 0 and payload.startswith(marker):
                name = payload[len(marker) :].decode()
                if name in self.modules:
                    return self.modules[name]
        raise InvalidModuleError("not made by FakeEngine.module of this engine")


@define(eq=False)
class FakeModule:
    """See `LoadedModule`."""

    engine: FakeEngine
    artifact: Artifact
    behaviour: Behaviour
    hosts: int
    closed: bool = False
    starting: set[FakeInstance] = field(factory=set, repr=False)

    def instantiate(self, fuel: int, yield_fuel: int) -> FakeInstance:
        assert not self.closed, "instantiated after the module was unloaded"
        if self.engine.step("instantiate"):
            raise LoadError("the fake engine was told to fail")
        self.engine.check_memory()
        self.engine.open_instances += 1
        instance = FakeInstance(self, fuel, yield_fuel)
        self.starting.add(instance)
        return instance

    def close(self) -> None:
        assert not self.starting, "unloaded under an instance that is starting"
        if not self.closed:
            self.closed = True
            self.engine.loaded_modules -= 1


@define(eq=False)
class FakeInstance:
    """See `GuestInstance`. Asserts that it is used as the seam says."""

    module: FakeModule
    fuel: int
    yield_fuel: int
    host_call: HostCall | None = None
    state: dict[str, Any] = field(factory=dict)
    host_state: dict[str, Any] = field(factory=dict)
    memory: FakeMemory = field(factory=lambda: FakeMemory())
    drivers: dict[Any, FakeDriver] = field(factory=dict)
    closed: bool = False
    polling: bool = False
    _driver: FakeDriver | None = None
    _needed: float = 0
    _burnt: int = 0
    _under_way: str | None = "start"
    _polls: int = 0
    _values: tuple[Any, ...] = ()
    _answers: list[Any] = field(factory=list)
    _pages: int = 0
    _marked: int | None = None

    def __attrs_post_init__(self) -> None:
        self._pages = sum(limits.minimum for limits in self.module.artifact.info.memories)
        self.memory = FakeMemory(bytearray(self._pages * WASM_PAGE))
        self._needed = self.module.behaviour.start_fuel

    def poll(self) -> bool:
        assert not self.closed, "polled after it was closed"
        assert self._under_way, "polled with nothing under way"
        assert not self.polling, "polled by two at once"
        self.polling = True
        try:
            return self._poll()
        finally:
            self.polling = False

    def _poll(self) -> bool:
        self._polls += 1
        if self._under_way == "start" and self._polls == 1:
            return False  # starting takes a checkpoint
        if self._driver is not None:
            return self._driver.run(self.yield_fuel)
        if self._under_way == "call" and not self.ask_host(self._values):
            return False
        left = min(self._needed, self.fuel) - self._burnt
        self._burnt += int(min(left, self.yield_fuel))
        return self._burnt >= min(self._needed, self.fuel)

    def ask_host(self, values: tuple[Any, ...]) -> bool:
        """Whether the host has given all the answers for this call; if not, ask for the next."""
        if len(self._answers) == self.module.behaviour.host_calls:
            return True
        if self.host_call is None:
            self._call_host(len(self._answers), values)
        return False

    def _call_host(self, index: int, values: tuple[Any, ...]) -> None:
        def answer(results: Sequence[Any]) -> None:
            assert self.host_call is call, "answered a host call that is over"
            self._answers.append(results[0] if len(results) == 1 else tuple(results))
            self.host_call = None

        call = HostCall(index, values, self.memory, answer, self._take_fuel, self.host_state)
        self.host_call = call

    def _take_fuel(self, fuel: int) -> int:
        if self.host_call is None:
            return fuel
        taken = min(fuel, self.fuel_left())
        self.fuel -= taken
        return taken

    def set_yield_fuel(self, fuel: int) -> None:
        self.yield_fuel = fuel

    def started(self) -> None:
        self.module.starting.discard(self)
        self._finish("start")

    def mark(self) -> None:
        assert self.module.artifact.edits.reset and self.module.artifact.obstacle is None
        if self.module.engine.step("mark"):
            raise LoadError("the fake engine was told to fail")
        self._marked = self._pages

    def reset(self) -> bool:
        assert not self.closed and not self._under_way
        if self._marked != self._pages:
            return False
        self.memory.clear()
        self.state.clear()
        self.host_state.clear()
        for driver in self.drivers.values():
            driver.scratch[:] = bytes(len(driver.scratch))
        return True

    def function(self, name: str) -> FakeFunction:
        found = self.module.artifact.info.export(name)
        is_function = found is not None and found.kind == "func"
        functions = self.module.artifact.info.functions
        return FakeFunction(
            self, check_call(functions[found.index] if found and is_function else None, name)
        )

    def global_value(self, name: str) -> int | float:
        raise LookupError(f"the fake module exports no global {name!r}")

    def abandon(self) -> None:
        assert not self.polling, "abandoned while it was polled"
        self.module.starting.discard(self)
        self._under_way = self.host_call = self._driver = None

    def fuel_left(self) -> int:
        assert not self.closed, "asked for fuel after it was closed"
        return self.fuel - self._burnt

    def measure(self) -> int:
        assert not self.closed and not self._under_way
        scratch = sum(len(driver.scratch) for driver in self.drivers.values())
        return (self._pages + 1) * WASM_PAGE + scratch

    @property
    def reserved(self) -> tuple[int, int]:
        behaviour, parts = self.module.behaviour, 1 + len(self.drivers)
        return behaviour.address_space * parts, behaviour.mappings * parts

    @property
    def resident_size(self) -> int:
        """Bytes of its memory and its scratches."""
        scratch = sum(len(driver.scratch) for driver in self.drivers.values())
        return self.memory.size + scratch

    def close(self) -> None:
        assert not self.polling, "closed while it was polled"
        self.abandon()
        if not self.closed:
            self.closed = True
            self.module.engine.open_instances -= 1
            for driver in self.drivers.values():
                self.module.engine.scratch_size -= len(driver.scratch)

    def begin(self, values: tuple[Any, ...], fuel: int) -> None:
        assert not self.closed and self._under_way is None, "begun while something is under way"
        self._under_way = "call"
        self._values, self.fuel = values, fuel
        self._answers = []
        self._needed = self.module.behaviour.fuel
        self._burnt = self._polls = 0

    def finish(self) -> Any:
        self._finish("call")
        return self.result(self._values)

    def result(self, values: tuple[Any, ...]) -> Any:
        """What a call ends with."""
        behaviour = self.module.behaviour
        self._pages += behaviour.grow_pages
        self.memory.grow(behaviour.grow_pages)
        answers, self._answers = self._answers, []
        return behaviour.run(*(answers or values))

    def begin_rows(self, driver: FakeDriver, fuel: int) -> None:
        """A driver begins to call for rows; see `FakeDriver`."""
        self.begin((), fuel)
        self._driver = driver
        self._needed = 0

    def burn(self, fuel: float) -> int:
        """Burn that much, if there is as much; how much it was."""
        burnt = int(min(fuel, self.fuel_left()))
        self._burnt += burnt
        return burnt

    def end_rows(self) -> None:
        """The rows are over."""
        self._driver = None
        self._finish("call")

    def _finish(self, what: str) -> None:
        assert self._under_way == what
        self._under_way = None
        if self.module.engine.step(what):
            raise FakeFailure("the fake engine was told to fail", code="unreachable")
        if self._burnt < self._needed:
            raise FuelExhaustedError("all fuel is burnt")
