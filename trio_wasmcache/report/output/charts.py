"""Charts as SVG that takes its colours from the page, so that one picture fits light and dark.

matplotlib uses stand-in colours, which become CSS variables afterwards: ``var(--text)`` and so on.
The page defines them. The only parts of a log in a picture are numbers and cut names, as text that
is not interpreted.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from attrs import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator

from ..reading.documents import Document
from ..reading.notes import cite
from ..reading.units import MAX_MOMENT, moment, seconds, short, size
from ..summary.summary import OTHER, REASONS

TEXT, MUTED, GRID = "#010203", "#020304", "#030405"
HITS, MISSES, LIMIT = "#040506", "#050607", "#060708"
SERIES = [f"#0a0b{number:02x}" for number in range(len(REASONS) + 1)]
_VARIABLES = {
    TEXT: "var(--text)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    HITS: "var(--hit)",
    MISSES: "var(--miss)",
    LIMIT: "var(--limit)",
    **{stand_in: f"var(--c{number})" for number, stand_in in enumerate(SERIES)},
}
REASON_COLOURS = dict(zip((*REASONS, OTHER), SERIES, strict=True))
LEVEL = SERIES[0]
# Inches of 72 points. The page scales pictures to their column, which is as wide as a phone (390
# pixels, less the margins) or somewhat wider, so that a point is a pixel or somewhat more.
WIDTH, HEIGHT = 4.2, 2.5
# Points; text on a page is at least 10 pixels high.
TYPE = 9.6
# Characters of names beside bars: longer ones would leave no space for the bars.
MAX_NAME = 20
# Entries in a row of a legend.
LEGEND_COLUMNS = 3
LEGEND_ROW = 0.2  # inches
# Ticks of a horizontal axis: more labels would touch.
MAX_TICKS = 5
MAX_BARS = 10
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it can be found, and takes the page's font
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "font.family": "sans-serif",
    "font.size": TYPE,
    "axes.labelsize": TYPE,
    "xtick.labelsize": TYPE,
    "ytick.labelsize": TYPE,
    "legend.fontsize": TYPE,
    "legend.columnspacing": 1.2,
    "text.color": TEXT,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "ytick.major.size": 0,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "hatch.color": GRID,
}
TIME_UNITS = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
TIME_STEPS = (1, 2, 3, 5, 6, 10, 12, 15, 20, 30, 50, 60, 100, 200, 300, 500)


@frozen
class Chart:
    """A picture and its title."""

    name: str
    title: str
    svg: str
    wide: str | None = None
    """The same picture for a wide page on which it is the only one."""


@frozen
class Times:
    """The axis of time: bins of equal width."""

    width: float
    began: str | None

    def finish(self, ax: Axes, bins: int) -> None:
        """Set ticks at round numbers, and label them."""
        end = bins * self.width
        name, unit = next((name, unit) for name, unit in TIME_UNITS if end >= 3 * unit or unit == 1)
        ax.set_xlim(0, end)
        if end >= 3 * unit:
            step = next((step for step in TIME_STEPS if end / unit / step <= MAX_TICKS), None)
            ax.xaxis.set_major_locator(
                MultipleLocator(unit * step) if step else MaxNLocator(MAX_TICKS)
            )
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,g}"))
        since = "the first event" if self.began is None else cite(moment(self.began), MAX_MOMENT)
        ax.set_xlabel(f"{name} since {since}")


def charts_of(cache: Document, prefix: str) -> list[Chart]:
    """Draw the charts of one cache of a report's document; `prefix` makes their ids unique."""
    points = cache["over_time"]["points"]
    times = Times(cache["over_time"]["width_seconds"], cache["began"])
    limits, paid = cache["limits"], cache["reloads"]["by_reason"]
    made: list[Chart] = []

    def add(name: str, title: str, plot: Callable[[Axes], None], height: float = HEIGHT) -> None:
        made.append(Chart(name, title, draw(f"{prefix}-{name}", plot, height)))

    if "size" in points:
        limit, code_limit = limits.get("max_size_bytes"), limits.get("max_code_size_bytes")
        add("size", "Size of idle instances", lambda ax: _level(ax, points["size"], times, limit))
        add(
            "code",
            "Code of loaded modules, stacks of running instances",
            lambda ax: _level(ax, points["code"], times, code_limit),
        )
    layers = [
        (reason, points[f"evicted {reason}"], colour)
        for reason, colour in REASON_COLOURS.items()
        if f"evicted {reason}" in points
    ]
    if layers:
        height = HEIGHT + _legend_height(len(layers))
        add("evictions", "Evictions by reason", lambda ax: _stacked(ax, times, layers), height)
    if any(points.get("hits", ())) or any(points.get("misses", ())):
        leases = [("hits", points["hits"], HITS), ("misses", points["misses"], MISSES)]
        add("leases", "Leases: hits and misses", lambda ax: _stacked(ax, times, leases))
    for what in ("function", "group"):
        rows = [row for row in cache[f"{what}s"] if row["evictions"]]
        rows = sorted(rows, key=lambda row: -row["evictions"])[:MAX_BARS]
        reasons = len({reason for row in rows for reason in row["by_reason"]})
        if len(rows) > 1 or (rows and what == "function"):
            add(
                f"{what}s",
                f"Evictions by {what}",
                lambda ax, rows=rows, what=what: _ranking(ax, rows, what),  # type: ignore[misc]
                max(HEIGHT, 0.9 + 0.24 * len(rows) + _legend_height(reasons)),
            )
    if paid:
        add("paid", "Loads that evictions made necessary", lambda ax: _paid(ax, paid))
    if cache["wait_bars"]:
        add("waits", "Time to get a lease", lambda ax: _waits(ax, cache["wait_bars"]))
    return made


