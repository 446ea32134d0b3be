"""Run calls of the fake engine in slices: its modules, instances and functions.

The three refer to each other, so they share this file. They assert what a native engine would only
assume, such as one poll at a time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, Protocol

from attrs import define, evolve, field

from ..._core.config import WASM_PAGE
from ..._core.errors import (
    AbiError,
    FuelExhaustedError,
    GuestError,
    LoadError,
    MemoryLimitError,
    TrapError,
)
from ..._core.frames import Frame
from ..._core.text import shown
from ..._core.tiers import PROFILED
from ..._core.wasm.admission import Edits, check_call, memory_remedy
from ..._core.wasm.coredump import DumpedInstance, DumpedMemory
from ..._core.wasm.graph import USER, FromHost, FromPart, Source
from ..._core.wasm.preparation import FrozenState, UnfreezableError
from ..._core.wasm.reader import FuncType, ModuleInfo
from ..._public import public_in_testing
from ..base import (
    UNDER_WAY,
    Artifact,
    HostCall,
    HostImport,
    InexactError,
    Samples,
    Window,
    keep_start,
)
from .behaviour import Behaviour
from .memory import FakeMemory
from .steps import Steps


@public_in_testing
class FakeFailure(TrapError):
    """Raised by the native step that `FakeEngine(fail_at=n)` lets fail, if a guest runs in it."""


class Rows(Protocol):
    """A driver, as its instance sees it."""

    @property
    def scratch(self) -> bytearray:
        """What it reads and writes."""

    def run(self, slice_fuel: int) -> bool:
        """Run one slice of the rows; return True when they are over."""

    def wipe(self) -> None:
        """Forget what lies in the scratch."""


@define(eq=False)
class Invoked:
    """An export that a reentrant host function has the fake guest call."""

    call: HostCall
    run: Callable[..., Any]
    values: tuple[object, ...]
    fuel: float
    """Units of fuel that it has yet to burn."""


@define(eq=False)
class FakeModule:
    """See `LoadedModule`."""

    engine: Steps
    artifact: Artifact
    behaviour: Behaviour
    hosts: Sequence[HostImport]
    parts: dict[str, Behaviour] = field(factory=dict)
    """{name: behaviour} of the parts of the graph that are fake modules, the given one included."""
    closed: bool = False
    starting: set[FakeInstance] = field(factory=set, repr=False)
    at_once: bool = False

    def instantiate(self, fuel: int, yield_fuel: int) -> FakeInstance:
        assert not self.closed, "instantiated after the module was unloaded"
        for _ in self.artifact.modules:
            if self.engine.step("instantiate"):
                raise LoadError("the fake engine was told to fail")
        self.engine.check_memory()
        self.engine.count_instance(1)
        instance = FakeInstance(self, fuel, yield_fuel)
        self.starting.add(instance)
        return instance

    def source(self, number: int) -> Source:
        """Return what the import of that number is linked with."""
        graph = self.artifact.graph
        if graph is None:
            return FromHost(number)
        item = self.artifact.info.imports[number]
        source = graph.user.wiring[item.module, item.name]
        if isinstance(source, FromPart):
            part = next(part for part in graph.parts if part.name == source.part)
            if source.export in part.relays:
                return FromHost(part.relays[source.export])
        return source

    def collect(self) -> None:
        """Do nothing: each finished call is a sample, which is passed on at once."""

    def close(self) -> None:
        assert not self.starting, "unloaded under an instance that is starting"
        if not self.closed:
            self.closed = True
            self.engine.count_module(-1, self.artifact.code_size)


# Shared by all instances without any, so that a hit touches no dictionaries of its own instance.
NO_DRIVERS: dict[Hashable, Rows] = {}
NO_MEMORIES: dict[str, FakeMemory] = {}


@define(eq=False)
class FakeInstance:
    """See `GuestInstance`. Asserts that it is used as the protocol says."""

    module: FakeModule
    fuel: int
    yield_fuel: int
    host_call: HostCall | None = None
    state: dict[str, Any] = field(factory=dict)
    host_state: dict[str, Any] = field(factory=dict)
    memory: FakeMemory = field(factory=FakeMemory)
    drivers: dict[Hashable, Rows] = NO_DRIVERS
    closed: bool = False
    polling: bool = False
    _driver: Rows | None = None
    _needed: float = 0
    _burnt: int = 0
    _under_way: str | None = "start"
    _polls: int = 0
    _values: tuple[object, ...] = ()
    _answers: list[object] = field(factory=list)
    _seconds: float = 0
    """Time that what is under way has yet to take, on Trio's clock."""
    _failure: Exception | None = None
    """What the fake function raised in the first slice of the call under way, or an invoked one."""
    _invoked: Invoked | None = None
    _marked: int | None = None
    _memories: dict[str, FakeMemory] = NO_MEMORIES
    """{name: memory} of the parts of the graph, if there is one."""
    _sink: Samples | None = None
    _refused: int = 0
    """Bytes of the last growth, if the limit refused it."""

    def __attrs_post_init__(self) -> None:
        artifact = self.module.artifact
        remedy = memory_remedy(*artifact.modules)
        self.memory = _memory_of(artifact.info, artifact.edits, remedy)
        if artifact.graph is not None:
            self._memories = {}
            for part in artifact.graph.parts:
                self._memories[part.name] = _memory_of(part.info, part.edits, remedy)
            self._memories[USER] = self.memory
        self.state.update(copy.deepcopy({**artifact.edits.abi_state}))
        behaviours = self.module.parts.values() or (self.module.behaviour,)
        self._needed = sum(behaviour.start_fuel for behaviour in behaviours)
        self._seconds = sum(behaviour.start_seconds for behaviour in behaviours)

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
        if self._failure is not None:
            return True
        if self._under_way == "start" and self._pause():
            return False
        if self._driver is not None:
            return self._driver.run(self.yield_fuel)
        if self._under_way == "call" and not self.ask_host(self._values):
            return False
        left = min(self._needed, self.fuel) - self._burnt
        self._burnt += int(min(left, self.yield_fuel))
        return self._burnt >= min(self._needed, self.fuel)

    def ask_host(self, values: tuple[object, ...]) -> bool:
        """Return whether the host has answered all that this call asks; else ask for the next."""
        if self._invoked is not None:
            self._run_invoked(self._invoked)
            return False
        if self._pause():
            return False
        while len(self._answers) < self.module.behaviour.host_calls:
            if self.host_call is not None:
                return False
            source = self.module.source(len(self._answers))
            if isinstance(source, FromHost):
                self._call_host(source.index, values)
                return False
            part = self.module.parts.get(source.part)
            assert part is not None, f"the fake engine can't run the generated part {source.part!r}"
            self._needed += part.fuel
            self._answers.append(part.result(values))
        return True

    def _pause(self) -> bool:
        """Ask the host for the time that this takes; return whether it is not over yet."""
        if self._seconds and self.host_call is None:
            serve = functools.partial(_wait, self._seconds)
            self.host_call = HostCall(0, (), self.memory, self._go_on, serve=serve)
        return bool(self._seconds)

    def _go_on(self, _results: Sequence[object]) -> None:
        self._seconds = 0
        self.host_call = None

    def _call_host(self, index: int, values: tuple[object, ...]) -> None:
        def answer(results: Sequence[object]) -> None:
            assert self.host_call is call, "answered a host call that is over"
            self._answers.append(results[0] if len(results) == 1 else tuple(results))
            self.host_call = None

        call = HostCall(index, values, self.memory, answer, self._take_fuel, self.host_state)
        if self.module.hosts[index].reentrant:
            call.invoke = functools.partial(self._invoke, call)
        self.host_call = call

    def _invoke(self, call: HostCall, export: str, values: Sequence[object]) -> None:
        assert self.host_call is call, "invoked for a host call that is over"
        behaviour = self.module.behaviour
        run = behaviour.exports.get(export)
        if run is None:
            raise LookupError(f"the fake module exports no function {export!r:.100}")
        if not all(isinstance(value, (int, float)) for value in values):
            raise TypeError(f"wasm values are ints and floats, got {shown(tuple(values))}")
        self._invoked = Invoked(call, run, tuple(values), behaviour.fuel)
        self._needed += behaviour.fuel
        self.host_call = None

    def _run_invoked(self, invoked: Invoked) -> None:
        """Run a slice of the export that a host function invokes."""
        if self._failure is not None:
            return
        invoked.fuel -= self.burn(min(invoked.fuel, self.yield_fuel))
        if invoked.fuel > 0:
            if not self.fuel_left():
                self._failure = FuelExhaustedError("all fuel is burnt")
            return
        try:
            invoked.call.result = invoked.run(*invoked.values)
        except Exception as error:
            self._failure = error
        else:
            self._invoked, self.host_call = None, invoked.call

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
        self._marked = self.memory.size

    def reset(self, keep: object = None) -> bool:
        assert not self.closed and not self._under_way
        if self._marked != self.memory.size:
            return False
        for memory in self._memories.values():
            memory.clear()
        self.memory.clear()
        self._refused = 0
        self.state.clear()
        self.state.update(copy.deepcopy({**self.module.artifact.edits.abi_state}))
        keep_start(self.host_state)
        for driver in self.drivers.values():
            if driver is not keep:
                driver.wipe()
        return True

    def freeze(self) -> dict[str, FrozenState]:
        assert not self.closed and not self._under_way
        assert self.module.artifact.edits.observed is not None, "not compiled to be frozen"
        if self.module.engine.step("freeze"):
            raise UnfreezableError("the fake engine was told to fail")
        found = {USER: _state_of(self.memory)}
        graph = self.module.artifact.graph
        for part in () if graph is None else graph.parts:
            if part.edits.observed is not None:
                found[part.name] = _state_of(self._memories[part.name])
        return found

    def pass_samples(self, sink: Samples | None) -> None:
        profiled = self.module.artifact.tier not in PROFILED
        self._sink = sink if profiled else None

    def dump(self, most: int) -> tuple[DumpedInstance, ...]:
        assert not self.closed and not self._under_way, "dumped while something is under way"
        assert self.module.artifact.edits.dumped, "not compiled to be dumped"
        memories = tuple(
            DumpedMemory(pages, tuple((at, data[:most]) for at, data in runs))
            for pages, runs in _state_of(self.memory).memories
        )
        return (DumpedInstance("", memories=memories),)

    def function(self, name: str) -> FakeFunction:
        found = self.module.artifact.info.export(name)
        is_function = found is not None and found.kind == "func"
        functions = self.module.artifact.info.functions
        return FakeFunction(
            self, check_call(functions[found.index] if found and is_function else None, name)
        )

    def start_function(self) -> None:
        return None

    def refused_memory(self) -> int | None:
        return self._refused or None if self._under_way is None else None

    def global_value(self, name: str) -> int | float:
        raise LookupError(f"the fake module exports no global {name!r}")

    def part(self, name: str) -> FakePart:
        if name not in self._memories:
            raise LookupError(f"the fake instance has no part {name!r:.100}")
        return FakePart(self, name, self._memories[name])

    def abandon(self) -> None:
        assert not self.polling, "abandoned while it was polled"
        self.module.starting.discard(self)
        self._under_way = self.host_call = self._driver = self._failure = self._invoked = None

    def fuel_left(self) -> int:
        assert not self.closed, "asked for fuel after it was closed"
        return self.fuel - self._burnt

    @property
    def fixed_size(self) -> int | None:
        can_change = self._memories or self.drivers or self.memory.size < self.memory.limit
        return None if can_change else self.measure()

    def measure(self) -> int:
        assert not self.closed and not self._under_way
        scratch = sum(len(driver.scratch) for driver in self.drivers.values())
        others = sum(memory.size for name, memory in self._memories.items() if name != USER)
        return self.memory.size + WASM_PAGE + others + scratch

    @property
    def reserved(self) -> tuple[int, int]:
        behaviour, drivers = self.module.behaviour, len(self.drivers)
        artifact = self.module.artifact
        return (
            artifact.address_space + behaviour.address_space * drivers,
            artifact.mappings + behaviour.mappings * drivers,
        )

    @property
    def resident_size(self) -> int:
        """Return the bytes of its memory and its scratches."""
        scratch = sum(len(driver.scratch) for driver in self.drivers.values())
        others = sum(memory.size for name, memory in self._memories.items() if name != USER)
        return self.memory.size + others + scratch

    def close(self) -> None:
        assert not self.polling, "closed while it was polled"
        self.abandon()
        if not self.closed:
            self.closed = True
            self.module.engine.count_instance(-1)
            for driver in self.drivers.values():
                self.module.engine.count_scratch(-len(driver.scratch))

    def begin(self, values: tuple[object, ...], fuel: int) -> None:
        assert not self.closed and self._under_way is None, "begun while something is under way"
        self._under_way = "call"
        self._values, self.fuel = values, fuel
        self._answers = []
        self._seconds = self.module.behaviour.seconds
        self._needed = self.module.behaviour.fuel
        self._burnt = self._polls = 0

    def finish(self) -> Any:
        failure, self._failure = self._failure, None
        if failure is not None:
            self._under_way = None
            raise failure
        self._finish("call")
        if self._sink is not None and self._burnt:
            frame = Frame(self.module.behaviour.export, 0)
            self._sink.add([frame], self._burnt, 1)
        return self.result(self._values)

    def finish_first_slice(self) -> Any:
        """Return the result, or `UNDER_WAY` for an exception that is not a guest's.

        The second slice raises it then. If the first one did, callers would take a `TypeError` or
        `ValueError` for one of `GuestFunction.begin`, about values that do not fit.
        """
        try:
            return self.finish()
        except GuestError:
            raise
        except Exception as error:
            self._under_way, self._failure = "call", error
            return UNDER_WAY

    def result(self, values: tuple[object, ...]) -> Any:
        """Return what a call ends with."""
        behaviour = self.module.behaviour
        self._grow(behaviour.grow_pages)
        answers, self._answers = self._answers, []
        self._seconds = behaviour.seconds  # of the next row, in a batch
        return behaviour.result(tuple(answers) or values)

    def _grow(self, pages: int) -> None:
        """Grow the memory, as its guest would: it goes on without what is refused."""
        artifact = self.module.artifact
        size = self.memory.size + pages * WASM_PAGE
        try:
            self.memory.grow(pages)
        except MemoryLimitError:
            maximum = artifact.info.memories[0].maximum
            self._refused = (
                pages * WASM_PAGE if maximum is None or size <= maximum * WASM_PAGE else 0
            )
        else:
            self._refused = 0 if pages else self._refused

    def add_driver(self, key: Hashable, driver: Rows) -> None:
        """Keep a driver for as long as this lives, as a part of its size."""
        self.drivers = {**self.drivers, key: driver}
        self.module.engine.count_scratch(len(driver.scratch))

    def begin_rows(self, driver: Rows, fuel: int) -> None:
        """Begin the rows of a driver; see `FakeDriver`."""
        self.begin((), fuel)
        self._driver = driver
        self._needed = 0

    def burn(self, fuel: float) -> int:
        """Burn that much fuel, or what there is; return how much it was."""
        burnt = int(min(fuel, self.fuel_left()))
        self._burnt += burnt
        return burnt

    def end_rows(self) -> None:
        """End the rows."""
        self._driver = None
        failure, self._failure = self._failure, None
        if failure is not None:
            self._under_way = None
            raise failure
        self._finish("call")

    def _finish(self, what: str) -> None:
        assert self._under_way == what
        self._under_way = None
        if self.module.engine.step(what):
            raise FakeFailure("the fake engine was told to fail", code="unreachable")
        if self._burnt < self._needed:
            raise FuelExhaustedError("all fuel is burnt")


