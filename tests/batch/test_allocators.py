"""Each allocator and each way to give a result: a driver calls what calls for each row call.

The guest notes every call of its allocator, with its arguments, so that both routes can be seen to
have done the same, in the same order.
"""

from __future__ import annotations

from typing import Any

import pytest
from batch.modules import binary
from batch.routes import both, drives, outcome, row_by_row, seen, udf
from hypothesis import HealthCheck, given, strategies as st
from kits import WasmtimeKit, tries

from trio_wasmcache import AbiError, BufferAbi, Function

NOTES = 16  # address
# {name: (export that allocates, its arity, export that frees, its arity)}
ALLOCATORS: dict[str, tuple[str, int, str, int]] = {
    "malloc": ("malloc", 1, "free", 1),
    "dealloc": ("alloc", 1, "dealloc", 2),
    "aligned": ("allocate", 2, "deallocate", 3),
    "bindgen": ("__wbindgen_malloc", 2, "__wbindgen_free", 3),
    "cabi": ("cabi_realloc", 4, "cabi_post_run", 1),
}
RESULTS = {
    "packed": ("(result i64)", "(call $both (local.get $to) (local.get $size))"),
    "packed_low": ("(result i64)", "(call $both (local.get $size) (local.get $to))"),
    "pair": ("(result i32 i32)", "(local.get $to) (local.get $size)"),
    "area": ("(result i32)", "(call $put (i32.const 32)) (i32.const 32)"),
    "out": ("", "(call $put (local.get $out))"),
}
VALUES = [
    "",
    "a",
    "Same",
    None,
    "S" * 40_000,
    "abc" * 30,
    "x" * 30_000,
    "y" * 50_000,
    "z" * 90_000,
    "é",
    "w" * 29_000,
]


def module(allocator: str, style: str) -> bytes:
    """Gives its text back in room of its own, if it begins with S as it is.

    Room is never used again.
    """
    alloc, size_of, free, freed = ALLOCATORS[allocator]
    result, give = RESULTS[style]
    out = "(param $out i32)" if style == "out" else ""
    notes = "".join(f"(call $note (local.get {n}))" for n in range(size_of))
    frees = "".join(f"(call $note (local.get {n}))" for n in range(freed))
    put = """(func $put (param $area i32)
      (i32.store (local.get $area) (global.get $to))
      (i32.store offset=4 (local.get $area) (global.get $size))
      (i32.store offset=12 (local.get $area) (i32.and (i32.gt_u (global.get $size) (i32.const 0))
        (i32.eq (i32.load8_u (global.get $to)) (i32.const 69)))))"""  # E: an error
    wanted = {1: 0, 2: 0, 4: 3}[size_of]
    values = {1: "", 2: "(i32.const 1)", 4: ""}[size_of]
    before = "(i32.const 0) (i32.const 0) (i32.const 1)" if size_of == 4 else ""
    return binary(f"""(module (memory (export "memory") 1)
      (global $top (mut i32) (i32.const 1024))
      (global $to (mut i32) (i32.const 0)) (global $size (mut i32) (i32.const 0))
      (func $note (param i32) (i32.store (i32.const {NOTES}) (i32.add (local.get 0)
        (i32.mul (i32.load (i32.const {NOTES})) (i32.const 31)))))
      (func $alloc (export "{alloc}") (param {"i32 " * size_of}) (result i32) {notes}
        (global.get $top)
        (global.set $top (i32.add (global.get $top) (local.get {wanted})))
        (block (loop
          (br_if 1 (i32.le_u (global.get $top) (i32.mul (memory.size) (i32.const 65536))))
          (drop (memory.grow (i32.const 1)))
          (br 0))))
      (func (export "{free}") (param {"i32 " * freed}) {frees})
      (func $both (param i32 i32) (result i64) (i64.or (i64.extend_i32_u (local.get 1))
        (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))))
      {put}
      (func (export "run") {out} (param $at i32) (param $size i32) {result} (local $to i32)
        (if (i32.and (i32.ne (local.get $size) (i32.const 0))
              (i32.eq (i32.load8_u (local.get $at)) (i32.const 83)))  ;; S: the argument itself
          (then (local.set $to (local.get $at)))
          (else
            (local.set $to (call $alloc {before} (local.get $size) {values}))
            (memory.copy (local.get $to) (local.get $at) (local.get $size))))
        (global.set $to (local.get $to)) (global.set $size (local.get $size))
        {give}))""")


async def noted(function: Function, columns: Any) -> tuple[Any, bytes]:
    async with function.acquire() as lease:
        result = await lease.map(columns)
        return result, lease.memory.read(NOTES, 4)


