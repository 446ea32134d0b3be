"""The page of ``tune``: the hit rate by size as a curve, and the advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from ..reading.units import rate, seconds, size
from ..tuning.advice import Advice, Row, marks_of, rows_of
from ..tuning.curve import Point
from ..tuning.fleet import Different
from ..tuning.search import Search
from ..tuning.trial import Outcome
from .answers import in_words
from .charts import SERIES, WIDTH, Chart, byte_ticks, draw, legend
from .page import PageSection, Table, render

# Inches; see `charts.WIDTH`. On a wide page, a single picture takes the full width.
WIDE, HEIGHT = 11.0, 3.6
COLOURS = {"now": 4, "knee": 1, "advised": 2}
POLICY_COLOURS = {"sieve": 3, "gdsf": 5, "cost": 6}


def tuning_page(
    search: Search, advice: Advice, others: Sequence[Different], notes: Sequence[str]
) -> str:
    """Return the page of a tuning; `others` are the caches that would need other limits."""
    tuner, curve = search.tuner, search.curve
    knee = curve.knee()
    texts = [advice.sentence, *(f"{one.sentence}." for one in others)]
    texts += [] if advice.verdict is None else [advice.verdict]
    narrow = curve_chart("curve", search, advice, WIDTH, HEIGHT)
    wide = curve_chart("wide", search, advice, WIDE, HEIGHT)
    rows = rows_of(search, advice)
    section = PageSection(
        "Hit rate by size",
        facts=[
            (rate(advice.hit_rate), f"hits, of {tuner.leases:,} leases, as advised"),
            (rate(tuner.hits / tuner.leases), "hits in the log"),
            (seconds(advice.load_seconds), "of loading, as advised"),
            (seconds(tuner.load_seconds), "of loading in the log"),
            (advice.policy, "policy, as advised"),
            (size(advice.max_size), "max_size, as advised"),
            (size(tuner.limits["max_size"]), "max_size in the log"),
            (size(knee), "the knee: more memory gains little"),
            (in_words("idle_timeout", advice.idle_timeout), "idle_timeout, as advised"),
        ],
        texts=texts,
        code=advice.line,
        charts=[Chart("curve", "Hit rate by max_size", narrow, wide)],
        tables=[
            _table("Hits", search, rows, lambda point: rate(point.hit_rate)),
            _table("Loading", search, rows, lambda point: seconds(point.load_seconds)),
        ],
    )
    timeout = seconds(min(math.inf, curve.timeout))
    return render(
        "How large the instance cache should be",
        f"Idle instances going after {timeout}",
        notes,
        [section],
    )


def _table(
    title: str, search: Search, rows: Sequence[Row], cell: Callable[[Point | Outcome], str]
) -> Table:
    columns = ("max_size", *search.compared, "")
    lines = [(size(row.max_size), *map(cell, row.points), ", ".join(row.marks)) for row in rows]
    return Table(f"{title} by size and policy", columns, lines, marked=len(columns) - 1)


def curve_chart(name: str, search: Search, advice: Advice, width: float, height: float) -> str:
    """Draw the hit rate by size, with the marked sizes; `width` and `height` in inches."""
    curve = search.curve
    marks = marks_of(search.tuner, curve, advice)

    def plot(ax: Axes) -> None:
        points = curve.points([*marks])
        ax.plot(
            [point.max_size for point in points],
            [point.hit_rate for point in points],
            color=SERIES[0],
            linewidth=1.8,
            drawstyle="steps-post",
            label="lru" if len(search.compared) > 1 else None,
        )
        end = 1.05 * max(point.max_size for point in points)
        for policy in search.compared[1:]:
            tried = [
                it for it in search.outcomes(policy, curve.timeout) if it.settings.max_size <= end
            ]
            ax.plot(
                [it.settings.max_size for it in tried],
                [it.hit_rate for it in tried],
                color=SERIES[POLICY_COLOURS[policy]],
                linewidth=1.2,
                marker=".",
                label=policy,
            )
        # Named in the legend, where labels of close sizes can't overlap.
        for mark, names in marks.items():
            under = advice.policy if "advised" in names else "lru"
            hit_rate = advice.hit_rate if "advised" in names else curve.at(mark).hit_rate
            label = f"{', '.join(names)}: {size(mark)}, {rate(hit_rate)}"
            if len(search.compared) > 1:
                label += f" ({under})"
            colour = SERIES[COLOURS[names[0]]]
            ax.plot([mark], [hit_rate], "o", color=colour, markersize=6, label=label)
        ax.set_ylim(0, 1.05)
        ax.set_xlim(left=0, right=end)
        ax.xaxis.set_major_locator(FixedLocator(byte_ticks(ax.get_xlim()[1])))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        ax.set_xlabel("max_size")
        if marks or len(search.compared) > 1:
            legend(ax, columns=3 if width > WIDTH else 1)

    return draw(name, plot, height, width)
