"""Guests that hide what they are told wherever they can, and say where they find something.

Each exports ``run``. Given a number that is not 0, it hides a trace of it in every place it has;
given 0, it gives a number with a bit for each place in which there is a trace.
"""

from __future__ import annotations

from collections.abc import Iterable

import wasmtime

DATA = int.from_bytes(b"s it beg", "little")
# {place: (declarations, what hides the local $x there, what is 1 if something is there, else 0)}
PLACES = {
    "memory": (
        "",
        "(i64.store (i32.const 5000) (local.get $x))",
        "(i64.ne (i64.load (i32.const 5000)) (i64.const 0))",
    ),
    "data": (
        '(data (i32.const 70000) "as it began")',
        "(i64.store (i32.const 70001) (local.get $x))",
        f"(i64.ne (i64.load (i32.const 70001)) (i64.const {DATA}))",
    ),
    "hidden memory": (
        "(memory $second 1)",
        "(i64.store $second (i32.const 64) (local.get $x))",
        "(i64.ne (i64.load $second (i32.const 64)) (i64.const 0))",
    ),
    "exported global": (
        '(global $shown (export "shown") (mut i64) (i64.const 7))',
        "(global.set $shown (local.get $x))",
        "(i64.ne (global.get $shown) (i64.const 7))",
    ),
    "i32": (
        "(global $i32 (mut i32) (i32.const -1))",
        "(global.set $i32 (i32.wrap_i64 (local.get $x)))",
        "(i32.ne (global.get $i32) (i32.const -1))",
    ),
    "i64": (
        "(global $i64 (mut i64) (i64.const -1))",
        "(global.set $i64 (local.get $x))",
        "(i64.ne (global.get $i64) (i64.const -1))",
    ),
    "f32": (
        "(global $f32 (mut f32) (f32.const 0.5))",
        "(global.set $f32 (f32.convert_i64_s (local.get $x)))",
        "(f32.ne (global.get $f32) (f32.const 0.5))",
    ),
    "f64": (
        "(global $f64 (mut f64) (f64.const 0.5))",
        "(global.set $f64 (f64.convert_i64_s (local.get $x)))",
        "(f64.ne (global.get $f64) (f64.const 0.5))",
    ),
    "v128": (
        "(global $v128 (mut v128) (v128.const i64x2 1 2))",
        "(global.set $v128 (i64x2.splat (local.get $x)))",
        "(i64.ne (i64x2.extract_lane 1 (global.get $v128)) (i64.const 2))",
    ),
    "function": (
        "(global $ref (mut funcref) (ref.null func))",
        "(global.set $ref (ref.func $other))",
        "(i32.eqz (ref.is_null (global.get $ref)))",
    ),
    "table": (
        "(table $t 20 funcref) (elem (table $t) (i32.const 1) func $other)",
        "(table.set $t (i32.const 19) (ref.func $other))",
        "(i32.eqz (ref.is_null (table.get $t (i32.const 19))))",
    ),
    "emptied table": (
        "(table $u 2 funcref) (elem (table $u) (i32.const 0) func $other $other)",
        "(table.fill $u (i32.const 0) (ref.null func) (i32.const 2))",
        "(ref.is_null (table.get $u (i32.const 1)))",
    ),
}


def hider(places: Iterable[str] = tuple(PLACES), more: str = "", imports: str = "") -> bytes:
    """A module that hides in these places; `more` are further fields of it."""
    chosen = [PLACES[place] for place in places]
    fields = "".join(declared for declared, _, _ in chosen)
    hides = "".join(hide for _, hide, _ in chosen)
    finds = "".join(
        f"(local.set $found (i64.or (local.get $found) (i64.shl (i64.extend_i32_u {find})"
        f" (i64.const {number}))))"
        for number, (_, _, find) in enumerate(chosen)
    )
    return binary(
        f'(module {imports} (memory (export "memory") 2)'
        f" (func $other (result i32) (i32.const 1)) (elem declare func $other) {fields}"
        ' (func $run (export "run") (param $x i64) (result i64) (local $found i64)'
        f" (if (i64.ne (local.get $x) (i64.const 0)) (then {hides}) (else {finds}))"
        f" (local.get $found)) {more})"
    )


