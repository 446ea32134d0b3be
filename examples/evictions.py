"""What went, and why: evictions for size, for code and for idleness, as JSON lines on stdout.

python examples/evictions.py | jq -c '[.reason, .function, .freed_bytes, .freed_code_bytes]'
"""

import sys
from pathlib import Path
from typing import Any

import structlog
import trio
from structlog.typing import EventDict

from trio_wasmcache import CacheConfig, KiB, open_cache

UDFS = Path(__file__).parent / "udfs"
STACK = 64 * KiB


def only_evictions(logger: Any, method: str, event: EventDict) -> EventDict:
    if event["event"] != "wasmcache.evicted":
        raise structlog.DropEvent
    return event


async def main() -> None:
    logger = structlog.wrap_logger(
        structlog.PrintLogger(sys.stdout),
        processors=[
            structlog.stdlib.add_log_level,
            only_evictions,
            structlog.processors.JSONRenderer(),
        ],
    )
    # An instance of these modules may touch a little over 128 KiB: two fit, three do not.
    config = CacheConfig(max_size=300 * KiB, idle_timeout=0.3, stack_size=STACK)
    async with open_cache(config, logger=logger) as cache:
        steps = await cache.register("steps", UDFS / "collatz.wasm", args=("i64",), returns="i64")
        crc32 = await cache.register("crc32", UDFS / "crc32.wasm", args=("u32",), returns="u32")
        words = await cache.register("words", UDFS / "words.wasm", args=("u32",), returns="i64")

        # Size: the third instance does not fit, the least recently used one goes (steps).
        await steps.call(27)
        await crc32.call(0)
        await words.call(0)

        # Code: only the code of words and one stack fit now, so crc32 makes room by going. Then
        # steps needs the room that words has.
        cache.resize(max_code_size=words.code_size + STACK)
        await steps.call(27)

        # Idleness: whoever is left goes when nobody has called for 0.3 seconds.
        await trio.sleep(0.5)
        assert cache.stats().idle_instances == 0


if __name__ == "__main__":
    trio.run(main)
