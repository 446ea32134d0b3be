"""The answers of ``replay``, ``whatif`` and ``tune`` on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from .results import Result
from .terminal import TOP, make_table
from .tuning import Advice, Curve, Tuner
from .units import rate, seconds, size

# Rows of the curve that `tune` shows.
CURVE_ROWS = 12


def show_whatif(console: Console, rows: Sequence[tuple[str, Result]]) -> None:
    """A row for each setting; the first one is the log's own."""
    table = make_table(
        "Under other limits", "limits", "hit rate", "misses", "waits", "evicted", "load", "peak"
    )
    for name, result in rows:
        table.add_row(
            Text(name),
            rate(result.hit_rate),
            f"{result.misses:,}",
            f"{result.blocks:,}",
            f"{sum(result.evictions.values()):,}",
            seconds(result.load_seconds),
            size(result.peak_size),
        )
    console.print(table)


def show_tuning(
    console: Console, tuner: Tuner, curve: Curve, advice: Advice, checked: Result | None
) -> None:
    """The curve in a few rows, and what to do."""
    knee, low, high = curve.knee(), curve.smallest, curve.largest
    assert tuner.limits is not None
    marks = {tuner.limits["max_size"]: "now", knee: "knee", advice.max_size: "advised"}
    steps = [
        int(low * (high / max(low, 1)) ** (number / (CURVE_ROWS - 1))) if low else high
        for number in range(CURVE_ROWS)
    ]
    table = make_table(
        f"Hit rate by size, idle instances going after {seconds(curve.timeout)}",
        "max_size",
        "hit rate",
        "loads cost",
        "",
    )
    for step in sorted({*steps, *(mark for mark in marks if low <= mark)}):
        point = curve.at(step)
        bar = "█" * round(point.hit_rate * 30)
        table.add_row(
            f"{size(step)}  {marks.get(step, '')}",
            rate(point.hit_rate),
            seconds(point.load_seconds),
            Text(f"{bar:30}", style="cyan"),
            style="bold" if step in marks else None,
        )
    console.print(table)
    console.print()
    console.print(Text(advice.sentence))
    if checked is not None:
        console.print(
            Text(
                f"Run through the policy with all other limits as they are, it has "
                f"{checked.hit_rate:.2%}, and {size(checked.peak_size)} idle at most."
            )
        )
    console.print(Text(f"\n{advice.line}", style="bold"))


def show_replay(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Whether books and logs agree, for each cache."""
    for row in rows:
        agreed = not row["disagreed"]
        console.print(
            Text(
                f"Cache {row['cache']}: {row['events']:,} events, {row['leases']:,} leases, "
                f"{row['evictions']:,} evictions replayed"
            )
        )
        if agreed:
            console.print(Text("The books agree with the log everywhere.", style="green"))
            continue
        console.print(
            Text(f"The books disagree with the log {row['disagreed']:,} times:", style="bold red")
        )
        for one in row["disagreements"][:TOP]:
            console.print(Text(f"  event {one['seq']:,}: {one['text']}"))
        console.print(Text("The first one is the one to look at: others may come of it."))
