"""Which exported functions burn little fuel and need little stack, whatever they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import wasmtime

from trio_wasmcache._core.wasm.bounds import (
    BODY_LIMIT,
    SLOTS_LIMIT,
    Bounds,
    bounded_exports,
)
from trio_wasmcache._core.wasm.reader import FuncType, read_module
from trio_wasmcache._core.wasm.types import BOUNDED_FUEL

UDFS = Path(__file__).parents[2] / "udfs"
EMPTY = FuncType()


def bounded(text: str) -> set[str]:
    """The bounded exports of a module, as text."""
    wasm = bytes(wasmtime.wat2wasm(text))
    info = read_module(wasm)
    return set(bounded_exports(wasm, info, info.bodies_begin))


def is_bounded(body: str, rest: str = "") -> bool:
    return bounded(f'(module {rest} (func $f (export "f") {body}))') == {"f"}


def bounds(*bodies: bytes, functions: tuple[FuncType, ...] | None = None) -> Bounds:
    """Of functions with these bodies, from their locals on."""
    code = b"".join(number(len(body)) + body for body in bodies)
    # No module is valid that ends in the middle of an instruction; some of these would.
    return Bounds(b"\0" + code + b"\0" * 600, functions or (EMPTY,) * len(bodies), 1)


def number(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


REST = """(memory $m 1) (memory $n 1) (table $t 9 funcref) (elem $e funcref (ref.func $f))
    (data $d "x") (global $g (mut i64) (i64.const 0)) (type $void (func))
    (func $leaf) (func $loops (loop (br 0)))"""


@pytest.mark.parametrize(
    "body",
    [
        "",
        "unreachable",
        "(param i64) (result i64) (local.get 0)",
        "(param f32 f64) (result f64) (local i32) (f64.add (local.get 1) (f64.const 1.5))",
        "(global.set $g (i64.add (global.get $g) (i64.const 1000000)))",
        "(i64.store offset=70000 (i32.const 8) (i64.load32_s (i32.const -100000)))",
        "(if (i32.const 1) (then nop) (else (return)))",
        "(drop (block (result i32) (br_if 0 (i32.const 1) (i32.const 0))))",
        "(result f32) (block (br 0)) (f32.demote_f64 (f64.const 3))",
        "(block (block (br_table 0 1 1 0 (i32.const 3))))",
        "(call $leaf) (call $leaf)",
        "(result i32) (select (memory.size) (i32.trunc_sat_f64_s (f64.const 3)) (i32.const 0))",
    ],
)
def test_what_is_bounded(body: str) -> None:
    """Numbers, jumps forward, memory and globals, and calls of what is bounded."""
    assert is_bounded(body, REST)


@pytest.mark.parametrize(
    "body",
    [
        "(loop)",
        "(block (loop (br 1)))",
        "(call $loops)",
        "(call $f)",
        "(return_call $leaf)",
        "(call_indirect (type $void) (i32.const 0))",
        "(return_call_indirect (type $void) (i32.const 0))",
        "(memory.fill (i32.const 0) (i32.const 0) (i32.const 9))",
        "(memory.copy (i32.const 0) (i32.const 0) (i32.const 9))",
        "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 1))",
        "(data.drop $d)",
        "(drop (memory.grow (i32.const 1)))",
        "(table.fill $t (i32.const 0) (ref.null func) (i32.const 9))",
        "(table.copy (i32.const 0) (i32.const 0) (i32.const 9))",
        "(table.init $e (i32.const 0) (i32.const 0) (i32.const 1))",
        "(elem.drop $e)",
        "(drop (table.grow (ref.null func) (i32.const 1)))",
        "(table.set (i32.const 0) (table.get (i32.const 0)))",
        "(drop (table.size))",
        "(drop (ref.func $f))",
        "(drop (v128.const i64x2 0 0))",
        "(param v128)",
        "(local v128)",
        "(local externref)",
        "(result funcref) (unreachable)",
        "(drop (i32.load $n (i32.const 0)))",
        "(drop (block (result funcref) (unreachable)))",
    ],
)
def test_what_is_not(body: str) -> None:
    """Whatever may go on, works on a whole memory or table, or is none of the simple kinds."""
    assert not is_bounded(body, REST)


def test_a_module_with_imported_functions_has_none() -> None:
    """Its stores are asynchronous from the start, and the numbers of its functions begin behind."""
    imported = '(import "a" "b" (func))'
    body = '(func (export "f"))'
    assert bounded(f"(module {body})") == {"f"}
    assert bounded(f"(module {imported} {body})") == set()
    assert bounded('(module (memory (export "f") 1))') == set()


def test_a_recursion_has_no_bound() -> None:
    """However long the way round is, and wherever it is entered; the others keep theirs."""
    text = """(module (func $a (export "a") (call $leaf) (call $b)) (func $b (export "b") (call $c))
        (func $c (export "c") (call $leaf) (call $a)) (func $leaf (export "leaf"))
        (func (export "d") (call $leaf)))"""
    assert bounded(text) == {"leaf", "d"}


def test_calls_add_up() -> None:
    """Fuel is that of all calls, slots those of the deepest."""
    leaf, twice = b"\0\x0b", b"\0\x10\0\x10\0\x0b"
    found = bounds(leaf, twice, b"\0\x10\1\x10\1\x10\0\x0b")
    assert found.find(2) == (1 + 4 + 2 * (1 + 3 + 2 * 2) + 2, 4 + 3 + 1)
    assert found.find(0) == (2, 1)


def test_limits_are_exact() -> None:
    """Of fuel, of slots, of a body, and of calls in calls."""
    nops = b"\x01"
    assert bounds(b"\0" + nops * (SLOTS_LIMIT - 1) + b"\x0b").find(0) == (257, SLOTS_LIMIT)
    assert bounds(b"\0" + nops * SLOTS_LIMIT + b"\x0b").find(0) is None
    assert bounds(bytes([1, 100, 0x7E]) + nops * 155 + b"\x0b").find(0) == (157, SLOTS_LIMIT)
    assert bounds(bytes([1, 100, 0x7E]) + nops * 156 + b"\x0b").find(0) is None
    wide = FuncType(("i64",) * 100, ("i64",) * 50)
    assert bounds(b"\0" + nops * 105 + b"\x0b", functions=(wide,)).find(0) is not None
    assert bounds(b"\0" + nops * 106 + b"\x0b", functions=(wide,)).find(0) is None
    # Fuel: so many calls of a function that takes 100.
    ten = b"\0" + nops * 97 + b"\x0b"
    assert bounds(ten).find(0) == (99, 98)
    most = b"\0" + b"\x10\0" * 9 + nops * 98 + b"\x0b"
    assert bounds(ten, most).find(1) == (BOUNDED_FUEL, 9 + 98 + 1 + 98)
    assert bounds(ten, most[:-1] + nops + b"\x0b").find(1) is None
    # A body of constants: five bytes each, so few are many bytes.
    constant = b"\x41\x80\x80\x80\x00\x1a"
    fits = b"\0" + constant * ((BODY_LIMIT - 2) // 6)
    fits += nops * (BODY_LIMIT - 1 - len(fits)) + b"\x0b"
    assert len(fits) == BODY_LIMIT
    assert bounds(fits).find(0) is not None
    assert bounds(fits[:-1] + nops + b"\x0b").find(0) is None
    chain = [b"\0\x0b", *(b"\0\x10" + bytes([n]) + b"\x0b" for n in range(20))]
    assert bounds(*chain).find(7) is not None
    assert bounds(*chain).find(8) is None


def test_few_are_looked_at() -> None:
    """Of many exports the first, of many functions those in front, of many instructions some."""
    many = "".join(f'(func (export "{n}"))' for n in range(100))
    assert bounded(f"(module {many})") == {str(n) for n in range(64)}
    behind = "(func)" * 4095
    assert bounded(f'(module {behind} (func (export "f")))') == {"f"}
    assert bounded(f'(module {behind} (func) (func (export "f")))') == set()
    long = "".join(f'(func (export "{n}") {"(drop (i32.const 0))" * 100})' for n in range(30))
    assert 5 < len(bounded(f"(module {long})")) < 15


@pytest.mark.parametrize(
    ("body", "is_bounded"),
    [
        # A loop's opcode within a number, a constant, an offset, a jump table: no loop.
        (b"\x41\x03\x1a\x0b", True),
        (b"\x41\x83\x03\x1a\x0b", True),
        (b"\x43\x03\x03\x03\x03\x1a\x0b", True),
        (b"\x44\x03\x40\x0b\x0b\x03\x40\x0b\x0b\x1a\x0b", True),
        (b"\x41\0\x28\x02\x03\x1a\x0b", True),
        (b"\x41\0\x0e\x03\x03\x03\x03\x03\x0b", True),
        # One right behind such a thing is one.
        (b"\x41\x03\x03\x40\x0b\x1a\x0b", False),
        (b"\x43\x03\x03\x03\x03\x03\x40\x0b\x1a\x0b", False),
        (b"\x44" + b"\0" * 8 + b"\x03\x40\x0b\x1a\x0b", False),
        (b"\x41\0\x0e\x01\0\0\x03\x40\x0b\x0b", False),
        (b"\xfc\x00\x03\x40\x0b\x0b", False),
        # A body ends with its end, in the middle of nothing.
        (b"\x41\x0b", False),
        (b"\x01", False),
        (b"\x43\0\x0b", False),
        # No short form: alignments of two bytes, types of blocks by number.
        (b"\x41\0\x28\x82\0\0\x1a\x0b", False),
        (b"\x41\0\x28\x42\0\0\x1a\x0b", False),
        (b"\x02\x00\x0b\x0b", False),
        (b"\x02\xc0\x7f\x0b\x0b", False),
        (b"\xfc\x80\x00\x0b", False),
        (b"\xfd\x0c\x0b", False),
        (b"\xfe\x00\x0b", False),
        (b"\x10\x05\x0b", False),
        (b"\x10\x80\x80\x80\x80\x0f\x0b", False),
    ],
)
def test_bodies_are_decoded(body: bytes, is_bounded: bool) -> None:
    """Nothing in an operand counts, and no operand hides an instruction."""
    assert (bounds(b"\0" + body, b"\0\x03\x40\x0b\x0b").find(0) is not None) == is_bounded


def test_locals_of_any_number() -> None:
    """Groups of none, of many, and of unknown types."""
    for groups, fits in (
        (b"\x02\x01\x7f\x02\x7c", True),
        (b"\x01\x80\x01\x7f", True),
        (b"\x01\x80\x02\x7f", False),
        (b"\x01\xff\xff\xff\xff\x0f\x7f", False),
        (b"\x01\x01\x7b", False),
        (b"\x01\x01\x70", False),
        (b"\x01\x01\x63\x00", False),
        (b"\xff\xff\xff\xff\x0f\x01\x7f", False),
    ):
        assert (bounds(groups + b"\x0b", b"\0\x0b").find(0) is not None) == fits, groups


def test_opcodes_that_are_allowed() -> None:
    """All others are refused, also those that nothing has a meaning for yet."""
    allowed = set()
    for opcode in range(256):
        operands = (b"", b"\0", b"\0\0", b"\0" * 4, b"\0" * 8, b"\x40")
        if any(bounds(b"\0" + bytes([opcode]) + more + b"\x0b").find(0) for more in operands):
            allowed.add(opcode)
    numbers = {*range(0x20, 0x25), *range(0x28, 0x40), *range(0x41, 0xC5)}
    assert allowed == {0, 1, 2, 4, 5, 0xB, 0xC, 0xD, 0xE, 0xF, 0x1A, 0x1B, 0xFC} | numbers


def test_real_modules() -> None:
    """What compilers write is read without a fault; some functions of it are bounded."""
    found = 0
    for path in sorted(UDFS.rglob("*.wasm")):
        wasm = path.read_bytes()
        if wasm[4:8] != b"\1\0\0\0":
            continue  # a component
        info = read_module(wasm)
        found += len(bounded_exports(wasm, info, info.bodies_begin))
    assert found
