"""A trace of requests: what each policy does with it, and the log of a cache that serves it.

`python -m tests.bench.trace FILE` takes a CSV file with the columns time (seconds), function, size
(bytes) and cost (seconds of loading); or a sample of the Azure Functions trace of 2019, as three
files `..._inv.csv`, `..._mem.csv` and `..._run.csv`, of which the first is named. Without a file it
draws a trace of the same shape. `--idle` compares idle timeouts instead. `--log LOG` lets a cache
serve it, too, which takes a millisecond a request, and writes its log, for `tune` and `whatif`.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import trio
from trio.testing import MockClock

from trio_wasmcache import CacheConfig, CacheStats, KiB, MiB
from trio_wasmcache._core.config import PolicyName
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from .harness import Report
from .log import run_tool

if TYPE_CHECKING:
    from trio_wasmcache.report.tuning.trace import Trace

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
PAGE = 64 * KiB
GiB = 1024 * MiB
ARGS = ("i64",)
# Parts of the working set, which is the size of all functions together.
PARTS = (0.05, 0.1, 0.2, 0.4)
# Of the Azure trace: a MB of its functions is a page here, and a second of their cold starts a
# millisecond. At most so many requests a minute, spread over it, as there are no times within.
AZURE_SECOND = 0.001
AZURE_PER_MINUTE = 1
# Idle timeouts that are compared (seconds), and the longest adaptive ones.
FIXED = (60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 14_400.0)
LONGEST = (300.0, 600.0, 1800.0, 3600.0)


class Row(NamedTuple):
    """One request."""

    time: float
    function: str
    pages: int
    cost: float


# -- where traces come from


def read(path: Path) -> list[Row]:
    """The rows of a file, in order of time."""
    if path.name.endswith("_inv.csv"):
        return sorted(_azure(path))
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        return sorted(
            Row(
                float(row["time"]),
                row["function"],
                max(1, math.ceil(float(row["size"]) / PAGE)),
                float(row["cost"]),
            )
            for row in rows
        )


def _azure(path: Path) -> Iterator[Row]:
    def table(kind: str) -> list[dict[str, str]]:
        with path.with_name(path.name.replace("_inv", f"_{kind}")).open(newline="") as file:
            return list(csv.DictReader(file))

    memory = {(row["HashOwner"], row["HashApp"]): row for row in table("mem")}
    runs = {row["HashFunction"]: row for row in table("run")}
    random = Random(7)
    for number, row in enumerate(table("inv")):
        used, run = memory.get((row["HashOwner"], row["HashApp"])), runs.get(row["HashFunction"])
        if used is None or run is None:
            continue
        pages = max(1, round(float(used["AverageAllocatedMb"])))
        # What a cold start takes is not in the trace: the longest run less the average one.
        cold = (float(run["Maximum"]) - float(run["Average"])) / 1000
        cost = min(60.0, max(0.01, cold)) * AZURE_SECOND
        for minute in range(1440):
            count = min(int(float(row[f"minute_{minute + 1}"] or 0)), AZURE_PER_MINUTE)
            offset = random.random()
            for each in range(count):
                yield Row(60 * (minute + (each + offset) / count), f"f{number}", pages, cost)


def draw(functions: int, hours: float, seed: int = 1) -> list[Row]:
    """A trace of that shape, by the figures of the Azure sample.

    The logarithm of a function's rate is even, from one use in two days to one a minute; most uses
    are periodic, some by chance. Sizes differ by a factor of ten, costs by one of thousands, and
    neither has to do with the other or with the rate.
    """
    random = Random(seed)
    rows = []
    for number in range(functions):
        period = max(60.0, 2 * 86_400 / 6000 ** random.random())
        pages = max(1, round(random.lognormvariate(3.0, 0.9)))
        cost = min(0.06, max(1e-5, random.lognormvariate(-6.5, 3.4)))
        by_chance = random.random() < 0.3
        time = random.random() * period
        while time < hours * 3600:
            rows.append(Row(time, f"f{number}", pages, cost))
            time += period * (random.expovariate(1) if by_chance else random.uniform(0.98, 1.02))
    return sorted(rows)


def size_of(row: Row) -> int:
    """Bytes of an instance: its memory, and a page for the rest."""
    return (row.pages + 1) * PAGE


def working_set(rows: Iterable[Row]) -> int:
    """Bytes of all functions together."""
    return sum(map(size_of, {row.function: row for row in rows}.values()))


# -- what a cache does with one


def config_for(rows: list[Row], **limits: Any) -> CacheConfig:
    """A configuration in which nothing but what is asked for limits the cache."""
    return CacheConfig(
        **{
            "max_size": working_set(rows) // 10,
            "idle_timeout": 600.0,
            "max_instance_size": 64 * GiB,
            "max_code_size": 64 * GiB,
            "memory_limit": 4 * GiB,
            "max_running_size": None,
            "max_instances": 16384,
            "main_capacity": 16384,
            "offload_after": None,
            "log_uses": True,
            **limits,
        }
    )


class FileLogger:
    """Writes lines as JSONRenderer does; to nowhere without a file."""

    def __init__(self, path: Path | None) -> None:
        self.file = None if path is None else path.open("w", encoding="utf-8")

    def info(self, event: str, **fields: Any) -> None:
        if self.file is not None:
            self.file.write(f"{json.dumps({**fields, 'event': event})}\n")

    warning = info


def serve(rows: list[Row], config: CacheConfig, log: Path | None = None) -> CacheStats:
    """Let a cache serve the trace, on a clock that jumps; return what it counted at the end."""
    logger = FileLogger(log)
    stats: CacheStats = trio.run(
        _serve, rows, config, logger, clock=MockClock(autojump_threshold=0)
    )
    if logger.file is not None:
        logger.file.close()
    return stats


async def _serve(rows: list[Row], config: CacheConfig, logger: FileLogger) -> CacheStats:
    engine = FakeEngine()
    async with open_fake_cache(config, engine=engine, logger=logger) as cache:
        known = {row.function: row for row in rows}
        for name, row in known.items():
            wasm = engine.module(memory_pages=row.pages, start_seconds=row.cost)
            await cache.register(name, wasm, args=ARGS, returns="i64", export="run")

        async def use(name: str) -> None:
            async with cache.acquire(name, ARGS):
                pass

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for row in rows:
                await trio.sleep_until(began + row.time)
                nursery.start_soon(use, row.function)
        return cache.stats()


# -- the table


class Figure(NamedTuple):
    """What a policy does at a part of the working set."""

    policy: PolicyName
    part: float
    loads: int
    seconds: float


def packed(rows: list[Row]) -> Trace:
    """The trace as trials read it."""
    from trio_wasmcache.report.tuning.trace import Op, Trace

    trace = Trace()
    numbers: dict[str, int] = {}
    for row in rows:
        number = numbers.setdefault(row.function, len(numbers))
        trace.know(row.function, row.function, number, number)
        trace.note_load(number, True, row.cost)
        run = trace.begin(Op.TAKE, row.function, row.time, row.cost, True)
        trace.end(Op.REST, row.function, row.time, run, size_of(row))
    return trace.packed()


def compare(rows: list[Row], parts: Iterable[float] = PARTS) -> list[Figure]:
    """Loads and seconds of loading under each policy at parts of the working set, by trials."""
    from trio_wasmcache.report.tuning.trial import Settings
    from trio_wasmcache.report.tuning.trials import Trials

    whole = working_set(rows)
    with Trials([packed(rows)]) as trials:
        wanted = {
            Settings(policy, int(whole * part), math.inf): part
            for policy in POLICIES
            for part in parts
        }
        return [
            Figure(it.settings.policy, wanted[it.settings], it.misses, it.load_seconds)
            for it in trials.run(wanted)
        ]


class Kept(NamedTuple):
    """What an idle timeout does, with room for everything."""

    timeout: float
    """Seconds; of an adaptive one, the longest."""
    adaptive: bool
    loads: int
    memory: float
    """Bytes of idle instances, on average."""


def keep(rows: list[Row], longest: Iterable[float] = LONGEST) -> list[Kept]:
    """Loads and memory with fixed timeouts, and with adaptive ones up to each of `longest`."""
    from trio_wasmcache.report.tuning.trial import Settings
    from trio_wasmcache.report.tuning.trials import Trials

    everything = 2 * working_set(rows)
    fixed = [Settings("lru", everything, timeout) for timeout in FIXED]
    learned = [Settings("lru", everything, "adaptive", 1.0, most) for most in longest]
    which = [False] * len(fixed) + [True] * len(learned)
    span = rows[-1].time - rows[0].time
    with Trials([packed(rows)]) as trials:
        return [
            Kept(
                it.settings.max_idle_timeout if adaptive else float(it.settings.idle_timeout),
                adaptive,
                it.misses,
                it.idle_byte_seconds / span,
            )
            for it, adaptive in zip(trials.run([*fixed, *learned]), which, strict=True)
        ]


def loads_of_a_fixed_one(kept: list[Kept], memory: float) -> float:
    """The loads of the fixed timeout that takes so much memory, between the two nearest ones."""
    fixed = sorted(it for it in kept if not it.adaptive)
    for less, more in itertools.pairwise(fixed):
        if less.memory <= memory <= more.memory:
            part = (memory - less.memory) / (more.memory - less.memory)
            return less.loads ** (1 - part) * more.loads**part
    return math.nan


def show_kept(kept: list[Kept]) -> None:
    """Print a row for each timeout."""
    print("idle timeout         loads  GiB on average")
    for it in kept:
        what = f"adaptive, to {it.timeout:,.0f} s" if it.adaptive else f"{it.timeout:,.0f} s"
        text = f"{what:18} {it.loads:7,} {it.memory / GiB:8.3f}"
        if it.adaptive:
            fixed = loads_of_a_fixed_one(kept, it.memory)
            text += f"   a fixed one loads {fixed / it.loads:.2f} times as often in that memory"
        print(text)


def show(figures: list[Figure]) -> None:
    """Print a row for each policy."""
    parts = sorted({figure.part for figure in figures})
    print("policy  " + "".join(f"{part:>9.0%} loads  seconds" for part in parts))
    for policy in POLICIES:
        mine = sorted((it for it in figures if it.policy == policy), key=lambda it: it.part)
        print(f"{policy:8}" + "".join(f"{it.loads:15,} {it.seconds:8,.1f}" for it in mine))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trace", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a CSV file; without one, a drawn trace")
    parser.add_argument("--log", type=Path, help="keep the log there")
    parser.add_argument("--limit", type=int, help="at most so many requests, the first ones")
    parser.add_argument("--idle", action="store_true", help="compare idle timeouts instead")
    options = parser.parse_args()
    rows = read(options.file) if options.file else draw(1000, 24)
    rows = rows[: options.limit]
    if not rows:
        sys.exit("the trace has no requests")
    whole = working_set(rows)
    print(f"{len({row.function for row in rows}):,} functions of {whole / GiB:.1f} GiB together")
    print(f"{len(rows):,} requests in {rows[-1].time / 3600:.1f} hours", flush=True)
    if options.idle:
        show_kept(keep(rows))
    else:
        show(compare(rows))
    if options.log:
        serve(rows, config_for(rows), options.log)


async def run(report: Report, quick: bool) -> None:
    rows = draw(*((150, 3, 2) if quick else (1000, 24)))
    figures = {it.policy: it for it in compare(rows, (0.1,))}
    for policy, figure in figures.items():
        report.add(f"{policy}: loads at 10 % of the working set", float(figure.loads), "")
        report.add(f"{policy}: loading", figure.seconds, "s")
    lru = figures["lru"]
    loads = lru.loads / min(it.loads for it in figures.values())
    seconds = lru.seconds / min(it.seconds for it in figures.values())
    report.add("LRU's loads, of the best policy's", loads, "times", at_least=2)
    report.add("LRU's seconds of loading, of the best policy's", seconds, "times", at_least=5)
    kept = keep(rows, (600.0,))
    (learned,) = (it for it in kept if it.adaptive)
    fixed = loads_of_a_fixed_one(kept, learned.memory)
    report.add("loads with an adaptive timeout up to 600 s", float(learned.loads), "")
    bar = 1.8 if quick else 2.0
    name = "a fixed one's loads in the same memory, of these"
    report.add(name, fixed / learned.loads, "times", at_least=bar)
    rows = rows[: 2000 if quick else 50_000]
    size = working_set(rows) // 10
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        await trio.to_thread.run_sync(serve, rows, config_for(rows), log)
        taken, _ = run_tool("tune", "--objective", "seconds", "--max-size", str(size), log)
    report.add(f"tune, of {len(rows):,} requests", taken, "s", at_most=60)


if __name__ == "__main__":
    main()
