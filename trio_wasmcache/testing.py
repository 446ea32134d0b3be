"""What users test with: a fake engine, a log that is written at once, and a check of the books.

The fake engine runs no wasm and needs no threads, so that tests can use `trio.testing.MockClock`,
choose sizes, make any native step fail, and cancel at any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, final

import trio
from attrs import define, field, frozen

from ._cache import InstanceCache, open_with
from ._core.admit import Edits
from ._core.config import WASM_PAGE, CacheConfig, KiB
from ._core.errors import FuelExhaustedError, InvalidModuleError, LoadError, TrapError
from ._core.records import Stage
from ._core.state import State
from ._core.wasm import (
    Export,
    FuncType,
    Import,
    Limits,
    MalformedModuleError,
    ModuleInfo,
    read_module,
)
from ._core.wasm_edit import encode_module
from ._engine.seam import UNDER_WAY, Artifact, HostCall, HostImport
from ._log import InlineLogWriter

FAKE_SECTION = "trio_wasmcache.fake"


class FakeFailure(TrapError):
    """What `FakeEngine(fail_at=n)` makes of the n-th native step, where that step is the guest's."""


@frozen
class Behaviour:
    """What a fake module does; made by `FakeEngine.module`."""

    run: Callable[..., Any]
    code_size: int
    fuel: float
    start_fuel: float
    grow_pages: int
    host_calls: int


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
        self.steps: list[str] = []
        self.modules: dict[str, Behaviour] = {}
        self.loaded_modules = 0
        """Executable modules that were not closed yet."""
        self.open_instances = 0
        """Instances that were not closed yet."""
        self.closed = False

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
        """
        name = f"fake module {len(self.modules) + 1}"
        signature = FuncType(tuple(params), tuple(results))
        self.modules[name] = Behaviour(
            run, code_size, fuel, start_fuel, grow_pages, len(host_imports)
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

    async def to_wasm(self, text: str) -> bytes:
        raise InvalidModuleError("the fake engine reads no text: use FakeEngine.module")

    async def compile(self, wasm: bytes, admit: Callable[[ModuleInfo], Edits]) -> Artifact:
        await trio.lowlevel.checkpoint()
        if self.step("compile"):
            raise InvalidModuleError("the fake engine was told to fail")
        try:
            info = read_module(wasm)
        except MalformedModuleError as error:
            raise InvalidModuleError(str(error)) from None
        edits = admit(info)
        return Artifact(wasm, self._behaviour(wasm).code_size, info, edits)

    async def load(self, artifact: Artifact, hosts: Sequence[HostImport]) -> FakeModule:
        await trio.lowlevel.checkpoint()
        if self.step("load"):
            raise LoadError("the fake engine was told to fail")
        self.loaded_modules += 1
        return FakeModule(self, artifact, self._behaviour(artifact.data), len(hosts))

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

    def instantiate(self, fuel: int, yield_fuel: int) -> FakeInstance:
        assert not self.closed, "instantiated after the module was unloaded"
        if self.engine.step("instantiate"):
            raise LoadError("the fake engine was told to fail")
        self.engine.open_instances += 1
        return FakeInstance(self, fuel, yield_fuel)

    def close(self) -> None:
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
    memory: FakeMemory = field(factory=lambda: FakeMemory())
    closed: bool = False
    polling: bool = False
    _needed: float = 0
    _burnt: int = 0
    _under_way: str | None = "start"
    _polls: int = 0
    _values: tuple[Any, ...] = ()
    _answers: list[Any] = field(factory=list)
    _pages: int = 0

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
        behaviour = self.module.behaviour
        if self._under_way == "start" and self._polls == 1:
            return False  # starting takes a checkpoint
        if self._under_way == "call" and len(self._answers) < behaviour.host_calls:
            if self.host_call is None:
                self._call_host(len(self._answers))
            return False
        left = min(self._needed, self.fuel) - self._burnt
        self._burnt += int(min(left, self.yield_fuel))
        return self._burnt >= min(self._needed, self.fuel)

    def _call_host(self, index: int) -> None:
        def answer(results: Sequence[Any]) -> None:
            assert self.host_call is call, "answered a host call that is over"
            self._answers.append(results[0] if len(results) == 1 else tuple(results))
            self.host_call = None

        call = HostCall(index, self._values, self.memory, answer)
        self.host_call = call

    def started(self) -> None:
        self._finish("start")

    def function(self, name: str) -> FakeFunction:
        found = self.module.artifact.info.export(name)
        assert found is not None
        return FakeFunction(self, self.module.artifact.info.functions[found.index])

    def abandon(self) -> None:
        assert not self.polling, "abandoned while it was polled"
        self._under_way = self.host_call = None

    def fuel_left(self) -> int:
        assert not self.closed, "asked for fuel after it was closed"
        return self.fuel - self._burnt

    def measure(self) -> int:
        assert not self.closed and not self._under_way
        return (self._pages + 1) * WASM_PAGE

    def close(self) -> None:
        assert not self.polling, "closed while it was polled"
        self.abandon()
        if not self.closed:
            self.closed = True
            self.module.engine.open_instances -= 1

    def begin(self, values: tuple[Any, ...], fuel: int) -> None:
        assert not self.closed and self._under_way is None, "begun while something is under way"
        self._under_way = "call"
        self._values, self.fuel = values, fuel
        self._answers = []
        self._needed = self.module.behaviour.fuel
        self._burnt = self._polls = 0

    def finish(self) -> Any:
        self._finish("call")
        behaviour = self.module.behaviour
        self._pages += behaviour.grow_pages
        self.memory.grow(behaviour.grow_pages)
        return behaviour.run(*(self._answers or self._values))

    def _finish(self, what: str) -> None:
        assert self._under_way == what
        self._under_way = None
        if self.module.engine.step(what):
            raise FakeFailure("the fake engine was told to fail", code="unreachable")
        if self._burnt < self._needed:
            raise FuelExhaustedError("all fuel is burnt")


@define(eq=False)
class FakeFunction:
    """See `GuestFunction`."""

    instance: FakeInstance
    type: FuncType

    def begin(self, values: Sequence[Any], fuel: int) -> Any:
        if len(values) != len(self.type.params):
            raise ValueError("wrong number of values")
        for value, kind in zip(values, self.type.params, strict=True):
            if not isinstance(value, (int, float) if kind in ("f32", "f64") else int):
                raise TypeError(f"{value!r} is no {kind}")
            if isinstance(value, int) and value.bit_length() > 63:
                raise OverflowError(f"{value!r} is too large")
        self.instance.begin(tuple(values), fuel)
        return self.finish() if self.instance.poll() else UNDER_WAY

    def fuel_left(self) -> int:
        return self.instance.fuel_left()

    def finish(self) -> Any:
        return self.instance.finish()


@define(eq=False)
class FakeMemory:
    """See `GuestMemory`."""

    _data: bytearray = field(factory=bytearray, repr=False)

    @property
    def size(self) -> int:
        return len(self._data)

    def read(self, at: int, n: int) -> bytes:
        self._check(at, n)
        return bytes(self._data[at : at + n])

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        self._check(at, len(data))
        self._data[at : at + len(data)] = data

    def grow(self, pages: int) -> None:
        self._data += bytes(pages * WASM_PAGE)

    def _check(self, at: int, n: int) -> None:
        if at < 0 or n < 0 or at + n > len(self._data):
            raise IndexError(f"{n} bytes at {at} are not inside the memory")


@asynccontextmanager
async def open_fake_cache(
    config: CacheConfig | None = None, *, engine: FakeEngine | None = None, logger: Any = None
) -> AsyncIterator[InstanceCache]:
    """`open_cache` on a fake engine, with events written at once, in the calling task.

    Calls never go to a thread unless `config.offload_after` says so, so a clock that jumps is fine.
    """
    config = CacheConfig(offload_after=None) if config is None else config
    engine = FakeEngine() if engine is None else engine
    async with open_with(config, engine, InlineLogWriter(logger)) as cache:
        yield cache
    assert engine.open_instances == 0, f"{engine.open_instances} instances were never closed"
    assert engine.loaded_modules == 0, f"{engine.loaded_modules} modules were never unloaded"


def check_invariants(cache: InstanceCache) -> None:
    """Compare the cache's books with each other and with what is there; changes nothing.

    Raises:
        AssertionError: they disagree; all disagreements are listed. That is a bug of the library.
    """
    problems = list(_disagreements(cache))
    assert not problems, "the books disagree:\n  " + "\n  ".join(problems)


def _disagreements(cache: InstanceCache) -> list[str]:
    shell = cache._shell
    policy = shell.policy
    residents, ledger = policy.residents, policy.residents.ledger
    problems: list[str] = []

    def same(what: str, booked: object, found: object) -> None:
        if booked != found:
            problems.append(f"{what}: booked {booked!r}, found {found!r}")

    entries = list(residents.entries)
    idle = [instance for entry in entries for instance in entry.idle]
    held = list(policy.waits.held)
    running = [request.instance for request in held if request.instance is not None]
    same("requests that hold something", len(held), len(running))
    same("idle instances", ledger.idle, len(idle))
    same("running instances", ledger.running, len(running))
    same("total_size", ledger.total_size, sum(instance.size for instance in idle))
    same("order of last use", set(residents.lru), set(idle))
    times = [instance.last_used for instance in residents.lru]
    same("order of last use by time", times, sorted(times))
    modules = {i.entry.function.module for i in (*idle, *running)}
    same("loaded modules", ledger.loaded_modules, len(modules))
    same("code", ledger.code_size, sum(module.code_size for module in modules))
    same("stacks", ledger.stacks, len(running) * ledger.stack_size)
    for module in modules:
        mine = [i for i in running if i.entry.function.module is module]
        rest = [i for i in idle if i.entry.function.module is module]
        same(f"users of {module.digest[:8]}", module.users, len(mine) + len(rest))
        same(f"running of {module.digest[:8]}", module.running, len(mine))
        same(f"idle of {module.digest[:8]}", set(module.idle), set(rest))
        same(f"evictable {module.digest[:8]}", module in ledger.evictable, not mine)
    evictable = sum(module.code_size for module in ledger.evictable)
    same("evictable code", ledger.evictable_code, evictable)
    for instance in idle:
        same("state of an idle instance", instance.state, State.IDLE)
        if instance.payload is None:
            problems.append(f"idle instance {instance.number} has nothing native")
        if instance.size > policy.config.max_instance_size:
            problems.append(f"instance {instance.number} is over max_instance_size")
    for entry in entries:
        mine = [i for i in running if i.entry is entry]
        same(f"live instances of {entry.function.key}", entry.live, len(entry.idle) + len(mine))
        if entry.vacant:
            problems.append(f"the entry of {entry.function.key} is vacant, but not forgotten")
        if not entry.function.retired and entry.live > entry.function.concurrency:
            problems.append(f"{entry.function.key} has more than its concurrency")
        if entry.waiting and len(entry.claims) < entry.function.concurrency:
            problems.append(f"a waiter for {entry.function.key} was not woken")
    if ledger.total_size > policy.config.max_size:
        problems.append("idle instances exceed max_size")
    waiters = list(itertools.chain(policy.room, *(entry.waiting for entry in entries)))
    tokens = [
        o
        for o, r in policy.waits.waiting.items()
        if r in (g._record for g in cache._groups.values())
    ]
    same("waiting tasks", len(policy.waits.waiting), len(waiters) + len(tokens))
    for request in waiters:
        if request.stage not in (Stage.QUEUED, Stage.ROOM):
            problems.append(f"a waiter is {request.stage.value}")
    for group in cache._groups.values():
        owners = group._record.token_owners
        borrowed = group.limiter.borrowed_tokens
        if borrowed < len(owners) or any(count < 1 for count in owners.values()):
            problems.append(f"group {group.name!r}: {borrowed} tokens for {len(owners)} tasks")
    if shell.closed and (idle or running or waiters):
        problems.append("something is left in a closed cache")
    return problems


async def cancel_everywhere(
    scenario: Callable[[], Awaitable[Any]],
    check: Callable[[], None] = lambda: None,
    *,
    limit: int = 10_000,
) -> int:
    """Run `scenario` to be cancelled at its first checkpoint, then at its second, and so on.

    A checkpoint is each time that its task, or one that it starts, lets others run. At each of them
    it is cancelled twice, in two runs: when the task has just fallen asleep, and when it was woken
    but has not run yet, so that what it waited for is its own already. Runs go on until one is
    over before it could be cancelled.

    Args:
        scenario: an async function without arguments. Everything that is to be cancelled happens
            in it; others that take part, such as who holds what it waits for, live outside.
        check: called after each run, such as ``lambda: check_invariants(cache)``.
        limit: runs, at most.

    Returns:
        How many times it was cancelled.

    Raises:
        AssertionError: it was still being cancelled after `limit` runs.
        Exception: what the scenario, or `check`, raised.
    """
    task = trio.lowlevel.current_task()
    runs = 0
    for woken in (False, True):
        for number in itertools.count(1):
            if runs == limit:
                raise AssertionError(f"the scenario did not complete within {limit} runs")
            runs += 1
            with trio.CancelScope() as scope:
                countdown = _Countdown(task, scope, number, woken)
                trio.lowlevel.add_instrument(countdown)
                try:
                    await scenario()
                finally:
                    trio.lowlevel.remove_instrument(countdown)
            check()
            if countdown.left:
                break
    return runs - 2


@final
class _Countdown(trio.abc.Instrument):
    """Cancels a scope when a task that belongs to it falls asleep, or wakes, for the n-th time."""

    def __init__(
        self, task: trio.lowlevel.Task, scope: trio.CancelScope, number: int, woken: bool
    ) -> None:
        self._task = task
        self._children = set(task.child_nurseries)
        self._scope = scope
        self._woken = woken
        self.left = number

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        # Once a step is over, who slept through it can be cancelled: not in the middle of one,
        # where no application could do it either.
        if not self._woken:
            self._count(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._woken:
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        if self.left and self._belongs(task):
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()

    def _belongs(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self._task:
            nursery = task.parent_nursery
            if nursery is None or nursery in self._children:
                return False  # not of the scenario: it was there before
            task = nursery.parent_task
        return task is self._task
