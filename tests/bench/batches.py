"""Batches beside the driver's bare loop, wasmtime-py, and plain Python; and what others feel."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from array import array
from pathlib import Path
from typing import Any

import trio
import wasmtime

from trio_wasmcache import CacheConfig, open_cache
from trio_wasmcache._batch import byte_chunks
from trio_wasmcache._core.wasm.driver import Shape, layout
from trio_wasmcache._engine.base import UNDER_WAY

from ..peeking import bound_of, native_of
from .harness import FIB, Report, SilentLogger, cores, percentile, run_on
from .loop import lateness

ADD = """(module
  (func (export "add") (param i64 i64) (result i64) (i64.add (local.get 0) (local.get 1)))
  (func (export "mix") (param i64 i64) (result i64) (local i64)
    (local.set 2 (i64.xor (local.get 0) (i64.mul (local.get 1) (i64.const 0x9e3779b97f4a7c15))))
    (i64.xor (local.get 2) (i64.shr_u (local.get 2) (i64.const 29)))))"""
TWO = ("i64", "i64")
UDFS = Path(__file__).parents[1] / "udfs"
# Of what is optional, rows are left out where it is not installed.
HAS_NUMPY = importlib.util.find_spec("numpy") is not None
HAS_ARROW = importlib.util.find_spec("pyarrow") is not None
HAS_CQL = importlib.util.find_spec("cassandra") is not None


def add(x: int, y: int) -> int:
    return x + y


async def _in_place(
    lease: Any, rows: int, columns: tuple[memoryview, ...] = (), out: memoryview | None = None
) -> float:
    """Nanoseconds a row of the driver's own loop over one chunk that is there, again and again.

    In the slices of a batch, but without copies, turns of the loop, or looks at anything. With
    columns and memory for results, as bytes, each chunk is copied in and out: what a batch needs
    at least.
    """
    code = await lease._pool.engine.driver(Shape(TWO, ("i64",)), bound_of(lease).tier)
    driver, native = code.attach(native_of(lease), {"function": "add"}), native_of(lease)
    made = layout(code.shape)
    chunk = made.rows
    began = time.perf_counter()
    for number in range(rows // chunk):
        part = slice(8 * chunk * number, 8 * chunk * (number + 1))
        for column, at in zip(columns, made.args, strict=False):
            driver.put(at, column[part])
        done = driver.begin(chunk, 10**12)
        if done is UNDER_WAY:
            while not native.poll():
                pass
            driver.finish()
        if out is not None:
            out[part] = driver.get(made.results[0], 8 * chunk)
    return (time.perf_counter() - began) / (rows // chunk * chunk) * 1e9


async def bench_rows(report: Report, rows: int, rounds: int) -> None:
    """The same rows in every way there is, taking turns.

    The driver's loop runs in this thread, and a batch mostly in another one. On a virtual machine
    one core may be 1.6 times as fast as the other, as its neighbours on the host are busy. So in
    each round all threads are on one core while the two are compared, and the median of the
    rounds' ratios is what counts. `map` is measured on all cores, too; and by CPU time, as other
    processes may want that core.
    """
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    bare = wasmtime.Instance(store, wasmtime.Module(engine, ADD), []).exports(store)["add"]
    left, right = array("q", range(rows)), array("q", range(rows, 0, -1))
    lists = left.tolist(), right.tolist()
    cells = memoryview(left).cast("B"), memoryview(right).cast("B")
    out = memoryview(bytearray(8 * rows))
    few = min(rows, 20_000)
    ns: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    every_core = cores()

    def note(name: str, began: float, number: int = rows) -> None:
        ns.setdefault(name, []).append((time.perf_counter() - began) / number * 1e9)

    def note_cpu(name: str, began: float) -> None:
        cpu.setdefault(name, []).append((time.process_time() - began) / rows * 1e9)

    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        function = await cache.register("add", ADD, args=TWO, returns="i64")
        async with function.acquire() as lease:
            await lease.map([left, right])
            for number in range(rounds):
                if every_core:
                    run_on({every_core[number % len(every_core)]})
                try:
                    await _in_place(lease, rows)  # it may have had to wait for the core
                    used = time.process_time()
                    ns.setdefault("in place", []).append(await _in_place(lease, rows))
                    note_cpu("in place", used)
                    copied = await _in_place(lease, rows, cells, out)
                    ns.setdefault("in place, copied", []).append(copied)
                    used = time.process_time()
                    began = time.perf_counter()
                    result = await lease.map([left, right])
                    note("map", began)
                    note_cpu("map", used)
                finally:
                    if every_core:
                        run_on(every_core)
                assert result[rows // 2] == rows
                # The next results go where these were, as of whoever is done with one batch before
                # the next. In memory that the kernel has to find first, page faults cost as much
                # as the rows (8 MB: 3 ms, here).
                del result
                began = time.perf_counter()
                result = await lease.map([left, right])
                note("map, on all cores", began)
                del result
                began = time.perf_counter()
                await lease.map(lists)
                note("map of lists", began)
                if HAS_NUMPY:
                    # What reading such columns, and writing a result, takes at least.
                    numpy = importlib.import_module("numpy")
                    arrays = numpy.frombuffer(left, "i8"), numpy.frombuffer(right, "i8")
                    began = time.perf_counter()
                    arrays[0] + arrays[1]
                    note("numpy", began)
                began = time.perf_counter()
                for x, y in zip(lists[0][:few], lists[1][:few], strict=True):
                    bare(store, x, y)
                note("wasmtime-py", began, few)
                began = time.perf_counter()
                for x, y in zip(lists[0][:few], lists[1][:few], strict=True):
                    await lease.call(x, y)
                note("call", began, few)
                began = time.perf_counter()
                wanted = [add(x, y) for x, y in zip(*lists, strict=True)]
                note("Python", began)
                assert wanted[rows // 2] == rows
    median = {name: statistics.median(taken) for name, taken in ns.items()}
    for name, value in median.items():
        report.add(f"{rows:,} rows of two i64, {name}", value, "ns/row")

    def ratio(ours: str, theirs: str, of: dict[str, list[float]] = ns) -> float:
        pairs = zip(of[ours], of[theirs], strict=True)
        return statistics.median(one / other for one, other in pairs)

    report.add("map / the driver's loop in place", ratio("map", "in place"), "", at_most=2)
    report.add("map / the loop, by CPU time", ratio("map", "in place", cpu), "")
    report.add(
        "map / the same with copies, at least",
        ratio("map", "in place, copied"),
        "",
        note="chunk by chunk in one thread, without turns, limits, or looks at anything",
    )
    report.add("map on all cores / the loop", ratio("map, on all cores", "in place"), "")
    report.add("map / wasmtime-py", median["map"] / median["wasmtime-py"], "", at_most=0.001)
    report.add("map / list comprehension", median["map"] / median["Python"], "", at_most=1)
    report.add("map / a call for each row", median["map"] / median["call"], "")


async def bench_text(report: Report, rows: int, rounds: int) -> None:
    """Functions of text in one batch, and row by row: by calls, and as `map` does what is left."""
    words = [f"word number {n}" for n in range(rows)]
    columns: dict[str, Any] = {"map": words}
    if HAS_ARROW:
        columns["map of Arrow"] = importlib.import_module("pyarrow").array(words)
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        for what, module, export, args, abi in (
            ("scylla v1", "scylla_v1", "join", ("text", "text"), "scylla"),
            ("scylla v2", "scylla_v2", "join", ("text", "text"), "scylla"),
            ("buffer", "buffer", "upper_packed", ("str",), "buffer"),
        ):
            if abi == "scylla" and not HAS_CQL:
                continue
            function = await cache.register(
                what,
                UDFS / f"{module}.wasm",
                args=args,
                returns=args[0],
                export=export,
                abi=abi,
            )
            us: dict[str, list[float]] = {}
            few = min(rows, 2000)
            async with function.acquire() as lease:
                for _ in range(rounds):
                    for way, column in columns.items():
                        began = time.perf_counter()
                        await lease.map([column] * len(args))
                        us.setdefault(way, []).append((time.perf_counter() - began) / rows * 1e6)
                    began = time.perf_counter()
                    for word in words[:few]:
                        await lease.call(*[word] * len(args))
                    us.setdefault("call", []).append((time.perf_counter() - began) / few * 1e6)
                    driven, byte_chunks.bulk_of = byte_chunks.bulk_of, lambda *_: None
                    began = time.perf_counter()
                    await lease.map([words[:few]] * len(args))
                    us.setdefault("row by row", []).append(
                        (time.perf_counter() - began) / few * 1e6
                    )
                    byte_chunks.bulk_of = driven
            median = {way: statistics.median(taken) for way, taken in us.items()}
            for way, value in median.items():
                report.add(f"{rows:,} rows of text, {what}, {way}", value, "us/row")
            for way in columns:
                slowest = min(median["call"], median["row by row"]) / median[way]
                report.add(f"{what}: {way}, times as fast as row by row", slowest, "", at_least=5)


async def _ticker_beside(lease: Any, columns: Any, seconds: float, late: list[float]) -> int:
    """How late a 1 ms ticker is beside batches, for that long or a little more; how many."""
    began, batches = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lateness, 2 * seconds, late)
            result = await lease.map(columns)
            nursery.cancel_scope.cancel()
        # To free so much memory takes milliseconds: not while the ticker runs.
        del result
        batches += 1
    return batches


async def _ticker_beside_call(lease: Any, seconds: float, late: list[float]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.call, 60)
        await lateness(seconds, late)
        nursery.cancel_scope.cancel()


async def _ticker_beside_python(seconds: float, late: list[float]) -> None:
    async def busy() -> None:
        while True:
            end = time.perf_counter() + 0.0001
            while time.perf_counter() < end:
                pass
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy)
        await lateness(seconds, late)
        nursery.cancel_scope.cancel()


async def bench_others(report: Report, rows: int, seconds: float, rounds: int) -> None:
    """A 1 ms ticker beside batches, and how soon a cancelled batch ends.

    The idle loop, a single call and batches take turns, as what else runs on a machine changes. So
    does a loop that is busy with Python's own code for 0.1 ms at a time: where other processes want
    the core, they take it from whoever is busy, for some milliseconds, and not from an idle loop.
    """
    columns = array("q", [1]) * rows, array("q", [2]) * rows
    for what, offload in (("inline", None), ("offloaded", CacheConfig().offload_after)):
        config = CacheConfig(offload_after=offload, total_fuel=10**13)
        idle: list[float] = []
        busy: list[float] = []
        single: list[float] = []
        late: list[float] = []
        batches = 0
        async with open_cache(config, logger=SilentLogger()) as cache:
            mix = await cache.register("mix", ADD, args=TWO, returns="i64")
            fib = await cache.register("fib", FIB, args=("i64",), returns="i64")
            for _ in range(6):
                await lateness(seconds / 6, idle)
                await _ticker_beside_python(seconds / 6, busy)
                async with fib.acquire() as lease:
                    await _ticker_beside_call(lease, seconds / 6, single)
                async with mix.acquire() as lease:
                    batches += await _ticker_beside(lease, columns, seconds / 6, late)
            floor = percentile(idle, 0.99)
            report.add(
                f"ticker p99 above idle beside a single call, {what}",
                percentile(single, 0.99) - floor,
                "ms",
                at_most=3,
            )
            report.add(
                f"ticker p99 above idle in batches of {rows:,}, {what}",
                percentile(late, 0.99) - floor,
                "ms",
                at_most=3,
                note=f"idle {floor:.1f}, beside Python's own code {percentile(busy, 0.99):.1f}; "
                f"{batches} batches, {len(late)} ticks",
            )
            report.add(
                f"ticker median in batches of {rows:,}, {what}",
                statistics.median(late),
                "ms",
                at_most=1,
            )
            ends = []
            for number in range(rounds):
                async with mix.acquire() as lease:
                    due = trio.current_time() + 0.01 + 0.0007 * (number % 10)
                    with trio.move_on_at(due) as scope:
                        await lease.map(columns)
                    assert scope.cancelled_caught, "the batch is too short"
                    ends.append((trio.current_time() - due) * 1e3)
            report.add(
                f"cancel a batch of {rows:,}, {what}: median",
                statistics.median(ends),
                "ms",
                at_most=5,
            )


async def bench_large(report: Report, seconds: float) -> None:
    """A 1 ms ticker beside calls with a list of a MiB, whose conversion takes long."""
    values = list(range(128 * 1024))
    idle: list[float] = []
    late: list[float] = []
    calls = 0
    async with open_cache(CacheConfig(), logger=SilentLogger()) as cache:
        types = {"args": ("text", "list<int>"), "returns": "list<int>"}
        second = await cache.register("second", UDFS / "scylla_v2.wasm", **types)
        async with second.acquire() as lease:
            for _ in range(4):
                await lateness(seconds / 4, idle)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lateness, seconds / 4, late)
                    began = time.perf_counter()
                    while time.perf_counter() - began < seconds / 4:
                        await lease.call("", values)
                        calls += 1
                    nursery.cancel_scope.cancel()
    report.add(
        "ticker p99 above idle beside lists of a MiB",
        percentile(late, 0.99) - percentile(idle, 0.99),
        "ms",
        note=f"{calls} calls; the worst {max(late):.1f}",
    )


async def run(report: Report, quick: bool) -> None:
    await bench_rows(report, 100_000 if quick else 1_000_000, 3 if quick else 11)
    await bench_text(report, 10_000 if quick else 200_000, 2 if quick else 7)
    if HAS_CQL:
        await bench_large(report, 0.5 if quick else 2)
    await bench_others(
        report, 3_000_000 if quick else 10_000_000, 0.3 if quick else 6, 3 if quick else 50
    )
