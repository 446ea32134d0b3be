"""Yields events one by one, in order, for each cache of a log: input of replay, whatif and tune."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase

from attrs import Factory, define

from ..._core.events import Stamped
from .clock import JUMP, LONG_SILENCE
from .frames import Parser
from .lines import Reader
from .notes import Notes, cite, count
from .order import WINDOW, Line
from .units import seconds

# Number of caches that are followed, the first ones in the log: each takes some 50 KB, however few
# its events.
MAX_CACHES = 1000
# Number of events held back for one cache, even where others use up `WINDOW`.
LEAST_WINDOW = 10


@define(eq=False)
class Feeder:
    """The caches of a log, or those that are selected."""

    reader: Reader
    parser: Parser
    only: str | None = None
    """Id of the only cache; None: all."""
    label: str | None = None
    """Pattern that the caches' labels match, as for names of files; None: any."""
    lines: dict[str, Line] = Factory(dict)
    jumps: Counter[str] = Factory(Counter)
    """{cache: number of times its clock jumped back}."""
    left_out: int = 0
    """Number of events of caches beyond `MAX_CACHES`."""
    silences: dict[str, float] = Factory(dict)
    """{cache: the longest silence of more than `LONG_SILENCE`}."""
    _last: dict[str, float] = Factory(dict)
    _held: int = 0  # events held back, of all caches

    def events(self) -> Iterator[Stamped]:
        """Yield all events, those of each cache in order."""
        for block in self.reader.blocks():
            for event in self.parser.records(block):
                cache = event.cache
                if self.only is not None and cache != self.only:
                    continue
                line = self.lines.get(cache)
                if line is None:
                    if self.label is not None and not fnmatchcase(event.label or "", self.label):
                        continue
                    if len(self.lines) >= MAX_CACHES:
                        self.left_out += 1
                        continue
                    line = self.lines[cache] = Line()
                before = line.holding
                window = max(LEAST_WINDOW, WINDOW - (self._held - before))
                yield from self._timed(cache, line.put(event, window))
                self._held += line.holding - before
        for cache, line in self.lines.items():
            yield from self._timed(cache, line.end())

    def _timed(self, cache: str, events: Iterator[Stamped]) -> Iterator[Stamped]:
        for event in events:
            now = event.at_seconds
            step = now - self._last.get(cache, now)
            self._last[cache] = now
            if step < -JUMP:
                self.jumps[cache] += 1
            elif step > LONG_SILENCE:
                self.silences[cache] = max(step, self.silences.get(cache, 0.0))
            yield event

    def tell(self, notes: Notes) -> None:
        """Note sequence numbers that are missing or repeated, and clocks that jumped."""
        if self.left_out:
            notes.problem(
                f"more than {MAX_CACHES:,} caches: {count(self.left_out, 'event')} of the later "
                "ones left out; --cache ID is for one of them"
            )
        for cache, line in self.lines.items():
            order, name = line.order, cite(cache)
            missing = sum(last - first + 1 for first, last in order.gaps)
            if missing:
                first = order.gaps[0][0]
                notes.problem(
                    f"cache {name}: {count(missing, 'event')} missing, the first is {first:,}; "
                    "what is said about later ones may be wrong"
                )
            if order.late:
                notes.remark(
                    f"cache {name}: {count(order.late, 'event')} came out of order: put in order"
                )
            if order.repeated:
                notes.remark(
                    f"cache {name}: {count(order.repeated, 'event')} came twice or far too late: "
                    "left out"
                )
            if self.jumps[cache]:
                notes.problem(
                    f"cache {name}: the clock jumped back {count(self.jumps[cache], 'time')}; what "
                    "is worked out from times may be wrong"
                )
            if cache in self.silences:
                notes.remark(
                    f"cache {name}: nothing happened for {seconds(self.silences[cache])}, or the "
                    "clock jumped forward; then what is worked out from times is wrong"
                )
