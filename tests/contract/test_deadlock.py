"""Semantics 3: a wait that could never end is refused at once, and only such a wait."""

from __future__ import annotations

import pytest
import trio
from kits import FakeKit, Kit, add, add_asking, stack_of
from trio.testing import Sequencer, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, DeadlockError, MiB, WasmCacheError
from trio_wasmcache.testing import check_invariants


async def test_3_a_task_that_wants_what_it_holds_is_refused(kit: Kit) -> None:
    """The message names the chain, and the lease it has goes on."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:
            with pytest.raises(DeadlockError, match=r"an instance of f\(i64\)") as caught:
                async with f.acquire():
                    raise AssertionError("granted")
            assert len(caught.value.chain) == 1
            assert await lease.call(1) == 2
            check_invariants(cache)
        assert cache.stats().blocks == 0
        assert await f.call(1) == 2


async def test_3_two_tasks_that_want_each_others_function(kit: Kit) -> None:
    """Exactly one gets the error, and with it gone the other goes on."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        sequence = Sequencer()
        outcomes: list[str] = []

        async def use(mine: object, others: object, place: int) -> None:
            try:
                async with mine.acquire():  # type: ignore[attr-defined]
                    async with sequence(place):
                        pass
                    async with sequence(place + 2):
                        pass
                    async with others.acquire() as lease:  # type: ignore[attr-defined]
                        await lease.call(1)
                        outcomes.append("done")
            except DeadlockError as error:
                outcomes.append(f"deadlock of {len(error.chain)}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use, f, g, 0)
            nursery.start_soon(use, g, f, 1)
        assert outcomes == ["deadlock of 2", "done"]
        check_invariants(cache)


async def test_3_a_chain_of_three_is_found_and_told(kit: Kit) -> None:
    """The error says who waits for what, from the task that got it around to itself."""
    async with kit.open() as cache:
        functions = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abc")]
        started = [trio.Event() for _ in functions]
        chains: list[tuple[str, ...]] = []

        async def use(number: int) -> None:
            async with functions[number].acquire():
                started[number].set()
                for event in started:
                    await event.wait()
                try:
                    async with functions[(number + 1) % 3].acquire():
                        pass
                except DeadlockError as error:
                    chains.append(error.chain)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(use, number)
        assert len(chains) == 1
        assert len(chains[0]) == 3
        for name in "abc":
            assert any(f"an instance of {name}(i64)" in line for line in chains[0])


async def test_3_a_wait_that_others_can_end_is_no_deadlock(kit: Kit) -> None:
    """With concurrency 2, one holder that is free to go on is enough."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        release = trio.Event()

        async def hold() -> None:
            async with f.acquire():
                await release.wait()

        async def release_later() -> None:
            await wait_all_tasks_blocked()
            release.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await wait_all_tasks_blocked()
            async with f.acquire():
                nursery.start_soon(release_later)
                async with f.acquire() as lease:
                    assert await lease.call(1) == 2
        check_invariants(cache)


async def test_3_all_holders_waiting_is_a_deadlock(kit: Kit) -> None:
    """With concurrency 2 and both held by one task, its third acquire is refused."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=2)
        async with f.acquire(), f.acquire():
            with pytest.raises(DeadlockError):
                await f.call(1)


async def test_3_waiting_for_room_that_the_waiter_itself_takes(kit: Kit) -> None:
    """A nested lease whose stack does not fit beside its own first one is refused."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        cache.resize(max_code_size=f.code_size + g.code_size + stack_of(cache))
        async with f.acquire() as lease:
            with pytest.raises(DeadlockError, match="room"):
                await g.call(1)
            check_invariants(cache)
            assert await lease.call(1) == 2
        assert await g.call(1) == 3


async def test_3_when_the_last_who_could_release_is_gone_a_waiter_is_told(kit: Kit) -> None:
    """Two wait for room, each with a lease; when the third lease ends without making enough."""
    async with kit.open() as cache:
        a, b, c = [await add(cache, n, kit.adding(i)) for i, n in enumerate("abc")]
        big = [await add(cache, n, kit.adding(i)) for i, n in enumerate("xy", start=10)]
        stack = stack_of(cache)
        outcomes: list[str] = []

        async def nest(outer: object, inner: object) -> None:
            try:
                async with outer.acquire(), inner.acquire():  # type: ignore[attr-defined]
                    outcomes.append("done")
            except DeadlockError:
                outcomes.append("deadlock")

        async with trio.open_nursery() as nursery:
            async with c.acquire():
                code = a.code_size + b.code_size + c.code_size
                cache.resize(max_code_size=code + 3 * stack)
                nursery.start_soon(nest, a, big[0])
                nursery.start_soon(nest, b, big[1])
                await wait_all_tasks_blocked()
                assert outcomes == []
                assert cache.stats().waiting == 2
                cache.resize(max_code_size=code + 2 * stack)
                check_invariants(cache)
        assert sorted(outcomes) == ["deadlock", "done"]


async def test_3_a_token_that_never_comes(kit: Kit) -> None:
    """One holds the only token and wants an instance whose holder waits for that token."""
    async with kit.open() as cache:
        await add(cache, "f", kit.adding(1))
        outcomes: list[str] = []
        async with (
            cache.scheduling_group("one", capacity=1) as one,
            cache.scheduling_group("two", capacity=1) as two,
            trio.open_nursery() as nursery,
        ):
            ready = [trio.Event(), trio.Event()]

            async def use(number: int) -> None:
                mine, other = (one, two) if number == 0 else (two, one)
                try:
                    async with mine.acquire("f", ("i64",)):
                        ready[number].set()
                        await ready[1 - number].wait()
                        async with other.acquire("f", ("i64",)):
                            outcomes.append("done")
                except DeadlockError as error:
                    outcomes.append("token" if "a token of group" in str(error) else "?")

            nursery.start_soon(use, 0)
            nursery.start_soon(use, 1)
        assert sorted(outcomes) == ["done", "token"]


async def test_3_nested_acquires_at_capacity_one_work(kit: Kit) -> None:
    """Ten tasks, one token, each nesting two functions: all finish."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        g = await add(cache, "g", kit.adding(2))
        results: list[int] = []

        async def use() -> None:
            async with f.acquire() as outer, g.acquire() as inner:
                results.append(await inner.call(await outer.call(1)))

        async with cache.scheduling_group("small", capacity=1) as group:
            for _ in range(10):
                group.start_soon(use)
        assert results == [4] * 10


async def test_3_four_tasks_at_capacity_four_that_nest_one_more_finish(kit: Kit) -> None:
    """Whoever waits for a token holds nothing, so nested leases can't starve each other."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), concurrency=4)
        g = await add(cache, "g", kit.adding(2), concurrency=4)
        results: list[int] = []
        ready = 0
        all_ready = trio.Event()

        async def use() -> None:
            nonlocal ready
            async with f.acquire() as outer:
                ready += 1
                if ready == 4:
                    all_ready.set()
                await all_ready.wait()
                async with g.acquire() as inner:
                    results.append(await inner.call(await outer.call(1)))

        async with cache.scheduling_group("four", capacity=4) as group:
            for _ in range(4):
                group.start_soon(use)
        assert results == [4] * 4


async def test_3_a_host_function_that_waits_for_itself_is_refused(kit: Kit) -> None:
    """The guest's instance is held by the task that asks: its own call would never end."""
    async with kit.open() as cache:

        async def ask(value: int) -> int:
            async with cache.acquire("asks", ("i64",)) as lease:
                result: int = await lease.call(value)
            return result

        f = await add_asking(cache, kit, ask)
        with pytest.raises(DeadlockError):
            await f.call(1)
        assert issubclass(DeadlockError, WasmCacheError)
        check_invariants(cache)


async def test_3_a_token_that_was_just_granted_is_no_deadlock(kit: Kit) -> None:
    """Its new owner has not run yet, but it will, and may give way: so waiting is not in vain."""
    async with kit.open() as cache:
        for number, name in enumerate("wxyz"):
            await add(cache, name, kit.adding(number))
        async with (
            cache.scheduling_group("outer", capacity=9) as outer,
            cache.scheduling_group("inner", capacity=2) as inner,
            trio.open_nursery() as nursery,
        ):
            x, y = outer.acquire("x", ("i64",)), outer.acquire("y", ("i64",))
            release = trio.Event()
            done: list[str] = []

            async def patient(name: str) -> None:
                """Waits for an inner token, and so far holds nothing else."""
                async with inner.acquire(name, ("i64",)):
                    done.append("patient")

            async def holds_token_wants_y() -> None:
                async with inner.acquire("z", ("i64",)), outer.acquire("y", ("i64",)):
                    done.append("d")

            async def holds_x_wants_token() -> None:
                async with x, inner.acquire("w", ("i64",)):
                    done.append("c")

            async def holds_y_wants_x() -> None:
                async with y:
                    await release.wait()
                    await e.__aexit__(None, None, None)  # its token goes to `patient`
                    async with outer.acquire("x", ("i64",)):
                        done.append("b")

            e = inner.acquire("y", ("i64",))
            await e.__aenter__()
            nursery.start_soon(holds_y_wants_x)
            await wait_all_tasks_blocked()
            for use in (holds_token_wants_y, lambda: patient("x"), holds_x_wants_token):
                nursery.start_soon(use)
                await wait_all_tasks_blocked()
            check_invariants(cache)
            release.set()
        assert sorted(done) == ["b", "c", "d", "patient"]


async def test_3_a_token_that_the_application_uses_itself_is_no_deadlock(kit: Kit) -> None:
    """Whoever borrowed from `group.limiter` for other things may give it back."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        results: list[int] = []
        async with cache.scheduling_group("g", capacity=1) as group:
            await group.limiter.acquire_on_behalf_of("something else")

            async def use() -> None:
                results.append(await f.call(1))

            group.start_soon(use)
            await wait_all_tasks_blocked()
            assert results == []
            group.limiter.release_on_behalf_of("something else")
        assert results == [2]


async def test_3_the_message_of_a_long_chain_is_cut(fake: FakeKit) -> None:
    """It has the first and the last of it, and says how many are between; `chain` has all."""
    number = 200
    async with fake.open(CacheConfig(max_code_size=1024 * MiB)) as cache:
        functions = [await add(cache, f"f{n}", fake.adding(n)) for n in range(number)]
        go = trio.Event()

        async def use(place: int) -> None:
            async with functions[place].acquire():
                await go.wait()
                async with functions[(place + 1) % number].acquire():
                    pass

        async with trio.open_nursery() as nursery:
            for place in range(1, number):
                nursery.start_soon(use, place, name=f"task {place} {'x' * 1000}")
            async with functions[0].acquire():
                await wait_all_tasks_blocked()
                go.set()
                await wait_all_tasks_blocked()
                with pytest.raises(DeadlockError) as caught:
                    async with functions[1].acquire():
                        raise AssertionError("granted")
        message, chain = str(caught.value), caught.value.chain
        assert len(chain) == number
        shown = [line for line in chain if line in message]
        assert shown == [*chain[:4], *chain[-3:]]
        assert f"{number - 7} more tasks wait likewise" in message
        assert len(message) < 3000
        check_invariants(cache)
