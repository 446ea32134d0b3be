"""Functions of a component beside wasmtime-py's own calls of components, taking turns.

The component is `tests/udfs/components/pure.wasm`, of Rust. wasmtime-py can't be sliced, cancelled
or stopped but by fuel, which it has here, too; it has no batches. Times are CPU times of the
process, the best of some rounds: a call that gives up the GIL on a busy machine waits for long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wasmtime

from trio_wasmcache import CacheConfig, MiB, open_cache

from .harness import Candidate, Report, SilentLogger

PURE = Path(__file__).parents[1] / "udfs" / "components" / "pure.wasm"
INTERFACE = "demo:udf/funcs@0.1.0"
FUEL = 10**10
NUMBERS = list(range(1000))
TEXT = "a line of text, as it stands in a column"
ROWS = 20_000
BLOB = bytes(range(256)) * 4096
# {what: (function, values, bar, how many times as many as others)}
CALLS: dict[str, tuple[str, tuple[Any, ...], float, float]] = {
    "add": ("add", (20, 22), 0.5, 4),
    "a string": ("upper", (TEXT,), 1.0, 1),
    "1,000 integers": ("total", (NUMBERS,), 0.1, 0.05),
    "1 MiB there and back": ("backwards", (BLOB,), 0.01, 0),
}
CONFIG = CacheConfig(total_fuel=FUEL, memory_limit=64 * MiB, max_instance_size=64 * MiB)


class Bare:
    """The component in wasmtime-py."""

    def __init__(self, wasm: bytes) -> None:
        from wasmtime import component

        config = wasmtime.Config()
        config.consume_fuel = True
        engine = wasmtime.Engine(config)
        self.store = wasmtime.Store(engine)
        self.store.set_fuel(FUEL)
        self.component = component.Component(engine, wasm)
        instance = component.Linker(engine).instantiate(self.store, self.component)
        self.get = lambda index: instance.get_func(self.store, index)
        self.interface = self.component.get_export_index(INTERFACE)

    def calls(self, name: str, values: tuple[Any, ...]) -> Candidate:
        """Call one of its functions."""
        function = self.get(self.component.get_export_index(name, self.interface))
        store = self.store

        async def call(n: int) -> None:
            for _ in range(n):
                store.set_fuel(FUEL)
                function(store, *values)

        return call


async def interleave(
    candidates: Mapping[str, tuple[Candidate, int]], rounds: int
) -> dict[str, float]:
    """{name: least microseconds of CPU time of one of the repetitions that each makes}."""
    least = dict.fromkeys(candidates, math.inf)
    for _ in range(rounds):
        for name, (candidate, n) in candidates.items():
            began = time.process_time()
            await candidate(n)
            least[name] = min(least[name], (time.process_time() - began) / n * 1e6)
    return least


async def run(report: Report, quick: bool) -> None:
    number, rounds = (20, 3) if quick else (1000, 7)
    try:
        bare = Bare(PURE.read_bytes())
    except ImportError:
        print("   this wasmtime has no component calls for Python, so nothing is compared")
        return
    async with open_cache(CONFIG, logger=SilentLogger()) as cache:
        ours = dict.fromkeys(CALLS, 0.0)
        theirs = dict(ours)
        for what, (name, values, _, times) in CALLS.items():
            # wasmtime-py takes seconds for a megabyte of bytes.
            few = max(1, int(number * times))
            slow = 1 if times < 1 else few // 2
            function = await cache.register(name, PURE)
            async with function.acquire() as lease:

                async def held(n: int, lease: Any = lease, values: Any = values) -> None:
                    for _ in range(n):
                        await lease.call(*values)

                us = await interleave(
                    {"ours": (held, few), "theirs": (bare.calls(name, values), slow)},
                    rounds if times else min(rounds, 3),
                )
            ours[what], theirs[what] = us["ours"], us["theirs"]
        upper = cache.functions()
        texts = [f"{TEXT} {at}" for at in range(number if quick else ROWS)]
        function = next(one for one in upper if one.name == "upper")
        async with function.acquire() as lease:

            async def batch(n: int) -> None:
                for _ in range(n):
                    await lease.map([texts])

            row = (await interleave({"batch": (batch, 1)}, rounds))["batch"] / len(texts)
    for what, (_, _, bar, _) in CALLS.items():
        report.add(f"{what}: wasmtime-py's component call", theirs[what], "us")
        report.add(f"{what}: held call", ours[what], "us")
        report.add(f"{what}: held / wasmtime-py's", ours[what] / theirs[what], "", at_most=bar)
    report.add("a row of a batch, a string", row, "us", at_most=1)
