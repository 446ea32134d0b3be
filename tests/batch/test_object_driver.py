"""Drivers that make and find AssemblyScript's objects do for each row what a call does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import wasmtime
from batch.routes import both, drives, outcome, row_by_row
from engine.support import quiet_cache, wat
from hostile.guest import CONFIG, Fails
from hostile.scripts import GUESTS, array, runtime, words
from hypothesis import HealthCheck, given, strategies as st
from kits import WasmtimeKit, tries

from trio_wasmcache import AbiError, FuelExhaustedError, GuestError, ResultTooLargeError, TrapError
from trio_wasmcache._abi.batching import Heap
from trio_wasmcache._abi.managed import MANAGED
from trio_wasmcache._core.wasm.driver import CELLS
from trio_wasmcache._core.wasm.memory_driver import memory_layout
from trio_wasmcache._core.wasm.memory_layout import BYTES, RTTI_AT, MemoryShape
from trio_wasmcache._core.wasm.reader import read_module
from trio_wasmcache.testing import check_invariants

FOLDER = Path(__file__).parents[1] / "udfs" / "assemblyscript"
ENGINE = wasmtime.Engine()
ARRAY_I8 = 1 << 1 | 1 << 6 | 1 << 11
CONTENTS = sorted({kind.name: kind.contents for kind in MANAGED.values()}.items())
TEXTS = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20)


@st.composite
def shapes(draw: st.DrawFn) -> MemoryShape:
    args = tuple(draw(st.lists(st.sampled_from([*CELLS, BYTES, BYTES]), max_size=6)))
    contents = draw(st.none() | st.sampled_from([contents for _, contents in CONTENTS]))
    cells = [name for name in CELLS if "cut" not in name]
    results = tuple(draw(st.lists(st.sampled_from(cells), max_size=1)))
    return MemoryShape(
        args,
        (BYTES,) if contents else results,
        argument="object",
        style="object" if contents else None,
        allocation="guest",
        passes_nulls=draw(st.booleans()),
        heavy=draw(st.booleans()),
        views=tuple(draw(st.sampled_from([0, 1, 2, 4, 8])) for name in args if name == BYTES),
        contents=contents,
        count=draw(st.none() | st.just(len(args))),
        defaults=tuple(draw(st.lists(st.sampled_from(["i32", "i64", "f32", "f64"]), max_size=2))),
        collects=draw(st.booleans()),
    )


@given(shapes())
@tries(60)
def test_any_shape_gives_a_valid_module(shape: MemoryShape) -> None:
    """It imports the function with the parameters that have defaults, and what it calls."""
    wasm = wasmtime.wat2wasm(memory_layout(shape).text)
    wasmtime.Module.validate(ENGINE, wasm)
    assert read_module(wasm).imports[0].type == shape.signature


@pytest.mark.parametrize("runtime", ["incremental", "minimal", "stub"])
@given(data=st.data())
@tries(4, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_values_of_each_type(real: WasmtimeKit, runtime: str, data: st.DataObject) -> None:
    """Text with halves of pairs, bytes, lists, several arguments, and nulls that are passed."""
    numbers = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5)
    floats = st.lists(st.floats(), max_size=5)
    functions: list[tuple[str, tuple[str, ...], str, bool, list[st.SearchStrategy[Any]]]] = [
        ("shout", ("str",), "str", False, [TEXTS | st.none()]),
        ("join", ("str",) * 3, "str", False, [TEXTS, TEXTS | st.none(), TEXTS]),
        ("orNull", ("str",), "str", True, [TEXTS | st.none()]),
        ("lengths", ("str", "array<i32>"), "i32", True, [TEXTS | st.none(), numbers | st.none()]),
        ("reverse", ("bytes",), "bytes", False, [st.binary(max_size=9) | st.none()]),
        ("tail", ("arraybuffer",), "bytes", False, [st.binary(min_size=1, max_size=9)]),
        ("arrayI32", ("array<i32>",), "list[i32]", False, [numbers]),
        ("staticF64", ("staticarray<f64>",), "list[f64]", False, [floats | st.none()]),
        (
            "sum",
            ("array<f64>", "f64", "staticarray<f64>", "str"),
            "f64",
            False,
            [floats, st.floats(-10, 10), floats, TEXTS],
        ),
    ]
    name, args, returns, nulls, kinds = data.draw(st.sampled_from(functions))
    rows = data.draw(st.integers(1, 20))
    columns = [data.draw(st.lists(kind, min_size=rows, max_size=rows)) for kind in kinds]
    async with real.open() as cache:
        function = await cache.register(
            name, FOLDER / f"{runtime}.wasm", args=args, returns=returns, called_on_null=nulls
        )
        async with function.acquire() as lease:
            driven = await lease.map(columns)
            assert drives(lease)
        with row_by_row():
            async with function.acquire() as lease:
                assert repr(list(await lease.map(columns))) == repr(list(driven))
        check_invariants(cache)


@pytest.mark.parametrize("guest", GUESTS, ids=[guest.name for guest in GUESTS])
async def test_liars_get_the_same_in_a_batch(real: WasmtimeKit, guest: Any) -> None:
    """Each lie is found in the same row, in the same words."""
    async with real.open(CONFIG) as cache:
        function = await guest.register(cache, "f", guest.wasm())
        columns = [[value] * 3 for value in guest.values]
        # The words of a row that burns its fuel are others.
        endless = guest.gets == Fails(FuelExhaustedError, "all fuel")
        got = await (outcome if endless else both)(function, columns)
        if isinstance(got, GuestError):
            assert got.row == 0
            assert isinstance(got, guest.gets.kind)
        else:
            assert list(got) == [guest.gets.value] * 3
        check_invariants(cache)


# Values of which some are addresses and sizes that matter.
WORD = st.sampled_from(
    [
        0,
        1,
        2,
        4,
        5,
        6,
        7,
        8,
        12,
        15,
        16,
        19,
        20,
        24,
        64,
        256,
        264,
        272,
        65528,
        65536,
        2**29,
        2**31,
        2**32 - 1,
    ]
)


@given(
    contents=st.lists(WORD, min_size=16, max_size=16),
    places=st.lists(WORD | st.sampled_from(range(256, 320)), min_size=1, max_size=6),
    kind=st.sampled_from("str bytes list[f64] array<f64> uint8array staticarray<f64>".split()),
)
@tries(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_memory_is_read_the_same(
    real: WasmtimeKit, contents: list[int], places: list[int], kind: str
) -> None:
    """Whatever lies there: contents, null or an `AbiError`, and nothing else."""
    module = wat(
        f"""(module {runtime()} {words(256, *contents)}
        (func (export "run") (param i32) (result i32) (local.get 0)))"""
    )
    async with real.open() as cache:
        function = await cache.register(
            "run", module, args=("u32",), returns=kind, abi="assemblyscript"
        )
        for place in places:
            got = await both(function, [[place]])
            assert isinstance(got, (list, AbiError))
        await both(function, [places])
        check_invariants(cache)


async def test_a_failing_row_is_named() -> None:
    """By an abort, and by a result that is too large; the rest of the batch is not made."""
    async with quiet_cache(max_result_size=300_000) as cache:
        wasm = FOLDER / "incremental.wasm"
        fail = await cache.register("fail", wasm, args=("str",), returns="str")
        got = await both(fail, [["", "", "no", ""]])
        assert isinstance(got, TrapError)
        assert got.row == 2
        assert "the guest aborted in values.ts, line 74, column 20: no" in str(got)
        repeat = await cache.register("repeat", wasm, args=("str", "i32"), returns="str")
        got = await outcome(repeat, [["x"] * 4, [1, 70_000, 250_000, 1]])
        assert isinstance(got, ResultTooLargeError)
        assert got.row == 2
        large = await both(repeat, [["x", "\U0001f600"], [90_000, 3]])
        assert large == ["x" * 90_000, "\U0001f600" * 3]


def test_what_a_driver_burns_is_bounded() -> None:
    """`fuel_per_row` is an upper bound of its own fuel, rows without a call included."""
    view = array(4, 2048, 2048, 64, 8)  # an array of i8 in the table below
    guest = f"""(module (memory (export "memory") 1) {view} {words(64, 5, 0, 0, 0, 0, ARRAY_I8)}
      (func (export "new") (param i32 i32) (result i32) (i32.const 4096))
      (func (export "pin") (param i32) (result i32) (i32.const 8))
      (func (export "unpin") (param i32)) (func (export "count") (param i32))
      (func (export "collect"))
      (func (export "f") (param i32 i32 f64) (result i32) (i32.const 1024)))"""
    shape = MemoryShape(
        (BYTES, BYTES),
        (BYTES,),
        "object",
        "object",
        "guest",
        views=(8, 8),
        contents=MANAGED["list[i8]"].contents,
        count=2,
        defaults=("f64",),
        collects=True,
    )
    made = memory_layout(shape)
    config = wasmtime.Config()
    config.consume_fuel = True
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    store.set_fuel(10**9)
    instance = wasmtime.Instance(store, wasmtime.Module(engine, wasmtime.wat2wasm(guest)), [])
    module = wasmtime.Module(engine, wasmtime.wat2wasm(made.text))
    exports = instance.exports(store)
    names = {"function": "f"}
    imports = [exports[names.get(one.name or "", one.name or "")] for one in module.imports]
    driver = wasmtime.Instance(store, module, imports).exports(store)
    for validity in (b"\xff", b"\0"):
        for rows in (1, 8, made.rows):
            driver["scratch"].write(store, (64).to_bytes(4, "little"), RTTI_AT)
            driver["scratch"].write(store, validity * (made.rows // 8), made.validity[0])
            before = store.get_fuel()
            assert driver["run"](store, rows) == rows
            assert 0 < before - store.get_fuel() <= rows * made.fuel_per_row


# -- garbage


@pytest.mark.parametrize("runtime", ["incremental", "minimal"])
async def test_memory_does_not_creep(runtime: str) -> None:
    """In calls and batches of any kind, by turns, some of which are refused; nothing is kept."""
    async with quiet_cache(max_result_size=4_000_000) as cache:
        wasm = FOLDER / f"{runtime}.wasm"
        join = await cache.register("join", wasm, args=("str",) * 3, returns="str")
        async with join.acquire() as lease:
            sizes = []
            for _ in range(4):
                for number in range(300):
                    assert await lease.call("a" * number, "b", "c") == "a" * number + "-b-c"
                    if number % 100 == 0:
                        with pytest.raises(ResultTooLargeError):
                            await lease.call("\U0001f600" * 1_200_000, "", "")
                        with pytest.raises(TypeError):
                            await lease.call("x", "", 1)
                await lease.map([["long " * 100] * 5000, "b", "c"])
                for _ in range(20):
                    await lease.map([["long " * 100] * 100, "b", "c"])
                sizes.append(lease.memory.size)
            assert sizes[1] == sizes[3], sizes


@pytest.mark.parametrize("runtime", ["incremental", "minimal"])
async def test_garbage_of_the_guests_own_is_collected(runtime: str) -> None:
    """A function of numbers, which leaves 60 arrays at each call; and one whose data is kept."""
    async with quiet_cache() as cache:
        wasm = FOLDER / f"{runtime}.wasm"
        litter = await cache.register(
            "litter", wasm, args=("i32",), returns="i32", abi="assemblyscript"
        )
        async with litter.acquire() as lease:
            await lease.map([[60] * 300])
            for _ in range(300):
                await lease.call(60)
            size = lease.memory.size
            for _ in range(3):
                await lease.map([[60] * 300])
                for _ in range(100):
                    await lease.call(60)
            assert lease.memory.size == size
        keep = await cache.register("keep", wasm, args=("str",), returns="i32")
        async with keep.acquire() as lease:
            assert list(await lease.map([["kept " * 50] * 2000])) == [*range(1, 2001)]
            assert await lease.call("x") == 2001


def test_when_garbage_is_collected() -> None:
    """When the memory has grown, then twice as often, and not after each of a few calls."""
    page = 65536
    heap = Heap(1)
    assert not any(heap.is_due(page) for _ in range(1000))
    assert heap.is_due(2 * page)  # after 1,001 calls
    assert [n for n in range(1, 1501) if heap.is_due(2 * page)] == [500, 1000, 1500]
    assert heap.is_due(4 * page)  # after one: memory that is in use
    assert [n for n in range(1, 49) if heap.is_due(4 * page)] == [16, 32, 48]


@given(garbage=st.integers(8, 30_000))
@tries(30)
def test_memory_is_bounded_whatever_the_garbage(garbage: int) -> None:
    """Of a guest whose calls leave some bytes each, and whose memory doubles: that of 64 calls."""
    size, used, heap = 65536, 0, Heap(1)
    for _ in range(3000):
        used += garbage
        while used > size:
            size *= 2
        if heap.is_due(size):
            used = 0
    assert size <= max(2 * 65536, 64 * garbage)


async def test_limits_hold_in_batches_of_objects() -> None:
    """A row that burns its fuel ends alone, and memory is that of the limit."""
    async with quiet_cache(total_fuel=1_000_000) as cache:
        wasm = FOLDER / "incremental.wasm"
        spin = await cache.register("spin", wasm, args=("str",), returns="i32")
        got = await outcome(spin, [["a", "b"]])
        assert (type(got).__name__, got.row) == ("FuelExhaustedError", 0)
    async with quiet_cache(memory_limit=4 * 65536) as cache:
        stub = await cache.register(
            "shout", FOLDER / "stub.wasm", args=("str",), returns="str", isolation="reset"
        )
        got = await both(stub, [["text " * 100] * 2000])
        assert isinstance(got, GuestError)
        for _ in range(300):
            assert len(await stub.call("text " * 100)) == 501
