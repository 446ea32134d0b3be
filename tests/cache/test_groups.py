"""Semantics 16, 17: who is in which scheduling group, and for how long."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
from kits import FakeKit, ListLogger, add
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, SchedulingGroup, current_group
from trio_wasmcache.testing import check_invariants, snapshot

TYPES = ("i64",)


async def test_a_whole_life(fake: FakeKit, log: ListLogger) -> None:
    """Opened, used, closed: as `repr`, `stats`, the log and `current_group` tell it."""
    async with fake.open(logger=log) as cache:
        await add(cache, "f", fake.adding(1))
        assert current_group() is None
        async with cache.scheduling_group("oltp", capacity=8, shares=200) as group:
            assert current_group() is group
            assert (group.name, group.shares) == ("oltp", 200)
            assert group.limiter.total_tokens == 8
            assert cache.stats().groups == 2
            async with cache.acquire("f", TYPES) as lease:
                assert "group 'oltp'" in repr(lease)
                shown = "<SchedulingGroup 'oltp' open: 1 of 8 tokens, 200 shares>"
                assert repr(group) == shown
        assert repr(group) == "<SchedulingGroup 'oltp' closed: 0 of 8 tokens, 200 shares>"
        assert current_group() is None
        assert cache.stats().groups == 1
    opened = [(e["group"], e["capacity_tokens"], e["shares"]) for e in log.fields("group_opened")]
    assert opened == [("main", None, 100), ("oltp", 8, 200)]
    assert [e["group"] for e in log.fields("group_closed")] == ["oltp", "main"]


async def test_start_soon_sets_the_group_whatever_the_callers_context(fake: FakeKit) -> None:
    """Called from another group, the child is in the group that starts it."""
    seen: list[str | None] = []

    async def look() -> None:
        group = current_group()
        seen.append(group and group.name)

    async with fake.open() as cache:
        async with (
            cache.scheduling_group("one", capacity=1) as one,
            cache.scheduling_group("two", capacity=1) as two,
        ):
            one.start_soon(look)
            await wait_all_tasks_blocked()
            two.start_soon(look)
            await wait_all_tasks_blocked()

            async def from_two() -> None:
                one.start_soon(look)
                await look()

            two.start_soon(from_two)
            await wait_all_tasks_blocked()
    assert seen[:2] == ["one", "two"]
    assert sorted(map(str, seen[2:])) == ["one", "two"]


async def test_start_sets_the_group_and_passes_the_value(fake: FakeKit) -> None:
    """As `Nursery.start` does, and the child is in the group before and after `started`."""
    seen: list[str | None] = []

    async def child(value: int, *, task_status: trio.TaskStatus[int]) -> None:
        seen.append(group.name if (group := current_group()) else None)
        task_status.started(value + 1)
        await trio.lowlevel.checkpoint()
        seen.append(group.name if (group := current_group()) else None)

    async with fake.open() as cache:
        async with (
            cache.scheduling_group("one", capacity=1) as one,
            cache.scheduling_group("two", capacity=1),
        ):
            with assert_checkpoints():
                assert await one.start(child, 41, name="my child") == 42
    assert seen == ["one", "one"]


async def test_a_task_can_be_named(fake: FakeKit) -> None:
    """By default it has the name of its function, not of a wrapper."""
    names: list[str] = []

    async def worker() -> None:
        names.append(trio.lowlevel.current_task().name)

    async with fake.open() as cache, cache.scheduling_group("g", capacity=1) as group:
        group.start_soon(worker)
        await wait_all_tasks_blocked()
        group.start_soon(worker, name="special")
    assert names[0].endswith("worker")
    assert names[1] == "special"


async def test_a_plain_nursery_inherits_the_group(fake: FakeKit) -> None:
    """The context variable goes where Trio's contexts go."""
    seen: list[SchedulingGroup | None] = []

    async def look() -> None:
        seen.append(current_group())

    async with fake.open() as cache, trio.open_nursery() as outer:
        async with cache.scheduling_group("g", capacity=1) as group:
            async with trio.open_nursery() as inner:
                inner.start_soon(look)
            outer.start_soon(look)
            await wait_all_tasks_blocked()
        assert seen == [group, group]


