"""Measuring side by side: candidates take turns within one run, and ratios of medians are told.

This machine is shared and its clock speed wanders, so a figure means something only beside another
one taken in the same breath. Nothing here asserts a time.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, define

FIB = """(module
  (func $fib (export "fib") (param i64) (result i64)
    (if (result i64) (i64.lt_s (local.get 0) (i64.const 2))
      (then (local.get 0))
      (else (i64.add (call $fib (i64.sub (local.get 0) (i64.const 1)))
                     (call $fib (i64.sub (local.get 0) (i64.const 2)))))))
  (func (export "same") (param i64) (result i64) (local.get 0))
  (func (export "forever") (loop (br 0))))"""

# A line is 80 columns: name, value, unit, bar, verdict.
NAME, VALUE, UNIT, BAR = 48, 9, 6, 8


class SilentLogger:
    """A structlog logger that writes nothing."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = info


@define
class Result:
    """One line of the table."""

    name: str
    value: float
    unit: str
    bar: str = ""
    met: bool | None = None
    note: str = ""
    suite: str = ""

    @property
    def verdict(self) -> str:
        """What is said beside the bar."""
        return "" if self.met is None else "PASS" if self.met else "MISSED"

    def __str__(self) -> str:
        name = self.name if len(self.name) <= NAME else self.name[: NAME - 3] + "..."
        figures = f"{shown(self.value):>{VALUE}} {self.unit:{UNIT}} {self.bar:{BAR}}"
        return f"{name:{NAME}}{figures} {self.verdict}".rstrip()


@define
class Report:
    """All lines of a run."""

    results: list[Result] = Factory(list)
    suite: str = ""

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        between: tuple[float, float] | None = None,
        note: str = "",
    ) -> None:
        bar, met = "", None
        if at_most is not None:
            bar, met = f"<= {at_most:g}", value <= at_most
        if at_least is not None:
            bar, met = f">= {at_least:g}", value >= at_least
        if between is not None:
            bar, met = f"{between[0]:g}-{between[1]:g}", between[0] <= value <= between[1]
        result = Result(name, value, unit, bar, met, note, self.suite)
        self.results.append(result)
        print(result, flush=True)
        if len(name) > NAME:
            print(f"  ({name})")
        if note:
            print(f"  {note}")


def shown(value: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine() -> str:
    """The kind of machine this is; nothing that tells which one."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        model = named[0] if named else model
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {sys.platform}, {python}"


Candidate = Callable[[int], Awaitable[None]]


async def interleave(
    candidates: Mapping[str, Candidate | tuple[Candidate, int]], number: int, rounds: int
) -> dict[str, float]:
    """{name: median microseconds of one of the repetitions that each candidate makes}.

    Args:
        candidates: with a number of their own where they are slow.
        number: repetitions in a round.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, given in candidates.items():
            candidate, n = given if isinstance(given, tuple) else (given, number)
            began = time.perf_counter()
            await candidate(n)
            times[name].append((time.perf_counter() - began) / n * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` (0 to 1) of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
