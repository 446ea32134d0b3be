"""A log with `log_uses`, run through the cache's own policy, and compared with it step by step.

Some events made the policy do something; they are what the replay drives it with. The others tell
what it did; they are compared with what it does now. Rules:

1. Driving: `group_opened`, `registered`, `removed`, `requested`, `loaded`, `recycled`, `abandoned`,
   `group_closed`, `resized`, `closed`, and `blocked` where it is for a token. So is `evicted` for
   idleness, where no step is under way: the cache's clock did that.
2. Compared: `evicted` (who, why, in what order, all sizes), `acquired` (which instance, a hit or
   not, sizes), `blocked`, `recycled` (kept or not, sizes), `closed` (all counts).
3. Closing a group ends its loads without a word in the log; the replay ends them in the same order
   as the cache does: that in which they began.

After a first disagreement the books may be off for good, so that one is the one to look at.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import Factory, define

from .._core.errors import WasmCacheError
from .._core.events import Evicted, Reason
from .._core.policy import Policy
from .._core.records import GroupRecord, Request, Stage
from .._core.residents import Step
from .._core.state import IllegalStepError, State
from .books import Books, config_of, limits_of

# Disagreements that are kept word by word; the rest is counted.
MAX_KEPT = 50
COMPARED = (
    "function",
    "group",
    "generation",
    "instance",
    "freed_bytes",
    "freed_code_bytes",
    "uses",
    "total_size_before_bytes",
    "total_size_after_bytes",
    "code_size_before_bytes",
    "code_size_after_bytes",
)


class NotReplayable(Exception):
    """The log is not one that can be replayed; the message says why."""


@define(eq=False)
class Replay:
    """The log of one cache, fed event by event and in order."""

    books: Books | None = None
    events: int = 0
    leases: int = 0
    evictions: int = 0
    disagreements: list[tuple[int, str]] = Factory(list)
    """(sequence number, what is different)."""
    disagreed: int = 0
    """How many, also those that were not kept."""
    evicted: Callable[[Evicted], None] = lambda event: None
    """Told of each eviction that the policy decides on, in order."""
    _pending: dict[str, Any] | None = None
    _requests: dict[int, Request] = Factory(dict)  # those that have not ended
    _ended: dict[int, Request] = Factory(dict)  # by the policy, which the log may tell or not
    _numbers: dict[Request, int] = Factory(dict)
    _granted: set[Request] = Factory(set)  # the log has told of their `acquired`
    _expected: deque[Evicted] = Factory(deque)
    _token_waits: dict[int, GroupRecord] = Factory(dict)  # {task: group}
    _capacities: dict[GroupRecord, int | None] = Factory(dict)
    _closing: list[Request] = Factory(list)
    _closed_reason: Reason = Reason.CLOSED

    # -- from outside

    def feed(self, event: dict[str, Any]) -> None:
        """The next event; it is gone through when the one after it is known.

        Raises:
            NotReplayable: it is the first, and not one that a replay can begin with.
        """
        if self.books is None:
            self._open(event)
            return
        if self._pending is not None:
            self._go_through(self._pending, event)
        self._pending = event

    def finish(self) -> None:
        """There are no more events."""
        if self._pending is not None:
            self._go_through(self._pending, None)
            self._settle_expected(self._pending["seq"])
            self._pending = None

    @property
    def policy(self) -> Policy:
        """The policy as it is now."""
        assert self.books is not None
        return self.books.policy

    # -- the frame around each event

    def _open(self, event: dict[str, Any]) -> None:
        if event["event"] != "wasmcache.opened":
            raise NotReplayable(
                f"the log begins with event {event['seq']:,}: a replay needs it from its "
                "`wasmcache.opened` event on"
            )
        if not event["log_uses"]:
            raise NotReplayable(
                "the log was written without log_uses, so there is nothing to replay; open the "
                "cache with CacheConfig(log_uses=True)"
            )
        try:
            self.books = Books(config_of(event))
        except (TypeError, ValueError) as error:
            raise NotReplayable(f"no cache has these limits: {error}") from None
        self.events = 1

    def _go_through(self, event: dict[str, Any], following: dict[str, Any] | None) -> None:
        self.events += 1
        name = event["event"].removeprefix("wasmcache.")
        if name != "evicted":
            self._settle_expected(event["seq"])
        handle = getattr(self, f"_on_{name}", None)
        if handle is None:
            return
        try:
            if name == "recycled":
                handle(event, following)
            else:
                handle(event)
        except (KeyError, IllegalStepError, AssertionError, ValueError) as error:
            what = (
                f"{error}"
                if isinstance(error, IllegalStepError)
                else "the books know nothing of it"
            )
            self._disagree(event["seq"], f"{name}: {what}")

    def _disagree(self, seq: int, text: str) -> None:
        self.disagreed += 1
        if len(self.disagreements) < MAX_KEPT:
            self.disagreements.append((seq, text))

    def _compare(self, event: dict[str, Any], what: str, logged: object, booked: object) -> None:
        if logged != booked:
            self._disagree(
                event["seq"],
                f"{event['event'].removeprefix('wasmcache.')}: {what} is {logged!r} in the log, "
                f"{booked!r} by the books",
            )

    def _act(self, step: Step | None) -> None:
        """What a step of the policy did is what the log has to tell next."""
        if step is None:
            return
        for _, event in step.evicted:
            self._expected.append(event)
            self.evicted(event)
        for request in step.woken:
            if request.stage is Stage.ENDED:
                self._end(request)

    def _end(self, request: Request) -> None:
        number = self._numbers.pop(request)
        del self._requests[number]
        self._ended[number] = request
        self._granted.discard(request)
        self._give_back_token(request)

    def _settle_expected(self, seq: int) -> None:
        for event in self._expected:
            self._disagree(
                seq,
                f"before this event, instance {event.instance} of {event.function} should have "
                f"been evicted ({event.reason.value}); the log has not got that",
            )
        self._expected.clear()

    # -- functions, groups, limits

    def _on_group_opened(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        group = self.books.open_group(event["group"], lambda: self._tokens_left(group))
        self._capacities[group] = event["capacity_tokens"]

    def _on_registered(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        self._act(self.books.register(event, event["at_seconds"]))

    def _on_removed(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        self._act(self.books.remove(event, event["at_seconds"]))

    def _on_resized(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        self._act(self.books.resize(limits_of(event), event["at_seconds"]))

    def _on_group_closed(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        policy, at = self.policy, event["at_seconds"]
        reason = Reason.CLOSED if event["with_cache"] else Reason.GROUP_CLOSED
        group = self.books.groups[event["group"]]
        policy.closed = policy.closed or event["with_cache"]
        self._closed_reason = reason
        self._act(policy.close_group(group, at, reason))
        for task in [task for task, wanted in self._token_waits.items() if wanted is group]:
            self._end_token_wait(task)
        self._closing += self.books.held_in(group)
        if not policy.closed or all(one.closed for one in self.books.groups.values()):
            self._close_silently(at)

    def _close_silently(self, at: float) -> None:
        """End what the closing cache ends without telling, up to the next that it tells of."""
        while self._closing and self._closing[0] not in self._granted:
            request = self._closing.pop(0)
            if request.stage is Stage.LOADING:
                self._finish_request(request)
                self._act(self.policy.failed(request, at))
            elif request.stage is Stage.GRANTED:
                assert request.instance is not None
                self._finish_request(request)
                size = request.instance.size
                self._act(self.policy.recycle(request, size, at, self._closed_reason))

    def _on_closed(self, event: dict[str, Any]) -> None:
        policy = self.policy
        self._compare(event, "hits", event["hits"], policy.hits)
        self._compare(event, "misses", event["misses"], policy.misses)
        self._compare(event, "blocks", event["blocks"], policy.blocks)
        evictions = sum(policy.residents.evictions.values())
        self._compare(event, "evictions", event["evictions"], evictions)

    # -- tokens

    def _tokens_left(self, group: GroupRecord) -> bool:
        """Whether somebody who waits for a token has one, and has only not run since."""
        capacity = self._capacities[group]
        waiting = any(wanted is group for wanted in self._token_waits.values())
        return waiting and (capacity is None or len(group.token_owners) < capacity)

    def _end_token_wait(self, task: int) -> bool:
        self.policy.waits.end(task)
        return self._token_waits.pop(task, None) is not None

    def _give_back_token(self, request: Request) -> None:
        group, task = request.entry.group, request.owner
        held = group.token_owners.get(task, 0)
        if held > 1:
            group.token_owners[task] = held - 1
        elif held:
            del group.token_owners[task]

    # -- requests

    def _on_requested(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        policy, number, task = self.policy, event["request"], event["task"]
        function = self.books.functions[event["function"], event["arg_types"], event["generation"]]
        group = self.books.groups[event["group"]]
        self._compare(event, "a generation that is gone", function.retired, False)
        request = policy.request(function, group, task, event["warm"])
        request.blocked = bool(event.get("blocked"))
        self._end_token_wait(task)
        group.token_owners[task] = group.token_owners.get(task, 0) + 1
        try:
            step = policy.acquire(request, event["at_seconds"])
        except WasmCacheError as error:
            request.error = error
            self._ended[number] = request
            self._give_back_token(request)
            return
        self._requests[number] = request
        self._numbers[request] = number
        self._act(step)

    def _on_blocked(self, event: dict[str, Any]) -> None:
        assert self.books is not None
        if event["request"] is not None:
            request = self._requests[event["request"]]
            booked = request.stage.value.removeprefix("waiting for ")
            self._compare(event, "what it waits for", event["waits_for"], booked)
            return
        task = event.get("task")
        self.policy.blocks += 1
        if task is not None:
            group = self._token_waits[task] = self.books.groups[event["group"]]
            self.policy.waits.waiting[task] = group

    def _on_loaded(self, event: dict[str, Any]) -> None:
        request = self._requests[event["request"]]
        instance = request.instance
        assert instance is not None
        self._compare(event, "the instance", event["instance"], instance.number)
        self._compare(event, "module_loaded", event["module_loaded"], instance.loads_module)
        step = self.policy.loaded(request, event["at_seconds"])
        self._act(step)
        if request.stage is Stage.ENDED and event["request"] in self._requests:
            self._end(request)  # it is not among those that were woken: it did not sleep

    def _on_abandoned(self, event: dict[str, Any]) -> None:
        number = event["request"]
        if number is None:
            self._end_token_wait(event["task"])
            return
        ended = self._ended.pop(number, None)
        if ended is not None:
            booked = type(ended.error).__name__.replace("Closed", "ClosedResourceError")
            if ended.error is not None:
                self._compare(event, "the error", event["error"], booked)
            return
        request = self._requests[number]
        stage = request.stage
        self._finish_request(request)
        if stage is Stage.LOADING:
            self._act(self.policy.failed(request, event["at_seconds"]))
        else:
            self._act(self.policy.cancel(request, event["at_seconds"]))

    def _on_acquired(self, event: dict[str, Any]) -> None:
        request = self._requests[event["request"]]
        instance = request.instance
        if request.stage is not Stage.GRANTED or instance is None:
            self._disagree(
                event["seq"], f"acquired: by the books this request is still {request.stage.value}"
            )
            return
        self.leases += not request.warm
        self._granted.add(request)
        self._compare(event, "the instance", event["instance"], instance.number)
        self._compare(event, "a hit", event["hit"], request.hit)
        self._compare(event, "uses", event["uses"], instance.uses)
        self._compare_sizes(event)

    def _on_recycled(self, event: dict[str, Any], following: dict[str, Any] | None) -> None:
        request = self._requests[event["request"]]
        instance = request.instance
        assert instance is not None
        self._compare(event, "the instance", event["instance"], instance.number)
        drop = None
        if (
            not event["kept"]
            and following is not None
            and following["event"] == "wasmcache.evicted"
        ):
            # Whether a call failed, only the cache knows; other reasons are the policy's.
            if following["instance"] == event["instance"] and following["reason"] == "corrupted":
                drop = Reason.CORRUPTED
        at = event["at_seconds"]
        self._finish_request(request)
        self._act(self.policy.recycle(request, event["size_bytes"], at, drop))
        self._compare(event, "kept", event["kept"], instance.state is not State.CLOSED)
        self._compare_sizes(event)
        if self._closing:
            self._closing = [one for one in self._closing if one is not request]
            self._close_silently(at)

    def _finish_request(self, request: Request) -> None:
        """It is over in the next step."""
        del self._requests[self._numbers.pop(request)]
        self._granted.discard(request)
        self._give_back_token(request)

    def _compare_sizes(self, event: dict[str, Any]) -> None:
        ledger = self.policy.residents.ledger
        self._compare(event, "total_size_bytes", event["total_size_bytes"], ledger.total_size)
        self._compare(event, "code_size_bytes", event["code_size_bytes"], ledger.used)

    # -- evictions

    def _on_evicted(self, event: dict[str, Any]) -> None:
        self.evictions += 1
        if not self._expected and event["reason"] == "idle":
            self._act(self.policy.expire(self._time_of_expiry(event)))
        if not self._expected:
            self._disagree(
                event["seq"],
                f"evicted: instance {event['instance']} of {event['function']} went "
                f"({event['reason']}); by the books nothing had to go",
            )
            return
        booked = self._expected.popleft()
        self._compare(event, "the reason", event["reason"], booked.reason.value)
        for name in COMPARED:
            self._compare(event, name, event[name], getattr(booked, name))

    def _time_of_expiry(self, event: dict[str, Any]) -> float:
        """The time that the policy was given, which may be before that of the event's telling."""
        at: float = event["at_seconds"]
        for instance in itertools.islice(self.policy.residents.lru, 1):
            due = instance.last_used + self.policy.config.idle_timeout
            if (
                instance.number == event["instance"]
                and at - instance.last_used != event["idle_seconds"]
            ):
                return max(due, min(at, instance.last_used + event["idle_seconds"]))
        return at
