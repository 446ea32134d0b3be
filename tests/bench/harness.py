"""Measuring side by side: candidates take turns within one run, and ratios of medians are told.

This machine is shared and its clock speed wanders, so a figure means something only beside another
one taken in the same breath. Nothing here asserts a time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
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


@define
class Report:
    """All lines of a run."""

    results: list[Result] = Factory(list)

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
            bar, met = f"{between[0]:g} to {between[1]:g}", between[0] <= value <= between[1]
        self.results.append(Result(name, value, unit, bar, met, note))
        verdict = "" if met is None else ("  ok" if met else "  MISSED")
        print(f"{name:58} {value:10.3f} {unit:6} {bar:12}{verdict}  {note}", flush=True)


async def interleave(
    candidates: dict[str, Callable[[int], Awaitable[None]]], number: int, rounds: int
) -> dict[str, float]:
    """{name: median microseconds of one of the `number` repetitions that each candidate makes}."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            began = time.perf_counter()
            await candidate(number)
            times[name].append((time.perf_counter() - began) / number * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` (0 to 1) of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