def _level(ax: Axes, values: Sequence[float], times: Times, limit: int | None) -> None:
    starts = [number * times.width for number in range(len(values) + 1)]
    steps = [*values, values[-1]]
    ax.fill_between(starts, steps, step="post", color=LEVEL, alpha=0.22, linewidth=0)
    ax.plot(starts, steps, drawstyle="steps-post", color=LEVEL, linewidth=1.4)
    highest = max(values) or 1
    shown = limit is not None and limit < 3 * highest
    if limit is not None and shown:
        ax.axhline(limit, color=LIMIT, linewidth=1.2, linestyle=(0, (4, 3)))
    if limit is not None:
        text = f"limit {size(limit)}" if shown else f"far below the limit of {size(limit)}"
        place = (1, limit) if shown else (1, 1)
        ax.annotate(
            text,
            place,
            xycoords=("axes fraction", "data" if shown else "axes fraction"),
            xytext=(0, 3 if shown else -3),
            textcoords="offset points",
            ha="right",
            va="bottom" if shown else "top",
            color=MUTED,
        )
    top = 1.18 * max(highest, limit if limit is not None and shown else 0)
    ax.set_ylim(0, top)
    ax.yaxis.set_major_locator(FixedLocator(byte_ticks(top)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _even(size(value))))
    times.finish(ax, len(values))


def _even(text: str) -> str:
    return text.replace(".0 ", " ")


def byte_ticks(top: float) -> list[float]:
    """Return round numbers of bytes: at most five steps from 0 to `top`."""
    step = 1.0
    while top / step > 5:
        step *= 2
    return [step * number for number in range(int(top / step) + 1)]


def _stacked(ax: Axes, times: Times, layers: Sequence[tuple[str, Sequence[float], str]]) -> None:
    layers = [layer for layer in layers if any(layer[1])]
    base = [0.0] * len(layers[0][1])
    edges = [number * times.width for number in range(len(base) + 1)]
    for name, values, colour in layers:
        top = [below + value for below, value in zip(base, values, strict=True)]
        ax.stairs(top, edges, baseline=base, fill=True, color=colour, label=name, linewidth=0)
        base = top
    ax.set_ylim(0, 1.05 * max(base))
    legend(ax)
    _counts(ax.yaxis)
    ax.set_ylabel(f"in {_even(seconds(times.width))}")
    times.finish(ax, len(base))


