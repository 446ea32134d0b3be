"""Batches of components' functions: the same results as row by row, by a driver where there is."""

from __future__ import annotations

import array
import re
from contextlib import ExitStack
from typing import Any

import pytest
from batch.routes import row_by_row
from components.echo import component, echo
from components.shapes import Shape
from kits import WasmtimeKit
from peeking import native_of

from trio_wasmcache import (
    AbiError,
    CacheConfig,
    Case,
    Err,
    HostFunction,
    Ok,
    ResultTooLargeError,
    Some,
    TrapError,
    WitError,
)
from trio_wasmcache._core.wasm.memory_layout import MemoryShape
from trio_wasmcache._runtime.call import Call

BATCHES: list[tuple[tuple[Shape, ...], list[list[Any]], bool]] = [
    (("string",), [["", "a", "\u20ac" * 50, None, "x" * 200_000]], True),
    ((("list", "u8"),), [[b"", b"\0\xff", None, bytes(1000)]], True),
    (("u8",), [[0, 255, 7]], False),
    (("bool",), [[True, False, True]], False),
    (("f32",), [[0.5, -1.0, float("inf")]], False),
    (("s64",), [[-(2**63), 2**63 - 1, None]], False),
    (("char",), [["a", "\u20ac", None]], True),
    ((("option", "s64"),), [[1, None, -1]], True),
    ((("option", ("option", "u8")),), [[None, Some(None), Some(7)]], True),
    (
        (("record", (("x", "f64"), ("n", "u8"))), "string"),
        [[(1.0, 2), None, (0.5, 255)], ["a", "b", "c"]],
        False,
    ),
    ((("record", (("x", "f64"), ("n", "u8"), ("b", "bool"))),), [[(1.0, 2, True), None]], True),
    ((("record", (("o", ("option", "f32")), ("c", "char"))),), [[(None, "a"), (0.5, "b")]], True),
    ((("tuple", "s8", "u64"),), [[(-128, 2**64 - 1)]], True),
    (
        (("variant", (("a", "f32"), ("b", "s64"), ("c", None))),),
        [[Case("a", 0.5), Case("b", -1), Case("c"), None]],
        True,
    ),
    ((("enum", ("a", "b")),), [["a", None, "b"]], True),
    ((("flags", ("a", "b")),), [[{"a"}, set(), {"b", "a"}]], True),
    ((("record", (("x", "f32"),)),), [[(0.5,), None, (-1.0,)]], True),
    ((("tuple", "u64"),), [[(2**64 - 1,)]], True),
    ((("variant", (("a", None), ("b", None))),), [[Case("b"), Case("a")]], True),
    ((("result", "u8", "s64"),), [[Ok(1), Ok(2)]], False),
    ((("option", "string"),), [["a", None, ""]], False),
    ((("record", (("x", "f64"), ("name", "string"))),), [[(1.0, "a"), (2.0, "b")]], False),
    ((("list", "string"),), [[["a"], [], ["b", "c"]]], False),
    (("string", "u8"), [["a", "b", None], [1, 2, 3]], False),
]


NAMED = """(component
  (core module $m (func (export "sub") (param i64 i64) (result i64)
    (i64.sub (local.get 0) (local.get 1))))
  (core instance $i (instantiate $m))
  (func (export "sub") (param "from" s64) (param "by-x" s64) (result s64)
    (canon lift (core func $i "sub"))))"""


async def test_columns_by_the_names_of_arguments(real: WasmtimeKit) -> None:
    """Those of WIT, or in Python's form."""
    async with real.open() as cache:
        sub = await cache.register("sub", NAMED)
        for columns in (
            {"by-x": 1, "from": [5, 6]},
            {"from_": [5, 6], "by_x": [1, 1]},
            {"from": array.array("q", [5, 6]), "by_x": [1, 1]},
        ):
            async with sub.acquire() as lease:
                assert list(await lease.map(columns)) == [4, 5]
        async with sub.acquire() as lease:
            for wrong in ({"from": [5]}, {"from": [5], "by": [1]}, {"from": [1], "from_": [1]}):
                with pytest.raises(TypeError, match=r"takes a column for each of from_, by_x, got"):
                    await lease.map(wrong)
        await cache.register("texts", echo(("string", "u8")), export="echo")
        async with cache.acquire("texts") as lease:
            names = lease_names(lease)
            assert await lease.map(dict(zip(names, (["a"], 7), strict=True))) == [("a", 7)]


