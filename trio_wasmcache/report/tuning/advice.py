"""Advice for the limits: one sentence, a line to paste, and whether a full run confirms it.

The search knows only `policy`, `max_size` and `idle_timeout`. So the advice is run with all other
limits as they are, and with tasks that wait for each other (see `whatif`), and if those limits cost
hits, it names them.
"""

from __future__ import annotations

import math

from attrs import Factory, define, fields_dict, frozen

from ..._core.config import CacheConfig, IdleTimeout, KiB, MiB
from ..reading.notes import count
from ..reading.units import rate, seconds, size as in_words
from ..replay.books import Limits
from ..whatif.results import Result
from .curve import Curve, Point
from .search import Choice, Search, round_up, steps
from .trial import Outcome
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
    """Hit rate by the curve or a trial."""
    load_seconds: float = 0.0
    """Time spent loading, likewise (seconds)."""
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
    def policy(self) -> str:
        """The advised `policy`."""
        policy: str = self.limits["policy"]
        return policy

    @property
    def idle_timeout(self) -> IdleTimeout:
        """The advised `idle_timeout` (seconds, or "adaptive"); may be infinite."""
        timeout: IdleTimeout = self.limits["idle_timeout"]
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
            f"they are, it has {rate(checked.hit_rate)}, {seconds(checked.load_seconds)} of "
            f"loading, and {in_words(checked.peak_size)} idle at most."
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


def advise(search: Search) -> Advice:
    """Find the limits that the question of `search` asks for, and say what they buy."""
    choice = search.find()
    limits = {
        **search.tuner.limits,
        "policy": choice.policy,
        "max_size": choice.max_size,
        "idle_timeout": choice.idle_timeout,
    }
    sentence = _for_size if search.question.max_size is not None else _for_target
    advice = Advice(sentence(search, choice), limits, choice.hit_rate)
    advice.load_seconds = choice.load_seconds
    return advice


def _for_target(search: Search, choice: Choice) -> str:
    target = search.question.target
    wanted = f"{target * 100:.6g} %"
    parts = []
    if choice.idle_timeout != search.now:
        parts.append(f"idle_timeout = {in_source('idle_timeout', choice.idle_timeout)}")
    if choice.policy != search.present:
        parts.append(f"policy = {in_source('policy', choice.policy)}")
    parts.append(f"max_size = {in_source('max_size', choice.max_size)}")
    first, *others = parts
    what = f"{first} with {' and '.join(others)}" if others else first
    if search.aim < target:
        text = (
            f"Nothing reaches {wanted}: first loads and corrupted instances alone leave "
            f"{rate(search.reachable)} at best; {what} reaches {rate(choice.hit_rate)}"
        )
    elif not search.able:
        text = (
            f"No size reaches {wanted} while idle instances go after {search.now:g} s; "
            f"{what} does: {rate(choice.hit_rate)}"
        )
    else:
        text = f"{what} reaches a hit rate of {wanted}: {rate(choice.hit_rate)}"
    if search.question.objective == "seconds":
        text += f", and {seconds(choice.load_seconds)} of loading"
    asides = []
    if round_up(choice.least) < choice.max_size:
        short = search.at_size(choice.policy, choice.least)
        asides.append(
            f"{in_source('max_size', round_up(choice.least))} would do, but that little "
            f"more takes it from {rate(short)} to {rate(choice.hit_rate)}"
        )
    if choice.policy != search.present and search.present in search.needs:
        asides.append(_instead(search, choice))
    asides.append(_was(search))
    return f"{text} ({'; '.join(asides)})."


def _instead(search: Search, choice: Choice) -> str:
    """Say what the policy in the log would do."""
    name = in_source("policy", search.present)
    if search.question.objective == "seconds":
        present = search.outcome(search.present, choice.max_size)
        return f"{name} has {seconds(present.load_seconds)} at that size"
    return f"{name} needs {in_source('max_size', round_up(search.needs[search.present]))}"


def _was(search: Search) -> str:
    tuner = search.tuner
    logged = tuner.hits / tuner.leases if tuner.leases else 0.0
    text = f"the log has {rate(logged)}"
    if search.question.objective == "seconds":
        text += f" and {seconds(tuner.load_seconds)}"
    written, now = in_source("max_size", tuner.limits["max_size"]), tuner.limits["max_size"]
    return f"{text} with {in_words(now) if written == str(now) else written}"


def _for_size(search: Search, choice: Choice) -> str:
    asked = search.question.max_size or 0
    by_seconds = search.question.objective == "seconds"

    def buys(it: Choice | Outcome) -> str:
        return seconds(it.load_seconds) if by_seconds else rate(it.hit_rate)

    what = "the least loading" if by_seconds else "the fewest misses"
    hits = "" if by_seconds else " hits"
    asides = []
    if choice.max_size < asked:
        asides.append(f"{in_source('max_size', choice.max_size)} would do")
    if choice.policy != search.present:
        name = in_source("policy", search.present)
        asides.append(f"{name} has {buys(search.outcome(search.present, asked))}")
    if choice.idle_timeout != search.now:
        kept = search.outcome(choice.policy, asked, search.now)
        asides.append(f"idle_timeout = {in_source('idle_timeout', search.now)} has {buys(kept)}")
    asides.append(_was(search))
    return (
        f"With max_size = {in_source('max_size', asked)}, "
        f"policy = {in_source('policy', choice.policy)} with "
        f"idle_timeout = {in_source('idle_timeout', choice.idle_timeout)} has {what}: "
        f"{buys(choice)}{hits} ({'; '.join(asides)})."
    )


@frozen
class Row:
    """A size, and its marks."""

    max_size: int
    marks: tuple[str, ...]
    """Those of ``now``, ``knee`` and ``advised`` that apply."""
    points: tuple[Point | Outcome, ...]
    """What comes of it under each policy that `Search.compared` names."""


def marks_of(tuner: Tuner, curve: Curve, advice: Advice) -> dict[int, tuple[str, ...]]:
    """Return {size: marks}, of sizes for which the curve is exact."""
    marks: dict[int, tuple[str, ...]] = {}
    for size, mark in (
        (tuner.limits["max_size"], "now"),
        (curve.knee(), "knee"),
        (advice.max_size, "advised"),
    ):
        if size >= curve.smallest or mark == "advised":
            marks[size] = (*marks.get(size, ()), mark)
    return marks


def rows_of(search: Search, advice: Advice) -> list[Row]:
    """Return a few sizes, with the marked ones, and what comes of each under each policy."""
    curve = search.curve
    marks = marks_of(search.tuner, curve, advice)
    tried = search.sizes() or steps(curve.smallest, curve.largest, CURVE_ROWS)
    rows = []
    for size in sorted({*tried, *marks}):
        points = (curve.at(size),) if search.compared == ["lru"] else search.at(size)
        rows.append(Row(size, marks.get(size, ()), tuple(points)))
    return rows


def in_source(name: str, value: float | str) -> str:
    """Return a limit as in source code: ``64 * MiB``, ``2.5``, ``math.inf``, ``"lru"``."""
    if isinstance(value, str):
        return f'"{value}"'
    if name.endswith("idle_timeout"):
        return "math.inf" if value == math.inf else f"{value:g}"
    if name.endswith("_size"):
        for unit, written in ((MiB, "MiB"), (KiB, "KiB")):
            if value and value % unit == 0:
                return f"{int(value // unit)} * {written}"
    return str(value)
