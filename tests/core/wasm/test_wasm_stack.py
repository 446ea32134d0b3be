"""What functions keep on the stack is weighed, by instructions that are decoded exactly."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.wasm import stack
from trio_wasmcache._core.wasm.editor import encode_module, uleb
from trio_wasmcache._core.wasm.reader import ExcessiveModuleError, FuncType, read_module
from trio_wasmcache._core.wasm.stack import (
    BLOCK_WEIGHT,
    CATCHES_WEIGHT,
    FUNCTION_LIMIT,
    MODULE_LIMIT,
    Weigher,
)

UDFS = Path(__file__).parents[2] / "udfs"
TYPES = [
    FuncType(),
    FuncType(("i64",), ("i64",)),
    FuncType(("i32",), ("i64", "i64", "i64")),
]
FUNCTIONS = [TYPES[1], TYPES[2]]


def weight(body: bytes, limit: int = 10**9) -> int:
    return Weigher(TYPES, FUNCTIONS).weigh(body, 0, len(body), limit, lambda: None)


# Bytes with which no instruction is left: what looks like a block or a call is not one.
HARMLESS = [
    b"\x20\2",
    b"\x41\2",
    b"\x42\x82\x80\x7f",
    b"\x43\2\2\2\2",
    b"\x44" + b"\x10\1" * 4,
    b"\x28\2\2",
    b"\x29\x43\2\2",
    b"\x29\xc3\x80\0\2\2",
    b"\x3f\0",
    b"\x10\0",
    b"\x02\x40\x0b",
    b"\x03\x7e\x0b",
    b"\x0c\2",
    b"\x0e\2\2\2\2",
    b"\x0e" + uleb(1000) + b"\2" * 1001,
    b"\x11\1\2",
    b"\x12\1",
    b"\x13\2\2",
    b"\x1c\1\x7e",
    b"\x45\x6a\xc4\x1a",
    b"\xd0\x70\xd2\1\xd1",
    b"\xfc\0\xfc\x0a\2\2\xfc\x0b\2\xfc\x11\2",
    b"\xfd\0\2\2",
    b"\xfd\x0c" + b"\2" * 16,
    b"\xfd\x15\2",
    b"\xfd\x54\2\2\2",
    b"\xfd\x60\xfd\xae\1\xfd\x82\2",
    b"\x08\2\x0a",
    b"\x1f\x40\2\0\2\2\3\2\x10\0\x0b",
]
WEIGHTY = {
    b"\x10\1": 4,
    b"\x10\x81\x80\0": 4,
    b"\x11\2\0": 4,
    b"\x02\0\x0b": BLOCK_WEIGHT,
    b"\x03\1\x0b": 2 * BLOCK_WEIGHT,
    b"\x04\x82\0\x0b": 4 * BLOCK_WEIGHT,
}


@given(st.lists(st.sampled_from([*HARMLESS, *WEIGHTY]), max_size=3000))
@tries(100)
def test_the_weight_is_that_of_calls_and_blocks(instructions: list[bytes]) -> None:
    """However they are mixed with others, whose operands look like them."""
    body = b"".join(instructions) + b"\x0b"
    assert weight(body) == sum(WEIGHTY.get(one, 0) for one in instructions)


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 100_000])
@pytest.mark.parametrize("one", HARMLESS, ids=bytes.hex)
def test_long_runs(one: bytes, count: int) -> None:
    """A run ends after a thousand instructions, and the next one goes on there."""
    count = min(count, 200_000 // len(one))
    assert weight(one * count + b"\x10\1\x0b") == 4


def test_what_is_unknown_weighs_as_the_worst() -> None:
    """Also what is cut off, or has fewer targets than it says."""
    worst = 4 * BLOCK_WEIGHT
    for tail in (b"\xff\0\0", b"\x02", b"\x10", b"\x0e\x7f\0", b"\x11\2", b"\xfd\x80\0"):
        assert weight(b"\x01" * 10 + tail) >= len(tail) * worst


def test_it_stops_over_the_limit() -> None:
    """A body may have a million of them."""
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 1

    body = b"\x10\1" * 1_000_000
    assert Weigher(TYPES, FUNCTIONS).weigh(body, 0, len(body), 100, step) == 104
    assert taken == 26


def stacked(calls: int, functions: int = 1) -> bytes:
    """Functions that each keep a thousand values across some calls."""
    return encode_module(
        types=[FuncType((), ("i64",) * 1000), FuncType()],
        functions=[0] + [1] * functions,
        code=[b"\0\0\x0b"] + [b"\0" + b"\x10\0" * calls + b"\0\x0b"] * functions,
    )


def test_functions_and_modules_have_a_limit() -> None:
    """At the limit a module is read; one call more is refused, as it is in one function more."""
    read_module(stacked(FUNCTION_LIMIT // 1000))
    with pytest.raises(ExcessiveModuleError, match="keeps over 100000 values on the stack"):
        read_module(stacked(FUNCTION_LIMIT // 1000 + 1))
    functions = MODULE_LIMIT // FUNCTION_LIMIT
    read_module(stacked(FUNCTION_LIMIT // 1000, functions))
    with pytest.raises(ExcessiveModuleError, match="values on the stack"):
        read_module(stacked(FUNCTION_LIMIT // 1000, functions + 1))


@pytest.mark.parametrize("path", sorted(UDFS.glob("*.wasm")), ids=lambda path: path.name)
def test_what_compilers_write_weighs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C and Rust, with all that they use of the instruction set: each of it is decoded."""
    monkeypatch.setattr("trio_wasmcache._core.wasm.reader.FUNCTION_WEIGHT", 0)
    read_module(path.read_bytes())


