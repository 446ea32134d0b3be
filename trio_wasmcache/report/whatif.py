"""What the cache would have done under other limits: the same requests, through its own policy.

What is assumed:

1. A task does the same as in the log, in the same order: it asks for the same functions in the same
   groups. Between being served and its next step passes the time that passed then: it holds its
   leases for as long, and rests for as long. So if it waits longer, all it does later is later.
2. A task begins when it began. Functions are registered, removed and replaced, and limits changed,
   when they were. Groups are opened when they were, and closed as long after their last lease ended
   as they were (or, if they were closed under leases, when they were); so is the cache, after the
   last lease or change.
3. An instance has the size that it had in the log at the end of the same lease, and a lease in
   which a call failed costs the instance again.
4. A load takes what it took for the same acquire; if that was a hit then, what it usually takes for
   the function (the median). A load that failed fails again.
5. A caller gives up waiting as long after it asked as its cancel scopes said then, or as it did
   then. If it is served now and was not then, it holds its lease for as long as is usual for the
   function.
6. Where an acquire is refused now, what was done under its lease is not done. Where it was refused
   then and is not now, as in 5; what would have been done under its lease nobody knows.

A real run under other limits then does the same, in the same order, if

- tasks do not look at what they get or how long it took, and what they do has no other cause;
- no acquire was refused in the log, and those that gave up were for functions whose leases all last
  equally long, with nothing else done under them;
- the size of an instance depends on its function only, and nothing is removed or warmed;
- each group's tasks are its own, and no two things happen at the same moment by chance.

The tests hold it to that, with random applications of that kind.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from functools import partial
from typing import Any

from attrs import Factory, define, evolve

from .._core.errors import DeadlockError, WasmCacheError
from .._core.events import Evicted, Reason
from .._core.records import Module, Request, Stage
from .._core.residents import Step
from .books import Books, config_of, limits_of
from .results import Result
from .tasks import Acquire, Application, Release
from .tokens import Tokens


@define(eq=False)
class WhatIf:
    """One run of an application under limits.

    Args:
        limits: fields of `CacheConfig`; those that are not named are as in the log.
        evicted: told of each eviction, in order.
    """

    application: Application
    limits: dict[str, Any]
    evicted: Callable[[Evicted], None] = lambda event: None
    advanced: Callable[[int], None] = lambda acquires: None
    result: Result = Factory(lambda self: Result(self.limits), takes_self=True)
    _books: Books = Factory(
        lambda self: Books(evolve(config_of(self.application.opened), **self.limits)),
        takes_self=True,
    )
    _heap: list[tuple[float, int, Callable[[], None]]] = Factory(list)
    _order: int = 0
    _now: float = 0.0
    _tokens: dict[int, Tokens] = Factory(dict)  # {index of a group: its tokens}
    _leases: dict[Acquire, Request] = Factory(dict)  # granted, waiting or loading
    _asked: dict[Acquire, float] = Factory(dict)  # {acquire under way: when it began}
    _acquires: dict[Request, Acquire] = Factory(dict)
    _ready: dict[Module, float] = Factory(dict)  # {module that is not unloaded: from when on}
    _usual: dict[tuple[tuple[str, str], bool], float] = Factory(dict)
    _served: int = 0
    _remaining: int = 0
    """Acquires and changes that are still to come."""

    def run(self) -> Result:
        """Everything, from the opening to the closing.

        Raises:
            TypeError, ValueError: no cache has such limits.
        """
        made, policy = self.application, self._books.policy
        self.result.limits = {
            name: getattr(self._books.config, name) for name in limits_of(made.opened)
        }
        for index, group in enumerate(made.groups):
            self._at(group.opened_at, partial(self._open_group, index))
            if group.closed_at is None or (group.acquires and not group.cut_short):
                continue
            if not group.with_cache:
                self._at(group.closed_at, partial(self._close_group, index))
            elif group.cut_short:
                self._at(group.closed_at, self._close)
        for change in made.changes:
            self._at(change["at_seconds"], partial(self._change, change))
        self._remaining = len(made.changes)
        for program in made.programs.values():
            self._remaining += sum(isinstance(item, Acquire) for item in program)
            self._next(program, 0, 0.0)
        if not self._remaining and made.closed_at is not None:
            self._at(made.closed_at, self._close)
        heap, lru = self._heap, policy.residents.lru
        while heap:
            at = heap[0][0]
            oldest = lru.oldest()
            if oldest is not None:
                due = oldest.last_used + policy.config.idle_timeout
                if due <= at:
                    self._now = max(self._now, due)
                    self._act(policy.expire(self._now))
                    continue
            self._now = max(self._now, at)
            heapq.heappop(heap)[2]()
        self.result.hits, self.result.misses = policy.hits, policy.misses
        self.result.blocks = policy.blocks
        counted = policy.residents.evictions.items()
        self.result.evictions = {reason.value: number for reason, number in counted if number}
        return self.result

    def _at(self, when: float, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, act))

    def _act(self, step: Step | None) -> None:
        if step is None:
            return
        for module in step.unloaded:
            if not module.users:
                self._ready.pop(module, None)
        for _, event in step.evicted:
            self.evicted(event)
        for request in step.woken:
            self._go_on(request)

    # -- functions, groups, closing

    def _change(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "wasmcache.registered":
                self._act(self._books.register(event, self._now))
            case "wasmcache.removed":
                self._act(self._books.remove(event, self._now))
            case _:
                changed = {k: v for k, v in limits_of(event).items() if k not in self.limits}
                self._act(self._books.resize(changed, self._now))
        self._one_done()

    def _open_group(self, index: int) -> None:
        group = self.application.groups[index]
        record = self._books.open_group(group.name, lambda: False)
        self._tokens[index] = Tokens(index, group, record, left=group.acquires)

    def _close_group(self, index: int, reason: Reason = Reason.GROUP_CLOSED) -> None:
        tokens = self._tokens[index]
        record, policy = tokens.record, self._books.policy
        if record.closed:
            return
        self._act(policy.close_group(record, self._now, reason))
        waiting = list(tokens.waiting)
        tokens.waiting.clear()
        for acquire in waiting:
            policy.waits.end(acquire.task)
            self._refuse(acquire)
        for request in self._books.held_in(record):
            acquire = self._acquires.pop(request)
            del self._leases[acquire]
            if request.stage is Stage.LOADING:
                self._act(policy.failed(request, self._now))
                self._give_back(acquire)
                self._refuse(acquire)
            else:
                size = acquire.release.size if acquire.release else 0
                self._act(policy.recycle(request, size, self._now, reason))
                self._give_back(acquire)

    def _close(self) -> None:
        if not self._books.policy.closed:
            self._books.policy.closed = True
            for index, tokens in self._tokens.items():
                if not tokens.record.closed:
                    self._close_group(index, Reason.CLOSED)

    def _one_done(self) -> None:
        """One acquire or change fewer; after the last one the cache closes."""
        made = self.application
        self._remaining -= 1
        if not self._remaining and made.closed_at is not None and not self._cut_short:
            after = made.closed_at - made.last_at
            self._at(self._now + after, self._close)

    @property
    def _cut_short(self) -> bool:
        """Whether the cache was closed under leases."""
        made = self.application
        return any(it.cut_short and it.with_cache for it in made.groups)

    # -- tasks

    def _next(self, program: list[Acquire | Release], index: int, over: float) -> None:
        """The step before was over at `over`: what comes next comes as long after it as it did."""
        while index < len(program):
            item = program[index]
            if isinstance(item, Acquire) or item.acquire in self._leases:
                self._at(over + item.gap, partial(self._step, item))
                return
            over += item.gap  # its lease was cut short; the task found out when it came there
            index += 1

    def _program(self, acquire: Acquire) -> list[Acquire | Release]:
        return self.application.programs[acquire.task]

    def _step(self, item: Acquire | Release) -> None:
        if isinstance(item, Release):
            self._release(item)
            return
        tokens = self._tokens.get(item.group)
        if tokens is None:  # it comes there earlier than it did, and has to wait for the group
            self._at(self.application.groups[item.group].opened_at, partial(self._step, item))
            return
        self._asked[item] = self._now
        if tokens.record.closed:
            self._refuse(item)
        elif tokens.take(item.task):
            self._request(item, blocked=False)
        else:
            self._wait_for_token(item, tokens)

    def _wait_for_token(self, acquire: Acquire, tokens: Tokens) -> None:
        policy = self._books.policy
        try:
            policy.waits.begin(acquire.task, tokens.record)
        except DeadlockError:
            self._refuse(acquire)
            return
        policy.blocks += 1
        tokens.waiting.append(acquire)
        self._expect_to_give_up(acquire)

    def _request(self, acquire: Acquire, blocked: bool) -> None:
        """It has its token."""
        policy, books = self._books.policy, self._books
        function = books.current.get(acquire.name)
        if function is None:
            self._give_back(acquire)
            self._refuse(acquire)
            return
        record = self._tokens[acquire.group].record
        request = policy.request(function, record, acquire.task, acquire.warm)
        request.blocked = blocked
        self._leases[acquire], self._acquires[request] = request, acquire
        try:
            step = policy.acquire(request, self._now)
        except WasmCacheError:
            self._drop(acquire)
            self._give_back(acquire)
            self._refuse(acquire)
            return
        ledger = policy.residents.ledger
        self.result.peak_code = max(self.result.peak_code, ledger.used)
        self._act(step)
        self._go_on(request)
        if request.stage in (Stage.QUEUED, Stage.ROOM, Stage.LOADING) and not blocked:
            self._expect_to_give_up(acquire)

    def _drop(self, acquire: Acquire) -> Request:
        request = self._leases.pop(acquire)
        del self._acquires[request]
        return request

    def _go_on(self, request: Request) -> None:
        """It sleeps no longer, or has not begun to."""
        acquire = self._acquires[request]
        if request.stage is Stage.GRANTED:
            self._granted(acquire)
        elif request.stage is Stage.LOADING:
            self._load(acquire, request)
        elif request.stage is Stage.ENDED:
            self._drop(acquire)
            self._give_back(acquire)
            self._refuse(acquire)

    def _load(self, acquire: Acquire, request: Request) -> None:
        """It takes what making the instance does, after what is left of loading its module."""
        instance = request.instance
        assert instance is not None
        module = instance.entry.function.module
        ready = self._ready.get(module)
        if ready is None:
            seconds = self._seconds(acquire, cold=True)
            self._ready[module] = self._now + seconds - self._usual_seconds(acquire.name, False)
        else:
            seconds = max(0.0, ready - self._now) + self._seconds(acquire, cold=False)
        self.result.load_seconds += seconds
        self._at(self._now + seconds, partial(self._loaded, acquire, request))

    def _seconds(self, acquire: Acquire, cold: bool) -> float:
        """What the load took, if it had the same to do; what it usually takes, if not."""
        if acquire.load_seconds is not None and acquire.cold == cold:
            return acquire.load_seconds
        return self._usual_seconds(acquire.name, cold)

    def _usual_seconds(self, name: tuple[str, str], cold: bool) -> float:
        key = name, cold
        if key not in self._usual:
            self._usual[key] = self.application.load_seconds(name, cold)
        return self._usual[key]

    def _loaded(self, acquire: Acquire, request: Request) -> None:
        if self._leases.get(acquire) is not request or request.stage is not Stage.LOADING:
            return  # its group was closed meanwhile
        policy = self._books.policy
        if acquire.outcome == "failed":
            self._drop(acquire)
            self._act(policy.failed(request, self._now))
            self._give_back(acquire)
            self._refuse(acquire)
            return
        assert request.instance is not None
        request.instance.size = self.application.sizes.get(acquire.name, 0)
        self._act(policy.loaded(request, self._now))
        self._go_on(request)

    def _granted(self, acquire: Acquire) -> None:
        if not acquire.warm:
            self.result.wait_seconds += self._now - self._asked[acquire]
        release = acquire.release
        if release is None and acquire.outcome == "leased":
            return  # the log ends while it is held
        if release is None:
            hold = self.application.hold_seconds(acquire.name)
            release = Release(
                acquire, hold, acquire.index, self.application.sizes.get(acquire.name, 0)
            )
            self._at(self._now + hold, partial(self._release, release))
        else:
            self._next(self._program(acquire), acquire.index + 1, self._now)

    def _release(self, release: Release) -> None:
        acquire = release.acquire
        if acquire not in self._leases:
            self._done(acquire, release.index)
            return
        request = self._drop(acquire)
        drop = Reason.CORRUPTED if release.corrupted else None
        self._act(self._books.policy.recycle(request, release.size, self._now, drop))
        total = self._books.policy.residents.ledger.total_size
        self.result.peak_size = max(self.result.peak_size, total)
        self._give_back(acquire)
        self._done(acquire, release.index)

    def _give_back(self, acquire: Acquire) -> None:
        following = self._tokens[acquire.group].give_back(acquire.task)
        if following is not None:
            self._books.policy.waits.end(following.task)
            self._request(following, blocked=True)

    # -- giving up, being refused, being done

    def _expect_to_give_up(self, acquire: Acquire) -> None:
        if acquire.patience is not None:
            at = self._asked[acquire] + acquire.patience
            self._at(at, partial(self._give_up, acquire))

    def _give_up(self, acquire: Acquire) -> None:
        tokens = self._tokens[acquire.group]
        request = self._leases.get(acquire)
        if acquire in tokens.waiting:
            tokens.waiting.remove(acquire)
            self._books.policy.waits.end(acquire.task)
        elif request is not None and request.stage in (Stage.QUEUED, Stage.ROOM):
            self._drop(acquire)
            self._act(self._books.policy.cancel(request, self._now))
            self._give_back(acquire)
        elif request is not None and request.stage is Stage.LOADING:
            self._drop(acquire)
            self._act(self._books.policy.failed(request, self._now))
            self._give_back(acquire)
        else:
            return
        self.result.gave_up += 1
        self._skip(acquire)

    def _refuse(self, acquire: Acquire) -> None:
        self.result.refused += 1
        self._skip(acquire)

    def _skip(self, acquire: Acquire) -> None:
        """It has no lease, so what was done under it is not done."""
        end = acquire.index if acquire.release is None else acquire.release.index
        for item in self._program(acquire)[acquire.index + 1 : end]:
            if isinstance(item, Acquire):
                self._count(item)
        self._done(acquire, end)

    def _done(self, acquire: Acquire, index: int) -> None:
        self._asked.pop(acquire, None)
        self._count(acquire)
        self._next(self._program(acquire), index + 1, self._now)

    def _count(self, acquire: Acquire) -> None:
        """It is over. The last one of a group lets that close."""
        self._served += 1
        if self._served % 10_000 == 0:
            self.advanced(10_000)
        tokens = self._tokens[acquire.group]
        self._one_done_of(tokens)
        self._one_done()

    def _one_done_of(self, tokens: Tokens) -> None:
        """One acquire of a group fewer; after the last one it closes."""
        tokens.left -= 1
        group = tokens.group
        if tokens.left or group.closed_at is None or group.cut_short:
            return
        if not group.with_cache:
            after = group.closed_at - group.last_at
            self._at(self._now + after, partial(self._close_group, tokens.index))