def found(answer: int) -> list[str]:
    """The places in which `run(0)` of a guest that hides in all of them found something."""
    return [place for number, place in enumerate(PLACES) if answer >> number & 1]


def binary(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


# Drops a segment if it is told to; once it is dropped, copying from it traps.
DROPPER = binary(
    '(module (memory (export "memory") 1) (data $passive "x")'
    ' (func (export "run") (param $x i64) (result i64)'
    " (if (i64.ne (local.get $x) (i64.const 0)) (then (data.drop $passive))"
    "  (else (memory.init $passive (i32.const 0) (i32.const 0) (i32.const 1))))"
    " (local.get $x)))"
)
ELEMENT_DROPPER = binary(
    "(module (table $t 1 funcref) (func $f) (elem $passive func $f)"
    ' (func (export "run") (param $x i64) (result i64)'
    " (if (i64.ne (local.get $x) (i64.const 0)) (then (elem.drop $passive))"
    "  (else (table.init $t $passive (i32.const 0) (i32.const 0) (i32.const 1))))"
    " (local.get $x)))"
)
# Grows, and writes into what it got: the next lease would find it there.
GROWER = binary(
    '(module (memory (export "memory") 1) (table $t 1 funcref) (global $g (mut i32) (i32.const 0))'
    ' (func (export "run") (param $x i64) (result i64)'
    " (if (i64.eq (local.get $x) (i64.const 1))"
    "  (then (drop (memory.grow (i32.const 1))) (i64.store (i32.const 65540) (i64.const 9))))"
    " (if (i64.eq (local.get $x) (i64.const 2))"
    "  (then (drop (table.grow $t (ref.null func) (i32.const 3)))))"
    " (i64.add (i64.extend_i32_u (memory.size)) (i64.extend_i32_u (table.size $t)))))"
)
# What its start writes has to be there again: in the image of memory, and where there is none.
STARTER = binary(
    '(module (memory (export "memory") 3) (global $g (mut i64) (i64.const 1))'
    ' (data (i32.const 8) "before") (func $begin (i64.store (i32.const 8) (i64.const 1234))'
    "  (i64.store (i32.const 150000) (i64.const 99)) (global.set $g (i64.const 5)))"
    " (start $begin)"
    ' (func (export "run") (param $x i64) (result i64) (local $before i64)'
    "  (local.set $before (i64.add (i64.load (i32.const 8)) (i64.add"
    "   (i64.load (i32.const 150000)) (global.get $g))))"
    "  (i64.store (i32.const 8) (local.get $x)) (i64.store (i32.const 150000) (local.get $x))"
    "  (global.set $g (local.get $x)) (local.get $before)))"
)
# A reactor: the same by `_initialize`, with WASI, and file descriptors that it may close.
REACTOR = binary(
    '(module (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))'
    ' (import "wasi_snapshot_preview1" "environ_sizes_get"'
    "  (func $sizes (param i32 i32) (result i32)))"
    ' (memory (export "memory") 1) (global $ready (mut i64) (i64.const 0))'
    ' (func (export "_initialize") (drop (call $sizes (i32.const 16) (i32.const 20)))'
    "  (i64.store (i32.const 24) (i64.const 7)) (global.set $ready (i64.const 1)))"
    ' (func (export "run") (param i64) (result i64) (local $before i64)'
    "  (local.set $before (i64.add (i64.load (i32.const 24)) (global.get $ready)))"
    "  (i64.store (i32.const 24) (i64.const 0)) (global.set $ready (i64.const 100))"
    "  (i64.add (local.get $before) (i64.mul (i64.const 1000)"
    "   (i64.extend_i32_u (call $close (i32.const 1)))))))"
)
