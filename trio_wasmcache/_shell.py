"""Does what the policy decided: closes, unloads, wakes and logs; nothing is decided here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import trio
from attrs import Factory, frozen

from ._core.config import CacheConfig
from ._core.events import Reason
from ._core.policy import Policy
from ._core.records import FunctionRecord, GroupRecord, Request
from ._core.residents import Step
from ._engine.seam import Engine
from ._journal import Journal
from ._log import LogWriter
from ._registry import Registry
from ._results import ResultMemory
from ._runner import Runner


@frozen(kw_only=True)
class Base:
    """The counters of a cache at one moment, for those that are told since then."""

    hits: int = 0
    misses: int = 0
    blocks: int = 0
    calls: int = 0
    evictions: Mapping[Reason, int] = Factory(dict)
    log_lost: int = 0
    log_failures: int = 0


@final
class Shell:
    """The parts of one cache that its leases, groups and background task share."""

    def __init__(self, config: CacheConfig, engine: Engine, log: LogWriter) -> None:
        self.config = config
        self.engine = engine
        self.log = log
        self.journal: Journal = Journal(log, config.log_uses)
        self.policy: Policy = Policy(config)
        self.registry: Registry = Registry()
        self.exact: Mapping[tuple[str, tuple[str, ...]], FunctionRecord] = self.registry.exact
        self.runner: Runner = Runner(config)
        self.results: ResultMemory = ResultMemory()
        # Makes a lease of a group; leases are above this layer, so the cache puts it here.
        self.new_lease: Callable[[Any, str, Sequence[str]], Any]
        self.closed = False
        # What a hit asks.
        self.now: Callable[[], float] = _short_way_to_the_clock()
        self.token: trio.lowlevel.TrioToken = trio.lowlevel.current_trio_token()
        # What could not be done where a block ended, for want of room on Python's stack.
        self.leaving: list[Callable[[], None]] = []
        # What was counted when statistics began anew.
        self.base: Base = Base()
        # The background task sleeps in this scope; its deadline is the next thing due.
        self.sleep: trio.CancelScope = trio.CancelScope()
        self.expects_expiry: bool = False
        self.main: GroupRecord = GroupRecord("main")

    def act(self, step: Step | None, at: float | None = None) -> None:
        """Carry out what a step of the policy left to do. Never waits, never fails.

        `at` is the time that the policy was given, for the log.
        """
        if step is None:
            return
        for instance, event in step.evicted:
            if instance.payload is not None:
                native, instance.payload = instance.payload, None
                native.close()
            self.journal.note(event, at)
            # Memory is short, or the cache has less to do.
            self.results.forget()
        for module in step.unloaded:
            if module.users == 0:  # it may have been asked for again within the same step
                module.payload.unload()
        for request in step.woken:
            if request.sleeper is not None:
                sleeper, request.sleeper = request.sleeper, None
                trio.lowlevel.reschedule(sleeper)

    def expect_expiry(self) -> None:
        """Let the background task wake when something idle is due: called whenever something rests.

        While it sleeps until a time that is not later, it need not know: it looks again then.
        """
        if not self.expects_expiry:
            self.sleep_until(self.policy.next_expiry())

    def sleep_until(self, due: float | None) -> None:
        """Let the background task wake at that time; None: not by itself."""
        if due is None and not self.expects_expiry:
            return  # as it does already; to tell Trio so costs more than a call
        self.expects_expiry = due is not None
        self.sleep.deadline = math.inf if due is None else due

    def adapt_instances(self) -> None:
        """Limits have changed: the next lease of each goes the long way, and adapts it to them."""
        for entry in self.policy.residents.entries:
            for instance in (*entry.idle, *(request.instance for request in entry.claims)):
                if instance is not None:
                    instance.ready = None

    def let_leave(self) -> None:
        """Do what was put off to where there is room on Python's stack."""
        while self.leaving:
            self.leaving[-1]()
            self.leaving.pop()

    def count_calls(self) -> int:
        """Calls begun so far."""
        return self.base.calls + self.policy.residents.count_calls()


def _short_way_to_the_clock() -> Callable[[], float]:
    """`trio.current_time`, by a shorter way.

    Trio's own clock adds a constant to `perf_counter`. Asked through Python, twice in a hit, it
    costs a quarter of what a hit does itself; so C adds it. Any other clock is asked as it is.
    """
    clock = trio.lowlevel.current_clock()
    if type(clock).__name__ != "SystemClock":
        return clock.current_time
    # Between the two a thread may have had its turn: the largest is the best.
    constant = max(clock.current_time() - time.perf_counter() for _ in range(10))
    return map(constant.__add__, iter(time.perf_counter, None)).__next__


def held_in(policy: Policy, group: GroupRecord | None) -> list[Request]:
    """The requests that hold an instance, of one group or of all."""
    return [r for r in policy.waits.held if group is None or r.entry.group is group]
