"""How a request goes from stage to stage, and who goes next when something becomes free.

The steps that the shell takes are in `policy`, which builds on this. What holds between them:

1. No entry has waiters while one of its claims is free, and nobody waits for room that is there.
2. Whoever waits for room has a claim already, so a line for room never holds more requests of an
   entry than that may serve at once.
3. Some task that holds an instance is free to go on: a wait that is in vain ends with an error,
   where it begins or, if a release made it so, in the step of the release.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from attrs import Factory, define

from .config import CacheConfig
from .errors import CodeMemoryError, DeadlockError, UnknownFunctionError
from .records import ENDED, GRANTED, Entry, FunctionRecord, Request, Stage
from .residents import Residents, Step
from .uses import WAITS, microseconds
from .waits import ROOM, Resource, Waits


@define(eq=False)
class Stages:
    """Who waits, in which line, and who is served."""

    config: CacheConfig
    residents: Residents = Factory(lambda self: Residents(self.config), takes_self=True)
    room: deque[Request] = Factory(deque)
    """Who waits for room, in order."""
    waits: Waits = Factory(Waits)
    hits: int = 0
    misses: int = 0
    blocks: int = 0
    closed: bool = False
    _turns: int = 0

    def _seek_room(self, request: Request, now: float) -> Step:
        """The request has an instance coming to it: give it room too, or let it wait for that."""
        result = Step()
        claims = request.entry.claims
        # First, as a claim keeps the entry in the books when making room evicts what is idle there.
        claims[request] = None
        if self.room or not self._serve(request, now, result):
            try:
                self._block(request, ROOM)
            except DeadlockError:
                # Who stands before it in line waits for what it holds: let it by if it fits.
                if self.room and self._serve(request, now, result):
                    return result
                del claims[request]
                raise
            self._enter_room(request)
        return result

    def _serve(self, request: Request, now: float, result: Step) -> bool:
        """Give a request that has a claim its room, and what it claimed; False if there is none."""
        entry = request.entry
        hit = bool(entry.idle)
        if request.warm and entry.live < entry.function.concurrency:
            hit = False
        if not self.residents.make_room(entry.function, not hit, now, result):
            return False
        if hit and not entry.idle[-1].seat:
            self._grant(request, now)
        else:
            residents = self.residents
            request.instance = residents.take(entry) if hit else residents.start(entry, now)
            request.stage = Stage.LOADING
            self.waits.held[request] = None
        return True

    def _grant(self, request: Request, now: float) -> None:
        request.instance = self.residents.resume(request.entry)
        request.stage = GRANTED
        request.hit = True
        self.waits.held[request] = None
        if not request.warm:
            self.hits += 1
            if request.turn or request.blocked:
                self._note_wait(request, now)
        request.since = now

    def _count_block(self) -> None:
        self.blocks += 1

    def _count_loaded(self, request: Request, now: float) -> None:
        if request.hit:
            self.hits += 1
        else:
            self.misses += 1
            request.entry.uses.misses += 1
        self._note_wait(request, now)

    def _note_wait(self, request: Request, now: float) -> None:
        request.entry.uses.add(WAITS, microseconds(now - request.since))

    def _pump(self, entry: Entry, now: float, result: Step) -> None:
        """Something became free: serve the waiters of `entry`, then those who wait for room."""
        while entry.waiting and len(entry.claims) < entry.function.concurrency:
            request = entry.waiting.pop(0)
            try:
                self.residents.check_fits(entry.function)
            except CodeMemoryError as error:
                self._end(request, error, result)
                continue
            entry.claims[request] = None
            if self.room or not self._serve(request, now, result):
                # Whether that is in vain is seen below, where it is known who has to give way.
                self.waits.waiting[request.owner] = ROOM
                self._note_block(request)
                self._enter_room(request)
            else:
                self.waits.end(request.owner)
                result.woken.append(request)
        self._pump_room(now, result)
        self.residents.forget(entry)

    def _pump_room(self, now: float, result: Step) -> None:
        if self.residents.shrunk:
            self.residents.trim(now, result)
        while self.room:
            request = self.room[0]
            if not self._serve(request, now, result):
                # Whoever released was perhaps the last that could, and nobody else will notice.
                if self.waits.chain(request.owner, ROOM) is not None:
                    self._break_deadlock(now, result)
                return
            self.room.popleft()
            self.waits.end(request.owner)
            result.woken.append(request)

    def _break_deadlock(self, now: float, result: Step) -> None:
        """Nobody who holds room can go on: one of them overtakes, if it fits, or gives way.

        The first in line would be the wrong one if it holds nothing: the others would be stuck as
        before. All who wait for room are in the same trap, so any of them that holds will do.
        """
        holders = {request.owner for request in self.waits.held}
        for request in [request for request in self.room if request.owner in holders]:
            if self._serve(request, now, result):
                self.room.remove(request)
                self.waits.end(request.owner)
                result.woken.append(request)
                return
        stuck = (request for request in self._waiters() if request.owner in holders)
        self._give_way(next(stuck, self.room[0]), now, result)

    def _break_cycle(self, owner: Hashable, now: float, result: Step) -> None:
        """What `owner` waits for, nobody can give it any more: it gives way, or one that it needs.

        The latter where it waits for a token: such a wait is not the policy's to end.
        """
        waiters = {request.owner: request for request in self._waiters()}
        needed = (waiters[task] for task in self.waits.reach(owner) if task in waiters)
        self._give_way(next(needed), now, result)

    def _waiters(self) -> list[Request]:
        """All who wait, for room first."""
        queued = (request for entry in self.residents.entries for request in entry.waiting)
        return [*self.room, *queued]

    def _give_way(self, request: Request, now: float, result: Step) -> None:
        """Its wait ends with a `DeadlockError`."""
        error = self.waits.error(request.owner, self.waits.waiting[request.owner])
        if request.stage is Stage.ROOM:
            self._leave_room(request)
        else:
            request.entry.waiting.remove(request)
        self._end(request, error, result)
        self._pump(request.entry, now, result)

    def _go_on(self, request: Request, now: float, result: Step) -> None:
        """A load was overtaken by `retire`: the request goes before all who came after it."""
        function = request.entry.function
        while function.retired and function.successor is not None:
            function = function.successor
        if function.retired:
            self._end(request, _unknown(function), result)
            return
        entry = request.entry = self.residents.entry(function, request.entry.group)
        self._queue(request)
        self._pump(entry, now, result)
        if request.stage is Stage.QUEUED:
            try:
                self._block(request, entry)
            except DeadlockError as error:
                entry.waiting.remove(request)
                self._end(request, error, result)

    def _move_on(self, old: Entry, result: Step) -> None:
        """Who waits in `old` goes on in its successor's entry; who loads keeps a claim there.

        Who waits for room keeps its place too, as far as the successor's `concurrency` goes.
        """
        successor = old.function.successor
        if successor is None:
            for request in self._take_waiters(old):
                self._end(request, _unknown(old.function), result)
            return
        claims = [request for request in old.claims if request.stage is not Stage.GRANTED]
        if not (claims or old.waiting):
            return
        new = self.residents.entry(successor, old.group)
        for request in claims:
            if len(new.claims) < successor.concurrency:
                new.claims[request] = None
            elif request.stage is Stage.ROOM:
                self.room.remove(request)
                old.waiting.append(request)
            del old.claims[request]
            request.entry = new
        for request in old.waiting:
            request.entry = new
            self.waits.waiting[request.owner] = new
            self._queue(request)
        old.waiting.clear()

    def _refuse_misfits(self, result: Step) -> list[Entry]:
        """Who waits for room that can never be made ends with an error; gives their entries."""
        entries = []
        for request in list(self.room):
            try:
                self.residents.check_fits(request.entry.function)
            except CodeMemoryError as error:
                self._leave_room(request)
                self._end(request, error, result)
                entries.append(request.entry)
        return entries

    def _take_waiters(self, entry: Entry) -> list[Request]:
        """All who wait in `entry`, in order, no longer in any queue."""
        in_room = [request for request in entry.claims if request.stage is Stage.ROOM]
        for request in in_room:
            self._leave_room(request)
        waiters = in_room + list(entry.waiting)
        entry.waiting.clear()
        return waiters

    def _queue(self, request: Request) -> None:
        """Into the queue of its entry, before all who came later."""
        request.stage = Stage.QUEUED
        queue = request.entry.waiting
        place = len(queue)
        while place and queue[place - 1].turn > request.turn:
            place -= 1
        queue.insert(place, request)

    def _enter_room(self, request: Request) -> None:
        request.stage = Stage.ROOM
        self.room.append(request)

    def _leave_room(self, request: Request) -> None:
        self.room.remove(request)
        del request.entry.claims[request]

    def _block(self, request: Request, resource: Resource) -> None:
        self.waits.begin(request.owner, resource)
        self._note_block(request)

    def _note_block(self, request: Request) -> None:
        if not request.blocked:
            request.blocked = True
            self.blocks += 1
            request.entry.uses.blocks += 1

    def _end(self, request: Request, error: Exception, result: Step) -> None:
        self.waits.end(request.owner)
        request.stage = Stage.ENDED
        request.error = error
        result.woken.append(request)

    def _let_go(self, request: Request) -> None:
        request.stage = ENDED
        request.instance = None
        del self.waits.held[request]
        request.entry.claims.pop(request, None)


def _unknown(function: FunctionRecord) -> UnknownFunctionError:
    return UnknownFunctionError(f"{function.key} was removed while this acquire waited for it")
