"""What is accounted, what is resident, and what the process takes: over the life of 500 instances.

The life is that of a process of its own, and it is lived twice. In the first, the allocators of
Python and of C grow to what they then keep: 6 MiB or so, told as it is. What is compared is the
second: there, all that comes must go again.
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from trio_wasmcache import CacheConfig, InstanceCache, MiB, open_cache

from .harness import Report, SilentLogger

ROOT = Path(__file__).parent.parent.parent
MINE = "tests.bench.memory"
GROWS = 8
# Touches one system page; with an argument it grows by so many pages of 64 KiB, and fills them.
SOURCE = """(module (memory (export "memory") 1)
  (func (export "f") (param $pages i32) (local $at i32)
  (local.set $at (i32.mul (memory.size) (i32.const 65536)))
  (drop (memory.grow (local.get $pages)))
  (memory.fill (local.get $at) (i32.const 1) (i32.mul (local.get $pages) (i32.const 65536)))
  (i32.store (i32.const 0) (i32.const 1))))"""
CONFIG = CacheConfig(
    max_size=1024 * MiB,
    max_code_size=1024 * MiB,
    memory_limit=1 * MiB,
    idle_timeout=1000,
    offload_after=None,
)

# {phase: (RSS, resident, accounted)}, bytes
Life = dict[str, tuple[int, int, int]]


def rss() -> int:
    """Of this process, as the kernel charges it (bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("there is no VmRSS")


async def live(cache: InstanceCache, number: int) -> Life:
    """Nothing, so many running, grown, idle, and nothing again."""
    life: Life = {}

    async def look(phase: str) -> None:
        resident = (await cache.resident_bytes()).total
        gc.collect()
        life[phase] = rss(), resident, cache.stats().accounted_size

    await look("start")
    async with AsyncExitStack() as stack:
        leases = []
        for _ in range(number):
            lease = await stack.enter_async_context(cache.acquire("f", ("i32",)))
            await lease.call(0)
            leases.append(lease)
        await look("running")
        for lease in leases:
            await lease.call(GROWS)
        await look("grown")
        leases.clear()
    del lease, stack
    await look("idle")
    cache.resize(max_size=0)
    cache.resize(max_size=CONFIG.max_size)
    await look("evicted")
    return life


async def lives(number: int) -> list[Life]:
    async with open_cache(CONFIG, logger=SilentLogger()) as cache:
        await cache.register("f", SOURCE, args=("i32",), concurrency=number)
        await cache.functions()[0].call(1)
        return [await live(cache, number) for _ in range(2)]


async def run(report: Report, quick: bool) -> None:
    """The second life, measured against itself; of the first, what it left."""
    number = 100 if quick else 500
    command = [sys.executable, "-m", MINE, str(number)]
    done = await trio.run_process(command, capture_stdout=True, cwd=ROOT)
    first, second = json.loads(done.stdout)
    kept = first["evicted"][0] - first["start"][0]
    report.add("allocators keep after a first life", kept / MiB, "MiB")
    at_start = second["start"]
    for phase in ("running", "grown", "idle"):
        grown, resident, accounted = (
            now - before for now, before in zip(second[phase], at_start, strict=True)
        )
        report.add(
            f"{number} {phase}: RSS growth less resident_bytes",
            abs(grown - resident) / MiB,
            "MiB",
            at_most=max(5, grown / MiB / 10),
            note=f"RSS {grown / MiB:.1f}, resident {resident / MiB:.1f}",
        )
        report.add(
            f"{number} {phase}: RSS growth / accounted",
            grown / accounted,
            "",
            at_most=1,
            note=f"accounted {accounted / MiB:.1f} MiB",
        )
    left = second["evicted"][0] - at_start[0]
    report.add(f"{number} evicted: RSS above the start", left / MiB, "MiB", at_most=5)


if __name__ == "__main__":
    json.dump(trio.run(lives, int(sys.argv[1])), sys.stdout)