# What is called after a call of the component model takes one address.
EACH = [(a, s, None) for a in ALLOCATORS for s in RESULTS if a != "cabi" or s == "area"]
OWNED = [(a, "area", owner) for a in ALLOCATORS for owner in ("host", "guest")]


@pytest.mark.parametrize(("allocator", "style", "owner"), [*EACH, *OWNED])
async def test_the_same_calls(real: WasmtimeKit, allocator: str, style: Any, owner: Any) -> None:
    """With the same arguments and in the same order, whoever owns arguments and results."""
    abi = BufferAbi(result=style, arguments_of=owner, result_of=owner)
    async with real.open() as cache:
        options: dict[str, Any] = {"args": ("str",), "returns": "str", "export": "run", "abi": abi}
        for name in ("f", "g"):
            await cache.register(name, module(allocator, style), **options)
        driven, single = cache.functions()
        found = await noted(driven, [VALUES])
        with row_by_row():
            assert await noted(single, [VALUES]) == found
        assert found[0] == VALUES
        async with driven.acquire() as lease:
            assert drives(lease)


async def test_errors_of_wasm_bindgen(real: WasmtimeKit) -> None:
    """What the guest flags as an error ends the batch at its row."""
    async with real.open() as cache:
        f = await cache.register(
            "f", module("bindgen", "out"), args=("str",), returns="str", export="run", abi="buffer"
        )
        error = await both(f, [["a", "", "Error", "b"]])
        assert (type(error), error.row) == (AbiError, 2)


CLAIMS = st.one_of(
    st.sampled_from([0, 1, 16, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1]),
    st.integers(0, 2**32 - 1),
)
LIARS = """(module (memory (export "memory") 1)
  (data (i32.const 64) "\\40\\00\\00\\00\\03\\00\\00\\00")
  (func (export "pair") (param i32 i32) (result i32 i32) (local.get 0) (local.get 1))
  (func (export "packed") (param i64) (result i64) (local.get 0))
  (func (export "area") (param i32 i32) (result i32) (local.get 0))
  (func (export "number") (param i32 i32 i32) (result i32) (local.get 2)))"""
ROUNDS = tries(10, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(claims=st.lists(st.tuples(CLAIMS, CLAIMS), min_size=1, max_size=3))
@ROUNDS
async def test_guests_that_lie(real: WasmtimeKit, claims: list[tuple[int, int]]) -> None:
    """About where a result is, and how large: the error is the same, in the same row."""
    columns = [[(16, 0)[n], *(claim[n] for claim in claims)] for n in range(2)]
    async with real.open() as cache:
        for export, style in (("pair", None), ("area", "area")):
            f = await cache.register(
                export,
                binary(LIARS),
                args=("u32", "u32"),
                returns="bytes",
                abi=BufferAbi(result=style),  # type: ignore[arg-type]
            )
            await both(f, columns)
        f = await cache.register(
            "packed", binary(LIARS), args=("u64",), returns="str", abi="buffer"
        )
        await both(f, [[0, *(at << 32 | size for at, size in claims)]])
        f = await cache.register("lie", udf("scylla_v1"), args=("bigint",), returns="text")
        signed = [size << 32 | at for at, size in claims]
        await both(f, [[-1 << 32, 0, *((n - (1 << 64)) if n >> 63 else n for n in signed)]])


@pytest.mark.parametrize(
    ("kind", "good", "wrong"),
    [
        ("u8", [0, 255], 256),
        ("i8", [127, 0xFFFFFF80], 128),
        ("u16", [0, 65535], 65536),
        ("i16", [32767, 0xFFFF8000], 0xFFFF7FFF),
        ("bool", [0, 1], 2),
        ("u32", [0, 2**32 - 1], None),
    ],
)
async def test_numbers_out_of_range(
    real: WasmtimeKit, kind: str, good: list[int], wrong: int | None
) -> None:
    """Beside a text, they are looked at as in any batch."""
    async with real.open() as cache:
        f = await cache.register(
            "number", binary(LIARS), args=("str", "u32"), returns=kind, abi="buffer"
        )
        result = await both(f, ["text", good])
        assert len(result) == 2
        if wrong is not None:
            error = await both(f, ["text", [*good, wrong]])
            assert (type(error), error.row) == (AbiError, 2)


async def test_nothing_but_numbers(real: WasmtimeKit) -> None:
    """By an ABI for bytes, with a result or without."""
    async with real.open() as cache:
        text = '(module (memory (export "memory") 1) (func (export "f") (param i64 f64)))'
        f = await cache.register("f", text, args=("i64", "f64"), abi="buffer")
        assert await both(f, [[1, 2], 0.5]) is None
        assert seen(await outcome(f, [[1, 2], [0.5, 1]])) == (type(None), None)
