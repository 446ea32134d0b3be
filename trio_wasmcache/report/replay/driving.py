"""From events to steps of the policy: what made the cache's policy do something makes this one.

Rules:

1. An event is what was done *to* the policy, at the time that it was given: `requested` is
   `acquire`, `recycled` is `recycle`, and so on. Each method here is one of them, and gives the
   step that the policy took.
2. A token is held from its `requested` on until after the step of its `left`, `recycled` or
   `abandoned`, as in the cache: who holds it decides what is a deadlock.
3. Closing a group ends its loads, and leases whose tasks have not run yet: they are `abandoned`.
"""

from __future__ import annotations

from collections.abc import Hashable

from attrs import Factory, define

from ..._core.errors import WasmCacheError
from ..._core.events import (
    Abandoned,
    Blocked,
    GroupClosed,
    GroupOpened,
    Left,
    Loaded,
    Reason,
    Recycled,
    Refused,
    Registered,
    Removed,
    Requested,
    Resized,
)
from ..._core.policy.instances import Step
from ..._core.policy.policy import Policy
from ..._core.policy.records import GroupRecord, Request, Stage
from .books import Books, limits_of


@define(eq=False)
class Driver:
    """A policy that goes through what another one went through."""

    books: Books
    requests: dict[int | None, Request] = Factory(dict)
    """{number: request} of those that the log has not told the end of; none is called None."""
    granted: set[Request] = Factory(set)
    """Those of which the log has told `acquired`: their tasks know that they hold something."""
    _left: set[Request] = Factory(set)
    """Those whose block has ended, under a call: their token is given back."""
    _token_waits: dict[int, GroupRecord] = Factory(dict)  # {task: group}
    _waiting: dict[GroupRecord, dict[int, None]] = Factory(dict)  # {group: tasks}
    _capacities: dict[GroupRecord, int | None] = Factory(dict)

    @property
    def policy(self) -> Policy:
        """The policy as it is now."""
        return self.books.policy

    # -- functions, groups, limits

    def open_group(self, event: GroupOpened) -> None:
        """Do what a `group_opened` event was told for."""
        group = self.books.open_group(event.group, lambda: self._others_have_tokens(group))
        self._capacities[group] = event.capacity_tokens

    def register(self, event: Registered, now: float) -> Step:
        """Do what led to a `registered` event."""
        return self.books.register(event, now)

    def remove(self, event: Removed, now: float) -> Step:
        """Do what led to a `removed` event."""
        return self.books.remove(event, now)

    def resize(self, event: Resized, now: float) -> Step:
        """Do what led to a `resized` event."""
        return self.books.resize(limits_of(event), now)

    def expire(self, now: float) -> Step:
        """Do what led to an `evicted` event that the cache's clock was the cause of."""
        return self.policy.expire(now)

    def relieve(self, event: Refused, now: float) -> Step | None:
        """Do what led to a `refused` event."""
        return self.policy.relieve(event.address_space_bytes, event.mappings, now)

    def close_group(self, event: GroupClosed, now: float) -> Step:
        """Do what led to a `group_closed` event."""
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
        """Do what led to a `blocked` event of an acquire that has no number yet."""
        function = self.books.functions[_generation(event)]
        group = self.books.groups[event.group]
        self.policy.note_token_block(function, group)
        self._forget_wait(event.task)
        self._token_waits[event.task] = group
        self._waiting.setdefault(group, {})[event.task] = None
        self.policy.waits.waiting[event.task] = group

    def end_token_wait(self, task: int) -> None:
        """Let a task wait for a token no longer; no error if it did not."""
        self.policy.waits.end(task)
        self._forget_wait(task)

    def _forget_wait(self, task: int) -> None:
        group = self._token_waits.pop(task, None)
        if group is not None:
            del self._waiting[group][task]

    def _others_have_tokens(self, group: GroupRecord) -> bool:
        """Whether somebody who waits for a token was given one, and has only not run since."""
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
        """Do what led to a `requested` event; a request that is refused has an `error`."""
        function = self.books.functions[_generation(event)]
        group = self.books.groups[event.group]
        task = event.task
        request = self.policy.request(function, group, task, event.warm)
        request.blocked = event.blocked
        self.end_token_wait(task)
        group.tokens.owners[task] = group.tokens.owners.get(task, 0) + 1
        self.requests[event.request] = request
        try:
            return self.policy.acquire(request, now)
        except WasmCacheError as error:
            request.error = error
            return None

    def loaded(self, event: Loaded, now: float) -> Step | None:
        """Do what led to a `loaded` event."""
        request = self.requests[event.request]
        assert request.instance is not None
        return self.policy.loaded(request, now, event.size_bytes)

    def leave(self, event: Left, now: float) -> Step | None:
        """Do what led to a `left` event."""
        request = self.requests[event.request]
        before = request.owner
        step = self.policy.hand_over(request, event.task, now)
        self._give_back_token(request, before)
        self._left.add(request)
        return step

    def recycle(self, event: Recycled, now: float, drop: Reason | None) -> Step | None:
        """Do what led to a `recycled` event; `drop`: a call failed, as only the cache knows."""
        request = self.requests.pop(event.request)
        self.granted.discard(request)
        reserved = None
        if event.address_space_bytes is not None:  # in a log from before it was counted
            reserved = event.address_space_bytes, event.mappings
        step = self.policy.recycle(request, event.size_bytes, now, drop, event.seat, reserved)
        if request in self._left:
            self._left.remove(request)
        else:
            self._give_back_token(request, request.owner)
        return step

    def abandon(self, event: Abandoned, now: float) -> Step | None:
        """Do what led to an `abandoned` event of an acquire that has a number."""
        request = self.requests.pop(event.request)
        step = None
        if request.stage is Stage.LOADING:
            step = self.policy.failed(request, now)
        elif request.stage is Stage.GRANTED:
            assert request.instance is not None
            step = self.policy.recycle(request, request.instance.size, now)
        elif request.stage is not Stage.ENDED:
            step = self.policy.cancel(request, now)
        self._give_back_token(request, request.owner)
        return step


def _generation(event: Requested | Blocked) -> tuple[str, str, int]:
    return event.function, event.arg_types, event.generation
