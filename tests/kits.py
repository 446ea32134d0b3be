"""The two engines under one face, so that the same test runs on both: modules, and a way to open.

Every module exports ``run``, which takes one i64 and gives one, unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import trio
import wasmtime
from attrs import evolve
from hypothesis import settings
from open_stores import check_all_closed
from parts import TwoParts
from trio.testing import MockClock

import trio_wasmcache
from trio_wasmcache import CacheConfig, HostFunction, InstanceCache, TrapError
from trio_wasmcache._cache.open import open_with
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.hosts import INSTANCES
from trio_wasmcache._log import InlineLogWriter
from trio_wasmcache.testing import FakeEngine, check_invariants, open_fake_cache

PAGE = 65536
# What one call of `kit.costly` burns, on either engine, is at least this.
COSTLY = 50_000
BUSY = (
    "(local $i i64) (loop (local.set $i (i64.add (local.get $i) (i64.const 1)))"
    f" (br_if 0 (i64.lt_u (local.get $i) (i64.const {COSTLY // 5}))))"
)


# What a host function can invoke: the first burns as much as a call of `kit.costly`.
CALLED_BACK = f"""
(func (export "double") (param i64) (result i64) {BUSY} (i64.mul (local.get 0) (i64.const 2)))
(func (export "swap") (param i32 f64) (result f64 i32) (local.get 1) (local.get 0))
(func (export "nothing"))
(func (export "trap") (unreachable))
"""


class ListLogger:
    """A logger that keeps its events: (level, event, fields), in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))

    def fields(self, event: str) -> list[dict[str, Any]]:
        """Of every event of that name (without ``wasmcache.``)."""
        return [fields for _, name, fields in self.lines if name == f"wasmcache.{event}"]

    def reasons(self) -> list[str]:
        """Why instances went, in order."""
        return [fields["reason"] for fields in self.fields("evicted")]


class FakeKit:
    """Modules that only pretend."""

    name = "fake"

    def __init__(self) -> None:
        self.engine = FakeEngine()

    def open(
        self, config: CacheConfig | None = None, *, logger: Any = None
    ) -> AbstractAsyncContextManager[InstanceCache]:
        opening = open_fake_cache(
            patient(config), engine=self.engine, logger=logger or ListLogger()
        )
        return _checked(opening)

    def adding(self, number: int, *, pages: int = 1, slow_start: bool = False) -> bytes:
        """Adds `number` to its argument. A slow start burns what a call of `costly` does."""
        start_fuel = COSTLY + 1 if slow_start else 0
        return self.engine.module(lambda x: x + number, memory_pages=pages, start_fuel=start_fuel)

    def unresettable(self) -> bytes:
        """Gives its argument back; its instances can't be put back."""
        return self.engine.module(resettable=False)

    def adding_two(self) -> bytes:
        """Adds two arguments."""
        return self.engine.module(lambda x, y: x + y, params=("i64", "i64"))

    def endless(self) -> bytes:
        return self.engine.module(fuel=math.inf)

    def costly(self) -> bytes:
        """Gives its argument back after burning some fuel."""
        return self.engine.module(fuel=COSTLY + 1)

    def trapping(self) -> bytes:
        def trap(x: int) -> int:
            raise TrapError("wasm trap: unreachable", code="unreachable")

        return self.engine.module(trap)

    def growing(self) -> bytes:
        """One page more with each call."""
        return self.engine.module(grow_pages=1)

    def asking(self, names: Iterable[str] = ("ask",)) -> bytes:
        """Gives what host function ``host.<name>`` answers to its argument; the first one's."""
        return self.engine.module(
            lambda *answers: answers[0], host_imports=[("host", name) for name in names]
        )

    def calling_back(self, endless: bool = False) -> bytes:
        """As `asking`, of one; exports what a host function can invoke: see `CALLED_BACK`.

        If it is endless, no invoke ends by itself, and its call does not return.
        """

        def trap() -> None:
            raise TrapError("wasm trap: unreachable", code="unreachable")

        return self.engine.module(
            host_imports=[("host", "ask")],
            fuel=math.inf if endless else COSTLY + 1,
            exports={
                "double": lambda x: 2 * x,
                "swap": lambda x, y: (y, x),
                "nothing": lambda: None,
                "trap": trap,
            },
        )

    def importing(self, *, pages: int = 1, slow_start: bool = False) -> bytes:
        """Gives what another part, ``part.run``, gives for its argument."""
        return self.engine.module(
            lambda answer: answer,
            host_imports=[("part", "run")],
            memory_pages=pages,
            start_fuel=COSTLY + 1 if slow_start else 0,
        )

    def endless_start(self) -> bytes:
        return self.engine.module(start_fuel=math.inf)

    def importing_memory(self, pages: int = 1, most: int | None = None) -> bytes:
        """Gives its argument back, and imports its memory as ``env.memory``."""
        return self.engine.module(
            memory_pages=pages, max_pages=most, memory_import=("env", "memory")
        )


