"""The other half of the log tool on a log of a million events: replay, what if, and tune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .harness import Report

Tool = Callable[..., tuple[float, float]]


def measure(report: Report, log: Path, run_tool: Tool, quick: bool) -> None:
    """Each command in a process of its own. A replay that disagrees with the log fails.

    Args:
        run_tool: gives (seconds, MiB at most) of a command.
    """
    for what, arguments in (
        ("tune", ["tune", "--target-hit-rate", "0.9"]),
        ("tune, the curve alone", ["tune", "--no-check"]),
        ("replay", ["replay"]),
        ("whatif, two settings", ["whatif", "--max-size", "32MiB"]),
    )[: 1 if quick else None]:
        seconds, memory = run_tool(*arguments, log)
        report.add(what, seconds, "s", at_most=60)
        report.add(f"{what}: memory", memory, "MiB", at_most=1024)