def _memory_of(info: ModuleInfo, edits: Edits, remedy: str) -> FakeMemory:
    """Return the memory of a module: all that it defines are one."""
    memories = info.own_memories
    pages = sum(limits.minimum for limits in memories)
    maxima = [limits.maximum for limits in memories if limits.maximum is not None]
    limit = min([edits.memory_limit, *(maximum * WASM_PAGE for maximum in maxima)])
    memory = FakeMemory(pages * WASM_PAGE, limit, remedy)
    if edits.state is not None:
        for _, runs in edits.state.memories:
            for at, data in runs:
                memory.write(at, data)
        memory.begin_so()
    return memory


def _state_of(memory: FakeMemory) -> FrozenState:
    runs = tuple((number * WASM_PAGE, bytes(page)) for number, page in sorted(memory.pages.items()))
    return FrozenState(((memory.size // WASM_PAGE, runs),), (), ())


def prepared_sizes(info: ModuleInfo, edits: Edits) -> ModuleInfo:
    """Return what a module declares once it is prepared; the fake engine knows one memory."""
    if edits.state is None or not info.memories:
        return info
    pages, _ = edits.state.memories[0]
    return evolve(info, memories=(info.memories[0]._replace(minimum=pages), *info.memories[1:]))


def _wait(seconds: float, _call: HostCall) -> Generator[float, None, tuple[object, ...]]:
    """Answer a fake call that takes time: the runner waits for as long as this yields."""
    yield seconds
    return ()


@define(eq=False)
class FakePart:
    """See `GuestPart`."""

    instance: FakeInstance
    name: str
    _memory: FakeMemory

    def function(self, name: str) -> FakeFunction:
        if self.name == USER:
            return self.instance.function(name)
        raise AbiError("the fake engine calls no functions of generated parts")

    def memory(self, name: str) -> FakeMemory:
        graph = self.instance.module.artifact.graph
        parts = () if graph is None else graph.parts
        info = next(part.info for part in parts if part.name == self.name)
        if name not in info.exported_memories:
            raise LookupError(f"that part has no memory {name!r:.100}")
        return self._memory

    def window(self, name: str) -> Window:
        raise LookupError(f"the fake engine has no window to the memory {name!r:.100}")

    def fixed_memory(self, name: str) -> FakeMemory:
        return self.memory(name)

    def global_value(self, name: str) -> int | float:
        return self.instance.global_value(name)


@define(eq=False)
class FakeFunction:
    """See `GuestFunction`."""

    instance: FakeInstance
    type: FuncType

    @property
    def left(self) -> FakeFunction:
        return self

    @property
    def value(self) -> int:
        return self.instance.fuel_left()

    def begin(self, values: Sequence[object], fuel: int) -> Any:
        if self.instance.module.behaviour.takes_values:
            self.instance.begin(tuple(values), fuel)
            return self.instance.finish_first_slice() if self.instance.poll() else UNDER_WAY
        if type(values) is not tuple or not {int, float}.issuperset(map(type, values)):
            raise InexactError
        if len(values) != len(self.type.params):
            raise ValueError("wrong number of values")
        for value, kind in zip(values, self.type.params, strict=True):
            if isinstance(value, float) and kind not in ("f32", "f64"):
                raise TypeError(f"{value!r} is no {kind}")
            if isinstance(value, int) and value.bit_length() > 63:
                raise OverflowError(f"{value!r} is too large")
        self.instance.begin(values, fuel)
        return self.instance.finish_first_slice() if self.instance.poll() else UNDER_WAY

    def finish(self) -> Any:
        return self.instance.finish()
