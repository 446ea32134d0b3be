"""The programs of the application's tasks, extracted from a log with `log_uses`.

A task's program is the sequence of its acquires and releases, each with the time that passed since
the previous step was over. Waits inside the cache are left out, as they depend on the cache; see
`whatif` for the assumptions with which such programs are run under other limits.

Takes about 0.5 KB of memory for each lease.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from attrs import Factory, define, evolve

from ..._core.events import (
    Abandoned,
    Acquired,
    Blocked,
    Evicted,
    Failed,
    GroupClosed,
    GroupOpened,
    GroupResized,
    Loaded,
    OfGroup,
    PreparationEnded,
    PreparationRequested,
    Profiled,
    Promoted,
    Reason,
    Recycled,
    Registered,
    Removed,
    Requested,
    Resized,
    Stamped,
)
from ..._core.snapshot import SnapshotRequest, SnapshotTokenWait
from ..reading.notes import Notes, count
from ..replay.books import config_of, limits_of
from ..replay.start import Beginning, Fed, Start

# Number of the latest holds and loads of a function of which the median is taken.
SAMPLES = 1001
# Seconds. Events of one step have the same time, except for rounding.
INSTANT = 1e-6


@define(eq=False)
class Acquire:
    """One acquire in the log."""

    task: int
    name: tuple[str, str]
    group: int
    """Index in `Application.groups`."""
    start: float
    gap: float
    """Seconds since the task's previous step was over; for the first one, its time."""
    index: int
    """Index in the task's program."""
    warm: bool = False
    requested_seq: int = 0
    """Sequence number of the event by which it had its token."""
    patience: float | None = None
    """Seconds after which the caller gives up waiting; None: never."""
    load_seconds: float | None = None
    """Time of its load; None: it had none."""
    cold: bool = False
    """Whether its load included that of the module."""
    outcome: str = "open"
    """The result: "leased", "gave up", "refused" or "failed"; "open": not in the log."""
    held: bool = False
    """Whether it had its lease already when the log began."""
    first_load: tuple[float, float] | None = None
    """Time at which its first load was over, and the seconds that it took; None: it had none."""
    release: Release | None = None


@define(eq=False)
class Release:
    """The end of a lease."""

    acquire: Acquire
    gap: float
    index: int
    size: int
    """Size of the instance or seat that it leaves (bytes)."""
    seat: bool = False
    """Whether it leaves a seat."""
    closed_size: int | None = None
    """Size of its instance (bytes), if that became a seat only because of `max_instance_size`."""
    corrupted: bool = False
    reserved: tuple[int, int] | None = None
    """Addresses (bytes) and mappings of the instance that it leaves, if known."""


@define(eq=False)
class Group:
    """A scheduling group, from its opening to its closing."""

    opened: OfGroup
    opened_at: float | None
    """None: before the log began."""
    closed_at: float | None = None
    acquires: int = 0
    """Number of acquires that were over when it was closed."""
    last_at: float = 0.0
    """Time when the last of them was over."""
    with_cache: bool = False
    """Whether it was closed because the cache was."""
    cut_short: bool = False
    """Whether it was closed before its leases and waits were over."""


