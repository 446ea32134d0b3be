"""`isolation="reset"`: instances are put back to how they began, or leave a seat."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
import trio
from kits import PAGE, FakeKit, Kit, ListLogger, WasmtimeKit, add
from peeking import instance_behind

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.policy.resets import GIVE_UP_AT
from trio_wasmcache.report.reading.records import make_event
from trio_wasmcache.report.replay.replay import Replay
from trio_wasmcache.testing import check_invariants


async def test_an_instance_is_kept_and_put_back(kit: Kit) -> None:
    """The next lease is granted at once, and finds nothing."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="reset")
        assert (f.isolation, f.isolation_verdict.partition(":")[0]) == ("reset", "reset")
        for _ in range(3):
            async with f.acquire() as lease:
                assert lease.memory.read(100, 6) == bytes(6)
                lease.memory.write(100, b"secret")
                assert await lease.call(1) == 2
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.load.count) == (2, 1, 1)
        assert (stats.idle_instances, stats.total_size) == (1, 2 * PAGE)


async def test_it_is_put_back_in_the_step_that_ends_the_lease(fake: FakeKit) -> None:
    """So nothing of it is there while it is idle."""
    async with fake.open() as cache:
        f = await add(cache, "f", fake.adding(1), isolation="reset")
        async with f.acquire() as lease:
            lease.memory.write(0, b"x")
        (instance,) = cache._pool.policy.instances.lru
        assert instance_behind(instance).memory.read(0, 1) == b"\0"


async def test_one_that_has_grown_leaves_a_seat(kit: Kit) -> None:
    """On which the next lease gets a new one; that is a hit."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.growing(), isolation="reset")
        for _ in range(3):
            async with f.acquire() as lease:
                assert lease.size == 2 * PAGE
                await lease.call(1)
                assert lease.size == 3 * PAGE
            assert cache.stats().total_size == PAGE
            check_invariants(cache)
        async with f.acquire():
            pass  # it has not grown
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.load.count, stats.total_size) == (
            *(3, 1, 4),
            2 * PAGE,
        )


async def test_one_that_is_too_large_to_be_kept_leaves_a_seat(kit: Kit, log: ListLogger) -> None:
    """As under `fresh`, also if it was put back before on the short way: 19 of 20 are hits."""
    limit = 3 * PAGE
    config = CacheConfig(max_instance_size=limit, log_uses=True)
    async with kit.open(config, logger=log) as cache:
        f = await add(cache, "f", kit.adding(1, pages=4), isolation="reset")
        for turn in range(20):
            async with f.acquire() as lease:
                assert lease.memory.read(9, 1) == b"\0"
                lease.memory.write(9, b"x")
                assert await lease.call(turn) == turn + 1
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.total_size) == (19, 1, PAGE)
        assert stats.load.count == 20
        cache.resize(max_instance_size=8 * PAGE)
        await f.call(1)
        assert cache.stats().total_size == 5 * PAGE
        cache.resize(max_instance_size=limit)
        await f.call(1)
    assert log.reasons() == ["oversized", "closed"]
    closed = [fields["closed_size_bytes"] for fields in log.fields("recycled")]
    assert closed == [5 * PAGE] * 20 + [None, 5 * PAGE]


async def test_where_it_can_not_be_done_leases_are_fresh(log: ListLogger) -> None:
    """The verdict says why, to whoever asks and in the log; what was asked for stays as it was."""
    kit = FakeKit()
    async with kit.open(logger=log) as cache:
        wasm = kit.engine.module(resettable=False)
        f = await add(cache, "f", wasm, isolation="reset")
        assert f.isolation == "reset"
        assert f.isolation_verdict == (
            "fresh: every lease gets a new instance, as reset is not possible: "
            "the fake module says so"
        )
        for _ in range(2):
            async with f.acquire() as lease:
                assert lease.memory.read(0, 1) == b"\0"
                lease.memory.write(0, b"x")
        assert (cache.stats().load.count, cache.stats().total_size) == (2, PAGE)
    (event,) = log.fields("registered")
    assert (event["isolation"], event["isolation_verdict"]) == ("reset", f.isolation_verdict)


async def test_warmed_instances_are_instances(kit: Kit) -> None:
    """They have done nothing that would have to be put back, and can be."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1), isolation="reset", concurrency=2)
        await cache.warm("f", ("i64",), 2)
        assert cache.stats().total_size == 4 * PAGE
        assert await f.call(1) == 2
        assert (cache.stats().hits, cache.stats().misses) == (1, 0)
        check_invariants(cache)


