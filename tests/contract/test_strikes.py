"""An error from outside, as a signal handler's, at each line of an acquire and of a lease's end.

Trio defers Ctrl-C where that would leave a lease held, but not what an application's own handler
raises. Python runs handlers where a function begins, and after a call. The errors of this test are
raised there in turn, in the code of leases, acquires and turns. What cuts a step of the policy in
two, and what hits `__aexit__` or the end of a turn before its first line, can't be mended, and is
not tried.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dis import opmap
from types import FrameType
from typing import Any

import pytest
import trio
from kits import FakeKit, add
from trio.testing import wait_all_tasks_blocked

from trio_wasmcache import CacheConfig, InstanceCache
from trio_wasmcache._core.policy.shares import Share
from trio_wasmcache._runtime.turns import Turns
from trio_wasmcache.testing import check_invariants, snapshot

I64 = ("i64",)
FILES = ("_cache/lease.py", "_pool/acquisition.py", "_core/stack_room.py")
CALLED = (
    "queue",
    "may_rest",
    "wait_task_rescheduled",
    "unwrap",
    "first",
    "begin",
    "must_yield",
)  # by these files
SPARED = ("__aexit__", "keep", "give_back")  # at their first line
CALLS = [opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX") if name in opmap]
# Seconds after which a task that waits for ever fails its test, far more than any wait takes.
HANG = 60


class Strike(Exception):
    """The error of a signal handler."""


class Striker:
    """Raises `Strike` at one place of those where Python runs signal handlers, counted from 0."""

    def __init__(self, place: int, files: tuple[str, ...] = FILES) -> None:
        self.left = place
        self.files = files
        self.at: tuple[str, int] | None = None
        self._called: FrameType | None = None  # the last instruction of this frame was a call

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Count the places, and strike."""
        sys.settrace(self._begin)
        try:
            yield
        finally:
            sys.settrace(None)

    def _begin(self, frame: FrameType, event: str, argument: object) -> Any:
        self._called = None  # Python runs no handler where a function of Python's returns
        code, caller = frame.f_code, frame.f_back
        ours = code.co_filename.endswith(self.files) or (
            code.co_name in CALLED
            and caller is not None
            and caller.f_code.co_filename.endswith(self.files)
        )
        if self.at is not None or not ours:
            return None
        # Not where a coroutine goes on: Python runs no handler there.
        if code.co_name not in SPARED and code.co_code[frame.f_lasti + 1] < 2:
            self._place(frame)
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._look

    def _look(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and self.at is None:
            called, self._called = self._called, None
            if called is frame:
                self._place(frame)
            if frame.f_code.co_code[frame.f_lasti] in CALLS:
                self._called = frame
        return self._look

    def _place(self, frame: FrameType) -> None:
        if not self.left:
            self.at = (frame.f_code.co_name, frame.f_lineno)
            raise Strike
        self.left -= 1


async def struck(cache: InstanceCache, striker: Striker, *, held: bool) -> None:
    """Have a task acquire and call while it is struck; another one is in line before it."""

    async def call() -> None:
        try:
            async with cache.acquire("f", I64) as lease:
                await trio.lowlevel.checkpoint()
                await lease.call(1)
        except Strike:
            pass

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            if held:
                async with cache.acquire("f", I64):
                    nursery.start_soon(call)
                    await wait_all_tasks_blocked()
                    with striker.armed():
                        nursery.start_soon(call)
                        await wait_all_tasks_blocked()
            # Twice: from Python 3.13 on, the first run of a function may not show all instructions.
            for _ in range(1 if held else 2):
                with striker.armed():
                    nursery.start_soon(call)
                    await wait_all_tasks_blocked()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("log_uses", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("held", [False, True], ids=["alone", "line"])
async def test_an_error_from_outside_leaves_nothing_held(*, held: bool, log_uses: bool) -> None:
    """Wherever it is raised: nobody has, or waits for, an instance or a token afterwards."""
    config = CacheConfig(offload_after=None, log_uses=log_uses)
    places = set()
    striker = Striker(0)
    for place in range(10_000):
        kit = FakeKit()
        async with kit.open(config) as cache:
            await add(cache, "f", kit.adding(1))
            striker = Striker(place)
            await struck(cache, striker, held=held)
            assert snapshot(cache).group("main").tokens == 0, striker.at
            stats = cache.stats()
            assert (stats.running_instances, stats.waiting) == (0, 0), striker.at
            check_invariants(cache)
            with trio.fail_after(HANG):
                async with cache.acquire("f", I64) as lease:
                    assert await lease.call(1) == 2
        if striker.at is None:
            break
        places.add(striker.at[0])
    assert striker.at is None
    assert {"__aenter__", "__aexit__"} <= places


async def take_turns(turns: Turns, share: Share) -> None:
    """Have three turns, as a call of three slices."""
    try:
        await turns.take(share)
        holding = True
        try:
            for _ in range(2):
                share.charge(100)
                holding = False
                await turns.keep(share)
                holding = True
        finally:
            if holding:
                turns.give_back()
    except Strike:
        pass


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
async def test_an_error_from_outside_keeps_no_turn() -> None:
    """Wherever it is raised: the next task that asks for a turn gets one, and all others do."""
    places = set()
    striker = Striker(0)
    for place in range(10_000):
        turns, light, heavy = Turns(1), Share(1000), Share(1)
        striker = Striker(place, ("_runtime/turns.py",))
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                await turns.take(Share(100))
                for share in (heavy, light, heavy):
                    nursery.start_soon(take_turns, turns, share)
                    await wait_all_tasks_blocked()
                with striker.armed():
                    with suppress(Strike):
                        turns.give_back()
                    nursery.start_soon(take_turns, turns, light)
                    await wait_all_tasks_blocked()
                await take_turns(turns, light)
        assert (turns.taken, turns.contended) == (0, False), striker.at
        if striker.at is None:
            break
        places.add(striker.at[0])
    assert striker.at is None
    assert {"take", "_is_ahead", "begin"} <= places