async def test_the_innermost_group_of_its_own_cache(fake: FakeKit) -> None:
    """Two caches, each with a group; a cache never uses a group of the other."""
    other_kit = FakeKit()
    async with fake.open() as cache, other_kit.open() as other:
        await add(cache, "f", fake.adding(1))
        await add(other, "f", other_kit.adding(1))
        async with (
            cache.scheduling_group("mine", capacity=1) as mine,
            other.scheduling_group("theirs", capacity=1) as theirs,
        ):
            assert current_group() is theirs
            async with cache.acquire("f", TYPES), other.acquire("f", TYPES):
                assert mine.limiter.borrowed_tokens == 1
                assert theirs.limiter.borrowed_tokens == 1
            async with cache.scheduling_group("inner", capacity=1) as inner:
                async with cache.acquire("f", TYPES):
                    assert inner.limiter.borrowed_tokens == 1
                    assert mine.limiter.borrowed_tokens == 0
                async with other.acquire("f", TYPES):
                    assert theirs.limiter.borrowed_tokens == 1
        async with other.acquire("f", TYPES):
            assert [info.group for info in other.entries()] == ["main"]
        check_invariants(cache)
        check_invariants(other)


async def test_group_acquire_names_the_group_outright(fake: FakeKit) -> None:
    """A server's handler task is in no tenant's nursery; whose context it has does not matter."""
    async with fake.open() as cache, trio.open_nursery() as nursery:
        await add(cache, "f", fake.adding(1))
        async with (
            cache.scheduling_group("tenant", capacity=1) as tenant,
            cache.scheduling_group("other", capacity=1) as other,
        ):
            done = trio.Event()

            async def handler() -> None:
                async with tenant.acquire("f", TYPES) as lease:
                    assert await lease.call(1) == 2
                    assert tenant.limiter.borrowed_tokens == 1
                    assert other.limiter.borrowed_tokens == 0
                done.set()

            nursery.start_soon(handler)
            await done.wait()
            assert [info.group for info in cache.entries()] == ["tenant"]


async def test_outside_of_any_group_it_is_main(fake: FakeKit) -> None:
    """With the capacity and shares of the configuration."""
    async with fake.open(CacheConfig(main_capacity=1, main_shares=7)) as cache:
        f = await add(cache, "f", fake.adding(1), concurrency=2)
        order: list[str] = []

        async def use() -> None:
            async with f.acquire():
                order.append("second")

        async with trio.open_nursery() as nursery:
            async with f.acquire():
                nursery.start_soon(use)
                await wait_all_tasks_blocked()
                order.append("first")
                assert cache.stats().waiting == 1
        assert order == ["first", "second"]
        assert snapshot(cache).group("main").shares == 7


async def test_the_context_of_a_closed_group(fake: FakeKit) -> None:
    """Acquiring with it is `ClosedResourceError`, not the next group around."""
    outcomes: list[str] = []
    async with fake.open() as cache, trio.open_nursery() as nursery:
        f = await add(cache, "f", fake.adding(1))
        go_on = trio.Event()

        async def late() -> None:
            await go_on.wait()
            for use in (f.acquire().__aenter__, lambda: cache.warm("f", TYPES)):
                with pytest.raises(trio.ClosedResourceError, match="group 'g' is closed"):
                    await use()
                outcomes.append("told")

        async with cache.scheduling_group("g", capacity=1) as group:
            nursery.start_soon(late)
            await wait_all_tasks_blocked()
        go_on.set()
        await wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await group.acquire("f", TYPES).__aenter__()
        assert await f.call(1) == 2
    assert outcomes == ["told", "told"]


