"""Guests that don't end, end badly, or end the wrong thing: loops, recursion, traps, exits."""

from __future__ import annotations

from trio_wasmcache import ExitError, FuelExhaustedError, LoadError, StackOverflowError, TrapError

from .guest import Fails, Gives, Guest, function

EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
RANDOM = '(import "wasi_snapshot_preview1" "random_get" (func $get (param i32 i32) (result i32)))'
POLL = """(import "wasi_snapshot_preview1" "poll_oneoff"
  (func $poll (param i32 i32 i32 i32) (result i32)))"""
WASI = '(import "wasi_snapshot_preview1" "{}" (func $wasi (param {}) (result i32)))'
FULL = """(memory (export "memory") 1)
  (func $grow (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))"""
SIZE = "(i32.mul (memory.size) (i32.const 65536))"


def repeats(name: str, attacks: str, call: str, imported: str, *, first: str = "") -> Guest:
    """One that grows to 4 MiB and makes the host work, with `$wasi`, until its fuel is burnt."""
    function_name, _, params = imported.partition(" ")
    return Guest(
        name,
        attacks,
        function(
            f"(call $grow) {first} (loop (drop (call $wasi {call})) (br 0)) (unreachable)",
            f"{WASI.format(function_name, params)} {FULL}",
        ),
        Fails(FuelExhaustedError, "after 1000000 units of fuel: all fuel is burnt"),
    )


def words(*values: int) -> str:
    """Constants of type i32."""
    return " ".join(f"(i32.const {value})" for value in values)


HALF_A_MILLION = 4 * 2**20 // 8
LOOKS = "the event loop: the host walks a list of the guest's, for next to no fuel"


def traps(name: str, words: str, body: str, rest: str = "") -> Guest:
    """One that ends by a plain trap."""
    return Guest(name, "its own life", function(body, rest), Fails(TrapError, words))


