"""Profiles in tests: a window that a test begins and ends, by a clock that it moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from promoting import WatchedLogger
from trio.testing import MockClock

from trio_wasmcache import InstanceCache, Profile

SECONDS = 10.0


class Found:
    """What a profile comes to, once its window has ended."""

    _profile: Profile | None = None

    @property
    def profile(self) -> Profile:
        assert self._profile is not None, "its window has not ended"
        return self._profile

    def take(self, profile: Profile) -> None:
        self._profile = profile


@asynccontextmanager
async def window(
    cache: InstanceCache, logger: WatchedLogger, clock: MockClock, **options: Any
) -> AsyncIterator[Found]:
    """The block runs while guests are profiled."""
    found = Found()

    async def run() -> None:
        found.take(await cache.profile(seconds=SECONDS, **options))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(logger.wait, "profiled")
            await trio.lowlevel.checkpoint()
            nursery.start_soon(run)
        yield found
        clock.jump(SECONDS)
