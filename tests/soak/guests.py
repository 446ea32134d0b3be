"""The functions of a soak: what they are called with, and what must come of it.

A replaced function is another module that does the same, so a right result stays right.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import wasmtime
from attrs import field, frozen

from trio_wasmcache import ExitError, FuelExhaustedError, LoadError, StackOverflowError, TrapError

UDFS = Path(__file__).parents[1] / "udfs"
SECRET_AT = 1000
I64 = "(param i64) (result i64)"
BUSY = """(local $i i64)
  (loop (local.set $i (i64.add (local.get $i) (i64.const 1)))
    (br_if 0 (i64.lt_u (local.get $i) (i64.const 20000))))"""
EXIT = """(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (func (export "run") (param i64) (result i64)
    (call $exit (i32.wrap_i64 (local.get 0))) (i64.const 1))"""
ASKS = f"""(import "host" "ask" (func $ask {I64}))
  (func (export "run") {I64} (i64.add (call $ask (local.get 0)) (call $ask (local.get 0))))"""
COUNTS = """(global $n (mut i64) (i64.const 0))
  (func (export "run") (result i64)
    (global.set $n (i64.add (global.get $n) (i64.const 1))) (global.get $n))"""
START_TRAPS = f"""(start $begin) (func $begin (unreachable))
  (func (export "run") {I64} (local.get 0))"""
START_BUSY = f"""(start $begin) (func $begin {BUSY})
  (func (export "run") {I64} (local.get 0))"""


def text(fields: str) -> Callable[[int], bytes]:
    """Modules with these fields, told apart by a number."""

    def make(number: int) -> bytes:
        made: bytes = wasmtime.wat2wasm(
            f'(module {fields} (global (export "v") i32 (i32.const {number})))'
        )
        return made

    return make


def run(body: str) -> Callable[[int], bytes]:
    """Modules whose function is ``run``, of one i64, with a memory."""
    return text(f'(memory (export "memory") 1) (func $run (export "run") {I64} {body})')


def built(name: str) -> Callable[[int], bytes]:
    """One of the modules that a compiler made; the number is in a section of its own."""
    wasm = (UDFS / f"{name}.wasm").read_bytes()
    return lambda number: wasm + b"\0" + bytes([3, 1, 118, number % 256])


def whole(random: Random) -> tuple[Any, ...]:
    return (random.randrange(-(2**40), 2**40),)


def words(random: Random) -> str:
    return "".join(random.choices("abc é🦀", k=random.choice([0, 1, 10, 1000])))


@frozen(kw_only=True)
class Guest:
    """One function, and how it behaves."""

    make: Callable[[int], bytes]
    args: tuple[str, ...] = ("i64",)
    returns: str = "i64"
    export: str = "run"
    abi: str | None = None
    values: Callable[[Random], tuple[Any, ...]] = whole
    result: Callable[..., Any] = lambda x: x
    fails: type[Exception] | None = None
    """What a call of it raises, each time."""
    on_load: bool = False
    """It is the acquire that raises it."""
    column: Callable[[list[Any]], Any] | None = None
    """What a column of it is made of for `map`; None: it takes no batches."""
    host: str | None = None
    """Which of the soak's host functions it imports."""
    counts: bool = False
    """Its result is how often it was called, as far as the isolation lets it know."""
    memory: bool = field(default=False)
    """It has a memory that the test may write to."""


def longs(values: list[Any]) -> Any:
    return array("q", values)


GUESTS: dict[str, Guest] = {
    "adds": Guest(
        make=run("(i64.add (local.get 0) (i64.const 7))"),
        result=lambda x: x + 7,
        column=longs,
        memory=True,
    ),
    "also adds": Guest(
        make=run("(i64.add (local.get 0) (i64.const 8))"),
        result=lambda x: x + 8,
        column=list,
        memory=True,
    ),
    "works": Guest(make=run(f"{BUSY} (local.get 0)"), memory=True),
    "multiplies": Guest(
        make=text(
            '(func (export "run") (param f64 f64) (result f64)'
            " (f64.mul (local.get 0) (local.get 1)))"
        ),
        args=("f64", "f64"),
        returns="f64",
        values=lambda random: (random.random(), random.random()),
        result=lambda x, y: x * y,
    ),
    "counts": Guest(make=text(COUNTS), args=(), values=lambda random: (), counts=True),
    "grows": Guest(make=run("(drop (memory.grow (i32.const 1))) (local.get 0)")),
    "joins": Guest(
        make=built("scylla_v1"),
        args=("text", "text"),
        returns="text",
        export="join",
        values=lambda random: (words(random), words(random)),
        result=lambda left, right: left + right,
        column=list,
    ),
    "also joins": Guest(
        make=built("scylla_v2"),
        args=("text", "text"),
        returns="text",
        export="join",
        values=lambda random: (words(random), words(random)),
        result=lambda left, right: left + right,
        column=list,
    ),
    "shouts": Guest(
        make=built("assemblyscript/minimal"),
        args=("str",),
        returns="str",
        export="shout",
        values=lambda random: (words(random),),
        result=lambda some: some.upper() + "!",
        column=list,
    ),
    "fib": Guest(
        make=built("scylla_v2"),
        args=("int",),
        returns="bigint",
        export="fib",
        values=lambda random: (random.randrange(12),),
        result=lambda n: [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89][n],
        column=list,
    ),
    "repeats": Guest(
        make=built("buffer"),
        args=("bytes", "u32"),
        returns="bytes",
        export="repeat",
        abi="buffer",
        values=lambda random: (random.randbytes(random.choice([0, 5, 500])), random.randrange(5)),
        result=lambda data, times: data * times,
    ),
    "upper": Guest(
        make=built("buffer"),
        args=("str",),
        returns="str",
        export="upper_packed",
        abi="buffer",
        values=lambda random: (words(random),),
        result=lambda some: some.replace("a", "A").replace("b", "B").replace("c", "C"),
        column=list,
    ),
    "asks": Guest(make=text(ASKS), host="sync", result=lambda x: 2 * x),
    "asks and waits": Guest(make=text(ASKS), host="asynchronous", result=lambda x: 2 * x),
    "begins slowly": Guest(make=text(START_BUSY)),
    "traps": Guest(make=run("(unreachable)"), fails=TrapError, column=longs),
    "never ends": Guest(make=run("(loop (br 0)) (unreachable)"), fails=FuelExhaustedError),
    "recurses": Guest(
        make=run("(i64.add (i64.const 1) (call $run (local.get 0)))"), fails=StackOverflowError
    ),
    "exits": Guest(make=text(EXIT), fails=ExitError),
    "begins with a trap": Guest(make=text(START_TRAPS), fails=LoadError, on_load=True),
}
