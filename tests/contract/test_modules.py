"""Semantics 11, 12, 13: compiled code, the room it takes, and how it makes room."""

from __future__ import annotations

import mmap

import pytest
import trio
from kits import FakeKit, Kit, ListLogger, add, stack_of
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import (
    CodeMemoryError,
    DuplicateFunctionError,
    ExportError,
    InstanceCache,
    InvalidModuleError,
    LinkError,
    MiB,
)
from trio_wasmcache.testing import check_invariants, snapshot


async def test_11_code_size_is_whole_system_pages(kit: Kit) -> None:
    """And it is booked while the module is loaded, with a stack for each running instance."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        assert f.code_size > 0
        assert f.code_size % mmap.PAGESIZE == 0
        assert cache.stats().code_size == 0
        async with f.acquire():
            assert cache.stats().code_size == f.code_size + stack_of(cache)
        assert cache.stats().code_size == f.code_size


async def test_11_functions_of_the_same_bytes_share_one_module(kit: Kit) -> None:
    """Its code is booked once, and unloaded when the last function's last instance goes."""
    async with kit.open() as cache:
        wasm = kit.adding(1)
        f = await add(cache, "f", wasm)
        g = await add(cache, "g", wasm)
        assert f.module_digest == g.module_digest
        await f.call(1)
        await g.call(1)
        assert cache.stats().loaded_modules == 1
        assert cache.stats().code_size == f.code_size
        cache.remove("f")
        assert cache.stats().loaded_modules == 1
        cache.remove("g")
        assert cache.stats().loaded_modules == 0
        check_invariants(cache)


async def test_11_a_module_is_compiled_once_however_many_ask(fake: FakeKit) -> None:
    """Ten registrations at the same time, and one later, take one native compile."""
    async with fake.open() as cache:
        wasm = fake.adding(1)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(add, cache, f"f{number}", wasm)
        await add(cache, "later", wasm)
        assert fake.engine.steps == ["compile"]
        assert len(cache.functions()) == 11
        assert await cache.functions()[3].call(1) == 2


async def test_11_who_shares_a_failed_compile_gets_an_error_of_its_own(kit: Kit) -> None:
    """Two registrations of the same bad bytes at the same time: each message names its function."""
    async with kit.open() as cache:
        wasm = kit.asking()
        messages: dict[str, str] = {}

        async def register(name: str) -> None:
            with pytest.raises(LinkError) as caught:
                await add(cache, name, wasm)
            messages[name] = str(caught.value)

        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):
                nursery.start_soon(register, name)
        for name in ("one", "two"):
            assert messages[name].startswith(f"{name}(i64)")
            assert "host.ask" in messages[name]
        assert cache.functions() == ()


async def test_11_a_compile_that_nobody_waits_for_is_abandoned() -> None:
    """Unless it was just finished, which depends on the order in which Trio runs tasks."""
    steps = set()
    for _ in range(30):
        fake = FakeKit()
        async with fake.open() as cache:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(add, cache, "f", fake.adding(1))
                while not cache._compiler._compiling:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await wait_all_tasks_blocked()
            assert not cache._compiler._compiling
            assert cache.stats().artifact_size == 0
            steps.add(tuple(fake.engine.steps))
    assert () in steps


async def test_11_cancelling_one_of_two_registrations_leaves_the_compile(fake: FakeKit) -> None:
    """The other still gets the module; only the last one to give up abandons the compile."""
    async with fake.open() as cache:
        wasm = fake.adding(1)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(add, cache, "first", wasm)
                await trio.lowlevel.checkpoint()
                scope.cancel()
        await add(cache, "second", wasm)
        assert [function.name for function in cache.functions()] == ["second"]


async def use_all(cache: InstanceCache, *names: str) -> None:
    for name in names:
        async with cache.acquire(name, ("i64",)) as lease:
            await lease.call(1)


async def test_12_whole_modules_go_least_recently_used_first(kit: Kit, log: ListLogger) -> None:
    """For the code of one more, the module used longest ago goes, and no other."""
    async with kit.open(logger=log) as cache:
        a, b, c, d = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abcd")]
        await use_all(cache, "a", "b", "c", "a")
        code = a.code_size + b.code_size + c.code_size
        cache.resize(max_code_size=code + stack_of(cache))
        async with d.acquire():
            assert [fields["function"] for fields in log.fields("evicted")] == ["b"]
            check_invariants(cache)
    (freed,) = [fields for fields in log.fields("evicted") if fields["reason"] == "code"]
    assert freed["freed_code_bytes"] == b.code_size


