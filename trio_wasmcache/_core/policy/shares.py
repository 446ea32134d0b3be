"""CPU shares by fair queueing: which group's turn is next, measured in fuel burnt per share.

Each group has a virtual time that grows by fuel / shares whenever its guests burn fuel, on the loop
or in threads. The group that is furthest behind is next, so that in the long run groups that always
have work burn fuel in proportion to their shares. A group that was away starts at the present
virtual time: it gets no credit for having slept (start-time fair queueing: Goyal, Vin and Cheng,
1996).

Within a group it is first come, first served, one turn each.

Pure arithmetic and queues: the runner wakes waiters and uses the turns.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

from .cpu_budget import CpuBudget

T = TypeVar("T")

# Calls that end in their first slice may follow each other for this much fuel before the group has
# to wait for a turn: about 0.5 ms, as 100,000 units take 0.05 to 0.14 ms. A call's cost besides its
# fuel (3 to 4 microseconds) counts as well, or a series of trivial calls would never yield.
BURST_FUEL = 500_000
CALL_FUEL = 4_000
# A call that ends before its guest runs, as one whose values do not fit: 20 to 60 microseconds.
UNRUN_FUEL = 30_000
# A batch that takes no short way, beside its rows: it is looked at, and its results are collected.
BATCH_FUEL = 120_000
# What letting others run costs, whatever comes of it: a pass of the loop.
PASS_FUEL = 20_000
# Work of the host for a guest is charged as CPU time, at the same rate.
FUEL_PER_SECOND = 2000 * BURST_FUEL


class Share:
    """A group's part of the CPU."""

    __slots__ = ("active", "budget", "burst", "burst_from", "left", "shares", "virtual_time")

    def __init__(self, shares: int) -> None:
        self.shares: int = shares
        self.virtual_time: float = 0.0
        """Units of fuel per share."""

        self.active: int = 0
        """Number of its calls that take turns, in any queue, and do not wait for a host function.
        The group is away only while there are none."""
        self.left: float = -math.inf
        """Number of turns begun when the last of these calls ended; a new group was always away."""
        self.burst: int = 0
        """Fuel of its calls since its last turn of the loop, and what they cost beside it; see
        `BURST_FUEL`."""
        self.burst_from: float = 0.0
        """The virtual time at which that was 0."""
        self.budget: CpuBudget | None = None
        """The group's CPU time, if that has a limit."""

    def arrive(self) -> None:
        """Count one more call that takes turns."""
        self.active += 1

    def leave(self, turns: int) -> None:
        """Count one call fewer that takes turns; so many turns of all groups have begun."""
        self.active -= 1
        self.left = turns

    def charge(self, fuel: int, beside: int = CALL_FUEL) -> None:
        """Charge fuel that a guest of this group burnt, and what that has cost beside it."""
        self.virtual_time += fuel / self.shares
        self.burst += fuel + beside

    def settle(self, beside: int = 0) -> None:
        """Account for what calls and loads cost beside their fuel since the last turn.

        `beside` is what the next turn costs.

        Otherwise calls that burn next to nothing would be for nothing, and a group of them always
        behind.
        """
        self.burst += beside
        owed = self.burst - (self.virtual_time - self.burst_from) * self.shares
        if owed > 0:
            self.virtual_time += owed / self.shares

    def begin_burst(self) -> None:
        """Begin a new burst of short calls."""
        self.settle()
        self.burst = 0
        self.burst_from = self.virtual_time

    def end_burst(self) -> None:
        """Have the next short call of the group wait for a turn."""
        self.burst = max(self.burst, BURST_FUEL)

    def charge_host(self, seconds: float, burst: int) -> None:
        """Charge CPU time that the host took for a guest of this group.

        Args:
            seconds: CPU time (seconds).
            burst: The value of `burst` when that work began. Fuel added since, by calls that the
                host made for this group meanwhile, is charged already.
        """
        added = self.burst - burst
        charged = added if added >= 0 else self.burst  # lower than before: a turn was passed
        fuel = int(seconds * FUEL_PER_SECOND) - charged
        if fuel > 0:
            self.virtual_time += fuel / self.shares
            self.burst += fuel


class FairQueue(Generic[T]):
    """The queue for turns on one resource that serves one holder at a time."""

    __slots__ = ("_lines", "now", "turns")

    def __init__(self, now: float = 0.0) -> None:
        self.turns: int = 0
        """Number of turns begun so far."""
        self.now: float = now
        """The present virtual time: that of the group whose turn began last."""
        self._lines: dict[Share, deque[T]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def join(self, share: Share, waiter: T) -> None:
        """Add `waiter`, behind the others of its group."""
        line = self._lines.get(share)
        if line is None:
            line = self._lines[share] = deque()
        line.append(waiter)

    def leave(self, share: Share, waiter: T) -> None:
        """Remove `waiter`; raise `ValueError` or `KeyError` if it does not wait."""
        line = self._lines[share]
        line.remove(waiter)
        if not line:
            del self._lines[share]

    def first(self) -> Share | None:
        """Return the group whose turn is next, or None if nothing waits."""
        return min(self._lines, key=_virtual_time, default=None)

    def pop(self) -> T | None:
        """Remove and return the next waiter, or None if nothing waits."""
        share = self.first()
        if share is None:
            return None
        line = self._lines[share]
        waiter = line.popleft()
        if not line:
            del self._lines[share]
        return waiter

    def must_yield(self, share: Share) -> bool:
        """Whether the holder must pass its turn on: a group is behind, or its own has waiters.

        Between groups at the same virtual time the holder keeps its turn.
        """
        first = self.first()
        if first is None:
            return False
        return first is share or first.virtual_time < share.virtual_time

    def enter(self, share: Share) -> None:
        """Move `share`, which asks for a turn, to the present virtual time if it was away.

        A group in another queue is not away: a call moves from the loop's queue to the threads' and
        back, and its group must not lose what it is behind.
        """
        if not share.active and share.virtual_time < self.now:
            share.burst_from += self.now - share.virtual_time
            share.virtual_time = self.now

    def begin(self, share: Share, turns: int = 1) -> None:
        """Begin a turn of `share`, or the last of several that follow each other."""
        self.turns += turns
        self.now = max(self.now, share.virtual_time)


def _virtual_time(share: Share) -> float:
    return share.virtual_time
