"""Nothing of the host program's is waited for: neither its threads nor its limiters.

An application may fill the default threads of Trio with blocking work, which may even wait for
this cache. So no work of ours goes through them, and closing wakes whoever waits for ours.
"""

from __future__ import annotations

import ast
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from guests import COUNT, binary
from kits import FakeKit, ListLogger

import trio_wasmcache
from trio_wasmcache import CacheConfig, InstanceCache, MiB, open_cache
from trio_wasmcache.testing import check_invariants, open_fake_cache

PACKAGE = Path(trio_wasmcache.__file__).parent
I64, STR = ("i64",), ("str",)
ADD = '(func (export "{}") (param i64) (result i64) (i64.add (local.get 0) (i64.const 1)))'
TEXT = f"(module {ADD.format('text')})"
# More than what is hashed and loaded on the event loop; so is what is compiled of it.
DATA = f'(memory (export "memory") 8) (data (i32.const 0) "{"x" * 300_000}")'
LARGE_TEXT = f"(module {DATA} {ADD.format('large')})"
UPPER = """
(module (memory (export "memory") 1)
  (func (export "alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "upper") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
            (i64.extend_i32_u (local.get 1)))))
"""


class Stream:
    """Arrow data of somebody else's."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def __arrow_c_stream__(self, schema: Any = None) -> Any:
        return self._made.__arrow_c_stream__(schema)


def waits_for_default_threads(tree: ast.AST) -> Iterator[int]:
    """Lines of calls that take one of Trio's default threads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trio.to_thread"):
            yield node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "trio.to_thread.run_sync":
            if "limiter" not in [keyword.arg for keyword in node.keywords]:
                yield node.lineno
        elif called.startswith("trio.") and called.rpartition(".")[2] in (
            "Path",
            "open_file",
            "wrap_file",
            "getaddrinfo",
            "getnameinfo",
            "open_tcp_stream",
            "current_default_thread_limiter",
        ):
            yield node.lineno


def test_no_file_of_the_package_takes_a_default_thread() -> None:
    """`trio.to_thread.run_sync` has a limiter of ours; what has none to give is not used."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in PACKAGE.rglob("*.py")
        for line in waits_for_default_threads(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "trio.to_thread.run_sync(f, 1, abandon_on_cancel=True)",
        "from trio.to_thread import run_sync",
        "trio.Path('x')",
        "await trio.open_file('x')",
    ],
)
def test_what_takes_a_default_thread_is_found(line: str) -> None:
    """The search above can find something."""
    tree = ast.parse(f"async def main():\n    {line}")
    assert list(waits_for_default_threads(tree)) == [2]


@asynccontextmanager
async def no_default_threads() -> AsyncIterator[None]:
    """All of Trio's default threads are taken; and there are few."""
    limiter = trio.to_thread.current_default_thread_limiter()
    total = limiter.total_tokens
    holders = [object() for _ in range(40)]
    for holder in holders:
        await limiter.acquire_on_behalf_of(holder)
    limiter.total_tokens = 1
    try:
        yield
        assert limiter.statistics().tasks_waiting == 0
        assert limiter.borrowed_tokens == 40
    finally:
        limiter.total_tokens = total
        for holder in holders:
            limiter.release_on_behalf_of(holder)


async def walk(cache: InstanceCache, folder: Path) -> None:
    """Use all that a cache can do."""
    text, large = folder / "text.wat", folder / "large.wat"
    text.write_text(TEXT)
    large.write_text(LARGE_TEXT)
    await cache.register("text", TEXT, args=I64, returns="i64")
    await cache.register("text", text, args=I64, returns="i64", replace=True)
    await cache.register("text", binary(ADD.format("text")), args=I64, returns="i64", replace=True)
    await cache.register("large", large, args=I64, returns="i64", isolation="reset")
    await cache.register("large", LARGE_TEXT, args=I64, returns="i64", replace=True)
    await cache.register("count", binary(COUNT), args=I64, returns="i64", export="run")
    await cache.register("upper", UPPER, args=STR, returns="str", abi="buffer")
    async with cache.acquire("large", I64) as lease:
        assert await lease.call(1) == 2
        assert lease.memory.size == 8 * 65536
    async with cache.acquire("count", I64) as lease:
        assert await lease.call(2_000_000) == 2_000_000  # in a thread
    async with cache.scheduling_group("oltp", capacity=2) as group:
        async with group.acquire("text", I64) as lease:
            columns = [[1, 2], pa.array([1, 2]), Stream(pa.chunked_array([[1, 2]]))]
            for column in columns:
                assert pa.array(await lease.map([column])).to_pylist() == [2, 3]
            table = pa.table({"x": [1, 2]})
            assert (await lease.map(table)).to_pylist() == [2, 3]
            assert (await lease.map(Stream(table))).to_pylist() == [2, 3]
            long = list(range(5000))
            assert (await lease.map([pa.array(long)])).to_pylist() == [n + 1 for n in long]
        async with group.acquire("upper", STR) as lease:
            words = [str(number) for number in range(2000)]
            plain = await lease.map([words])
            coded = await lease.map([pa.array(words).dictionary_encode()])
            assert coded.to_pylist() == list(plain)
    await cache.warm("text", I64)
    resident = await cache.resident_bytes()
    assert resident.code > 0
    cache.remove("large")
    cache.resize(max_size=1 * MiB, max_threads=1)
    assert cache.stats().functions == 3
    check_invariants(cache)