class WasmtimeKit:
    """Real ones, written as text."""

    name = "wasmtime"

    def open(
        self, config: CacheConfig | None = None, *, logger: Any = None
    ) -> AbstractAsyncContextManager[InstanceCache]:
        return _checked(open_real_cache(config, logger=logger))

    def adding(self, number: int, *, pages: int = 1, slow_start: bool = False) -> bytes:
        start = f"(start $begin) (func $begin {BUSY})" if slow_start else ""
        return function(f"(i64.add (local.get 0) (i64.const {number}))", pages=pages, after=start)

    def unresettable(self) -> bytes:
        return function("(local.get 0)", after='(data "can be dropped")')

    def adding_two(self) -> bytes:
        return function("(i64.add (local.get 0) (local.get 1))", params="i64 i64")

    def endless(self) -> bytes:
        return function("(loop (br 0)) (unreachable)")

    def costly(self) -> bytes:
        return function(f"{BUSY} (local.get 0)")

    def trapping(self) -> bytes:
        return function("(unreachable)")

    def growing(self) -> bytes:
        return function("(drop (memory.grow (i32.const 1))) (local.get 0)")

    def asking(self, names: Iterable[str] = ("ask",)) -> bytes:
        names = tuple(names)
        imports = "".join(
            f'(import "host" "{name}" (func ${name} (param i64) (result i64)))' for name in names
        )
        rest = "".join(f"(drop (call ${name} (local.get 0)))" for name in names[1:])
        return function(
            f"(local $first i64) (local.set $first (call ${names[0]} (local.get 0)))"
            f"{rest} (local.get $first)",
            before=imports,
        )

    def calling_back(self, endless: bool = False) -> bytes:
        return function(
            "(call $ask (local.get 0))",
            before='(import "host" "ask" (func $ask (param i64) (result i64)))',
            after=CALLED_BACK.replace(BUSY, "(loop (br 0))") if endless else CALLED_BACK,
        )

    def importing(self, *, pages: int = 1, slow_start: bool = False) -> bytes:
        before = '(import "part" "run" (func $part (param i64) (result i64)))'
        start = f"(start $begin) (func $begin {BUSY})" if slow_start else ""
        return function("(call $part (local.get 0))", pages=pages, before=before, after=start)

    def endless_start(self) -> bytes:
        return function("(local.get 0)", after="(start $begin) (func $begin (loop (br 0)))")

    def importing_memory(self, pages: int = 1, most: int | None = None) -> bytes:
        made: bytes = wasmtime.wat2wasm(
            f"""(module (import "env" "memory" (memory {pages} {"" if most is None else most}))
            (func (export "run") (param i64) (result i64) (local.get 0)))"""
        )
        return bytes(made)


Kit = FakeKit | WasmtimeKit


def nightly() -> bool:
    """Whether Hypothesis tries as much as at night (see `conftest`)."""
    return settings.default.max_examples > 100


