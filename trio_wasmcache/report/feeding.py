"""Events one by one, in order, for each cache of a log: what replay, whatif and tune go through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import Factory, define

from .frames import Parser
from .lines import Reader
from .notes import Notes, count
from .order import Line


@define(eq=False)
class Feeder:
    """The caches of a log, or the one that is asked for."""

    reader: Reader
    parser: Parser
    only: str | None = None
    lines: dict[str, Line] = Factory(dict)

    def events(self) -> Iterator[dict[str, Any]]:
        """All events, those of each cache in order."""
        for block in self.reader.blocks():
            for event in self.parser.records(block):
                cache = event["cache"]
                if self.only is not None and cache != self.only:
                    continue
                line = self.lines.get(cache)
                if line is None:
                    line = self.lines[cache] = Line()
                yield from line.put(event)
        for line in self.lines.values():
            yield from line.end()

    def tell(self, notes: Notes) -> None:
        """What there is to say about numbers that are missing or came twice."""
        for cache, line in self.lines.items():
            order = line.order
            missing = sum(last - first + 1 for first, last in order.gaps)
            if missing:
                first = order.gaps[0][0]
                notes.problem(
                    f"cache {cache}: {count(missing, 'event')} missing, the first is {first:,}; "
                    "what is said about later ones may be wrong"
                )
            if order.late:
                notes.remark(
                    f"cache {cache}: {count(order.late, 'event')} came out of order: put in order"
                )
            if order.repeated:
                notes.remark(
                    f"cache {cache}: {count(order.repeated, 'event')} came twice or far too late: "
                    "left out"
                )
