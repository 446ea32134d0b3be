"""The hit rate by `max_size` and `idle_timeout`, computed in one pass over a log.

Leases begin and end as in the log. Each has a size, and an idle time, from which on it would have
been a hit (see `distances`); counting them gives the whole curve.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence

import polars as pl
from attrs import Factory, define

from ..._core.events import (
    Acquired,
    Event,
    GroupClosed,
    GroupOpened,
    GroupResized,
    Loaded,
    Recycled,
    Registered,
    Removed,
    Requested,
    Resized,
    Stamped,
)
from ..._core.policy.lifecycle import State
from ..._core.snapshot import SnapshotGroup, SnapshotPart
from ..replay.books import Limits, limits_of
from ..replay.replay import is_end_of_corrupted
from ..replay.start import Beginning, Fed, Start
from .curve import Curve
from .distances import Stack
from .trace import SAMPLES, Op, Trace

Key = tuple[str, str, int, int]  # (function, argument types, generation, number of the group)


@define(eq=False)
class Columns:
    """What is known of each lease, and of the loads of each function."""

    sizes: array[float] = Factory(lambda: array("d"))
    """Bytes that it needs to be a hit."""
    gaps: array[float] = Factory(lambda: array("d"))
    """Seconds for which its instance was idle."""
    costs: array[float] = Factory(lambda: array("d"))
    """Seconds of its load."""
    was_hit: bytearray = Factory(bytearray)
    """Whether it was a hit; then its load was on a seat."""
    names: array[int] = Factory(lambda: array("l"))
    """Number of its function."""
    loads: dict[tuple[int, bool], list[float]] = Factory(dict)
    """{(number of a function, whether on a hit): seconds}."""
    functions: int = 0
    """Number of functions."""

    def add(self, others: Columns) -> None:
        """Add those of another cache, where a function of the same name is another one."""
        first = self.functions
        self.functions += others.functions
        self.sizes.extend(others.sizes)
        self.gaps.extend(others.gaps)
        self.costs.extend(others.costs)
        self.was_hit.extend(others.was_hit)
        self.names.extend(first + number for number in others.names)
        taken = others.loads.items()
        self.loads.update({(first + number, hit): times for (number, hit), times in taken})


@define(eq=False)
class Tuner(Fed):
    """Feeds a `Stack` with a log's leases."""

    start: Start = Factory(lambda: Start("tuning"))
    limits: Limits = Factory(dict)
    """The limits in force at the end of the log."""
    leases: int = 0
    hits: int = 0
    ignored: int = 0
    stack: Stack = Factory(Stack)
    trace: Trace = Factory(Trace)
    """The same leases, for trials under other policies."""
    columns: Columns = Factory(lambda: Columns())
    limited: set[str] = Factory(set)
    """Groups that ever had a `max_size` or a `reserved_size`, which are not kept to here."""
    _numbers: dict[tuple[str, str], int] = Factory(dict)
    _current: dict[tuple[str, str], int] = Factory(dict)  # {function: generation}
    _modules: dict[tuple[str, str, int], int] = Factory(dict)  # {generation: number of its module}
    _groups: dict[str, int] = Factory(dict)  # {open group: its number}
    _opened_groups: int = 0
    _keys: dict[tuple[str, str], set[Key]] = Factory(dict)  # {function: what was ever idle}
    _keys_in: dict[int, set[Key]] = Factory(dict)  # {number of an open group: the same}
    # {request: (seconds that its load took, whether with its module)}
    _loading: dict[int | None, tuple[float, bool]] = Factory(dict)
    _leased: dict[int | None, tuple[Key, int]] = Factory(dict)  # {request: (key, run of the trace)}
    _warm: set[int | None] = Factory(set)
    _ended: tuple[Key, int, Recycled, float] | None = None

    @classmethod
    def together(cls, tuners: Sequence[Tuner]) -> Tuner:
        """Return the leases of several caches, each with `max_size` and `idle_timeout` alike.

        It has no trace, as each cache has its own.
        """
        made = cls(limits=tuners[0].limits)
        for tuner in tuners:
            made.leases += tuner.leases
            made.hits += tuner.hits
            made.ignored += tuner.ignored
            made.stack.largest = max(made.stack.largest, tuner.stack.largest)
            made.columns.add(tuner.columns)
            made.limited |= tuner.limited
        return made

    def begin(self, beginning: Beginning) -> None:
        """Begin with what was in the cache; idle instances become idle in the order of then."""
        self.limits = limits_of(beginning.head)
        whole, at = beginning.whole, beginning.at
        if whole is None:
            return
        for group in whole.groups:
            if not group.closed:
                self._open_group(group.group)
                self._on_limits(group)
        modules = {it.module_number: it for it in whole.modules}
        for made in whole.functions:
            name = made.function, made.arg_types
            if not made.retired:
                self._current[name] = made.generation
            self._modules[*name, made.generation] = made.module_number
            number = self._numbers.setdefault(name, len(self._numbers))
            if made.load_seconds is not None:
                code = modules[made.module_number].load_seconds or 0.0
                self.trace.note_load(number, False, made.load_seconds)
                self.trace.note_load(number, True, made.load_seconds + code)
                self.columns.loads[number, False] = [made.load_seconds + code]
        self.columns.functions = len(self._numbers)
        self._warm.update(it.request for it in whole.requests if it.warm)
        # Leases of which the log has `acquired`; other acquires take their instance in the log.
        held = {it.instance: it.request for it in whole.requests if it.acquired}
        for it in sorted(whole.residents, key=lambda it: (it.instance in held, it.rest)):
            group_number = self._groups.get(it.group)
            if group_number is None:
                continue  # it closes
            key = (it.function, it.arg_types, it.generation, group_number)
            name = key[:2]
            self.trace.know(key, key[:3], self._modules[key[:3]], self._numbers[name])
            if it.instance in held:
                self._leased[held[it.instance]] = key, self.trace.hold(key, at, it.uses)
            elif it.rest or it.state == State.IDLE:
                run = self.trace.hold(key, it.last_used_at_seconds, it.uses - 1)
                self._rest(key, run, it.size_bytes, it.last_used_at_seconds, it.seat)

    def take(self, event: Stamped) -> None:
        """Add the next event."""
        if isinstance(event.event, SnapshotPart):
            return  # it may stand between a step and its evictions
        if self._ended is not None:
            self._give_back(*self._ended, event.event)
            self._ended = None
        try:
            self._handle(event.event, event.at_seconds)
        except KeyError:
            self.ignored += 1

    def _handle(self, event: Event, at: float) -> None:
        match event:  # the frequent ones first
            case Requested(warm=True):
                self._warm.add(event.request)
            case Acquired():
                self._on_acquired(event, at)
            case Recycled():
                self._warm.discard(event.request)
                self._ended = *self._leased.pop(event.request), event, at
            case Loaded():
                self._on_loaded(event)
            case GroupOpened():
                self._open_group(event.group)
                self._on_limits(event)
            case GroupResized():
                self._on_limits(event)
            case GroupClosed():
                self._on_group_closed(event, at)
            case Registered():
                self._on_registered(event, at)
            case Removed():
                self._retire((event.function, event.arg_types), at)
                self._current.pop((event.function, event.arg_types), None)
            case Resized():
                self.limits = limits_of(event)

    @property
    def load_seconds(self) -> float:
        """Time spent loading in the log, for leases (seconds)."""
        return math.fsum(self.columns.costs)

    def curve(self, timeout: float) -> Curve:
        """Return the curve where idle instances are evicted after `timeout` seconds.

        A miss costs the time of its load, or the usual time for the function; a hit costs nothing,
        except on a seat: then, the time of its load or the usual time.
        """
        hit, cost = pl.col("hit") == 1, pl.col("cost")
        frame = pl.DataFrame(
            {
                "size": self.columns.sizes,
                "gap": self.columns.gaps,
                "cost": self.columns.costs,
                "hit": list(self.columns.was_hit),
                "name": self.columns.names,
            }
        ).with_columns(
            pl.when(hit).then(self._usual(hit=False)).otherwise(cost).alias("missed"),
            pl.when(hit).then(cost).otherwise(self._usual(hit=True)).alias("served"),
        )
        needs = (
            frame.filter(pl.col("size").is_finite() & (pl.col("gap") < timeout))
            .sort("size")
            .select(
                pl.col("size").cast(pl.Int64),
                pl.int_range(1, pl.len() + 1).alias("hits"),
                (pl.col("missed") - pl.col("served")).cum_sum().alias("load_seconds"),
            )
            .unique("size", keep="last", maintain_order=True)
        )
        total = float(frame["missed"].sum())
        return Curve(self.leases, self.stack.largest, timeout, needs, total)

    def _usual(self, hit: bool) -> pl.Expr:
        """Return the usual time of a load for such a lease, by the function's number."""
        usual = {
            number: statistics.median(taken)
            for (number, was_hit), taken in self.columns.loads.items()
            if was_hit == hit
        }
        return pl.col("name").replace_strict(usual, default=0.0, return_dtype=pl.Float64)

    def timeout_for(self, hit_rate: float) -> float | None:
        """Return the shortest timeout that can reach the hit rate, or None."""
        wanted = math.ceil(hit_rate * self.leases - 1e-9)
        gaps = sorted(gap for gap in self.columns.gaps if gap < math.inf)
        return None if wanted > len(gaps) else gaps[wanted - 1] if wanted else 0.0

    # -- events

    def _on_limits(self, event: GroupOpened | GroupResized | SnapshotGroup) -> None:
        if event.reserved_size_bytes or event.max_size_bytes is not None:
            self.limited.add(event.group)

    def _open_group(self, name: str) -> None:
        self._opened_groups += 1
        self._groups[name] = self._opened_groups

    def _on_group_closed(self, event: GroupClosed, at: float) -> None:
        group = self._groups.pop(event.group, None)
        if group is not None:
            for key in self._keys_in.pop(group, ()):
                self._keys[key[:2]].discard(key)
                self._forget(key, at)

    def _on_registered(self, event: Registered, at: float) -> None:
        name = event.function, event.arg_types
        self._retire(name, at)
        self._current[name] = event.generation
        self._modules[*name, event.generation] = event.module_number
        self._numbers.setdefault(name, len(self._numbers))
        self.columns.functions = len(self._numbers)

    def _retire(self, name: tuple[str, str], at: float) -> None:
        for key in self._keys.pop(name, ()):
            self._keys_in[key[3]].discard(key)
            self._forget(key, at)

    def _forget(self, key: Key, at: float) -> None:
        self.stack.forget(key)
        self.trace.forget(key, at)

    def _on_loaded(self, event: Loaded) -> None:
        if event.promoted:
            return  # for no lease
        seconds, cold = self._loading[event.request] = event.load_seconds, event.module_loaded
        number = self._numbers[event.function, event.arg_types]
        self.trace.note_load(number, cold, seconds)
        samples = self.columns.loads.setdefault((number, bool(event.seat)), [])
        samples.append(seconds)
        if len(samples) > 2 * SAMPLES:
            del samples[:SAMPLES]

    def _on_acquired(self, event: Acquired, at: float) -> None:
        name, request = (event.function, event.arg_types), event.request
        # First look up what may be missing in the log: a lease is in all columns, or in none.
        number = self._numbers[name]
        key = (*name, event.generation, self._groups[event.group])
        self.trace.know(key, key[:3], self._modules[key[:3]], number)
        loaded, cold = self._loading.pop(request, (None, False))
        ahead = request in self._warm
        op = Op.TAKE if not ahead else Op.REUSE if event.hit else Op.WARM
        self._leased[request] = key, self.trace.begin(op, key, at, loaded, cold)
        if ahead:
            if event.hit:
                self.stack.take(key, at)
            return
        size, gap = self.stack.take(key, at)
        self.leases += 1
        self.hits += event.hit
        self.columns.sizes.append(size)
        self.columns.gaps.append(gap)
        self.columns.costs.append(loaded or 0.0)
        self.columns.was_hit.append(event.hit)
        self.columns.names.append(number)

    def _give_back(self, key: Key, run: int, event: Recycled, at: float, following: Event) -> None:
        """End a lease; drop its instance if `following` shows that it was corrupted."""
        corrupted = is_end_of_corrupted(event, following)
        too_large = event.size_bytes > self.limits["max_instance_size"]
        name = key[:2]
        gone = self._current.get(name) != key[2] or self._groups.get(event.group) != key[3]
        if corrupted or too_large or gone:
            self.trace.end(Op.DROP, key, at, run)
        else:
            self._rest(key, run, event.size_bytes, at, bool(event.seat))

    def _rest(self, key: Key, run: int, size: int, at: float, seat: bool) -> None:
        self._keys.setdefault(key[:2], set()).add(key)
        self._keys_in.setdefault(key[3], set()).add(key)
        self.stack.give_back(key, size, at)
        self.trace.end(Op.REST, key, at, run, size, seat)
