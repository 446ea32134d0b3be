"""Sequence numbers: finds missing, repeated and late events, and puts events in order.

The cache numbers its events from 1 without gaps. A writer may mix them up (several threads, several
files); within `WINDOW` events they are put in order again.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator

import polars as pl
from attrs import Factory, define

from ..._core.events import Stamped
from .records import letters_of

# Number of events held back while an earlier one is missing, of all caches of a log together. At
# 2 KB each, 20 MB.
WINDOW = 10_000
# Characters of an event's texts that count as one more event.
EVENT_LETTERS = 2000
# Number of gaps that are remembered; a log with more cannot be repaired.
MAX_GAPS = 10_000
ENDLESS = 2**64  # above every sequence number


@define(eq=False)
class Order:
    """The sequence numbers of one cache."""

    first: int = 0
    last: int = 0
    late: int = 0
    """Number of events that came after one with a higher number."""
    repeated: int = 0
    lost: int = 0
    """Number of events that the cache reports as dropped, as its buffer was full."""
    gaps: list[tuple[int, int]] = Factory(list)
    """(first, last) of missing events that were not dropped by the cache, in order."""
    _forgotten: int = 0  # missing events in gaps beyond `MAX_GAPS`

    @property
    def missing(self) -> int:
        """Number of missing events, except those that the cache dropped."""
        return sum(last - first + 1 for first, last in self.gaps) + self._forgotten

    def lose(self, number: int, first: int) -> None:
        """Record the cache's later report that it dropped `number` events from `first` on."""
        self.lost += number
        unknown = number - self._take_out(first, first + number - 1)
        self._forgotten = max(0, self._forgotten - unknown)

    def sort(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the events of one cache in order, without repeated ones."""
        numbers = frame["seq"]
        steps = numbers.diff().drop_nulls()
        if not self.first:
            lowest = numbers.min()
            assert isinstance(lowest, int)
            self.first, self.last = lowest, lowest - 1
        if not (numbers[0] == self.last + 1 and (steps == 1).all()):
            self.late += int((steps < 0).sum())
            whole = len(frame)
            frame = frame.unique("seq", keep="first", maintain_order=True).sort("seq")
            late = frame.filter(pl.col("seq") <= self.last)
            if len(late):
                self.late += len(late)
                filled = [number for number in late["seq"] if self._fill(number)]
                frame = frame.filter((pl.col("seq") > self.last) | pl.col("seq").is_in(filled))
            self.repeated += whole - len(frame)
            fresh = frame.filter(pl.col("seq") > self.last)["seq"]
            before = pl.concat([pl.Series([self.last]), fresh[:-1]]) if len(fresh) else fresh
            jumped = fresh - before > 1
            for number, previous in zip(fresh.filter(jumped), before.filter(jumped), strict=True):
                self.skip(previous + 1, number - 1)
        if len(frame):
            highest = frame["seq"].max()
            assert isinstance(highest, int)
            self.last = max(self.last, highest)
        return frame

    def skip(self, first: int, last: int) -> None:
        """Record a gap: these events have not come, and later ones have."""
        self.gaps.append((first, last))
        if len(self.gaps) > MAX_GAPS:
            forgotten = self.gaps[: MAX_GAPS // 2]
            del self.gaps[: MAX_GAPS // 2]
            self._forgotten += sum(last - first + 1 for first, last in forgotten)

    def _fill(self, number: int) -> bool:
        """Remove a number from the gaps; return whether it was missing."""
        if number < self.first:
            # The log began in the middle, and earlier events follow now.
            if self.first - number > 1:
                self.gaps.insert(0, (number + 1, self.first - 1))
            self.first = number
            return True
        return self._take_out(number, number) > 0

    def _take_out(self, first: int, last: int) -> int:
        """Remove numbers from the gaps; return how many of them were missing."""
        index = max(0, bisect.bisect_right(self.gaps, (first, ENDLESS)) - 1)
        taken = 0
        while index < len(self.gaps) and self.gaps[index][0] <= last:
            low, high = self.gaps[index]
            taken += max(0, min(high, last) - max(low, first) + 1)
            parts = [(low, min(high, first - 1)), (max(low, last + 1), high)]
            left = [(low, high) for low, high in parts if low <= high]
            self.gaps[index : index + 1] = left
            index += len(left)
        return taken


@define(eq=False)
class Line:
    """Yields the events of one cache one by one and in order."""

    order: Order = Factory(Order)
    holding: int = 0
    """Number of events held back; one with long texts counts as several."""
    # heap of (seq, unique, cost, event)
    _held: list[tuple[int, int, int, Stamped]] = Factory(list)
    _pushed: int = 0
    _highest: int = 0

    def put(self, event: Stamped, window: int = WINDOW) -> Iterator[Stamped]:
        """Add an event, hold at most `window` back; yield those whose turn it is."""
        order, number = self.order, event.seq
        order.late += number < self._highest
        self._highest = max(self._highest, number)
        if not order.first and number == 1:
            order.first = 1
        if order.first and number == order.last + 1 and not self._held:
            order.last = number
            yield event
            return
        if order.first and number <= order.last:
            order.repeated += 1
            return
        self._pushed += 1
        cost = 1 + letters_of(event.event) // EVENT_LETTERS
        self.holding += cost
        heapq.heappush(self._held, (number, self._pushed, cost, event))
        yield from self._release(window)

    def end(self) -> Iterator[Stamped]:
        """Yield all events held back, as no more will come."""
        yield from self._release(0)

    def _release(self, window: int) -> Iterator[Stamped]:
        order, held = self.order, self._held
        while held:
            number = held[0][0]
            due = order.first and number <= order.last + 1
            if not due and self.holding <= window:
                return
            _, _, cost, event = heapq.heappop(held)
            self.holding -= cost
            if order.first and number <= order.last:
                order.repeated += 1
                continue
            if not order.first:
                order.first = number
            elif number > order.last + 1:
                order.skip(order.last + 1, number - 1)
            order.last = number
            yield event
