"""JavaScript functions of a hundred tenants: each call finds a fresh, prepared interpreter.

The guest is QuickJS of the package `quickjs-rs`, which the first run fetches with pip; the ABI is
in abis/javascript.py. All functions share one module: its instances begin with the prelude done.
"""

import sys
from pathlib import Path

import structlog
import trio
from abis.javascript import JavaScript, JavaScriptError, imports, install, prepare

from trio_wasmcache import CacheConfig, FuelExhaustedError, Function, InstanceCache, open_cache

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / ".javascript")
LIMITS = CacheConfig(total_fuel=300_000_000)
PRELUDE = """
globalThis.rules = Array.from({length: 1000}, (_, i) => ({id: i, weight: Math.sqrt(i)}));
globalThis.weight = n => Math.round(rules[n % rules.length].weight * 100) / 100;"""


async def main() -> None:
    guest, log = install(FOLDER), structlog.get_logger()

    async def add(cache: InstanceCache, tenant: str, source: str) -> Function:
        return await cache.register(
            tenant,
            guest,
            args=("json",),
            returns="json",
            export="eval_code",
            abi=JavaScript(source),
            imports=given,
            prepare=prepare(PRELUDE),
            isolation="reset",
            replace=True,
        )

    given = imports(lambda line: log.warning("console.log", line=line))
    async with open_cache(LIMITS) as cache:
        tenants = [await add(cache, f"tenant {n}", f"m => weight(m) + {n}") for n in range(100)]
        print("tenants 0, 1, 99:", [await tenants[n].call(n) for n in (0, 1, 99)])
        for source in (
            "n => { console.log('got', n); return n + 1; }",
            *("n => globalThis.count = (globalThis.count || 0) + n",) * 2,
            "n => { while (1) ; }",
            "n => 'x'.repeat(1e9).length",
        ):
            function = await add(cache, source, source)
            try:
                print(await function.call(41))
            except (FuelExhaustedError, JavaScriptError) as error:
                print(type(error).__name__, error.args[0].splitlines()[0][-60:])


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    trio.run(main)
