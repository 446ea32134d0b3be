"""What users test with has to refuse what is wrong, or it tests nothing."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs.exceptions import FrozenInstanceError
from kits import PAGE, FakeKit, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, InvalidModuleError, MiB
from trio_wasmcache._core.metrics import snapshot as metrics
from trio_wasmcache._core.policy.lifecycle import State
from trio_wasmcache._core.policy.records import Stage
from trio_wasmcache.testing import (
    CompilesSnapshot,
    FakeEngine,
    GroupSnapshot,
    ModuleSnapshot,
    NativeSnapshot,
    ResidentSnapshot,
    TurnsSnapshot,
    cancel_everywhere,
    check_invariants,
    open_fake_cache,
    snapshot,
)


def ledger(cache: InstanceCache) -> Any:
    return cache._pool.policy.instances.ledger


def idle(cache: InstanceCache) -> Any:
    """The one idle instance."""
    return next(iter(cache._pool.policy.instances.lru))


def waiter(cache: InstanceCache) -> Any:
    """The one request that waits, and its entry."""
    entries = cache._pool.policy.instances.entries
    return next(iter(next(entry for entry in entries if entry.waiting).waiting))


def change(what: Callable[[InstanceCache], Any], name: str, value: Any) -> Any:
    """Set an attribute; gives what undoes it."""

    def apply(cache: InstanceCache) -> Callable[[], None]:
        target = what(cache)
        old = getattr(target, name)
        setattr(target, name, value(old) if callable(value) else value)
        return lambda: setattr(target, name, old)

    return apply


def more(old: int) -> int:
    return old + 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(ledger, "total_size", more), "total_size"),
        (change(ledger, "instances", more), "idle instances"),
        (change(ledger, "running", more), "running instances"),
        (change(ledger, "code_size", more), "code"),
        (change(ledger, "running_size", more), "running_size"),
        (change(lambda cache: idle(cache).entry.function, "worst_size", 1), "touch at most"),
        (change(ledger, "loaded_modules", more), "loaded modules"),
        (change(ledger, "evictable_code", more), "evictable code"),
        (change(lambda cache: idle(cache).entry, "live", more), "live instances of"),
        (change(lambda cache: idle(cache).entry.function.module, "users", more), "users of"),
        (change(idle, "state", State.RUNNING), "state of an idle instance"),
        (change(idle, "bound", None), "has nothing native"),
        (change(idle, "size", 2**30), "over max_instance_size"),
        (change(waiter, "stage", Stage.GRANTED), "a waiter is running"),
        (
            change(lambda cache: waiter(cache).entry.function, "concurrency", 5),
            "was not woken",
        ),
        (
            change(lambda cache: waiter(cache).entry.function, "concurrency", 0),
            "more than its concurrency",
        ),
        (change(lambda cache: cache._groups.main.capacity, "owners", {}), "without a token"),
        (change(lambda cache: cache._pool, "closed", True), "left in a closed cache"),
        (
            change(lambda cache: cache._pool.policy, "config", CacheConfig(max_size=1)),
            "idle instances exceed max_size",
        ),
        (change(lambda cache: cache._pool.policy.waits, "waiting", {}), "waiting tasks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_check_invariants_finds_what_disagrees(
    fake: FakeKit, spoil: Callable[[InstanceCache], Callable[[], None]], message: str
) -> None:
    """Any one number of the books that is wrong is named; put right again, nothing is."""
    async with fake.open() as cache:
        running = await add(cache, "running", fake.adding(1))
        await (await add(cache, "idle", fake.adding(2))).call(1)
        async with running.acquire(), trio.open_nursery() as nursery:
            nursery.start_soon(running.call, 1)
            await wait_all_tasks_blocked()
            check_invariants(cache)
            undo = spoil(cache)
            try:
                with pytest.raises(AssertionError, match=message):
                    check_invariants(cache)
            finally:
                undo()
            check_invariants(cache)
            nursery.cancel_scope.cancel()


async def test_open_fake_cache_finds_what_is_never_closed() -> None:
    """An instance or a module that is open after the cache is closed is an error."""
    engine = FakeEngine()
    with pytest.raises(AssertionError, match="1 instances were never closed"):
        async with open_fake_cache(engine=engine):
            engine.open_instances += 1
    engine = FakeEngine()
    with pytest.raises(AssertionError, match="1 modules were never unloaded"):
        async with open_fake_cache(engine=engine):
            engine.loaded_modules += 1
    assert engine.closed


async def test_the_fake_engine_runs_only_its_own_modules(fake: FakeKit) -> None:
    """Neither text, nor a real module, nor that of another fake engine."""
    async with fake.open() as cache:
        with pytest.raises(InvalidModuleError, match="reads no text"):
            await add(cache, "f", "(module)")  # type: ignore[arg-type]
        fake.engine.function(str.upper)
        for foreign in (FakeEngine().module(), FakeEngine().function(str.lower)):
            with pytest.raises(InvalidModuleError, match=r"not made by FakeEngine\.module"):
                await add(cache, "f", foreign)
        assert cache.functions() == ()


async def test_a_mistake_with_a_tool_is_explained() -> None:
    """With the value got, and what to write."""

    async def scenario() -> None:
        raise AssertionError("never called")

    with pytest.raises(TypeError, match=r"write open_fake_cache\(engine=engine\)"):
        async with open_fake_cache(FakeEngine()):  # type: ignore[arg-type]
            raise AssertionError("never entered")
    coroutine: Any = scenario()
    with pytest.raises(TypeError, match=r"write cancel_everywhere\(scenario\)"):
        await cancel_everywhere(coroutine)
    coroutine.close()
    for tool in (snapshot, check_invariants):
        with pytest.raises(TypeError, match="not an InstanceCache: 3"):
            tool(3)  # type: ignore[operator]


async def test_the_fake_engine_behaves_as_it_is_told() -> None:
    """Types, memory, code size, fuel, growth: what `module` was given shows."""
    engine = FakeEngine()
    wasm = engine.module(
        lambda a, b: a * b,
        params=("i32", "f64"),
        results=("f64",),
        export="times",
        memory_pages=2,
        max_pages=3,
        code_size=40960,
        fuel=250_000,
        grow_pages=1,
    )
    async with open_fake_cache(engine=engine) as cache:
        times = await cache.register("times", wasm, args=("i32", "f64"), returns="f64")
        assert times.code_size == 40960
        async with times.acquire() as lease:
            assert lease.memory.size == 2 * 65536
            assert await lease.call(3, 1.5) == 4.5
            assert lease.fuel_consumed == 250_000
            assert lease.memory.size == 3 * 65536
            with pytest.raises(TypeError):
                await lease.call("3", 1.5)
        assert engine.steps == ["compile", "load", "instantiate", "start", "call"]


async def test_a_snapshot_shows_what_is_inside(autojump_clock: trio.testing.MockClock) -> None:
    """Instances in order of last use, seats, groups, modules, turns: all of it, field by field."""
    engine = FakeEngine()
    config = CacheConfig(offload_after=None, idle_timeout=1000, max_threads=3)
    async with open_fake_cache(config, engine=engine) as cache:
        first = engine.module(memory_pages=2, address_space=8192, mappings=3)
        f = await add(cache, "f", first)
        fresh = await add(cache, "fresh", engine.module(), isolation="fresh")
        now = trio.current_time()
        async with f.acquire():
            pass
        await trio.sleep(1)
        async with fresh.acquire():
            pass
        await trio.sleep(1)
        async with (
            cache.scheduling_group("side", capacity=2, shares=300),
            f.acquire() as lease,
        ):
            await lease.call(1)
            inside = snapshot(cache)
        assert inside.residents == (
            _resident(number=1, group="main", order=0, last_used=now),
            _resident(
                number=2,
                function="fresh",
                group="main",
                order=1,
                seat=True,
                size=PAGE,
                last_used=now + 1,
                address_space=0,
                mappings=0,
            ),
            _resident(number=3, group="side", state="running", uses=0),
        )
        assert inside.residents_of("fresh") == inside.residents[1:2]
        assert inside.group("main") == _group(name="main", capacity=cache.config.main_capacity)
        assert inside.groups == (
            inside.group("main"),
            _group(
                name="side",
                capacity=2,
                shares=300,
                tokens=1,
                tasks=1,
                virtual_time=inside.group("side").virtual_time,
            ),
        )
        assert inside.group("side").virtual_time > 0
        with pytest.raises(LookupError, match="no group 'gone' is open, only"):
            inside.group("gone")
        one, other = inside.modules
        assert one == ModuleSnapshot(
            digest=f.module_digest,
            functions=("f(i64)",),
            artifact_size=one.artifact_size,
            code_size=f.code_size,
            loaded=True,
            users=2,
            running=1,
        )
        assert (other.functions, other.users, other.running) == (("fresh(i64)",), 1, 0)
        assert (inside.loop.slots, inside.loop.taken, inside.loop.waiting) == (1, 0, 0)
        assert inside.threads == TurnsSnapshot(slots=3, taken=0, waiting=0, begun=0)
        assert (inside.closed, inside.reserved) == (False, ())
        assert inside.compiles == CompilesSnapshot(running=0, waiting=0)
        assert inside.native == NativeSnapshot(
            instances=2, modules=2, scratch_size=0, results_size=0, pending_results_size=0
        )
        assert inside == inside
        assert snapshot(cache) != inside  # the lease has ended
    assert snapshot(cache).closed
    assert (snapshot(cache).residents, snapshot(cache).native.instances) == ((), 0)


async def test_a_snapshot_shows_who_waits_and_what_is_on_the_way(fake: FakeKit) -> None:
    """For tokens, for instances and for room; what loads, and the names that are taken."""
    config = CacheConfig(main_capacity=3, max_running_size=60 * MiB)
    async with fake.open(config) as cache, trio.open_nursery() as nursery:
        await add(cache, "f", fake.adding(1))
        await add(cache, "g", fake.adding(2))

        async def hold(name: str) -> None:
            async with cache.acquire(name, ("i64",)):
                await trio.sleep_forever()

        for name in ("f", "f", "g", "g"):
            nursery.start_soon(hold, name)
            await wait_all_tasks_blocked()
        main = snapshot(cache).group("main")
        assert (main.tokens, main.tasks, main.waiting_for_token) == (3, 3, 1)
        assert (main.waiting_for_instance, main.waiting_for_room) == (1, 1)
        nursery.cancel_scope.cancel()
    async with fake.open() as cache:
        reserved, loading = [], []

        class Looking(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                inside = snapshot(cache)
                reserved.append(inside.reserved)
                loading.extend(one.state for one in inside.residents)

        looking = Looking()
        trio.lowlevel.add_instrument(looking)
        await add(cache, "f", fake.adding(1))
        async with cache.acquire("f", ("i64",)):
            pass
        await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(looking)
        assert (reserved[0], reserved[-1]) == (("f(i64)",), ())
        assert loading[0] == "loading"
        assert loading[-1] == "idle"


async def test_a_snapshot_of_another_thread_is_refused(fake: FakeKit) -> None:
    """As `stats` is: it would read the books in the middle of a step."""
    async with fake.open() as cache:
        with pytest.raises(RuntimeError, match="snapshot"):
            await trio.to_thread.run_sync(snapshot, cache)


def test_every_field_of_a_snapshot_says_what_it_is() -> None:
    """Below each stands a docstring; and nothing can be assigned."""
    tree = ast.parse(Path(metrics.__file__).read_text(encoding="utf-8"))
    for made in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, after in itertools.pairwise(made.body):
            if isinstance(field, ast.AnnAssign):
                assert isinstance(after, ast.Expr), f"{made.name}.{ast.unparse(field.target)}"
        assert made.body[-1].__class__ is not ast.AnnAssign
    with pytest.raises(FrozenInstanceError):
        TurnsSnapshot(slots=1, taken=0, waiting=0, begun=0).taken = 1  # type: ignore[misc]


def _resident(**changes: Any) -> ResidentSnapshot:
    fields = {
        "function": "f",
        "args": ("i64",),
        "generation": 1,
        "state": "idle",
        "seat": False,
        "size": 3 * PAGE,
        "address_space": 8192,
        "mappings": 3,
        "uses": 1,
        "last_used": None,
        "order": None,
    }
    return ResidentSnapshot(**{**fields, **changes})


def _group(**changes: Any) -> GroupSnapshot:
    fields = {
        "closed": False,
        "shares": 100,
        "virtual_time": 0.0,
        "tokens": 0,
        "tasks": 0,
        "waiting_for_token": 0,
        "waiting_for_instance": 0,
        "waiting_for_room": 0,
    }
    return GroupSnapshot(**{**fields, **changes})