def caught(calls: int, catches: int, nested: bool, call: str = "(call $f)") -> bytes:
    """A function that calls another inside of `try_table`s: each in the next, or with a list."""
    call *= calls
    if nested:
        body = "(try_table (catch_all $h)" * catches + call + ")" * catches
    else:
        body = f"(try_table {'(catch $e $h)' * catches} {call})"
    fields = f"(tag $e) (memory 1) (func $f) (func (block $h {body}) (call $f))"
    return bytes(wasmtime.wat2wasm(f"(module {fields})"))


@pytest.mark.parametrize("call", ["(call $f)", "(drop (memory.grow (i32.const 0)))"])
@pytest.mark.parametrize("nested", [True, False])
def test_calls_inside_of_catches_have_a_limit(nested: bool, call: str) -> None:
    """A thousand calls with a hundred catches would take ten seconds to compile, of 3 KB.

    So would `memory.grow`, which becomes a call.
    """
    most = int((FUNCTION_LIMIT * CATCHES_WEIGHT / 1000) ** 0.5)
    read_module(caught(1000, most, nested, call))
    with pytest.raises(ExcessiveModuleError, match="on the stack across calls and blocks"):
        read_module(caught(1000, most + 1, nested, call))


def test_what_catches_weigh() -> None:
    """Of calls and throws inside, up to the end of their block, which may have others inside."""
    for inside, outside in (
        (b"\x10\0", 0),
        (b"\x08\0", 0),
        (b"\x0a", 0),
        (b"\x11\0\0", 0),
        (b"\x02\x40\x03\x7e\x0b\x0b\x10\0", 0),
        (b"\x04\x40\x10\0\x05\x01\x0b", 0),
        (b"\x10\1", 4),
    ):
        # catch 1 0, catch_ref 2 1, catch_all 0, catch_all_ref 3
        begin = b"\x1f\x40\4\0\1\0\1\2\1\2\0\3\3"
        assert weight(begin + inside + b"\x0b" + inside + b"\x0b") == 16 // 5 + 2 * outside
        assert weight(inside + begin + begin + inside) == 64 // 5 + 2 * outside
    assert weight(b"\x1f\2\0\x0b") == 4 * BLOCK_WEIGHT
    worst = 4 * BLOCK_WEIGHT
    for tail in (b"\x1f", b"\x1f\x40", b"\x1f\x40\2\0\0", b"\x1f\x40\1\0\0\0\xff"):
        assert worst <= weight(b"\x01" * 10 + tail) <= 100 * worst, "it began again at the front"


