"""Who waits for whom, and whether anyone could still give way.

The graph has two kinds of nodes. A task waits for one *resource*; a resource is held by tasks.
One holder giving way is enough, so a wait is hopeless only if **no** task that can be reached from
it is free to go on (the "or" model of deadlock; with single holders it is the plain search for a
cycle). Only waits inside the cache are edges: what else a task waits for cannot be seen.

Rejected: a wait-for graph kept up to date on every grant. Waits are rare and short, and the search
nearly always ends at the first holder, which is running; the fast path should not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

from attrs import Factory, define

from ..errors import DeadlockError
from .records import Entry, GroupRecord, Request

R = TypeVar("R", bound=Hashable)

ROOM = "room for code, stack, memory and addresses"
# What the message of a `DeadlockError` shows: waits of a long chain, characters of a task's name.
FIRST_SHOWN, LAST_SHOWN, NAME_SHOWN = 4, 3, 100
# Holds a token, is not known here, and so may give way at any time.
STRANGER = object()
# What a task can wait for: an instance of an entry, a token of a group, room in the cache.
Resource = Entry | GroupRecord | str


def find_deadlock(
    owner: Hashable,
    wanted: R,
    waiting: Mapping[Hashable, R],
    holders: Callable[[R], Iterable[Hashable]],
) -> tuple[tuple[Hashable, R], ...] | None:
    """The chain of waits that `owner` would close by waiting for `wanted`, or None.

    Args:
        waiting: {task: resource} of those who wait already; `owner` need not be among them.
        holders: the tasks that hold a resource.

    Returns:
        ((task, what it waits for), ...) from `owner` on, along one path back to it (or, if others
        are stuck without it, to one of those); None if some reachable task is free to go on, or
        waits for what nobody holds: it is about to get that.
    """
    came_from: dict[Hashable, Hashable] = {}
    wants: dict[Hashable, R] = {owner: wanted}
    reached: list[Hashable] = [owner]
    last: Hashable = None
    for task in reached:  # grows while it is walked
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


@define(eq=False)
class Waits:
    """The edges of one cache: who waits, and who holds instances."""

    waiting: dict[Hashable, Resource] = Factory(dict)
    """{task: what it waits for}."""
    held: dict[Request, None] = Factory(dict)
    """Requests that have an instance, loading or running: they hold room."""

    def begin(self, owner: Hashable, resource: Resource) -> None:
        """`owner` waits for `resource` from now on; if in vain, `DeadlockError` and it does not."""
        self.check(owner, resource)
        self.waiting[owner] = resource

    def end(self, owner: Hashable) -> None:
        """`owner` waits no longer; no error if it did not."""
        self.waiting.pop(owner, None)

    def chain(
        self, owner: Hashable, resource: Resource
    ) -> tuple[tuple[Hashable, Resource], ...] | None:
        """Who waits for whom, if `owner` would wait (or waits) for `resource` in vain, or None."""
        return find_deadlock(owner, resource, self.waiting, self._holders)

    def reach(self, owner: Hashable) -> list[Hashable]:
        """`owner`, which waits in vain, and all whom it needs to give way, nearest first."""
        reached = [owner]
        seen = {owner}
        for task in reached:  # grows while it is walked
            for holder in self._holders(self.waiting[task]):
                if holder not in seen:
                    seen.add(holder)
                    reached.append(holder)
        return reached

    def check(self, owner: Hashable, resource: Resource) -> None:
        """`DeadlockError` if `owner` would wait (or waits) for `resource` in vain."""
        if self.chain(owner, resource) is not None:
            raise self.error(owner, resource)

    def error(self, owner: Hashable, resource: Resource) -> DeadlockError:
        """What to tell `owner`, for which waiting for `resource` is in vain."""
        chain = self.chain(owner, resource) or ((owner, resource),)
        lines = tuple(f"{_task_name(task)} waits for {_describe(it)}" for task, it in chain)
        shown = list(lines)
        if len(lines) > FIRST_SHOWN + LAST_SHOWN + 1:
            left_out = len(lines) - FIRST_SHOWN - LAST_SHOWN
            shown[FIRST_SHOWN:-LAST_SHOWN] = [f"{left_out} more tasks wait likewise"]
        return DeadlockError(
            f"this wait would never end: {', held while '.join(shown)}, held by the first; "
            "release one before acquiring the other, or raise concurrency or the limits",
            lines,
        )

    def _holders(self, resource: Resource) -> Iterable[Hashable]:
        if isinstance(resource, Entry):
            if len(resource.claims) < resource.function.concurrency:
                return []  # within a step: the first in line has not been served yet
            return [request.owner for request in resource.claims]
        if isinstance(resource, GroupRecord):
            return [*resource.tokens.owners, *([STRANGER] if resource.tokens.strangers() else [])]
        return [request.owner for request in self.held]


def _task_name(task: Hashable) -> str:
    return f"{getattr(task, 'name', task)!s:.{NAME_SHOWN}}"


def _describe(resource: Resource) -> str:
    if isinstance(resource, Entry):
        return f"an instance of {resource.function.key} in group {resource.group.name!r}"
    if isinstance(resource, GroupRecord):
        return f"a token of group {resource.name!r}"
    return resource
