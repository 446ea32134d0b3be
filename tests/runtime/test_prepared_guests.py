"""A prepared function and the same calls made first give the same, for any module there is."""

from __future__ import annotations

import lzma
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzz.generate import generate
from kits import nightly, open_real_cache
from runtime.isolation_guests import hider
from runtime.several import Several

from trio_wasmcache import (
    CacheConfig,
    FuncType,
    GuestError,
    HostFunction,
    HostGlobal,
    HostMemory,
    HostTable,
    InvalidModuleError,
    Lease,
    LinkError,
    LoadError,
    MiB,
    Prepare,
    Wasi,
)
from trio_wasmcache._core.wasm.reader import GlobalType, ModuleInfo, read_module

UDFS = Path(__file__).parents[1] / "udfs"
NIGHTLY = nightly()
# Bytes of the modules that are tried in each run.
SMALL = 6_000
CONFIG = CacheConfig(
    total_fuel=2_000_000, memory_limit=32 * MiB, max_instance_size=32 * MiB, max_size=256 * MiB
)
ISOLATIONS = ("reuse", "reset", "fresh")
NUMBERS = {"i32", "i64", "f32", "f64"}
VALUES = (0, 1, 2, 3, 7, 8, 64, 255, 1024, 65_536)
# They take no part in what is compared: the first ends it, the second is called by itself.
LEFT_OUT = {"_start", "_initialize"}


def modules() -> list[Any]:
    found = []
    for path in sorted(UDFS.rglob("*.wasm*")):
        if NIGHTLY or path.stat().st_size <= SMALL:
            found.append(pytest.param(path, id=str(path.relative_to(UDFS))))
    npm = os.environ.get("WASMCACHE_NPM")
    if NIGHTLY and npm:
        found += [pytest.param(path, id=path.name) for path in sorted(Path(npm).rglob("*.wasm"))]
    return found


def read(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def giving(kind: str) -> Any:
    return lambda *_values: 0.5 if kind in ("f32", "f64") else 1


def imports_of(info: ModuleInfo) -> dict[str, dict[str, Any]]:
    """What gives the module all that it imports; its functions are pure."""
    given: dict[str, dict[str, Any]] = {}
    for item in info.imports:
        if item.module.startswith("wasi"):
            continue
        made: Any
        match item.type:
            case FuncType(params, results):
                if {*params, *results} <= NUMBERS and len(results) < 2:
                    fn = giving(results[0]) if results else lambda *_values: None
                    made = HostFunction(fn, params, results, pure=True)
                else:
                    continue
            case GlobalType(kind, _):
                if kind == "v128":
                    continue
                made = HostGlobal(kind, None if "ref" in kind else 3)
            case _:
                made = HostMemory() if item.kind == "memory" else HostTable()
        given.setdefault(item.module, {})[item.name] = made
    return given


class Trial:
    """One module, whose exports are called at random."""

    def __init__(self, wasm: bytes, random: Random) -> None:
        self.random = random
        self.wasm = wasm
        self.info = info = read_module(wasm)
        self.calls = [
            (export.name, info.functions[export.index])
            for export in info.exports
            if export.kind == "func"
            and export.name not in LEFT_OUT
            and {*info.functions[export.index].params, *info.functions[export.index].results}
            <= NUMBERS
        ]
        self.given = {
            "wasm": wasm,
            "abi": "plain",
            "imports": imports_of(info),
            "wasi": Wasi(random=3, clock=10),
            "missing": "trap",
        }

    def call(self) -> tuple[str, FuncType, tuple[Any, ...]]:
        name, kind = self.random.choice(self.calls)
        return name, kind, self.values(kind)

    def values(self, kind: FuncType) -> tuple[Any, ...]:
        return tuple(
            self.random.choice(VALUES) if one[0] == "i" else self.random.random()
            for one in kind.params
        )


async def made(lease: Lease[Any], values: tuple[Any, ...]) -> object:
    """What came of a call: its result, which may be NaN, or the kind of its error."""
    try:
        return repr(await lease.call(*values))
    except GuestError as error:
        return type(error).__name__, getattr(error, "code", None)


async def outcome(lease: Lease[Any], calls: list[tuple[Any, ...]]) -> list[object]:
    """What came of calls, up to the first that failed, and what is in the memory then."""
    found: list[object] = []
    for values in calls:
        found.append(await made(lease, values))
        if isinstance(found[-1], tuple):
            return found
    try:
        memory = lease.memory
        found.append(hash(memory.read(0, memory.size)))
    except LookupError:
        pass
    return found


async def compare(trial: Trial) -> int:
    """Compare one export under all isolations; return how many preparations were possible."""
    if not trial.calls:
        return 0
    first = [trial.call() for _ in range(trial.random.randint(1, 3))]
    name, kind, _ = trial.call()
    again = [trial.values(kind) for _ in range(3)]
    prepare = tuple(
        Prepare(export, values, type.params, type.results or None) for export, type, values in first
    )
    prepared = 0
    async with open_real_cache(CONFIG) as cache:
        # Each call is of any export, so that several can be called in one instance.
        given = {**trial.given, "abi": Several(kind), "args": ("any",), "export": name}
        try:
            plain: Any = await cache.register("plain", isolation="fresh", **given)
        except (InvalidModuleError, LinkError):  # such as one that imports a shared memory
            return 0
        expected: list[object] | None = None
        with suppress(GuestError, LoadError):
            async with plain.acquire() as lease:
                for export, _, values in first:
                    await lease.call([(export, values)])
                expected = await outcome(lease, [((name, values),) for values in again])
        for isolation in ISOLATIONS if NIGHTLY else trial.random.sample(ISOLATIONS, 1):
            given = {**trial.given, "args": kind.params, "returns": kind.results or None}
            given |= {"export": name, "isolation": isolation, "prepare": prepare}
            if expected is None:
                with pytest.raises(LoadError, match="can't be prepared"):
                    await cache.register(f"f {isolation}", **given)
                continue
            f: Any = await cache.register(f"f {isolation}", **given)
            for _ in range(1 if isolation == "reuse" else 2):
                async with f.acquire() as lease:
                    assert await outcome(lease, again) == expected
            prepared += 1
    return prepared


@pytest.mark.parametrize("path", modules())
async def test_modules_of_toolchains(path: Path) -> None:
    """All that C, Rust, Zig, Go, AssemblyScript and Emscripten make of memory, tables, globals."""
    for seed in range(20 if NIGHTLY else 1):
        await compare(Trial(read(path), Random(seed)))


async def test_generated_modules() -> None:
    """All kinds of segments, memories, tables and globals; many of the calls trap."""
    prepared = 0
    for seed in range(400 if NIGHTLY else 12):
        random = Random(seed)
        prepared += await compare(Trial(generate(random), random))
    assert prepared


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_every_place_where_a_guest_can_hide_something(isolation: Any) -> None:
    """What a call of `prepare` hides anywhere is found by each first call of an instance."""
    wasm = hider()
    async with open_real_cache() as cache:
        given = {"args": ("i64",), "returns": "i64", "export": "run", "isolation": isolation}
        hide = Prepare("run", (9,), ("i64",), "i64")
        plain = await cache.register("plain", wasm, **{**given, "isolation": "fresh"})
        async with plain.acquire() as lease:
            assert await lease.call(0) == 0
            await lease.call(9)
            everywhere = await lease.call(0)
        f = await cache.register("f", wasm, **given, prepare=(hide,))
        for _ in range(3):
            async with f.acquire() as lease:
                assert await lease.call(0) == everywhere != 0
