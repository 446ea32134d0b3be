"""Where a log can begin: at its `opened` event, or at the first snapshot that is all there.

The parts of a snapshot come some time after the event `at_seq` that it follows, between later
events. So the latest events are held back until a snapshot is complete whose following events all
are among them. What came before is left out.
"""

from __future__ import annotations

import abc
from collections import deque

from attrs import Factory, define, frozen

from ..._core.events import OfConfig, Opened, Stamped
from ..._core.policy.copying import Whole
from ..._core.policy.records import Request
from ..._core.snapshot import SnapshotPart
from .books import Books, config_of, system_of

# Number of events held back, of all caches of a log together, while no beginning is known. At 1 KB
# each, 100 MB. A cache writes the parts of a snapshot as soon as no event waits to be written.
MAX_HELD = 100_000
# Number of snapshots of one cache whose parts are collected at the same time.
MAX_SNAPSHOTS = 3


class NotReplayable(Exception):
    """The log can't be replayed; the message gives the reason."""


@frozen(eq=False)
class Beginning:
    """What is known where a log begins."""

    seq: int
    """Number of the last event before the first that is replayed."""
    at: float
    """Time (seconds on the cache's clock)."""
    head: OfConfig
    """The event with the limits."""
    whole: Whole | None = None
    """What was in the cache; None: nothing yet."""

    def books(self) -> tuple[Books, dict[int, Request]]:
        """Return new books of this moment, and {number: request} of those under way."""
        books = Books(config_of(self.head), system_of(self.head))
        return books, {} if self.whole is None else books.begin(self.whole)


@define(eq=False)
class Held:
    """Number of events that are held back, of all caches of a log."""

    count: int = 0


@define(eq=False)
class Start:
    """Finds the beginning of the log of one cache.

    Args:
        what: what needs it, for messages.
        held: number of events held back; shared by all caches.
    """

    what: str
    held: Held = Factory(Held)
    beginning: Beginning | None = None
    first: int = 0
    """Number of the first event."""
    left_out: int = 0
    """Number of events before the beginning."""
    _events: deque[Stamped] = Factory(deque)
    _parts: dict[int, dict[int, SnapshotPart]] = Factory(dict)
    """{number of the event before a snapshot: {number: part}}."""

    def put(self, stamped: Stamped) -> list[Stamped]:
        """Add the next event; return those that follow the beginning, once it is known.

        The beginning itself is not among them.

        Raises:
            NotReplayable: the log was written without uses, or under limits that no cache has.
        """
        if self.beginning is not None:
            return [stamped]
        if isinstance(stamped.event, Opened):
            self._check(stamped.event)
            self.left_out += len(self._events)
            self._begin(Beginning(stamped.seq, stamped.at_seconds, stamped.event))
            return []
        self.first = self.first or stamped.seq
        self._events.append(stamped)
        self.held.count += 1
        if self.held.count > MAX_HELD:
            self._events.popleft()
            self.held.count -= 1
            self.left_out += 1
        part = stamped.event
        if not isinstance(part, SnapshotPart):
            return []
        parts = self._parts.setdefault(part.at_seq, {})
        parts[part.part] = part
        if len(self._parts) > MAX_SNAPSHOTS:
            del self._parts[min(self._parts)]
        if len(parts) < part.parts or self._events[0].seq > part.at_seq + 1:
            return []
        del self._parts[part.at_seq]
        found = Beginning(part.at_seq, part.taken_at_seconds, part, Whole.join(parts.values()))
        try:
            found.books()
        except (KeyError, ValueError, TypeError, AttributeError):
            return []  # it contradicts itself
        following = [one for one in self._events if one.seq > part.at_seq]
        self.left_out += len(self._events) - len(following)
        self._begin(found)
        return following

    def check(self) -> Beginning:
        """Return the beginning, as no more events follow.

        Raises:
            NotReplayable: the log has none.
        """
        if self.beginning is None:
            raise NotReplayable(
                f"the log begins with event {self.first:,}, and no snapshot after it is all there: "
                f"{self.what} needs its `wasmcache.opened` event, or all parts of a "
                "`wasmcache.snapshot` and what follows it"
            )
        return self.beginning

    def _begin(self, beginning: Beginning) -> None:
        self.beginning = beginning
        self.held.count -= len(self._events)
        self._events.clear()
        self._parts.clear()

    def _check(self, opened: Opened) -> None:
        if not opened.log_uses:
            raise NotReplayable(
                f"the log was written without log_uses, and {self.what} needs every use of the "
                "cache: open it with CacheConfig(log_uses=True)"
            )
        try:
            config_of(opened)
        except (TypeError, ValueError) as error:
            raise NotReplayable(f"no cache has these limits: {error}") from None


@define(eq=False)
class Fed(abc.ABC):
    """Base of what is fed with the log of one cache, event by event and in order."""

    start: Start

    def feed(self, event: Stamped) -> None:
        """Add the next event; `begin` and `take` get what follows the beginning.

        Raises:
            NotReplayable: the log was written without uses, or under limits that no cache has.
        """
        known = self.start.beginning
        following = self.start.put(event)
        if known is None and self.start.beginning is not None:
            self.begin(self.start.beginning)
        for one in following:
            self.take(one)

    @abc.abstractmethod
    def begin(self, beginning: Beginning) -> None:
        """Begin there."""

    @abc.abstractmethod
    def take(self, event: Stamped) -> None:
        """Add the next event after the beginning."""
