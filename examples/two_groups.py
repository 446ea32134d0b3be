"""Two scheduling groups compete for one CPU, and get it in proportion to their shares, 3 to 1.

Each tenant has four tasks that never stop calling `longest` (udfs/collatz.c), which is pure work.
"""

from collections import Counter
from pathlib import Path

import structlog
import trio

import trio_wasmcache

COLLATZ = Path(__file__).parent / "udfs" / "collatz.wasm"
SECONDS = 1.0
fuel: Counter[str] = Counter()  # {group: fuel burnt; about one unit an instruction}


async def work(function: trio_wasmcache.Function) -> None:
    group = trio_wasmcache.current_group()
    assert group is not None
    async with function.acquire() as longest:
        while True:
            assert await longest.call(1000) == 871
            fuel[group.name] += longest.fuel_consumed or 0


async def main() -> None:
    # No call goes on in a thread, so that there is one CPU to compete for on any machine.
    config = trio_wasmcache.CacheConfig(offload_after=None)
    async with trio_wasmcache.open_cache(config) as cache:
        longest = await cache.register(
            "longest", COLLATZ, args=("i64",), returns="i64", concurrency=4
        )
        with trio.move_on_after(SECONDS):
            async with (
                cache.scheduling_group("paying", capacity=4, shares=300) as paying,
                cache.scheduling_group("trial", capacity=4, shares=100) as trial,
            ):
                for _ in range(4):
                    paying.start_soon(work, longest)
                    trial.start_soon(work, longest)

    total = fuel.total()
    for name, shares in (("paying", 300), ("trial", 100)):
        print(f"{name:6} {shares} shares: {fuel[name] / total:4.0%} of the fuel")
    print(f"ratio {fuel['paying'] / fuel['trial']:.2f} (shares say 3.00)")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main)
