"""Guests of features that are switched off, or that have no way to cross into Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from trio_wasmcache import (
    FuelExhaustedError,
    InvalidModuleError,
    ModuleTooLargeError,
    SignatureError,
    TrapError,
)
from trio_wasmcache._core.wasm.editor import encode_module
from trio_wasmcache._core.wasm.reader import Export, FuncType

from .guest import Fails, Gives, Guest, Refused, function

# Throws and catches once; throws 5000 times, and keeps what it catches.
CATCH = (
    "(block $h (result i64) (try_table (catch $t $h) (throw $t (i64.const 1))) (unreachable)) drop"
)


def keep(values: int) -> str:
    thrown = f"(throw $t {'(i64.const 1)' * values})"
    return f"""(local $i i32) (loop $l
        (table.set $kept (local.get $i) (block $h (result exnref)
          (try_table (catch_all_ref $h) {thrown}) (unreachable)))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 5000)))) (i64.const 1)"""


def refused(instruction: bytes) -> bytes:
    """An instruction that is switched off, before calls that would weigh too much to compile."""
    wide = FuncType(("i64",), ("i64",) * 1000)
    return encode_module(
        types=[FuncType(("i64",), ("i64",)), wide],
        functions=[0],
        exports=[Export("run", "func", 0)],
        code=[b"\0" + instruction + b"\x41\0\x1a" * 1000 + b"\x0b"],
    )


# {name: (what the error says, instruction)}: as compilers wrote exceptions before the proposal
# changed, and of threads.
REFUSED_OPCODES = {
    "an exception of old": ("legacy", b"\x06\x40\x19\x0b\x20\0"),
    "a catch of old": ("legacy", b"\x07\0"),
    "a rethrow of old": ("legacy", b"\x09\0"),
    "a delegate of old": ("outside `LegacyTry`", b"\x18\0"),
    "a catch of all of old": ("legacy", b"\x19"),
    "an atomic fence": ("threads", b"\xfe\x03\0"),
}


def off(name: str, words: str, source: str | Callable[[], bytes]) -> Guest:
    """One that uses what is switched off."""
    attacks = "the process: asking wasmtime for such a type aborts it, or guests would share"
    return Guest(name, attacks, source, Refused(InvalidModuleError, words))


GUESTS = [
    off(
        "a struct",
        "gc types",
        function("(local.get 0)", "(type (struct (field i32)))"),
    ),
    off(
        "an i31 in a global",
        "gc types",
        function("(local.get 0)", "(global i31ref (ref.i31 (i32.const 1)))"),
    ),
    off(
        "an i31 in an export",
        "gc types",
        '(func (export "run") (param i64) (result i64) (local.get 0))'
        '(func (export "e") (param i31ref))',
    ),
    Guest(
        "an exnref in an export",
        "the process: asking wasmtime for such a type aborts it",
        function("(local.get 0)", '(func (export "e") (param exnref))'),
        Gives(7),
    ),
    Guest(
        "a parameter that is an exnref",
        "the conversion of values",
        '(func (export "run") (param exnref) (result i64) (i64.const 1))',
        Refused(SignatureError, "exnref"),
    ),
    Guest(
        "an exception that nobody catches",
        "the caller, which gets none of its own",
        function("(throw $t)", "(tag $t)"),
        Fails(TrapError, "threw an exception and did not catch it"),
    ),
    Guest(
        "exceptions that are kept",
        "memory: the limit of its memories says nothing of them",
        function(keep(4), "(tag $t (param i64 i64 i64 i64)) (table $kept 5000 exnref)"),
        Gives(1),
    ),
    Guest(
        "large exceptions that are kept",
        "memory: 80 MB of exceptions",
        function(keep(1000), f"(tag $t (param {'i64 ' * 1000})) (table $kept 5000 exnref)"),
        Fails(TrapError, "exceptions need more memory than memory_limit"),
    ),
    Guest(
        "exceptions without end",
        "memory, by garbage",
        function(f"(loop $l {CATCH} (br $l)) (i64.const 1)", "(tag $t (param i64))"),
        Fails(FuelExhaustedError, "fuel"),
    ),
    *(
        off(name, words, partial(refused, instruction))
        for name, (words, instruction) in REFUSED_OPCODES.items()
    ),
    off(
        "a shared memory",
        "shared memory",
        function("(local.get 0)", "(memory 1 1 shared)"),
    ),
    off(
        "an atomic wait",
        "threads support is not enabled",
        function(
            "(i64.extend_i32_u (memory.atomic.wait64 (i32.const 0) (i64.const 0) (i64.const -1)))",
            "(memory 1)",
        ),
    ),
    Guest(
        "a memory of 64 bits that grows beyond all",
        "memory",
        function("(memory.grow (i64.const 0x1000000000))", "(memory i64 1)"),
        Gives(-1),
    ),
    Guest(
        "a memory of 64 bits that is large",
        "memory",
        function("(local.get 0)", "(memory i64 0x10000)"),
        Refused(ModuleTooLargeError, "memory_limit"),
    ),
    Guest(
        "an address of 64 bits",
        "what lies beside its memory",
        function("(i64.load (i64.const -8))", "(memory i64 1)"),
        Fails(TrapError, "out of bounds"),
    ),
    Guest(
        "a table of 64 bits that grows beyond all",
        "memory",
        function("(table.grow (ref.null func) (i64.const 0x1000000000))", "(table i64 1 funcref)"),
        Gives(-1),
    ),
    off(
        "a typed function reference",
        "typed function references",
        function("(local.get 0)", "(type $t (func)) (func (param (ref null $t)))"),
    ),
    off(
        "a continuation",
        "stack switching",
        function("(local.get 0)", "(type $t (func)) (type (cont $t))"),
    ),
    off(
        "a page of one byte",
        "custom page sizes",
        function("(local.get 0)", "(memory 1 (pagesize 1))"),
    ),
    Guest(
        "a v128",
        "whoever writes values without looking at their kind",
        function("(local.get 0)", "", "(param v128) (result v128)"),
        Refused(SignatureError, "values of type 'v128' can't cross"),
        args=("v128",),
        returns="v128",
    ),
    Guest(
        "a v128 that says it is an i64",
        "whoever writes values without looking at their kind",
        function("(local.get 0)", "", "(param v128) (result v128)"),
        Refused(SignatureError, "the export 'run' is [v128] -> [v128]"),
    ),
    Guest(
        "a reference that says it is an i64",
        "whoever takes a number for an address",
        function("(local.get 0)", "", "(param externref) (result externref)"),
        Refused(SignatureError, "the export 'run' is [externref] -> [externref]"),
    ),
]
