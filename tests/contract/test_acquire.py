"""Semantics 1, 2, 4, 6, 7: how a lease is found, waited for and granted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from kits import Kit, add, add_asking, stack_of
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, LoadError, UnknownFunctionError
from trio_wasmcache.testing import check_invariants


async def test_1_a_function_is_found_by_its_exact_name_and_types(kit: Kit) -> None:
    """Overloads are separate functions, told apart by their argument types."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        await add(cache, "f", kit.adding_two(), args=("i64", "i64"))
        async with cache.acquire("f", ("i64",)) as one:
            assert await one.call(10) == 11
            assert one.function.args == ("i64",)
        async with cache.acquire("f", ("i64", "i64")) as two:
            assert await two.call(10, 20) == 30


async def test_1_types_may_be_left_out_where_there_is_no_overload(kit: Kit) -> None:
    """The name suffices while one function has it; a hit takes the same short way as with types."""

    async def gives(result: int) -> None:
        async with cache.acquire("f") as lease:
            assert lease.function.name == "f"
            assert await lease.call(*(1,) * len(lease.function.args)) == result
        only = cache.functions()[0] if len(cache.functions()) == 1 else None
        if only is not None:
            exact = cache._pool.exact
            assert exact["f", None] is exact["f", only.args]

    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        await gives(2)
        await gives(2)
        assert (cache.stats().hits, cache.stats().misses) == (1, 1)
        await cache.warm("f")
        await add(cache, "f", kit.adding(5), replace=True)
        await gives(6)
        await add(cache, "f", kit.adding_two(), args=("i64", "i64"))
        said = (
            "there are 2 functions f: f(i64), f(i64, i64); give the types of the arguments of one, "
            'such as args=("i64",)'
        )
        group = cache.scheduling_group("other", capacity=1)
        async with group as other:
            for lease in (cache.acquire("f"), other.acquire("f")):
                with pytest.raises(UnknownFunctionError) as caught:
                    await lease.__aenter__()
                assert str(caught.value) == said
        with pytest.raises(UnknownFunctionError, match="there are 2 functions f"):
            await cache.warm("f")
        cache.remove("f", ("i64",))
        await gives(2)
        async with cache.scheduling_group("third", capacity=1) as other:
            async with other.acquire("f") as lease:
                assert await lease.call(1, 2) == 3
        cache.remove("f")
        with pytest.raises(UnknownFunctionError, match=r"^no function f is registered$"):
            await cache.acquire("f").__aenter__()
        await add(cache, "g", kit.adding(1))
        with pytest.raises(UnknownFunctionError, match=r"did you mean g\(i64\)\?$"):
            await cache.acquire("gg").__aenter__()
        assert cache._pool.exact.keys() == {("g", None), ("g", ("i64",))}
        check_invariants(cache)


