"""Time since the first event, from a clock that may have been wrong."""

from __future__ import annotations

import polars as pl
from attrs import define

# The cache's clock only moves forward. Events of one step may have the time of its beginning, so
# some microseconds backwards are normal; this many seconds mean another machine's clock, or a
# broken one.
JUMP = 1.0
# An empty cache logs nothing. A day without events may also be a clock that was set.
LONG_SILENCE = 86_400.0


@define(eq=False)
class Clock:
    """The clock of one cache. Where it jumps back, time continues from there."""

    jumps: int = 0
    """Number of steps backwards."""
    long_silences: int = 0
    """Number of steps forward of more than `LONG_SILENCE`."""
    longest_silence: float = 0.0
    _began: float | None = None
    _last: float = 0.0
    _shift: float = 0.0  # the sum of all jumps

    def times(self, clock: pl.Series, late: int) -> pl.Series:
        """Return the seconds since the first event.

        Args:
            clock: the clock's time at events, in order.
            late: number of events at the front that fill earlier gaps.
        """
        if self._began is None:
            self._began = self._last = clock[0]
        shifts = pl.repeat(self._shift, len(clock), eager=True)
        fresh = clock[late:]
        if len(fresh):
            before = pl.concat([pl.Series([self._last]), fresh[:-1]])
            steps = fresh - before
            self._last = fresh[-1]
            longest = steps.max()
            assert isinstance(longest, float)
            self.longest_silence = max(self.longest_silence, longest)
            self.long_silences += int((steps > LONG_SILENCE).sum())
            back = steps < -JUMP
            if back.any():
                self.jumps += int(back.sum())
                zeros = pl.zeros(len(steps), eager=True)
                jumped = (-steps).zip_with(back, zeros).cum_sum() + self._shift
                shifts = pl.concat([shifts[:late], jumped])
                self._shift = jumped[-1]
        return clock - self._began + shifts
