"""The page of ``tune``: the hit rate by size as a curve, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter

from ..reading.units import rate, seconds, size
from ..tuning.advice import Advice
from ..tuning.curve import Curve
from ..tuning.tuning import Tuner
from .charts import SERIES, TEXT, Chart, byte_ticks, draw
from .page import Section, Table, render


def tuning_page(tuner: Tuner, curve: Curve, advice: Advice, notes: Sequence[str]) -> str:
    """The page of a tuning."""
    assert tuner.limits is not None
    knee = curve.knee()
    texts = [advice.sentence, *([] if advice.verdict is None else [advice.verdict])]
    chart = curve_chart(curve, advice, tuner.limits["max_size"])
    rows = [
        (size(point.max_size), rate(point.hit_rate), seconds(point.load_seconds))
        for point in curve.points()[::10]
    ]
    section = Section(
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
        charts=[Chart("curve", "Hit rate by max_size", chart)],
        tables=[Table("The curve", ("max_size", "hit rate", "loads cost"), rows)],
    )
    timeout = seconds(min(math.inf, curve.timeout))
    return render(
        "How large the instance cache should be",
        f"Idle instances going after {timeout}",
        notes,
        [section],
    )


def curve_chart(curve: Curve, advice: Advice, now: int) -> str:
    """The hit rate by size, with its knee, the size now, and the one advised."""

    def plot(ax: Axes) -> None:
        marks = [(curve.knee(), "knee", 1), (now, "now", 4), (advice.max_size, "advised", 2)]
        points = curve.points([mark for mark, _, _ in marks if mark >= curve.smallest])
        ax.plot(
            [point.max_size for point in points],
            [point.hit_rate for point in points],
            color=SERIES[0],
            linewidth=1.8,
            drawstyle="steps-post",
        )
        for number, (mark, name, colour) in enumerate(marks):
            if mark < curve.smallest:
                continue
            rate = curve.at(mark).hit_rate
            ax.plot([mark], [rate], "o", color=SERIES[colour], markersize=6, label=name)
            ax.annotate(
                f"{name}: {size(mark)}, {rate:.1%}",
                (mark, rate),
                xytext=(8, -12 - 12 * number),
                textcoords="offset points",
                fontsize=8,
                color=TEXT,
                annotation_clip=False,
            )
        ax.set_ylim(0, 1.05)
        ax.set_xlim(left=0, right=1.25 * max(point.max_size for point in points))
        ax.xaxis.set_major_locator(FixedLocator(byte_ticks(ax.get_xlim()[1])))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        ax.set_xlabel("max_size")

    return draw("curve", plot, height=3.4)
