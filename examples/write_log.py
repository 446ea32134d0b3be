"""An application that writes the cache's log: two tenants, ten functions, room for a few.

python examples/write_log.py wasmcache.jsonl
python -m trio_wasmcache report wasmcache.jsonl --html report.html
"""

import random
import sys
import tempfile
from pathlib import Path

import structlog
import trio

from trio_wasmcache import CacheConfig, KiB, SchedulingGroup, open_cache

CRC32 = Path(__file__).parent / "udfs" / "crc32.wasm"
FUNCTIONS = [f"check_{number}" for number in range(10)]
POPULARITY = [1 / (number + 1) for number in range(10)]  # the first one is used most


async def client(group: SchedulingGroup, rest: float, seed: int) -> None:
    choices = random.Random(seed)
    while True:
        (name,) = choices.choices(FUNCTIONS, POPULARITY)
        async with group.acquire(name, ("u32",)) as check:
            await check.call(choices.randrange(1000))
        await trio.sleep(choices.expovariate(1 / rest))


async def serve(logger: structlog.typing.WrappedLogger) -> None:
    # With log_uses, leases are logged, too: such a log can be replayed.
    config = CacheConfig(max_size=1000 * KiB, idle_timeout=0.05, log_uses=True)
    async with open_cache(config, logger=logger) as cache:
        for name in FUNCTIONS:
            await cache.register(name, CRC32, args=("u32",), returns="u32", export="crc32")
        with trio.move_on_after(1.5):
            async with (
                cache.scheduling_group("web", capacity=4, shares=300) as web,
                cache.scheduling_group("reports", capacity=2) as reports,
            ):
                for seed in range(4):
                    web.start_soon(client, web, 0.005, seed)
                    reports.start_soon(client, reports, 0.08, seed)


def write_log(path: Path) -> None:
    renderer = [
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.JSONRenderer(),
    ]
    with path.open("a", encoding="utf-8") as file:
        trio.run(serve, structlog.wrap_logger(structlog.WriteLogger(file), processors=renderer))


if __name__ == "__main__":
    log = Path(sys.argv[1] if len(sys.argv) > 1 else f"{tempfile.mkdtemp()}/wasmcache.jsonl")
    write_log(log)
    print(f"Now try: python -m trio_wasmcache report {log}")
