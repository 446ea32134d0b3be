"""What the tests on real WebAssembly share: a quiet cache, WAT, held compiles, subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import wasmtime

from trio_wasmcache import CacheConfig, InstanceCache, open_cache
from trio_wasmcache._engine.compile_slots import CompileSlots
from trio_wasmcache._engine.wasmtime.engine import MAX_COMPILES

ROOT = Path(__file__).parents[2]
WASI = "wasi_snapshot_preview1"


class Quiet:
    """A structlog logger that says nothing."""

    def info(self, *args: Any, **fields: Any) -> None:
        pass

    def warning(self, *args: Any, **fields: Any) -> None:
        pass


def quiet_cache(**limits: Any) -> AbstractAsyncContextManager[InstanceCache]:
    return open_cache(CacheConfig(**limits), logger=Quiet())


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def exported(body: str, signature: str = "", rest: str = "") -> bytes:
    """A module that exports one function ``f``."""
    return wat(f'(module {rest} (func (export "f") {signature} {body}))')


@asynccontextmanager
async def compiles_held(cache: InstanceCache) -> AsyncIterator[None]:
    """Whoever has something compiled waits until the block ends."""
    async with slots_held(cache._pool.engine.compile_slots):  # type: ignore[attr-defined]
        yield


@asynccontextmanager
async def slots_held(slots: CompileSlots) -> AsyncIterator[None]:
    """All slots are taken, each by a group of its own, until the block ends."""
    turns = [slots.turn(object()) for _ in range(MAX_COMPILES)]
    for turn in turns:
        await turn.acquire_on_behalf_of(None)
    try:
        yield
    finally:
        for turn in turns:
            turn.release_on_behalf_of(None)


def run_python(script: str, *arguments: str) -> str:
    """Run a script in a process of its own, to a good end; its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
