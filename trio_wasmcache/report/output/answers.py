"""The results of ``replay``, ``whatif`` and ``tune``: on a terminal, and for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from rich.console import Console
from rich.text import Text

from ..._core.config import ADAPTIVE
from ..reading.documents import Document
from ..reading.notes import cite, count
from ..reading.units import rate, seconds, size
from ..replay.books import Limits
from ..replay.replay import Replay
from ..tuning.advice import Advice, rows_of
from ..tuning.fleet import Different, Member
from ..tuning.search import UNLIMITED, Search
from ..tuning.trial import Settings
from ..whatif.results import Result
from .terminal import TOP, make_table

BAR = 24
# Number of caches of a fleet that are named, and the part of their misses that is worth it.
NAMED, FEWER = 3, 0.05


@frozen
class Setting:
    """One combination of limits that `whatif` tries."""

    given: Limits
    """Values by name: fields of `CacheConfig`, and `concurrency`."""

    @property
    def limits(self) -> Limits:
        """The fields of `CacheConfig`, without `concurrency`, which is a function's."""
        return {name: value for name, value in self.given.items() if name != "concurrency"}

    @property
    def concurrency(self) -> int | None:
        """Concurrency of every function; None: as in the log."""
        return self.given.get("concurrency")

    def as_dict(self) -> Document:
        """Return the values for JSON; an infinite timeout is null."""
        return {name: None if it == math.inf else it for name, it in self.given.items()}

    def __str__(self) -> str:
        return (
            "\n".join(f"{name}={in_words(name, value)}" for name, value in self.given.items())
            or "as logged"
        )


def in_words(name: str, value: Any) -> str:
    """Return a limit in words."""
    if name.endswith("idle_timeout") and value != ADAPTIVE:
        return seconds(value)
    return size(value) if name.endswith("_size") else str(value)


@frozen
class Ran:
    """What came of one cache of a log."""

    cache: str
    label: str
    hits: int
    """Number of hits in the log."""
    leases: int
    results: list[Result]
    """A result for each setting."""

    @property
    def name(self) -> str:
        """Its id, with its label if it has one."""
        return f"{cite(self.cache)} ({cite(self.label)})" if self.label else cite(self.cache)


def _together(ran: Sequence[Ran]) -> Ran:
    """Return the sums of all caches."""
    results = [Result.together(each) for each in zip(*(it.results for it in ran), strict=True)]
    return Ran("", "", sum(it.hits for it in ran), sum(it.leases for it in ran), results)


def _differing(ran: Sequence[Ran]) -> list[tuple[Ran, int, int]]:
    """Return the caches for which another setting is the best than for all together.

    Each with the index of that setting, and by how many misses it is better, the most first.
    """
    every = [it.misses for it in _together(ran).results]
    best = every.index(min(every))
    found = []
    for it in ran:
        own = [result.misses for result in it.results]
        index = own.index(min(own))
        if own[best] - own[index] > FEWER * own[best]:
            found.append((it, index, own[best] - own[index]))
    return sorted(found, key=lambda one: -one[2])


def whatif_document(settings: Sequence[Setting], ran: Sequence[Ran]) -> Document:
    """Return a document for programs: the sums, and each cache if there are several."""
    document = _results_document(settings, _together(ran))
    if len(ran) > 1:
        document["caches"] = [
            {"cache": it.cache, "label": it.label, **_results_document(settings, it)} for it in ran
        ]
        document["different"] = [
            {"cache": it.cache, "setting": settings[index].as_dict(), "fewer_misses": fewer}
            for it, index, fewer in _differing(ran)
        ]
    return document


def _results_document(settings: Sequence[Setting], ran: Ran) -> Document:
    return {
        "logged": {
            "hits": ran.hits,
            "misses": ran.leases - ran.hits,
            "off_by_points": off_by_points(ran),
        },
        "results": [
            {"setting": setting.as_dict(), **result.as_dict()}
            for setting, result in zip(settings, ran.results, strict=True)
        ],
    }


