"""Processes that share a `cache_dir` compile each module once, by locks that nobody depends on."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from engine.support import ROOT, exported, quiet_cache
from engine.test_code_cache import STACK, code_files
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_wasmcache._core.tiers import OPTIMIZING
from trio_wasmcache._engine.wasmtime import code_cache, compile_locks, native
from trio_wasmcache._engine.wasmtime.code_cache import CodeCache
from trio_wasmcache._engine.wasmtime.new_module import new_module

WASM = exported("(i64.const 1)", "(result i64)")
PROCESSES = 3
MODULES = 20


def lock_file(folder: Path) -> Path:
    """Of the module, which is the only one."""
    files = (folder / "locks").iterdir()
    (file,) = [file for file in files if file.name != compile_locks.ALL]
    return file


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process has it, as far as anybody can tell."""
    with file.open("rb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def open_locks(folder: Path) -> list[str]:
    """Files of modules' locks that this process has open.

    Not all of its files: a thread that was given up, by an earlier test or as a cache closes, may
    open and close one at any time.
    """
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found.append(str(link.readlink()))
    locks = f"{folder.resolve() / 'locks'}/"
    return [file for file in found if file.startswith(locks) and file != locks + compile_locks.ALL]


async def compile_it(folder: Path) -> None:
    """Register the module in a cache that is opened for it."""
    async with quiet_cache(cache_dir=folder) as cache:
        await cache.register("f", WASM, args=(), returns="i64", export="f")


async def wait_until_it_waits(clock: MockClock) -> None:
    """Until somebody has found the lock taken a few times."""
    for _ in range(3):
        await wait_all_tasks_blocked()
        clock.jump(compile_locks.POLL)


async def test_it_waits_for_another_process(tmp_path: Path, mock_clock: MockClock) -> None:
    """As long as that one compiles; nothing is left open or locked."""
    folder = tmp_path / "code"
    await compile_it(folder)
    done = trio.Event()

    async def register() -> None:
        await compile_it(folder)
        done.set()

    async with trio.open_nursery() as nursery:
        with locked(lock_file(folder)):
            nursery.start_soon(register)
            await wait_until_it_waits(mock_clock)
            assert not done.is_set()
        while not done.is_set():
            await wait_all_tasks_blocked()
            mock_clock.jump(compile_locks.POLL)
    assert not open_locks(folder)
    with locked(lock_file(folder)):
        pass


async def test_it_does_not_wait_for_ever(tmp_path: Path, mock_clock: MockClock) -> None:
    """After `compile_seconds` and 5 s more it compiles without the lock, and leaves it alone."""
    folder = tmp_path / "code"
    await compile_it(folder)
    async with trio.open_nursery() as nursery:
        with locked(lock_file(folder)):
            nursery.start_soon(compile_it, folder)
            await wait_until_it_waits(mock_clock)
            mock_clock.jump(14)
            await wait_until_it_waits(mock_clock)
            assert nursery.child_tasks
            while nursery.child_tasks:
                await wait_all_tasks_blocked()
                mock_clock.jump(compile_locks.POLL)
            with pytest.raises(BlockingIOError), locked(lock_file(folder)):
                pass


async def test_a_wait_can_be_cancelled(tmp_path: Path, mock_clock: MockClock) -> None:
    """Nothing is left open or locked."""
    folder = tmp_path / "code"
    await compile_it(folder)
    async with trio.open_nursery() as nursery:
        with locked(lock_file(folder)):
            nursery.start_soon(compile_it, folder)
            await wait_until_it_waits(mock_clock)
            nursery.cancel_scope.cancel()
    assert not open_locks(folder)
    with locked(lock_file(folder)):
        pass


async def test_a_forked_child_does_not_keep_it(tmp_path: Path) -> None:
    """The child has a descriptor of the same open file, as here."""
    locks = CodeCache(tmp_path / "code", STACK).locks
    async with locks.held(WASM):
        file = lock_file(tmp_path / "code")
        (mine,) = [
            int(link.name)
            for link in Path("/proc/self/fd").iterdir()
            if link.resolve() == file.resolve()
        ]
        of_child = os.dup(mine)
        with pytest.raises(BlockingIOError), locked(file):
            pass
    with locked(file):
        pass
    os.close(of_child)


@pytest.mark.parametrize("what", ["no locks", "no folder", "no file"])
async def test_without_locks_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Where the file system has none, or somebody has put something else in their place."""
    folder = tmp_path / "code"

    def refuse(number: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    await compile_it(folder)
    if what == "no locks":
        monkeypatch.setattr(fcntl, "flock", refuse)
    elif what == "no folder":
        shutil.rmtree(folder / "locks")
    else:
        file = lock_file(folder)
        file.unlink()
        file.symlink_to("/dev/null")
    await compile_it(folder)
    assert not open_locks(folder)


def test_code_is_not_removed_before_it_can_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for the digest of what one has just written, but not for ever."""
    monkeypatch.setattr(code_cache, "CHECKS", 10**9)
    waits = threading.Event()
    monkeypatch.setattr(code_cache, "time", SimpleNamespace(sleep=lambda seconds: waits.set()))
    one, other = (CodeCache(tmp_path / "code", STACK) for _ in range(2))
    with one.locks.recording(), ThreadPoolExecutor() as executor:
        native.module_delete(new_module(one._engines[OPTIMIZING], WASM))
        (file,) = code_files(tmp_path / "code")
        compiled = executor.submit(
            other.compile, 0, OPTIMIZING, exported("(i64.const 2)", "(result i64)")
        )
        assert waits.wait(timeout=600)
        assert file.exists()
        one._note()
        native.module_delete(compiled.result())
    assert file.exists()
    with one.locks.recording():
        native.module_delete(new_module(one._engines[OPTIMIZING], exported("(nop)")))
        monkeypatch.setattr(code_cache, "CHECKS", 2)
        native.module_delete(other.compile(0, OPTIMIZING, WASM))
    assert file in code_files(tmp_path / "code")
    assert len(code_files(tmp_path / "code")) == 2, "what was never recorded is gone"


def test_processes_that_start_cold_compile_once(tmp_path: Path) -> None:
    """They register the same modules at the same time; each file is written once."""
    script = """
import contextlib, sys, trio
from pathlib import Path
from engine.support import exported, quiet_cache
from engine.test_code_cache import code_files
from trio_wasmcache._engine.wasmtime.code_cache import CodeCache

folder, seen, compile = Path(sys.argv[1]), set(), CodeCache.compile

def compile_and_look(self, plain, tier, wasm):
    made = compile(self, plain, tier, wasm)
    for file in code_files(folder):
        with contextlib.suppress(FileNotFoundError):
            seen.add((file.name, file.stat().st_mtime_ns))
    return made

async def main():
    async with quiet_cache(cache_dir=folder) as cache:
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(int(sys.argv[2])):
            wasm = exported(f"(i64.const {number})", "(result i64)")
            await cache.register(f"f{number}", wasm, args=(), returns="i64", export="f")

CodeCache.compile = compile_and_look
trio.run(main)
for name, written in seen:
    print(f"{name}@{written}")
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "code"), str(MODULES)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    written: set[str] = set()
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        written.update(process.communicate(timeout=600)[0].split())
        assert process.returncode == 0
    assert len(written) == MODULES
