"""Decides when the next sample of an instance is taken, and how much it weighs.

1. Samples are taken after an amount of fuel, not of time: one on average every `INTERVAL` units. A
   sample weighs the fuel that was burnt since the one before, so that the sum of all weights is the
   fuel of the calls, whatever the intervals are.
2. The amount is drawn anew for each sample, from a half to one and a half times `INTERVAL`. A guest
   that does the same again and again would otherwise be seen at the same place each time.
3. The guest can stop only where a slice of fuel ends, and all slices of one call are equally long.
   So the length is chosen when the call begins: what is missing up to the next sample, at least an
   eighth of what the last call burnt. Short calls are stopped in the middle, too, and long ones not
   too often.
"""

from __future__ import annotations

import random
from typing import Final, final

INTERVAL: Final = 1_000_000
"""Units of fuel between two samples, on average: 0.06 ms of guest time in the tightest of loops,
1 ms elsewhere. Taking one costs 0.01 ms."""
LEAST: Final = 16
"""Units of fuel in a slice, at least."""
PARTS: Final = 8
"""Slices into which a call like the last one is cut, at most."""
LONG_PARTS: Final = 16
"""Slices between two samples, at most, of calls that burn more than `INTERVAL`."""


@final
class Pace:
    """Counts the fuel of one instance, and draws the intervals.

    Args:
        seed: number by which intervals are drawn; the same ones for the same number.
        interval: units of fuel between two samples, on average.
    """

    __slots__ = ("_burnt", "_draw", "_due", "_interval", "_last", "_sampled")

    def __init__(self, seed: int, interval: int) -> None:
        self._interval = interval
        self._draw = random.Random(seed).uniform
        self._burnt = 0  # by calls that are over
        self._sampled = 0  # of all that, when the last sample was taken
        self._last = 0  # by the last call
        # Anywhere in the first interval, as most functions may burn less than one.
        self._due = int(self._draw(0, 1) * interval)

    def _next(self) -> int:
        return self._sampled + int(self._draw(0.5, 1.5) * self._interval)

    def slice_of(self, most: int) -> int:
        """Return the units of fuel in each slice of a call that begins.

        A number of slices is about `most` together, so that an engine can join them.

        Args:
            most: units in a slice, at most.
        """
        least = max(LEAST, min(self._last // PARTS, self._interval // LONG_PARTS))
        wanted = max(self._due - self._burnt, least)
        return max(1, most // -(-most // wanted))

    def is_due(self, burnt: int) -> bool:
        """Return whether a sample is to be taken.

        Args:
            burnt: units that the call under way has burnt.
        """
        return self._burnt + burnt >= self._due

    def weigh(self, burnt: int) -> int:
        """Return the weight of a sample that is taken now, in units of fuel; see `is_due`."""
        return max(0, self._burnt + burnt - self._sampled)

    def note_sample(self, burnt: int, rest: int = 0) -> None:
        """Note that a sample was taken; see `is_due`.

        Args:
            burnt: units that the call under way has burnt.
            rest: units that are to be burnt before the next sample, at least.
        """
        self._sampled = self._burnt + burnt
        self._due = max(self._next(), self._sampled + rest)

    def end_call(self, burnt: int) -> None:
        """Note that a call is over, which has burnt that many units."""
        self._last = burnt
        self._burnt += burnt
