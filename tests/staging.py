"""A stage for `cancel_everywhere`: a cache, the others who take part, and a look at the books."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import trio
from kits import FakeKit, Kit
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache, Lease
from trio_wasmcache.testing import cancel_everywhere, check_invariants, snapshot


def look(cache: InstanceCache, kit: Kit) -> None:
    """The books agree, with each other and with what the engine has open."""
    check_invariants(cache)
    if isinstance(kit, FakeKit):
        stats = cache.stats()
        kept = stats.idle_instances - seats(cache)
        # Guests that start in the background are in no book.
        starting = len(cache._pool.background)
        most = kept + stats.running_instances + cache._pool.evictor.closing + starting
        assert kept <= kit.engine.open_instances <= most
        assert kit.engine.loaded_modules <= stats.loaded_modules + starting


def seats(cache: InstanceCache) -> int:
    """How many of the idle instances are none."""
    return sum(one.seat for one in snapshot(cache).residents if one.state == "idle")


class Stage:
    """See `stage`."""

    def __init__(self, cache: InstanceCache, kit: Kit, nursery: trio.Nursery) -> None:
        self.cache = cache
        self._kit = kit
        self._nursery = nursery
        self._begun = self._finished = 0

    async def run(self, scenario: Callable[[], Awaitable[object]], *, least: int) -> None:
        """Cancel `scenario` everywhere: in at least so many places, or the test tests nothing.

        Whoever else takes part must finish undisturbed, and leave nothing.
        """
        count = await cancel_everywhere(scenario, lambda: look(self.cache, self._kit))
        assert count >= least
        await self.settled()

    async def settled(self) -> None:
        """Wait for the others; then nobody holds or waits for anything."""
        for _ in range(1000):
            if self._finished == self._begun:
                break
            await wait_all_tasks_blocked()
        assert self._finished == self._begun, "somebody waits for ever"
        look(self.cache, self._kit)
        stats = self.cache.stats()
        assert (stats.running_instances, stats.waiting) == (0, 0)
        assert not any(group.tokens for group in snapshot(self.cache).groups)
        if isinstance(self._kit, FakeKit):
            kept = stats.idle_instances - seats(self.cache)
            assert self._kit.engine.open_instances == kept

    async def occupy(self, *taken: Callable[[], Lease], behind: Callable[[], Lease]) -> None:
        """Another task takes leases and keeps them until everybody waits.

        Then one more comes along, behind them all, and with that one in line, too, the leases end.
        The one behind has to be served, and its call to work.
        """
        held = trio.Event()

        async def hold() -> None:
            async with AsyncExitStack() as stack:
                for acquire in taken:
                    await stack.enter_async_context(acquire())
                held.set()
                await wait_all_tasks_blocked()
                self._nursery.start_soon(come_along)
                await wait_all_tasks_blocked()
            self._finished += 1

        async def come_along() -> None:
            async with behind() as lease:
                assert await lease.call(1) == 2
            self._finished += 1

        self._begun += 2
        self._nursery.start_soon(hold)
        await held.wait()


@asynccontextmanager
async def stage(kit: Kit, config: CacheConfig) -> AsyncIterator[Stage]:
    """An open cache, with a nursery around what happens in it."""
    async with kit.open(config) as cache, trio.open_nursery() as nursery:
        yield Stage(cache, kit, nursery)