def show_whatif(console: Console, settings: Sequence[Setting], caches: Sequence[Ran]) -> None:
    """Print a row for each setting, of sums over the caches; the first one is the log's own."""
    ran = _together(caches)
    rows = list(zip(settings, ran.results, strict=True))
    if len(caches) > 1:
        console.print(Text(f"{len(caches)} caches, each run with its own log; the sums:\n"))
    table = make_table(
        "Under other limits", "limits", "hit rate", "misses", "waits", "evicted", "loading", "peak"
    )
    for setting, result in rows:
        table.add_row(
            Text(str(setting)),
            rate(result.hit_rate),
            f"{result.misses:,}",
            f"{result.blocks:,}",
            f"{sum(result.evictions.values()):,}",
            seconds(result.load_seconds),
            size(result.peak_size),
        )
    console.print(table)
    off = off_by_points(ran)
    if off:
        hits, leases = ran.hits, ran.leases
        console.print(
            Text(
                f"The log itself has {rate(hits / leases)} of {leases:,} leases: run again under "
                f"its own limits, it is approximated, by {off:+.1f} points, and so are the others."
            )
        )
    for setting, result in rows:
        if result.refused:
            limits = str(setting).replace("\n", " ")
            console.print(Text(f"{limits}: {count(result.refused, 'acquire')} refused"))
    others = _differing(caches) if len(caches) > 1 else []
    for it, index, fewer in others[:NAMED]:
        best = str(settings[index]).replace("\n", " ")
        console.print(
            Text(
                f"For {it.name}, another row is the best: {best}, with {fewer:,} fewer misses than "
                "the best one for all."
            )
        )
    if len(others) > NAMED:
        console.print(Text(f"So it is for {len(others) - NAMED:,} more."))


def off_by_points(ran: Ran) -> float | None:
    """Return by how many points the first row's hit rate differs from the log's.

    It is 0.0 only if all is the same, and None if the log has no leases.
    """
    own, hits, leases = ran.results[0], ran.hits, ran.leases
    if not leases:
        return None
    if (own.hits, own.misses) == (hits, leases - hits):
        return 0.0
    return 100 * (own.hit_rate - hits / leases) or 1e-9


def show_tuning(
    console: Console,
    search: Search,
    advice: Advice,
    members: Sequence[Member],
    others: Sequence[Different],
) -> None:
    """Print the hit rate of a few sizes under each policy, and the advice.

    Args:
        console: where to.
        search: what was found out.
        advice: the advice.
        members: the caches that it is for.
        others: those that would need other limits.
    """
    after = f"idle instances going after {seconds(search.curve.timeout)}"
    alone = search.compared == ["lru"]
    if alone:
        table = make_table(f"Hit rate by size, {after}", "max_size", "hit rate", "loading", "")
        table.columns[-1].justify = "left"
    else:
        by_seconds = search.question.objective == "seconds"
        what = "Loading" if by_seconds else "Hit rate"
        table = make_table(f"{what} by size and policy, {after}", "max_size", *search.compared)
    for row in rows_of(search, advice):
        point = row.points[0]
        cells: list[str | Text]
        if alone:
            bar = Text(f"{'█' * round(point.hit_rate * BAR):{BAR}}", style="cyan")
            cells = [rate(point.hit_rate), seconds(point.load_seconds), bar]
        else:
            cells = [
                seconds(it.load_seconds) if by_seconds else rate(it.hit_rate) for it in row.points
            ]
        table.add_row(
            f"{size(row.max_size)}  {', '.join(row.marks)}",
            *cells,
            style="bold" if row.marks else None,
        )
    console.print(table)
    console.print()
    if len(members) > 1:
        console.print(Text(f"For {len(members)} caches, each run with its own log:"))
    console.print(Text(advice.sentence))
    for one in others[:NAMED]:
        console.print(Text(f"{one.sentence}."))
    if len(others) > NAMED:
        console.print(Text(f"{len(others) - NAMED:,} more caches would need other limits."))
    if advice.verdict is not None:
        console.print(Text(advice.verdict))
    console.print(Text(f"\n{advice.line}", style="bold"))


