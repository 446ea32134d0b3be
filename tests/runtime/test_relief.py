"""What the system refuses is tried again, as long as something can be evicted for it."""

from __future__ import annotations

import pytest
from attrs import Factory, define

from trio_wasmcache import CodeMemoryError
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._engine.base import NoMemoryError
from trio_wasmcache._runtime.relief import Relief

KEY = FunctionKey("f", ("i64",))
NEEDED = 10, 1


@define
class Host:
    """A system that refuses so often, and a cache where so often something is idle."""

    refusals: int
    idle: int
    tried: int = 0
    attempts: list[int] = Factory(list)

    def make(self, what: str) -> str:
        """What is tried."""
        self.tried += 1
        if self.tried <= self.refusals:
            raise NoMemoryError("no memory")
        return what

    async def make_async(self, what: str) -> str:
        """Likewise."""
        return self.make(what)

    def evict(
        self, key: FunctionKey, needed: tuple[int, int], error: Exception, attempt: int
    ) -> None:
        """An `Evict`."""
        assert (key, needed) == (KEY, NEEDED)
        if not self.idle:
            raise CodeMemoryError("nothing is idle") from error
        self.idle -= 1
        self.attempts.append(attempt)

    async def run(self, how: str) -> str:
        """One of the two ways."""
        relief = Relief(self.evict)
        if how == "run":
            return relief.run(KEY, NEEDED, self.make, "made")
        return await relief.run_async(KEY, NEEDED, self.make_async, "made")


@pytest.mark.parametrize("how", ["run", "run_async"])
async def test_it_is_tried_again_with_the_number_of_the_attempt(how: str) -> None:
    """From 0, so that each attempt can evict twice as much as the one before."""
    host = Host(refusals=3, idle=9)
    assert await host.run(how) == "made"
    assert (host.tried, host.attempts) == (4, [0, 1, 2])


@pytest.mark.parametrize("how", ["run", "run_async"])
async def test_with_nothing_idle_it_is_not_tried_again(how: str) -> None:
    """The error is that of the cache; the system's is its cause."""
    host = Host(refusals=3, idle=1)
    with pytest.raises(CodeMemoryError) as caught:
        await host.run(how)
    assert isinstance(caught.value.__cause__, NoMemoryError)
    assert host.tried == 2


@pytest.mark.parametrize("how", ["run", "run_async"])
async def test_what_succeeds_evicts_nothing(how: str) -> None:
    """It is tried once."""
    host = Host(refusals=0, idle=9)
    assert await host.run(how) == "made"
    assert (host.tried, host.attempts) == (1, [])
