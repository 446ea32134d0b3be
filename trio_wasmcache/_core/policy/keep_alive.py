"""When idle instances are evicted for time under `idle_timeout="adaptive"`.

Each function has a timeout of its own, learned from the times for which its instances were idle
between two uses (`idle_times`). Before the first such time is known, the timeout is learned from
the first times of all functions; before these are known, it is `max_idle_timeout`.

A hit pays nothing for that:

1. An instance is *young* until it has been idle for `min_idle_timeout`. No timeout is shorter, so a
   shorter idle time teaches nothing, and a hit on a young instance calls nothing here.
2. Then it is *aged*: its timeout is determined, and its next hit takes the long way, which reports
   for how long it was idle. So a hit is reported at most once in `min_idle_timeout`.
3. In the order of last use, the aged instances come first. A mark separates them from the young
   ones, of which the first is always the next to age. Aged ones are in a heap by the time when they
   are due. An entry of an instance that has left the heap is skipped when it comes up.
4. The last uses of evicted instances are remembered, up to `MAX_GONE`: the next use then says for
   how long one would have been idle. After `max_idle_timeout` without one, the time counts as
   longer than any timeout.
5. Learning depends on the times of uses and evictions only, never on when the background task ran:
   before anything is learned, all instances are aged that should be by then, each with the
   knowledge of its time. So a replay of a log learns the same.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, final

from ..config import ADAPTIVE, CacheConfig
from .idle_times import WEIGHT, IdleTimes, text_of
from .lru import LRU
from .records import Entry, FunctionRecord, GroupRecord, Instance

if TYPE_CHECKING:
    from ..snapshot import SnapshotGone

# Last uses of evicted instances that are remembered; each takes some 250 bytes.
MAX_GONE = 65_536
# Idle times of a function that count for all functions: those that it had when it was little known.
FIRST = 4
# Number of these from which on they are the timeout of functions of which nothing is known.
ENOUGH = 16
# Skipped entries of the heap that are kept, whatever the number of others.
SLACK = 64
_FIRST, _SECOND = itemgetter(0), itemgetter(1)
_PARTS = attrgetter("first"), attrgetter("weights"), attrgetter("beyond")


@final
class KeepAlive:
    """The timeouts of one cache's idle instances.

    Args:
        config: its limits.
        idle: idle instances in order of last use; the caller keeps it up to date.
    """

    def __init__(self, config: CacheConfig, idle: LRU[Instance]) -> None:
        self._idle = idle
        self.learns: bool = config.idle_timeout == ADAPTIVE
        """Whether `idle_timeout` is ``"adaptive"``; if not, nothing else here is of use."""
        self.least: float = config.min_idle_timeout
        """Seconds of the shortest timeout."""
        self.most: float = config.max_idle_timeout
        """Seconds of the longest timeout."""
        self.everyone: IdleTimes = IdleTimes()
        """The first idle times of all functions."""
        self._usual: float | None = None  # the timeout by them, until more are known
        self.times: dict[FunctionRecord, IdleTimes] = {}
        """The idle times of each function; a generation goes on with those of the one before."""
        self.due: dict[Instance, float] = {}
        """When each aged instance is evicted if it stays idle (seconds, the clock of `now`)."""
        # The last aged instance in the order of last use; the order itself: none is.
        self._mark: Instance | LRU[Instance] = idle
        self._heap: list[tuple[float, float, Instance]] = []  # (due, its rest, instance)
        # {(times of its function, its group): last use of the latest one evicted}
        self.gone: OrderedDict[tuple[IdleTimes, GroupRecord], float] = OrderedDict()
        """Last uses of evicted instances, by function and group, in the order of evictions."""

    # -- time

    def age(self, now: float) -> None:
        """Determine when instances are due that have been idle for `min_idle_timeout`."""
        idle, member = self._idle, self._mark.after
        while member is not idle and (at := member.last_used + self.least) <= now:
            self._give_up(at)
            timeout = self.timeout(self.times.get(member.entry.function))
            due = self.due[member] = member.last_used + timeout
            heappush(self._heap, (due, member.rested, member))
            member.age()
            self._mark = member
            member = member.after

    def timeout(self, times: IdleTimes | None) -> float:
        """Return the timeout of a function with these idle times (seconds)."""
        if times is not None and times.total:
            return times.timeout(self.least, self.most)
        if self._usual is None:
            known = self.everyone.total >= ENOUGH * WEIGHT
            self._usual = self.everyone.timeout(self.least, self.most) if known else self.most
        return self._usual

    def overdue(self, now: float) -> Instance | None:
        """Return the aged instance to evict next, or None if none is due."""
        first = self._first()
        return None if first is None or first[0] > now else first[2]

    def next_due(self) -> float | None:
        """Return when `age` or `overdue` will next have something to do, or None."""
        young, first = self._mark.after, self._first()
        if young is self._idle:
            return None if first is None else first[0]
        ages: float = young.last_used + self.least
        return ages if first is None else min(ages, first[0])

    @property
    def has_young(self) -> bool:
        """Whether an idle instance is not aged yet."""
        return self._mark.after is not self._idle

    def _first(self) -> tuple[float, float, Instance] | None:
        heap, due = self._heap, self.due
        while heap and due.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0] if heap else None

    # -- uses

    def taken(self, instance: Instance, now: float, *, used: bool) -> None:
        """Note that an idle instance is about to run again; `used`: for a lease."""
        idle = now - instance.last_used
        if used and idle >= self.least:
            self.age(now)
            self._give_up(now)
            self._learn(self._times(instance.entry), idle)
        self._wake(instance)

    def started(self, entry: Entry, now: float) -> None:
        """Note that a lease needs a new instance of `entry`."""
        self.age(now)
        self._give_up(now)
        times = self._times(entry)
        last_used = self.gone.pop((times, entry.group), None)
        if last_used is not None and now - last_used >= self.least:
            self._learn(times, now - last_used)

    def left(self, instance: Instance, now: float) -> None:
        """Note that an idle instance is about to be evicted."""
        entry = instance.entry
        if not (entry.function.retired or entry.group.closed):
            self.age(now)
            key = self._times(entry), entry.group
            self.gone.pop(key, None)
            self.gone[key] = instance.last_used
            if len(self.gone) > MAX_GONE:
                self.gone.popitem(last=False)
        self._wake(instance)

    def replaced(self, old: Instance, new: Instance) -> None:
        """Note that `new` has taken the place of `old` in the order of last use."""
        if self._mark is old:
            self._mark = new
        due = self.due.pop(old, None)
        if due is not None:
            self.due[new] = due
            # In the same place: both are due at the same time, and rested at the same time.
            self._heap = [(*it[:2], new) if it[2] is old else it for it in self._heap]
            new.age()

    def _times(self, entry: Entry) -> IdleTimes:
        times = self.times.get(entry.function)
        if times is None:
            times = self.times[entry.function] = IdleTimes()
        return times

    def retired(self, function: FunctionRecord, successor: FunctionRecord | None) -> None:
        """Note that a function was removed, or replaced if there is a successor."""
        times = self.times.pop(function, None)
        if times is not None and successor is not None:
            self.times[successor] = times

    def _learn(self, times: IdleTimes, idle: float) -> None:
        if idle >= self.most:
            idle = math.inf
        if times.total < FIRST * WEIGHT:
            self.everyone.add(idle)
            self._usual = None
        times.add(idle)

    def _give_up(self, now: float) -> None:
        """Count the idle times that have become longer than any timeout by `now`."""
        gone = self.gone
        while gone:
            (times, group), last_used = key, _ = next(iter(gone.items()))
            if last_used + self.most > now:
                return
            del gone[key]
            if not group.closed:
                self._learn(times, math.inf)

    def _wake(self, instance: Instance) -> None:
        """Let an instance that leaves the order of last use be neither young nor aged."""
        if self._mark is instance:
            self._mark = instance.before
        if self.due.pop(instance, None) is None:
            return
        instance.wake()
        due = self.due
        if len(self._heap) > 2 * len(due) + SLACK:
            self._heap = [entry for entry in self._heap if due.get(entry[2]) == entry[0]]
            heapify(self._heap)

    # -- snapshots

    def copy(self) -> KeepAliveCopy:
        """Return what is known, in time for little more than copying references."""
        gone = self.gone
        known = dict.fromkeys(self.times.values())
        known.update(dict.fromkeys(map(_FIRST, gone)))
        closed = [group for group in set(map(_SECOND, gone)) if group.closed]
        return KeepAliveCopy(
            self.everyone.as_text(),
            self.times.copy(),
            list(known),
            [list(map(get, known)) for get in _PARTS],
            list(gone),
            list(gone.values()),
            closed,
            self.due.copy(),
        )

    def restore(
        self,
        everyone: str | None,
        functions: Mapping[FunctionRecord, str | None],
        due: Mapping[Instance, float],
        gone: Sequence[SnapshotGone],
        keys: Callable[[SnapshotGone], tuple[FunctionRecord | None, GroupRecord]],
    ) -> None:
        """Take over what a copy had; nothing is known yet.

        Args:
            everyone: the first idle times of all functions.
            functions: {function: its idle times}.
            due: {aged instance: when it is due}; all are idle.
            gone: last uses of evicted instances.
            keys: returns the function, if it still has one, and the group of one of these.

        Raises:
            KeyError, ValueError: the snapshot contradicts itself.
        """
        if everyone is not None:
            self.everyone = IdleTimes.from_text(everyone)
        self.times = {
            one: IdleTimes.from_text(text) for one, text in functions.items() if text is not None
        }
        removed: dict[int | None, IdleTimes] = {}
        for it in gone:
            function, group = keys(it)
            if function is not None:
                times = self.times[function]
            else:
                if it.removed not in removed:
                    removed[it.removed] = IdleTimes.from_text(it.idle_times or "")
                times = removed[it.removed]
            self.gone[times, group] = it.last_used_at_seconds
        for instance in self._idle:
            if instance in due:
                self.due[instance] = due[instance]
                heappush(self._heap, (due[instance], instance.rested, instance))
                self._mark = instance

    # -- limits

    def resize(self, config: CacheConfig, now: float) -> None:
        """Apply other limits. What was learned stays; when instances are due is decided anew."""
        if self.learns:
            self.age(now)
        self.learns = config.idle_timeout == ADAPTIVE
        self.least, self.most = config.min_idle_timeout, config.max_idle_timeout
        self._usual = None
        self._mark = self._idle
        self._heap.clear()
        for instance in self.due:
            instance.wake()
        self.due.clear()
        if self.learns:
            self.age(now)
        else:
            self.gone.clear()


@final
class KeepAliveCopy:
    """What was known at one moment. It does not change any more, and any thread may read it."""

    __slots__ = ("closed", "due", "everyone", "functions", "gone", "known", "last_used", "parts")

    def __init__(
        self,
        everyone: str,
        functions: Mapping[FunctionRecord, IdleTimes],
        known: Sequence[IdleTimes],
        parts: Sequence[Sequence[Any]],
        gone: Sequence[tuple[IdleTimes, GroupRecord]],
        last_used: Sequence[float],
        closed: Collection[GroupRecord],
        due: Mapping[Instance, float],
    ) -> None:
        self.everyone: str = everyone
        """The first idle times of all functions."""
        self.functions: Mapping[FunctionRecord, IdleTimes] = functions
        self.known: Sequence[IdleTimes] = known
        self.parts: Sequence[Sequence[Any]] = parts
        """For each of `_PARTS`, the values of all `known`."""
        self.gone: Sequence[tuple[IdleTimes, GroupRecord]] = gone
        self.last_used: Sequence[float] = last_used
        self.closed: Collection[GroupRecord] = closed
        """Groups that were closed, of those in `gone`."""
        self.due: Mapping[Instance, float] = due

    def texts(self) -> dict[IdleTimes, str]:
        """Return all idle times as text."""
        parts = zip(*self.parts, strict=True)
        return {one: text_of(*values) for one, values in zip(self.known, parts, strict=True)}

    def items(self, texts: Mapping[IdleTimes, str]) -> list[SnapshotGone]:
        """Return the last uses of evicted instances."""
        from ..snapshot import SnapshotGone

        functions = {times: function for function, times in self.functions.items()}
        removed: dict[IdleTimes, int] = {}
        items = []
        for (times, group), at in zip(self.gone, self.last_used, strict=True):
            if group in self.closed:
                continue
            function = functions.get(times)
            fields: dict[str, Any]
            if function is None:
                fields = dict.fromkeys(("function", "arg_types", "generation"))
                fields["removed"] = removed.setdefault(times, len(removed))
                fields["idle_times"] = texts[times]
            else:
                fields = function.names
            items.append(SnapshotGone(**fields, group=group.name, last_used_at_seconds=at))
        return items
