"""How the hit rate depends on `max_size` and `idle_timeout`, worked out in one pass over a log.

Leases begin and end when they did. Each has a size from which on, and an idle time from which on,
it would have been a hit (see `distances`); counting them gives the whole curve.
"""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Sequence
from typing import Any

import polars as pl
from attrs import Factory, define, frozen

from .books import limits_of
from .distances import Stack
from .replay import check_start

KiB, MiB = 1024, 1024 * 1024
# Loads of a function of which the median stands for those that did not happen.
SAMPLES = 1001
POINTS = 200
Key = tuple[str, str, int, int]  # (function, argument types, generation, number of the group)


@frozen
class Point:
    """The cache at one size."""

    max_size: int
    hit_rate: float
    load_seconds: float


@define(eq=False)
class Curve:
    """Every lease by the size that it needs. `timeout`: idle instances go after so long."""

    leases: int
    smallest: int
    """From this size on it is exact: that of the largest instance."""
    timeout: float
    needs: pl.DataFrame
    """size, hits and load_seconds of all that need at most that, in order of size."""
    load_seconds: float
    """Of all leases, had none been a hit."""

    def at(self, size: int) -> Point:
        """The cache at `max_size=size`."""
        index = self.needs["size"].search_sorted(size, "right")
        hits = self.needs["hits"][index - 1] if index else 0
        saved = self.needs["load_seconds"][index - 1] if index else 0.0
        return Point(size, hits / self.leases if self.leases else 0.0, self.load_seconds - saved)

    @property
    def largest(self) -> int:
        """From this size on, more is of no use."""
        return max(self.smallest, int(self.needs["size"].max() or 0))  # type: ignore[arg-type]

    @property
    def best(self) -> Point:
        """With all the memory that could be of use."""
        return self.at(self.largest)

    def smallest_for(self, hit_rate: float) -> int | None:
        """The smallest size that reaches the hit rate; None: none does."""
        wanted = math.ceil(hit_rate * self.leases - 1e-9)
        index = self.needs["hits"].search_sorted(wanted, "left")
        if index >= len(self.needs):
            return self.smallest if wanted == 0 else None
        return max(self.smallest, int(self.needs["size"][index]))

    def knee(self) -> int:
        """Where more memory begins to buy less: farthest above the line from end to end."""
        low, high = self.smallest, self.largest
        first, last = self.at(low).hit_rate, self.at(high).hit_rate
        if high == low or last == first:
            return low
        sizes = self.needs.filter(pl.col("size") >= low)
        gained = (sizes["hits"] / self.leases - first) / (last - first)
        above = gained - (sizes["size"] - low) / (high - low)
        index = above.arg_max()
        assert index is not None
        return int(sizes["size"][index])

    def points(self, also: Sequence[int] = ()) -> list[Point]:
        """For a chart: at most `POINTS` sizes, and those named."""
        low, high = self.smallest, self.largest
        steps = [low + (high - low) * number // (POINTS - 1) for number in range(POINTS)]
        return [self.at(size) for size in sorted({*steps, *also})]


@define(eq=False)
class Tuner:
    """Feeds a `Stack` with a log's leases."""

    limits: dict[str, Any] | None = None
    """In force at the end of the log."""
    leases: int = 0
    hits: int = 0
    ignored: int = 0
    stack: Stack = Factory(Stack)
    _sizes: array[float] = Factory(lambda: array("d"))  # bytes needed, for each lease
    _gaps: array[float] = Factory(lambda: array("d"))  # seconds that its instance was idle
    _costs: array[float] = Factory(lambda: array("d"))  # seconds of the load; nan: it had none
    _names: array[int] = Factory(lambda: array("l"))  # number of the function
    _numbers: dict[tuple[str, str], int] = Factory(dict)
    _loads: dict[int, list[float]] = Factory(dict)
    _current: dict[tuple[str, str], int] = Factory(dict)  # {function: generation}
    _groups: dict[str, int] = Factory(dict)  # {open group: its number}
    _opened_groups: int = 0
    _keys: dict[tuple[str, str], set[Key]] = Factory(dict)  # {function: what was ever idle}
    _loading: dict[int, float] = Factory(dict)  # {request: seconds its load took}
    _leased: dict[int, Key] = Factory(dict)
    _warm: set[int] = Factory(set)
    _ended: tuple[Key, dict[str, Any]] | None = None

    def feed(self, event: dict[str, Any]) -> None:
        """The next event.

        Raises:
            NotReplayable: it is the first, and the log can't be tuned by.
        """
        if self.limits is None:
            check_start(event, "tuning")
            self.limits = limits_of(event)
        if self._ended is not None:
            self._give_back(event)
        handle = getattr(self, "_on_" + event["event"].removeprefix("wasmcache."), None)
        if handle is not None:
            try:
                handle(event)
            except KeyError:
                self.ignored += 1

    def curve(self, timeout: float) -> Curve:
        """What size gives what, where idle instances go after `timeout` seconds."""
        usual = {number: statistics.median(taken) for number, taken in self._loads.items()}
        frame = pl.DataFrame(
            {"size": self._sizes, "gap": self._gaps, "cost": self._costs, "name": self._names}
        ).with_columns(
            pl.when(pl.col("cost").is_nan())
            .then(pl.col("name").replace_strict(usual, default=0.0, return_dtype=pl.Float64))
            .otherwise("cost")
            .alias("cost")
        )
        needs = (
            frame.filter(pl.col("size").is_finite() & (pl.col("gap") < timeout))
            .sort("size")
            .select(
                pl.col("size").cast(pl.Int64),
                pl.int_range(1, pl.len() + 1).alias("hits"),
                pl.col("cost").cum_sum().alias("load_seconds"),
            )
            .unique("size", keep="last", maintain_order=True)
        )
        total = float(frame["cost"].sum())
        return Curve(self.leases, self.stack.largest, timeout, needs, total)

    def timeout_for(self, hit_rate: float) -> float | None:
        """The shortest timeout with which the hit rate can be reached; None: there is none."""
        wanted = math.ceil(hit_rate * self.leases - 1e-9)
        gaps = sorted(gap for gap in self._gaps if gap < math.inf)
        return None if wanted > len(gaps) else gaps[wanted - 1] if wanted else 0.0

    # -- events

    def _on_resized(self, event: dict[str, Any]) -> None:
        self.limits = limits_of(event)

    def _on_group_opened(self, event: dict[str, Any]) -> None:
        self._opened_groups += 1
        self._groups[event["group"]] = self._opened_groups

    def _on_group_closed(self, event: dict[str, Any]) -> None:
        group = self._groups.pop(event["group"], None)
        for keys in self._keys.values():
            for key in [key for key in keys if key[3] == group]:
                keys.remove(key)
                self.stack.forget(key)

    def _on_registered(self, event: dict[str, Any]) -> None:
        name = event["function"], event["arg_types"]
        self._retire(name)
        self._current[name] = event["generation"]
        self._numbers.setdefault(name, len(self._numbers))

    def _on_removed(self, event: dict[str, Any]) -> None:
        name = event["function"], event["arg_types"]
        self._retire(name)
        self._current.pop(name, None)

    def _retire(self, name: tuple[str, str]) -> None:
        for key in self._keys.pop(name, ()):
            self.stack.forget(key)

    def _on_requested(self, event: dict[str, Any]) -> None:
        if event["warm"]:
            self._warm.add(event["request"])

    def _on_loaded(self, event: dict[str, Any]) -> None:
        seconds = self._loading[event["request"]] = event["load_seconds"]
        number = self._numbers[event["function"], event["arg_types"]]
        samples = self._loads.setdefault(number, [])
        samples.append(seconds)
        if len(samples) > 2 * SAMPLES:
            del samples[:SAMPLES]

    def _on_acquired(self, event: dict[str, Any]) -> None:
        name, request = (event["function"], event["arg_types"]), event["request"]
        key = (*name, event["generation"], self._groups[event["group"]])
        self._leased[request] = key
        loaded = self._loading.pop(request, math.nan)
        if request in self._warm:
            if event["hit"]:
                self.stack.take(key, event["at_seconds"])
            return
        size, gap = self.stack.take(key, event["at_seconds"])
        self.leases += 1
        self.hits += event["hit"]
        self._sizes.append(size)
        self._gaps.append(gap)
        self._costs.append(loaded)
        self._names.append(self._numbers[name])

    def _on_recycled(self, event: dict[str, Any]) -> None:
        self._warm.discard(event["request"])
        self._ended = self._leased.pop(event["request"]), event

    def _give_back(self, following: dict[str, Any]) -> None:
        """A lease has ended, unless `following` says that its instance was spoilt."""
        assert self._ended is not None and self.limits is not None
        key, event = self._ended
        self._ended = None
        spoilt = (
            following["event"] == "wasmcache.evicted"
            and following["reason"] == "corrupted"
            and following["instance"] == event["instance"]
        )
        too_large = event["size_bytes"] > self.limits["max_instance_size"]
        name = key[:2]
        gone = self._current.get(name) != key[2] or self._groups.get(event["group"]) != key[3]
        if not (spoilt or too_large or gone):
            self._keys.setdefault(name, set()).add(key)
            self.stack.give_back(key, event["size_bytes"], event["at_seconds"])


@frozen
class Advice:
    """A recommendation: one sentence, and the line to paste."""

    sentence: str
    max_size: int
    idle_timeout: float

    @property
    def line(self) -> str:
        """For the application's source."""
        timeout = "math.inf" if self.idle_timeout == math.inf else f"{self.idle_timeout:g}"
        return f"CacheConfig(max_size={in_source(self.max_size)}, idle_timeout={timeout})"


def advise(tuner: Tuner, target: float) -> tuple[Curve, Advice]:
    """The smallest limits that reach a hit rate, or come as near as can be."""
    assert tuner.limits is not None
    timeout, now = tuner.limits["idle_timeout"], tuner.limits["max_size"]
    curve = tuner.curve(timeout)
    rate = tuner.hits / tuner.leases if tuner.leases else 0.0
    was = f"the log has {rate:.2%} with {in_source(now)}"
    if (size := curve.smallest_for(target)) is not None:
        size = round_up(size)
        return curve, Advice(
            f"max_size = {in_source(size)} reaches a hit rate of {target:.2%} "
            f"({curve.at(size).hit_rate:.2%}; {was}).",
            size,
            timeout,
        )
    longer = tuner.timeout_for(target)
    if longer is not None:
        timeout = _round_seconds(longer)
        curve = tuner.curve(timeout)
        size = round_up(curve.smallest_for(target) or curve.largest)
        return curve, Advice(
            f"No size reaches {target:.2%} while idle instances go after "
            f"{tuner.limits['idle_timeout']:g} s; idle_timeout = {timeout:g} with max_size = "
            f"{in_source(size)} does ({curve.at(size).hit_rate:.2%}; {was}).",
            size,
            timeout,
        )
    best = tuner.curve(math.inf).best.hit_rate
    size = round_up(curve.smallest_for(curve.best.hit_rate) or curve.largest)
    return curve, Advice(
        f"Nothing reaches {target:.2%}: first loads and spoilt instances alone leave {best:.2%} at "
        f"best; max_size = {in_source(size)} reaches {curve.at(size).hit_rate:.2%} ({was}).",
        size,
        timeout,
    )


def round_up(size: int) -> int:
    """To what one would write: whole MiB, or for small ones whole pages of WebAssembly."""
    unit = MiB if size > 16 * MiB else 64 * KiB
    return max(unit, -(-size // unit) * unit)


def in_source(size: int) -> str:
    """A size as one would write it: ``64 * MiB``."""
    for unit, name in ((MiB, "MiB"), (KiB, "KiB")):
        if size and size % unit == 0:
            return f"{size // unit} * {name}"
    return str(size)


def _round_seconds(seconds: float) -> float:
    """The next whole second, above all that it has to outlast."""
    return float(math.floor(seconds) + 1)
