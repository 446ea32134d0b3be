"""Both compilers in one cache: what is kept on disk, in processes of their own, and at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from kits import add
from promoting import look, tiers
from trio.testing import wait_all_tasks_blocked

import trio_wasmcache
from trio_wasmcache import CacheConfig, InstanceCache, MiB

ADD = """(module (func (export "run") (param i64) (result i64)
    (i64.add (local.get 0) (i64.const 1))))"""


class Log:
    """A logger that lets a test wait until the log's thread has written a promotion."""

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.promoted = trio.Event()
        self.fields: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.fields.append((event, fields))
        if event == "wasmcache.promoted":
            self.token.run_sync_soon(self.promoted.set)

    warning = info

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.fields if name == f"wasmcache.{event}"]


async def promoted(cache: InstanceCache, log: Log) -> None:
    """Have what was used promoted."""
    look(cache)
    await log.promoted.wait()
    for _ in range(20):
        await trio.lowlevel.checkpoint()


async def test_a_restart_begins_on_optimized_code(tmp_path: Path) -> None:
    """Where it is in `cache_dir`, beside the baseline code; a module of other limits has none."""
    config = CacheConfig(compiler="tiered", cache_dir=tmp_path / "code")
    log = Log()
    async with trio_wasmcache.open_cache(config, logger=log) as cache:
        f = await add(cache, "f", ADD)  # type: ignore[arg-type]
        assert (await f.call(1), tiers(cache)) == (2, [{"baseline": 1}])
        await promoted(cache, log)
        assert (await f.call(2), tiers(cache)) == (3, [{"optimizing": 1}])
    log = Log()
    async with trio_wasmcache.open_cache(config, logger=log) as cache:
        f = await add(cache, "f", ADD)  # type: ignore[arg-type]
        g = await add(cache, "g", ADD, isolation="reset")  # type: ignore[arg-type]
        assert (await f.call(1), await g.call(2)) == (2, 3)
        assert tiers(cache) == [{"optimizing": 1}, {"baseline": 1}]
        assert cache.stats().promotions_waiting == 0
        look(cache)
        assert cache.stats().promotions_waiting == 1, "of the other module"


@pytest.mark.skipif(sys.platform != "linux", reason="compile_memory is for Linux")
async def test_a_compile_in_a_process_of_its_own_that_takes_too_much() -> None:
    """What the limits do not let it compile stays as it is."""
    log, config = Log(), CacheConfig(compiler="tiered", compile_memory=512 * MiB)
    async with trio_wasmcache.open_cache(config, logger=log) as cache:
        f = await add(cache, "f", ADD)  # type: ignore[arg-type]
        assert await f.call(1) == 2
        engine: Any = cache._pool.engine
        engine._subprocess.memory = 0
        await promoted(cache, log)
        assert (await f.call(2), tiers(cache)) == (3, [{"baseline": 1}])
    (event,) = log.of("promoted")
    assert event["error"] == "InvalidModuleError", "as documents have it"
    assert event["compile_seconds"] > 0
    assert "compile_memory" in event["error_message"]


PROGRAM = """
import sys, threading, trio, trio_wasmcache
from trio_wasmcache._engine.wasmtime import engine
from trio_wasmcache._pool import promotion

never, begun, compile_module = threading.Event(), threading.Event(), engine.compile_module
calls = []

def compile_it(*given):
    calls.append(given)
    if len(calls) == 2:
        begun.set()
        never.wait()
    return compile_module(*given)

engine.compile_module, promotion.DUE_FUEL = compile_it, 0

async def main():
    async with trio_wasmcache.open_cache(trio_wasmcache.CacheConfig(compiler="tiered")) as cache:
        wasm = '(module (func (export "f") (result i64) (i64.const 7)))'
        f = await cache.register("f", wasm, args=(), returns="i64")
        assert await f.call() == 7
        cache._promoter.look()
        await trio.to_thread.run_sync(begun.wait)
        assert cache.stats().promotions_waiting == 1

trio.run(main)
print("ended", flush=True)
"""


def test_a_program_ends_under_a_compile_in_the_background() -> None:
    """Closing does not wait for it, and nor does the interpreter; what it makes is dropped."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.stdout.split()[-1], done.returncode) == ("ended", 0), done.stderr


async def test_closing_while_a_module_is_compiled() -> None:
    """In the background, by a thread that is left to itself; the engine is there until it ends."""
    for passes in (0, 1, 2, 5):
        async with trio_wasmcache.open_cache(CacheConfig(compiler="tiered")) as cache:
            f = await add(cache, "f", ADD)  # type: ignore[arg-type]
            assert await f.call(1) == 2
            await wait_all_tasks_blocked()
            look(cache)
            for _ in range(passes):
                await trio.lowlevel.checkpoint()
