"""Functions that are prepared: calls made once, whose effects every instance begins with."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import trio
from contract.test_fail_everywhere import fail_everywhere, trying
from kits import COSTLY, FakeKit, Kit, ListLogger, add
from staging import stage
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CacheConfig,
    HostFunction,
    InstanceCache,
    LoadError,
    Prepare,
    TrapError,
    UnknownFunctionError,
    WasmCacheError,
    current_group,
    current_lease,
)

SLICE = COSTLY // 3
ONCE = (Prepare("run", (5,), ("i64",), "i64"),)
ISOLATIONS = ("reuse", "reset", "fresh")


def noting(kit: Kit, **more: Any) -> dict[str, Any]:
    """What registers a guest that writes its argument into its memory, by its host function."""

    def note(value: int) -> int:
        lease = current_lease()
        before = lease.memory.read(100, 8)
        lease.memory.write(100, value.to_bytes(8, "little"))
        return int.from_bytes(before, "little")

    host = HostFunction(note, ("i64",), ("i64",), pure=True)
    return {"wasm": kit.asking(), "imports": {"host": {"ask": host}}, **more}


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_every_instance_begins_as_the_calls_left_one(kit: Kit, isolation: Any) -> None:
    """The first call in each finds what was written once, and no later lease what others wrote."""
    async with kit.open() as cache:
        f = await add(cache, "f", **noting(kit), prepare=ONCE, isolation=isolation, concurrency=2)
        found = []
        for _ in range(2):
            async with f.acquire() as one, f.acquire() as two:
                found.append({await one.call(7), await two.call(8)})
        assert found == [{5}, {7, 8} if isolation == "reuse" else {5}]
        assert "begin as 1 call of prepare left one" in f.isolation_verdict


async def test_the_log_says_what_it_took(kit: Kit) -> None:
    """One event, before that of the registration, which has the facts; equal ones share it."""
    logger = ListLogger()
    async with kit.open(logger=logger) as cache:
        given = noting(kit)
        async with cache.scheduling_group("tenant", capacity=1):
            await add(cache, "f", **given, prepare=ONCE)
        await add(cache, "g", **given, prepare=ONCE)
    names = [name for _, name, _ in logger.lines]
    assert names.index("wasmcache.prepared") < names.index("wasmcache.registered")
    (event,) = logger.fields("prepared")
    assert event["group"] == "tenant"
    assert (event["function"], event["calls"], event["pages"]) == ("f", 1, 1)
    assert event["fuel"] > 0 and 0 < event["added_bytes"] <= 65536
    assert (event["frozen"], event["stored"]) == (None, False)
    first, second = logger.fields("registered")
    assert first["module_number"] == second["module_number"]
    assert first["module_digest"] == second["module_digest"]


async def test_an_unprepared_function_of_the_same_bytes_has_a_module_of_its_own(kit: Kit) -> None:
    """Its instances begin as the module says."""
    async with kit.open() as cache:
        given = noting(kit)
        f = await add(cache, "f", **given, prepare=ONCE)
        g = await add(cache, "g", **given)
        h = await add(cache, "h", **given, prepare=(Prepare("run", (6,), ("i64",), "i64"),))
        assert [await one.call(1) for one in (f, g, h)] == [5, 0, 6]
        assert f.module_digest == g.module_digest == h.module_digest


async def test_a_host_function_that_is_not_pure_is_refused(kit: Kit) -> None:
    """By its name, with the call and the remedy; nothing of the function stays."""
    async with kit.open() as cache:
        host = HostFunction(lambda value: value, ("i64",), ("i64",))
        with pytest.raises(LoadError, match=r"call 1 of prepare, run\(5\).*host\.ask.*pure=True"):
            await add(cache, "f", kit.asking(), imports={"host": {"ask": host}}, prepare=ONCE)
        assert cache.functions() == ()


@pytest.mark.parametrize("error", [KeyError(5), UnknownFunctionError("g"), ValueError("a", "b")])
async def test_an_error_of_a_pure_host_function_is_unchanged(kit: Kit, error: Exception) -> None:
    """But for notes, which say where and in which call it was raised, and what to do."""
    async with kit.open() as cache:

        def fail(_value: int) -> int:
            raise error

        host = HostFunction(fail, ("i64",), ("i64",), pure=True)
        with pytest.raises(type(error)) as caught:
            await add(cache, "f", kit.asking(), imports={"host": {"ask": host}}, prepare=ONCE)
        where, note = caught.value.__notes__
        assert where == "in host function host.ask, called by run(i64)"
        assert note.startswith("in call 1 of prepare, run(5) of f(i64): ")
        assert note.endswith("let it return a value, or leave the call out of prepare")
        error.__notes__.clear()


async def test_a_trap_is_an_error_of_register(kit: Kit) -> None:
    """Which names the call, and has the guest's own error as its cause."""
    async with kit.open() as cache:
        prepare = (Prepare("run", (None,), ("i64",), "i64"), *ONCE)  # a null is not passed
        words = r"f\(i64\) can't be prepared: call 2 of prepare, run\(5\) failed: .*unreachable"
        with pytest.raises(LoadError, match=words) as caught:
            await add(cache, "f", kit.trapping(), prepare=prepare)
        assert isinstance(caught.value.__cause__, TrapError)
        assert cache.functions() == ()