async def test_two_open_groups_cannot_share_a_name(fake: FakeKit) -> None:
    """Nor one with the main group; a closed group's name is free."""
    async with fake.open() as cache:
        with pytest.raises(ValueError, match="'main' is open already"):
            async with cache.scheduling_group("main", capacity=1):
                raise AssertionError("opened")
        for _ in range(2):
            async with cache.scheduling_group("g", capacity=1):
                with pytest.raises(ValueError, match="'g' is open already"):
                    async with cache.scheduling_group("g", capacity=1):
                        raise AssertionError("opened")
                assert cache.stats().groups == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": 1, "capacity": 1}, TypeError),
        ({"name": "", "capacity": 1}, ValueError),
        ({"name": "a\nb", "capacity": 1}, ValueError),
        ({"name": "g", "capacity": 0}, ValueError),
        ({"name": "g", "capacity": 1.5}, ValueError),
        ({"name": "g", "capacity": True}, ValueError),
        ({"name": "g", "capacity": 1, "shares": 0}, ValueError),
        ({"name": "g", "capacity": 1, "shares": 1_000_001}, ValueError),
        ({"name": "g", "capacity": 1, "shares": "many"}, ValueError),
    ],
    ids=repr,
)
async def test_what_can_be_no_group(
    fake: FakeKit, arguments: dict[str, object], error: type[Exception]
) -> None:
    """It is refused, and nothing stays."""
    async with fake.open() as cache:
        with pytest.raises(error):
            async with cache.scheduling_group(**arguments):  # type: ignore[arg-type]
                raise AssertionError("opened")
        assert cache.stats().groups == 1
        async with cache.scheduling_group("g", capacity=math.inf) as group:
            assert group.limiter.total_tokens == math.inf


async def test_capacity_can_be_changed(fake: FakeKit) -> None:
    """More tokens let in who waits; the limiter is an ordinary one."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1), concurrency=9)
        inside = 0
        leave = trio.Event()

        async def use() -> None:
            nonlocal inside
            async with f.acquire():
                inside += 1
                await leave.wait()

        async with cache.scheduling_group("g", capacity=1) as group:
            for _ in range(4):
                group.start_soon(use)
            await wait_all_tasks_blocked()
            assert inside == 1
            group.limiter.total_tokens = 3
            await wait_all_tasks_blocked()
            assert inside == 3
            check_invariants(cache)
            leave.set()
        assert inside == 4


@pytest.mark.parametrize("looked_at", [False, True])
async def test_capacity_below_what_is_in_use(looked_at: bool, fake: FakeKit) -> None:
    """Those inside stay and leave as ever; others wait until fewer are left than it allows."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1), concurrency=9)
        inside: list[int] = []
        leave = [trio.Event() for _ in range(5)]

        async def use(number: int) -> None:
            async with f.acquire():
                inside.append(number)
                await leave[number].wait()

        async with cache.scheduling_group("g", capacity=3) as group:
            for number in range(3):
                group.start_soon(use, number)
                await wait_all_tasks_blocked()
            group.resize(capacity=1)
            if looked_at:
                assert group.limiter.borrowed_tokens == 3
            group.start_soon(use, 3)
            await wait_all_tasks_blocked()
            for number in range(2):
                leave[number].set()
                await wait_all_tasks_blocked()
                assert inside == [0, 1, 2]
            leave[2].set()
            await wait_all_tasks_blocked()
            assert inside == [0, 1, 2, 3]
            group.start_soon(use, 4)
            await wait_all_tasks_blocked()
            assert inside == [0, 1, 2, 3]
            check_invariants(cache)
            leave[3].set()
            leave[4].set()
        assert inside == [0, 1, 2, 3, 4]