async def test_1_types_are_normalised_on_a_miss(kit: Kit) -> None:
    """Types spelt in another way, or given as a list, name the same function."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        for spelling in ((" I64",), ["i64"], ("i 64",)):
            async with cache.acquire("f", spelling) as lease:
                assert await lease.call(1) == 2
        assert cache.stats().entries == 1
        assert (cache.stats().hits, cache.stats().misses) == (2, 1)


async def test_1_types_are_normalised_in_line(kit: Kit) -> None:
    """As given as a list, left out or spelt in another way while others wait for the function."""
    async with kit.open() as cache, trio.open_nursery() as nursery:
        await add(cache, "f", kit.adding(1))
        results: list[int] = []

        async def use(args: Sequence[str] | None) -> None:
            async with cache.acquire("f", args) as lease:
                results.append(await lease.call(len(results)))

        async with cache.acquire("f", ("i64",)):
            for args in (("i64",), ["i64"], None, (" I64",)):
                nursery.start_soon(use, args)
                await wait_all_tasks_blocked()
            nursery.start_soon(fails, cache, [], ("i64",))
            nursery.start_soon(fails, cache, [], None)
            await wait_all_tasks_blocked()
            assert cache.stats().waiting == 4
        await wait_all_tasks_blocked()
        assert results == [1, 2, 3, 4]
        check_invariants(cache)


async def test_1_a_lease_ends_with_an_error_of_its_name(kit: Kit) -> None:
    """As one may come from a `__hash__`: whether others wait at that moment or not."""

    class Name(str):
        error: Exception = ValueError("no hash")

        def __hash__(self) -> int:
            raise self.error

    async with kit.open() as cache, trio.open_nursery() as nursery:
        f = await add(cache, "f", kit.adding(1))
        async with cache.acquire("f", ("i64",)):
            for _ in range(2):
                for args in (None, ("i64",)):
                    lease = cache.acquire(Name("f"), args)
                    with pytest.raises(ValueError, match="no hash"):
                        await lease.__aenter__()
                    with pytest.raises(trio.ClosedResourceError):
                        await lease.call(1)
                nursery.start_soon(f.call, 1)
                await wait_all_tasks_blocked()
            assert cache.stats().waiting == 2
        await wait_all_tasks_blocked()
        # All names are compared with it then, as with one that is spelt in another way.
        Name.error = KeyError("no hash")
        async with cache.acquire(Name("f")) as lease:
            assert await lease.call(1) == 2
        check_invariants(cache)


async def fails(cache: InstanceCache, name: object, args: Sequence[str] | None) -> None:
    """Acquire what has no name."""
    with pytest.raises(TypeError, match="a function name must be a str, got "):
        await cache.acquire(name, args).__aenter__()  # type: ignore[arg-type]


async def test_1_an_unknown_function_is_refused_naming_near_misses(kit: Kit) -> None:
    """Nobody waits for what is not registered; the message names what may have been meant."""
    async with kit.open() as cache:
        await add(cache, "distance", kit.adding(1))
        with pytest.raises(UnknownFunctionError, match=r"distanse.*distance\(i64\)"):
            async with cache.acquire("distanse", ("i64",)):
                raise AssertionError("granted")
        with pytest.raises(UnknownFunctionError, match=r"distance\(f64\).*distance\(i64\)"):
            async with cache.acquire("distance", ("f64",)):
                raise AssertionError("granted")
        for name, args in ((5, ("i64",)), ([], ()), (None, ())):
            with pytest.raises(TypeError, match="a function name must be a str, got "):
                await cache.acquire(name, args).__aenter__()  # type: ignore[arg-type]
        check_invariants(cache)


async def test_1_groups_have_instances_of_their_own(kit: Kit) -> None:
    """An idle instance of one group is no hit in another."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        async with cache.scheduling_group("other", capacity=1):
            await f.call(1)
            assert cache.stats().misses == 2
            assert {info.group for info in cache.entries()} == {"main", "other"}
            check_invariants(cache)


async def test_2_a_task_has_one_token_however_many_leases_it_nests(kit: Kit) -> None:
    """At capacity 1, three nested leases work, and hold one token together."""
    async with kit.open() as cache:
        names = ["a", "b", "c"]
        for number, name in enumerate(names):
            await add(cache, name, kit.adding(number))
        async with cache.scheduling_group("small", capacity=1) as group:
            async with (
                cache.acquire("a", ("i64",)) as a,
                cache.acquire("b", ("i64",)) as b,
                cache.acquire("c", ("i64",)) as c,
            ):
                assert group.limiter.borrowed_tokens == 1
                assert [await lease.call(5) for lease in (a, b, c)] == [5, 6, 7]
                check_invariants(cache)
            assert group.limiter.borrowed_tokens == 0


async def test_2_capacity_counts_those_who_wait_for_an_instance(kit: Kit) -> None:
    """With both tokens taken, one by a waiter, a third task does not get at an idle function."""
    async with kit.open() as cache:
        await add(cache, "busy", kit.adding(1))
        await add(cache, "free", kit.adding(2))
        done: list[str] = []

        async def use(name: str) -> None:
            async with cache.acquire(name, ("i64",)):
                done.append(name)

        async with cache.scheduling_group("g", capacity=2) as group:
            async with cache.acquire("busy", ("i64",)):
                group.start_soon(use, "busy")
                await wait_all_tasks_blocked()
                group.start_soon(use, "free")
                await wait_all_tasks_blocked()
                assert done == []
                assert group.limiter.statistics().tasks_waiting == 1
                assert [info.function for info in cache.entries()] == ["busy"]
                assert cache.stats().waiting == 2
                check_invariants(cache)
        assert sorted(done) == ["busy", "free"]


async def test_2_waiters_for_an_instance_are_served_in_order(kit: Kit) -> None:
    """First come, first served, and each is a hit on the instance that came back."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        order: list[int] = []

        async def use(number: int) -> None:
            async with f.acquire():
                order.append(number)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            async with f.acquire():
                for number in range(5):
                    nursery.start_soon(use, number)
                    await wait_all_tasks_blocked()
                assert cache.stats().blocks == 5
                check_invariants(cache)
        assert order == [0, 1, 2, 3, 4]
        assert (cache.stats().hits, cache.stats().misses) == (5, 1)


async def test_2_waiters_for_a_token_are_served_in_order(kit: Kit) -> None:
    """First come, first served, also where capacity is what is short."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=10)
        order: list[int] = []

        async def use(number: int) -> None:
            async with f.acquire():
                order.append(number)

        async with cache.scheduling_group("g", capacity=1) as group:
            async with f.acquire():
                for number in range(4):
                    group.start_soon(use, number)
                    await wait_all_tasks_blocked()
                assert cache.stats().blocks == 4
        assert order == [0, 1, 2, 3]


