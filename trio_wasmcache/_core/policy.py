"""The state machine that decides who is served, who waits, and in what order.

Rules:

1. A step is synchronous. It takes the time, changes state once, and *returns* what must be closed,
   who must be woken and what happened; it never does any of it. An error changes nothing.
2. A request goes through the same stages in the same order: an instance of its entry (first come,
   first served), then room for code and stack (first come, first served in the whole cache), then
   the load if there is nothing idle.
3. An instance or room is granted in the step that frees it. Nothing is ever assigned but idle.
4. Recycling never waits and never fails.

What is there and how it goes is in `residents`. The shell around both closes, loads, wakes and
logs; the log tool replays a log through this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from attrs import Factory, define

from .config import CacheConfig
from .errors import CodeMemoryError, DeadlockError, UnknownFunctionError
from .events import Reason
from .records import Closed, Entry, FunctionRecord, GroupRecord, Instance, Request, Stage
from .residents import Residents, Step
from .state import Action, step
from .waits import ROOM, Resource, Waits


@define(eq=False)
class Policy:
    """Decides for one cache. Its clock is the `now` (seconds) that it is given."""

    config: CacheConfig
    residents: Residents = Factory(lambda self: Residents(self.config), takes_self=True)
    room: deque[Request] = Factory(deque)
    """Who waits for room, in order."""
    waits: Waits = Factory(Waits)
    hits: int = 0
    misses: int = 0
    blocks: int = 0
    closed: bool = False

    # -- acquire

    def request(
        self, function: FunctionRecord, group: GroupRecord, owner: Hashable, warm: bool = False
    ) -> Request:
        """A new request, at stage NEW; `acquire` is its first step."""
        return Request(self.residents.entry(function, group), owner, warm)

    def acquire(self, request: Request, now: float) -> Step | None:
        """Take `request` as far as it goes without waiting.

        Afterwards its `stage` is GRANTED (a hit), LOADING, QUEUED or ROOM.

        Raises:
            CodeMemoryError: it would not fit into an empty budget.
            DeadlockError: it would have to wait for itself.
        """
        entry = request.entry
        claims = entry.claims
        free = len(claims) < entry.function.concurrency and not entry.waiting
        if free and entry.idle and not self.room and not request.warm:
            # The fast path of a hit.
            ledger = self.residents.ledger
            if ledger.code_size + ledger.stacks + ledger.stack_size <= self.config.max_code_size:
                claims[request] = None
                self._grant(request)
                return None
        try:
            self._check_fits(entry)
            if free:
                return self._seek_room(request, now)
            self._block(request, entry)
        except (CodeMemoryError, DeadlockError):
            request.stage = Stage.ENDED
            self.residents.forget(entry)
            raise
        request.stage = Stage.QUEUED
        entry.waiting.append(request)
        return None

    def loaded(self, request: Request, now: float) -> Step | None:
        """The load succeeded: the request is GRANTED.

        If its function was retired or its group closed meanwhile, the new instance goes, and the
        request is at another stage: LOADING again, QUEUED or ROOM to wait, or ENDED with `error`.
        """
        instance = self._instance(request)
        reason = self._unwanted(instance.entry)
        if reason is None:
            if not request.warm:
                instance.state = step(instance.state, Action.LOADED)
                self.misses += 1
            request.stage = Stage.GRANTED
            return None
        result = Step()
        old = instance.entry
        self.residents.drop(instance, reason, now, result)
        self._let_go(request)
        if reason is not Reason.REMOVED:
            self._end(request, Closed(), result)
        else:
            self._go_on(request, now, result)
        self._pump(old, now, result)
        return result

    def failed(self, request: Request, now: float) -> Step:
        """The load failed or was cancelled: all that was taken is given back.

        The slot goes to the first waiter of the entry, which tries for itself.
        """
        instance = self._instance(request)
        result = Step()
        self.residents.discard(instance, result)
        claimed = request.entry
        self._let_go(request)
        self._pump(claimed, now, result)
        if instance.entry is not claimed:
            self._pump(instance.entry, now, result)
        return result

    def cancel(self, request: Request, now: float) -> Step:
        """The waiter gives up. Whoever was behind it may go on now."""
        entry = request.entry
        if request.stage is Stage.QUEUED:
            entry.waiting.remove(request)
        elif request.stage is Stage.ROOM:
            self.room.remove(request)
            del entry.claims[request]
        else:
            raise RuntimeError(f"a request that is {request.stage.value} does not wait")
        result = Step()
        self.waits.end(request.owner)
        request.stage = Stage.ENDED
        self._pump(entry, now, result)
        return result

    # -- recycle

    def recycle(
        self, request: Request, size: int, now: float, drop: Reason | None = None
    ) -> Step | None:
        """The lease ended; `size` is what its instance may touch now (bytes).

        With `drop` the instance goes for that reason. Otherwise it stays if it may, and the least
        recently used go until it fits.
        """
        instance = self._instance(request)
        entry = instance.entry
        residents, config = self.residents, self.config
        if not request.warm:
            instance.uses += 1
        limit = None
        if (unwanted := self._unwanted(entry)) is not None:
            drop = drop or unwanted
        elif drop is None and size > config.max_instance_size:
            drop, limit = Reason.OVERSIZED, config.max_instance_size
        elif drop is None and size > config.max_size:
            drop, limit = Reason.SIZE, config.max_size
        result = None
        if drop is not None:
            result = Step()
            instance.size = size
            residents.drop(instance, drop, now, result, limit)
        else:
            if residents.ledger.total_size + size > config.max_size:
                result = Step()
                residents.shrink(config.max_size - size, now, result)
            residents.settle(instance, Action.WARMED if request.warm else Action.RECYCLE, size, now)
        self._let_go(request)
        if entry.waiting or self.room or drop is not None:
            result = result or Step()
            self._pump(entry, now, result)
        return result

    def expire(self, now: float) -> Step:
        """Evict what has been idle for `idle_timeout`."""
        result = Step()
        self.residents.expire(now, result)
        self._pump_room(now, result)
        return result

    def next_expiry(self) -> float | None:
        """When `expire` will next have something to do (the clock of `now`), or None."""
        oldest = self.residents.lru.oldest()
        return None if oldest is None else oldest.last_used + self.config.idle_timeout

    # -- functions, groups, limits

    def retire(self, function: FunctionRecord, now: float) -> Step:
        """`function` was removed, or replaced if it has a `successor`.

        Its idle instances go. Who waits goes on with the successor, in order, or ends with
        `UnknownFunctionError`; who runs is not disturbed; who loads is seen to in `loaded`.
        """
        function.retired = True
        result = Step()
        for entry in list(function.entries.values()):
            self.residents.evict_entry(entry, Reason.REMOVED, now, result)
            self._move_on(entry, now, result)
            self.residents.forget(entry)
        self._pump_room(now, result)
        return result

    def close_group(self, group: GroupRecord, now: float, reason: Reason) -> Step:
        """No new leases in `group`: its idle instances go, its waiters end with `Closed`."""
        group.closed = True
        result = Step()
        for entry in list(group.entries):
            self.residents.evict_entry(entry, reason, now, result)
            for request in self._take_waiters(entry):
                self._end(request, Closed(), result)
            self.residents.forget(entry)
        self._pump_room(now, result)
        return result

    def resize(self, config: CacheConfig, now: float) -> Step:
        """Live under other limits from now on; those who wait and never fit end with an error."""
        self.config = config
        result = Step()
        self.residents.resize(config, now, result)
        for request in list(self.room):
            try:
                self._check_fits(request.entry)
            except CodeMemoryError as error:
                self.room.remove(request)
                del request.entry.claims[request]
                self._end(request, error, result)
                self._pump(request.entry, now, result)
        self._pump_room(now, result)
        return result

    # -- from stage to stage

    def _check_fits(self, entry: Entry) -> None:
        function = entry.function
        stack_size = self.residents.ledger.stack_size
        needed = function.module.code_size + stack_size
        if needed > self.config.max_code_size:
            raise CodeMemoryError(
                f"{function.key} needs {needed} bytes ({function.module.code_size} of code, "
                f"{stack_size} of stack), but max_code_size is {self.config.max_code_size}: "
                "raise it, or split the module"
            )

    def _seek_room(self, request: Request, now: float) -> Step | None:
        """The request has an instance coming to it: give it room too, or let it wait for that."""
        result = Step()
        if self.room or not self._serve(request, now, result):
            self._block(request, ROOM)
            request.stage = Stage.ROOM
            self.room.append(request)
        request.entry.claims[request] = None
        return result

    def _serve(self, request: Request, now: float, result: Step) -> bool:
        entry = request.entry
        hit = bool(entry.idle) and not request.warm
        if not self.residents.make_room(entry.function.module, not hit, now, result):
            return False
        if hit and entry.idle:
            self._grant(request)
        else:
            request.instance = self.residents.start(entry, now)
            request.stage = Stage.LOADING
            self.waits.held[request] = None
        return True

    def _grant(self, request: Request) -> None:
        request.instance = self.residents.resume(request.entry)
        request.stage = Stage.GRANTED
        request.hit = True
        self.waits.held[request] = None
        self.hits += 1

    def _pump(self, entry: Entry, now: float, result: Step) -> None:
        """Something became free: serve the waiters of `entry`, then those who wait for room."""
        while entry.waiting and len(entry.claims) < entry.function.concurrency:
            request = entry.waiting.popleft()
            self.waits.end(request.owner)
            try:
                self._check_fits(entry)
                found = self._seek_room(request, now)
            except (CodeMemoryError, DeadlockError) as error:
                self._end(request, error, result)
                continue
            if found:
                result.evicted += found.evicted
                result.unloaded += found.unloaded
            if request.stage is not Stage.ROOM:
                result.woken.append(request)
        self._pump_room(now, result)
        self.residents.forget(entry)

    def _pump_room(self, now: float, result: Step) -> None:
        while self.room:
            request = self.room[0]
            if self._serve(request, now, result):
                self.room.popleft()
                self.waits.end(request.owner)
                result.woken.append(request)
                continue
            try:
                # Whoever released was perhaps the last that could, and nobody else will notice.
                self.waits.check(request.owner, ROOM)
            except DeadlockError as error:
                self.room.popleft()
                del request.entry.claims[request]
                self._end(request, error, result)
                self._pump(request.entry, now, result)
            return

    def _go_on(self, request: Request, now: float, result: Step) -> None:
        """A load was overtaken by `retire`: the request goes before all who came after it."""
        function = request.entry.function
        while function.retired and function.successor is not None:
            function = function.successor
        if function.retired:
            self._end(request, _unknown(function), result)
            return
        entry = request.entry = self.residents.entry(function, request.entry.group)
        request.stage = Stage.QUEUED
        entry.waiting.appendleft(request)
        self._pump(entry, now, result)
        if request.stage is Stage.QUEUED:
            try:
                self._block(request, entry)
            except DeadlockError as error:
                entry.waiting.remove(request)
                self._end(request, error, result)

    def _move_on(self, old: Entry, now: float, result: Step) -> None:
        """Who waits in `old` goes on in its successor's entry; who loads keeps a claim there."""
        loaders = [request for request in old.claims if request.stage is Stage.LOADING]
        waiters = self._take_waiters(old)
        successor = old.function.successor
        if successor is None:
            for request in waiters:
                self._end(request, _unknown(old.function), result)
            return
        if not (waiters or loaders):
            return
        new = self.residents.entry(successor, old.group)
        for request in loaders:
            del old.claims[request]
            request.entry = new
            if len(new.claims) < successor.concurrency:
                new.claims[request] = None
        for request in waiters:
            request.entry = new
            request.stage = Stage.QUEUED
            self.waits.waiting[request.owner] = new
            new.waiting.append(request)
        self._pump(new, now, result)

    def _take_waiters(self, entry: Entry) -> list[Request]:
        """All who wait in `entry`, in order, no longer in any queue."""
        in_room = [request for request in entry.claims if request.stage is Stage.ROOM]
        for request in in_room:
            self.room.remove(request)
            del entry.claims[request]
        waiters = in_room + list(entry.waiting)
        entry.waiting.clear()
        return waiters

    def _block(self, request: Request, resource: Resource) -> None:
        self.waits.begin(request.owner, resource)
        if not request.blocked:
            request.blocked = True
            self.blocks += 1

    def _end(self, request: Request, error: Exception, result: Step) -> None:
        self.waits.end(request.owner)
        request.stage = Stage.ENDED
        request.error = error
        result.woken.append(request)

    def _let_go(self, request: Request) -> None:
        request.stage = Stage.ENDED
        request.instance = None
        del self.waits.held[request]
        request.entry.claims.pop(request, None)

    def _unwanted(self, entry: Entry) -> Reason | None:
        """Why a running instance of `entry` must not come back into the cache."""
        if self.closed:
            return Reason.CLOSED
        if entry.group.closed:
            return Reason.GROUP_CLOSED
        return Reason.REMOVED if entry.function.retired else None

    @staticmethod
    def _instance(request: Request) -> Instance:
        if request.instance is None:
            raise RuntimeError(f"a request that is {request.stage.value} has no instance")
        return request.instance


def _unknown(function: FunctionRecord) -> UnknownFunctionError:
    return UnknownFunctionError(f"{function.key} was removed while this acquire waited for it")
