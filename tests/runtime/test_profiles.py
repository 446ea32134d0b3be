"""Profiles of real guests: whom they name, with lines, in batches and threads, and with WASI."""

from __future__ import annotations

import json
import math
from array import array
from pathlib import Path
from typing import Any

import pytest
from core.profiles.test_tally import Thread
from kits import WasmtimeKit
from profiles import window
from promoting import WatchedLogger
from runtime.test_source_lines import FILES, TYPES, bytes_of
from trio.testing import MockClock

from trio_wasmcache import CacheConfig, Prepare, Wasi
from trio_wasmcache._engine.wasmtime import sampling

KEPT = CacheConfig(idle_timeout=math.inf, offload_after=None)
I64 = ("i64",)
LOOP = """(loop $l (local.set $n (i64.sub (local.get $n) (i64.const 1)))
  (br_if $l (i64.gt_s (local.get $n) (i64.const 0))))"""
# Fifty exports, each with a loop of its own; that of number 7 does a hundred times as much.
FIFTY = "\n".join(
    f"""(func $loop{number} (param $n i64) {LOOP})
    (func (export "f{number}") (param $n i64) (result i64)
      (call $loop{number} (i64.mul (local.get $n) (i64.const {100 if number == 7 else 1})))
      (local.get $n))"""
    for number in range(50)
)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples after a few units of fuel, however long taking one takes here."""
    monkeypatch.setattr(sampling, "INTERVAL", 200)
    monkeypatch.setattr(sampling, "REST", 0)


async def test_one_slow_function_among_fifty(
    real: WasmtimeKit, mock_clock: MockClock, tmp_path: Path
) -> None:
    """Its loop is what burns most, in each form of a profile taken as it is by default."""
    logger = WatchedLogger()
    async with real.open(KEPT, logger=logger) as cache:
        made = [
            await cache.register(f"f{number}", f"(module {FIFTY})", args=I64, returns="i64")
            for number in range(50)
        ]
        for function in made:
            await function.call(1)
        async with window(cache, logger, mock_clock) as found:
            for _ in range(20):
                for function in made:
                    assert await function.call(2_000) == 2_000
    profile = found.profile
    first, second, *_ = profile.fuel_by_function.items()
    assert first[0] == "loop7"
    assert first[1] > 0.5 * profile.fuel
    assert second[1] < 0.1 * profile.fuel
    assert profile.skipped == {}
    stacks = [line.rpartition(" ")[::2] for line in profile.collapsed().splitlines()]
    assert max(stacks, key=lambda it: int(it[1]))[0] == "main;f7(i64);func[15];loop7"
    assert "loop7" in profile.html()
    profile.save(tmp_path / "profile.json")
    threads = json.loads((tmp_path / "profile.json").read_text())["threads"]
    weights = {thread["name"]: Thread(thread).weights() for thread in threads}
    assert max(weights, key=lambda name: sum(weights[name].values())) == "f7(i64)"
    assert max(weights["f7(i64)"].items(), key=lambda it: it[1])[0][-1] == "loop7"


@pytest.mark.parametrize("file", FILES)
async def test_lines(
    file: str, real: WasmtimeKit, mock_clock: MockClock, often: None, tmp_path: Path
) -> None:
    """They are those of the source, in the page and in what the Firefox Profiler reads."""
    logger = WatchedLogger()
    async with real.open(KEPT, logger=logger) as cache:
        function = await cache.register("half_of", bytes_of(file), **TYPES)
        await function.call(6, 3)
        async with window(cache, logger, mock_clock) as found:
            for _ in range(500):
                await function.call(6, 3)
    profile = found.profile
    assert "main;half_of(i32,_i32);half_of;quotient " in profile.collapsed()
    assert "/src/clang.c:" in profile.html()
    profile.save(tmp_path / "profile.json")
    (thread,) = json.loads((tmp_path / "profile.json").read_text())["threads"]
    lines = Thread(thread).lines()
    assert {function for function, _, _ in lines} <= {"quotient", "half_of"}
    assert {file for _, file, _ in lines} == {"/src/clang.c"}
    assert all(5 < line < 30 for _, _, line in lines)


@pytest.mark.parametrize("offload_after", [None, 0])
@pytest.mark.parametrize("compiler", ["optimizing", "baseline"])
async def test_batches_and_threads(
    offload_after: int | None,
    compiler: Any,
    real: WasmtimeKit,
    mock_clock: MockClock,
    often: None,
) -> None:
    """A driver calls for each row; the samples are of what it calls, and it is in no stack."""
    logger = WatchedLogger()
    config = CacheConfig(
        idle_timeout=math.inf, offload_after=offload_after, compiler=compiler, yield_fuel=5_000
    )
    async with real.open(config, logger=logger) as cache:
        wasm = f'(module {FIFTY} (memory (export "memory") 1))'
        function = await cache.register("f7", wasm, args=I64, returns="i64")
        await function.call(1)
        async with window(cache, logger, mock_clock) as found:
            for _ in range(2):
                async with function.acquire() as lease:
                    rows = await lease.map([array("q", [3] * 200)])
                    assert list(rows) == [3] * 200
            assert await function.call(300) == 300
    paths = {line.rpartition(" ")[0] for line in found.profile.collapsed().splitlines()}
    assert "main;f7(i64);func[15];loop7" in paths
    assert all(path.startswith("main;f7(i64)") for path in paths)
    assert {part for path in paths for part in path.split(";")[2:]} <= {"func[15]", "loop7"}


async def test_prepared_functions_with_wasi(
    real: WasmtimeKit, mock_clock: MockClock, often: None
) -> None:
    """The variant begins as the function does; what it writes is written, and its start counts."""
    wat = f"""(module
      (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
      (memory (export "memory") 1) (global $set (mut i64) (i64.const 0))
      (func (export "_initialize"))
      (func (export "set") (param i64) (global.set $set (local.get 0)))
      (func $work (param $n i64) {LOOP})
      (func (export "run") (param $n i64) (result i64)
        (drop (call $random (i32.const 0) (i32.const 8)))
        (call $work (local.get $n)) (i64.add (global.get $set) (i64.load (i32.const 0)))))"""
    logger = WatchedLogger()
    async with real.open(KEPT, logger=logger) as cache:
        function = await cache.register(
            "run",
            wat,
            args=I64,
            returns="i64",
            isolation="reset",
            prepare=(Prepare("set", (7,), I64),),
            wasi=Wasi(random=1),
        )
        before = await function.call(2_000)
        async with window(cache, logger, mock_clock) as found:
            assert await function.call(2_000) == before
            assert await function.call(2_000) == before
        assert await function.call(2_000) == before
    assert next(iter(found.profile.fuel_by_function)) == "work"
    assert logger.fields("profiled")[0]["compile_seconds"] >= 0
