"""Follows requests and instances through a log: all their events, from a value of one field.

The log is read twice: first for the events that have the value (`look`), then for all events of
their requests and instances (`take`).
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

from attrs import Factory, define

from ..reading.lines import Sought

Fields: TypeAlias = dict[str, Any]
Entry: TypeAlias = tuple[str, str, str, str]
"""Whose instances they are: cache, function, argument types, group."""
# Requests and instances that are followed, and events that are kept.
MAX_FOLLOWED, MAX_EVENTS = 100_000, 10_000
# Requests and functions for which lines are searched before they are parsed; if there are more, all
# lines are parsed.
MAX_SEARCHED = 50
# Fields with the number of a request.
REQUESTS = ("request", "for_request")
# Fields and values that every renderer writes alike. Many escape quotes, "&", "<", ">", "=", "+" or
# "/", and a number that is no int can be written in several ways.
ALIKE = re.compile(r"[\w .:;,@#%*()-]+", re.ASCII)
"""Texts of which every renderer writes each character as it is."""
_FIELD = re.compile(r"\w+", re.ASCII)
_PLAIN = re.compile(r"(?!-?\d+(\.\d*)?([eE]-?\d+)?\Z)[\w .:;,@#%*()-]+|-?\d+", re.ASCII)


# Texts that are searched one after the other; if there are more, one pattern is searched for all.
MAX_TEXTS = 3
# Characters of a text that is worth being searched alone, as few lines have it by chance.
LEAST_TEXT = 4


def _sought(pattern: str, text: str) -> Sought:
    rare = text.encode() if len(text) >= LEAST_TEXT else b""
    return Sought(re.compile(pattern.encode()), rare)


@define(eq=False)
class Trail:
    """The events of the requests or instances that have some values of some fields in one event.

    An event with the values is followed by its request; if it has none, or a field is `instance`,
    by its instance. An event without either stands for itself.
    """

    conditions: tuple[tuple[str, str], ...]
    """(field, its value as text, as it is in JSON if it is no string), each of which an event must
    have; none: requests and events are chosen by their numbers."""
    events: list[Fields] = Factory(list)
    left_out: int = 0
    """Number of events beyond `MAX_EVENTS`."""
    direct: list[Fields] = Factory(list)
    """Events that have the values, and that are of no request: evictions, for most."""
    directly: int = 0
    """Number of these, of which at most `MAX_EVENTS` are kept."""
    unfollowed: int = 0
    """Number of events whose request or instance is beyond `MAX_FOLLOWED`."""
    requests: set[tuple[str, int]] = Factory(set)
    """Requests that are followed: {(cache, number)}."""
    entries: set[Entry] = Factory(set)
    """Their functions."""
    groups: set[tuple[str, str]] = Factory(set)
    """Groups in which an event waits for a token, before there is a request: {(cache, group)}."""
    _tokens_at_once: set[tuple[str, int]] = Factory(set)
    _hits: set[tuple[str, int]] = Factory(set)
    # Those of the requests that have not waited for a token, and that had nothing to load
    _instances: set[tuple[str, int]] = Factory(set)
    _alone: bool = False  # whether some events that have the value are not followed
    _chosen: set[tuple[str, int]] = Factory(set)  # {(cache, seq)}: events chosen by their numbers

    @property
    def followed(self) -> tuple[int, int]:
        """Numbers of requests and of instances that are followed."""
        return len(self.requests), len(self._instances)

    @property
    def may_wait_for_tokens(self) -> bool:
        """Whether one of the requests may have waited for a token, as far as `look` has seen."""
        return bool(self.groups) or not self.requests <= self._tokens_at_once

    @property
    def may_load(self) -> bool:
        """Whether an instance may have been loaded for one of the requests, likewise."""
        return not self.requests <= self._hits

    def has(self, event: Fields) -> bool:
        """Return whether an event has the values, or is one of those that are chosen."""
        if not self.conditions:
            return (event["cache"], event["seq"]) in self._chosen
        return all(
            name in event
            and (found if isinstance(found := event[name], str) else json.dumps(found)) == value
            for name, value in self.conditions
        )

    @property
    def of_instances(self) -> bool:
        """Whether instances are asked for, and not the requests that used them."""
        return any(name == "instance" for name, _ in self.conditions)

    def follow(self, entry: Entry, request: int) -> None:
        """Follow a request of a function."""
        self.requests.add((entry[0], request))
        self.entries.add(entry)

    def choose(self, entry: Entry, seqs: list[int]) -> None:
        """Keep some events about a function, by their numbers: of a wait for a token."""
        self._chosen.update((entry[0], seq) for seq in seqs)
        self.groups.add((entry[0], entry[3]))

    def look(self, event: Fields) -> None:
        """Follow the request or the instance of an event, if it has the value."""
        if not self.has(event):
            return
        request, instance = event.get("request"), event.get("instance")
        follow, number = self.requests, request
        if instance is not None and (request is None or self.of_instances):
            follow, number = self._instances, instance
        if follow is not self.requests or number is None:
            self.directly += 1
            if len(self.direct) < MAX_EVENTS:
                self.direct.append(event)
        if number is None:
            self._alone = True
            if event["event"] == "wasmcache.blocked" and len(self.groups) < MAX_SEARCHED:
                self.groups.add((event["cache"], event["group"]))
            return
        if follow is self.requests:
            if event["event"] == "wasmcache.requested" and not event["blocked"]:
                self._tokens_at_once.add((event["cache"], number))
            elif event["event"] == "wasmcache.acquired" and event["hit"]:
                self._hits.add((event["cache"], number))
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

    def sought(self) -> list[Sought] | None:
        """Return what is in each line that `look` or `take` may need, one of it.

        None: any line may be needed.
        """
        if self._instances or len(self.requests) > MAX_SEARCHED:
            return None
        sought = []
        if self.conditions and (self._alone or not self.requests):
            plain = [
                (name, value)
                for name, value in self.conditions
                if _FIELD.fullmatch(name) and _PLAIN.fullmatch(value) and value != "null"
            ]
            if not plain:
                return None  # how others are written is up to the renderer, as nulls are
            # The longest value is the rarest one.
            name, value = max(plain, key=lambda condition: len(condition[1]))
            sought.append(_sought(rf'{name}"\s*:\s*"?{re.escape(value)}', value))
        elif self._chosen:
            numbers = sorted({str(number) for _, number in self._chosen})
            sought.append(_sought(rf'seq"\s*:\s*(?:{"|".join(numbers)})\b', ""))
        numbers = sorted({str(number) for _, number in self.requests})
        if len(numbers) <= MAX_TEXTS and all(len(number) >= LEAST_TEXT for number in numbers):
            sought += [_sought(rf'request"\s*:\s*{number}\b', number) for number in numbers]
        elif numbers:
            sought.append(_sought(rf'request"\s*:\s*(?:{"|".join(numbers)})\b', ""))
        return sought

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
        _sort(self.events)
        _sort(self.direct)


def _sort(events: list[Fields]) -> None:
    stamps = {type(event.get("timestamp")) for event in events}
    timed = stamps <= {str} or stamps <= {int, float}
    order = {event["cache"]: number for number, event in enumerate(reversed(events))}
    events.sort(
        key=lambda event: (
            event["timestamp"] if timed else -order[event["cache"]],
            -order[event["cache"]],
            event["seq"],
        )
    )
