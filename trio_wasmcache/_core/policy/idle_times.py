"""The times for which a function's instances were idle between two uses: a decaying histogram.

Times are counted in classes, four to each doubling. A new one has the weight `WEIGHT`; when all
together would exceed `FULL`, each loses a quarter. So mostly the last 45 to 60 times count; a new
habit is learned at its first use, and an old one forgotten after a hundred others.

A function takes about 150 bytes, however often it is used.
"""

from __future__ import annotations

import math
from typing import Final, final

# Classes to each doubling of the time: the next one begins 19 % higher.
PER_DOUBLING: Final = 4
_PARTS: Final = tuple(0.5 ** (1 - part / PER_DOUBLING) for part in range(PER_DOUBLING))
# From a millisecond to 34 years.
_LOWEST, _HIGHEST = -10 * PER_DOUBLING, 30 * PER_DOUBLING
WEIGHT: Final = 4
# So that each weight fits into a byte.
FULL: Final = 240
_FADED: Final = bytes(weight * 3 // 4 for weight in range(256))


@final
class IdleTimes:
    """Idle times of one function, or of several."""

    __slots__ = ("beyond", "first", "total", "weights")

    def __init__(self) -> None:
        self.first: int = 0
        """Class of the first of `weights`."""
        self.weights: bytes = b""
        """Weight of each class, from the shortest to the longest time; replaced, never changed."""
        self.beyond: int = 0
        """Weight of times that were longer than any timeout may be."""
        self.total: int = 0
        """Sum of all weights."""

    def add(self, seconds: float) -> None:
        """Count one idle time; `math.inf`: longer than any timeout may be."""
        if self.total + WEIGHT > FULL:
            self.weights = self.weights.translate(_FADED)
            self.beyond = self.beyond * 3 // 4
            left = self.weights.lstrip(b"\0")
            self.first += len(self.weights) - len(left)
            self.weights = left.rstrip(b"\0")
            self.total = sum(self.weights) + self.beyond
        self.total += WEIGHT
        if seconds == math.inf:
            self.beyond += WEIGHT
            return
        place = class_of(seconds)
        weights = bytearray(self.weights)
        if not weights:
            self.first = place
        if place < self.first:
            weights[:0] = bytes(self.first - place)
            self.first = place
        place -= self.first
        if place >= len(weights):
            weights += bytes(place + 1 - len(weights))
        weights[place] += WEIGHT
        self.weights = bytes(weights)

    def as_text(self) -> str:
        """Return all of it, for a snapshot: first class, weights in hexadecimal, weight beyond."""
        return text_of(self.first, self.weights, self.beyond)

    @staticmethod
    def from_text(text: str) -> IdleTimes:
        """Return what `as_text` was made of; raise `ValueError` if it was made of nothing."""
        first, weights, beyond = text.split(":")
        times = IdleTimes()
        times.first, times.weights, times.beyond = int(first), bytes.fromhex(weights), int(beyond)
        times.total = sum(times.weights) + times.beyond
        return times

    def timeout(self, least: float, most: float) -> float:
        """Return how long an instance should be kept idle (seconds, from `least` to `most`).

        It is the quantile of the idle times that pays best, where each use that finds an instance
        is worth `most` seconds of idleness; if none pays, it is `least`. With a given memory, that
        avoids the most loads. A fixed quantile keeps instances in vain that are used by chance or
        hardly ever: with 99 %, as in the literature, a drawn trace had 1.1 to 1.4 times the loads
        at equal memory.

        The timeout is longer than the quantile by one class, as the next idle time may be, too.
        """
        best, timeout = 0.0, least
        saved, left = 0.0, self.total
        for place, weight in enumerate(self.weights, self.first):
            if not weight:
                continue
            begin = beginning(place)
            if begin >= most:
                break
            left -= weight
            saved += weight * (most - min((begin + beginning(place + 1)) / 2, most))
            kept = min(beginning(place + 2), most)
            worth = saved - left * kept
            if worth > best:
                best, timeout = worth, kept
        return max(timeout, least)


def text_of(first: int, weights: bytes, beyond: int) -> str:
    """Return idle times as text."""
    return f"{first}:{weights.hex()}:{beyond}"


def class_of(seconds: float) -> int:
    """Return the class of an idle time. It is the same on any machine, to the last digit."""
    part, exponent = math.frexp(seconds)
    place = PER_DOUBLING * (exponent - 1) - 1
    for begin in _PARTS:
        if part < begin:
            break
        place += 1
    return min(max(place, _LOWEST), _HIGHEST)


def beginning(place: int) -> float:
    """Return the shortest idle time of a class (seconds)."""
    exponent, part = divmod(place, PER_DOUBLING)
    return math.ldexp(_PARTS[part], exponent + 1)