@pytest.mark.parametrize("apart", [False, True], ids=["threads", "processes"])
async def test_the_whole_public_face_goes_without_default_threads(
    tmp_path: Path, apart: bool
) -> None:
    """Opening, with a folder for code and compilers apart, all that is between, and closing."""
    config = CacheConfig(
        cache_dir=tmp_path / "code" if apart else None,
        compile_memory=2048 * MiB if apart else None,
    )
    (tmp_path / "code").mkdir(mode=0o700)
    async with no_default_threads():
        async with open_cache(config, logger=ListLogger()) as cache:
            await walk(cache, tmp_path)


async def test_default_threads_may_wait_for_the_cache(tmp_path: Path) -> None:
    """Each of them holds the only default thread until the cache has done all of it."""
    limiter = trio.to_thread.current_default_thread_limiter()
    total, limiter.total_tokens = limiter.total_tokens, 1
    try:
        async with open_cache(logger=ListLogger()) as cache:
            await trio.to_thread.run_sync(trio.from_thread.run, walk, cache, tmp_path)
    finally:
        limiter.total_tokens = total


async def test_a_stream_may_wait_for_batches_of_the_same_cache() -> None:
    """Reading what the user gave waits for no thread that another such reading may hold."""

    class Nested(Stream):
        """Asks the cache for what it holds."""

        depth = 50

        def __arrow_c_stream__(self, schema: Any = None) -> Any:
            return trio.from_thread.run(self.make, trio_token=token).__arrow_c_stream__(schema)

        async def make(self) -> Any:
            Nested.depth -= 1
            column = Nested(None) if Nested.depth else pa.chunked_array([[0]])
            async with cache.acquire("text", I64) as lease:
                return pa.chunked_array([await lease.map([column])])

    token = trio.lowlevel.current_trio_token()
    async with open_cache(CacheConfig(max_code_size=256 * MiB), logger=ListLogger()) as cache:
        await cache.register("text", TEXT, args=I64, returns="i64", concurrency=60)
        assert (await Nested(None).make()).to_pylist() == [50]


async def test_closing_wakes_who_waits_for_a_load() -> None:
    """Whatever holds it up: here, one that never ends but by being cancelled."""
    fake = FakeKit()

    async def load(*_: Any) -> Any:
        await trio.sleep_forever()

    async def acquire(cache: InstanceCache) -> None:
        with pytest.raises(trio.ClosedResourceError, match="the cache is closed"):
            async with cache.acquire("run", I64):
                raise AssertionError

    async with trio.open_nursery() as nursery:
        async with open_fake_cache(engine=fake.engine, logger=ListLogger()) as cache:
            await cache.register("run", fake.adding(1), args=I64, returns="i64", concurrency=2)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fake.engine, "load", load)
                nursery.start_soon(acquire, cache)
                nursery.start_soon(acquire, cache)
                await trio.testing.wait_all_tasks_blocked()
        check_invariants(cache)


async def test_closing_wakes_who_waits_for_a_stream() -> None:
    """One that does not end before the cache is closed; its thread is left to itself."""
    ended = trio.Event()

    class Endless(Stream):
        def __arrow_c_stream__(self, schema: Any = None) -> Any:
            trio.from_thread.run_sync(begun.set, trio_token=token)
            trio.from_thread.run(ended.wait, trio_token=token)
            return super().__arrow_c_stream__(schema)

    async def batch() -> None:
        with pytest.raises(trio.ClosedResourceError, match="the cache is closed"):
            async with cache.acquire("text", I64) as lease:
                await lease.map([Endless(pa.chunked_array([[1]]))])
        woken.set()

    token, begun, woken = trio.lowlevel.current_trio_token(), trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        async with open_cache(logger=ListLogger()) as cache:
            await cache.register("text", TEXT, args=I64, returns="i64")
            nursery.start_soon(batch)
            await begun.wait()
        check_invariants(cache)
        await woken.wait()
        ended.set()