async def test_a_call_without_end_runs_out_of_fuel(kit: Kit) -> None:
    """`total_fuel` holds for each of the calls."""
    async with kit.open(CacheConfig(total_fuel=3 * COSTLY, yield_fuel=SLICE)) as cache:
        with pytest.raises(LoadError, match=r"call 1 of prepare.*total_fuel"):
            await add(cache, "f", kit.endless(), prepare=ONCE)
        f = await add(cache, "f", kit.costly(), prepare=ONCE * 4)
        assert await f.call(3) == 3


async def test_the_group_of_the_caller_is_charged(kit: Kit) -> None:
    """As for calls: its share has advanced by what the calls burnt."""
    async with (
        kit.open(CacheConfig(yield_fuel=SLICE)) as cache,
        cache.scheduling_group("tenant", capacity=1),
    ):
        group = current_group()
        assert group is not None and group.name == "tenant"
        before = group._state.share.virtual_time
        await add(cache, "f", kit.costly(), prepare=ONCE)
        assert (group._state.share.virtual_time - before) * group.shares >= COSTLY


async def test_cancelled_everywhere(kit: Kit) -> None:
    """Compiling, starting, between slices, in a host function, reading: all is given back."""
    async with stage(kit, CacheConfig(yield_fuel=SLICE, max_size=0)) as at:
        wasm = kit.costly()

        async def scenario() -> None:
            f = await add(at.cache, "f", wasm, prepare=ONCE * 2, replace=True)
            assert await f.call(5) == 5

        await at.run(scenario, least=8)


async def test_cancelled_everywhere_in_a_host_function(kit: Kit) -> None:
    """Which awaits: it is cancelled, and the instance is closed."""
    async with stage(kit, CacheConfig(max_size=0)) as at:

        async def ask(value: int) -> int:
            await trio.lowlevel.checkpoint()
            return value

        host = HostFunction(ask, ("i64",), ("i64",), pure=True)
        wasm = kit.asking()

        async def scenario() -> None:
            given = {"imports": {"host": {"ask": host}}, "prepare": ONCE, "replace": True}
            f = await add(at.cache, "f", wasm, **given)
            assert await f.call(5) == 5

        await at.run(scenario, least=6)


async def test_whichever_step_fails() -> None:
    """One error comes out of `register`, nothing is left, and the next try works."""

    async def scenario(cache: InstanceCache, kit: FakeKit, errors: list[WasmCacheError]) -> None:
        wasm = kit.adding(1)
        await trying(errors, add(cache, "f", wasm, prepare=ONCE))
        if not cache.functions():
            await add(cache, "f", wasm, prepare=ONCE)

    steps = await fail_everywhere(scenario)
    assert steps == ["compile", "load", "instantiate", "start", "call", "freeze", "compile"]


async def test_a_task_that_waits_for_the_same_goes_on_alone(kit: Kit) -> None:
    """The one that prepares is cancelled: the other one's registration is as good."""
    async with kit.open() as cache, trio.open_nursery() as nursery:
        entered, go_on = trio.Event(), trio.Event()

        async def ask(value: int) -> int:
            entered.set()
            await go_on.wait()
            return value

        host = HostFunction(ask, ("i64",), ("i64",), pure=True)
        given = {"wasm": kit.asking(), "imports": {"host": {"ask": host}}, "prepare": ONCE}
        scope = trio.CancelScope()

        async def first() -> None:
            with scope:
                await add(cache, "f", **given)

        nursery.start_soon(first)
        await entered.wait()
        async with trio.open_nursery() as others:
            others.start_soon(functools.partial(add, cache, "g", **given))
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            go_on.set()
        assert [function.name for function in cache.functions()] == ["g"]


async def test_what_memory_has_grown_by_is_there(kit: Kit) -> None:
    """New instances begin with the grown size, which counts and is limited."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.growing(), prepare=ONCE * 3)
        async with f.acquire() as lease:
            assert lease.memory.size == 4 * 65536
            await lease.call(1)
            assert lease.memory.size == 5 * 65536


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ("run", TypeError, "prepare must be a sequence of Prepare"),
        (("run",), TypeError, r'calls such as Prepare\("init"\)'),
    ],
)
async def test_a_bad_parameter(kit: Kit, bad: Any, error: type[Exception], words: str) -> None:
    """It is refused before anything is read."""
    async with kit.open() as cache:
        with pytest.raises(error, match=words):
            await add(cache, "f", kit.adding(1), prepare=bad)


async def test_long_calls_run_in_threads(kit: Kit) -> None:
    """From their second slice on, as nobody waits for an answer, whatever `offload_after` is."""
    async with kit.open(CacheConfig(yield_fuel=SLICE, offload_after=None)) as cache:
        turns = cache._pool.runner.threads.line
        await add(cache, "f", kit.costly(), prepare=ONCE)
        assert turns.turns > 0
        before = turns.turns
        assert await cache.functions()[0].call(1) == 1
        assert turns.turns == before
