"""The ratios of a run as a picture: how far each is from its bar."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from .harness import Result, machine


def available() -> bool:
    """Whether there is matplotlib to draw with."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(results: Sequence[Result], path: Path) -> None:
    """One bar for each figure that has a limit, as a part of that limit; the suffix says how."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    # A hair's breadth, where a figure is 0 or less.
    limited = [result for result in results if result.bar.startswith("<= ")]
    parts = [max(1e-3, result.value / float(result.bar[3:])) for result in limited]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.28 * len(limited)), layout="constrained")
    colours = ["tab:green" if result.met else "tab:red" for result in limited]
    axes.barh(range(len(limited)), parts, color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(limited)), [result.name for result in limited], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("figure / limit (left of the line is within it)")
    axes.set_title(machine(), fontsize=9)
    figure.savefig(path)
    plt.close(figure)
