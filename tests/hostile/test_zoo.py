"""Each hostile guest alone, and all of them at once beside well-behaved functions."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
import trio
from attrs import evolve
from hostile.guest import CONFIG, Guest, Refused
from hostile.zoo import ZOO
from kits import ListLogger, WasmtimeKit, add, open_real_cache
from parts import Relayed

from trio_wasmcache.testing import check_invariants, snapshot

RENDERERS = (
    structlog.dev.ConsoleRenderer(colors=False),
    structlog.processors.JSONRenderer(),
    structlog.processors.KeyValueRenderer(),
)
NEIGHBOURS, CALLS = 20, 15
# Those that ask the host, or that do something before they are called.
LINKED = [one for one in ZOO if one.imports or one.wasi or "(start" in str(one.source)]
ISOLATIONS = ("reuse", "fresh", "reset")


def check_log(log: ListLogger) -> None:
    """Each event is one line, with nothing in it that a terminal would obey."""
    assert log.lines
    for level, event, fields in log.lines:
        for render in RENDERERS:
            line = str(render(None, level, {"event": event, "level": level, **fields}))
            assert line.isprintable(), repr(line)
            assert len(line) < 5000


def test_the_zoo_is_large_and_its_names_tell_guests_apart() -> None:
    """At least thirty guests."""
    assert len({guest.name for guest in ZOO}) == len(ZOO) >= 30
    assert all(guest.attacks for guest in ZOO)


@pytest.mark.parametrize("guest", ZOO, ids=lambda guest: guest.name)
async def test_alone(guest: Guest, real: WasmtimeKit, log: ListLogger) -> None:
    """It gets what it must get, twice, and the cache goes on as if nothing had been."""
    await check_alone(guest, real, log)


@pytest.mark.parametrize("guest", LINKED, ids=lambda guest: guest.name)
async def test_alone_between_parts(guest: Guest, real: WasmtimeKit, log: ListLogger) -> None:
    """The same, where all that it asks of the host goes through a module of ours."""
    await check_alone(evolve(guest, abi=Relayed(guest.abi)), real, log)


async def check_alone(guest: Guest, real: WasmtimeKit, log: ListLogger) -> None:
    """See `test_alone`."""
    wasm = guest.wasm()
    async with open_real_cache(CONFIG, logger=log) as cache:
        neighbour = await add(cache, "neighbour", real.adding(1))
        assert await neighbour.call(1) == 2
        got: list[Any] = []

        async def attack() -> None:
            got.append(await guest.attack(cache, "guest", wasm))

        for _ in range(2):
            if guest.at_once > 1 and not got:
                await guest.register(cache, "guest", wasm)
            async with trio.open_nursery() as nursery:
                for _ in range(guest.at_once):
                    nursery.start_soon(attack)
            check_invariants(cache)
        assert len(got) == 2 * guest.at_once
        for one in got:
            guest.check(one)
        if isinstance(guest.gets, Refused):
            assert [function.name for function in cache.functions()] == ["neighbour"]
            assert not snapshot(cache).reserved
        stats = cache.stats()
        assert (stats.running_instances, stats.waiting) == (0, 0)
        assert await neighbour.call(1) == 2
        check_invariants(cache)
    check_invariants(cache)
    stats = cache.stats()
    assert (stats.total_size, stats.code_size, stats.loaded_modules) == (0, 0, 0)
    check_log(log)


async def test_all_together(real: WasmtimeKit, log: ListLogger) -> None:
    """Every guest attacks, at some level of isolation, and all calls of neighbours are right."""
    modules = {guest.name: guest.wasm() for guest in ZOO}
    got: dict[str, list[Any]] = {guest.name: [] for guest in ZOO}
    right: list[int] = []
    async with open_real_cache(CONFIG, logger=log) as cache:
        neighbours = [
            await add(cache, f"neighbour {number}", real.adding(number))
            for number in range(NEIGHBOURS)
        ]
        for number, guest in enumerate(ZOO):
            if not isinstance(guest.gets, Refused):
                isolation = ISOLATIONS[number % len(ISOLATIONS)]
                await guest.register(cache, f"guest {number}", modules[guest.name], isolation)

        async def attack(number: int, guest: Guest) -> None:
            got[guest.name].append(
                await guest.attack(cache, f"guest {number}", modules[guest.name])
            )

        async def work(number: int) -> None:
            for turn in range(CALLS):
                assert await neighbours[number].call(turn) == turn + number
                right.append(turn)
                await trio.lowlevel.checkpoint()

        async with (
            cache.scheduling_group("tenants", capacity=40, shares=50) as tenants,
            cache.scheduling_group("neighbours", capacity=NEIGHBOURS) as good,
        ):
            for number, guest in enumerate(ZOO):
                for _ in range(guest.at_once):
                    tenants.start_soon(attack, number, guest)
            for number in range(NEIGHBOURS):
                good.start_soon(work, number)
        assert len(right) == NEIGHBOURS * CALLS
        for guest in ZOO:
            assert len(got[guest.name]) == guest.at_once
            for one in got[guest.name]:
                guest.check(one)
        check_invariants(cache)
    check_invariants(cache)
    check_log(log)
