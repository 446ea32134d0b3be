"""Guests that print, read and ask for the time without end, or at addresses of nobody's."""

from __future__ import annotations

import itertools

from attrs import evolve

from trio_wasmcache import LoadError, TrapError, Wasi

from .calls import repeats, words
from .guest import Fails, Gives, Guest, function

IMPORT = '(import "wasi_snapshot_preview1" "{}" (func $wasi (param {}) (result i32)))'
ONE_PAGE = '(memory (export "memory") 1)'
# Buffers of 4 MiB each, of which there are two; and lines in them.
BUFFERS = (
    "(memory.fill (i32.const 0) (i32.const 10) (i32.const 4194304))"
    "(i64.store (i32.const 0) (i64.const 0x40000000000000))"
    "(i64.store (i32.const 8) (i64.const 0x40000000000000))"
)
EVERYTHING = Wasi(
    args=("x" * 60,) * 1000,
    env={f"{number}": "y" * 50 for number in range(1000)},
    stdin=bytes(100_000),
    stdout="log",
    stderr="log",
    random=1,
    clock=1,
)


def _raises(stream: str, line: str) -> None:
    raise ValueError("this line can't be written")


async def _nothing() -> None:
    raise AssertionError("nobody awaits it")


def _waits(stream: str, line: str) -> object:
    return _nothing()


def _tells_nonsense() -> float:
    raise IndexError("the clock has no hands")


def printing(name: str, attacks: str, wasi: Wasi, write: str = words(1, 0, 2, 64)) -> Guest:
    """One that prints megabytes, until its fuel is burnt."""
    guest = repeats(name, attacks, write, "fd_write i32 i32 i32 i32", first=BUFFERS)
    return evolve(guest, wasi=wasi)


def wild(name: str, values: str, params: str, call: str) -> Guest:
    """One that gives WASI an address outside of its memory, and gets EFAULT."""
    return Guest(
        f"{name} at {values}",
        "the memory of the process",
        function(
            f"(i64.extend_i32_u (call $wasi {call}))", f"{IMPORT.format(name, params)} {ONE_PAGE}"
        ),
        Gives(21),
        wasi=EVERYTHING,
    )


def _all_wild() -> list[Guest]:
    found = []
    pairs = ("args_get", "args_sizes_get", "environ_get", "environ_sizes_get")
    for name, at in itertools.product(pairs, (65533, -1, -(2**31))):
        found.append(wild(name, f"{at} and 0", "i32 i32", words(at, 0)))
        found.append(wild(name, f"0 and {at}", "i32 i32", words(0, at)))
    for name, descriptor in (("fd_read", 0), ("fd_write", 1)):
        for at in (65533, -1, -(2**31)):
            for where, asked in (("iovecs", (at, 1, 64)), ("result", (0, 1, at))):
                call = words(descriptor, *asked)
                found.append(wild(name, f"{where} {at}", "i32 i32 i32 i32", call))
    return found


GUESTS = [
    printing("megabytes of empty lines for the log", "the log, and its other events", EVERYTHING),
    printing("megabytes that nobody reads", "the event loop: the host copies them", Wasi()),
    printing(
        "megabytes for a function that raises",
        "whoever writes what guests print",
        Wasi(stdout=_raises),
    ),
    printing("one byte, again and again", "the log", EVERYTHING, words(2, 32, 1, 64)),
    Guest(
        "a line for a function that waits",
        "the task that calls",
        function(
            f"(i32.store (i32.const 4) (i32.const 9)) (i32.store8 (i32.const 3) (i32.const 10))"
            f" (drop (call $wasi {words(1, 8, 1, 64)}))"
            f" (i32.store (i32.const 12) (i32.const 1)) (i32.store8 (i32.const 0) (i32.const 10))"
            f" (drop (call $wasi {words(1, 8, 1, 64)})) (local.get 0)",
            f"{IMPORT.format('fd_write', 'i32 i32 i32 i32')} {ONE_PAGE}",
        ),
        Fails(TypeError, "stdout must not return an awaitable"),
        wasi=Wasi(stdout=_waits),
    ),
    Guest(
        "a clock that fails",
        "whoever takes the application's error for a bad address",
        function(
            "(i64.extend_i32_u (call $wasi (i32.const 0) (i64.const 0) (i32.const 0)))",
            f"{IMPORT.format('clock_time_get', 'i32 i64 i32')} {ONE_PAGE}",
        ),
        Fails(IndexError, "the clock has no hands"),
        wasi=Wasi(clock=_tells_nonsense),
    ),
    Guest(
        "last words that move the cursor",
        "the terminal of whoever reads the error",
        function(
            f"(i32.store (i32.const 8) (i32.const 32)) (i32.store (i32.const 12) (i32.const 3000))"
            f" (drop (call $wasi {words(2, 8, 1, 64)})) (unreachable)",
            f"{IMPORT.format('fd_write', 'i32 i32 i32 i32')} {ONE_PAGE}"
            r' (data (i32.const 32) "panic: \1b[2J\07\r\n\ff\c2\9b\e2\80\ae")',
        ),
        Fails(TrapError, "; its last output:\n    "),
    ),
    Guest(
        "a start that prints without end",
        "the acquire, and the log",
        function(
            "(local.get 0)",
            f"{IMPORT.format('fd_write', 'i32 i32 i32 i32')} {ONE_PAGE}"
            f" (func $begin (i32.store (i32.const 4) (i32.const 65536))"
            f" (loop (drop (call $wasi {words(1, 0, 1, 64)})) (br 0))) (start $begin)",
        ),
        Fails(LoadError, "its start function failed: all fuel is burnt"),
        wasi=EVERYTHING,
    ),
    evolve(
        repeats(
            "all arguments, again and again",
            "the event loop: the host copies them",
            words(0, 65536),
            "args_get i32 i32",
        ),
        wasi=EVERYTHING,
    ),
    evolve(
        repeats(
            "a sleep of 584 years, again and again",
            "the event loop: no time passes by a fixed clock",
            words(0, 2**16, 1, 2**17),
            "poll_oneoff i32 i32 i32 i32",
            first="(i32.store (i32.const 16) (i32.const 1)) (i64.store (i32.const 24)"
            " (i64.const -1))",
        ),
        wasi=EVERYTHING,
    ),
    evolve(
        repeats(
            "random bytes of a seed for all of memory",
            "the event loop: the host works for it",
            words(0, 4 * 2**20),
            "random_get i32 i32",
        ),
        wasi=EVERYTHING,
    ),
    *_all_wild(),
]