async def test_12_no_instance_goes_whose_going_frees_no_code(kit: Kit, log: ListLogger) -> None:
    """The least recently used shares its module with a running one, so it stays."""
    async with kit.open(logger=log) as cache:
        shared = kit.adding(1)
        pinned = await add(cache, "pinned", shared)
        running = await add(cache, "running", shared)
        free = await add(cache, "free", kit.adding(2))
        new = await add(cache, "new", kit.adding(3))
        await use_all(cache, "pinned", "free")
        stack = stack_of(cache)
        cache.resize(max_code_size=pinned.code_size + free.code_size + 2 * stack)
        async with running.acquire(), new.acquire():
            assert [fields["function"] for fields in log.fields("evicted")] == ["free"]
            assert {info.function for info in cache.entries()} == {"pinned", "running", "new"}
            check_invariants(cache)


async def test_12_all_instances_of_a_module_go_together(kit: Kit, log: ListLogger) -> None:
    """Two functions of one module, in two groups: its code goes only with both."""
    async with kit.open(logger=log) as cache:
        shared = kit.adding(1)
        f = await add(cache, "f", shared)
        await add(cache, "g", shared)
        new = await add(cache, "new", kit.adding(2))
        async with cache.scheduling_group("other", capacity=1):
            await use_all(cache, "g")
            f_main = cache._groups.main_group.acquire("f", ("i64",))
            async with f_main:
                pass
            cache.resize(max_code_size=max(f.code_size, new.code_size) + stack_of(cache))
            async with new.acquire():
                assert sorted(fields["function"] for fields in log.fields("evicted")) == ["f", "g"]
                assert cache.stats().loaded_modules == 1
                check_invariants(cache)


async def test_12_if_eviction_cannot_help_nothing_goes_and_the_acquire_waits(
    kit: Kit, log: ListLogger
) -> None:
    """Idle instances are left alone; the waiter goes on as soon as a running lease ends."""
    async with kit.open(logger=log) as cache:
        a, b, c = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abc")]
        await use_all(cache, "b")
        stack = stack_of(cache)
        done: list[int] = []

        async def waiter() -> None:
            async with c.acquire() as lease:
                done.append(await lease.call(1))

        async with trio.open_nursery() as nursery:
            async with a.acquire():
                # Room for a's code and stack and b's code; even without b, not for c's stack.
                cache.resize(max_code_size=a.code_size + max(b.code_size, c.code_size) + stack)
                nursery.start_soon(waiter)
                await wait_all_tasks_blocked()
                assert done == []
                assert cache.stats().blocks == cache.stats().waiting == 1
                assert log.fields("evicted") == []
                check_invariants(cache)
        assert done == [3]


async def test_12_waiters_for_room_are_served_in_order(kit: Kit) -> None:
    """Also the one that would fit by now does not overtake those before it."""
    async with kit.open() as cache:
        functions = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abcd")]
        order: list[str] = []

        async def use(name: str) -> None:
            async with cache.acquire(name, ("i64",)):
                order.append(name)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            async with functions[0].acquire():
                code = max(function.code_size for function in functions)
                cache.resize(max_code_size=code + stack_of(cache))
                for name in ("b", "c", "d"):
                    nursery.start_soon(use, name)
                    await wait_all_tasks_blocked()
                assert cache.stats().waiting == 3
                check_invariants(cache)
        assert order == ["b", "c", "d"]


async def test_12_who_comes_later_does_not_overtake_those_who_wait_for_room(
    fake: FakeKit,
) -> None:
    """Although there is room for the small one at once, the large one before it goes first."""
    async with fake.open() as cache:
        a = await add(cache, "a", fake.adding(1))
        stack = stack_of(cache)
        large = await add(cache, "large", fake.engine.module(code_size=2 * stack))
        small = await add(cache, "small", fake.adding(3))
        # Enough for the large one alone, or for both others.
        assert a.code_size + small.code_size + 2 * stack < large.code_size + stack
        cache.resize(max_code_size=large.code_size + stack + small.code_size)
        order: list[str] = []

        async def use(name: str) -> None:
            async with cache.acquire(name, ("i64",)):
                order.append(name)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            async with a.acquire():
                for name in ("large", "small"):
                    nursery.start_soon(use, name)
                    await wait_all_tasks_blocked()
                assert order == []
                check_invariants(cache)
        assert order == ["large", "small"]


