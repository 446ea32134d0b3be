"""Charts as SVG that takes its colours from the page, so that light and dark need only one picture.

matplotlib is given stand-in colours, which become CSS variables afterwards: ``var(--text)`` and so
on. The page says what they are.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .._core.events import Reason
from .units import seconds, size

TEXT, MUTED, GRID = "#010203", "#020304", "#030405"
SERIES = [f"#0a0b{number:02x}" for number in range(len(Reason))]
_VARIABLES = {
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{stand_in: f"var(--c{number})" for number, stand_in in enumerate(SERIES)},
}
REASON_COLOURS = {reason.value: colour for reason, colour in zip(Reason, SERIES, strict=True)}
WIDTH, HEIGHT = 7.6, 2.5  # inches; the page scales them
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
}


def charts_of(cache: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """{name: (title, SVG)} of one cache of a report's document."""
    points, width = cache["over_time"]["points"], cache["over_time"]["width_seconds"]
    limits = cache["limits"]
    made: dict[str, tuple[str, str]] = {}

    def add(name: str, title: str, plot: Callable[[Axes], None]) -> None:
        made[name] = (title, draw(f"{cache['cache']}-{name}", plot))

    if "size" in points:
        limit = limits.get("max_size_bytes")
        add("size", "Size of idle instances", lambda ax: _level(ax, points["size"], width, limit))
        limit_of_code = limits.get("max_code_size_bytes")
        add(
            "code",
            "Code of loaded modules and stacks of running instances",
            lambda ax: _level(ax, points["code"], width, limit_of_code),
        )
    reasons = [name for name in REASON_COLOURS if f"evicted {name}" in points]
    if reasons:
        add(
            "evictions",
            "Evictions by reason",
            lambda ax: _stacked(
                ax,
                width,
                [(name, points[f"evicted {name}"], REASON_COLOURS[name]) for name in reasons],
            ),
        )
    if "hits" in points:
        add(
            "leases",
            "Leases granted: hits and misses",
            lambda ax: _stacked(
                ax,
                width,
                [("hits", points["hits"], SERIES[2]), ("misses", points["misses"], SERIES[1])],
            ),
        )
    paid = cache["reloads"]["by_reason"]
    if paid:
        add("paid", "Loads that evictions made necessary", lambda ax: _paid(ax, paid))
    if cache["wait_bars"]:
        add("waits", "Time to get a lease", lambda ax: _waits(ax, cache["wait_bars"]))
    return made


def _level(ax: Axes, values: Sequence[float], width: float, limit: int | None) -> None:
    ax.fill_between(*_steps(values, width), step="post", color=SERIES[0], alpha=0.25, linewidth=0)
    ax.plot(*_steps(values, width), drawstyle="steps-post", color=SERIES[0], linewidth=1.4)
    highest = max(values, default=0)
    if limit and limit < 3 * highest:
        ax.axhline(limit, color=SERIES[3], linewidth=1, linestyle=(0, (4, 3)))
        ax.annotate(
            f"limit: {size(limit)}",
            (1, limit),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=MUTED,
        )
    ax.set_ylim(bottom=0, top=1.15 * max(highest, limit if limit and limit < 3 * highest else 1))
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 4, 5, 8, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    _time_axis(ax, len(values) * width)


def _stacked(ax: Axes, width: float, layers: Sequence[tuple[str, Sequence[float], str]]) -> None:
    base = [0.0] * len(layers[0][1])
    starts = [number * width for number in range(len(base))]
    for name, values, colour in layers:
        ax.bar(
            starts, values, width, bottom=base, color=colour, label=name, align="edge", linewidth=0
        )
        base = [below + value for below, value in zip(base, values, strict=True)]
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=5, fontsize=8, handlelength=1)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.set_ylabel(f"in {seconds(width)}")
    _time_axis(ax, len(base) * width)


def _paid(ax: Axes, paid: dict[str, dict[str, float]]) -> None:
    names = sorted(paid, key=lambda name: (paid[name]["seconds"], paid[name]["count"]))
    by_time = any(paid[name]["seconds"] for name in names)
    measure = "seconds" if by_time else "count"
    bars = ax.barh(
        names,
        [paid[name][measure] for name in names],
        color=[REASON_COLOURS.get(name, MUTED) for name in names],
        height=0.6,
    )
    labels = [f"{paid[name]['count']:,} loads, {seconds(paid[name]['seconds'])}" for name in names]
    ax.bar_label(bars, labels, padding=4, fontsize=8, color=TEXT)
    ax.set_xlim(right=1.3 * max(paid[name][measure] for name in names))
    ax.grid(False)
    ax.set_xlabel("seconds spent loading again" if by_time else "loads")


def _waits(ax: Axes, bars: Sequence[tuple[float, int]]) -> None:
    labels = [f"≤ {seconds(end)}" if end else "at once" for end, _ in bars]
    places = range(len(bars))
    ax.bar(places, [number for _, number in bars], color=SERIES[0], width=0.9, linewidth=0)
    shown = [place for place in places if place == 0 or (len(bars) - 1 - place) % 5 == 0]
    ax.set_xticks(shown, [labels[place] for place in shown])
    ax.set_yscale("symlog", linthresh=1)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_ylabel("leases")


def _steps(values: Sequence[float], width: float) -> tuple[list[float], list[float]]:
    times = [number * width for number in range(len(values) + 1)]
    return times, [*values, values[-1] if values else 0.0]


def _time_axis(ax: Axes, end: float) -> None:
    unit, name = next(
        (unit, name)
        for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
        if end >= 3 * unit or unit == 1
    )
    ax.set_xlim(0, end)
    ax.xaxis.set_major_locator(
        mpl.ticker.MultipleLocator(unit * max(1, round(end / unit / 8)))
        if end >= 4 * unit
        else MaxNLocator(8)
    )
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    ax.set_xlabel(f"{name} since the first event")


def draw(name: str, plot: Callable[[Axes], None], height: float = HEIGHT) -> str:
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        plot(figure.subplots())
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    # Several pictures share one page, so their names must not clash.
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
