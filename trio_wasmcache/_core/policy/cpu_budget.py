"""The CPU time of a group that has a `cpu_limit`: so much in each window of a second, and no more.

CPU time is known only once it was used, so a slice may exceed a window. The excess counts in the
next ones; what a window leaves unused is lost. So over any time a group uses its limit at most, and
one slice of each of its threads.
"""

from __future__ import annotations

from typing import final

WINDOW = 1.0
"""Length of a window (seconds)."""


@final
class CpuBudget:
    """The CPU time of one group; `now` is the time of each step (seconds)."""

    __slots__ = (
        "_began",
        "_part",
        "_since",
        "_told",
        "_told_at",
        "_waited",
        "closed",
        "group",
        "limit",
        "used",
        "waiting",
        "waits",
    )

    def __init__(self, group: str, limit: float) -> None:
        self.group: str = group
        """Name of the group."""
        self.limit: float = limit
        """Cores that it may use."""
        self.used: float = 0.0
        """Seconds of CPU time used in this window, with the excess of earlier ones."""
        self.waiting: int = 0
        """Number of its calls that wait now."""
        self.closed: bool = False
        """Whether nothing waits for it any more: the limit was taken away, or the group has
        closed."""
        self._began: float | None = None  # the present window, or the last in which it ran
        self._part = 0  # of the window, in which the last call was let go on
        self.waits: int = 0
        """Number of waits of its calls that have begun."""
        self._waited = 0.0  # seconds of those that have ended
        self._since = 0.0  # sum of the times when those under way have begun
        self._told_at: float | None = None
        self._told: tuple[int, float] = (0, 0.0)  # waits and seconds told before

    def charge(self, seconds: float, now: float) -> None:
        """Count CPU time that was used (seconds)."""
        self._go_on(now)
        self.used += seconds

    def used_part(self, parts: int) -> bool:
        """Return whether one more part of a window, of so many, was used since this was true."""
        part = int(self.used * parts / (self.limit * WINDOW))
        changed, self._part = part != self._part, part
        return changed

    def left(self, now: float) -> float:
        """Return the CPU time that is left in this window (seconds); 0 or less if it is spent."""
        self._go_on(now)
        return self.limit * WINDOW - self.used

    def ready_at(self, now: float) -> float | None:
        """Return when it may go on (the clock of `now`), or None if it may at once."""
        if self.closed or self.left(now) > 0:
            return None
        assert self._began is not None  # it has used something
        windows = int(self.used / (self.limit * WINDOW))
        return self._began + windows * WINDOW

    def begin_wait(self, now: float) -> None:
        """Count a call that waits."""
        self.waiting += 1
        self.waits += 1
        self._since += now

    def end_wait(self, began: float, now: float) -> None:
        """Count the time of a wait that has ended."""
        self.waiting -= 1
        self._since -= began
        self._waited += now - began

    def waited(self, now: float) -> float:
        """Return for how long its calls have waited so far, all together (seconds)."""
        return self._waited + self.waiting * now - self._since

    def take_waits(self, now: float, *, last: bool = False) -> tuple[int, float] | None:
        """Return waits to be told in the log, and their seconds, since the last time.

        At most once a window, unless it is for the `last` time; None if there is nothing to tell.
        """
        waits, waited = self.waits, self.waited(now)
        due = last or self._told_at is None or now >= self._told_at + WINDOW
        if not due or waited <= self._told[1]:
            return None
        told, self._told, self._told_at = self._told, (waits, waited), now
        return waits - told[0], waited - told[1]

    def _go_on(self, now: float) -> None:
        """Begin the window of `now`, if it is a later one."""
        if self._began is None:
            self._began = now
        windows = int((now - self._began) / WINDOW)
        if windows > 0:
            self._began += windows * WINDOW
            self.used = max(0.0, self.used - windows * self.limit * WINDOW)
