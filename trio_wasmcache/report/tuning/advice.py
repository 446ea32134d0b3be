"""Advice for the limits: one sentence, a line to paste, and whether the policy confirms it.

The curve knows only `max_size` and `idle_timeout`. So the advice is run through the policy with all
other limits as they are (see `whatif`), and if those cost hits, it names them.
"""

from __future__ import annotations

import math

from attrs import Factory, define, fields_dict, frozen

from ..._core.config import CacheConfig, KiB, MiB
from ..reading.notes import count
from ..reading.units import rate, size as in_words
from ..replay.books import Limits
from ..whatif.results import Result
from .curve import Curve, Point
from .tuning import Tuner

# {reason of an eviction: its limit}, of limits that the curve does not know.
OTHER_LIMITS = {
    "count": "max_instances",
    "code": "max_code_size",
    "stack": "max_code_size",
    "oversized": "max_instance_size",
    "address_space": "max_address_space",
}
# What a cache logs that is given none: three quarters of the system's addresses.
SYSTEM_LIMIT = ("max_address_space", 3 * 2**47 // 4)
# Number of rows of the curve that are shown, besides the marked ones.
CURVE_ROWS = 12
# A smaller difference of hit rates is an effect of leases that begin a little earlier or later.
SAME_RATE = 0.001


@define
class Advice:
    """A recommendation."""

    sentence: str
    limits: Limits
    """All limits that can be resized, as advised; named as in `CacheConfig`."""
    hit_rate: float
    """Hit rate by the curve."""
    checked: Result | None = None
    """Result of the run through the policy; None: not checked."""
    _defaults: Limits = Factory(
        lambda: {name: field.default for name, field in fields_dict(CacheConfig).items()}
    )

    @property
    def max_size(self) -> int:
        """The advised `max_size` (bytes)."""
        size: int = self.limits["max_size"]
        return size

    @property
    def idle_timeout(self) -> float:
        """The advised `idle_timeout` (seconds); may be infinite."""
        timeout: float = self.limits["idle_timeout"]
        return timeout

    @property
    def line(self) -> str:
        """A line for the application's source, with the advice and limits that are not default."""
        shown = [
            f"{name}={in_source(name, value)}"
            for name, value in self.limits.items()
            if name in ("max_size", "idle_timeout")
            or (value != self._defaults[name] and (name, value) != SYSTEM_LIMIT)
        ]
        return f"CacheConfig({', '.join(shown)})"

    @property
    def verdict(self) -> str | None:
        """The result of checking, in a sentence or two; None: not checked."""
        checked = self.checked
        if checked is None:
            return None
        text = (
            f"Run through the policy, with tasks that wait for each other and all other limits as "
            f"they are, it has {rate(checked.hit_rate)}, and {in_words(checked.peak_size)} idle "
            "at most."
        )
        if checked.hit_rate >= self.hit_rate - SAME_RATE:
            return text
        costs: dict[str, int] = {}
        for reason, number in checked.evictions.items():
            if reason in OTHER_LIMITS:
                limit = OTHER_LIMITS[reason]
                costs[limit] = costs.get(limit, 0) + number
        if checked.refused:
            text += f" It refuses {count(checked.refused, 'acquire')}."
        if not costs:
            return text
        listed = " and ".join(
            f"{limit} ({number:,} {'time' if number == 1 else 'times'})"
            for limit, number in sorted(costs.items(), key=lambda item: -item[1])
        )
        return f"{text} It is limited by {listed}: `whatif` shows the effect of raising that."


def advise(tuner: Tuner, target: float) -> tuple[Curve, Advice]:
    """Return the smallest limits that reach a hit rate, or come as near as possible.

    Also returns the curve for the advised idle timeout.
    """
    timeout, now = tuner.limits["idle_timeout"], tuner.limits["max_size"]
    curve = tuner.curve(timeout)
    logged = tuner.hits / tuner.leases if tuner.leases else 0.0
    was = f"the log has {rate(logged)} with {in_source('max_size', now)}"
    wanted = f"{target * 100:.6g} %"
    size = curve.smallest_for(target)
    longer = None if size is not None else tuner.timeout_for(target)
    if size is not None:
        size = round_up(size)
        reached = curve.at(size).hit_rate
        text = (
            f"max_size = {in_source('max_size', size)} reaches a hit rate of {wanted}: "
            f"{rate(reached)} ({was})."
        )
    elif longer is not None:
        short, timeout = timeout, math.floor(longer) + 1.0
        curve = tuner.curve(timeout)
        size = round_up(curve.smallest_for(target) or curve.largest)
        reached = curve.at(size).hit_rate
        text = (
            f"No size reaches {wanted} while idle instances go after {short:g} s; "
            f"idle_timeout = {timeout:g} with max_size = {in_source('max_size', size)} does: "
            f"{rate(reached)} ({was})."
        )
    else:
        best = tuner.curve(math.inf).best.hit_rate
        size = round_up(curve.smallest_for(curve.best.hit_rate) or curve.largest)
        reached = curve.at(size).hit_rate
        text = (
            f"Nothing reaches {wanted}: first loads and corrupted instances alone leave "
            f"{rate(best)} at best; max_size = {in_source('max_size', size)} reaches "
            f"{rate(reached)} ({was})."
        )
    limits = {**tuner.limits, "max_size": size, "idle_timeout": timeout}
    return curve, Advice(text, limits, reached)


@frozen
class Row:
    """A size of the curve, and its marks."""

    point: Point
    marks: tuple[str, ...]
    """Those of ``now``, ``knee`` and ``advised`` that apply."""


def marks_of(tuner: Tuner, curve: Curve, advice: Advice) -> dict[int, tuple[str, ...]]:
    """Return {size: marks}, of sizes for which the curve is exact."""
    marks: dict[int, tuple[str, ...]] = {}
    for size, mark in (
        (tuner.limits["max_size"], "now"),
        (curve.knee(), "knee"),
        (advice.max_size, "advised"),
    ):
        if size >= curve.smallest:
            marks[size] = (*marks.get(size, ()), mark)
    return marks


def rows_of(tuner: Tuner, curve: Curve, advice: Advice) -> list[Row]:
    """Return the curve in a few rows, including the marked sizes."""
    low, high = curve.smallest, curve.largest
    marks = marks_of(tuner, curve, advice)
    steps = [
        int(low * (high / max(low, 1)) ** (number / (CURVE_ROWS - 1))) if low else high
        for number in range(CURVE_ROWS)
    ]
    return [Row(curve.at(size), marks.get(size, ())) for size in sorted({*steps, *marks})]


def round_up(size: int) -> int:
    """Round up to a usual size: whole MiB, or for small ones whole pages of WebAssembly."""
    unit = MiB if size > 16 * MiB else 64 * KiB
    return max(unit, -(-size // unit) * unit)


def in_source(name: str, value: float | str) -> str:
    """Return a limit as in source code: ``64 * MiB``, ``2.5``, ``math.inf``, ``"lru"``."""
    if isinstance(value, str):
        return f'"{value}"'
    if name == "idle_timeout":
        return "math.inf" if value == math.inf else f"{value:g}"
    if name.endswith("_size"):
        for unit, written in ((MiB, "MiB"), (KiB, "KiB")):
            if value and value % unit == 0:
                return f"{int(value // unit)} * {written}"
    return str(value)