def lease_names(lease: Any) -> list[str]:
    """Names of the arguments of a function, in WIT."""
    wit: str = lease.function.wit
    return re.findall(r"([a-z][a-z0-9-]*): ", wit.partition("func(")[2])


def driven(lease: Any) -> bool:
    """Whether the batches of a lease are made by a memory driver."""
    return any(isinstance(shape, MemoryShape) for shape, _ in native_of(lease).drivers)


@pytest.mark.parametrize(
    ("params", "columns", "by_driver"), BATCHES, ids=[str(params) for params, *_ in BATCHES]
)
async def test_batches_are_those_of_single_calls(
    real: WasmtimeKit, params: tuple[Shape, ...], columns: list[list[Any]], by_driver: bool
) -> None:
    """Each row is what a call gives; a None where no option is expected gives None."""
    async with real.open() as cache:
        await cache.register("echo", echo(params), export="echo")
        async with cache.acquire("echo") as lease:
            single = [await lease.call(*row) for row in zip(*columns, strict=True)]
            assert list(await lease.map(columns)) == single
            assert driven(lease) == by_driver
            with row_by_row():
                assert list(await lease.map(columns)) == single


ENUM, MORE = ("enum", ("a", "b")), ("enum", ("a", "b", "c"))
FLAT: list[tuple[tuple[Shape, ...], Shape, str, list[Any], list[Any]]] = [
    ((MORE,), ENUM, "(param i32) (result i32) (local.get 0)", ["a", None, "b"], ["a", None, "b"]),
    ((("option", "f64"),), "f64", "(param i32 f64) (result f64) (local.get 1)", [1.5], [1.5]),
    ((("tuple", "u8", "f32"),), "u8", "(param i32 f32) (result i32) (local.get 0)", [(7, 0)], [7]),
    (("char",), "u32", "(param i32) (result i32) (local.get 0)", ["a", None], [97, None]),
    (("u32",), "char", "(param i32) (result i32) (local.get 0)", [97, None], ["a", None]),
    ((ENUM,), None, "(param i32)", ["a", "b"], [None, None]),
]


@pytest.mark.parametrize("memory", ['(memory (export "memory") 1)', ""])
@pytest.mark.parametrize(("params", "result", "code", "column", "expected"), FLAT)
async def test_functions_that_need_no_memory_have_a_driver(
    real: WasmtimeKit,
    params: tuple[Shape, ...],
    result: Shape,
    code: str,
    column: list[Any],
    expected: list[Any],
    memory: str,
) -> None:
    """No adapter makes their calls. Those of a module without a memory run row by row."""
    wasm = component(f'{memory} (func (export "run") {code})', {"run": (params, result)})
    async with real.open() as cache:
        await cache.register("run", wasm, export="run")
        async with cache.acquire("run") as lease:
            assert [await lease.call(value) for value in column] == expected
            found = await lease.map([column * 3000])
            assert found == (None if result is None else expected * 3000) or (
                list(found) == expected * 3000
            )
            assert driven(lease) == bool(memory)


@pytest.mark.parametrize("by_driver", [True, False])
async def test_rows_with_a_wrong_flat_result_fail_as_single_calls(
    real: WasmtimeKit, by_driver: bool
) -> None:
    """A number that is no case is an error of its row, also in Arrow's arrays."""
    pa = pytest.importorskip("pyarrow")
    code = "(param i32) (result i32) (local.get 0)"
    wasm = component(
        f'(memory (export "memory") 1) (func (export "run") {code})', {"run": ((MORE,), ENUM)}
    )
    async with real.open() as cache:
        await cache.register("run", wasm, export="run")
        for column in (["a", None, "c", "b"], pa.array(["a", None, "c", "b"])):
            async with cache.acquire("run") as lease:
                with ExitStack() as stack:
                    if not by_driver:
                        stack.enter_context(row_by_row())
                    found = await lease.map([column], on_error="null")
                    assert driven(lease) == by_driver
                    assert list(lease.row_errors) == [2]
                    assert isinstance(lease.row_errors[2], AbiError)
                    values = found if isinstance(found, list) else found.to_pylist()
                    assert values == ["a", None, None, "b"]
            async with cache.acquire("run") as lease:
                with pytest.raises(AbiError, match="row 2"):
                    await lease.map([column])


