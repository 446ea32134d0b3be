"""What importing costs beyond what it needs anyway, each time in a new process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from .harness import Report

TIMED = """
import time
began = time.perf_counter()
import {}
print((time.perf_counter() - began) * 1e3)
"""
NEEDED, OURS = "trio, wasmtime, structlog", "trio_wasmcache"
# What is imported when it is needed, a program that opens a cache does need.
OPENED = "trio_wasmcache; trio_wasmcache.open_cache, trio_wasmcache.HostFunction"


def import_ms(what: str) -> float:
    """Milliseconds."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(what)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


async def run(report: Report, quick: bool) -> None:
    taken: dict[str, list[float]] = {NEEDED: [], OURS: [], OPENED: []}
    for _ in range(1 if quick else 15):
        for what, times in taken.items():
            times.append(import_ms(what))
    ms = {what: statistics.median(times) for what, times in taken.items()}
    report.add(f"import {NEEDED}", ms[NEEDED], "ms")
    report.add(f"import {OURS}", ms[OURS], "ms")
    report.add("import, and all that opening needs", ms[OPENED], "ms")
    report.add("import: ours / what it needs", ms[OURS] / ms[NEEDED], "", at_most=1.15)
    report.add("with all that opening needs / that", ms[OPENED] / ms[NEEDED], "")
