"""Deadlock detection: which task waits for which, and whether any of them can still proceed.

The graph has two kinds of nodes. A task waits for one *resource*; a resource is held by tasks.
One holder that releases is enough, so a wait is hopeless only if **every** task reachable from it
waits too (the "or" model of deadlock; with single holders it is the plain search for a cycle).
Only waits inside the cache are edges; a task's other waits cannot be seen.

Rejected: a wait-for graph kept up to date on every grant. Waits are rare and short, and the search
nearly always ends at the first holder, which is running; the fast path should not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from ..errors import DeadlockError
from .records import Entry, GroupRecord, Preparation, Request

R = TypeVar("R", bound=Hashable)

ROOM = "room for code, stack, memory and addresses"
# Shown in the message of a `DeadlockError`: waits of a long chain, characters of a task's name.
FIRST_SHOWN, LAST_SHOWN, NAME_SHOWN = 4, 3, 100
# Stands for token holders unknown to the cache; they may release at any time.
STRANGER = object()
# Resources a task can wait for: an instance of an entry, a token of a group, the end of a
# preparation, capacity of the cache.
Resource = Entry | GroupRecord | Preparation | str


def find_deadlock(
    owner: Hashable,
    wanted: R,
    waiting: Mapping[Hashable, R],
    holders: Callable[[R], Iterable[Hashable]],
) -> tuple[tuple[Hashable, R], ...] | None:
    """Return the chain of waits that `owner` would close by waiting for `wanted`, or None.

    Args:
        owner: The task that would wait.
        wanted: The resource it would wait for.
        waiting: {task: resource} of the tasks that wait already; `owner` need not be among them.
        holders: Returns the tasks that hold a resource.

    Returns:
        ((task, resource it waits for), ...) from `owner` on, along one path back to it (or, if
        other tasks are stuck without it, to one of those). None if some reachable task can
        proceed, or waits for a resource without holders, which it is about to get.
    """
    came_from: dict[Hashable, Hashable] = {}
    wants: dict[Hashable, R] = {owner: wanted}
    reached: list[Hashable] = [owner]
    last: Hashable = None
    for task in reached:  # grows during the iteration
        held = False
        for holder in holders(wants[task]):
            held = True
            if holder == owner:
                last = task if last is None else last
            elif holder in wants:
                continue
            elif holder not in waiting:
                return None
            else:
                wants[holder] = waiting[holder]
                came_from[holder] = task
                reached.append(holder)
        if not held:
            return None
    chain = [reached[-1] if last is None else last]
    while chain[-1] != owner:
        chain.append(came_from[chain[-1]])
    return tuple((task, wants[task]) for task in reversed(chain))


class Waits:
    """The edges of one cache's wait-for graph: waiting tasks, and holders of instances."""

    __slots__ = ("held", "registering", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[Hashable, Resource] = {}
        """{task: resource it waits for}."""
        self.held: dict[Request, None] = {}
        """Requests that have an instance, loading or running, and so hold capacity of the cache."""
        self.registering: dict[Hashable, Preparation] = {}
        """{task: preparation} of the tasks that register functions and wait for a preparation."""

    def begin(self, owner: Hashable, resource: Resource) -> None:
        """Record that `owner` waits for `resource`; raise `DeadlockError` if it would in vain."""
        waiting, registering = self.waiting, self.registering
        for request in resource.claims if isinstance(resource, Entry) else ():
            holder = request.owner
            if holder not in waiting and holder not in registering and holder != owner:
                break  # as mostly: this holder can proceed
        else:
            self.check(owner, resource)
        waiting[owner] = resource

    def end(self, owner: Hashable) -> None:
        """Record that `owner` no longer waits; no error if it did not."""
        self.waiting.pop(owner, None)

    def register(self, task: Hashable, preparation: Preparation) -> None:
        """Record that a task waits for a preparation; raise `DeadlockError` if it would in vain."""
        self.check(task, preparation)
        self.registering[task] = preparation

    def end_registration(self, task: Hashable) -> None:
        """Record that a task no longer waits for a preparation; no error if it did not."""
        self.registering.pop(task, None)

    def wanted_by(self, task: Hashable) -> Resource | None:
        """Return what a task waits for; None if it does not wait."""
        return self.waiting.get(task) or self.registering.get(task)

    @property
    def _edges(self) -> Mapping[Hashable, Resource]:
        """{task: what it waits for}, of all tasks."""
        if not self.registering:
            return self.waiting
        return {**self.registering, **self.waiting}

    def chain(
        self, owner: Hashable, resource: Resource
    ) -> tuple[tuple[Hashable, Resource], ...] | None:
        """Return the chain of waits if `owner` waits (or would) for `resource` in vain, or None."""
        return find_deadlock(owner, resource, self._edges, self._holders)

    def reach(self, owner: Hashable) -> list[Hashable]:
        """Return `owner`, which waits in vain, and all tasks its wait depends on, nearest first."""
        reached = [owner]
        seen = {owner}
        edges = self._edges
        for task in reached:  # grows during the iteration
            for holder in self._holders(edges[task]):
                if holder not in seen:
                    seen.add(holder)
                    reached.append(holder)
        return reached

    def check(self, owner: Hashable, resource: Resource) -> None:
        """Raise `DeadlockError` if `owner` waits (or would wait) for `resource` in vain."""
        if self.chain(owner, resource) is not None:
            raise self.error(owner, resource)

    def error(self, owner: Hashable, resource: Resource) -> DeadlockError:
        """Return the error for `owner`, whose wait for `resource` is in vain."""
        chain = self.chain(owner, resource) or ((owner, resource),)
        lines = tuple(f"{_task_name(task)} waits for {_describe(it)}" for task, it in chain)
        shown = list(lines)
        if len(lines) > FIRST_SHOWN + LAST_SHOWN + 1:
            left_out = len(lines) - FIRST_SHOWN - LAST_SHOWN
            shown[FIRST_SHOWN:-LAST_SHOWN] = [f"{left_out} more tasks wait likewise"]
        if len(chain) == 1:
            holder = "itself"
        elif owner in self._holders(chain[-1][1]):
            holder = "the first"
        else:
            holder = "tasks that wait for each other"
        remedy = "release one before acquiring the other"
        if any(isinstance(it, Preparation) for _, it in chain):
            remedy = "register functions with prepare= outside of leases"
        return DeadlockError(
            f"this wait would never end: {', held while '.join(shown)}, held by {holder}; "
            f"{remedy}, or raise concurrency or the limits",
            lines,
        )

    @property
    def able(self) -> set[Hashable]:
        """The tasks whose going on could end in a release: holders, and those they wait for."""
        holders = {request.owner for request in self.held}
        helpers = [it.owner for task, it in self.registering.items() if task in holders]
        return holders.union(helpers)

    def _holders(self, resource: Resource) -> Iterable[Hashable]:
        if isinstance(resource, Entry):
            if len(resource.claims) < resource.function.concurrency:
                return []  # within a step: the first waiter has not been served yet
            return [request.owner for request in resource.claims]
        if isinstance(resource, GroupRecord):
            return [*resource.tokens.owners, *([STRANGER] if resource.tokens.strangers() else [])]
        if isinstance(resource, Preparation):
            return [] if resource.owner is None else [resource.owner]
        return [request.owner for request in self.held]


def _task_name(task: Hashable) -> str:
    return f"{getattr(task, 'name', task)!s:.{NAME_SHOWN}}"


def _describe(resource: Resource) -> str:
    if isinstance(resource, Entry):
        return f"an instance of {resource.function.key} in group {resource.group.name!r}"
    if isinstance(resource, GroupRecord):
        return f"a token of group {resource.name!r}"
    if isinstance(resource, Preparation):
        return f"the preparation of {resource.what}"
    return resource
