"""A call in a thread that is cancelled: the loop waits a moment for the thread to leave."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trio_wasmcache import CacheConfig, open_cache
from trio_wasmcache._runtime import runner

FOREVER = '(module (func (export "forever") (loop (br 0))))'


class Passes(trio.abc.Instrument):
    """Counts passes of the event loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        self.count += 1


async def cancel_calls(times: int) -> list[int]:
    """Passes of the loop from each cancellation to the end of the call."""
    taken = []
    config = CacheConfig(offload_after=0, total_fuel=10**12)
    async with open_cache(config) as cache:
        function = await cache.register("forever", FOREVER, args=())
        for _ in range(times):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(function.call)
                await trio.testing.wait_all_tasks_blocked()
                passes = Passes()
                trio.lowlevel.add_instrument(passes)
                nursery.cancel_scope.cancel()
            trio.lowlevel.remove_instrument(passes)
            taken.append(passes.count)
        assert cache.stats().running_instances == 0
    return taken


async def test_a_thread_that_leaves_in_time_costs_no_pass_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call ends in the pass after its cancellation, and the thread's word comes too late."""
    monkeypatch.setattr(runner, "STOP_WAIT", 60.0)
    monkeypatch.setattr(runner, "STOP_WAIT_EVERY", 0.0)
    assert max(await cancel_calls(3)) <= 2


@pytest.mark.parametrize(("seconds", "every"), [(0.0, 0.0), (60.0, 1e9)])
async def test_a_thread_that_does_not_ends_the_call_by_way_of_the_loop(
    monkeypatch: pytest.MonkeyPatch, seconds: float, every: float
) -> None:
    """Also if the loop has waited for another one just before."""
    monkeypatch.setattr(runner, "STOP_WAIT", seconds)
    monkeypatch.setattr(runner, "STOP_WAIT_EVERY", every)
    assert len(await cancel_calls(2)) == 2
