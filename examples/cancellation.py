"""A UDF that never ends is cut off by an ordinary Trio timeout; its neighbours notice nothing.

`steps` (udfs/collatz.c) has a bug: for 0 it loops for ever.
"""

from pathlib import Path

import structlog
import trio

import trio_wasmcache

COLLATZ = Path(__file__).parent / "udfs" / "collatz.wasm"


async def neighbour(steps: trio_wasmcache.Function, calls: list[float]) -> None:
    """Calls the same function once every 5 ms, and notes how long each call took."""
    while True:
        began = trio.current_time()
        assert await steps.call(27) == 111
        calls.append(trio.current_time() - began)
        await trio.sleep(0.005)


async def main() -> None:
    # More fuel than a call can burn in half a second, so that the timeout comes first.
    config = trio_wasmcache.CacheConfig(total_fuel=10**15)
    async with trio_wasmcache.open_cache(config) as cache, trio.open_nursery() as nursery:
        # Two instances, so that one endless call does not keep everybody else waiting.
        steps = await cache.register("steps", COLLATZ, args=("i64",), returns="i64", concurrency=2)
        calls: list[float] = []
        nursery.start_soon(neighbour, steps, calls)

        began = trio.current_time()
        with trio.move_on_after(0.5) as timeout:
            await steps.call(0)
        assert timeout.cancelled_caught
        print(f"The endless call was cut off after {trio.current_time() - began:.1f} s")
        nursery.cancel_scope.cancel()

    print(f"Meanwhile its neighbour made {len(calls)} calls, all right")
    print(f"(the slowest took {max(calls) * 1000:.1f} ms)")

    # Without a timeout, fuel ends it: a call may burn so much and no more.
    config = trio_wasmcache.CacheConfig(total_fuel=50_000_000)
    async with trio_wasmcache.open_cache(config) as cache:
        steps = await cache.register("steps", COLLATZ, args=("i64",), returns="i64")
        try:
            await steps.call(0)
        except trio_wasmcache.FuelExhaustedError as error:
            print(f"Without a timeout: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main)
