"""Decides which compile is next: few at a time, at most one for each group, and groups in turn.

1. A group is *ready* if it has tickets that wait and none that runs. The group that has been ready
   the longest is next, with its oldest ticket; after that the group is ready again, behind all
   others.
2. So between two tickets of one group, each other ready group gets one: however many tickets wait
   in one group, the first of another waits only for those that run, and for one of each group
   before it.
3. A ticket may wait in several groups, and runs for the one whose turn comes first.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar, final

G = TypeVar("G", bound=Hashable)
T = TypeVar("T", bound=Hashable)


@final
class CompileQueue(Generic[G, T]):
    """Tickets that run and tickets that wait; each step returns the tickets that start now.

    Args:
        slots: number of tickets that may run at a time.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._running: dict[T, G] = {}  # {ticket: group that it runs for}
        self._waiting: dict[G, dict[T, None]] = {}  # {group: its tickets, oldest first}
        self._groups: dict[T, dict[G, None]] = {}  # {waiting ticket: its groups}
        self._ready: dict[G, None] = {}  # the longest ready first

    @property
    def running(self) -> int:
        """Number of tickets that run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Number of tickets that wait."""
        return len(self._groups)

    @property
    def idle(self) -> bool:
        """Whether no ticket runs or waits."""
        return not (self._running or self._groups)

    def is_waiting(self, ticket: T) -> bool:
        """Return whether a ticket waits."""
        return ticket in self._groups

    def add(self, ticket: T, groups: Iterable[G]) -> list[T]:
        """Add a new ticket that waits in each of these groups, at least one."""
        if ticket in self._running or ticket in self._groups:
            raise ValueError("this ticket runs or waits already")
        self._groups[ticket] = {}
        for group in groups:
            self._line_up(ticket, group)
        return self._start()

    def join(self, ticket: T, group: G) -> list[T]:
        """Add one more group to a ticket that waits."""
        self._line_up(ticket, group)
        return self._start()

    def withdraw(self, ticket: T) -> None:
        """Remove a ticket that waits."""
        for group in self._groups.pop(ticket):
            line = self._waiting[group]
            del line[ticket]
            if not line:
                del self._waiting[group]
                self._ready.pop(group, None)

    def finish(self, ticket: T) -> list[T]:
        """Free the slot of a ticket that ran."""
        group = self._running.pop(ticket)
        if group in self._waiting:
            self._ready[group] = None
        return self._start()

    def clear(self) -> list[T]:
        """Remove and return all tickets that wait."""
        tickets = list(self._groups)
        for ticket in tickets:
            self.withdraw(ticket)
        return tickets

    def _line_up(self, ticket: T, group: G) -> None:
        self._groups[ticket][group] = None
        self._waiting.setdefault(group, {})[ticket] = None
        if group not in self._running.values():
            self._ready.setdefault(group)

    def _start(self) -> list[T]:
        started = []
        while self._ready and len(self._running) < self.slots:
            group = next(iter(self._ready))
            ticket = next(iter(self._waiting[group]))
            self.withdraw(ticket)
            self._ready.pop(group, None)
            self._running[ticket] = group
            started.append(ticket)
        return started
