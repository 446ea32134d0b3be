"""Follows requests and instances through a log: all their events, from a value of one field.

The log is read twice: first for the events that have the value (`look`), then for all events of
their requests and instances (`take`).
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

from attrs import Factory, define

Fields: TypeAlias = dict[str, Any]
# Requests and instances that are followed, and events that are kept.
MAX_FOLLOWED, MAX_EVENTS = 100_000, 10_000
# Requests and functions for which lines are searched before they are parsed; if there are more, all
# lines are parsed.
MAX_SEARCHED = 50
# Fields with the number of a request.
REQUESTS = ("request", "for_request")
# Fields and values that every renderer writes alike. Many escape quotes, "&", "<", ">", "=", "+" or
# "/", and a number that is no int can be written in several ways.
_FIELD = re.compile(r"\w+", re.ASCII)
_PLAIN = re.compile(r"(?!-?\d+(\.\d*)?([eE]-?\d+)?\Z)[\w .:;,@#%*()-]+|-?\d+", re.ASCII)


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
    groups: set[tuple[str, str]] = Factory(set)
    """Groups in which an event waits for a token, before there is a request: {(cache, group)}."""
    _instances: set[tuple[str, int]] = Factory(set)
    _alone: bool = False  # whether some events that have the value are not followed

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
        if number is None:
            self._alone = True
            if event["event"] == "wasmcache.blocked" and len(self.groups) < MAX_SEARCHED:
                self.groups.add((event["cache"], event["group"]))
            return
        if (event["cache"], number) in follow:
            return
        if len(self.requests) + len(self._instances) >= MAX_FOLLOWED:
            self.unfollowed += 1
            self._alone = True
            return
        follow.add((event["cache"], number))
        if follow is self.requests and event.get("function") is not None:
            self.entries.add(
                (event["cache"], event["function"], event["arg_types"], event["group"])
            )

    def patterns(self) -> list[re.Pattern[bytes]] | None:
        """Return patterns of which one is in each line that `look` or `take` may need.

        None: any line may be needed.
        """
        if self._instances or len(self.requests) > MAX_SEARCHED:
            return None
        if not (_FIELD.fullmatch(self.field) and _PLAIN.fullmatch(self.value)):
            return None  # how others are written is up to the renderer
        patterns = []
        if self._alone or not self.requests:
            patterns.append(rf'{self.field}"\s*:\s*"?{re.escape(self.value)}')
        if self.requests:
            numbers = "|".join(str(number) for _, number in self.requests)
            patterns.append(rf'request"\s*:\s*(?:{numbers})\b')
        return [re.compile(pattern.encode()) for pattern in patterns]

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

    def begin_anew(self) -> None:
        """Forget the events, as the log is read once more for them."""
        self.events.clear()
        self.left_out = 0

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