def test_it_agrees_with_wasmtime_on_text() -> None:
    """Multiple results, SIMD, bulk memory, tables and several memories, by another's encoder."""
    wasm = wasmtime.wat2wasm("""(module (memory 1) (memory 1) (table 3 funcref)
      (type $two (func (result i32 i64)))
      (type $through (func (param i32 i64) (result i32 i64)))
      (func $f (type $two) (i32.const 1) (i64.const 2))
      (func (param i32) (local v128)
        (call $f) (drop) (drop)
        (call_indirect (type $two) (i32.const 0)) (drop) (drop)
        (call $f) (block (type $through)) (loop (type $through)) (drop) (drop)
        (local.set 1 (i8x16.shuffle 2 3 4 2 3 4 2 3 4 2 3 4 2 3 4 2 (local.get 1) (local.get 1)))
        (local.set 1 (v128.load8_lane 1 offset=2 align=1 3 (i32.const 0) (local.get 1)))
        (v128.store 1 offset=515 (i32.const 0) (local.get 1))
        (memory.copy 1 0 (i32.const 1) (i32.const 2) (i32.const 3))
        (table.set 0 (i32.const 0) (ref.null func))
        (block (block (br_table 0 1 0 1 0 (local.get 0))))
        (i64.store 1 offset=2 (i32.const 2) (i64.extend_i32_u (memory.size 1)))
        (drop (select (result i64) (i64.const 2) (i64.const 3) (local.get 0)))
        (f64.store offset=16 (i32.const 4) (f64.const 1e300))))""")
    info = read_module(wasm)
    (code,) = [one for one in info.sections if one.id == 10]
    # count; size, no locals, two constants, end; size, one local
    at = code.start + 1 + 1 + wasm[code.start + 1]
    at += 1 if wasm[at] < 0x80 else 2
    assert wasm[at : at + 3] == b"\1\1\x7b"
    found = Weigher(info.types, info.functions).weigh(wasm, at + 3, code.end, 10**9, lambda: None)
    assert found == 3 * 2 + 2 * 4 * BLOCK_WEIGHT


# Bytes of which instructions are made, so that most of them are known.
LIKELY = st.sampled_from(
    b"\0\1\2\x0b\x0c\x10\x11\x13\x1c\x20\x28\x40\x41\x43\x45\x7f\x80\xfc\xfd\xff"
)


@tries(1000)
@given(st.one_of(st.binary(max_size=60), st.lists(LIKELY, max_size=60).map(bytes)))
def test_a_run_without_state_is_the_same_run(body: bytes) -> None:
    """Patterns that keep no state to go back match what those do that can go back."""
    for forms in (stack._PLAIN, stack._NO_CALL, stack._ANY_CALL):
        going_back = stack._run(forms, stack._REPEATED).match(body)
        at_once = stack._run(forms).match(body)
        assert going_back is not None and at_once is not None
        assert at_once.end() == going_back.end()


@tries(1000)
@given(st.one_of(st.binary(max_size=60), st.lists(LIKELY, max_size=60).map(bytes)))
def test_short_numbers_are_a_form_of_their_own(body: bytes) -> None:
    """It changes only what is tried first."""
    short, *others = stack._ANY_CALL
    assert short.removesuffix(rb"[\x00-\x7f]") + b"L" in others
    expected = stack._run(tuple(others)).match(body)
    found = stack._run(stack._ANY_CALL).match(body)
    assert expected is not None and found is not None
    assert found.end() == expected.end()