GUESTS = [
    Guest(
        "endless loop",
        "the event loop",
        function("(loop (br 0)) (unreachable)"),
        Fails(FuelExhaustedError, "after 1"),
    ),
    Guest(
        "endless loops, ten at once",
        "the event loop, and the threads",
        function("(loop (br 0)) (unreachable)"),
        Fails(FuelExhaustedError, "all fuel is burnt"),
        at_once=10,
    ),
    Guest(
        "a hundred loops that take turns",
        "whoever counts the fuel of one function only",
        function(
            "(loop (call_indirect (i32.rem_u (global.get $n) (i32.const 2))) (br 0)) (unreachable)",
            """(global $n (mut i32) (i32.const 0)) (table funcref (elem $a $b))
            (func $a (global.set $n (i32.add (global.get $n) (i32.const 1))))
            (func $b (global.set $n (i32.add (global.get $n) (i32.const 3))))""",
        ),
        Fails(FuelExhaustedError, "all fuel is burnt"),
    ),
    Guest(
        "deep recursion",
        "the stack",
        function("(i64.add (call $run (local.get 0)) (i64.const 1))"),
        Fails(StackOverflowError, "stack is exhausted"),
    ),
    Guest(
        "mutual recursion",
        "the stack",
        function(
            "(call $other (local.get 0))",
            "(func $other (param i64) (result i64) (i64.add (call $run (local.get 0)) "
            "(i64.const 1)))",
        ),
        Fails(StackOverflowError, "stack is exhausted"),
    ),
    Guest(
        "recursion through a table, with large frames",
        "the stack",
        function(
            "(i64.add (call_indirect (param i64) (result i64) (local.get 0) (i32.const 0))"
            f" {'(i64.add (local.get 1) ' * 200}(local.get 2){')' * 200})",
            "(table funcref (elem $run))",
            f"(param i64) (result i64) (local {'i64 ' * 500})",
        ),
        Fails(StackOverflowError, "stack is exhausted"),
    ),
    Guest(
        "a tail call without end",
        "whoever counts frames instead of fuel",
        function("(return_call $run (local.get 0))"),
        Fails(FuelExhaustedError, "all fuel is burnt"),
    ),
    Guest(
        "an endless start",
        "the acquire",
        function("(local.get 0)", "(func $begin (loop (br 0))) (start $begin)"),
        Fails(LoadError, "its start function failed: all fuel is burnt"),
    ),
    Guest(
        "a trapping start",
        "the acquire",
        function("(local.get 0)", "(func $begin (unreachable)) (start $begin)"),
        Fails(LoadError, "its start function failed: wasm trap: unreachable"),
    ),
    Guest(
        "a start that recurses",
        "the stack, before there is an instance",
        function("(local.get 0)", "(func $begin (call $begin) (call $begin)) (start $begin)"),
        Fails(LoadError, "its start function failed: the guest's stack is exhausted"),
    ),
    Guest(
        "a start that grows",
        "the books, before they know the instance",
        function("(i64.extend_i32_u (memory.size))", f"{FULL} (start $grow)"),
        Gives(64),
    ),
    Guest(
        "an endless _initialize",
        "the acquire",
        function("(local.get 0)", '(func (export "_initialize") (loop (br 0)))'),
        Fails(LoadError, "its start function failed: all fuel is burnt"),
    ),
    Guest(
        "a start that exits",
        "the process",
        function(
            "(local.get 0)",
            f'{EXIT} (memory (export "memory") 1) (func $begin (call $exit (i32.const 3)))'
            " (start $begin)",
        ),
        Fails(LoadError, "proc_exit(3)"),
    ),
    Guest(
        "proc_exit",
        "the process",
        function(
            "(call $exit (i32.const 0)) (i64.const 1)", f'{EXIT} (memory (export "memory") 1)'
        ),
        Fails(ExitError, "the guest called proc_exit(0)"),
    ),
    Guest(
        "proc_exit with what is no status",
        "whoever makes an exit status of it",
        function("(call $exit (i32.const -1)) (i64.const 1)", EXIT),
        Fails(ExitError, "the guest called proc_exit(-1)"),
    ),
    Guest(
        "a sleep of 584 years",
        "the event loop: the host sleeps for it",
        function(
            "(i64.store (i32.const 24) (i64.const -1))"
            "(i64.extend_i32_u (call $poll (i32.const 0) (i32.const 99) (i32.const 65)"
            " (i32.const 200)))",
            f'{POLL} (memory (export "memory") 1)',
        ),
        Gives(28),
    ),
    Guest(
        "random bytes for all of memory, again and again",
        "the event loop: the host works for it, for no fuel of the guest's own",
        function(
            f"(call $grow) (loop (drop (call $get (i32.const 0) {SIZE})) (br 0)) (unreachable)",
            f"{RANDOM} {FULL}",
        ),
        Fails(FuelExhaustedError, "all fuel is burnt"),
    ),
    repeats(
        "half a million iovecs to read into, of no file",
        LOOKS,
        words(7, 0, HALF_A_MILLION, 64),
        "fd_read i32 i32 i32 i32",
    ),
    repeats(
        "half a million iovecs to read into, of input",
        LOOKS,
        words(0, 0, HALF_A_MILLION, 64),
        "fd_read i32 i32 i32 i32",
    ),
    repeats(
        "half a million iovecs to read into, at an offset",
        LOOKS,
        f"{words(3, 0, HALF_A_MILLION)} (i64.const 0) {words(64)}",
        "fd_pread i32 i32 i32 i64 i32",
    ),
    repeats(
        "half a million iovecs to write, at an offset",
        LOOKS,
        f"{words(3, 0, HALF_A_MILLION)} (i64.const 0) {words(64)}",
        "fd_pwrite i32 i32 i32 i64 i32",
    ),
    repeats(
        "half a million iovecs to write",
        LOOKS,
        words(1, 0, HALF_A_MILLION, 64),
        "fd_write i32 i32 i32 i32",
    ),
    repeats(
        "a thousand iovecs to write, again and again",
        LOOKS,
        words(2, 0, 1024, 64),
        "fd_write i32 i32 i32 i32",
    ),
    repeats(
        "a path of all of memory to open",
        "the event loop: the host copies it, and looks whether it is UTF-8",
        f"{words(3, 0, 0, 4 * 2**20, 0)} (i64.const 0) (i64.const 0) {words(0, 64)}",
        "path_open i32 i32 i32 i32 i32 i64 i64 i32 i32",
        first="(memory.fill (i32.const 0) (i32.const 97) (i32.const 4194304))",
    ),
    repeats(
        "two paths of all of memory to link",
        "the event loop: the host copies them",
        words(3, 0, 0, 4 * 2**20, 3, 0, 4 * 2**20),
        "path_link i32 i32 i32 i32 i32 i32 i32",
    ),
    repeats(
        "65,536 subscriptions to poll",
        LOOKS,
        words(0, 2**22 - 2**16, 2**16, 64),
        "poll_oneoff i32 i32 i32 i32",
    ),
    repeats(
        "64 clocks that are due, again and again",
        LOOKS,
        words(0, 2**16, 64, 2**17),
        "poll_oneoff i32 i32 i32 i32",
    ),
    repeats(
        "one that yields for ever",
        "whoever counts only what is burnt between two turns",
        "",
        "sched_yield",
    ),
    Guest(
        "random bytes outside of memory",
        "the memory of the process",
        function(
            "(i64.extend_i32_u (call $get (i32.const -8) (i32.const 64)))",
            f'{RANDOM} (memory (export "memory") 1)',
        ),
        Gives(21),
    ),
    traps("unreachable", "wasm trap: unreachable", "(unreachable)"),
    traps(
        "a division by zero",
        "wasm trap: integer divide by zero",
        "(i64.div_s (local.get 0) (i64.const 0))",
    ),
    traps(
        "an overflow",
        "wasm trap: integer overflow",
        "(i64.div_s (i64.const 0x8000000000000000) (i64.const -1))",
    ),
    traps(
        "a conversion of NaN",
        "wasm trap: invalid conversion to integer",
        "(i64.trunc_f64_s (f64.const nan))",
    ),
    traps(
        "a load beyond all memory",
        "wasm trap: out of bounds memory access",
        "(i64.load offset=4294967295 (i32.const -1))",
        "(memory 1)",
    ),
    traps(
        "a table element far away",
        "wasm trap: out of bounds table access",
        "(table.set (i32.const -1) (ref.null func)) (local.get 0)",
        "(table 1 funcref)",
    ),
    traps(
        "a call of nothing",
        "wasm trap: uninitialized element",
        "(call_indirect (i32.const 0)) (local.get 0)",
        "(table 1 funcref)",
    ),
    traps(
        "a call by the wrong type",
        "wasm trap: indirect call type mismatch",
        "(call_indirect (i32.const 0)) (local.get 0)",
        "(table funcref (elem $run))",
    ),
]
