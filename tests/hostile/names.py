"""Guests that want to write into the log, or onto the terminal, by what they call things."""

from __future__ import annotations

from trio_wasmcache import (
    ExportError,
    InvalidModuleError,
    LinkError,
    LoadError,
    SignatureError,
    StackOverflowError,
    TrapError,
)
from trio_wasmcache._core.wasm.reader import Export

from .bombs import module
from .guest import Fails, Guest, Refused, function

ATTACKS = "the log, and who reads it on a terminal"
# A line of its own, a cleared screen, a title, a bell, text from right to left, an invisible end.
EVIL = "\n2026-01-01 [info] all is well\r\x1b[2J\x1b]0;owned\x07\u202edrowssap\u2028\x85\x00\x9b31m"
ESCAPED = "".join(f"\\{byte:02x}" for byte in EVIL.encode())
LONG = 90_000


def doubling_name() -> str:
    """A mangled name of C++ whose template arguments double 22 times: its text has megabytes."""
    # x is S_; a<x, x> makes its name S0_ and itself S1_; each type made of it is the next one.
    last = "123456789ABCDEFGHIJKLM"
    return "_Z1f1x1aIS_S_E" + "".join(f"S0_IS{one}_S{one}_E" for one in last)


GUESTS = [
    Guest(
        "functions with names that double when they are demangled",
        "the event loop, when it traps",
        "".join(f'(func $f{n} (@name "{doubling_name()}") (call $f{n + 1}))' for n in range(30))
        + f'(func $f30 (@name "{doubling_name()}") (unreachable))'
        + function("(call $f0) (local.get 0)"),
        Fails(TrapError, "unreachable\n  f at 0x"),
    ),
    Guest(
        "a function with a name of control characters",
        ATTACKS,
        f'(func $inner (@name "{ESCAPED}") (unreachable))'
        f' (func (@name "{ESCAPED}") (export "run") (param i64) (result i64)'
        " (call $inner) (local.get 0))",
        Fails(TrapError, "?2026-01-01 [info] all is well??[2J"),
    ),
    Guest(
        "a function with a long name, many times",
        "whoever keeps a backtrace",
        f'(func $run (@name "{"x" * LONG}") (export "run") (param i64) (result i64)'
        " (i64.add (i64.const 1) (call $run (local.get 0))))",
        Fails(StackOverflowError, "stack is exhausted"),
    ),
    Guest(
        "a start function with such a name",
        ATTACKS,
        f'(func $begin (@name "{ESCAPED}") (unreachable)) (start $begin)'
        + function("(local.get 0)"),
        Fails(LoadError, "its start function failed: wasm trap: unreachable"),
    ),
    Guest(
        "exports with such names",
        ATTACKS,
        f'(func (export "{ESCAPED}"))',
        Refused(
            ExportError, r"the functions it exports are '\n2026-01-01 [info] all is well\r\x1b[2J"
        ),
    ),
    Guest(
        "an export with such a name, called",
        ATTACKS,
        f'(func (export "{ESCAPED}") (param i64) (result i64) (unreachable))',
        Fails(TrapError, "unreachable"),
        export=EVIL,
    ),
    Guest(
        "an export with such a name, of another type",
        ATTACKS,
        f'(memory (export "{ESCAPED}") 1)',
        Refused(ExportError, "is a memory"),
        export=EVIL,
    ),
    Guest(
        "two exports of such a name",
        ATTACKS,
        lambda: module(exports=[Export(EVIL, "func", 0)] * 2),
        Refused(InvalidModuleError, "a second export named"),
    ),
    Guest(
        "types with such names",
        ATTACKS,
        function("(local.get 0)"),
        Refused(SignatureError, "can't be the name of a type"),
        args=(EVIL,),
    ),
    Guest(
        "an export that is not there, with a long name",
        "the message that says so",
        function("(local.get 0)"),
        Refused(ExportError, "the module exports no 'mmm"),
        export="m" * LONG,
    ),
    Guest(
        "imports with such names",
        ATTACKS,
        function("(local.get 0)", f'(import "{ESCAPED}" "{ESCAPED}" (func))'),
        Refused(LinkError, "?2026-01-01 [info] all is well??[2J"),
    ),
    Guest(
        "imports with long names",
        "the message that names what is missing",
        function("(local.get 0)", f'(import "{"m" * LONG}" "{"n" * LONG}" (func))' * 20),
        Refused(LinkError, "mmm..."),
    ),
    Guest(
        "an export with a name longer than may be",
        "the message that says so",
        lambda: module(exports=[Export("\x1b" * 200_000, "func", 0)]),
        Refused(ExportError, r"the functions it exports are '\x1b\x1b\x1b"),
    ),
    Guest(
        "a custom section with such a name",
        ATTACKS,
        lambda: module(custom=[(EVIL, b"\xff"), ("name", EVIL.encode() * 9)]) + b"\0\3\2\xff\xff",
        Refused(InvalidModuleError, "a name that is not UTF-8"),
    ),
]