MOODY = component(
    """(memory (export "memory") 1) (global $heap (mut i32) (i32.const 64))
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
    (if (i32.eq (local.get 3) (i32.const 3)) (then (return (i32.const 65536))))
    (global.get $heap)
    (global.set $heap (i32.add (global.get $heap) (local.get 3))))
  (func (export "run") (param i32 i32) (result i32)
    (if (i32.eq (local.get 1) (i32.const 4)) (then (return (i32.const 30))))
    (if (i32.eq (local.get 1) (i32.const 5)) (then (return (i32.const 65532))))
    (if (i32.eq (local.get 1) (i32.const 6)) (then (local.set 0 (i32.const 65535))))
    (if (i32.eq (local.get 1) (i32.const 7)) (then (i32.store8 (local.get 0) (i32.const 255))))
    (i32.store (i32.const 32) (local.get 0)) (i32.store (i32.const 36) (local.get 1))
    (i32.const 32))
  (func (export "cabi_post_run") (param i32)
    (if (i32.eq (i32.load offset=4 (local.get 0)) (i32.const 8)) (then (unreachable)))
    (global.set $heap (i32.const 64)))""",
    {"run": (("string",), "string")},
)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (3, AbiError, r"cabi_realloc\(0, 0, 1, 3\) returned the address 65536"),
        (4, AbiError, "a result at address 30, which is not a multiple of 4"),
        (5, AbiError, "a result of 8 bytes at address 65532, which are not inside"),
        (6, AbiError, "a string of 6 bytes at address 65535, which are not inside"),
        (7, AbiError, "a string that is not UTF-8"),
        (8, TrapError, "unreachable"),
    ],
)
@pytest.mark.parametrize("by_driver", [True, False])
async def test_rows_fail_as_single_calls(
    real: WasmtimeKit, size: int, error: type[Exception], message: str, by_driver: bool
) -> None:
    """What an allocator, a function or its post-return function does is checked in each row."""
    async with real.open() as cache:
        await cache.register("run", MOODY, export="run")
        async with cache.acquire("run") as lease:
            column = ["a", "bb", "x" * size, "c"]
            if by_driver:
                found = await lease.map([column], on_error="null")
                assert driven(lease)
            else:
                with row_by_row():
                    found = await lease.map([column], on_error="null")
            assert found == ["a", "bb", None, "c"]
            failed = lease.row_errors
            assert list(failed) == [2]
            assert isinstance(failed[2], error)
            with pytest.raises(error, match=message):
                raise failed[2]


async def test_text_and_bytes_cross_in_arrow_format(real: WasmtimeKit) -> None:
    """Results are Arrow arrays of the type that a component's type has."""
    pa = pytest.importorskip("pyarrow")
    async with real.open() as cache:
        for name, shape, column in (
            ("text", "string", pa.array(["a", None, "b"])),
            ("data", ("list", "u8"), pa.array([b"a", None], pa.binary())),
            ("number", "s64", pa.array([1, None], pa.int64())),
            ("option", ("option", "u8"), pa.array([1, None], pa.uint8())),
            (
                "record",
                ("record", (("x-y", "f64"), ("n", "u8"))),
                pa.array(
                    [{"x_y": 1.0, "n": 2}, None],
                    pa.struct([("x_y", pa.float64()), ("n", pa.uint8())]),
                ),
            ),
        ):
            await cache.register(name, echo((shape,)), export="echo")
            async with cache.acquire(name) as lease:
                found = await lease.map([column])
                assert found.type == column.type
                assert found.to_pylist() == column.to_pylist()


