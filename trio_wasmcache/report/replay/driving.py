"""Turns events into steps of the policy: each event repeats the step that led to it.

Rules:

1. Each method stands for one kind of event, such as `requested` for `acquire` and `recycled` for
   `recycle`. It performs the step at the time of the event and returns the policy's result.
2. A token is held from its `requested` on until after the step of its `left`, `recycled` or
   `abandoned`, as in the cache: deadlocks depend on the holders of tokens.
3. Closing a group ends its loads, and leases whose tasks have not run yet: they are `abandoned`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import partial

from attrs import Factory, define

from ..._core.errors import WasmCacheError
from ..._core.events import (
    Abandoned,
    Blocked,
    Evicted,
    GroupClosed,
    GroupOpened,
    GroupResized,
    Left,
    Loaded,
    PreparationAwaited,
    PreparationEnded,
    PreparationRequested,
    Profiled,
    Promoted,
    Reason,
    Recycled,
    Refused,
    Registered,
    Removed,
    Requested,
    Resized,
)
from ..._core.keys import FunctionKey
from ..._core.policy.copying import Whole
from ..._core.policy.instances import Step
from ..._core.policy.policy import Policy
from ..._core.policy.records import GroupRecord, Instance, Need, Request, Stage
from .books import Books, limits_of
from .start import Beginning


@define(eq=False)
class Driver:
    """Makes a policy repeat the steps of another one."""

    books: Books
    requests: dict[int | None, Request] = Factory(dict)
    """{number: request} of requests whose end the log has not reached; None is no number."""
    granted: set[Request] = Factory(set)
    """Requests for which the log has `acquired`: their tasks know that they have an instance."""
    _left: set[Request] = Factory(set)
    """Requests whose block has ended, under a call; their tokens were given back."""
    _token_waits: dict[int, GroupRecord] = Factory(dict)  # {task: group}
    _waiting: dict[GroupRecord, dict[int, None]] = Factory(dict)  # {group: tasks}
    _capacities: dict[GroupRecord, int | None] = Factory(dict)

    @staticmethod
    def begin(beginning: Beginning) -> Driver:
        """Return a driver with the books of a beginning."""
        books, requests = beginning.books()
        driver = Driver(books)
        if beginning.whole is not None:
            driver._take_over(beginning.whole, requests)
        return driver

    def _take_over(self, whole: Whole, requests: Mapping[int, Request]) -> None:
        """Take over what a snapshot has besides the books."""
        for number, request in requests.items():
            self.requests[number] = request
        for one in whole.groups:
            group = self.books.groups[one.group]
            self._capacities[group] = one.capacity_tokens
            group.tokens.strangers = partial(self._others_have_tokens, group)
        for it in whole.requests:
            if it.acquired:
                self.granted.add(requests[it.request])
            if it.left:
                self._left.add(requests[it.request])
        for wait in whole.token_waits:
            self._begin_token_wait(wait.task, self.books.groups[wait.group])

    @property
    def policy(self) -> Policy:
        """The policy as it is now."""
        return self.books.policy

    # -- functions, groups, limits

    def open_group(self, event: GroupOpened) -> None:
        """Perform the step of a `group_opened` event."""
        group = self.books.open_group(event, lambda: self._others_have_tokens(group))
        self._capacities[group] = event.capacity_tokens

    def resize_group(self, event: GroupResized, now: float) -> Step:
        """Perform the step of a `group_resized` event."""
        group = self.books.groups[event.group]
        self._capacities[group] = event.capacity_tokens
        return self.books.resize_group(group, event, now)

    def register(self, event: Registered, now: float) -> Step:
        """Perform the step of a `registered` event."""
        return self.books.register(event, now)

    def promote(self, event: Promoted, now: float) -> Step:
        """Perform the step of a `promoted` event."""
        return self.books.promote(event, now)

    def vary(self, event: Profiled, now: float) -> Step:
        """Perform the step of a `profiled` event."""
        return self.books.vary(event, now)

    def upgrade(self, event: Loaded, now: float) -> tuple[Instance, Step] | None:
        """Perform the step of a `loaded` event of an instance that was made in the background."""
        return self.books.upgrade(event, now)

    def remove(self, event: Removed, now: float) -> Step:
        """Perform the step of a `removed` event."""
        return self.books.remove(event, now)

    def resize(self, event: Resized, now: float) -> Step:
        """Perform the step of a `resized` event."""
        return self.books.resize(limits_of(event), now)

    def expire(self, now: float) -> Step:
        """Perform the step of an `evicted` event that was caused by the cache's clock."""
        return self.policy.expire(now)

    def relieve(self, event: Refused, now: float) -> Step | None:
        """Perform the step of a `refused` event."""
        group = self.books.groups.get(event.group or "")
        key = FunctionKey.logged(event.function, event.arg_types)
        need = None if group is None else Need(key, group, event.request)
        return self.policy.relieve(event.address_space_bytes, event.mappings, now, need)

    def close_group(self, event: GroupClosed, now: float) -> Step:
        """Perform the step of a `group_closed` event."""
        policy = self.policy
        group = self.books.groups[event.group]
        reason = Reason.CLOSED if event.with_cache else Reason.GROUP_CLOSED
        if event.with_cache:
            policy.close()
        step = policy.close_group(group, now, reason)
        for task in list(self._waiting.get(group, ())):
            self.end_token_wait(task)
        return step

    # -- tokens

    def wait_for_token(self, event: Blocked) -> None:
        """Perform the step of a `blocked` event of an acquire that has no number yet."""
        function = self.books.functions[_generation(event)]
        group = self.books.groups[event.group]
        self.policy.note_token_block(function, group)
        self._begin_token_wait(event.task, group)

    def _begin_token_wait(self, task: int, group: GroupRecord) -> None:
        self._forget_wait(task)
        self._token_waits[task] = group
        self._waiting.setdefault(group, {})[task] = None
        self.policy.waits.waiting[task] = group

    def end_token_wait(self, task: int) -> None:
        """End a task's wait for a token; no error if it has none."""
        self.policy.waits.end(task)
        self._forget_wait(task)

    def _forget_wait(self, task: int) -> None:
        group = self._token_waits.pop(task, None)
        if group is not None:
            del self._waiting[group][task]

    def _others_have_tokens(self, group: GroupRecord) -> bool:
        """Whether some task that waits for a token was granted one and has not run since."""
        capacity = self._capacities[group]
        return bool(self._waiting.get(group)) and (
            capacity is None or len(group.tokens.owners) < capacity
        )

    def _give_back_token(self, request: Request, task: Hashable) -> None:
        owners = request.entry.group.tokens.owners
        if owners[task] > 1:
            owners[task] -= 1
        else:
            del owners[task]

    # -- requests

    def acquire(self, event: Requested, now: float) -> Step | None:
        """Perform the step of a `requested` event; a request that is refused has an `error`."""
        function = self.books.functions[_generation(event)]
        group = self.books.groups[event.group]
        task = event.task
        since = now if event.blocked else None
        request = self.policy.request(function, group, task, event.warm, blocked_since=since)
        self.end_token_wait(task)
        group.tokens.owners[task] = group.tokens.owners.get(task, 0) + 1
        request.number = event.request
        self.requests[event.request] = request
        try:
            return self.policy.acquire(request, now)
        except WasmCacheError as error:
            request.refuse(error)
            return None

    def loaded(self, event: Loaded, now: float) -> Step | None:
        """Perform the step of a `loaded` event."""
        request = self.requests[event.request]
        return self.policy.loaded(request, now, event.size_bytes, event.load_seconds)

    def prepare(self, event: PreparationRequested, now: float) -> Step | None:
        """Perform the step of a `preparation_requested` event; see `acquire`."""
        request = self.books.prepare(event, self.books.groups[event.group], now)
        self.requests[event.request] = request
        try:
            return self.policy.acquire(request, now)
        except WasmCacheError as error:
            request.refuse(error)
            return None

    def await_preparation(self, event: PreparationAwaited) -> None:
        """Perform the step of a `preparation_awaited` event."""
        self.books.await_preparation(event.request, event.for_tasks)

    def end_preparation(self, event: PreparationEnded, now: float) -> Step | None:
        """Perform the step of a `preparation_ended` event."""
        request = self.requests.pop(event.request)
        self.books.end_preparation(event.request)
        if request.stage is Stage.LOADING:
            return self.policy.failed(request, now)
        return None if request.stage is Stage.ENDED else self.policy.cancel(request, now)

    def leave(self, event: Left, now: float) -> Step | None:
        """Perform the step of a `left` event."""
        request = self.requests[event.request]
        before = request.owner
        step = self.policy.hand_over(request, event.task, now)
        self._give_back_token(request, before)
        self._left.add(request)
        return step

    def replace(self, event: Evicted, now: float) -> Step:
        """Perform the step of an `evicted` event of an instance that was replaced in its lease."""
        request = next(
            request
            for request in self.requests.values()
            if request.instance is not None and request.instance.number == event.instance
        )
        error = event.error or ""
        return self.policy.replace(request, event.freed_bytes, now, error, event.evictions or 1)

    def recycle(self, event: Recycled, now: float, drop: Reason | None) -> Step | None:
        """Perform the step of a `recycled` event; `drop` if a call of it had failed."""
        request = self.requests.pop(event.request)
        self.granted.discard(request)
        reserved = None
        if event.address_space_bytes is not None:  # in a log from before it was counted
            reserved = event.address_space_bytes, event.mappings or 0
        step = self.policy.recycle(
            *(request, event.size_bytes, now, drop, event.seat, reserved, event.error),
            event.grown_size_bytes,
        )
        if request in self._left:
            self._left.remove(request)
        else:
            self._give_back_token(request, request.owner)
        return step

    def abandon(self, event: Abandoned, now: float) -> Step | None:
        """Perform the step of an `abandoned` event of an acquire that has a number."""
        request = self.requests.pop(event.request)
        step = None
        if request.stage is Stage.LOADING:
            step = self.policy.failed(request, now)
        elif request.stage is Stage.GRANTED:
            step = self.policy.recycle(request, request.held.size, now)
        elif request.stage is not Stage.ENDED:
            step = self.policy.cancel(request, now)
        self._give_back_token(request, request.owner)
        return step


def _generation(event: Requested | Blocked) -> tuple[str, str, int]:
    return event.function, event.arg_types, event.generation
