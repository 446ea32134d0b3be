"""Room for each scheduling group: sizes that are reserved, or limited, and whose need took what."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import trio
from kits import PAGE, FakeKit, Kit, ListLogger, add, add_asking

from trio_wasmcache import CacheConfig, Function, InstanceCache, SchedulingGroup
from trio_wasmcache._core.config import PolicyName
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.replay import Replay
from trio_wasmcache.testing import check_invariants

# An instance of one page takes two; the cache keeps ten of them.
SIZE = 2 * PAGE
LIMITS = CacheConfig(max_size=10 * SIZE, idle_timeout=math.inf)


async def functions(cache: InstanceCache, kit: Kit, number: int) -> list[Function]:
    return [await add(cache, f"f{n}", kit.adding(n)) for n in range(number)]


async def use(group: SchedulingGroup, names: Sequence[str]) -> None:
    for name in names:
        async with group.acquire(name) as lease:
            await lease.call(1)


def hits_of(log: ListLogger, group: str) -> list[bool]:
    return [one["hit"] for one in log.fields("acquired") if one["group"] == group]


def lines_of(log: ListLogger) -> list[dict[str, Any]]:
    return [{"event": name, **json.loads(json.dumps(fields))} for _, name, fields in log.lines]


def replay(log: ListLogger) -> Replay:
    played = Replay()
    for line in lines_of(log):
        played.feed(make_event(line))
    played.finish()
    return played


@pytest.mark.parametrize("policy", get_args(PolicyName))
async def test_a_noisy_neighbour_takes_nothing_that_is_reserved(
    fake: FakeKit, log: ListLogger, policy: PolicyName
) -> None:
    """It cycles through ten times the cache; the other misses once a function, and never more."""
    config = CacheConfig(policy=policy, max_size=10 * SIZE, idle_timeout=math.inf, log_uses=True)
    async with fake.open(config, logger=log) as cache:
        await functions(cache, fake, 100)
        async with (
            cache.scheduling_group("quiet", capacity=1, reserved_size=3 * SIZE) as quiet,
            cache.scheduling_group("noisy", capacity=1) as noisy,
        ):
            for turn in range(3):
                await use(quiet, ["f0", "f1", "f2"])
                await use(noisy, [f"f{n}" for n in range(100)])
                assert cache.stats().total_size == 10 * SIZE, turn  # the rest is used
                check_invariants(cache)
    assert hits_of(log, "quiet") == [False] * 3 + [True] * 6
    played = replay(log)
    assert (played.disagreements, played.complete) == ([], True)


async def test_what_is_not_used_is_lent_and_comes_back_at_once(
    fake: FakeKit, log: ListLogger
) -> None:
    """Borrowed bytes go in the step in which their owner recycles, whoever was used last."""
    async with fake.open(LIMITS, logger=log) as cache:
        names = [one.name for one in await functions(cache, fake, 12)]
        async with (
            cache.scheduling_group("owner", capacity=9, reserved_size=4 * SIZE) as owner,
            cache.scheduling_group("other", capacity=9) as other,
        ):
            await use(other, names[:10])
            assert log.reasons() == []
            await use(owner, names[:4])
            assert [one["function"] for one in log.fields("evicted")] == names[:4]
            assert {one["for_group"] for one in log.fields("evicted")} == {"owner"}
            # Beyond what is reserved they are as all others.
            await use(owner, ["f11"])
            (last,) = log.fields("evicted")[4:]
            assert (last["group"], last["function"], last["for_group"]) == ("other", "f4", "owner")
            await use(other, names[:6])
            gone = [(one["group"], one["function"]) for one in log.fields("evicted")[5:]]
            assert gone[0] == ("other", "f5")
            assert [name for group, name in gone if group == "owner"] == ["f0"]
            check_invariants(cache)


async def test_all_that_is_reserved_leaves_others_nothing(fake: FakeKit, log: ListLogger) -> None:
    """Their instances are not kept, no reserved one goes, and nothing else goes in vain."""
    async with fake.open(LIMITS, logger=log) as cache:
        names = [one.name for one in await functions(cache, fake, 10)]
        async with (
            cache.scheduling_group("owner", capacity=9, reserved_size=10 * SIZE) as owner,
            cache.scheduling_group("other", capacity=9) as other,
        ):
            await use(owner, names)
            await use(other, names[:2])
            for event in log.fields("evicted"):
                assert (event["group"], event["reason"]) == ("other", "size")
                assert event["for_group"] is None
            assert len(log.fields("evicted")) == 2
            check_invariants(cache)


async def test_a_group_with_a_max_size_keeps_to_it(fake: FakeKit, log: ListLogger) -> None:
    """Its least recently used go, though the cache has room; what exceeds it alone goes alone."""
    async with fake.open(LIMITS, logger=log) as cache:
        names = [one.name for one in await functions(cache, fake, 5)]
        large = await add(cache, "large", fake.adding(1, pages=8))
        async with cache.scheduling_group("small", capacity=9, max_size=3 * SIZE) as small:
            await use(small, names)
            assert [one["function"] for one in log.fields("evicted")] == ["f0", "f1"]
            await use(small, [large.name])
            (event,) = log.fields("evicted")[2:]
            assert (event["function"], event["limit_bytes"]) == ("large", 3 * SIZE)
            small.resize(max_size=SIZE)
            assert [one["function"] for one in log.fields("evicted")[3:]] == ["f2", "f3"]
            small.resize(max_size=None)
            await use(small, names)
            assert cache.stats().total_size == 5 * SIZE
            check_invariants(cache)
        assert log.fields("group_resized")[0]["max_size_bytes"] == SIZE


async def test_reserved_instances_go_last_for_code_and_count(
    fake: FakeKit, log: ListLogger
) -> None:
    """They are evicted when nothing else frees enough, and no acquire fails because of them."""
    config = CacheConfig(max_instances=4, idle_timeout=math.inf)
    async with fake.open(config, logger=log) as cache:
        names = [one.name for one in await functions(cache, fake, 8)]
        async with (
            cache.scheduling_group("owner", capacity=9, reserved_size=100 * SIZE) as owner,
            cache.scheduling_group("other", capacity=9) as other,
        ):
            await use(owner, names[:2])
            await use(other, names[2:6])
            gone = [(one["group"], one["reason"]) for one in log.fields("evicted")]
            assert gone == [("other", "count")] * 2
            async with (
                other.acquire("f0"),
                other.acquire("f1"),
                other.acquire("f2"),
                other.acquire("f3"),
            ):
                pass
            gone = [(one["group"], one["for_group"]) for one in log.fields("evicted")[2:]]
            assert gone == [("other", "other")] * 2 + [("owner", "other")] * 2


BAD = [
    ({"reserved_size": 11 * SIZE}, r"1441792 bytes reserved \('a' 1441792\), but max_size is"),
    ({"reserved_size": 2, "max_size": 1}, "reserved_size of group 'a', 2, exceeds its max_size, 1"),
    ({"reserved_size": -1}, "reserved_size of group 'a' must be at least 0"),
    ({"max_size": 1.5}, "max_size of group 'a' must be an int"),
    ({"cpu_limit": 0}, "cpu_limit of group 'a' must be from 0.001"),
    ({"cpu_limit": math.nan}, "cpu_limit of group 'a' must be from 0.001"),
    ({"cpu_limit": "1"}, "cpu_limit of group 'a' must be a number of cores"),
    ({"shares": 0}, "shares of group 'a'"),
]


@pytest.mark.parametrize(("limits", "message"), BAD)
async def test_limits_that_can_not_be(fake: FakeKit, limits: dict[str, Any], message: str) -> None:
    """Refused when a group is opened, and when it is resized; nothing changes."""
    async with fake.open(LIMITS) as cache:
        with pytest.raises(ValueError, match=message):
            async with cache.scheduling_group("a", **{"capacity": 1, **limits}):
                raise AssertionError("opened")
        async with cache.scheduling_group("a", capacity=1, reserved_size=SIZE) as group:
            before = repr(group)
            with pytest.raises(ValueError, match=message):
                group.resize(**limits)
            assert repr(group) == before
            # Nor can the cache become smaller than what is reserved, or main take the rest.
            with pytest.raises(ValueError, match=rf"\('a' {SIZE}\), but max_size is 5"):
                cache.resize(max_size=5)
            with pytest.raises(ValueError, match=rf"\('main' {10 * SIZE}, 'a' {SIZE}\)"):
                cache.resize(main_reserved_size=10 * SIZE)
            assert cache.config == LIMITS
        # Once it is closed, others may have it.
        async with cache.scheduling_group("b", capacity=1, reserved_size=10 * SIZE):
            pass
    with pytest.raises(ValueError, match="main_reserved_size, 2, exceeds max_size, 1"):
        CacheConfig(max_size=1, main_reserved_size=2)


async def test_the_own_group_of_the_cache_has_limits_too(fake: FakeKit, log: ListLogger) -> None:
    """From the configuration, and changed by `resize`."""
    config = CacheConfig(max_size=10 * SIZE, main_max_size=2 * SIZE, main_reserved_size=SIZE)
    async with fake.open(config, logger=log) as cache:
        for function in await functions(cache, fake, 5):
            await function.call(1)
        assert cache.stats().total_size == 2 * SIZE
        cache.resize(main_max_size=SIZE)
        assert cache.stats().total_size == SIZE
        assert log.fields("group_opened")[0]["reserved_size_bytes"] == SIZE
        assert log.fields("group_resized")[0]["max_size_bytes"] == SIZE


async def test_a_group_that_is_closed_can_not_be_resized(fake: FakeKit) -> None:
    """And a limit that there is not is a `TypeError`."""
    async with fake.open(LIMITS) as cache:
        async with cache.scheduling_group("a", capacity=1) as group:
            with pytest.raises(TypeError, match=r"knows no limit 'max_sise'.* capacity, shares"):
                group.resize(max_sise=1)  # type: ignore[call-arg]
            group.resize(capacity=3, shares=7)
            assert (group.limiter.total_tokens, group.shares) == (3, 7)
        with pytest.raises(trio.ClosedResourceError, match="the scheduling group 'a' is closed"):
            group.resize(capacity=1)


async def test_what_spoilt_an_instance(kit: Kit, log: ListLogger) -> None:
    """The type of the error, of a trap, a cancellation and a host function's exception."""

    async def fail(_: int) -> int:
        raise KeyError("rate")

    scope = trio.CancelScope()

    async def wait(_: int) -> int:
        scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    config = CacheConfig(log_uses=True)
    async with kit.open(config, logger=log) as cache:
        trapping = await add(cache, "trapping", kit.trapping())
        failing = await add_asking(cache, kit, fail, name="failing")
        waiting = await add_asking(cache, kit, wait, name="waiting")
        good = await add(cache, "good", kit.adding(1))
        await good.call(1)
        for function in (trapping, failing):
            with pytest.raises(Exception):  # noqa: B017, PT011
                await function.call(1)
        with scope:
            await waiting.call(1)
    kinds = ["TrapError", "KeyError", "Cancelled"]
    recycled = log.fields("recycled")
    assert [one["error"] for one in recycled] == [None, *kinds]
    corrupted = [one for one in log.fields("evicted") if one["reason"] == "corrupted"]
    assert [one["error"] for one in corrupted] == kinds
    assert {one["for_group"] for one in corrupted} == {None}
    played = replay(log)
    assert (played.disagreements, played.complete) == ([], True)


async def test_whose_need_an_eviction_served(fake: FakeKit, log: ListLogger) -> None:
    """Function, group and number of the request; nobody's if time or a limit caused it."""
    config = CacheConfig(max_size=2 * SIZE, idle_timeout=math.inf, log_uses=True)
    async with fake.open(config, logger=log) as cache:
        one, two, three = await functions(cache, fake, 3)
        await one.call(1)
        await two.call(1)
        async with cache.scheduling_group("g", capacity=1) as group:
            await use(group, [three.name])
        (first, *_) = log.fields("evicted")
        request = log.fields("requested")[2]["request"]
        needs = ("for_function", "for_arg_types", "for_group", "for_request")
        assert [first[name] for name in needs] == ["f2", "i64", "g", request]
        cache.resize(max_size=0)
        assert [log.fields("evicted")[-1][name] for name in needs] == [None] * 4
    played = replay(log)
    assert (played.disagreements, played.complete) == ([], True)
