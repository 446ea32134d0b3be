"""Functions that begin prepared, beside those that make their set-up calls in each lease.

QuickJS, of the package quickjs-rs, builds a list of 20,000 rules, each with a regular expression.
`WASMCACHE_QUICKJS` names a folder with the guest; without it, pip fetches it (examples/abis).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trio_wasmcache import CacheConfig, Function, InstanceCache, MiB, open_cache

from .harness import Report, SilentLogger, percentile

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = {
    "memory_limit": 64 * MiB,
    "max_instance_size": 64 * MiB,
    "max_size": 512 * MiB,
    "max_code_size": 256 * MiB,
    "total_fuel": 10**11,
}
RULES = """
globalThis.rules = [];
for (let i = 0; i < 20000; i++)
  rules.push({id: i, re: new RegExp('^a' + i + '[xyz]+$'), weight: Math.sqrt(i)});
globalThis.price = n => {
  let sum = 0;
  for (let i = 0; i < 10; i++) sum += rules[(n * 7 + i) % 20000].weight;
  return Math.round(sum);
};"""
ISOLATIONS = ("reset", "fresh", "reuse")


async def run(report: Report, quick: bool) -> None:
    sys.path.insert(0, str(EXAMPLES))
    from abis.javascript import BEGIN, JavaScript, imports, install, prepare

    folder = Path(os.environ.get("WASMCACHE_QUICKJS", tempfile.gettempdir() + "/quickjs"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        guest = install(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"   the guest can't be fetched, so nothing is measured: {error}")
        return
    given = {"imports": imports(print), "args": ("json",), "returns": "json"}
    given |= {"export": "eval_code"}
    source = "n => price(n)"

    async def add(cache: InstanceCache, name: str, **more: Any) -> Function[Any]:
        abi = JavaScript(source)
        return await cache.register(name, guest, abi=abi, **given, **more)  # type: ignore[no-any-return, call-overload]

    calls, plain = (100, 5) if quick else (1000, 21)
    async with open_cache(CacheConfig(**CONFIG), logger=SilentLogger()) as cache:
        began = time.perf_counter()
        functions = {
            name: await add(cache, name, isolation=name, prepare=prepare(RULES))
            for name in ISOLATIONS
        }
        seconds = time.perf_counter() - began
        prelude = await cache.register(
            "prelude",
            guest,
            abi=Setup(JavaScript(source), BEGIN + RULES),
            **{**given, "isolation": "fresh"},
        )
        times: dict[str, list[tuple[float, float]]] = {}
        times = {name: [] for name in (*ISOLATIONS, "prelude")}
        for number in range(calls):
            for name, function in functions.items():
                times[name].append(await timed(function, number))
            if number * plain < calls * len(times["prelude"]):
                continue
            times["prelude"].append(await timed(prelude, number))
        assert await functions["reset"].call(41) == await prelude.call(41) == 171
        size = functions["reset"].code_size
    report.add("register all three, prepared", seconds, "s")
    report.add("code, with the image of 20,000 rules", size / MiB, "MiB")
    setup = statistics.median(wall for wall, _ in times["prelude"])
    report.add("prelude and call in a new instance", 1e3 * setup, "ms")
    for name in ISOLATIONS:
        bars = (1, 3) if name == "reset" else (None, None)
        wall, cpu = ([1e3 * one for one in column] for column in zip(*times[name], strict=True))
        report.add(
            f"prepared, {name}: lease, call, p50", percentile(wall, 0.5), "ms", at_most=bars[0]
        )
        report.add(
            f"prepared, {name}: lease, call, p99", percentile(wall, 0.99), "ms", at_most=bars[1]
        )
        # Of a busy machine, the CPU time is what says something.
        report.add(f"prepared, {name}: CPU time, p50", percentile(cpu, 0.5), "ms")
        report.add(f"prepared, {name}: CPU time, p99", percentile(cpu, 0.99), "ms")
    ratio = statistics.median(wall for wall, _ in times["reset"]) / setup
    report.add("prepared, reset / running the prelude", ratio, "", at_most=1 / 250)
    restart(report, quick)


async def timed(function: Function[Any], number: int) -> tuple[float, float]:
    """Return the time of a lease and a call, and the CPU time of this thread (seconds)."""
    began, cpu = time.perf_counter(), time.thread_time()
    async with function.acquire() as lease:
        await lease.call(number)
    return time.perf_counter() - began, time.thread_time() - cpu


class Setup:
    """Makes the calls of `prepare` before each call."""

    lower = lift = None

    def __init__(self, abi: Any, prelude: str) -> None:
        self.abi, self.prelude = abi, prelude

    def bind(self, function: str, export: str, args: Any, *rest: Any) -> Any:
        from abis.javascript import JavaScript

        made = Setup(self.abi.bind(function, export, args, *rest), self.prelude)
        made.code = JavaScript("", ("code",))  # type: ignore[attr-defined]
        made.signature, made.arity = made.abi.signature, made.abi.arity  # type: ignore[attr-defined]
        made.explain = made.abi.explain  # type: ignore[attr-defined]
        return made

    def steps(self, guest: Any, values: tuple[Any, ...]) -> Any:
        from abis.javascript import install_function

        yield from install_function(guest, "__print")
        yield from self.code.steps(guest, (self.prelude,))  # type: ignore[attr-defined]
        return (yield from self.abi.steps(guest, values))


# Run twice: the second process finds code and state in `cache_dir`. Imports are not counted.
RESTART = """
import json, sys, time, pathlib
import trio, trio_wasmcache
import trio_wasmcache._engine.wasmtime.engine, trio_wasmcache._engine.wasmtime.subprocess
import trio_wasmcache._cache.open
from trio_wasmcache import *
folder, path = sys.argv[1:]
class Quiet:
    stored = None
    def info(self, event, **fields):
        if event == "wasmcache.prepared":
            Quiet.stored = fields["stored"]
    warning = info
