"""Instructions instead of time: ``python -m tests.bench.instructions hit floor held bare miss``.

They are counted by valgrind's callgrind, which no neighbour disturbs. Where counting is to end, the
process under it asks for its parent's number, whereupon callgrind writes what it has counted, and
where it is to begin, for its group's. PROFILE.md has figures.
The steps of `first` are ``plain3 metered3 kept3 thread3 read3 register3 tiered3`` for a module of
3 KB, and the same with 70. ``wait lock`` are a lease and a `trio.Lock` with a hundred waiters,
``queued token`` an acquire and a token of a `trio.CapacityLimiter` of a thousand that are asked for
at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio
import wasmtime
from attrs import define

from trio_wasmcache import CacheConfig, open_cache

from . import first, peers, waiting
from .harness import FIB, WARM_UP, SilentLogger

REPEATED = 300
QUEUED = 1000
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
    "tiered": "tiered: register and first call",
}
FIRST = {
    f"{way}{size}": (name, functions)
    for way, name in WAYS.items()
    for size, functions in first.SIZES.items()
}
LINES = ("wait", "lock", "queued", "token")
KNOWN = ("bare", "floor", "held", "hit", "miss", "store", *LINES, *FIRST)
I64 = ("i64",)


@define
class Callgrind:
    """Counts the instructions of this process, which runs under callgrind.

    Args:
        output: the file that callgrind was given for its output; dumps are beside it.
    """

    output: Path
    dumps: int = 0

    def count(self) -> int:
        """Return the number of instructions since the last time."""
        os.getppid()  # see `--dump-before`
        self.dumps += 1
        text = self.output.with_name(f"{self.output.name}.{self.dumps}").read_text()
        found = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
        assert found, text[-200:]
        os.getpgrp()  # see `--zero-before`: to read what was counted does not count
        return int(found[1])


def available() -> bool:
    """Whether instructions can be counted here."""
    return shutil.which("valgrind") is not None


def run_counted(arguments: Sequence[str], python: str = sys.executable) -> str:
    """Run a module under callgrind; ``{output}`` among the arguments is its output's path.

    Returns:
        What it has printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "callgrind")
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}"]
        command += ["--dump-before=getppid", "--zero-before=getpgrp", python, "-m"]
        command += [argument.format(output=output) for argument in arguments]
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:  # 1: a bar was missed
        raise RuntimeError(f"counting has failed: {done.stderr}")
    return done.stdout


async def repeat(what: str, counter: Callgrind) -> float:
    """Instructions of one repetition."""
    gc.disable()  # a collection more or less would be told as a difference
    compiler: Literal["tiered", "optimizing"] = "tiered" if "tiered" in what else "optimizing"
    async with (
        peers.floor() as floor,
        open_cache(
            CacheConfig(idle_timeout=1000, compiler=compiler), logger=SilentLogger()
        ) as cache,
    ):
        await cache.register("same", FIB, args=I64, returns="i64")

        async def hits(n: int) -> None:
            for _ in range(n):
                async with cache.acquire("same", I64) as lease:
                    await lease.call(1)

        async def counted(way: Any) -> float:
            await way(WARM_UP)
            counter.count()
            await way(REPEATED)
            return counter.count() / REPEATED

        if what == "floor":
            return await counted(floor)
        if what == "bare":
            return await counted(peers.bare())
        if what == "hit":
            return await counted(hits)
        if what == "held":
            async with cache.acquire("same", I64) as lease:

                async def held(n: int) -> None:
                    for _ in range(n):
                        await lease.call(1)

                return await counted(held)
        if what == "store":
            return await counted(peers.new_store())
        if what == "miss":
            return await misses(counted)
        if what in LINES:
            block = {
                "wait": lambda: cache.acquire("same", I64),
                "queued": lambda: cache.acquire("same", I64),
                "lock": partial(_itself, trio.Lock()),
                "token": partial(_itself, trio.CapacityLimiter(1)),
            }[what]
            if what in ("wait", "lock"):
                way, times = waiting.in_turn(block), 10 * (waiting.WAITERS + 1)
            else:
                way, times = waiting.at_once(block), QUEUED
            await way(times)
            counter.count()
            await way(times)
            return counter.count() / times
        name, functions = FIRST[what]
        way = first.ways(cache, cache)[name]
        modules = [
            bytes(wasmtime.wat2wasm(first.module(functions, n))) for n in range(MANY_MODULES)
        ]
        for wasm in modules[:FEW_MODULES]:
            await way(wasm)
        counter.count()
        for wasm in modules[FEW_MODULES:]:
            await way(wasm)
        return counter.count() / (MANY_MODULES - FEW_MODULES)


def _itself(it: Any) -> Any:
    return it


async def misses(counted: Any) -> float:
    """A miss whose module is loaded."""
    async with open_cache(CacheConfig(max_size=0), logger=SilentLogger()) as cache:
        for name in ("same", "fib"):
            await cache.register(name, FIB, args=I64, returns="i64", export=name)
        async with cache.acquire("fib", I64):  # keeps the code loaded

            async def loads(n: int) -> None:
                for _ in range(n):
                    async with cache.acquire("same", I64) as lease:
                        await lease.call(1)

            return await counted(loads)


def main() -> None:
    if sys.argv[1] == "--count":
        counter = Callgrind(Path(sys.argv[2]))
        for what in sys.argv[3:]:
            print(json.dumps([what, trio.run(repeat, what, counter)]), flush=True)
        return
    parser = argparse.ArgumentParser(prog="python -m tests.bench.instructions", description=__doc__)
    parser.add_argument("what", nargs="+", help=f"of {', '.join(KNOWN)}")
    asked = parser.parse_args().what
    if unknown := {*asked} - {*KNOWN}:
        parser.error(f"no such thing: {', '.join(sorted(unknown))}")
    if not available():
        parser.error("there is no valgrind: apt-get install valgrind")
    # Modules take addresses, so each of these has a process of its own.
    processes = [[what for what in asked if what not in FIRST]]
    processes += [[what] for what in asked if what in FIRST]
    for names in filter(None, processes):
        told = run_counted(["tests.bench.instructions", "--count", "{output}", *names])
        for line in told.splitlines():
            what, each = json.loads(line)
            print(f"{what:10} {each:11,.0f} instructions")


if __name__ == "__main__":
    main()