async def test_a_cache_that_closes_puts_nothing_back(fake: FakeKit, log: ListLogger) -> None:
    """What is held then goes as it is."""
    async with fake.open(logger=log) as cache:
        f = await add(cache, "f", fake.adding(1), isolation="reset")
        lease = f.acquire()
        await lease.__aenter__()
    await lease.__aexit__(None, None, None)
    assert log.reasons() == ["closed"]
    assert not log.fields("evicted")[0]["seat"]


async def test_the_levels_of_one_module(kit: Kit) -> None:
    """The same bytes under each of them, and each keeps to its own."""
    async with kit.open(CacheConfig(max_size=100 * PAGE)) as cache:
        wasm = kit.adding(1)
        for level in ("reuse", "fresh", "reset"):
            f = await add(cache, level, wasm, isolation=level)
            async with f.acquire() as lease:
                lease.memory.write(0, b"x")
            async with f.acquire() as lease:
                assert (lease.memory.read(0, 1) == b"x") is (level == "reuse")
                await trio.lowlevel.checkpoint()
        assert cache.stats().loaded_modules == 2  # that of the last one is prepared
        check_invariants(cache)


LEVELS = ("reuse", "fresh", "reset")


@pytest.mark.parametrize("order", [*itertools.permutations(LEVELS)], ids=" ".join)
async def test_the_same_bytes_are_kept_once_where_they_can_not_be_reset(
    kit: Kit, log: ListLogger, order: tuple[str, ...]
) -> None:
    """In whatever order they come: one artifact, one loaded module, and a verdict for each."""
    async with kit.open(logger=log) as cache:
        wasm = kit.unresettable()
        functions = {level: await add(cache, level, wasm, isolation=level) for level in order}
        for turn in range(2):
            for level, f in functions.items():
                async with f.acquire() as lease:
                    kept = level == "reuse" and turn == 1
                    assert (lease.memory.read(0, 1) == b"x") is kept
                    lease.memory.write(0, b"x")
            check_invariants(cache)
        assert cache.stats().loaded_modules == 1
        registered = log.fields("registered")
        assert len({fields["module_number"] for fields in registered}) == 1
        assert cache.stats().artifact_size == registered[0]["artifact_bytes"]
        verdicts = [functions[level].isolation_verdict.partition(":") for level in LEVELS]
        assert [verdict for verdict, _, _ in verdicts] == ["reuse", "fresh", "fresh"]
        assert "as reset is not possible" in functions["reset"].isolation_verdict
        for level in order:
            cache.remove(level)
            check_invariants(cache)
        assert cache.stats().artifact_size == 0


@pytest.mark.parametrize("order", [*itertools.permutations(LEVELS)], ids=" ".join)
async def test_what_the_sections_tell_is_not_compiled_again(
    real: WasmtimeKit, log: ListLogger, order: tuple[str, ...]
) -> None:
    """Only where reset has to be tried, the module is prepared for it before it is known."""
    async with real.open(logger=log) as cache:
        for level in order:
            await add(cache, level, real.unresettable(), isolation=level)
    compiled = [fields["compile_seconds"] > 0 for fields in log.fields("registered")]
    assert compiled == [True, False, False]


async def test_those_who_come_at_once_share_it_too(kit: Kit) -> None:
    """Each compile is under way before anyone knows that they come to the same."""
    async with kit.open() as cache:
        wasm = kit.unresettable()
        async with trio.open_nursery() as nursery:
            for level in LEVELS:
                nursery.start_soon(functools.partial(add, cache, level, wasm, isolation=level))
        for f in cache.functions():
            await f.call(1)
        assert cache.stats().loaded_modules == 1
        verdicts = {f.name: f.isolation_verdict for f in cache.functions()}
        assert "reset is not possible" in verdicts["reset"]
        check_invariants(cache)


async def test_one_that_can_be_reset_has_code_of_its_own(kit: Kit, log: ListLogger) -> None:
    """The other levels share theirs."""
    async with kit.open(logger=log) as cache:
        wasm = kit.adding(1)
        for level in LEVELS:
            await (await add(cache, level, wasm, isolation=level)).call(1)
        numbers = [fields["module_number"] for fields in log.fields("registered")]
        assert numbers[0] == numbers[1] != numbers[2]
        assert cache.stats().loaded_modules == 2