def _legend_height(entries: int) -> float:
    """Return the height of a legend beyond its first row (inches)."""
    return LEGEND_ROW * ((entries - 1) // LEGEND_COLUMNS)


def legend(ax: Axes, columns: int = LEGEND_COLUMNS) -> None:
    """Put a legend above a chart, with at most `columns` entries in a row."""
    figure = ax.get_figure(root=True)
    if figure is None:
        raise AssertionError("a chart outside of a figure has no place for its legend")
    figure.legend(loc="outside upper left", ncols=columns, handlelength=1, borderpad=0)


def _counts(axis: Any, ticks: int = MAX_TICKS) -> None:
    axis.set_major_locator(MaxNLocator(ticks, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def _ranking(ax: Axes, rows: Sequence[Document], what: str) -> None:
    places = range(len(rows))
    base = [0] * len(rows)
    for reason, colour in REASON_COLOURS.items():
        numbers = [row["by_reason"].get(reason, 0) for row in rows]
        if any(numbers):
            ax.barh(places, numbers, 0.7, base, color=colour, label=reason, linewidth=0)
            base = [below + number for below, number in zip(base, numbers, strict=True)]
    ax.set_yticks(places, [_cut(row[what]) for row in rows])
    ax.tick_params(axis="y", labelcolor=TEXT)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    legend(ax)
    _counts(ax.xaxis)
    ax.set_xlabel("evictions")


def _cut(name: str) -> str:
    name = cite(name)
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _paid(ax: Axes, paid: dict[str, dict[str, float]]) -> None:
    by_time = any(row["seconds"] for row in paid.values())
    measure = "seconds" if by_time else "count"
    names = sorted(paid, key=lambda name: paid[name][measure])
    values = [paid[name][measure] for name in names]
    bars = ax.barh(names, values, 0.6, color=[REASON_COLOURS[name] for name in names], linewidth=0)
    rows = [paid[name] for name in names]
    labels = [f"{short(row['count'])} loads, {seconds(row['seconds'])}" for row in rows]
    ax.bar_label(bars, labels, padding=4, color=TEXT)
    ax.tick_params(axis="y", labelcolor=TEXT)
    ax.set_xlim(0, 1.9 * max(values))
    ax.set_ylim(-0.6, max(len(names), 3) - 0.4)
    ax.grid(visible=False)
    _counts(ax.xaxis, MAX_TICKS - 2)
    ax.set_xlabel("loads")
    if by_time:
        ax.xaxis.set_major_locator(MaxNLocator(MAX_TICKS - 2, steps=[1, 2, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _even(seconds(value))))
        ax.set_xlabel("time spent on these loads")


def _waits(ax: Axes, bars: Sequence[tuple[float, int]]) -> None:
    # The first bar is for leases that did not wait; it stands apart.
    places = [0, *range(2, len(bars) + 1)]
    ax.bar(
        places,
        [number for _, number in bars],
        0.9,
        color=[HITS, *[LEVEL] * (len(bars) - 1)],
        linewidth=0,
    )
    ends = list(zip(places, bars, strict=True))[1:]
    powers_of_ten = [(place, end) for place, (end, _) in ends if f"{end:.3e}".startswith("1.000")]
    if len(powers_of_ten) < 2:
        powers_of_ten = [(place, end) for place, (end, _) in ends[:: max(1, len(ends) - 1)]]
    powers_of_ten = powers_of_ten[:: max(1, -(-len(powers_of_ten) // MAX_TICKS))]
    ticks = [(0, "at once"), *((place, _even(seconds(end))) for place, end in powers_of_ten)]
    ax.set_xticks([place + 0.5 * bool(place) for place, _ in ticks], [text for _, text in ticks])
    ax.set_yscale("symlog", linthresh=1)
    highest = max(number for _, number in bars)
    powers = [10**number for number in range(len(str(highest)))]
    ax.yaxis.set_major_locator(FixedLocator([0, *powers]))
    ax.yaxis.set_minor_locator(FixedLocator([]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.set_ylim(0, 2 * highest)
    ax.set_ylabel("leases")
    ax.set_xlabel("from asking to having it, loading included")


def draw(
    name: str, plot: Callable[[Axes], None], height: float = HEIGHT, width: float = WIDTH
) -> str:
    """Draw an SVG element.

    Args:
        name: letters and digits; makes its ids different from those of other pictures.
        plot: draws into the axes that it is given.
        height: inches.
        width: inches.
    """
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot(figure.subplots())
        out = io.StringIO()
        metadata: Any = {"Date": None, "Creator": None}
        figure.savefig(out, format="svg", transparent=True, metadata=metadata)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    svg = f"{head}>{body}"
    # Several pictures share one page, so their ids must not clash.
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg
