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
from ..reading.notes import cite
from ..reading.units import rate, seconds, size
from ..replay.books import Limits
from ..replay.replay import Replay
from ..tuning.advice import Advice, rows_of
from ..tuning.search import UNLIMITED, Search
from ..whatif.results import Result
from ..whatif.tasks import Application
from ..whatif.whatif import WhatIf
from .terminal import TOP, make_table

BAR = 24


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

    def run(self, application: Application) -> Result:
        """Run the application under these limits."""
        return WhatIf(application, self.limits, self.concurrency).run()

    def __str__(self) -> str:
        return (
            "\n".join(f"{name}={_in_words(name, value)}" for name, value in self.given.items())
            or "as logged"
        )


def _in_words(name: str, value: Any) -> str:
    if name.endswith("idle_timeout") and value != ADAPTIVE:
        return seconds(value)
    return size(value) if name.endswith("_size") else str(value)


def show_whatif(
    console: Console, rows: Sequence[tuple[Setting, Result]], application: Application
) -> None:
    """Print a row for each setting; the first one is the log's own."""
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
    off = off_by_points(rows[0][1], application)
    if off:
        hits, leases = application.hits, application.leases
        console.print(
            Text(
                f"The log itself has {rate(hits / leases)} of {leases:,} leases: run again under "
                f"its own limits, it is approximated, by {off:+.1f} points, and so are the others."
            )
        )
    for setting, result in rows:
        if result.refused:
            console.print(
                Text(f"{str(setting).replace(chr(10), ' ')}: {result.refused:,} acquires refused")
            )


def off_by_points(own: Result, application: Application) -> float | None:
    """Return by how many points the first row's hit rate differs from the log's.

    It is 0.0 only if all is the same, and None if the log has no leases.
    """
    hits, leases = application.hits, application.leases
    if not leases:
        return None
    if (own.hits, own.misses) == (hits, leases - hits):
        return 0.0
    return 100 * (own.hit_rate - hits / leases) or 1e-9


def show_tuning(console: Console, search: Search, advice: Advice) -> None:
    """Print the hit rate of a few sizes under each policy, and the advice."""
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
    console.print(Text(advice.sentence))
    if advice.verdict is not None:
        console.print(Text(advice.verdict))
    console.print(Text(f"\n{advice.line}", style="bold"))


def tune_document(search: Search, advice: Advice) -> Document:
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
