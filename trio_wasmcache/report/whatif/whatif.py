"""Runs the same requests under other limits, through the cache's own policy.

Assumptions:

1. A task takes the same steps as in the log, in the same order, and as much time as then passes
   between being served and its next step. If it waits longer, all its later steps are later.
2. A task begins at the same time. Functions are registered, removed, replaced, promoted and
   profiled, and limits changed, at the same times; so are instances made in the background, if they
   fit. Groups, and the cache, are closed as long after their last lease as in the log; or, if they
   were closed under leases, at the same time. A task that comes earlier than in the log waits for
   the function to be registered, and for the group to be opened.
3. A lease leaves an instance or a seat of the same size; a lease with a failed call costs the
   instance again.
4. Loads take the times given by `loading`. A load that failed fails again.
5. A caller gives up waiting when its cancel scopes expire, or after the time that it waited in the
   log. If it is served now and was not then, it holds its lease for the function's usual time.
6. If an acquire is refused, the steps under its lease are skipped. If it was refused then and is
   not now, 5 applies; the steps that it would have taken under its lease are unknown.

A real run under these limits does exactly the same, if

- tasks do not depend on their results or on timing, and their steps have no other causes;
- in the log, no acquire was refused and no load failed, all acquires that were given up were of
  functions whose leases all last equally long, with no other steps under them, and each function
  was used;
- sizes depend on the function only, and nothing was removed or warmed;
- each group's tasks are its own, no two events happen at the same moment by chance, and no two
  loads of one module, if they take time, overlap.

The tests verify this with random applications of that kind. For others the result is approximate.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from attrs import Factory, define, evolve, field

from ..._core.errors import DeadlockError, WasmCacheError
from ..._core.events import (
    Event,
    Evicted,
    GroupResized,
    Loaded,
    PreparationRequested,
    Profiled,
    Promoted,
    Reason,
    Registered,
    Removed,
    Resized,
)
from ..._core.policy.copying import Whole
from ..._core.policy.instances import Step
from ..._core.policy.records import Request, Stage
from ..._core.wasm.isolation import RESET, SEAT_SIZE
from ..replay.books import Books, Limits, NameKey, config_of, limits_of, system_of
from .loading import Loading
from .results import Result
from .tasks import INSTANT, Acquire, Application, Release
from .tokens import Tokens

# Above the number of all that is done.
LATE = 1 << 62


class Run(NamedTuple):
    """What a process is asked to do: see `run_one`."""

    number: int
    """Index of the application."""
    row: int
    """Index of the setting, for the caller."""
    limits: Limits
    concurrency: int | None


def run_one(applications: Sequence[Application], run: Run) -> Result:
    """Run one of several applications under limits."""
    return WhatIf(applications[run.number], run.limits, run.concurrency).run()


@define(eq=False)
class WhatIf:
    """One run of an application under limits.

    Args:
        application: the programs to run.
        limits: fields of `CacheConfig`; the others are as in the log.
        concurrency: concurrency of every function; None: as in the log.
        evicted: called with each eviction, in order.
    """

    application: Application
    limits: Limits
    concurrency: int | None = None
    evicted: Callable[[Evicted], None] = lambda _event: None
    result: Result = Factory(lambda self: Result(self.limits), takes_self=True)
    _books: Books = field(init=False)
    _requests: dict[int, Request] = field(init=False)
    """{number: request} of those under way at the beginning."""
    _heap: list[tuple[float, int, Callable[[], None]]] = Factory(list)
    _order: int = 0
    _now: float = 0.0
    _tokens: dict[int, Tokens] = Factory(dict)  # {index of a group: its tokens}
    _leases: dict[Acquire, Request] = Factory(dict)  # granted, waiting or loading
    _asked: dict[Acquire, float] = Factory(dict)  # {acquire under way: time when it began}
    _acquires: dict[Request, Acquire] = Factory(dict)
    _loading: Loading = Factory(lambda self: Loading(self.application), takes_self=True)
    _preparations: set[Request] = Factory(set)
    """Those of preparations that wait for capacity, or have it."""
    _registrations: dict[NameKey, list[float]] = Factory(dict)
    """{function: times of its registrations}."""
    _remaining: int = 0
    """Number of acquires and changes that are still to come."""

    def __attrs_post_init__(self) -> None:
        beginning = self.application.beginning
        if beginning.whole is None:
            config = evolve(config_of(beginning.head), **self.limits)
            self._books, self._requests = Books(config, system_of(beginning.head)), {}
        else:  # the other limits apply from that moment on
            self._books, self._requests = beginning.books()

    def run(self) -> Result:
        """Run everything, from the opening to the closing.

        Raises:
            TypeError, ValueError: the limits are not valid for a cache.
        """
        made, policy = self.application, self._books.policy
        self._now = made.beginning.at
        if made.beginning.whole is not None:
            self._begin(made.beginning.whole)
        self.result.limits = {
            name: getattr(self._books.config, name) for name in limits_of(made.beginning.head)
        }
        for index, group in enumerate(made.groups):
            if group.opened_at is not None:
                self._at(group.opened_at, partial(self._open_group, index))
            if group.closed_at is None or (group.acquires and not group.cut_short):
                continue
            if not group.with_cache:
                self._at(group.closed_at, partial(self._close_group, index))
            elif group.cut_short:
                self._at(group.closed_at, self._close)
        for change in made.changes:
            if isinstance(event := change.event, Registered):
                name = event.function, event.arg_types
                self._registrations.setdefault(name, []).append(change.at_seconds)
            # What goes on in the background comes after all else of a moment.
            late = LATE * isinstance(change.event, Promoted | Loaded)
            self._at(change.at_seconds, partial(self._change, change.event), late)
        self._remaining = len(made.changes)
        for program in made.programs.values():
            self._remaining += sum(isinstance(item, Acquire) for item in program)
            self._next_after_start(program)
        if not self._remaining and made.closed_at is not None:
            self._at(made.closed_at, self._close)
        heap = self._heap
        while heap:
            at = heap[0][0]
            due = policy.next_expiry()
            if due is not None and due <= at:
                self._now = max(self._now, due)
                self._act(policy.expire(self._now))
                continue
            self._now = max(self._now, at)
            heapq.heappop(heap)[2]()
        self.result.hits, self.result.misses = policy.hits, policy.misses
        self.result.blocks = policy.blocks
        counted = policy.instances.evictions.items()
        self.result.evictions = {reason.value: number for reason, number in counted if number}
        return self.result

    def _begin(self, whole: Whole) -> None:
        """Begin with the books of a snapshot: with its leases, loads and waits."""
        made, books = self.application, self._books
        policy, now = books.policy, self._now
        for index, group in enumerate(made.groups):
            if group.opened_at is None:
                record = books.groups[group.opened.group]
                self._tokens[index] = Tokens(index, group, record, left=group.acquires)
        for function in books.functions.values():
            if function.module.users:
                self._loading.ready[function.module] = now
            if self.concurrency is not None:
                function.concurrency = self.concurrency
        for it in whole.requests:
            request = self._requests[it.request]
            if it.for_tasks is not None:
                self._books.await_preparation(it.request, "")
                self._prepare(request)
                continue
            acquire = made.started[it.request]
            self._leases[acquire], self._acquires[request] = request, acquire
            self._asked[acquire] = acquire.start
            if it.left:  # here, a lease has its token to the end
                owners = self._tokens[acquire.group].record.tokens.owners
                owners[acquire.task] = owners.get(acquire.task, 0) + 1
            if request.stage is Stage.LOADING:
                usual = made.load_seconds(acquire.name, request.held.loads_module)
                at, seconds = acquire.first_load or (now + usual, usual)
                self.result.load_seconds += at - now
                self._at(at, partial(self._loaded, acquire, request, seconds))
                self._expect_to_give_up(acquire)
            elif request.stage in (Stage.QUEUED, Stage.ROOM):
                self._expect_to_give_up(acquire)
            elif not it.acquired:  # its task goes on in the next pass
                granted = request.stage is Stage.GRANTED and not it.warm
                policy.hits += granted and it.hit
                policy.misses += granted and not it.hit
                self._at(now, partial(self._go_on, request))
        for acquire in made.token_waits:
            tokens = self._tokens[acquire.group]
            policy.waits.waiting[acquire.task] = tokens.record
            self._asked[acquire] = acquire.start
            tokens.wait(acquire)
            self._expect_to_give_up(acquire)
        if self.limits:
            self._act(books.resize(self.limits, now))

    def _next_after_start(self, program: list[Acquire | Release]) -> None:
        """Schedule the first step of a task, or the first one after the log's beginning."""
        index = 0
        while index < len(program) and program[index] in self._asked:
            index += 1
        if not index:
            self._next(program, 0, 0.0)
            return
        last = program[index - 1]
        assert isinstance(last, Acquire)
        if last.held:
            self._next(program, index, self._now)

    def _at(self, when: float, act: Callable[[], None], late: int = 0) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order + late, act))

    def _act(self, step: Step | None) -> None:
        if step is None:
            return
        self._loading.act(step)
        for _, event in step.evicted:
            self.evicted(event)
        for request in step.woken:
            self._go_on(request)

    # -- functions, groups, closing

    def _change(self, event: Event) -> None:
        match event:
            case PreparationRequested():
                self._request_preparation(event)
            case Registered():
                if self.concurrency is not None:
                    event = event.changed(concurrency=self.concurrency)
                self._act(self._books.register(event, self._now))
            case Removed():
                self._act(self._books.remove(event, self._now))
            case Promoted():
                self._promote(event)
            case Profiled():
                self._vary(event)
            case Loaded():
                self._upgrade(event)
            case Resized():
                changed = {k: v for k, v in limits_of(event).items() if k not in self.limits}
                self._act(self._books.resize(changed, self._now))
            case GroupResized():
                self._resize_group(event)
        self._one_done()

    def _promote(self, event: Promoted) -> None:
        try:
            step = self._books.promote(event, self._now)
        except WasmCacheError:
            return  # under these limits the code never fits, and the function stays as it is
        self._act(step)

    def _vary(self, event: Profiled) -> None:
        try:
            step = self._books.vary(event, self._now)
        except WasmCacheError:
            return  # under these limits the variant never fits, and nothing is profiled
        self._act(step)

    def _upgrade(self, event: Loaded) -> None:
        """Repeat what was made in the background, if it is wanted and fits."""
        try:
            done = self._books.upgrade(event, self._now)
        except KeyError:
            return  # nothing of the function is there, or its group is not open
        if done is not None:
            instance, step = done
            self._loading.ready.setdefault(instance.module, self._now)
            self._act(step)

    def _request_preparation(self, event: PreparationRequested) -> None:
        """Take capacity for a preparation, as long as it held it in the log.

        Tasks that register functions do so when they did in the log, however long it waits here, so
        none of them waits for it.
        """
        group, policy = self._books.groups.get(event.group), self._books.policy
        if group is None or group.closed:
            return
        request = self._books.prepare(event.changed(for_tasks=""), group, self._now)
        try:
            step = policy.acquire(request, self._now)
        except WasmCacheError:
            return
        ledger = policy.instances.ledger
        self.result.peak_code = max(self.result.peak_code, ledger.used)
        self._act(step)
        self._prepare(request)

    def _prepare(self, request: Request) -> None:
        """Continue with a preparation that has capacity, or waits for it."""
        number = request.number
        assert number is not None
        ended = self.application.preparations.get(number)
        self._preparations.add(request)
        if ended is None:
            return  # it goes on when the log ends
        if request.stage is Stage.ROOM:
            if ended.instance is None:  # nor did it get any then
                self._at(self._now + ended.wait_seconds, partial(self._end_preparation, request))
        elif request.stage is Stage.LOADING:
            self._at(self._now + ended.held_seconds, partial(self._end_preparation, request))
        else:
            self._preparations.discard(request)

    def _end_preparation(self, request: Request) -> None:
        if request not in self._preparations:
            return  # its group was closed meanwhile
        self._preparations.discard(request)
        policy = self._books.policy
        if request.stage is Stage.LOADING:
            self._act(policy.failed(request, self._now))
        elif request.stage is Stage.ROOM:
            self._act(policy.cancel(request, self._now))

    def _resize_group(self, event: GroupResized) -> None:
        for tokens in self._tokens.values():
            if tokens.record.name == event.group and not tokens.record.closed:
                tokens.capacity = event.capacity_tokens
                self._act(self._books.resize_group(tokens.record, event, self._now))

    def _open_group(self, index: int) -> None:
        group = self.application.groups[index]
        record = self._books.open_group(group.opened, lambda: False)
        self._tokens[index] = Tokens(index, group, record, left=group.acquires)

    def _close_group(self, index: int, reason: Reason = Reason.GROUP_CLOSED) -> None:
        tokens = self._tokens[index]
        record, policy = tokens.record, self._books.policy
        if record.closed:
            return
        self._act(policy.close_group(record, self._now, reason))
        waiting = tokens.stop_waiting()
        for acquire in waiting:
            policy.waits.end(acquire.task)
            self._refuse(acquire)
        for request in self._books.held_in(record):
            if request in self._preparations:
                self._end_preparation(request)
                continue
            acquire = self._acquires.pop(request)
            del self._leases[acquire]
            if request.stage is Stage.LOADING:
                self._fail(request)
                self._give_back(acquire)
                self._refuse(acquire)
            else:
                size = acquire.release.size if acquire.release else 0
                self._act(policy.recycle(request, size, self._now, reason))
                self._give_back(acquire)

    def _close(self) -> None:
        if not self._books.policy.closed:
            self._books.policy.close()
            for index in self._tokens:
                self._close_group(index, Reason.CLOSED)

    def _one_done(self) -> None:
        """Count one acquire or change as over; after the last, close the cache as in the log."""
        made = self.application
        self._remaining -= 1
        if self._remaining or made.closed_at is None:
            return
        if not any(it.cut_short and it.with_cache for it in made.groups):
            self._at(self._now + (made.closed_at - made.last_at), self._close)

    # -- tasks

    def _next(self, program: list[Acquire | Release], index: int, over: float) -> None:
        """Schedule the next step, as long after `over`, the end of the previous one, as then."""
        while index < len(program):
            item = program[index]
            if isinstance(item, Acquire) or item.acquire in self._leases:
                self._at(over + item.gap, partial(self._step, item))
                return
            over += item.gap  # its lease was cut short; the task noticed only at this step
            if self._asked.pop(item.acquire, None) is not None:
                self._count(item.acquire)
            index += 1

    def _program(self, acquire: Acquire) -> list[Acquire | Release]:
        return self.application.programs[acquire.task]

    def _step(self, item: Acquire | Release) -> None:
        if isinstance(item, Release):
            self._release(item)
            return
        tokens = self._tokens.get(item.group)
        if tokens is None:  # the task is earlier than in the log, and has to wait for the group
            opened_at = self.application.groups[item.group].opened_at or 0.0
            self._at(opened_at, partial(self._step, item))
            return
        registered_at = self._registration(item)
        if registered_at is not None:
            self._at(registered_at, partial(self._step, item))
            return
        self._asked[item] = self._now
        if tokens.record.closed:
            self._refuse(item)
        elif tokens.take(item.task):
            self._request(item, blocked=False)
        else:
            self._wait_for_token(item, tokens)

    def _registration(self, acquire: Acquire) -> float | None:
        """Return when the function of an acquire is registered, if that has to be waited for."""
        if acquire.name in self._books.current:
            return None
        times = self._registrations.get(acquire.name, ())
        before = (at for at in times if self._now < at <= acquire.start + INSTANT)
        return next(before, None)

    def _wait_for_token(self, acquire: Acquire, tokens: Tokens) -> None:
        policy = self._books.policy
        try:
            policy.waits.begin(acquire.task, tokens.record)
        except DeadlockError:
            self._refuse(acquire)
            return
        policy.blocks += 1
        tokens.wait(acquire)
        self._expect_to_give_up(acquire)

    def _request(self, acquire: Acquire, blocked: bool) -> None:
        """Request an instance, with a token held."""
        policy, books = self._books.policy, self._books
        function = books.current.get(acquire.name)
        if function is None:
            self._give_back(acquire)
            self._refuse(acquire)
            return
        record = self._tokens[acquire.group].record
        since = self._now if blocked else None
        request = policy.request(function, record, acquire.task, acquire.warm, blocked_since=since)
        self._leases[acquire], self._acquires[request] = request, acquire
        try:
            step = policy.acquire(request, self._now)
        except WasmCacheError:
            self._drop(acquire)
            self._give_back(acquire)
            self._refuse(acquire)
            return
        ledger = policy.instances.ledger
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
        """Continue with a request that waits no longer, or did not have to."""
        if request in self._preparations:
            self._prepare(request)
            return
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
        seconds = self._loading.begin(acquire, request.held, self._now)
        self.result.load_seconds += seconds
        self._at(self._now + seconds, partial(self._loaded, acquire, request, seconds))

    def _fail(self, request: Request) -> None:
        """End a load without an instance."""
        self._loading.failed(request.held, self._now)
        self._act(self._books.policy.failed(request, self._now))

    def _loaded(self, acquire: Acquire, request: Request, seconds: float) -> None:
        if self._leases.get(acquire) is not request or request.stage is not Stage.LOADING:
            return  # its group was closed meanwhile
        policy = self._books.policy
        if acquire.outcome == "failed":
            self._drop(acquire)
            self._fail(request)
            self._give_back(acquire)
            self._refuse(acquire)
            return
        size = self.application.loaded_sizes.get(acquire.name, 0)
        self._act(policy.loaded(request, self._now, size, seconds))
        self._go_on(request)

    def _granted(self, acquire: Acquire) -> None:
        if not acquire.warm:
            self.result.wait_seconds += self._now - self._asked[acquire]
        release = acquire.release
        if release is None and acquire.outcome == "leased":
            return  # the log ends while it is held
        if release is None:
            hold = self.application.hold_seconds(acquire.name)
            left = self.application.left.get(acquire.name, (0, False, None))
            release = Release(acquire, hold, acquire.index, *left)
            self._at(self._now + hold, partial(self._release, release))
        else:
            self._next(self._program(acquire), acquire.index + 1, self._now)

    def _release(self, release: Release) -> None:
        acquire = release.acquire
        if acquire not in self._leases:
            self._done(acquire, release.index)
            return
        request = self._drop(acquire)
        policy, drop = self._books.policy, Reason.CORRUPTED if release.corrupted else None
        size, seat, reserved = release.size, release.seat, release.reserved
        limit = policy.config.max_instance_size
        if request.entry.function.isolation == RESET and drop is None:
            # The cache closes instances that are too large under the limit of this run.
            if release.closed_size is not None and release.closed_size <= limit:
                size, seat = release.closed_size, False
            elif not seat and size > limit:
                size, seat = SEAT_SIZE, True
        self._act(policy.recycle(request, size, self._now, drop, seat, reserved))
        total = policy.instances.ledger.total_size
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
        if tokens.give_up(acquire):
            self._books.policy.waits.end(acquire.task)
        elif request is not None and request.stage in (Stage.QUEUED, Stage.ROOM):
            self._drop(acquire)
            self._act(self._books.policy.cancel(request, self._now))
            self._give_back(acquire)
        elif request is not None and request.stage is Stage.LOADING:
            self._drop(acquire)
            self._fail(request)
            self._give_back(acquire)
        else:
            return
        self.result.gave_up += 1
        self._skip(acquire)

    def _refuse(self, acquire: Acquire) -> None:
        self.result.refused += 1
        self._skip(acquire)

    def _skip(self, acquire: Acquire) -> None:
        """Skip the steps under a lease that was not granted."""
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
        """Count an acquire as over; after the last one of a group, close that."""
        tokens = self._tokens[acquire.group]
        self._one_done_of(tokens)
        self._one_done()

    def _one_done_of(self, tokens: Tokens) -> None:
        """Count an acquire of a group as over; after the last one, schedule its closing."""
        tokens.left -= 1
        group = tokens.group
        if tokens.left or group.closed_at is None or group.cut_short:
            return
        if not group.with_cache:
            after = group.closed_at - group.last_at
            self._at(self._now + after, partial(self._close_group, tokens.index))