def tries(number: int, **more: Any) -> settings:
    """So many examples for Hypothesis to try, and ten times as many at night (see `conftest`)."""
    return settings(max_examples=number * settings.default.max_examples // 100, **more)


def function(
    body: str, *, params: str = "i64", pages: int = 1, before: str = "", after: str = ""
) -> bytes:
    """A module that exports ``run`` and its memory, from WebAssembly text."""
    made: bytes = wasmtime.wat2wasm(
        f'(module {before} (memory (export "memory") {pages})'
        f' (func $run (export "run") (param {params}) (result i64) {body}) {after})'
    )
    return made


def patient(config: CacheConfig | None) -> CacheConfig:
    """Return limits by which nothing is evicted because the machine is slow.

    The default `idle_timeout` is left as it is only on a clock that the test moves.
    """
    config = config or CacheConfig()
    moved = isinstance(trio.lowlevel.current_clock(), MockClock)
    if moved or config.idle_timeout != CacheConfig().idle_timeout:
        return config
    return evolve(config, idle_timeout=math.inf)


@asynccontextmanager
async def open_real_cache(
    config: CacheConfig | None = None, *, logger: Any = None
) -> AsyncIterator[InstanceCache]:
    """`open_cache`, and a look afterwards at whether anything native was left open."""
    config = patient(config)
    if logger is None:
        opening = trio_wasmcache.open_cache(config, logger=ListLogger())
    else:
        # Written at once, so that a test can look while the cache is open.
        engine = WasmtimeEngine(config.instance_stack_size, compiler=config.compiler)
        opening = open_with(config, engine, InlineLogWriter(logger))
    async with opening as cache:
        yield cache
    assert not INSTANCES
    check_all_closed()


@asynccontextmanager
async def _checked(
    opening: AbstractAsyncContextManager[InstanceCache],
) -> AsyncIterator[InstanceCache]:
    async with opening as cache:
        yield cache
        check_invariants(cache)
    check_invariants(cache)
    stats = cache.stats()
    assert (stats.idle_instances, stats.running_instances, stats.waiting) == (0, 0, 0)
    assert (stats.total_size, stats.code_size, stats.loaded_modules) == (0, 0, 0)


def stack_of(cache: InstanceCache) -> int:
    """Bytes of stack of a running instance."""
    return cache.config.instance_stack_size


async def add(cache: InstanceCache, name: str, wasm: bytes, **more: Any) -> Any:
    """Register a module of a kit."""
    more = {"args": ("i64",), "returns": "i64", "export": "run", **more}
    return await cache.register(name, wasm, **more)


async def add_calling_back(
    cache: InstanceCache,
    kit: Kit,
    ask: Any,
    *,
    name: str = "asks",
    endless: bool = False,
    **more: Any,
) -> Any:
    """Register a function that asks a reentrant host function; its answer is the result."""
    host = HostFunction(ask, ("i64",), ("i64",), reentrant=True)
    wasm = kit.calling_back(endless)
    return await add(cache, name, wasm, imports={"host": {"ask": host}}, **more)


async def add_asking(cache: InstanceCache, kit: Kit, *hosts: Any, name: str = "asks") -> Any:
    """Register a function that asks host functions; the first one's answer is its result."""
    names = [f"ask{number}" for number in range(len(hosts))]
    given = {
        one: HostFunction(host, ("i64",), ("i64",)) for one, host in zip(names, hosts, strict=True)
    }
    return await add(cache, name, kit.asking(names), imports={"host": given})


async def add_two_parts(
    cache: InstanceCache,
    kit: Kit,
    part: bytes,
    *,
    name: str = "f",
    pages: int = 1,
    slow_start: bool = False,
    **more: Any,
) -> Any:
    """Register a function that gives what ``run`` of a part gives for its argument."""
    wasm = kit.importing(pages=pages, slow_start=slow_start)
    return await add(cache, name, wasm, abi=TwoParts(part), **more)
