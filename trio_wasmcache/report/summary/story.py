"""Tells what became of a request, what it waited for, and why: from the events of a trail.

Causes are found while the log is read for the second time:

1. A wait ends because something was given back. The last lease that gave back what the wait was for
   is the one that it was behind.
2. An instance is loaded because the last one went, for somebody's need, or because all others were
   in use, or because there had been none.

Lines that may be causes are kept as they are, a bounded number of them, and parsed when one is
asked for: nearly none ever is.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from attrs import Factory, define, field

from ..reading.lines import MARK
from .trail import MAX_SEARCHED, Fields, Search, Trail
from .waiting import INSTANCE, MAX_OPEN, TOKEN

Parse: TypeAlias = Callable[[Iterable[bytes]], list[Fields]]
"""Parses lines to events: `Parser.dicts`."""

# Leases that ended last, among which the one is looked for that a request waited for.
MAX_RELEASES: Final = 2_000
# Waits that are explained.
MAX_EXPLAINED: Final = 1_000
# Rounding of times in a log (seconds).
EXACT: Final = 1e-9
# Kinds of events from which it is known how many instances a function has, and who holds them.
_OF_INSTANCES: Final = frozenset((b"loaded", b"evicted", b"acquired", b"recycled"))

_Entry: TypeAlias = tuple[str, str, str, str]  # cache, function, argument types, group


@define(eq=False)
class _Instances:
    """Those of one function in one group, as far as the log tells of them."""

    now: int = 0
    gone: Fields | None = None
    """Eviction of the last one that went."""
    holders: dict[int, Fields] = Factory(dict)
    """{request: its grant}, of the leases under way, in order."""


@define(eq=False)
class Causes:
    """Finds out why the requests of a trail waited, and why they loaded."""

    trail: Trail
    parse: Parse
    found: dict[tuple[str, int], Fields] = Factory(dict)
    """{(cache, seq) of an event: what caused it}."""
    _releases: deque[bytes] = Factory(lambda: deque(maxlen=MAX_RELEASES))
    _token_waits: OrderedDict[tuple[str, int], Fields] = Factory(OrderedDict)
    # {(cache, task): its wait for a token}
    _instances: dict[_Entry, _Instances] = Factory(dict)
    _waits: dict[tuple[str, int], Fields] = Factory(dict)
    # {(cache, request): its wait under way, for an instance or for room}
    _explained: int = 0
    _functions: Search = field(init=False)
    _search: Search = field(init=False)

    def __attrs_post_init__(self) -> None:
        names = {entry[1] for entry in self.trail.entries}
        marks = tuple(json.dumps(name)[1:-1].encode() for name in names)
        if len(names) > MAX_SEARCHED or any(not name.isascii() for name in names):
            marks = (b"",)  # how others are written is up to the renderer
        self._functions, self._search = Search(marks, ()), self.trail.search()

    def take(self, lines: Iterable[bytes], only: str | None) -> None:
        """Take a block of the log, in its order, and give the trail its events.

        Args:
            lines: the lines.
            only: id of the only cache; None: all.
        """
        for line in lines:
            begin = line.find(MARK) + len(MARK)
            kind = line[begin : line.find(b'"', begin)]
            if (
                self._search.finds(line)
                or (kind in _OF_INSTANCES and self._functions.finds(line))
                or (kind == b"blocked" and TOKEN.encode() in line)
            ):
                for event in self.parse((line,)):
                    if only is None or event["cache"] == only:
                        self._note(event)
            if kind in (b"recycled", b"abandoned"):
                self._releases.append(line)

    def _note(self, event: Fields) -> None:
        kind = event["event"].removeprefix("wasmcache.")
        kept = self.trail.take(event)
        if kept and event.get("request") is not None:
            self._explain(kind, event)
        if kind == "blocked" and event["waits_for"] == TOKEN:
            waiter = event["cache"], event["task"]
            self._token_waits[waiter] = event
            self._token_waits.move_to_end(waiter)
            if len(self._token_waits) > MAX_OPEN:
                self._token_waits.popitem(last=False)
        elif kind.encode() in _OF_INSTANCES and (entry := _entry(event)) in self.trail.entries:
            self._count(kind, event, self._instances.setdefault(entry, _Instances()))

    def _count(self, kind: str, event: Fields, instances: _Instances) -> None:
        if kind == "evicted":
            instances.now = max(instances.now - (event["evictions"] or 1), 0)
            instances.gone = event
        elif kind == "acquired":
            if event["request"] is not None and len(instances.holders) < MAX_OPEN:
                instances.holders[event["request"]] = event
        elif kind == "recycled":
            instances.holders.pop(event["request"], None)
        elif not event["seat"]:
            instances.now += 1

    def _explain(self, kind: str, event: Fields) -> None:
        where, waiter = (event["cache"], event["seq"]), (event["cache"], event["request"])
        if kind == "requested" and event["blocked"]:
            wait = self._token_waits.pop((event["cache"], event["task"]), None)
            if wait is not None:
                self.found[where] = self._behind(wait, event["at_seconds"])
            return
        end = event["at_seconds"]
        if kind == "loaded":
            end -= event["load_seconds"]
        wait = self._waits.pop(waiter, None)
        if wait is not None:
            self.found[wait["cache"], wait["seq"]] = self._behind(wait, end)
        if kind == "blocked":
            self._waits[waiter] = event
        elif kind == "loaded" and not event["seat"]:
            instances = self._instances.get(_entry(event), _Instances())
            self.found[where] = {"in_use": instances.now, "gone": instances.gone}

    def _behind(self, wait: Fields, end: float) -> Fields:
        """Return how long a wait took, and the lease whose end ended it, if that is known."""
        what = {
            "waits_for": wait["waits_for"],
            "seconds": max(end - wait["at_seconds"], 0.0),
            "behind": None,
        }
        self._explained += 1
        if self._explained > MAX_EXPLAINED:
            return what
        for line in reversed(self._releases):
            for release in self.parse((line,)):
                if release["cache"] == wait["cache"] and _ends(release, wait, end):
                    what["behind"] = release
                    return what
        if wait["waits_for"] == INSTANCE:
            # It gave up before one was given back.
            holders = self._instances.get(_entry(wait), _Instances()).holders
            holder = next(iter(holders.values()), None)
            if holder is not None:
                what["behind"] = holder
                what["so_far"] = max(end - holder["at_seconds"], 0.0)
        return what


def _entry(event: Fields) -> _Entry:
    return event["cache"], event["function"], event["arg_types"], event["group"]


def _ends(release: Fields, wait: Fields, end: float) -> bool:
    """Whether what was given back is what the wait was for, while it lasted."""
    if not wait["at_seconds"] - EXACT <= release["at_seconds"] <= end + EXACT:
        return False
    if release["request"] is None or release["request"] == wait["request"]:
        return False
    if wait["waits_for"] == TOKEN:
        return bool(release["group"] == wait["group"])
    return wait["waits_for"] != INSTANCE or _entry(release) == _entry(wait)


@define(eq=False)
class Story:
    """One request: its events in order, each with its cause, and where the time went."""

    cache: str
    request: int
    events: list[tuple[Fields, Fields | None]] = Factory(list)
    """Each event, and what caused it, if that was found."""
    waited: dict[str, float] = Factory(dict)
    """{what it waited for: seconds}."""
    loading: float = 0.0
    """Time of loading (seconds)."""
    held: float = 0.0
    """Length of its lease (seconds)."""
    began: float = 0.0
    """When it began to wait, or asked for an instance (seconds on the cache's clock)."""
    ended: float = 0.0
    """When it ended, or its last event (seconds on the cache's clock)."""
    outcome: str = "under way"
    """``"completed"``, ``"failed"`` (the guest, or the load), ``"gave up"`` or ``"under way"``."""
    error: str | None = None
    """Type of the error that ended it."""

    @property
    def seconds(self) -> float:
        """Time from its beginning to its end."""
        return max(self.ended - self.began, 0.0)

    def add(self, event: Fields, cause: Fields | None) -> None:
        """Add the next event, and what caused it."""
        at = event["at_seconds"]
        if not self.events:
            self.began = at
        self.events.append((event, cause))
        if event.get("request") != self.request:
            return  # the eviction of another's instance, for this one
        kind = event["event"].removeprefix("wasmcache.")
        if kind != "output":
            self.ended = max(at, self.ended)
        if cause is not None and "waits_for" in cause:
            what = cause["waits_for"]
            self.waited[what] = self.waited.get(what, 0.0) + cause["seconds"]
            if kind == "requested":
                self.began = min(self.began, at - cause["seconds"])
        if kind == "loaded":
            self.loading += event["load_seconds"]
        elif kind == "recycled":
            self.held += event["held_seconds"]
            self.outcome = "completed" if event["error"] is None else "failed"
            self.error = event["error"]
        elif kind == "failed":
            self.outcome, self.error = "failed", event["error"]
        elif kind == "abandoned":
            if self.outcome != "failed":
                self.outcome = "gave up"
            self.error = event["error"]


def stories(trail: Trail, causes: Causes) -> list[Story]:
    """Return the stories of the requests of a trail, in order of their first events."""
    told: dict[tuple[str, int], Story] = {}
    for event in trail.events:
        for name in ("request", "for_request"):
            number = event.get(name)
            if number is None or (event["cache"], number) not in trail.requests:
                continue
            key = event["cache"], number
            story = told.setdefault(key, Story(*key))
            story.add(event, causes.found.get((event["cache"], event["seq"])))
    return list(told.values())
