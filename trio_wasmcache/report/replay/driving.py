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
from typing import Any

from attrs import Factory, define

from ..._core.errors import WasmCacheError
from ..._core.events import Reason
from ..._core.policy import Policy
from ..._core.records import GroupRecord, Request, Stage
from ..._core.residents import Step
from .books import Books, limits_of

Event = dict[str, Any]


@define(eq=False)
class Driver:
    """A policy that goes through what another one went through."""

    books: Books
    requests: dict[int, Request] = Factory(dict)
    """{number: request} of those that the log has not told the end of."""
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

    def open_group(self, event: Event) -> None:
        """A `group_opened` event."""
        group = self.books.open_group(event["group"], lambda: self._others_have_tokens(group))
        self._capacities[group] = event["capacity_tokens"]

    def register(self, event: Event) -> Step:
        """A `registered` event."""
        return self.books.register(event, event["at_seconds"])

    def remove(self, event: Event) -> Step:
        """A `removed` event."""
        return self.books.remove(event, event["at_seconds"])

    def resize(self, event: Event) -> Step:
        """A `resized` event."""
        return self.books.resize(limits_of(event), event["at_seconds"])

    def expire(self, event: Event) -> Step:
        """An `evicted` event that the cache's clock was the cause of."""
        return self.policy.expire(event["at_seconds"])

    def close_group(self, event: Event) -> Step:
        """A `group_closed` event."""
        policy = self.policy
        group = self.books.groups[event["group"]]
        reason = Reason.CLOSED if event["with_cache"] else Reason.GROUP_CLOSED
        policy.closed = policy.closed or event["with_cache"]
        step = policy.close_group(group, event["at_seconds"], reason)
        for task in list(self._waiting.get(group, ())):
            self.end_token_wait(task)
        return step

    # -- tokens

    def wait_for_token(self, event: Event) -> None:
        """A `blocked` event of an acquire that has no number yet."""
        function = self.books.functions[_generation(event)]
        group = self.books.groups[event["group"]]
        self.policy.note_token_block(function, group)
        self._forget_wait(event["task"])
        self._token_waits[event["task"]] = group
        self._waiting.setdefault(group, {})[event["task"]] = None
        self.policy.waits.waiting[event["task"]] = group

    def end_token_wait(self, task: int) -> None:
        """The task waits for a token no longer; no error if it did not."""
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

    def acquire(self, event: Event) -> Step | None:
        """A `requested` event. Where it is refused, the request ends with the `error`."""
        function = self.books.functions[_generation(event)]
        group = self.books.groups[event["group"]]
        task = event["task"]
        request = self.policy.request(function, group, task, event["warm"])
        request.blocked = event["blocked"]
        self.end_token_wait(task)
        group.tokens.owners[task] = group.tokens.owners.get(task, 0) + 1
        self.requests[event["request"]] = request
        try:
            return self.policy.acquire(request, event["at_seconds"])
        except WasmCacheError as error:
            request.error = error
            return None

    def loaded(self, event: Event) -> Step | None:
        """A `loaded` event."""
        request = self.requests[event["request"]]
        assert request.instance is not None
        request.instance.size = event["size_bytes"]
        return self.policy.loaded(request, event["at_seconds"])

    def leave(self, event: Event) -> Step | None:
        """A `left` event."""
        request = self.requests[event["request"]]
        before = request.owner
        step = self.policy.hand_over(request, event["task"], event["at_seconds"])
        self._give_back_token(request, before)
        self._left.add(request)
        return step

    def recycle(self, event: Event, drop: Reason | None) -> Step | None:
        """A `recycled` event; `drop`: what only the cache could know, that a call failed."""
        request = self.requests.pop(event["request"])
        self.granted.discard(request)
        size, at = event["size_bytes"], event["at_seconds"]
        step = self.policy.recycle(request, size, at, drop, event["seat"])
        if request in self._left:
            self._left.remove(request)
        else:
            self._give_back_token(request, request.owner)
        return step

    def abandon(self, event: Event) -> Step | None:
        """An `abandoned` event of an acquire that has a number."""
        request = self.requests.pop(event["request"])
        at, step = event["at_seconds"], None
        if request.stage is Stage.LOADING:
            step = self.policy.failed(request, at)
        elif request.stage is Stage.GRANTED:
            assert request.instance is not None
            step = self.policy.recycle(request, request.instance.size, at)
        elif request.stage is not Stage.ENDED:
            step = self.policy.cancel(request, at)
        self._give_back_token(request, request.owner)
        return step


def _generation(event: Event) -> tuple[str, str, int]:
    return event["function"], event["arg_types"], event["generation"]
