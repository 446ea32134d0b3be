"""The event loop gets the GIL beside a batch in a thread if it is awake, and sleeps on if not."""

from __future__ import annotations

import itertools
import math
import threading
import time
from array import array
from collections.abc import Callable

import pytest
import trio
from batch.modules import held
from kits import WasmtimeKit

from trio_wasmcache import CacheConfig
from trio_wasmcache._batch import chunks
from trio_wasmcache._batch.chunks import Way

LOOKS = 20


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call looks, and none of them waits for a loop because time has passed."""
    for name in ("LOOK_EVERY", "LOOK"):
        monkeypatch.setattr(chunks, name, 0)
    for name in ("WAKE_EVERY", "WAKE_UNSEEN_EVERY"):
        monkeypatch.setattr(chunks, name, math.inf)
    monkeypatch.setattr(chunks, "REST", 10)


async def waits(clock: Callable[[], float] | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often a thread waits for the loop in `2 * LOOKS` calls, after a first one."""
    monkeypatch.setattr(chunks, "_clock_of_thread", lambda: clock)
    passes = 0

    class Token:
        def run_sync_soon(self, function: Callable[[], None]) -> None:
            nonlocal passes
            passes += 1
            token.run_sync_soon(function)

    def make() -> None:
        for _ in range(2 * LOOKS + 1):
            way.make()

    token = trio.lowlevel.current_trio_token()
    way = Way(Token())  # type: ignore[arg-type]
    await trio.to_thread.run_sync(make)
    return passes


@pytest.mark.usefixtures("eager")
async def test_a_loop_that_sleeps_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread uses no CPU time between two looks."""
    assert await waits(lambda: 1.5, monkeypatch) == 0


@pytest.mark.usefixtures("eager")
async def test_a_loop_that_is_awake_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every second look, as two looks tell whether its thread uses CPU time."""
    assert await waits(itertools.count(1.5).__next__, monkeypatch) == LOOKS


@pytest.mark.usefixtures("eager")
async def test_what_was_used_between_two_pairs_of_looks_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as for what the thread itself has had the loop do."""
    used = (number // 2 for number in itertools.count())
    assert await waits(lambda: next(used), monkeypatch) == 0


@pytest.mark.usefixtures("eager")
async def test_it_is_waited_for_now_and_then_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the clock of that thread may not show that it is awake."""
    monkeypatch.setattr(chunks, "WAKE_EVERY", 0)
    assert await waits(lambda: 1.5, monkeypatch) == LOOKS


@pytest.mark.usefixtures("eager")
async def test_without_such_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for by the time alone."""
    assert await waits(None, monkeypatch) == 0
    monkeypatch.setattr(chunks, "WAKE_UNSEEN_EVERY", 0)
    assert await waits(None, monkeypatch) == 2 * LOOKS


def test_systems_without_such_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads have one on Linux, and not on macOS or Windows."""
    monkeypatch.delattr("time.pthread_getcpuclockid", raising=False)
    assert chunks._clock_of_thread() is None


@pytest.mark.skipif("not hasattr(__import__('time'), 'pthread_getcpuclockid')")
def test_the_clock_is_that_of_the_thread_which_asks_for_it() -> None:
    """Whichever thread reads it."""
    clock = chunks._clock_of_thread()
    assert clock is not None
    read: list[float] = []
    before = time.thread_time()
    reading = threading.Thread(target=lambda: read.append(clock()))
    reading.start()
    reading.join()
    assert before <= read[0] <= clock() <= time.thread_time()


@pytest.mark.usefixtures("eager")
async def test_a_loop_that_has_ended_is_not_waited_for() -> None:
    """A thread that is left behind goes on."""

    class Token:
        def run_sync_soon(self, _: Callable[[], None]) -> None:
            raise trio.RunFinishedError

    way = Way(Token())  # type: ignore[arg-type]
    way._clock = itertools.count(1.5).__next__
    for _ in range(5):
        way.make()


@pytest.mark.usefixtures("eager")
async def test_batches_in_threads_look(real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each chunk, and those on the loop do not."""
    rows = array("q", range(40_000))
    for offload, looks in ((None, False), (0, True)):
        looked = itertools.count()
        monkeypatch.setattr(chunks, "_clock_of_thread", lambda looked=looked: lambda: next(looked))
        config = CacheConfig(offload_after=offload)
        async with held(real, real.adding_two(), config, args=("i64", "i64")) as (_, lease):
            assert list(await lease.map([rows, 1])) == list(range(1, 40_001))
        assert bool(next(looked)) == looks
