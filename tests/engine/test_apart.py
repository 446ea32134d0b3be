"""Modules compiled in a process of their own: what would take the machine down is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from engine.support import quiet_cache, wat
from hostile.bombs import module, nested

from trio_wasmcache import InvalidModuleError, MiB
from trio_wasmcache._core.tiers import OPTIMIZING
from trio_wasmcache._engine.wasmtime.subprocess import SubprocessCompiler
from trio_wasmcache.testing import check_invariants

GOOD = wat('(module (memory 1) (func (export "run") (param i64) (result i64) local.get 0))')


def many_results() -> bytes:
    """80 KB that take gigabytes: loops in loops, each of which gives a result."""
    depth = 20_000
    return module(b"\0" + b"\x03\x7e" * depth + b"\x42\0" + b"\x0b" * (depth + 1))


def deep_loops() -> bytes:
    """90 KB that take half a minute, or so: the time goes with the square."""
    return module(nested(b"\x03\x40", 30_000))


async def test_what_is_compiled_apart_runs_here() -> None:
    """It is the same code, of the same size, whichever process compiled it."""
    sizes = set()
    for memory in (None, 512 * MiB):
        async with quiet_cache(compile_memory=memory) as cache:
            function = await cache.register("run", GOOD, args=("i64",), returns="i64")
            assert await function.call(42) == 42
            sizes.add(function.code_size)
            check_invariants(cache)
    assert len(sizes) == 1


@pytest.mark.usefixtures("optimizing_only")
@pytest.mark.parametrize(
    ("bomb", "memory", "said"),
    [
        (
            many_results,
            256 * MiB,
            r"run\(i64\): compiling it ended with status -6.*compile_memory is 268435456",
        ),
        (
            deep_loops,
            2048 * MiB,
            r"run\(i64\): compiling it took more than compile_seconds, 1:",
        ),
    ],
    ids=["memory", "time"],
)
async def test_a_bomb_is_refused(bomb: Callable[[], bytes], memory: int, said: str) -> None:
    """The process that compiled it ends; this one says so, and goes on."""
    async with quiet_cache(compile_memory=memory, compile_seconds=1) as cache:
        with pytest.raises(InvalidModuleError, match=said):
            await cache.register("run", bomb(), args=("i64",), returns="i64")
        assert cache.functions() == ()
        function = await cache.register("run", GOOD, args=("i64",), returns="i64")
        assert await function.call(42) == 42
        check_invariants(cache)


@pytest.mark.usefixtures("optimizing_only")
def test_less_than_a_second_is_a_limit() -> None:
    """What takes a few tenths of a second is refused by a limit of a hundredth."""
    wasm = module(nested(b"\x03\x40", 3000))
    with pytest.raises(InvalidModuleError, match=r"more than compile_seconds, 0\.01: raise it"):
        SubprocessCompiler(512 * 1024, 512 * MiB, 0.01).build(OPTIMIZING, [wasm])
    ((code, _),) = SubprocessCompiler(512 * 1024, 512 * MiB, 30.5).build(OPTIMIZING, [wasm])
    assert code


async def test_an_invalid_module_is_refused_in_the_same_words() -> None:
    """What wasmtime says about it comes through."""
    wasm = module(b"\0\x1a\x0b")
    said = []
    for memory in (None, 512 * MiB):
        async with quiet_cache(compile_memory=memory) as cache:
            with pytest.raises(InvalidModuleError, match="wasmtime can't compile it") as caught:
                await cache.register("run", wasm, args=("i64",), returns="i64")
            said.append(str(caught.value))
    assert said[0] == said[1]


def test_where_it_is_started_takes_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules of the working directory are not imported, whatever they are called."""
    for name in ("json", "trio", "wasmtime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    ((code, size),) = SubprocessCompiler(512 * 1024, 512 * MiB, 10).build(OPTIMIZING, [GOOD])
    assert size > 0
    assert code.startswith(b"\x7fELF")


def test_a_process_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock has the last word, where no CPU time is used."""
    monkeypatch.setattr(
        "trio_wasmcache._engine.wasmtime.subprocess.START", "import time; time.sleep(60)"
    )
    monkeypatch.setattr("trio_wasmcache._engine.wasmtime.subprocess.PATIENCE", 0.1)
    with pytest.raises(InvalidModuleError, match="compile_seconds"):
        SubprocessCompiler(512 * 1024, 512 * MiB, 0.01).build(OPTIMIZING, [GOOD])