@pytest.mark.parametrize("log_uses", [True, False])
async def test_resets_in_vain_are_given_up(kit: Kit, log: ListLogger, log_uses: bool) -> None:
    """One that grows in each lease gets a new instance from then on; all who ask are told so."""
    async with kit.open(CacheConfig(log_uses=log_uses), logger=log) as cache:
        f = await add(cache, "f", kit.growing(), isolation="reset")
        for turn in range(GIVE_UP_AT):
            (now,) = cache.functions()
            assert now == f, turn
            await f.call(1)
            check_invariants(cache)
        (now,) = cache.functions()
        assert (now.name, now.generation, now.isolation) == ("f", 1, "reset")
        assert now.isolation_verdict == (
            "fresh: every lease gets a new instance, as reset does not pay: "
            "instances had grown in 12 of 12 leases"
        )
        assert now.cache_verdict == ("a seat is kept: an instance is closed when its lease ends")
        for _ in range(5):
            async with f.acquire() as lease:
                assert lease.function == now
                assert lease.memory.size == PAGE
                assert lease.memory.read(0, 1) == b"\0"
                lease.memory.write(0, b"x")
            assert cache.stats().total_size == PAGE
            check_invariants(cache)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.seat_hits) == (16, 1, 16)
        assert stats.per_function["f(i64)"].seat_hits == stats.per_group["main"].seat_hits == 16
        again = await add(cache, "f", kit.growing(), isolation="reset", replace=True)
        assert again.isolation_verdict.startswith("reset: ")
        assert cache.pop_stats().seat_hits == 16
        assert cache.stats().seat_hits == 0
    (event,) = log.fields("overgrown")
    assert event["size_bytes"] == 3 * PAGE
    assert (event["leases"], event["growths"], event["generation"]) == (12, 12, 1)
    assert (event["function"], event["cache_verdict"]) == ("f", now.cache_verdict)
    assert "grows in nearly every lease, up to 196608 bytes" in event["advice"]
    assert log.fields("closed")[0]["seat_hits"] == 16
    if log_uses:
        grown = [one["grown_size_bytes"] for one in log.fields("recycled")]
        assert grown == [3 * PAGE] * 12 + [None] * 5
        played = replayed(log)
        assert (played.disagreements, played.complete) == ([], True)


async def test_resets_that_pay_are_not_given_up(kit: Kit, log: ListLogger) -> None:
    """Every second lease does not grow its instance, and saves the next one a load."""
    async with kit.open(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, "f", kit.growing(), isolation="reset")
        for _ in range(3 * GIVE_UP_AT):
            async with f.acquire():
                pass
            await f.call(1)
            check_invariants(cache)
        assert cache.functions() == (f,)
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.seat_hits) == (71, 1, 35)
    assert log.fields("overgrown") == []
    assert replayed(log).disagreements == []


async def test_instances_at_hand_are_still_reset(kit: Kit, log: ListLogger) -> None:
    """Those that have not grown by then stay hits for as long as they do not."""
    async with kit.open(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, "f", kit.growing(), isolation="reset", concurrency=2)
        async with f.acquire() as kept:
            for _ in range(GIVE_UP_AT):
                await f.call(1)
            kept.memory.write(0, b"x")
        (now,) = cache.functions()
        assert now.isolation_verdict.startswith("fresh: ")
        for _ in range(3):
            async with f.acquire() as lease:
                assert lease.memory.read(0, 1) == b"\0"
                lease.memory.write(0, b"x")
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.seat_hits) == (14, 2, 11)
        await f.call(1)
        assert cache.stats().total_size == 2 * PAGE  # two seats
        check_invariants(cache)
    assert replayed(log).disagreements == []


async def test_a_log_that_gives_resets_up_otherwise_disagrees(
    fake: FakeKit, log: ListLogger
) -> None:
    """Too early, or never: the replay says so."""
    async with fake.open(CacheConfig(log_uses=True), logger=log) as cache:
        f = await add(cache, "f", fake.growing(), isolation="reset")
        for _ in range(GIVE_UP_AT):
            await f.call(1)
    lines = log.lines
    names = [name for _, name, _ in lines]
    at = names.index("wasmcache.overgrown")
    event = lines[at]
    for changed, words in (
        (lines[:at] + lines[at + 1 :], "resets of f should have been given up"),
        ([*lines[: at - 4], event, *lines[at - 4 : at], *lines[at + 1 :]], "was still to be reset"),
        ([*lines[:at], (*event[:2], {**event[2], "growths": 3}), *lines[at + 1 :]], "growths is 3"),
    ):
        other = ListLogger()
        other.lines = [
            (level, name, {**fields, "seq": seq})
            for seq, (level, name, fields) in enumerate(changed, 1)
        ]
        assert words in replayed(other).disagreements[0][1]


def replayed(log: ListLogger) -> Replay:
    played = Replay()
    for _, name, fields in log.lines:
        played.feed(make_event({"event": name, **json.loads(json.dumps(fields))}))
    played.finish()
    return played