async def test_a_host_function_is_refused_while_a_driver_has_memory_allocated(
    real: WasmtimeKit,
) -> None:
    """As in a single call: the row fails, and the host function does not run."""
    import wasmtime
    from abi.test_canonical import HOSTED
    from components.wit import function_type

    from trio_wasmcache._abi.canonical import CanonicalAbi, Lifted

    called: list[str] = []
    kind = function_type(("string",), "u32")
    abi = CanonicalAbi((Lifted("echo", kind, "cabi_realloc", "cabi_post_echo"),))
    hosts = {"h": {"f": HostFunction(lambda: called.append("f"), params=(), results=())}}
    async with real.open() as cache:
        wasm = bytes(wasmtime.wat2wasm(HOSTED))
        await cache.register("echo", wasm, args=("string",), returns="u32", abi=abi, imports=hosts)
        async with cache.acquire("echo", ("string",)) as lease:
            found = await lease.map([["abc", "a", "ab", "abcd"]], on_error="null")
            assert list(found) == [3, None, None, 4]
            assert len(called) == 3
            assert {str(one.code) for one in lease.row_errors.values()} == {  # type: ignore[attr-defined]
                "cannot leave component instance"
            }


@pytest.mark.parametrize("size", [1, 100_000])
async def test_rows_whose_result_is_an_error_cost_no_instance(real: WasmtimeKit, size: int) -> None:
    """They are null with their error; those that are too large, too. The instance goes on."""
    shape: Shape = ("result", "string", "string")
    async with real.open(CacheConfig(max_result_size=150_000)) as cache:
        await cache.register("echo", echo((shape,)), export="echo")
        async with cache.acquire("echo") as lease:
            native = native_of(lease)
            column = [Ok("a"), Err("x" * size), Ok("y" * 200_000), Ok("b")]
            found = await lease.map([column], on_error="null")
            assert found == ["a", None, None, "b"]
            first, second = (lease.row_errors[row] for row in (1, 2))
            assert isinstance(first, WitError)
            assert first.value == "x" * size
            assert isinstance(second, ResultTooLargeError)
            assert await lease.call(Ok("again")) == "again"
            assert native_of(lease) is native


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_each_isolation_level_runs_calls_and_batches(
    real: WasmtimeKit, isolation: str
) -> None:
    """The adapter is put back with the guest: a lease reads nothing of the one before."""
    async with real.open() as cache:
        function = await cache.register(
            "echo", echo(("string",)), export="echo", isolation=isolation
        )
        assert function.isolation == isolation
        for text in ("secret" * 100, "b"):
            async with cache.acquire("echo") as lease:
                window = native_of(lease).part("canonical").window("scratch").view
                if isolation != "reuse":
                    assert not any(window)
                assert await lease.call(text) == text
                assert await lease.map([[text, "c"]]) == [text, "c"]
                assert b"b" in bytes(window) or text != "b"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (array.array("H", [1, 2]), b"\1\2"),
        (array.array("H", [300]), OverflowError),
        (array.array("b", [-1]), b"\xff"),
        (array.array("B", [1, 2]), b"\1\2"),
        (memoryview(b"abcd")[::2], b"ac"),
        (memoryview(b"ab").cast("c"), b"ab"),
        (memoryview(b"\1\0").cast("?"), b"\1\0"),
        (memoryview(b"abcd").cast("B", (2, 2)), TypeError),
        (bytearray(b"ab"), b"ab"),
        ([1, 2], b"\1\2"),
        ((1, True), b"\1\1"),
        ([256], OverflowError),
        ("x", TypeError),
    ],
)
async def test_bytes_of_a_batch_are_those_of_a_call(
    real: WasmtimeKit, value: object, expected: object
) -> None:
    """Buffers of bytes are bytes; of all other buffers and sequences the items are."""
    async with real.open() as cache:
        await cache.register("echo", echo((("list", "u8"),)), export="echo")
        async with cache.acquire("echo") as lease:
            if isinstance(expected, bytes):
                assert await lease.call(value) == expected
                assert await lease.map([[b"", value]]) == [b"", expected]
                return
            for refused in (lambda: lease.call(value), lambda: lease.map([[b"", value]])):
                with pytest.raises(expected):  # type: ignore[call-overload]
                    await refused()