async def test_the_limiter_knows_who_had_tokens_before_anyone_looked(fake: FakeKit) -> None:
    """Looking at it late, or never, makes no difference to who is let in and who waits."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1), concurrency=9)
        inside: list[int] = []
        leave = [trio.Event() for _ in range(4)]

        async def use(number: int) -> None:
            async with f.acquire(), f.acquire():
                inside.append(number)
                await leave[number].wait()

        async with cache.scheduling_group("g", capacity=2) as group:
            for number in range(4):
                group.start_soon(use, number)
                await wait_all_tasks_blocked()
            assert inside == [0, 1]
            leave[1].set()
            await wait_all_tasks_blocked()
            leave[0].set()
            await wait_all_tasks_blocked()
            assert inside == [0, 1, 2, 3]
            assert "2 of 2 tokens" in repr(group)
            check_invariants(cache)
            assert group.limiter.borrowed_tokens == 2
            leave[2].set()
            await wait_all_tasks_blocked()
            assert group.limiter.borrowed_tokens == 1
            leave[3].set()
            await wait_all_tasks_blocked()
            assert group.limiter.borrowed_tokens == 0


async def test_the_cancel_scope_is_the_nurserys(fake: FakeKit) -> None:
    """Cancelling it ends the group's tasks and its block; the group's instances go."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1))

        async def use() -> None:
            async with f.acquire():
                await trio.sleep_forever()

        async with cache.scheduling_group("g", capacity=2) as group:
            group.start_soon(use)
            group.start_soon(use)
            await wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            await trio.sleep_forever()
        assert cache.entries() == ()
        check_invariants(cache)


async def test_an_error_of_a_task_comes_out_as_of_a_nursery(fake: FakeKit) -> None:
    """In a group, with the others cancelled; and the cache goes on."""

    async def fail() -> None:
        raise ZeroDivisionError

    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1))
        with pytest.raises(ExceptionGroup) as caught:
            async with cache.scheduling_group("g", capacity=1) as group:
                group.start_soon(fail)
                async with f.acquire():
                    await trio.sleep_forever()
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)
        assert cache.stats().groups == 1
        assert await f.call(1) == 2


async def test_leaving_waits_for_the_groups_tasks(fake: FakeKit) -> None:
    """As a nursery does; while they run they can acquire."""
    results: list[int] = []
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1))

        async def late() -> None:
            await wait_all_tasks_blocked()
            results.append(await f.call(1))

        async with cache.scheduling_group("g", capacity=1) as group:
            group.start_soon(late)
        assert results == [2]


async def test_a_group_that_outlives_its_cache(fake: FakeKit, log: ListLogger) -> None:
    """It is closed with the cache, once; its block then ends in peace."""

    async def other(opened: Callable[[], object]) -> None:
        async with cache.scheduling_group("g", capacity=1):
            opened()
            await go_on.wait()

    go_on = trio.Event()
    async with trio.open_nursery() as nursery:
        async with fake.open(logger=log) as cache:
            event = trio.Event()
            nursery.start_soon(other, event.set)
            await event.wait()
        go_on.set()
    assert sorted(e["group"] for e in log.fields("group_closed")) == ["g", "main"]
    assert log.lines[-1][1] == "wasmcache.closed"


async def run_in(group: SchedulingGroup, use: Callable[[], Awaitable[None]]) -> None:
    await group.start(_then, use)


async def _then(use: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None]) -> None:
    await use()
    task_status.started()


async def test_each_task_of_a_group_has_a_token_of_its_own(fake: FakeKit) -> None:
    """A token belongs to a task, not to a lease: two tasks have two, nested leases share one."""
    async with fake.open() as cache:
        await add(cache, "f", fake.adding(1), concurrency=9)
        async with cache.scheduling_group("g", capacity=5) as group:
            async with cache.acquire("f", TYPES), cache.acquire("f", TYPES):

                async def use() -> None:
                    async with cache.acquire("f", TYPES), cache.acquire("f", TYPES):
                        assert group.limiter.borrowed_tokens == 2

                await run_in(group, use)
                assert group.limiter.borrowed_tokens == 1
            assert group.limiter.borrowed_tokens == 0
