"""The log tool on a log of a million events: how long its commands take, and how much memory."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import trio
from trio.testing import MockClock

from trio_wasmcache import CacheConfig, MiB
from trio_wasmcache.testing import FakeEngine, open_fake_cache

from . import log_tune
from .harness import Report

ROOT = Path(__file__).parent.parent.parent
FUNCTIONS, TASKS = 60, 20
ARGS = ("i64",)


class FileLogger:
    """Writes lines as JSONRenderer does."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.events = 0

    def info(self, event: str, **fields: Any) -> None:
        self.events += 1
        fields |= {"event": event, "level": "info"}
        self.file.write(f"{json.dumps(fields)}\n")

    warning = info


def write_log(path: Path, events: int) -> int:
    """A log of about so many events, of a cache at work on a clock that jumps; gives their number.

    Functions have loads that take time, sizes from 1 to 20 pages, and one is used 60 times as often
    as another; a fifth of all leases are misses.
    """
    with path.open("w", encoding="utf-8") as file:
        logger = FileLogger(file)
        trio.run(_work, logger, events, clock=MockClock(autojump_threshold=0))
        return logger.events


async def _work(logger: FileLogger, events: int) -> None:
    choices = random.Random(1)
    engine = FakeEngine()
    config = CacheConfig(
        max_size=24 * MiB, idle_timeout=2.0, log_uses=True, offload_after=None, main_capacity=12
    )
    popularity = [1 / (number + 1) for number in range(FUNCTIONS)]
    async with open_fake_cache(config, engine=engine, logger=logger) as cache:
        for number in range(FUNCTIONS):
            wasm = engine.module(memory_pages=choices.randint(1, 20))
            name = f"f{number}"
            await cache.register(name, wasm, args=ARGS, returns="i64", export="run", concurrency=2)

        async def client() -> None:
            while logger.events < events - 10 * TASKS:
                (number,) = choices.choices(range(FUNCTIONS), popularity)
                async with cache.acquire(f"f{number}", ARGS) as lease:
                    await lease.call(1)
                    await trio.sleep(choices.random() / 10)
                await trio.sleep(choices.random())

        async with trio.open_nursery() as nursery:
            for _ in range(TASKS):
                nursery.start_soon(client)


def run_tool(*arguments: str | Path) -> tuple[float, float]:
    """(seconds, MiB at most) that a command of the log tool takes, in a process of its own."""
    command = [sys.executable, "-m", "trio_wasmcache", *map(str, arguments)]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - began, usage.ru_maxrss / 1024


async def run(report: Report, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        wanted = 4_000 if quick else 1_000_000
        events = await trio.to_thread.run_sync(write_log, log, wanted)
        report.add("events in the log", float(events), "", note=f"{log.stat().st_size >> 20} MiB")
        for what, options in (("report", []), ("report, with a page", ["--html", f"{log}.html"])):
            seconds, memory = run_tool("report", *options, log)
            report.add(what, seconds, "s", at_most=10)
            report.add(f"{what}: memory", memory, "MiB", at_most=1024)
        log_tune.measure(report, log, run_tool, quick)