@define(eq=False)
class Application:
    """The data needed to run the same requests again."""

    beginning: Beginning
    started: dict[int, Acquire] = Factory(dict)
    """{number: acquire} of those that were under way when the log began."""
    token_waits: list[Acquire] = Factory(list)
    """Those that waited for a token then."""
    groups: list[Group] = Factory(list)
    changes: list[Stamped] = Factory(list)
    """`registered`, `promoted`, `profiled`, `removed`, `resized`, `group_resized` and
    `preparation_requested` events, and those of instances that were made in the background,
    `loaded`."""
    preparations: dict[int, PreparationEnded] = Factory(dict)
    """{number: how it ended}."""
    programs: dict[int, list[Acquire | Release]] = Factory(dict)
    closed_at: float | None = None
    last_at: float = 0.0
    """Time when the last lease or change was over."""
    leases: int = 0
    hits: int = 0
    loaded_sizes: dict[tuple[str, str], int] = Factory(dict)
    """{function: size of a new instance, the latest in the log}."""
    left: dict[tuple[str, str], tuple[int, bool, int | None]] = Factory(dict)
    """{function: (size, seat, closed_size) of the latest `Release`}."""
    _loads: dict[tuple[str, str], dict[bool, list[float]]] = Factory(dict)
    _holds: dict[tuple[str, str], list[float]] = Factory(dict)

    def load_seconds(self, name: tuple[str, str], cold: bool) -> float:
        """Return the usual time of a load of this function; `cold`: including that of its module.

        A load without the module that was never seen counts as 0: it takes some 50 microseconds.
        """
        found = self._loads.get(name, {})
        samples = found.get(cold) or (found.get(False) if cold else None)
        return statistics.median(samples) if samples else 0.0

    def note_load(self, name: tuple[str, str], cold: bool, seconds: float) -> None:
        """Take one load into account."""
        _sample(self._loads.setdefault(name, {}).setdefault(cold, []), seconds)

    def note_hold(self, name: tuple[str, str], seconds: float) -> None:
        """Take one lease into account."""
        _sample(self._holds.setdefault(name, []), seconds)

    def hold_seconds(self, name: tuple[str, str]) -> float:
        """Return the usual time for which a lease of this function is held."""
        samples = self._holds.get(name)
        return statistics.median(samples) if samples else 0.0


