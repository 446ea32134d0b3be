"""A hit from its first step to its last, written out: what nearly every acquire and recycle is.

`Policy.acquire` and `Policy.recycle` do the same, and all else, in a dozen calls each. Here there
is not one, as a call in Python costs as much as three of these lines. Whatever is out of the
ordinary is refused with nothing changed, and goes the long way. That both ways lead to the same
state, whatever the state before, is tested with the policy's model.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from attrs import define

from .records import ENDED, GRANTED, FunctionRecord, GroupRecord, Request
from .stages import Stages
from .state import IDLE, RUNNING
from .uses import HOLDS


@define(eq=False)
class Hits(Stages):
    """The short way of a hit."""

    hits: int = 0  # as in `Stages`; said again, as type checkers want it where it is counted

    def hit(
        self,
        function: FunctionRecord,
        group: GroupRecord,
        owner: Hashable,
        payload: Any,
        now: float,
    ) -> Request | None:
        """A request that is GRANTED an idle instance, or None: then nothing has changed.

        Only an instance that is `ready` is taken, and nobody else may be kept waiting by it.
        """
        entry = function.entries.get(group)
        if entry is None or not (idle := entry.idle) or entry.waiting or self.room:
            return None
        instance, claims, residents = idle[-1], entry.claims, self.residents
        ledger = residents.ledger
        running = ledger.running + 1
        running_size = ledger.running_size + function.worst_size
        if (
            instance.ready is None
            or len(claims) >= function.concurrency
            or running > ledger.most_running
            or running_size > residents.running_limit
        ):
            return None
        request = instance.request
        if request is None:
            request = instance.request = Request(entry, owner)
            request.hit = True
        # The instance and the order of use. From here on there is not even a call of C, which could
        # still fail for want of room on Python's stack.
        del idle[-1]
        instance.state = RUNNING
        before, after = instance.before, instance.after
        before.after, after.before = after, before
        instance.before = instance.after = None
        # The ledger.
        module = function.module
        if module.running == 0:
            before, after = module.before, module.after
            before.after, after.before = after, before
            module.before = module.after = None
            ledger.evictable_code -= module.code_size
        module.running += 1
        ledger.running = running
        ledger.running_size = running_size
        ledger.total_size -= instance.size
        # The request. Whose it was in an earlier hit does not know it any more.
        request.instance = instance
        request.owner = owner
        request.payload = payload
        request.stage = GRANTED
        request.since = now
        claims[request] = self.waits.held[request] = None
        self.hits += 1
        return request

    def rest(self, request: Request, size: int, now: float) -> bool:
        """The lease of a `hit` ended well: its instance is idle again; False: nothing has changed.

        `size` is what the instance may touch now (bytes).
        """
        instance, entry, config = request.instance, request.entry, self.config
        residents = self.residents
        ledger = residents.ledger
        total = ledger.total_size + size
        if (
            instance is None
            or instance.request is not request
            or size > config.max_instance_size
            or total > config.max_size
            or entry.waiting
            or self.room
            or entry.function.retired
            or entry.group.closed
            or residents.shrunk
        ):
            return False
        held = int((now - request.since) * 1e6)
        place = HOLDS + held.bit_length()  # `UseStats.add`, written out
        uses = entry.uses
        uses.hold += held
        try:
            uses.counts[place] += 1
        except KeyError:
            uses.count_in(place)
        # The instance and the order of use; as above, no calls from here on.
        entry.idle.append(instance)
        instance.state = IDLE
        instance.size = size
        instance.last_used = entry.last_used = now
        residents.rests = instance.rested = residents.rests + 1
        instance.uses += 1
        ring = residents.lru
        last = ring.before
        instance.before, instance.after = last, ring
        last.after = ring.before = instance
        # The ledger.
        function = entry.function
        module = function.module
        module.running -= 1
        if module.running == 0:
            modules = ledger.evictable
            last = modules.before
            module.before, module.after = last, modules
            last.after = modules.before = module
            ledger.evictable_code += module.code_size
        ledger.running -= 1
        ledger.running_size -= function.worst_size
        ledger.total_size = total
        # The request.
        request.stage = ENDED
        request.instance = request.payload = None
        del entry.claims[request], self.waits.held[request]
        return True
