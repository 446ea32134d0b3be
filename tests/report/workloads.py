"""Random applications on the fake engine, and the logs that they write.

A workload is a value: functions, groups and the programs of tasks, drawn from a seed; running it
twice does the same, and its tasks never look at what they get. Times are random floats, so that no
two things happen at the same moment unless one is the cause of the other.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from pathlib import Path
from random import Random
from typing import Any

import trio
from attrs import Factory, define, evolve, frozen
from promoting import look
from trio.testing import MockClock

from trio_wasmcache import (
    CacheConfig,
    DuplicateFunctionError,
    HostFunction,
    InstanceCache,
    LoadError,
    MiB,
    Prepare,
    TrapError,
    WasmCacheError,
)
from trio_wasmcache.testing import FakeEngine, open_fake_cache

KiB = 1024
PAGE = 64 * KiB
POLICIES = ("lru", "sieve", "gdsf", "cost")
ARGS = ("i64",)


class CoarseRandom(Random):
    """Everything at one of few moments."""

    def random(self) -> float:
        return int(super().random() * 8) / 8


class JsonLogger:
    """A structlog logger that keeps its lines as JSONRenderer writes them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(json.dumps({**fields, "event": event, "level": "info"}))

    warning = info

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    def write(self, path: Path) -> Path:
        path.write_text("".join(f"{line}\n" for line in self.lines))
        return path


@frozen
class FunctionPlan:
    """One function; `hold` is how long each lease of it lasts."""

    name: str
    pages: int
    code_size: int
    concurrency: int
    hold: float
    traps: bool = False
    grows: bool = False
    load: float = 0.0
    """Seconds that loading its module takes."""
    flaky: bool = False
    """Every other load of its module fails."""
    asks: float = 0.0
    """Seconds that each call spends in a host function."""
    isolation: str = "reuse"


@frozen
class Use:
    """A task takes a rest, acquires, holds, and perhaps acquires more while it holds."""

    rest: float
    function: int
    group: str | None
    patience: float
    """Seconds after which the wait is given up; `math.inf`: never."""
    hold: float
    inner: tuple[Use, ...] = ()
    after: float = 0.0
    """Seconds that it holds on after those."""
    limit: float = math.inf
    """Seconds after which all of it is cancelled, whatever it is at."""


@frozen
class Change:
    """Something that is done to the cache at a fixed time."""

    at: float
    kind: str
    function: int = 0
    limits: tuple[tuple[str, Any], ...] = ()


@frozen
class Plan:
    """The whole application."""

    functions: tuple[FunctionPlan, ...]
    groups: tuple[tuple[str, int | None], ...]
    tasks: tuple[tuple[float, tuple[Use, ...]], ...] = ()
    """(when it starts, what it does)."""
    changes: tuple[Change, ...] = ()
    close_at: float | None = None
    """When all tasks are cancelled, whatever goes on in them."""
    group_tasks: tuple[tuple[int, float, tuple[Use, ...]], ...] = ()
    """(group, when it starts, what it does): tasks that belong to a group, which ends with them."""
    group_ends: tuple[float, ...] = ()
    """Seconds after which each group is cancelled."""
    group_limits: dict[str, dict[str, int]] = Factory(dict)
    """{group: other limits of it}."""
    outside: bool = False
    """Whether `tasks` outlive groups and cache, which are closed under them, at `close_at`."""


