"""Promotions in tests: which functions are due is decided by the test, not by the fuel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from kits import ListLogger
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, Function, InstanceCache
from trio_wasmcache._pool import promotion
from trio_wasmcache.testing import check_invariants

TIERED = CacheConfig(compiler="tiered", offload_after=None)


@contextmanager
def due_at_once() -> Iterator[None]:
    """Every function is due that has had a lease, once `look` is called."""
    before = promotion.DUE_FUEL
    promotion.DUE_FUEL = 0  # type: ignore[misc]
    try:
        yield
    finally:
        promotion.DUE_FUEL = before  # type: ignore[misc]


def look(cache: InstanceCache) -> None:
    """What a burst of calls would do."""
    with due_at_once():
        cache._promoter.look()


def tiers(cache: InstanceCache) -> list[dict[str, int]]:
    """The tiers of the instances of each entry."""
    check_invariants(cache)
    return [entry.tiers for entry in cache.entries()]


class WatchedLogger(ListLogger):
    """A logger that lets a test wait for an event."""

    def __init__(self) -> None:
        super().__init__()
        self._awaited: tuple[str, dict[str, Any], trio.Event] | None = None

    def info(self, event: str, **fields: Any) -> None:
        super().info(event, **fields)
        self._note(event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        super().warning(event, **fields)
        self._note(event, fields)

    def _note(self, event: str, fields: dict[str, Any]) -> None:
        if self._awaited is not None:
            name, wanted, done = self._awaited
            if event == f"wasmcache.{name}" and wanted.items() <= fields.items():
                done.set()

    async def wait(self, name: str, function: str | None = None) -> None:
        """Wait until there is such an event, from now on."""
        done = trio.Event()
        self._awaited = name, {} if function is None else {"function": function}, done
        await done.wait()
        self._awaited = None


async def promote(cache: InstanceCache, logger: WatchedLogger, *functions: Function) -> None:
    """Have functions promoted that were used, or fail to be; the last one is waited for."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(logger.wait, "promoted", functions[-1].name)
        await wait_all_tasks_blocked()
        look(cache)


async def settle(cache: InstanceCache) -> None:
    """Let instances be made in the background, as far as they fit; on either engine, inline."""
    for _ in range(50):
        await trio.lowlevel.checkpoint()
    check_invariants(cache)
