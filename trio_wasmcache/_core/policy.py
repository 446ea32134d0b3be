"""The state machine that decides who is served, who waits, and in what order.

Rules:

1. A step is synchronous. It takes the time, changes state once, and *returns* what must be closed,
   who must be woken and what happened; it never does any of it. An error changes nothing.
2. A request goes through the same stages in the same order: an instance of its entry (first come,
   first served), then room to run (first come, first served in the whole cache), then the load if
   there is nothing idle.
3. An instance or room is granted in the step that frees it. Nothing is ever assigned but idle.
4. Recycling never waits and never fails.

What is there and how it goes is in `residents`; how a request goes from stage to stage is in
`stages`, and how nearly all of them do in `hits`. The shell around them closes, loads, wakes and
logs; the log tool replays a log through this file.
"""

from __future__ import annotations

from collections.abc import Hashable

from attrs import define

from .config import CacheConfig
from .errors import CodeMemoryError, DeadlockError
from .events import Reason
from .hits import Hits
from .records import (
    GRANTED,
    NEW,
    Closed,
    Entry,
    FunctionRecord,
    GroupRecord,
    Instance,
    Request,
    Stage,
)
from .residents import Step
from .state import LOADING, RECYCLE, Action, IllegalStepError, step
from .uses import COMPILES, FUELS, HOLDS, RUNS, microseconds