async def test_4_a_running_instance_counts_no_idle_bytes(kit: Kit) -> None:
    """It leaves the idle list and `total_size` when granted, and comes back when recycled."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        await f.call(1)
        size = cache.stats().total_size
        assert size > 0
        async with f.acquire():
            stats = cache.stats()
            assert (stats.total_size, stats.idle_instances, stats.running_instances) == (0, 0, 1)
            check_invariants(cache)
        assert cache.stats().total_size == size


async def test_4_making_room_never_evicts_the_one_asked_for(kit: Kit) -> None:
    """Although it was used least recently, its neighbour goes to make room for its stack."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        await f.call(1)
        await g.call(1)
        code = f.code_size + g.code_size
        cache.resize(max_code_size=code + stack_of(cache) - 1)
        async with f.acquire():
            assert cache.stats().evictions["stack"] == 1
            assert [info.function for info in cache.entries()] == ["f"]
            check_invariants(cache)
        assert cache.stats().hits == 1


async def test_6_entering_is_a_checkpoint_and_leaving_is_not(kit: Kit) -> None:
    """Both for a miss and for a hit."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        for _ in range(2):
            lease = f.acquire()
            with assert_checkpoints():
                await lease.__aenter__()
            with assert_no_checkpoints():
                await lease.__aexit__(None, None, None)
        assert (cache.stats().hits, cache.stats().misses) == (1, 1)


async def test_6_a_cancelled_acquire_takes_nothing(kit: Kit) -> None:
    """In a cancelled scope nothing is loaded, counted or held."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            async with f.acquire():
                raise AssertionError("granted")
        assert scope.cancelled_caught
        assert cache.stats().entries == cache.stats().misses == 0
        check_invariants(cache)


async def test_6_a_call_checks_for_cancellation_before_the_guest_starts(kit: Kit) -> None:
    """A call in a cancelled scope runs no guest, and so costs no instance."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:
            with trio.CancelScope() as scope:
                scope.cancel()
                await lease.call(1)
            assert scope.cancelled_caught
            assert cache.stats().calls == 0
            assert await lease.call(1) == 2
        assert cache.stats().evictions["corrupted"] == 0


async def test_6_a_short_call_that_has_begun_returns_its_result(kit: Kit) -> None:
    """A host function cancels the scope around the call: the guest ends, so its result counts."""
    async with kit.open(CacheConfig(yield_fuel=10**9)) as cache:
        cache._pool.runner.cpu_clock = lambda: 0.0  # a host function that takes long ends a turn
        scope = trio.CancelScope()

        def ask(value: int) -> int:
            scope.cancel()
            return value * 3

        f = await add_asking(cache, kit, ask)
        async with f.acquire() as lease:
            with scope:
                assert await lease.call(7) == 21
            assert not scope.cancelled_caught


async def test_7_concurrency_loads_another_instance_only_when_none_is_idle(kit: Kit) -> None:
    """With concurrency 2: two live, a third task waits."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        done: list[int] = []

        async def third() -> None:
            async with f.acquire() as lease:
                done.append(await lease.call(1))

        async with trio.open_nursery() as nursery:
            async with f.acquire() as one, f.acquire() as two:
                assert [await one.call(1), await two.call(2)] == [2, 3]
                nursery.start_soon(third)
                await wait_all_tasks_blocked()
                assert done == []
                assert cache.stats().running_instances == 2
                check_invariants(cache)
        assert done == [2]
        assert (cache.stats().hits, cache.stats().misses) == (1, 2)
        assert cache.stats().idle_instances == 2


async def test_7_the_most_recently_used_idle_instance_goes_first(kit: Kit) -> None:
    """Of two idle instances, the one that came back last is granted."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        first, last = f.acquire(), f.acquire()
        await first.__aenter__()
        await last.__aenter__()
        first.memory.write(0, b"first")
        last.memory.write(0, b"last!")
        await first.__aexit__(None, None, None)
        await last.__aexit__(None, None, None)
        async with f.acquire() as again:
            assert again.memory.read(0, 5) == b"last!"


async def test_5_a_failed_load_lets_every_waiter_try_for_itself(kit: Kit) -> None:
    """Each of those queued behind a start function that never ends gets its own error."""
    async with kit.open(CacheConfig(total_fuel=1_000, yield_fuel=400)) as cache:
        f = await add(cache, "f", kit.endless_start())
        errors: list[LoadError] = []

        async def use() -> None:
            with pytest.raises(LoadError) as caught:
                await f.call(1)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(use)
        assert len(errors) == 4
        assert len(set(map(id, errors))) == 4
        assert cache.stats().entries == 0
        check_invariants(cache)
