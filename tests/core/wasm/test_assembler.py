"""The assembler: what it makes of a text is what wasmtime makes of it."""

from __future__ import annotations

import pytest
import wasmtime

from trio_wasmcache._core.wasm import extism_kernel
from trio_wasmcache._core.wasm.assembler import assemble
from trio_wasmcache._core.wasm.extism_kernel import (
    BLOCK,
    BlockFunction,
    KernelSettings,
    kernel,
)
from trio_wasmcache._core.wasm.reader import HEADER, read_module

EVERYTHING = """(module
  (import "a" "b" (func $f (param i64 i32) (result i64)))
  (import "a" "c" (func $none))
  (import "a" "d" (memory $o 0))
  (memory $m (export "memory") 1 10)
  (memory $n 1)
  (func $g (export "g") (param $a i64) (param $b i32) (result i64)
    (local $x i32) ;; a comment (with parentheses
    (block $out (loop $again
      (br_if $out (i32.gt_u (local.get $x) (i32.const 0x7f)))
      (local.set $x (i32.add (local.tee $x (local.get $b)) (i32.const -1)))
      (br $again)))
    (memory.copy $m $n (i32.const 0) (i32.const 1) (i32.const 2))
    (memory.fill $n (i32.const 0) (i32.const 1) (memory.size $m))
    (i32.store8 $n offset=300 (local.get $x) (i32.load8_u (i32.load (local.get $x))))
    (if (i32.eqz (local.get $x)) (then (call $none) (unreachable)) (else (drop (local.get $a))))
    (if (i32.eqz (local.get $x)) (then (return (i64.const 0xffffffff))))
    (f32.store $m offset=4 (local.get $x) (f32.load $n (local.get $x)))
    (f64.store $o (local.get $x) (f64.load $o offset=8 (local.get $x)))
    (drop (i32.load16_u $m (local.get $x)))
    (i64.store $m offset=8 (memory.grow $n (i32.const 1)) (i64.load32_u $n offset=8 (local.get $x)))
    (if (result i64) (i64.eqz (local.get $a))
      (then (i64.const -9223372036854775808))
      (else (call $f (local.get $a) (select (local.get $b) (local.get $x) (i32.const 1))))))
  (func $h (result i32 i64) (i32.const 1) (i64.const 2)))"""
SETTINGS = KernelSettings(
    config=((b"key", b"value"), (b"", b"")),
    vars=((b"n", b"1"),),
    log_level=2,
    functions=(
        BlockFunction("http_request", (BLOCK, BLOCK), (BLOCK, "i32", BLOCK), http=True),
        BlockFunction("user:add", ("i32", BLOCK, "f64"), ("i64", BLOCK)),
    ),
)


def sections(wasm: bytes) -> dict[int, bytes]:
    """Return the sections except custom ones, as names are not written here."""
    info = read_module(wasm)
    return {one.id: wasm[one.start : one.end] for one in info.sections if one.id}


def test_same_bytes() -> None:
    """Every instruction and field that it knows becomes the bytes that wasmtime makes of it."""
    assert sections(assemble(EVERYTHING)) == sections(bytes(wasmtime.wat2wasm(EVERYTHING)))


@pytest.mark.parametrize("settings", [KernelSettings(), SETTINGS])
def test_kernel_is_standard_text(settings: KernelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the kernel means the same to wasmtime."""
    texts = []

    def keep(text: str, data: object) -> bytes:
        texts.append(text)
        return HEADER

    monkeypatch.setattr(extism_kernel, "assemble", keep)
    kernel.__wrapped__(settings)
    monkeypatch.undo()
    ours, theirs = sections(kernel(settings)), sections(bytes(wasmtime.wat2wasm(texts[0])))
    assert ours.pop(11)
    assert ours == theirs


def test_data() -> None:
    """Data is written to the memory and address that are given."""
    wasm = assemble(
        '(module (memory $a (export "a") 1) (memory $b (export "b") 1))',
        [(0, 3, b"abc"), (1, 70, b"\0de")],
    )
    config = wasmtime.Config()
    config.wasm_multi_memory = True
    store = wasmtime.Store(engine := wasmtime.Engine(config))
    exports = wasmtime.Instance(store, wasmtime.Module(engine, wasm), []).exports(store)
    first, second = exports["a"], exports["b"]
    assert isinstance(first, wasmtime.Memory)
    assert isinstance(second, wasmtime.Memory)
    assert first.read(store, 2, 7) == b"\0abc\0"
    assert second.read(store, 70, 74) == b"\0de\0"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(func)", r"no \(module"),
        ("(module", r"'\(' have no"),
        (")", r"has no '\('"),
        ("(module (table 1 funcref))", "unknown field"),
        ("(module (func $a) (func $a))", "no new name"),
        ("(module (func $a (param $x i32) (local $x i32)))", "one name"),
        ("(module (func $a (f32.const 1)))", "unknown instruction"),
        ("(module (func $a (i32.eqz $x)))", "unknown instruction"),
        ("(module (func $a (nop nop)))", "unknown instruction"),
        ("(module (func $a ()))", "no instruction"),
    ],
)
def test_mistakes(text: str, words: str) -> None:
    """A text that it does not know is refused, and not guessed at."""
    with pytest.raises(ValueError, match=words):
        assemble(text)
