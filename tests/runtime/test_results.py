"""What a guest makes the host allocate for results is counted before it is, and has a limit."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import trio
from abi.support import udf
from attrs import define, field
from batch.modules import binary, held, same
from batch.routes import drives, row_by_row
from kits import Kit, WasmtimeKit

from trio_wasmcache import (
    AbiError,
    BufferAbi,
    CacheConfig,
    Exports,
    FuelExhaustedError,
    Function,
    FuncType,
    Guest,
    HostFunction,
    InstanceCache,
    Invoke,
    KiB,
    Lease,
    MiB,
    ResultTooLargeError,
)
from trio_wasmcache._core.costs import ITEM_FUEL, copy_fuel
from trio_wasmcache._core.tally import ASCII_SIZE, BYTES_SIZE, NUMBER, SLOT, Tally, size_of
from trio_wasmcache.testing import check_invariants, snapshot

AT = 16
# (size) -> bytes: so many, from address 16. Its memory is 16 MiB of zeros.
FLOOD = f"""(module (memory (export "memory") 256)
  (func (export "run") (param i64) (result i64)
    (i64.or (i64.const {AT << 32}) (local.get 0)))
  (func (export "nul") (param i64) (result i32)
    (memory.fill (i32.const {AT}) (i32.const 120) (i32.wrap_i64 (local.get 0)))
    (i32.store8 (i32.add (i32.const {AT}) (i32.wrap_i64 (local.get 0))) (i32.const 0))
    (i32.const {AT})))"""
LARGEST = 16 * MiB - AT
# The same, with results that it wants back: traps if it gave another before that.
OWED = f"""(module (memory (export "memory") 256) (global $owes (mut i32) (i32.const 0))
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "free") (param i32)
    (if (i32.ne (local.get 0) (i32.const {AT})) (then (unreachable)))
    (global.set $owes (i32.const 0)))
  (func (export "run") (param i64) (result i64)
    (if (global.get $owes) (then (unreachable)))
    (global.set $owes (i32.const 1))
    (i64.or (i64.const {AT << 32}) (local.get 0))))"""


async def flood(
    cache: InstanceCache, text: str = FLOOD, export: str = "run", returns: str = "bytes"
) -> Function:
    """A function that returns as much as it is asked for."""
    abi = BufferAbi(result="nul") if export == "nul" else BufferAbi()
    return await cache.register(
        "flood", binary(text), args=("i64",), returns=returns, export=export, abi=abi
    )


@contextmanager
def peak() -> Iterator[list[int]]:
    """How much Python allocated in the block at most, beside what there was before."""
    gc.collect()
    tracemalloc.start()
    found: list[int] = []
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


ROUTES = ("driver", "rows", "nul")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("arrow", [False, True], ids=["list", "arrow"])
async def test_a_flood_in_a_batch_ends_at_its_limit(
    real: WasmtimeKit, route: str, arrow: bool
) -> None:
    """A guest of 150 bytes, 16 MB a row, 200 rows: no more is allocated than the limit allows."""
    pa = pytest.importorskip("pyarrow")
    limit = 64 * MiB
    async with real.open(CacheConfig(max_result_size=limit)) as cache:
        f = await flood(cache, export="nul" if route == "nul" else "run")
        size = LARGEST - 1
        column: Any = pa.array([size] * 200) if arrow else [size] * 200
        before = cache.stats()
        with row_by_row() if route == "rows" else nullcontext():
            async with f.acquire() as lease:
                held_before = cache.stats().accounted_size
                with peak() as most, pytest.raises(ResultTooLargeError) as caught:
                    await lease.map([column])
                assert most[0] < limit + 2 * size
                error = caught.value
                assert (error.row, error.values) == (
                    4 if arrow and route == "driver" else 3,
                    (size,),
                )
                assert error.function == "flood"
                for word in ("flood(i64) in row", "max_result_size = 67108864", "raise max_result"):
                    assert word in str(error)
                # The guest is intact, and the books are as they were.
                assert cache.stats().pending_results_size == 0
                assert await lease.call(3) == bytes(3) if route != "nul" else b"xxx"
                assert len(await lease.map([[1, 2]])) == 2
                stats = cache.stats()
                assert stats.accounted_size - stats.results_size <= held_before + 512 * KiB
        assert before.errors == {} and cache.stats().errors == {"ResultTooLargeError": 1}
        assert cache.stats().evictions["corrupted"] == 0
        check_invariants(cache)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("size", [100, 70_000, 200_000])
async def test_a_batch_of_bytes_at_its_limit(real: WasmtimeKit, route: str, size: int) -> None:
    """Ten rows of exactly the limit pass; with a byte less, the last of them is refused."""
    rows = 10
    exact = rows * (SLOT + BYTES_SIZE + size)
    for limit in (exact, exact - 1):
        async with real.open(CacheConfig(max_result_size=limit)) as cache:
            f = await flood(cache, export="nul" if route == "nul" else "run")
            with row_by_row() if route == "rows" else nullcontext():
                async with f.acquire() as lease:
                    if limit == exact:
                        assert list(map(len, await lease.map([[size] * rows]))) == [size] * rows
                        assert drives(lease) is (route == "driver")
                        continue
                    with pytest.raises(ResultTooLargeError, match=f"at least {exact} ") as caught:
                        await lease.map([[size] * rows])
                    assert caught.value.row == rows - 1
                    assert await lease.map([[size] * (rows - 1)])
            check_invariants(cache)


@pytest.mark.parametrize("size", [100, 70_000])
async def test_a_batch_of_bytes_for_arrow_at_its_limit(real: WasmtimeKit, size: int) -> None:
    """Bytes and an offset of eight for each row."""
    pa = pytest.importorskip("pyarrow")
    rows = 10
    exact = rows * (8 + size)
    async with real.open(CacheConfig(max_result_size=exact)) as cache:
        f = await flood(cache)
        async with f.acquire() as lease:
            assert len(await lease.map([pa.array([size] * rows)])) == rows
            cache.resize(max_result_size=exact - 1)
            with pytest.raises(ResultTooLargeError) as caught:
                await lease.map([pa.array([size] * rows)])
            assert caught.value.row == rows - 1
            assert len(await lease.map([pa.array([size])])) == 1


@pytest.mark.parametrize("size", [100, 5000, 70_000])
async def test_a_batch_that_frees_is_told_of_a_result_that_is_refused(
    real: WasmtimeKit, size: int
) -> None:
    """The guest gets its result back before the error is raised, in a call and in a batch."""
    config = CacheConfig(max_result_size=max(3 * size, KiB))
    async with real.open(config) as cache:
        f = await flood(cache, OWED)
        async with f.acquire() as lease:
            for _ in range(2):
                with pytest.raises(ResultTooLargeError) as caught:
                    await lease.map([[size] * 30])
                assert caught.value.row
                with pytest.raises(ResultTooLargeError):
                    await lease.call(10 * size + KiB)
                assert await lease.call(2) == bytes(2)
        check_invariants(cache)
        assert cache.stats().evictions["corrupted"] == 0


TEXTS = ["x" * 5000, "é" * 5000, "€" * 5000, "😀" * 5000, "x" * 5000 + "😀"]


@pytest.mark.parametrize("text", TEXTS, ids=["ascii", "latin", "wide", "widest", "mixed"])
@pytest.mark.parametrize("returns", ["text", "blob"])
async def test_a_call_at_its_limit(real: WasmtimeKit, text: str, returns: str) -> None:
    """One value counts as large as it is in Python, and is refused before it is made."""
    data = text.encode()
    exact = max(sys.getsizeof(text if returns == "text" else data), len(data))
    async with real.open(CacheConfig(max_result_size=exact)) as cache:
        f = await echo(cache, returns)
        async with f.acquire() as lease:
            assert await lease.call(data) == (text if returns == "text" else data)
            cache.resize(max_result_size=exact - 1)
            with pytest.raises(ResultTooLargeError, match=r"echo\(blob\) called with") as caught:
                await lease.call(data)
            assert caught.value.row is None
            assert await lease.call(b"x") in ("x", b"x")
        check_invariants(cache)


async def echo(cache: InstanceCache, returns: str, version: int = 2) -> Function:
    """A function that returns the bytes it is given as a value of any CQL type."""
    return await cache.register(
        "echo", udf(f"scylla_v{version}"), args=("blob",), returns=returns, export="echo"
    )


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def collection(items: Sequence[bytes], values: int = 1) -> bytes:
    return (len(items) // values).to_bytes(4, "big") + b"".join(map(frame, items))


N = 10_000
ONES = [bytes([7])] * N
NUMBERS = [number.to_bytes(4, "big") for number in range(N)]
COLLECTIONS = {
    "list<tinyint>": collection(ONES),
    "list<int>": collection(NUMBERS),
    "list<text>": collection([b"abc"] * N),
    "list<varint>": collection([b"\x01" * 9] * N),
    "set<int>": collection(NUMBERS),
    "map<int,int>": collection(NUMBERS, 2),
    "list<set<tinyint>>": collection([collection([b"\1"])] * N),
    "list<map<tinyint,tinyint>>": collection([collection([b"\1", b"\2"], 2)] * N),
    "list<list<tinyint>>": collection([collection([])] * N),
    "list<tuple<int,int,int,int,int,int,int,int,int,int>>": collection([b""] * N),
    "list<uuid>": collection([bytes(16)] * 4000),
    "list<duration>": collection([b"\2\2\2"] * 4000),
}


@pytest.mark.parametrize("name", COLLECTIONS, ids=str)
@pytest.mark.parametrize("version", [1, 2])
async def test_a_collection_counts_what_is_in_it(
    real: WasmtimeKit, name: str, version: int
) -> None:
    """Ints of 28 bytes for one of the guest's: half of it is as far as half of the limit goes."""
    data = COLLECTIONS[name]
    async with real.open(CacheConfig(total_fuel=2**60)) as cache:
        f = await echo(cache, name, version)
        async with f.acquire() as lease:
            value = await lease.call(data)
            size = size_of(value, 2**40)
            cache.resize(max_result_size=4 * size)
            assert await lease.call(data) == value
            assert (await lease.map([[data]])) == [value]
            assert cache.stats().pending_results_size == 0
            limit = max(size // 2, len(data))
            del value
            cache.resize(max_result_size=limit)
            for call in (lease.call(data), lease.map([[b"\0\0\0\0", data]])):
                if limit >= size * 9 // 10:
                    call.close()
                    continue
                with peak() as most, pytest.raises(ResultTooLargeError) as caught:
                    await call
                assert most[0] < 2 * limit + 2 * len(data) + MiB
                assert caught.value.row in (None, 1)
            assert await lease.call(b"\0\0\0\0") is not None
        check_invariants(cache)
        assert cache.stats().evictions["corrupted"] == 0


async def test_what_is_nested_is_not_copied_at_each_level(real: WasmtimeKit) -> None:
    """Thirty lists in each other around 2 MB take as much as one."""
    data, name = frame(bytes(2 * MiB)), "blob"
    for _ in range(30):
        data, name = frame((1).to_bytes(4, "big") + data), f"list<{name}>"
    async with real.open() as cache:
        f = await echo(cache, name)
        async with f.acquire() as lease:
            with peak() as most:
                value = await lease.call(data[4:])
            assert most[0] < 5 * len(data)
            for _ in range(30):
                (value,) = value
            assert value == bytes(2 * MiB)


@pytest.mark.parametrize("name", ["list<tinyint>", "set<int>", "map<int,int>"])
async def test_a_count_that_is_claimed_is_not_believed(real: WasmtimeKit, name: str) -> None:
    """Two thousand million items in four bytes."""
    async with real.open() as cache:
        f = await echo(cache, name)
        async with f.acquire() as lease:
            with peak() as most, pytest.raises(AbiError):
                await lease.call(b"\x7f\xff\xff\xff")
            assert most[0] < MiB


async def test_numbers_of_a_batch_at_their_limit(kit: Kit) -> None:
    """Their size is known before anything runs; with None, they are objects in a list."""
    config = CacheConfig(max_result_size=8000)
    async with held(kit, same(kit, "i64"), config) as (cache, lease):
        assert len(await lease.map([array("q", range(1000))])) == 1000
        with pytest.raises(ResultTooLargeError, match="row 1000 of a batch") as caught:
            await lease.map([array("q", range(1001))])
        assert (caught.value.row, caught.value.values) == (1000, (1000,))
        most = 8000 // (SLOT + NUMBER)
        assert len(await lease.map([[None] * most])) == most
        with pytest.raises(ResultTooLargeError) as caught:
            await lease.map([[None] * (most + 1)])
        assert caught.value.row == most
        assert await lease.call(7) == 7
    check_invariants(cache)


def asking_between() -> str:
    """As `FLOOD`, but asks the host in each call."""
    importing = '(module (import "host" "ask" (func $ask (param i64) (result i64)))'
    asks = FLOOD.replace("(module", importing)
    return asks.replace(f"{AT << 32}) (local.get 0)", f"{AT << 32}) (call $ask (local.get 0))")


@pytest.mark.parametrize("how", ["returned", "error", "cancelled"])
@pytest.mark.parametrize("route", ["driver", "rows"])
async def test_results_under_way_are_in_the_books(real: WasmtimeKit, how: str, route: str) -> None:
    """As long as the batch goes on; then they are the caller's, or nobody's."""
    seen: list[int] = []
    scope = trio.CancelScope()

    async def ask(size: int) -> int:
        stats = cache.stats()
        assert stats.accounted_size >= stats.pending_results_size + stats.running_size
        seen.append(stats.pending_results_size)
        if len(seen) == 4 and how == "cancelled":
            scope.cancel()
            await trio.sleep_forever()
        return 2**31 if len(seen) == 4 and how == "error" else size

    async with real.open() as cache:
        f = await cache.register(
            "f",
            binary(asking_between()),
            args=("i64",),
            returns="bytes",
            export="run",
            abi="buffer",
            imports={"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}},
        )
        with row_by_row() if route == "rows" else nullcontext(), scope:
            async with f.acquire() as lease:
                before = cache.stats().accounted_size
                context: Any = pytest.raises(AbiError) if how == "error" else nullcontext()
                with context:
                    await lease.map([[MiB] * 5])
                assert cache.stats().pending_results_size == 0
                assert cache.stats().accounted_size == before + cache.stats().results_size
        assert cache.stats().pending_results_size == 0
        each = MiB + BYTES_SIZE + SLOT
        assert all(n * each <= size <= (n + 2) * each for n, size in enumerate(seen))
        check_invariants(cache)


async def test_a_conversion_that_was_cancelled_ends(real: WasmtimeKit) -> None:
    """Its thread makes no more values, and what it has is in no book."""
    tally = Tally(2**40)
    tally.add(1000)
    tally.end()
    assert tally.held == 0
    with pytest.raises(ResultTooLargeError, match="has ended"):
        tally.add(0)
    async with real.open() as cache:
        f = await echo(cache, "list<tinyint>")
        with trio.CancelScope() as scope:
            async with f.acquire() as lease:
                real_convert = cache._pool.runner.convert

                async def convert(*values: Any) -> Any:
                    assert cache.stats().pending_results_size >= 5 * N
                    scope.cancel()
                    return await real_convert(*values)

                cache._pool.runner.convert = convert  # type: ignore[method-assign]
                await lease.call(COLLECTIONS["list<tinyint>"])
        assert scope.cancelled_caught
        assert cache.stats().pending_results_size == 0


async def test_what_is_copied_costs_fuel(real: WasmtimeKit) -> None:
    """The same each time, in proportion to the bytes; and it ends a call before they are copied."""
    async with real.open() as cache:
        f = await flood(cache)
        async with f.acquire() as lease:
            burnt = {}
            for size in (0, 1000, MiB, 0, 1000, MiB):
                await lease.call(size)
                assert burnt.setdefault(size, lease.fuel_consumed) == lease.fuel_consumed
            for size in (1000, MiB):
                assert burnt[size] - burnt[0] == copy_fuel(size)
            cache._pool.runner.cpu_clock = lambda: 0.0  # whose time is charged beside the fuel
            virtual = snapshot(cache).group("main").virtual_time
            await lease.map([[MiB] * 10])
            assert lease.fuel_consumed is not None
            assert lease.fuel_consumed >= 10 * copy_fuel(MiB)
            charged = (snapshot(cache).group("main").virtual_time - virtual) * snapshot(
                cache
            ).group("main").shares
            # What calls and passes cost beside that is little here.
            assert charged == pytest.approx(lease.fuel_consumed, rel=0.1)
        cache.resize(total_fuel=copy_fuel(MiB))
        for columns in (None, [[5, MiB]]):
            async with f.acquire() as lease:
                with peak() as most, pytest.raises(FuelExhaustedError) as caught:
                    await (lease.call(MiB) if columns is None else lease.map(columns))
                assert most[0] < MiB // 2
                assert caught.value.row == (None if columns is None else 1)
                with pytest.raises(trio.BrokenResourceError):
                    await lease.call(1)
        check_invariants(cache)


async def test_values_of_a_collection_cost_fuel(real: WasmtimeKit) -> None:
    """A list of many takes Python long, and so does the call."""
    async with real.open() as cache:
        f = await echo(cache, "list<tinyint>")
        async with f.acquire() as lease:
            await lease.call(COLLECTIONS["list<tinyint>"])
            assert lease.fuel_consumed is not None
            assert lease.fuel_consumed > N * ITEM_FUEL
        cache.resize(total_fuel=N * ITEM_FUEL)
        async with f.acquire() as lease:
            with pytest.raises(FuelExhaustedError, match="copying and converting"):
                await lease.call(COLLECTIONS["list<tinyint>"])


async def test_an_error_keeps_little(real: WasmtimeKit) -> None:
    """Neither the bytes that were no value, nor large arguments."""
    wrong = FLOOD.replace("256)", '256) (data (i32.const 16) "\\ff")')
    kept: list[Exception] = []
    async with real.open() as cache:
        f = await flood(cache, wrong, returns="str")
        g = await echo(cache, "list<int>")
        malformed = bytes(MiB - 1) + b"x"
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(5):
                for columns in (None, [[5, MiB]]):
                    async with f.acquire() as lease:
                        try:
                            await (lease.call(MiB) if columns is None else lease.map(columns))
                        except AbiError as error:
                            kept.append(error)
                for route in (g.call(malformed), g.acquire()):
                    try:
                        if isinstance(route, Lease):
                            async with route as lease:
                                await lease.map([[malformed]])
                        else:
                            await route
                    except AbiError as error:
                        kept.append(error)
            gc.collect()
            assert len(kept) == 20
            assert tracemalloc.get_traced_memory()[0] < MiB
        finally:
            tracemalloc.stop()
        for error in kept:
            assert len(str(error)) < 2000
        many = await cache.register("many", TRAPS, args=MANY, returns="i64", export="run")
        with pytest.raises(Exception, match="and 480 more") as caught:
            await many.call(*range(500))
        assert len(str(caught.value)) < 5000


MANY = ("i64",) * 500
TRAPS = f'(module (func (export "run") (param {"i64 " * 500}) (result i64) (unreachable)))'


@define
class OwnAbi:
    """Reads what the guest returns in two pieces, or makes much of little."""

    many: int = 0

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Any:
        return OwnBinding(export, self.many)


@define
class OwnBinding:
    export: str
    many: int
    signature: FuncType = field(factory=lambda: FuncType(("i64",), ("i64",)))
    arity: int = 1
    lower: Any = None
    lift: Any = None

    def explain(self, values: tuple[Any, ...]) -> Exception:
        return TypeError(values)

    def steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        result = yield Invoke(self.export, values)
        assert guest.memory is not None
        if self.many:
            return [[0] * self.many]
        return guest.memory.read(AT, result & 0xFFFFFFFF)


async def test_an_abi_of_ones_own_is_limited(real: WasmtimeKit) -> None:
    """What it reads of the guest's memory, and what it makes of it."""
    async with real.open(CacheConfig(max_result_size=MiB)) as cache:
        for name, many in (("reads", 0), ("makes", 20_000)):
            f = await cache.register(
                name, binary(FLOOD), args=("i64",), returns="x", export="run", abi=OwnAbi(many)
            )
            async with f.acquire() as lease:
                if many:
                    assert (await lease.call(1)) == [[0] * many]
                else:
                    with peak() as most, pytest.raises(ResultTooLargeError):
                        await lease.call(8 * MiB)
                    assert most[0] < MiB
                    assert await lease.call(900 * KiB) == bytes(900 * KiB)
                with pytest.raises(ResultTooLargeError) as caught:
                    await lease.map([[900 * KiB] * 10])
                assert caught.value.row == 1
                assert await lease.call(1)
            check_invariants(cache)
        assert cache.stats().evictions["corrupted"] == 0


async def test_a_host_function_whose_own_result_was_too_large(real: WasmtimeKit) -> None:
    """Of the guest that called it nobody knows that it is intact: it goes, the other stays."""
    inner: list[Lease] = []

    async def ask(size: int) -> int:
        async with flooding.acquire() as lease:
            inner.append(lease)
            await lease.call(size)
        return 0

    config = CacheConfig(max_result_size=MiB, max_instance_size=32 * MiB, memory_limit=32 * MiB)
    async with real.open(config) as cache:
        flooding = await flood(cache)
        f = await cache.register(
            "f",
            binary(asking_between()),
            args=("i64",),
            returns="bytes",
            export="run",
            abi="buffer",
            imports={"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}},
        )
        with pytest.raises(ResultTooLargeError, match=r"^flood\(i64\)"):
            await f.call(2 * MiB)
        assert cache.stats().evictions["corrupted"] == 1
        assert cache.stats().idle_instances == 1


def test_how_large_values_are() -> None:
    """Looked at no further than the limit, however deep."""
    assert size_of("x" * 10, 10**6) == ASCII_SIZE + 10
    assert size_of([0] * 10**6, 100) > 100
    endless: list[Any] = []
    endless.append(endless)
    assert size_of(endless, 5000) > 5000
    nested = {"a": [(1, 2), {3}], "b": frozenset([4])}
    parts = [nested, *nested, nested["a"], *nested["a"], 1, 2, 3, nested["b"], 4]
    assert size_of(nested, 10**6) == sum(map(sys.getsizeof, parts))