async def test_12_its_own_code_is_no_room_for_it(fake: FakeKit) -> None:
    """What is asked for can't make room by going itself: so it waits, and stays."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.engine.module(code_size=1 * MiB))
        g = await add(cache, "g", fake.adding(1))
        await f.call(1)
        done: list[str] = []

        async def use() -> None:
            async with f.acquire():
                done.append("f")

        async with trio.open_nursery() as nursery, g.acquire():
            cache.resize(max_code_size=f.code_size + g.code_size + stack_of(cache))
            nursery.start_soon(use)
            await wait_all_tasks_blocked()
            assert done == []
            assert cache.stats().idle_instances == 1
            check_invariants(cache)
        assert done == ["f"]
        assert cache.stats().hits == 1


async def test_12_what_would_not_fit_an_empty_budget_is_refused(kit: Kit) -> None:
    """At once, evicting nothing; the message names the function and the limit."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        limit = f.code_size + stack_of(cache) - 1
        cache.resize(max_code_size=limit)
        with pytest.raises(CodeMemoryError, match=rf"f\(i64\).*{limit}"):
            await f.call(1)
        check_invariants(cache)
        assert cache.stats().entries == 0
        cache.resize(max_code_size=limit + 1)
        assert await f.call(1) == 2
        assert g.code_size >= 0


async def test_12_max_instances_evicts_the_least_recently_used(kit: Kit, log: ListLogger) -> None:
    """At most so many live at the same time; when all of them run, an acquire waits."""
    async with kit.open(logger=log) as cache:
        a, b, c = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abc")]
        cache.resize(max_instances=2)
        await use_all(cache, "a", "b", "c")
        assert [fields["function"] for fields in log.fields("evicted")] == ["a"]
        assert log.reasons() == ["count"]
        done: list[str] = []

        async def use() -> None:
            async with a.acquire():
                done.append("a")

        async with trio.open_nursery() as nursery:
            async with b.acquire(), c.acquire():
                nursery.start_soon(use)
                await wait_all_tasks_blocked()
                assert done == []
                check_invariants(cache)
        assert done == ["a"]


async def test_13_the_name_is_reserved_from_the_start_of_register(kit: Kit) -> None:
    """While the first one compiles, a second registration is refused, and the first is served."""
    async with kit.open() as cache, trio.open_nursery() as nursery:
        nursery.start_soon(add, cache, "f", kit.adding(1))
        while not snapshot(cache).reserved:
            await trio.lowlevel.checkpoint()
        with pytest.raises(DuplicateFunctionError, match=r"f\(i64\)"):
            await add(cache, "f", kit.adding(2))
        with pytest.raises(DuplicateFunctionError, match=r"f\(i64\)"):
            await add(cache, "f", kit.adding(2), replace=True)
        while not cache.functions():
            await trio.lowlevel.checkpoint()
        assert await cache.functions()[0].call(1) == 2


async def test_13_a_refused_registration_leaves_nothing(kit: Kit) -> None:
    """The name is free again, and the module of the refused one is not kept."""
    async with kit.open() as cache:
        with pytest.raises(InvalidModuleError):
            await add(cache, "f", b"\0asm but not really")
        with pytest.raises(ExportError, match=r"f\(i64\).*'walk'.*'run'"):
            await add(cache, "f", kit.adding(1), export="walk")
        assert cache.functions() == ()
        assert cache.stats().artifact_size == 0
        f = await add(cache, "f", kit.adding(1))
        assert f.generation == 1


async def test_13_while_a_replacement_compiles_the_old_generation_serves(kit: Kit) -> None:
    """Hits go on on the old one until the new one is there."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)

        async def replace() -> None:
            await add(cache, "f", kit.adding(2), replace=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace)
            while not snapshot(cache).reserved:
                await trio.lowlevel.checkpoint()
            async with f.acquire() as lease:
                assert lease.function.generation == 1
                assert await lease.call(1) == 2
        assert await f.call(1) == 3
        assert cache.stats().hits == 1


async def test_13_a_replacement_that_is_refused_leaves_the_old_generation(kit: Kit) -> None:
    """Instances and all."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        with pytest.raises(InvalidModuleError):
            await add(cache, "f", b"\0asm but not really", replace=True)
        assert await f.call(1) == 2
        assert cache.stats().hits == 1
        assert cache.functions()[0].generation == 1