def tune_document(
    search: Search, advice: Advice, members: Sequence[Member], others: Sequence[Different]
) -> Document:
    """Return a document for programs; an infinite timeout is null."""
    timeout = None if advice.idle_timeout == math.inf else advice.idle_timeout
    tuner, curve, question = search.tuner, search.curve, search.question
    return {
        "leases": tuner.leases,
        "hit_rate": tuner.hits / tuner.leases,
        "load_seconds": tuner.load_seconds,
        "objective": question.objective,
        "target_hit_rate": question.target if question.max_size is None else None,
        "max_size": question.max_size,
        "advice": {
            "sentence": advice.sentence,
            "line": advice.line,
            "policy": advice.policy,
            "max_size": advice.max_size,
            "idle_timeout": timeout,
            "hit_rate": advice.hit_rate,
            "load_seconds": advice.load_seconds,
            "verdict": advice.verdict,
        },
        "checked": None if advice.checked is None else advice.checked.as_dict(),
        "caches": [
            {"cache": it.cache, "label": it.label, "leases": it.tuner.leases} for it in members
        ],
        "different": [
            {
                "cache": it.member.cache,
                "sentence": it.sentence,
                "hit_rate": it.outcome.hit_rate,
                "load_seconds": it.outcome.load_seconds,
                "wanted": None if it.wanted is None else _settings_document(it.wanted),
            }
            for it in others
        ],
        "knee": curve.knee(),
        "exact_from": curve.smallest,
        "curve": [
            {
                "max_size": point.max_size,
                "hit_rate": point.hit_rate,
                "load_seconds": point.load_seconds,
            }
            for point in curve.points()
        ],
        "policies": [
            {
                "policy": it.settings.policy,
                "max_size": it.settings.max_size,
                "hit_rate": it.hit_rate,
                "misses": it.misses,
                "load_seconds": it.load_seconds,
            }
            for policy in search.compared
            for it in search.outcomes(policy, curve.timeout)
            if it.settings.max_size != UNLIMITED
        ],
    }


def _settings_document(it: Settings) -> Document:
    timeout = None if it.idle_timeout == math.inf else it.idle_timeout
    return {"policy": it.policy, "max_size": it.max_size, "idle_timeout": timeout}


def show_replay(console: Console, replays: Mapping[str, Replay]) -> None:
    """Print whether the books and the log agree, for each cache."""
    for cache, replay in replays.items():
        console.print(
            Text(
                f"Cache {cite(cache)}: {replay.events:,} events, {replay.leases:,} leases and "
                f"{replay.evictions:,} evictions replayed"
            )
        )
        if not replay.disagreed:
            where = "everywhere" if replay.gap is None else "as far as it goes"
            console.print(Text(f"The books agree with the log {where}.", style="green"))
            continue
        console.print(
            Text(f"The books disagree with the log {replay.disagreed:,} times:", style="bold red")
        )
        for seq, text in replay.disagreements[:TOP]:
            console.print(Text(f"  event {seq:,}: {text}"))
        console.print(Text("The first one is the one to look at: others may come of it."))


def replay_document(replays: Mapping[str, Replay], notes: Sequence[str]) -> Document:
    """Return a document for programs."""
    return {
        "caches": [
            {
                "cache": cache,
                "agrees": not replay.disagreed,
                "complete": replay.complete,
                "events": replay.events,
                "leases": replay.leases,
                "evictions": replay.evictions,
                "left_out": replay.left_out,
                "missing": None if replay.gap is None else list(replay.gap),
                "disagreed": replay.disagreed,
                "disagreements": [{"seq": seq, "text": text} for seq, text in replay.disagreements],
            }
            for cache, replay in replays.items()
        ],
        "notes": list(notes),
    }
