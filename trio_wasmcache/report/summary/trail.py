"""Follows requests and instances through a log: all their events, from a value of one field.

The log is read twice: first for the events that have the value (`look`), then for all events of
their requests and instances (`take`).
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

from attrs import Factory, define, frozen

Fields: TypeAlias = dict[str, Any]
# Requests and instances that are followed, and events that are kept.
MAX_FOLLOWED, MAX_EVENTS = 100_000, 10_000
# Requests and functions for which lines are searched before they are parsed; if there are more, all
# lines are parsed.
MAX_SEARCHED = 10
# Fields with the number of a request.
REQUESTS = ("request", "for_request")


@frozen
class Search:
    """Finds the lines that may be needed, to leave others unparsed."""

    marks: tuple[bytes, ...]
    """Bytes of which some are in every such line."""
    patterns: tuple[re.Pattern[bytes], ...]
    """Patterns of which some are in every such line; none: the marks say all."""

    def finds(self, line: bytes) -> bool:
        """Return whether a line may be needed."""
        for mark in self.marks:
            if mark in line:
                break
        else:
            return False
        return not self.patterns or any(it.search(line) for it in self.patterns)


@define(eq=False)
class Trail:
    """The events of the requests or instances that have a value of a field.

    An event with the value is followed by its request; if it has none, or the field is `instance`,
    by its instance. An event without either stands for itself.
    """

    field: str
    value: str
    """The value as text, as it is in JSON if it is no string."""
    events: list[Fields] = Factory(list)
    left_out: int = 0
    """Number of events beyond `MAX_EVENTS`."""
    unfollowed: int = 0
    """Number of events whose request or instance is beyond `MAX_FOLLOWED`."""
    requests: set[tuple[str, int]] = Factory(set)
    """Requests that are followed: {(cache, number)}."""
    entries: set[tuple[str, str, str, str]] = Factory(set)
    """Their functions: {(cache, function, argument types, group)}."""
    _instances: set[tuple[str, int]] = Factory(set)

    @property
    def followed(self) -> tuple[int, int]:
        """Numbers of requests and of instances that are followed."""
        return len(self.requests), len(self._instances)

    def has(self, event: Fields) -> bool:
        """Return whether an event has the value."""
        if self.field not in event:
            return False
        found = event[self.field]
        return (found if isinstance(found, str) else json.dumps(found)) == self.value

    def look(self, event: Fields) -> None:
        """Follow the request or the instance of an event, if it has the value."""
        if not self.has(event):
            return
        request, instance = event.get("request"), event.get("instance")
        follow, number = self.requests, request
        if instance is not None and (request is None or self.field == "instance"):
            follow, number = self._instances, instance
        if number is None or (event["cache"], number) in follow:
            return
        if len(self.requests) + len(self._instances) >= MAX_FOLLOWED:
            self.unfollowed += 1
            return
        follow.add((event["cache"], number))
        if follow is self.requests and event.get("function") is not None:
            self.entries.add(
                (event["cache"], event["function"], event["arg_types"], event["group"])
            )

    def search(self, most: int = MAX_SEARCHED) -> Search:
        """Return a search for the lines of which `look` or `take` may need the event.

        Args:
            most: number of requests that are searched for; with more, every line is found.
        """
        if self._instances or len(self.requests) > most:
            return Search((b"",), ())
        numbers = {str(number) for _, number in self.requests}
        patterns = [rf'request"\s*:\s*(?:{"|".join(numbers)})\b'] if numbers else []
        value = json.dumps(self.value)[1:-1]
        if value != self.value or not self.field.isidentifier():
            value = ""  # how others are written is up to the renderer
        else:
            patterns.append(rf'{self.field}"\s*:\s*"?{re.escape(value)}')
        marks = (value, *numbers)
        return Search(
            tuple(mark.encode() for mark in marks),
            tuple(re.compile(pattern.encode()) for pattern in patterns) if value else (),
        )

    def take(self, event: Fields) -> bool:
        """Keep an event, if it is one of those that are followed, or has the value itself.

        Return whether it is kept.
        """
        cache = event["cache"]
        if not (
            (cache, event.get("instance")) in self._instances
            or any((cache, event.get(name)) in self.requests for name in REQUESTS)
            or self.has(event)
        ):
            return False
        if len(self.events) >= MAX_EVENTS:
            self.left_out += 1
            return False
        self.events.append(event)
        return True

    def sort(self) -> None:
        """Put the events in order of time, as far as one clock shows it: each cache has its own."""
        stamps = {type(event.get("timestamp")) for event in self.events}
        timed = stamps <= {str} or stamps <= {int, float}
        order = {event["cache"]: number for number, event in enumerate(reversed(self.events))}
        self.events.sort(
            key=lambda event: (
                event["timestamp"] if timed else -order[event["cache"]],
                -order[event["cache"]],
                event["seq"],
            )
        )