class SlowEngine(FakeEngine):
    """A fake engine on which loading a module takes time, and may fail."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: dict[bytes, FunctionPlan] = {}
        self.loads = 0

    async def load(self, artifact: Any, hosts: Any) -> Any:
        plan = self.plans[artifact.data]
        await trio.sleep(plan.load)
        self.loads += 1
        if plan.flaky and self.loads % 2:
            raise LoadError("every other load fails")
        return await super().load(artifact, hosts)


@define
class Outcome:
    """What came of a run."""

    log: JsonLogger
    errors: int = 0
    """Acquires that were refused."""


async def run_plan(plan: Plan, config: CacheConfig) -> Outcome:
    """Run the application; its clock must be one that jumps."""
    outcome = Outcome(JsonLogger())
    engine = SlowEngine()
    config = evolve(config, log_uses=True, offload_after=None)
    async with trio.open_nursery() as outside:
        async with open_fake_cache(config, engine=engine, logger=outcome.log) as cache:
            await _Run(plan, engine, cache, outcome, outside).run()
    return outcome


@define(eq=False)
class _Run:
    plan: Plan
    engine: SlowEngine
    cache: InstanceCache
    outcome: Outcome
    outside: trio.Nursery
    began: float = 0.0
    preparable: dict[FunctionPlan, dict[str, Any]] = Factory(dict)
    """{function: what is registered of it to be prepared}."""

    async def run(self) -> None:
        self.began = trio.current_time()
        for function in self.plan.functions:
            await self.register(function, replace=False)
        async with trio.open_nursery() as nursery:
            for change in self.plan.changes:
                nursery.start_soon(self.change, change)
            if self.plan.group_tasks:
                for number in range(len(self.plan.groups)):
                    nursery.start_soon(self.group, number)
            else:
                await self.open_groups(list(self.plan.groups), {})
                if self.plan.outside:
                    nursery.cancel_scope.cancel()

    async def group(self, number: int) -> None:
        name, capacity = self.plan.groups[number]
        limit = math.inf if capacity is None else capacity
        more = self.plan.group_limits.get(name, {})
        async with self.cache.scheduling_group(name, capacity=limit, **more) as group:
            if self.plan.group_ends:
                group.cancel_scope.deadline = self.began + self.plan.group_ends[number]
            for home, start, uses in self.plan.group_tasks:
                if home == number:
                    group.start_soon(self.task, start, uses, {name: group})

    async def open_groups(self, left: list[tuple[str, int | None]], made: dict[str, Any]) -> None:
        if not left:
            return await self.run_tasks(made)
        (name, capacity), *rest = left
        limit = math.inf if capacity is None else capacity
        more = self.plan.group_limits.get(name, {})
        async with self.cache.scheduling_group(name, capacity=limit, **more) as group:
            made[name] = group
            await self.open_groups(rest, made)
        return None

    async def run_tasks(self, groups: dict[str, Any]) -> None:
        async with trio.open_nursery() as nursery:
            home = self.outside if self.plan.outside else nursery
            for start, uses in self.plan.tasks:
                home.start_soon(self.task, start, uses, groups)
            if self.plan.close_at is not None:
                await trio.sleep_until(self.began + self.plan.close_at)
                nursery.cancel_scope.cancel()

    async def task(self, start: float, uses: tuple[Use, ...], groups: dict[str, Any]) -> None:
        await trio.sleep_until(self.began + start)
        for use in uses:
            await self.use(use, groups)

    async def use(self, use: Use, groups: dict[str, Any]) -> None:
        await trio.sleep(use.rest)
        name = self.plan.functions[use.function].name
        where = groups.get(use.group, self.cache)
        lease = where.acquire(name, ARGS)
        with trio.move_on_after(use.limit):
            await self.lease(lease, use, groups)

    async def lease(self, lease: Any, use: Use, groups: dict[str, Any]) -> None:
        try:
            with trio.move_on_after(use.patience) as scope:
                await lease.__aenter__()
            if scope.cancelled_caught:
                return
        except (WasmCacheError, trio.ClosedResourceError):
            self.outcome.errors += 1
            return
        try:
            await self.hold(lease, use, groups)
        finally:
            await lease.__aexit__(None, None, None)

    async def hold(self, lease: Any, use: Use, groups: dict[str, Any]) -> None:
        with contextlib.suppress(TrapError, trio.ClosedResourceError):
            await lease.call(1)
        look(self.cache)  # where functions are promoted
        await trio.sleep(use.hold)
        for inner in use.inner:
            await self.use(inner, groups)
        await trio.sleep(use.after)

    async def register(self, function: FunctionPlan, replace: bool) -> None:
        async def ask(x: int) -> int:
            await trio.sleep(function.asks)
            return x

        wasm = self.engine.module(
            _trap if function.traps else _same,
            memory_pages=function.pages,
            code_size=function.code_size,
            address_space=function.pages * PAGE,
            mappings=1 + function.pages % 3,
            grow_pages=int(function.grows),
            host_imports=[("env", "ask")] if function.asks else [],
        )
        self.engine.plans[wasm] = function
        await self.cache.register(
            function.name,
            wasm,
            args=ARGS,
            returns="i64",
            export="run",
            concurrency=function.concurrency,
            replace=replace,
            imports={"env": {"ask": HostFunction(ask, ("i64",), ("i64",))}},
            isolation=function.isolation,
        )

    async def prepare(
        self, function: FunctionPlan, *, name: str, held: str | None, patience: float
    ) -> None:
        """Register a function that is prepared, perhaps in a lease; equal ones are shared."""
        if function not in self.preparable:

            async def ask(x: int) -> int:
                await trio.sleep(function.asks)
                return x

            wasm = self.engine.module(
                _trap if function.traps else _same,
                memory_pages=function.pages,
                code_size=function.code_size,
                grow_pages=int(function.grows),
                host_imports=[("env", "ask")],
            )
            self.engine.plans[wasm] = function
            host = HostFunction(ask, ("i64",), ("i64",), pure=True)
            self.preparable[function] = {"wasm": wasm, "imports": {"env": {"ask": host}}}
        register = functools.partial(
            self.cache.register,
            name,
            **self.preparable[function],
            args=ARGS,
            returns="i64",
            export="run",
            replace=True,
            prepare=(Prepare("run", (1,), ARGS, "i64"),) * 2,
        )
        with trio.move_on_after(patience):
            async with contextlib.AsyncExitStack() as stack:
                if held is not None:
                    await stack.enter_async_context(self.cache.acquire(held, ARGS))
                await register()

    async def change(self, change: Change) -> None:
        await trio.sleep_until(self.began + change.at)
        function = self.plan.functions[change.function]
        match change.kind:
            case "resize":
                self.cache.resize(**dict(change.limits))
            case "replace":
                with contextlib.suppress(DuplicateFunctionError):  # by another, at this moment
                    await self.register(function, replace=True)
            case "remove":
                if any(one.name == function.name for one in self.cache.functions()):
                    self.cache.remove(function.name)
            case "prepare":
                with contextlib.suppress(WasmCacheError, trio.ClosedResourceError):
                    await self.prepare(function, **dict(change.limits))
            case "profile":
                with contextlib.suppress(WasmCacheError, trio.BusyResourceError):
                    with trio.move_on_after(0.8):
                        await self.cache.profile(**dict(change.limits))
            case "warm":
                with trio.move_on_after(0.5):
                    try:
                        await self.cache.warm(function.name, ARGS, function.concurrency)
                    except WasmCacheError:
                        self.outcome.errors += 1


def _same(x: int) -> int:
    return x


def _trap(x: int) -> int:
    raise TrapError("wasm trap: unreachable", code="unreachable")


def run_on_jumping_clock(plan: Plan, config: CacheConfig) -> Outcome:
    """`run_plan`, in a Trio of its own."""
    result: Outcome = trio.run(run_plan, plan, config, clock=MockClock(autojump_threshold=0))
    return result


def steady_plan(seed: int, tasks: int, uses: int, functions: int = 30) -> Plan:
    """A plain application: tasks that use functions, some much more often than others."""
    random = Random(seed)
    made = tuple(
        FunctionPlan(
            f"f{number}", random.randint(1, 20), 16 * KiB, 1, 0.0, load=random.random() / 10
        )
        for number in range(functions)
    )
    weights = [1 / (number + 1) for number in range(functions)]
    programs = tuple(
        (
            random.random(),
            tuple(
                Use(random.random(), number, None, math.inf, random.random() / 10)
                for number in random.choices(range(functions), weights, k=uses)
            ),
        )
        for _ in range(tasks)
    )
    return Plan(made, (), programs)


def in_turn(functions: int, times: int, rest: float) -> Plan:
    """One task that uses one function after the other, and rests before each use."""
    plans = tuple(FunctionPlan(f"f{n}", 1, PAGE, 1, 0.0, load=0.5) for n in range(functions))
    uses = tuple(Use(rest, n, None, math.inf, 0.1) for _ in range(times) for n in range(functions))
    return Plan(plans, (), tasks=((0.0, uses),))


def wild_plan(random: Random) -> Plan:
    """Anything goes: nesting, deadlocks, traps, growth, impatience, loads that fail, replacement,
    groups that are closed whatever goes on in them."""
    functions = tuple(
        FunctionPlan(
            f"f{number}",
            random.randint(1, 4),
            random.randint(1, 4) * PAGE,
            random.choice([1, 1, 2, 3]),
            0.0,
            traps=random.random() < 0.15,
            grows=random.random() < 0.3,
            load=random.choice([0.0, random.expovariate(3)]),
            flaky=random.random() < 0.15,
            asks=random.choice([0.0, 0.0, random.random()]),
            isolation=random.choice(["reuse", "reuse", "fresh", "reset"]),
        )
        for number in range(random.randint(2, 6))
    )
    names = ["g1", "g2"][: random.randint(0, 2)]
    groups = tuple((name, random.choice([None, 1, 2])) for name in names)

    def use(depth: int) -> Use:
        inner = random.choice([0, 0, 1, 2]) if depth < 2 else 0
        return Use(
            random.expovariate(2),
            random.randrange(len(functions)),
            random.choice([None, *names]),
            random.choice([math.inf, math.inf, random.random()]),
            random.expovariate(2),
            tuple(use(depth + 1) for _ in range(inner)),
            limit=random.choice([math.inf, math.inf, math.inf, random.expovariate(1)]),
        )

    def program() -> tuple[float, tuple[Use, ...]]:
        return random.random() * 3, tuple(use(0) for _ in range(random.randint(1, 6)))

    tasks = [program() for _ in range(random.randint(2, 8))]
    changes = tuple(
        Change(
            random.random() * 10,
            random.choice(["resize", "resize", "replace", "remove", "warm"]),
            random.randrange(len(functions)),
            draw_limits(random),
        )
        for _ in range(random.randint(0, 5))
    )
    close_at = random.random() * 8 if random.random() < 0.3 else None
    if not names or random.random() < 0.5:
        if random.random() < 0.3:
            at = random.random() * 6
            return Plan(functions, groups, tuple(tasks), changes, at, outside=True)
        return Plan(functions, groups, tuple(tasks), changes, close_at)
    return Plan(
        functions,
        groups,
        changes=changes,
        group_tasks=tuple((random.randrange(len(groups)), *task) for task in tasks),
        group_ends=tuple(random.choice([math.inf, random.random() * 8]) for _ in groups),
    )


def calm_plan(random: Random) -> Plan:
    """An application that `whatif` promises to get right: see the end of its docstring."""
    others = [
        FunctionPlan(
            f"f{number}",
            random.randint(1, 4),
            random.randint(1, 4) * PAGE,
            concurrency := random.choice([1, 1, 2, 3]),
            random.choice([0.0, random.expovariate(2)]) if concurrency == 1 else 0.0,
            traps=random.random() < 0.15,
            load=random.choice([0.0, random.expovariate(3)]) if concurrency == 1 else 0.0,
            isolation=random.choice(["reuse", "reuse", "reuse", "fresh", "reset"]),
        )
        for number in range(random.randint(2, 6))
    ]
    functions = (FunctionPlan("f", 2, PAGE, 2, 0.0), *others)
    groups = tuple((f"g{number}", random.choice([None, 1, 2])) for number in range(2))

    def use(group: int, least: int) -> Use:
        # Functions with a fixed hold, or whose loads take time, are used in one group only, or two
        # leases of them could begin, and so end, at the same moment.
        allowed = [
            number
            for number, function in enumerate(functions)
            if number >= least and (not (function.hold or function.load) or number % 2 == group)
        ]
        index = random.choice(allowed or [0])
        function = functions[index]
        impatient = function.hold and not function.traps and groups[group][1] is None
        inner: tuple[Use, ...] = ()
        if not function.hold and index + 2 < len(functions) and random.random() < 0.5:
            # Always upwards, so that nobody waits in a circle.
            inner = (use(group, index + 1),)
        return Use(
            random.expovariate(2),
            index,
            groups[group][0],
            random.expovariate(1) if impatient and random.random() < 0.5 else math.inf,
            function.hold or random.expovariate(2),
            inner,
            random.random() if inner else 0.0,
        )

    tasks = tuple(
        (
            group := random.randrange(2),
            random.random() * 3,
            tuple(use(group, 0) for _ in range(random.randint(1, 8))),
        )
        for _ in range(random.randint(2, 10))
    )
    changes = tuple(
        Change(
            random.random() * 5,
            random.choice(["resize", "replace"]),
            random.randrange(len(functions)),
            draw_limits(random),
        )
        for _ in range(random.randint(0, 4))
    )
    return Plan(functions, groups, changes=changes, group_tasks=tasks)


def draw_limits(random: Random) -> tuple[tuple[str, Any], ...]:
    """Limits under which most of `wild_plan`'s functions can run, and all have to fight for it."""
    numbers = _draw_numbers(random)
    # No draw of its own, so that the plans of a seed stay what they were.
    limits = dict(numbers)
    which = limits["max_instances"] + limits["max_code_size"] // PAGE
    if which % 3 == 0:
        limits["idle_timeout"] = "adaptive"
    return (
        ("policy", POLICIES[which % len(POLICIES)]),
        *limits.items(),
        ("min_idle_timeout", 0.2),
        ("max_idle_timeout", 2.0),
    )


def _draw_numbers(random: Random) -> tuple[tuple[str, Any], ...]:
    return (
        ("max_size", random.choice([2, 5, 10, 20]) * PAGE),
        ("max_instance_size", random.choice([4, 6, 100]) * PAGE),
        ("max_instances", random.randint(3, 8)),
        ("max_code_size", random.randint(4, 14) * PAGE),
        ("idle_timeout", random.choice([0.3, 1.0, 100.0])),
        # Each may touch a little more than 16 MiB: two, or three, or as many as may be.
        ("max_running_size", random.choice([None, 35 * MiB, 60 * MiB])),
        ("max_address_space", random.choice([None, 12 * PAGE, 20 * PAGE])),
    )


def draw_config(random: Random) -> CacheConfig:
    """A configuration with `draw_limits`."""
    return CacheConfig(stack_size=PAGE, memory_limit=16 * MiB, **dict(draw_limits(random)))


def tiered(config: CacheConfig) -> CacheConfig:
    """The same with two compilers, and with capacity for the larger stacks of one of them."""
    return evolve(config, compiler="tiered", max_code_size=2 * config.max_code_size)
