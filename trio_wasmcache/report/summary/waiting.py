"""Who waits for tokens and for instances, for how long, and how many at the same time."""

from __future__ import annotations

from typing import Any

import polars as pl
from attrs import Factory, define

from ..reading.names import Key

# Number of waits of a cache that are followed until they end; only an invalid log has more.
MAX_OPEN = 20_000
TOKEN, INSTANCE, ROOM = "a token", "an instance", "room"


@define
class Queue:
    """Acquires that wait for the tokens of a group, or for instances of an entry."""

    waits: int = 0
    seconds: float = 0.0
    """Time of those that have ended."""
    longest: int = 0
    """Number of acquires that waited at the same time, at most."""
    now: int = 0


@define
class Throttled:
    """Calls of a group that wait for its `cpu_limit`."""

    cores: float
    """The limit, when they last waited."""
    waits: int = 0
    seconds: float = 0.0
    """Time that they waited, all together."""
    at_once: int = 0
    """Number of calls that waited at the same time, as far as the log says."""


@define(eq=False)
class Waiting:
    """The queues of one cache."""

    acquires: dict[str, int] = Factory(dict)
    """{group: number of acquires}."""
    tokens: dict[str, Queue] = Factory(dict)
    """{group: those that wait for its tokens}."""
    instances: dict[Key, Queue] = Factory(dict)
    capacities: dict[str, int | None] = Factory(dict)
    """{group: its tokens}; None: no limit."""
    concurrency: dict[tuple[str, str], int] = Factory(dict)
    """{function: its instances in a group, at most}."""
    throttled: dict[str, Throttled] = Factory(dict)
    """{group: calls that wait for its `cpu_limit`}."""
    _open: dict[tuple[str, int], tuple[float, Queue]] = Factory(dict)
    # {("task" or "request", number): (since when it waits, where)}

    def take(self, frame: pl.DataFrame, times: pl.Series) -> None:
        """Add events of one cache, in order; `times` are seconds since its first event."""
        event, request = pl.col("event"), pl.col("request")
        asked = (event == "wasmcache.requested") | (
            (event == "wasmcache.abandoned") & request.is_null()
        )
        for group, number in frame.filter(asked).group_by("group").agg(pl.len()).iter_rows():
            self.acquires[group] = self.acquires.get(group, 0) + number
        for name in ("group_opened", "group_resized"):
            for group, tokens in _columns(frame, name, "group", "capacity_tokens"):
                self.capacities[group] = tokens
        for function, types, most in _columns(
            frame, "registered", "function", "arg_types", "concurrency"
        ):
            self.concurrency[function, types] = most
        for group, cores, waits, seconds, now in _columns(
            frame, "throttled", "group", "cpu_limit_cores", "waits", "wait_seconds", "waiting"
        ):
            one = self.throttled.setdefault(group, Throttled(cores))
            one.cores = cores
            one.waits += waits
            one.seconds += seconds
            one.at_once = max(one.at_once, now)
        blocked = frame.filter(event == "wasmcache.blocked")
        if not len(blocked) and not self._open:
            return
        waited = {number for kind, number in self._open if kind == "request"}
        waited.update(blocked["request"].drop_nulls())
        relevant = (
            (event == "wasmcache.blocked")
            | ((event == "wasmcache.requested") & pl.col("blocked"))
            | ((event == "wasmcache.abandoned") & request.is_null())
            | (
                event.is_in(["wasmcache.acquired", "wasmcache.abandoned"])
                & request.is_in(list(waited))
            )
        )
        rows = frame.with_columns(times.alias("time")).filter(relevant.fill_null(False))
        names = ("time", "event", "function", "arg_types", "group", "request", "task", "waits_for")
        for at, kind, function, types, group, number, task, what in rows.select(names).iter_rows():
            if kind != "wasmcache.blocked":
                waiter = ("task", task) if kind == "wasmcache.requested" else ("request", number)
                if number is None:
                    waiter = ("task", task)
                self._end(waiter, at)
            elif what == TOKEN:
                self._begin(("task", task), at, self.tokens.setdefault(group, Queue()))
            else:
                self._end(("request", number), at)
                if what == INSTANCE:
                    key = (function, types, group)
                    self._begin(("request", number), at, self.instances.setdefault(key, Queue()))

    def _begin(self, waiter: tuple[str, int], at: float, queue: Queue) -> None:
        if len(self._open) >= MAX_OPEN:
            self._open.clear()
            for each in (*self.tokens.values(), *self.instances.values()):
                each.now = 0
        self._end(waiter, at)
        queue.waits += 1
        queue.now += 1
        queue.longest = max(queue.longest, queue.now)
        self._open[waiter] = at, queue

    def _end(self, waiter: tuple[str, int], at: float) -> None:
        since, queue = self._open.pop(waiter, (at, None))
        if queue is not None:
            queue.now -= 1
            queue.seconds += at - since


def _columns(frame: pl.DataFrame, event: str, *names: str) -> list[tuple[Any, ...]]:
    return frame.filter(pl.col("event") == f"wasmcache.{event}").select(names).rows()
