"""Measuring side by side: candidates take turns within one run, and ratios of medians are told.

This machine is shared and its clock speed wanders, so a figure means something only beside another
one taken in the same breath. Nothing here asserts a time.

`interleave` measures in the way of `WAY`: times, times after other work has filled the processor's
caches (``--slow``), or instructions, in a process under valgrind (``--instructions``).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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


# Bytes that are copied before each turn with ``--slow``: more than the caches of a core hold.
SPILL = 8 * 1024 * 1024
# Repetitions in such a turn: after some of them, all would be in the caches again.
SLOW_REPETITIONS = 3
# Repetitions before instructions are counted, as the interpreter rewrites its code at first.
WARM_UP = 60
BY_INSTRUCTIONS = ", by instructions"


class Counting(Protocol):
    """Counts instructions: see `instructions.Callgrind`."""

    def count(self) -> int:
        """Return the number of instructions since the last time."""


@define
class Way:
    """How `interleave` measures."""

    slow: bool = False
    counting: Counting | None = None


WAY = Way()


def cores() -> list[int]:
    """Return the cores on which this process may run; none if the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def run_on(which: Iterable[int]) -> None:
    """Have all threads of this process run on these cores, and those that they start."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(int(thread.name), which)


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
    python: str = ""
    """Version of Python, if it is not that of the command itself."""

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
        instructions_at_most: float | None = None,
        note: str = "",
    ) -> None:
        """Add a row; instructions have a bar of their own, and only ratios of them are shown."""
        if WAY.counting is not None:
            if unit:
                return
            name, note = name + BY_INSTRUCTIONS, ""
            at_most, at_least, between = instructions_at_most, None, None
        bar, met = "", None
        if at_most is not None:
            bar, met = f"<= {at_most:g}", value <= at_most
        if at_least is not None:
            bar, met = f">= {at_least:g}", value >= at_least
        if between is not None:
            bar, met = f"{between[0]:g}-{between[1]:g}", between[0] <= value <= between[1]
        self.take(Result(name, value, unit, bar, met, note, self.suite))

    def extend(self, results: Iterable[Result]) -> None:
        """Add rows, of another process maybe, and show them."""
        for result in results:
            self.take(result)

    def take(self, result: Result) -> None:
        """Add a row, and show it."""
        self.results.append(result)
        print(result, flush=True)
        if len(result.name) > NAME:
            print(f"  ({result.name})")
        if result.note:
            print(f"  {result.note}")


def medians(runs: Sequence[Sequence[Result]]) -> list[Result]:
    """Of each row the one with the median value, with its verdict and note."""
    rows = zip(*runs, strict=True)
    return [sorted(row, key=lambda result: result.value)[len(row) // 2] for row in rows]


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


@functools.cache
def _spill() -> tuple[bytearray, bytearray, str]:
    return bytearray(SPILL), bytearray(SPILL), Path(__file__).read_text()


def evict_caches() -> None:
    """Fill the caches of the processor, with data and with code of the interpreter's."""
    here, there, text = _spill()
    here[:] = there
    compile(ast.parse(text), "harness", "exec")


async def _count(
    candidates: Mapping[str, Candidate | tuple[Candidate, int]], number: int, counting: Counting
) -> dict[str, float]:
    """{name: instructions of one repetition}; the suite's repetitions, or enough to be warm."""
    counted = {}
    for name, given in candidates.items():
        candidate, n = given if isinstance(given, tuple) else (given, number)
        n = max(n, WARM_UP)
        gc.collect()
        gc.disable()  # a collection more or less would be told as a difference
        await candidate(n)
        counting.count()
        await candidate(n)
        counted[name] = counting.count() / n
        gc.enable()
    return counted


async def interleave(
    candidates: Mapping[str, Candidate | tuple[Candidate, int]],
    number: int,
    rounds: int,
    *,
    warmed: bool = False,
) -> dict[str, float]:
    """{name: median microseconds (or instructions) of one repetition that each candidate makes}.

    Args:
        candidates: with a number of their own where they are slow.
        number: repetitions in a round.
        warmed: whether a repetition that is not measured comes before them, unless they are slow.
    """
    if WAY.counting is not None:
        return await _count(candidates, number, WAY.counting)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, given in candidates.items():
            candidate, n = given if isinstance(given, tuple) else (given, number)
            if WAY.slow:
                n = min(n, SLOW_REPETITIONS)
                evict_caches()
            elif warmed:
                await candidate(1)
            began = time.perf_counter()
            await candidate(n)
            times[name].append((time.perf_counter() - began) / n * 1e6)
    return {name: statistics.median(taken) for name, taken in times.items()}


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` (0 to 1) of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