async def main():
    config = CacheConfig(cache_dir=folder, **json.loads(sys.stdin.read()))
    began, cpu = time.perf_counter(), time.process_time()
    async with open_cache(config, logger=Quiet()) as cache:
        calls = (Prepare("fill", args=("i32",), values=(4_000_000,)),)
        f = await cache.register("get", pathlib.Path(path), args=("i32",), returns="i32",
                                 isolation="reset", prepare=calls)
        await f.call(100)
        took = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps([*took, Quiet.stored]))
trio.run(main)
"""
# No host function may take part in what is kept on disk; QuickJS asks one whether to go on.
FILLER = """(module (memory (export "memory") 70)
  (func (export "fill") (param i32) (local $i i32)
    (loop (i32.store (local.get $i) (i32.mul (local.get $i) (i32.const 0x9E3779B1)))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if 0 (i32.lt_u (local.get $i) (local.get 0)))))
  (func (export "get") (param i32) (result i32) (i32.load (local.get 0))))"""


def restart(report: Report, quick: bool) -> None:
    """Measure a second process, which finds 4 MB of memory that was prepared, in `cache_dir`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "filler.wat"
        path.write_text(FILLER)
        found = []
        for _ in range(3 if quick else 8):
            done = subprocess.run(
                [sys.executable, "-c", RESTART, str(Path(folder) / "cache"), str(path)],
                input=json.dumps(CONFIG),
                capture_output=True,
                text=True,
                check=True,
            )
            found.append(json.loads(done.stdout))
        assert [stored for *_, stored in found] == [False, *[True] * (len(found) - 1)]
        report.add("open_cache to the first answer, first process", 1e3 * found[0][0], "ms")
        later = min(took for took, *_ in found[1:])
        report.add("the same, later processes, from cache_dir", 1e3 * later, "ms", at_most=100)
        cpu = min(took for _, took, _ in found[1:])
        report.add("the same, CPU time of all threads", 1e3 * cpu, "ms")
