"""Instructions instead of time: ``python -m tests.bench.instructions hit floor held bare miss``.

For each it runs itself twice under valgrind's callgrind, with few repetitions and with many; the
difference, for one, is the same on a busy machine and on an idle one. PROFILE.md has figures.
The steps of `first` are ``plain3 metered3 kept3 thread3 read3 register3`` for a module of 3 KB,
and the same with 70.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import subprocess
import sys

import trio
import wasmtime

from trio_wasmcache import CacheConfig, open_cache

from . import first, peers
from .harness import FIB, SilentLogger

FEW, MANY = 500, 1500
# Under valgrind there is address space for some thirty instances.
FEW_MODULES, MANY_MODULES = 10, 26
# {name here: name there}
WAYS = {
    "plain": "plain compile, instantiate, call",
    "metered": "plain, metered, one thread",
    "kept": "and serialized, and loaded from that",
    "thread": "and compiled in a Trio thread",
    "read": "and its sections read",
    "register": "register and first call",
}
FIRST = {
    f"{way}{size}": (name, functions)
    for way, name in WAYS.items()
    for size, functions in first.SIZES.items()
}
KNOWN = ("bare", "floor", "held", "hit", "miss", "store", *FIRST)
I64 = ("i64",)


async def repeat(what: str, times: int) -> None:
    gc.disable()  # a collection more or less would be told as a difference
    async with (
        peers.floor() as floor,
        open_cache(CacheConfig(idle_timeout=1000), logger=SilentLogger()) as cache,
    ):
        await cache.register("same", FIB, args=I64, returns="i64")
        if what == "floor":
            await floor(times)
        elif what == "bare":
            await peers.bare()(times)
        elif what == "hit":
            for _ in range(times):
                async with cache.acquire("same", I64) as lease:
                    await lease.call(1)
        elif what == "held":
            async with cache.acquire("same", I64) as lease:
                for _ in range(times):
                    await lease.call(1)
        elif what in ("miss", "store"):
            await load(what, times)
        else:
            name, functions = FIRST[what]
            way = first.ways(cache)[name]
            # As many, however many are used: what that takes is not to count.
            modules = [
                bytes(wasmtime.wat2wasm(first.module(functions, n))) for n in range(MANY_MODULES)
            ]
            for wasm in modules[:times]:
                await way(wasm)


async def load(what: str, times: int) -> None:
    """A miss whose module is loaded, or what wasmtime-py does for the same."""
    if what == "store":
        await peers.new_store()(times)
        return
    async with open_cache(CacheConfig(max_size=0), logger=SilentLogger()) as cache:
        for name in ("same", "fib"):
            await cache.register(name, FIB, args=I64, returns="i64", export=name)
        async with cache.acquire("fib", I64):  # keeps the code loaded
            for _ in range(times):
                async with cache.acquire("same", I64) as lease:
                    await lease.call(1)


def count(what: str, times: int) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable]
    command += ["-m", "tests.bench.instructions", what, str(times)]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, check=True, timeout=600, env=environment)
    found = re.search(rb"Collected : (\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


def main() -> None:
    if sys.argv[-1].isdigit():
        trio.run(repeat, sys.argv[1], int(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instructions", description=__doc__)
    parser.add_argument("what", nargs="+", help=f"of {', '.join(KNOWN)}")
    asked = parser.parse_args().what
    if unknown := {*asked} - {*KNOWN}:
        parser.error(f"no such thing: {', '.join(sorted(unknown))}")
    if not shutil.which("valgrind"):
        parser.error("there is no valgrind: apt-get install valgrind")
    for what in asked:
        few, many = (FEW_MODULES, MANY_MODULES) if what in FIRST else (FEW, MANY)
        each = (count(what, many) - count(what, few)) / (many - few)
        print(f"{what:10} {each:11,.0f} instructions")


if __name__ == "__main__":
    main()
