"""CPU shares by fair queueing: whose turn it is, reckoned in fuel burnt per share.

Each group has a virtual time that grows by fuel / shares whenever its guests burn fuel, wherever
they burn it. Whoever is behind goes first, so that in the long run groups that always have work
burn fuel in proportion to their shares. A group that was away starts at the present virtual time:
it gets no credit for having slept (start-time fair queueing: Goyal, Vin and Cheng, 1996).

Within a group it is first come, first served, one turn each.

Pure arithmetic and queues: who is woken and what a turn is used for, the runner knows.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

from attrs import Factory, define

T = TypeVar("T")

# Calls that end in their first slice may follow each other for this much fuel before the group has
# to wait for a turn: about 0.5 ms, as 100,000 units take 0.05 to 0.14 ms. What a call costs besides
# its fuel (3 to 4 microseconds) counts as well, or trivial calls would never make room.
BURST_FUEL = 500_000
CALL_FUEL = 4_000
# What the host does for a guest is charged as CPU time, at the same rate.
FUEL_PER_SECOND = 2000 * BURST_FUEL


@define(eq=False)
class Share:
    """A group's part of the CPU."""

    shares: int
    virtual_time: float = 0.0
    """Units of fuel per share."""

    active: int = 0
    """Its calls that take turns, in any line, and do not wait for a host function: while there are
    some, it is not away."""
    left: float = -math.inf
    """How many turns had begun when the last of these ended; a new group was always away."""
    burst: int = 0
    """Fuel of its calls since its last turn of the loop; see `BURST_FUEL`."""

    def charge(self, fuel: int) -> None:
        """Account for fuel that a guest of this group burnt."""
        self.virtual_time += fuel / self.shares
        self.burst += fuel + CALL_FUEL

    def charge_host(self, seconds: float, burst: int) -> None:
        """Account for CPU time that the host took for a guest of this group.

        Args:
            seconds: of CPU time.
            burst: as it was when that began. What was added since, by calls that the host made for
                this group meanwhile, is charged already.
        """
        added = self.burst - burst
        charged = added if added >= 0 else self.burst  # less than before: a turn was passed
        fuel = int(seconds * FUEL_PER_SECOND) - charged
        if fuel > 0:
            self.virtual_time += fuel / self.shares
            self.burst += fuel


@define(eq=False)
class FairQueue(Generic[T]):
    """Who waits for a turn on one resource that serves one at a time."""

    turns: int = 0
    """Turns begun so far."""
    now: float = 0.0
    """The present virtual time: where the group stood whose turn began last."""
    _lines: dict[Share, deque[T]] = Factory(dict)

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def join(self, share: Share, waiter: T) -> None:
        """`waiter` waits for a turn, behind the others of its group."""
        line = self._lines.get(share)
        if line is None:
            line = self._lines[share] = deque()
        line.append(waiter)

    def leave(self, share: Share, waiter: T) -> None:
        """`waiter` gives up; `ValueError` or `KeyError` if it does not wait."""
        line = self._lines[share]
        line.remove(waiter)
        if not line:
            del self._lines[share]

    def first(self) -> Share | None:
        """The group whose turn is next, or None if nobody waits."""
        return min(self._lines, key=_virtual_time, default=None)

    def pop(self) -> T | None:
        """Take out who is next."""
        share = self.first()
        if share is None:
            return None
        line = self._lines[share]
        waiter = line.popleft()
        if not line:
            del self._lines[share]
        return waiter

    def must_yield(self, share: Share) -> bool:
        """Whether the holder has to hand its turn over: a group is behind, or its own waits.

        Between groups that stand equal the holder keeps it.
        """
        first = self.first()
        if first is None:
            return False
        return first is share or first.virtual_time < share.virtual_time

    def enter(self, share: Share) -> None:
        """`share` asks for a turn: it starts at the present virtual time, if it was away.

        Being in another line is not being away: a call goes from the loop's line to the threads'
        and back, and must not lose on the way what its group is behind.
        """
        if not share.active:
            share.virtual_time = max(share.virtual_time, self.now)

    def begin(self, share: Share) -> None:
        """A turn of `share` begins."""
        self.turns += 1
        self.now = max(self.now, share.virtual_time)


def _virtual_time(share: Share) -> float:
    return share.virtual_time