@define(eq=False)
class Policy(Hits):
    """Decides for one cache. Its clock is the `now` (seconds) that it is given."""

    # -- acquire

    def request(
        self, function: FunctionRecord, group: GroupRecord, owner: Hashable, warm: bool = False
    ) -> Request:
        """A new request, at stage NEW; `acquire` is its first step, to be taken at once."""
        return Request(self.residents.entry(function, group), owner, warm)

    def acquire(self, request: Request, now: float) -> Step | None:
        """Take `request` as far as it goes without waiting.

        Afterwards its `stage` is GRANTED (a hit), LOADING, QUEUED or ROOM. What loads is a hit,
        too, if it does so on a seat. A warm request is GRANTED at once where `concurrency` allows
        no further instance.

        Raises:
            CodeMemoryError: it would not fit into an empty budget.
            DeadlockError: it would have to wait for itself.
        """
        _expect(request, NEW)
        entry = request.entry
        claims = entry.claims
        free = len(claims) < entry.function.concurrency and not entry.waiting
        if free and entry.idle and not (self.room or request.warm or entry.idle[-1].seat):
            # The fast path of a hit.
            residents, ledger = self.residents, self.residents.ledger
            if (
                ledger.code_size + ledger.stacks + ledger.stack_size <= self.config.max_code_size
                and ledger.running_size + entry.function.worst_size <= residents.running_limit
            ):
                claims[request] = None
                self._grant(request, now)
                return None
        if not request.blocked:
            request.since = now
        self._turns += 1
        request.turn = self._turns
        try:
            self.residents.check_fits(entry.function)
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
        It is not among the `woken`, as it did not sleep.
        """
        instance = _instance(request, Stage.LOADING)
        seat, instance.seat = instance.seat, False
        reason = self._unwanted(instance.entry)
        if reason is None:
            request.hit = seat
            if not request.warm:
                instance.state = step(instance.state, Action.LOADED)
                self._count_loaded(request, now)
            request.stage = Stage.GRANTED
            request.since = now
            return None
        result = Step()
        claimed = request.entry
        self.residents.drop(instance, reason, now, result)
        self._let_go(request)
        if reason is not Reason.REMOVED:
            self._end(request, Closed(), result)
        else:
            self._go_on(request, now, result)
        self._pump(claimed, now, result)
        self._pump(instance.entry, now, result)
        if request in result.woken:
            result.woken.remove(request)
        return result

    def failed(self, request: Request, now: float) -> Step:
        """The load failed or was cancelled: all that was taken is given back, a seat too.

        The slot goes to the first waiter of the entry, which tries for itself.
        """
        instance = _instance(request, Stage.LOADING)
        result = Step()
        claimed = request.entry
        if instance.seat:
            self._put_back(instance, now, result)
        else:
            self.residents.discard(instance, result)
        self._let_go(request)
        self._pump(claimed, now, result)
        self._pump(instance.entry, now, result)
        return result

    def cancel(self, request: Request, now: float) -> Step:
        """The waiter gives up. Whoever was behind it may go on now."""
        entry = request.entry
        if request.stage is Stage.QUEUED:
            entry.waiting.remove(request)
        else:
            _expect(request, Stage.ROOM)
            self._leave_room(request)
        result = Step()
        self.waits.end(request.owner)
        request.stage = Stage.ENDED
        self._pump(entry, now, result)
        return result

    # -- recycle

    def hand_over(self, request: Request, owner: Hashable, now: float) -> Step | None:
        """The block of the lease has ended, but not the call of it that `owner` has under way.

        So from now on it is up to `owner` when the instance is free. If that one waits, maybe for
        this very instance, the wait may be in vain now: then it ends with a `DeadlockError`.
        """
        _expect(request, GRANTED)
        request.owner = owner
        resource = self.waits.waiting.get(owner)
        if resource is None or self.waits.chain(owner, resource) is None:
            return None
        result = Step()
        self._break_cycle(owner, now, result)
        return result

    def recycle(
        self,
        request: Request,
        size: int,
        now: float,
        drop: Reason | None = None,
        seat: bool = False,
    ) -> Step | None:
        """The lease ended; `size` is what its instance may touch now (bytes).

        With `drop` the instance goes for that reason. Otherwise it stays if it may, and the least
        recently used go until it fits. With `seat` it is closed already, and a seat stays, of that
        size.
        """
        instance = _instance(request, GRANTED)
        entry = instance.entry
        residents, config = self.residents, self.config
        if seat:
            instance.seat, instance.ready = True, None
        if not request.warm:
            instance.uses += 1
            entry.uses.add(HOLDS, int((now - request.since) * 1e6))
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
            # One that was loaded to be warm never ran.
            action = Action.WARMED if instance.state is LOADING else RECYCLE
            residents.settle(instance, action, size, now)
        self._let_go(request)
        if entry.waiting or self.room or drop is not None or residents.shrunk:
            result = result or Step()
            self._pump(entry, now, result)
        return result

    def _put_back(self, seat: Instance, now: float, result: Step) -> None:
        """Nothing could be loaded on `seat`: it stays as if it had just been left, if it may."""
        config, limit = self.config, None
        reason = self._unwanted(seat.entry)
        if reason is None and seat.size > config.max_instance_size:
            reason, limit = Reason.OVERSIZED, config.max_instance_size
        elif reason is None and seat.size > config.max_size:
            reason, limit = Reason.SIZE, config.max_size
        if reason is not None:
            self.residents.drop(seat, reason, now, result, limit)
        else:
            self.residents.shrink(config.max_size - seat.size, now, result)
            self.residents.settle(seat, Action.LEAVE, seat.size, now)

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
        self.residents.fold()
        function.retired = True
        if function.successor is None:
            self.residents.book.drop_function(function.key)
        result = Step()
        for entry in list(function.entries.values()):
            self.residents.evict_entry(entry, Reason.REMOVED, now, result)
            self._move_on(entry, result)
            self.residents.forget(entry)
        self._refuse_misfits(result)
        if function.successor is not None:
            for entry in list(function.successor.entries.values()):
                self._pump(entry, now, result)
        self._pump_room(now, result)
        return result

    def close_group(self, group: GroupRecord, now: float, reason: Reason) -> Step:
        """No new leases in `group`: its idle instances go, its waiters end with `Closed`."""
        self.residents.fold()
        group.closed = True
        if not self.closed:
            group.gone = True
            self.residents.book.drop_group(group.name)
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
        for entry in self._refuse_misfits(result):
            self._pump(entry, now, result)
        self._pump_room(now, result)
        return result

    # -- what is noted about uses

    def note_token_block(self, function: FunctionRecord, group: GroupRecord) -> None:
        """An acquire has to wait for a token of its group, so there is no request yet."""
        self._count_block()
        entry = self.residents.entry(function, group)
        entry.uses.blocks += 1
        self.residents.noted(entry)

    def note_error(self, entry: Entry, error: str) -> None:
        """An acquire, or a call, ended with an error of that type."""
        entry.uses.note_error(error)
        self.residents.noted(entry)

    def note_long_call(self, entry: Entry, fuel: int, seconds: float) -> None:
        """A call that had gone on beyond its first slice is over, and so is its lease maybe."""
        entry.uses.add(RUNS, microseconds(seconds))
        entry.uses.add(FUELS, fuel)
        self.residents.noted(entry)

    def note_compiled(self, function: FunctionRecord, seconds: float) -> None:
        """The module of a function was compiled, for it."""
        self.residents.book.of_function(function.key).add(COMPILES, microseconds(seconds))

    def _unwanted(self, entry: Entry) -> Reason | None:
        """Why a running instance of `entry` must not come back into the cache."""
        if self.closed:
            return Reason.CLOSED
        if entry.group.closed:
            return Reason.GROUP_CLOSED
        return Reason.REMOVED if entry.function.retired else None


def _expect(request: Request, stage: Stage) -> None:
    if request.stage is not stage:
        raise IllegalStepError(f"this can't be done to a request that is {request.stage.value}")


def _instance(request: Request, stage: Stage) -> Instance:
    _expect(request, stage)
    assert request.instance is not None
    return request.instance