@define(eq=False)
class Recorder(Fed):
    """Makes an `Application` from events, fed in order."""

    start: Start = Factory(lambda: Start("another run of it"))
    made: Application | None = None
    ignored: int = 0
    """Number of events about requests whose beginning is missing, or with invalid limits."""
    _open: dict[str, int] = Factory(dict)  # {group: index}
    _requests: dict[int | None, Acquire] = Factory(dict)
    _token_waits: dict[int, Acquire] = Factory(dict)  # {task: the acquire that waits}
    _over: dict[int, float] = Factory(dict)  # {task: time when its last step was over}
    _under_way: Counter[int] = Factory(Counter)  # {index of a group: acquires and leases}
    _last_release: Release | None = None
    _freed: dict[str, tuple[float, int]] = Factory(dict)
    """{module: (time when its code was last freed, sequence number of that event)}."""

    def begin(self, beginning: Beginning) -> None:
        """Begin with what was in the cache, and with the acquires that were under way."""
        made = self.made = Application(beginning, last_at=beginning.at)
        whole = beginning.whole
        if whole is None:
            return
        for group in whole.groups:
            fields: dict[str, Any] = group.fields()
            del fields["closed"]
            self._open[group.group] = len(made.groups)
            made.groups.append(Group(OfGroup(**fields), None))
        modules = {it.module_number: it for it in whole.modules}
        for function in whole.functions:
            if function.load_seconds is not None:
                name = function.function, function.arg_types
                code = modules[function.module_number].load_seconds or 0.0
                made.note_load(name, False, function.load_seconds)
                made.note_load(name, True, function.load_seconds + code)
        for resident in whole.residents:
            name = resident.function, resident.arg_types
            if not resident.seat:
                made.loaded_sizes[name] = resident.size_bytes
            if resident.rest:
                made.left[name] = resident.size_bytes, resident.seat, None
        for it in sorted(whole.requests, key=lambda it: it.request):
            if it.for_tasks is not None:
                continue  # a preparation, which is no part of a task's program
            acquire = self._begin(made, it, it.requested_at_seconds)
            acquire.warm = it.warm
            if it.deadline_seconds is not None:
                acquire.patience = it.deadline_seconds - acquire.start
            if it.acquired:
                acquire.held, acquire.outcome = True, "leased"
            made.started[it.request] = self._requests[it.request] = acquire
            self._over[it.task] = beginning.at
        for wait in whole.token_waits:
            acquire = self._begin(made, wait, wait.blocked_at_seconds)
            made.token_waits.append(acquire)
            self._token_waits[wait.task] = acquire
            self._over[wait.task] = beginning.at

    def take(self, event: Stamped) -> None:
        """Add the next event."""
        assert self.made is not None, "no beginning"
        try:
            self._handle(self.made, event)
        except (KeyError, ValueError):  # an unknown request, or invalid limits
            self.ignored += 1

    def _handle(self, made: Application, stamped: Stamped) -> None:
        at = stamped.at_seconds
        match stamped.event:  # the frequent ones first
            case Requested() as event:
                self._on_requested(made, event, at, stamped.seq)
            case Acquired() as event:
                self._on_acquired(made, event, at)
            case Recycled() as event:
                self._on_recycled(made, event, at)
            case Promoted() | Profiled() | Loaded(promoted=True):
                made.changes.append(stamped)
                made.last_at = at
            case Loaded() as event:
                self._on_loaded(made, event, at)
            case Evicted() as event:
                self._on_evicted(event, at, stamped.seq)
            case Blocked(request=None) as event:
                self._token_waits[event.task] = self._begin(made, event, at)
            case Abandoned() as event:
                self._on_abandoned(made, event, at)
            case Failed(promoted=True):
                made.last_at = at  # it was made for no task
            case Failed() as event:
                self._requests[event.request].outcome = "failed"
            case GroupOpened() as event:
                self._open[event.group] = len(made.groups)
                made.groups.append(Group(event, at))
            case GroupClosed() as event:
                self._on_group_closed(made, event, at)
            case Resized() as event:
                evolve(config_of(made.beginning.head), **limits_of(event))
                made.changes.append(stamped)
                made.last_at = at
            case PreparationEnded() as event:
                made.preparations[event.request] = event
                made.last_at = at
            case Registered() | Removed() | GroupResized() | PreparationRequested():
                made.changes.append(stamped)
                made.last_at = at

    @property
    def leases(self) -> int:
        """Number of leases so far."""
        return 0 if self.made is None else self.made.leases

    def tell(self, notes: Notes) -> None:
        """Note events that could not be used, or only in part."""
        if self.ignored:
            notes.problem(
                f"{count(self.ignored, 'event')} left out: the requests they belong to are "
                "missing, or they tell limits that no cache has"
            )
        if self.made is None:
            return
        outcomes = Counter(
            item.outcome
            for program in self.made.programs.values()
            for item in program
            if isinstance(item, Acquire)
        )
        removed = sum(isinstance(change.event, Removed) for change in self.made.changes)
        parts = [
            f"{count(outcomes['refused'], 'acquire')} refused" * bool(outcomes["refused"]),
            f"{count(outcomes['failed'], 'load')} failed" * bool(outcomes["failed"]),
            f"{count(removed, 'function')} removed" * bool(removed),
        ]
        if any(parts):
            told = ", ".join(part for part in parts if part)
            notes.remark(
                f"{told}: what would have come after that is not known, so other limits are "
                "approximated"
            )

    # -- groups

    def _on_group_closed(self, made: Application, event: GroupClosed, at: float) -> None:
        index = self._open[event.group]
        group = made.groups[index]
        group.closed_at = at
        group.with_cache = event.with_cache
        if group.with_cache:
            made.closed_at = at
        group.cut_short = self._under_way[index] > 0

    # -- tasks

    def _gap(self, task: int, at: float) -> float:
        return at - self._over.get(task, 0.0)

    def _begin(
        self,
        made: Application,
        event: Requested | Blocked | Abandoned | SnapshotRequest | SnapshotTokenWait,
        at: float,
    ) -> Acquire:
        task = event.task
        stale = self._token_waits.pop(task, None)
        if stale is not None:
            # It waited for a token, and this is another acquire: the wait must have been given up.
            self._finish(made, stale, "gave up", stale.start)
        program = made.programs.setdefault(task, [])
        acquire = Acquire(
            task,
            (event.function, event.arg_types),
            self._open[event.group],
            at,
            self._gap(task, at),
            len(program),
        )
        program.append(acquire)
        self._under_way[acquire.group] += 1
        return acquire

    def _finish(self, made: Application, acquire: Acquire, outcome: str, at: float) -> None:
        """End an acquire without a lease."""
        acquire.outcome = outcome
        if outcome == "gave up" and acquire.patience is None:
            acquire.patience = at - acquire.start
        self._over[acquire.task] = at
        self._count(made, acquire, at)

    def _count(self, made: Application, acquire: Acquire, at: float) -> None:
        made.last_at = at
        self._under_way[acquire.group] -= 1
        group = made.groups[acquire.group]
        if group.closed_at is None:
            group.acquires += 1
            group.last_at = at

    def _on_requested(self, made: Application, event: Requested, at: float, seq: int) -> None:
        acquire = None
        if event.blocked:
            acquire = self._token_waits.pop(event.task, None)
        if acquire is None:
            acquire = self._begin(made, event, at)
        acquire.warm = event.warm
        acquire.requested_seq = seq
        if event.deadline_seconds is not None:
            acquire.patience = event.deadline_seconds - acquire.start
        self._requests[event.request] = acquire

    def _on_loaded(self, made: Application, event: Loaded, at: float) -> None:
        acquire = self._requests[event.request]
        took = acquire.load_seconds = event.load_seconds
        acquire.first_load = acquire.first_load or (at, took)
        freed_at, freed_seq = self._freed.get(event.module_digest, (-1.0, 0))
        # An instance evicted in the step that began this load was the last user of the module: the
        # books have it unloaded and loaded again, but the code was never freed.
        same_time = abs(at - took - freed_at) < INSTANT
        kept = same_time and acquire.requested_seq < freed_seq
        acquire.cold = event.module_loaded and not kept
        made.loaded_sizes[acquire.name] = event.size_bytes
        made.note_load(acquire.name, acquire.cold, took)

    def _on_acquired(self, made: Application, event: Acquired, at: float) -> None:
        acquire = self._requests[event.request]
        acquire.outcome = "leased"
        made.leases += not acquire.warm
        made.hits += event.hit and not acquire.warm
        self._over[acquire.task] = at

    def _on_recycled(self, made: Application, event: Recycled, at: float) -> None:
        acquire = self._requests.pop(event.request)
        task = acquire.task
        program = made.programs[task]
        left = event.size_bytes, event.seat, event.closed_size_bytes
        release = Release(acquire, self._gap(task, at), len(program), *left)
        if not event.seat and event.address_space_bytes is not None:
            release.reserved = event.address_space_bytes, event.mappings or 0
        acquire.release = release
        program.append(release)
        self._last_release = release
        made.left[acquire.name] = left
        self._over[task] = at
        made.note_hold(acquire.name, event.held_seconds)
        self._count(made, acquire, at)

    def _on_evicted(self, event: Evicted, at: float, seq: int) -> None:
        if event.freed_code_bytes:
            self._freed[event.module_digest] = at, seq
        if event.replaced_by is not None:
            return  # its lease goes on
        if event.reason is Reason.CORRUPTED and self._last_release is not None:
            self._last_release.corrupted = True

    def _on_abandoned(self, made: Application, event: Abandoned, at: float) -> None:
        number = event.request
        if number is None:
            acquire = self._token_waits.pop(event.task, None)
            if acquire is None:
                acquire = self._begin(made, event, at)  # refused before it waited
        else:
            acquire = self._requests.pop(number)
        outcome = "gave up" if event.error == "Cancelled" else "refused"
        if acquire.outcome == "failed":
            outcome = "failed"
            acquire.load_seconds = at - acquire.start
            acquire.first_load = acquire.first_load or (at, acquire.load_seconds)
        self._finish(made, acquire, outcome, at)


def _sample(samples: list[float], value: float) -> None:
    samples.append(value)
    if len(samples) > 2 * SAMPLES:
        del samples[:SAMPLES]
