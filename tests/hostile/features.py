"""Guests of features that are switched off, or that have no way to cross into Python."""

from __future__ import annotations

from trio_wasmcache import InvalidModuleError, SignatureError

from .guest import Guest, Refused, function


def off(name: str, words: str, source: str) -> Guest:
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
    off(
        "an exnref",
        "exception tags",
        function("(local.get 0)", '(func (export "e") (param exnref))'),
    ),
    off(
        "an exception",
        "exception tags",
        function("(throw $t)", "(tag $t)"),
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
    off(
        "a memory of 64 bits",
        "memory64",
        function("(local.get 0)", "(memory i64 1)"),
    ),
    off(
        "a table of 64 bits",
        "table64",
        function("(local.get 0)", "(table i64 1 funcref)"),
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
