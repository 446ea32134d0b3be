"""The page of ``tune``: the hit rate by size as a curve, and the advice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from ..reading.units import rate, seconds, size
from ..tuning.advice import Advice, marks_of, rows_of
from ..tuning.curve import Curve
from ..tuning.tuning import Tuner
from .charts import SERIES, WIDTH, Chart, byte_ticks, draw, legend
from .page import PageSection, Table, render

# Inches; see `charts.WIDTH`. On a wide page, a single picture takes the full width.
WIDE, HEIGHT = 11.0, 3.6
COLOURS = {"now": 4, "knee": 1, "advised": 2}


def tuning_page(tuner: Tuner, curve: Curve, advice: Advice, notes: Sequence[str]) -> str:
    """Return the page of a tuning."""
    knee = curve.knee()
    texts = [advice.sentence, *([] if advice.verdict is None else [advice.verdict])]
    marks = marks_of(tuner, curve, advice)
    narrow = curve_chart("curve", curve, marks, WIDTH, HEIGHT)
    wide = curve_chart("wide", curve, marks, WIDE, HEIGHT)
    rows = [
        (
            size(row.point.max_size),
            rate(row.point.hit_rate),
            seconds(row.point.load_seconds),
            ", ".join(row.marks),
        )
        for row in rows_of(tuner, curve, advice)
    ]
    section = PageSection(
        "Hit rate by size",
        facts=[
            (rate(advice.hit_rate), f"hits, of {tuner.leases:,} leases, as advised"),
            (rate(tuner.hits / tuner.leases), "hits in the log"),
            (size(advice.max_size), "max_size, as advised"),
            (size(tuner.limits["max_size"]), "max_size in the log"),
            (size(knee), "the knee: more begins to buy less"),
            (seconds(advice.idle_timeout), "idle_timeout, as advised"),
        ],
        texts=texts,
        code=advice.line,
        charts=[Chart("curve", "Hit rate by max_size", narrow, wide)],
        tables=[Table("The curve", ("max_size", "hit rate", "loads cost", ""), rows, marked=3)],
    )
    timeout = seconds(min(math.inf, curve.timeout))
    return render(
        "How large the instance cache should be",
        f"Idle instances going after {timeout}",
        notes,
        [section],
    )


def curve_chart(
    name: str, curve: Curve, marks: Mapping[int, Sequence[str]], width: float, height: float
) -> str:
    """Draw the hit rate by size, with the marked sizes; `width` and `height` in inches."""

    def plot(ax: Axes) -> None:
        points = curve.points([*marks])
        ax.plot(
            [point.max_size for point in points],
            [point.hit_rate for point in points],
            color=SERIES[0],
            linewidth=1.8,
            drawstyle="steps-post",
        )
        # Named in the legend, where labels of close sizes can't overlap.
        for mark, names in marks.items():
            hit_rate = curve.at(mark).hit_rate
            label = f"{', '.join(names)}: {size(mark)}, {rate(hit_rate)}"
            colour = SERIES[COLOURS[names[0]]]
            ax.plot([mark], [hit_rate], "o", color=colour, markersize=6, label=label)
        ax.set_ylim(0, 1.05)
        ax.set_xlim(left=0, right=1.05 * max(point.max_size for point in points))
        ax.xaxis.set_major_locator(FixedLocator(byte_ticks(ax.get_xlim()[1])))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        ax.set_xlabel("max_size")
        if marks:
            legend(ax, columns=len(marks) if width > WIDTH else 1)

    return draw(name, plot, height, width)
