"""What may not drift: memory of the process, and what is left once everything has been removed."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from trio_wasmcache import CacheStats
from trio_wasmcache._engine.wasmtime.hosts import INSTANCES
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache._engine.wasmtime.module import WasmtimeModule

MIB = 1024 * 1024
# RSS may grow by so much, along the line that fits best, from the end of the warm-up to the last
# look. The longer a soak, the smaller a leak that it sees: 1.5 MiB a minute in 10 minutes, 13 KiB a
# minute in 16 hours.
GROWTH = 8 * MIB
# The first third of all looks is the warm-up; with fewer than these after it, nothing is said.
LOOKS = 5
# Threads of Trio's that wait for work have such names; those that work, their work's.
IDLE_THREAD = "Trio thread"


def rss() -> int:
    """Of this process (bytes)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def quiet_rss() -> int:
    """The same without what Python and glibc keep of what was freed: some MiB, and it varies."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return rss()


def growth(looks: Sequence[tuple[float, float]]) -> float | None:
    """By how much the best line through (time, value) rises after the warm-up; None: too few."""
    warm = looks[len(looks) // 3 :]
    if len(warm) < LOOKS:
        return None
    times, values = zip(*warm, strict=True)
    time, value = sum(times) / len(times), sum(values) / len(values)
    slope = sum((t - time) * (v - value) for t, v in warm) / sum((t - time) ** 2 for t in times)
    return slope * (times[-1] - times[0])


def drifts(looks: Sequence[tuple[float, float]], most: float = GROWTH) -> str | None:
    """What to say of it if it grew by more than `most`."""
    grown = growth(looks)
    if grown is None or grown <= most:
        return None
    values = ", ".join(f"{value / MIB:.0f}" for _, value in looks)
    return f"RSS grew by {grown / MIB:.1f} MiB after the warm-up, at most {most / MIB:g}: {values}"


def books_left(stats: CacheStats) -> list[str]:
    """What is not zero though every function was removed and nobody runs."""
    names = (
        *("functions", "entries", "idle_instances", "running_instances", "waiting"),
        *("loaded_modules", "total_size", "running_size", "scratch_size", "results_size"),
        "pending_results_size",
        *("code_size", "artifact_size", "accounted_size"),
    )
    values = {name: getattr(stats, name) for name in names}
    return [f"{name} is {value}" for name, value in values.items() if value]


def handles_left() -> list[str]:
    """Instances and modules with something native that was never closed."""
    gc.collect()
    found = gc.get_objects()
    stores = sum(type(one) is WasmtimeInstance and one._store != 0 for one in found)
    modules = sum(type(one) is WasmtimeModule and bool(one.engine) for one in found)
    left = {"instances": len(INSTANCES), "open stores": stores, "open modules": modules}
    return [f"{number} {what}" for what, number in left.items() if number]


def code_mappings() -> int:
    """Mappings of machine code that belong to no file: each loaded module has one."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return sum("x" in line[1] and len(line) == 5 for line in lines)


def busy_threads() -> set[str]:
    """Threads that do something: all but this one, and those of Trio's that wait for work."""
    own = threading.current_thread()
    return {
        thread.name
        for thread in threading.enumerate()
        if thread is not own and not thread.name.startswith(IDLE_THREAD)
    }
