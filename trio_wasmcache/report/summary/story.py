"""Tells what became of a request, what it waited for, and why: from the events of a trail.

Causes are found while the log is read for the second time:

1. A wait ends because something was given back. The last lease that gave back what the wait was for
   is the one that it was behind.
2. An instance is loaded because the last one went, for somebody's need, or because all others were
   in use, or because there had been none.

Only lines that may matter are parsed, which a search of the bytes finds. Ends of leases, which may
be what a wait was for, are searched backwards from the wait's end when one is asked for.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from attrs import Factory, define, field

from ..reading.lines import MARK, Piece, Sought, find_lines
from .trail import ALIKE, MAX_SEARCHED, MAX_TEXTS, Entry, Fields, Trail
from .waiting import INSTANCE, MAX_OPEN, ROOM, TOKEN

Parse: TypeAlias = Callable[[Iterable[bytes]], list[Fields]]
"""Parses lines to events: `Parser.dicts`."""

# Leases that ended last, among which the one is looked for that a request waited for.
MAX_RELEASES: Final = 2_000
# Waits that are explained.
MAX_EXPLAINED: Final = 1_000
# Rounding of times in a log (seconds).
EXACT: Final = 1e-9
# Kinds of events from which it is known how many instances a function has, and who holds them.
_OF_INSTANCES: Final = frozenset((b"loaded", b"evicted"))
_OF_HOLDERS: Final = frozenset((b"acquired", b"recycled"))
_ENDS: Final = (
    b'"wasmcache.recycled"',
    b'"wasmcache.abandoned"',
    b'"wasmcache.preparation_ended"',
)
# Bytes of earlier pieces in which ends of leases are searched.
_KEPT: Final = 16 * 1024 * 1024


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
    with_holders: bool = False
    """Whether to follow who holds which instance, which takes longer."""
    lacks_holders: bool = False
    """Whether the cause of a wait could only be found `with_holders`."""
    found: dict[tuple[str, int], Fields] = Factory(dict)
    """{(cache, seq) of an event: what caused it}."""
    _pieces: deque[Piece] = Factory(deque)  # the present piece, and earlier ones
    _at: int = 0  # where the line is in the present piece that is looked at
    _token_waits: OrderedDict[tuple[str, int], Fields] = Factory(OrderedDict)
    # {(cache, task): its wait for a token}
    _instances: dict[Entry, _Instances] = Factory(dict)
    _waits: dict[tuple[str, int], Fields] = Factory(dict)
    # {(cache, request): its wait under way, for an instance or for room}
    _explained: int = 0
    _holders: dict[tuple[str, str], dict[int, Fields]] = Factory(dict)
    # {(cache, group): {request: its grant}}, of groups where a wait for a token may be given up
    _functions: tuple[bytes, ...] = field(init=False)
    _own: list[Sought] | None = field(init=False)  # what is in lines of the trail
    _sought: list[Sought] | None = field(init=False)  # what is in these, and in their causes
    _kinds: frozenset[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        names = {entry[1] for entry in self.trail.entries}
        names |= {group for _, group in self.trail.groups}
        marks = tuple(f'"{name}"'.encode() for name in sorted(names))
        if len(names) > MAX_SEARCHED or not all(map(ALIKE.fullmatch, names)):
            marks = (b"",)  # how others are written is up to the renderer
        self._functions = marks
        self._kinds = _OF_INSTANCES | (_OF_HOLDERS if self.with_holders else frozenset())
        self._own = self.trail.sought()
        self._sought = None
        if self._own is not None:
            self._sought = [*self._own]
            if self.trail.requests or self.trail.groups:
                self._sought += self._causes(marks)

    def _causes(self, marks: Sequence[bytes]) -> list[Sought]:
        """Return what is in lines of causes: waits for tokens, and instances of the functions."""
        kinds = b"|".join(sorted(self._kinds))
        pattern = re.compile(re.escape(MARK) + rb'(?:%s)"' % kinds)
        of_instances = [Sought(pattern)]
        if b"" not in marks and len(marks) <= MAX_TEXTS:
            of_instances = [Sought(pattern, mark) for mark in marks]
        blocked = Sought(re.compile(re.escape(MARK) + b'blocked"'), f'"{TOKEN}"'.encode())
        # What does not matter is not searched: that is most of the time.
        sought = [blocked] if self.trail.may_wait_for_tokens else []
        if self.trail.may_load or self.with_holders:
            sought += of_instances
        return sought

    def take(self, piece: Piece, only: str | None) -> None:
        """Take a piece of the log, in its order, and give the trail its events.

        Args:
            piece: see `Reader.pieces`.
            only: id of the only cache; None: all.
        """
        self._pieces.append(piece)
        while sum(end for _, end in self._pieces) > _KEPT + piece[1]:
            self._pieces.popleft()
        for at, line in find_lines(piece, self._sought):
            self._at = at
            begin = line.find(MARK) + len(MARK)
            kind = line[begin : line.find(b'"', begin)]
            if self._may_matter(kind, line):
                for event in self.parse((line,)):
                    if only is None or event["cache"] == only:
                        self._note(event)

    def _may_matter(self, kind: bytes, line: bytes) -> bool:
        """Whether an event is one of the trail, or may be a cause: from the bytes of its line."""
        if kind in self._kinds and any(name in line for name in self._functions):
            return True
        if kind == b"blocked" and TOKEN.encode() in line:
            return True
        if self._own is None or not (self.trail.requests or self.trail.groups):
            return True
        return any(one.is_in(line) for one in self._own)

    def _releases(self) -> Iterator[bytes]:
        """Yield the lines of leases and acquires that ended before the present line, last first."""
        left = MAX_RELEASES
        for number, (piece, whole) in enumerate(reversed(self._pieces)):
            end = whole if number else self._at
            places = [piece.rfind(mark, 0, end) for mark in _ENDS]
            while (at := max(places)) >= 0:
                start = piece.rfind(b"\n", 0, at) + 1
                stop = piece.find(b"\n", at, whole)
                yield piece[start : stop if stop >= 0 else whole]
                left -= 1
                if not left:
                    return
                for which, mark in enumerate(_ENDS):
                    if places[which] >= start:
                        places[which] = piece.rfind(mark, 0, start)

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
            return
        if kind == "abandoned" and kept and event["request"] is None:
            wait = self._token_waits.pop((event["cache"], event["task"]), None)
            if wait is not None:
                self.found[wait["cache"], wait["seq"]] = self._behind(wait, event["at_seconds"])
            return
        if kind.encode() not in self._kinds:
            return
        where = event["cache"], event["group"]
        if where in self.trail.groups and kind.encode() in _OF_HOLDERS:
            _hold(kind, event, self._holders.setdefault(where, {}))
        if kind.encode() in self._kinds and (entry := _entry(event)) in self.trail.entries:
            self._count(kind, event, self._instances.setdefault(entry, _Instances()))

    def _count(self, kind: str, event: Fields, instances: _Instances) -> None:
        if kind == "evicted":
            instances.now = max(instances.now - (event["evictions"] or 1), 0)
            instances.gone = event
        elif kind.encode() in _OF_HOLDERS:
            _hold(kind, event, instances.holders)
        elif not event["seat"]:
            instances.now += 1

    def _explain(self, kind: str, event: Fields) -> None:
        where, waiter = (event["cache"], event["seq"]), (event["cache"], event["request"])
        if kind == "requested" and event["blocked"]:
            wait = self._token_waits.pop((event["cache"], event["task"]), None)
            if wait is not None:
                self.found[where] = self._behind(wait, event["at_seconds"], granted=True)
            return
        end = event["at_seconds"]
        if kind == "loaded":
            end -= event["load_seconds"]
        wait = self._waits.pop(waiter, None)
        if wait is not None:
            granted = kind != "abandoned"
            self.found[wait["cache"], wait["seq"]] = self._behind(wait, end, granted=granted)
        if kind == "blocked":
            self._waits[waiter] = event
        elif kind == "loaded" and not event["seat"]:
            instances = self._instances.get(_entry(event), _Instances())
            self.found[where] = {"in_use": instances.now, "gone": instances.gone}

    def _behind(self, wait: Fields, end: float, *, granted: bool = False) -> Fields:
        """Return how long a wait took, and the lease whose end ended it, if that is known.

        Args:
            wait: the wait.
            end: when it ended.
            granted: whether it got what it waited for: from the end of the lease on, nothing but
                the turn of its task was missing.
        """
        what = {
            "waits_for": wait["waits_for"],
            "seconds": max(end - wait["at_seconds"], 0.0),
            "behind": None,
        }
        self._explained += 1
        if self._explained > MAX_EXPLAINED:
            return what
        for line in self._releases():
            for release in self.parse((line,)):
                if release["cache"] == wait["cache"] and _ends(release, wait, end):
                    what["behind"] = release
                    if granted:
                        what["late"] = max(end - release["at_seconds"], 0.0)
                    return what
        if wait["waits_for"] in (INSTANCE, TOKEN):
            # It gave up before one was given back.
            self.lacks_holders = not self.with_holders
            holders = self._instances.get(_entry(wait), _Instances()).holders
            if wait["waits_for"] == TOKEN:
                holders = self._holders.get((wait["cache"], wait["group"]), {})
            holder = next(iter(holders.values()), None)
            if holder is not None:
                what["behind"] = holder
                what["so_far"] = max(end - holder["at_seconds"], 0.0)
        return what


def _entry(event: Fields) -> Entry:
    return event["cache"], event["function"], event["arg_types"], event["group"]


def _hold(kind: str, event: Fields, holders: dict[int, Fields]) -> None:
    """Note a grant, or that its lease has ended."""
    if kind == "recycled":
        holders.pop(event["request"], None)
    elif event["request"] is not None and len(holders) < MAX_OPEN:
        holders[event["request"]] = event


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
    request: int | None
    """Its number; None: it never had a token of its group."""
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
    deadline: float | None = None
    """When its caller stops waiting (seconds on the cache's clock); None: never, or not known."""
    late: bool = False
    """Whether its caller had been cancelled when it had its token; since when is not known."""

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
        if kind == "requested":
            self.deadline = event.get("deadline_seconds")
            self.late = self.deadline is not None and self.deadline <= at
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
        elif kind == "preparation_ended":
            self.waited[ROOM] = event["wait_seconds"]
            self.held += event["held_seconds"]
            self.outcome = "completed" if event["error"] is None else "failed"
            self.error = event["error"]
        elif kind == "abandoned":
            if self.outcome != "failed":
                self.outcome = "gave up"
            self.error = event["error"]


def stories(trail: Trail, causes: Causes) -> list[Story]:
    """Return the stories of the requests of a trail, in order of their first events.

    Those of acquires that never had a token of their group, and so no number, come last.
    """
    told: dict[tuple[str, int], Story] = {}
    tokens: dict[tuple[str, int], Story] = {}  # {(cache, task)}: acquires that wait for a token
    refused: list[Story] = []
    for event in trail.events:
        cause = causes.found.get((event["cache"], event["seq"]))
        waiter = event["cache"], event.get("task", -1)
        if event["event"] == "wasmcache.blocked" and event["request"] is None:
            tokens[waiter] = Story(event["cache"], None)
            tokens[waiter].add(event, cause)
        elif event["event"] == "wasmcache.requested":
            tokens.pop(waiter, None)
        elif event["event"] == "wasmcache.abandoned" and event["request"] is None:
            story = tokens.pop(waiter, None) or Story(event["cache"], None)
            story.add(event, None)
            refused.append(story)
        for name in ("request", "for_request"):
            number = event.get(name)
            if number is None or (event["cache"], number) not in trail.requests:
                continue
            key = event["cache"], number
            story = told.setdefault(key, Story(*key))
            story.add(event, cause)
    return [*told.values(), *refused, *tokens.values()]