ARROW: list[tuple[Shape, str, list[Any], list[Any]]] = [
    ("bool", "bool", [True], [True]),
    ("u64", "uint64", [2**64 - 1], [2**64 - 1]),
    ("f32", "float", [0.5], [0.5]),
    ("char", "string", ["a"], ["a"]),
    (("enum", ("a-b", "c")), "string", ["a-b", "c"], ["a-b", "c"]),
    (
        ("flags", ("z", "a")),
        "list<item: string>",
        [{"a", "z"}, frozenset[str]()],
        [["z", "a"], []],
    ),
    (("option", "u16"), "uint16", [1, None], [1, None]),
    (("list", "u8"), "binary", [b"a"], [b"a"]),
    (("list", "u32"), "list<item: uint32>", [[1], []], [[1], []]),
    (("list", "u64"), "list<item: uint64>", [[2**64 - 1]], [[2**64 - 1]]),
    (("list", ("option", "f32")), "list<item: float>", [[1, None]], [[1.0, None]]),
    (("list", ("flags", ("a",))), "list<item: list<item: string>>", [[{"a"}]], [[["a"]]]),
    (
        ("tuple", "f64", "u8"),
        "struct<field_0: double, field_1: uint8>",
        [(1.0, 0)],
        [{"field_0": 1.0, "field_1": 0}],
    ),
    (
        ("record", (("x-y", "string"), ("class", ("option", ("flags", ("a",)))))),
        "struct<x_y: string, class_: list<item: string>>",
        [("t", {"a"}), ("t", None)],
        [{"x_y": "t", "class_": ["a"]}, {"x_y": "t", "class_": None}],
    ),
]


@pytest.mark.parametrize(
    ("shape", "kind", "column", "expected"), ARROW, ids=[kind for _, kind, *_ in ARROW]
)
async def test_types_of_arrow_results_are_those_of_wit(
    real: WasmtimeKit, shape: Shape, kind: str, column: list[Any], expected: list[Any]
) -> None:
    """They do not depend on the values: columns without any have the type, too."""
    pa = pytest.importorskip("pyarrow")
    async with real.open() as cache:
        await cache.register("echo", echo((shape, "u8")), export="echo")
        async with cache.acquire("echo") as lease:
            for given, wanted in ((column, expected), ([], []), ([None], [None])):
                numbers = pa.array([7] * len(given), pa.uint8())
                found = await lease.map([given, numbers])
                assert str(found.type) == f"struct<field_0: {kind}, field_1: uint8>"
                rows = [one and one["field_0"] for one in found.to_pylist()]
                assert rows == wanted


@pytest.mark.parametrize(
    ("shape", "column"),
    [
        (("option", ("option", "u8")), [None, Some(None)]),
        (("result", "u8", None), [Ok(1)]),
        (("list", ("variant", (("a", "u8"), ("b", None)))), [[], [Case("b")]]),
    ],
)
async def test_results_that_arrow_has_no_type_for_are_refused_before_any_row(
    real: WasmtimeKit, shape: Shape, column: list[Any]
) -> None:
    """Whatever the values are; with lists as columns they are taken."""
    pa = pytest.importorskip("pyarrow")
    async with real.open() as cache:
        await cache.register("echo", echo((shape, "u8")), export="echo")
        numbers = [7] * len(column)
        async with cache.acquire("echo") as lease:
            for given in (column, column[:0]):
                with pytest.raises(TypeError, match=r"no type for .*map lists as columns"):
                    await lease.map([given, pa.array(numbers[: len(given)], pa.uint8())])
            assert lease.fuel_consumed == 0
            assert await lease.map([column, numbers]) == list(zip(column, numbers, strict=True))


async def test_lists_of_numbers_for_bytes_are_converted_in_a_thread(
    real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns of bytes are not: their conversion is short."""
    converted: list[object] = []
    convert = Call.convert

    async def noted(self: Call, *given: Any) -> Any:
        converted.append(given)
        return await convert(self, *given)

    monkeypatch.setattr(Call, "convert", noted)
    async with real.open() as cache:
        await cache.register("echo", echo((("list", "u8"),)), export="echo")
        async with cache.acquire("echo") as lease:
            assert await lease.map([[b"a"] * 100]) == [b"a"] * 100
            assert not converted
            assert await lease.map([[[1, 2]] * 100]) == [b"\1\2"] * 100
            assert len(converted) == 1
            assert await lease.map([[[7] * 5000]]) == [b"\7" * 5000]
            assert len(converted) == 2
