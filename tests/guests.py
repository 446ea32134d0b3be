"""Guests that only the real engine can run: well-behaved ones, bombs, and askers of host functions.

Each is WebAssembly text; `binary` makes it what `register` takes.
"""

from __future__ import annotations

import wasmtime

FIB = """
(func $fib (export "run") (param i64) (result i64)
  (if (result i64) (i64.lt_s (local.get 0) (i64.const 2))
    (then (local.get 0))
    (else (i64.add (call $fib (i64.sub (local.get 0) (i64.const 1)))
                   (call $fib (i64.sub (local.get 0) (i64.const 2)))))))
"""
# A loop as long as it is told to be.
COUNT = """
(func (export "run") (param i64) (result i64) (local i64)
  (loop
    (local.set 1 (i64.add (local.get 1) (i64.const 1)))
    (br_if 0 (i64.lt_u (local.get 1) (local.get 0))))
  (local.get 1))
"""
ENDLESS = '(func (export "run") (param i64) (result i64) (loop (br 0)) (unreachable))'
RECURSION = """
(func $deeper (export "run") (param i64) (result i64)
  (i64.add (i64.const 1) (call $deeper (i64.add (local.get 0) (i64.const 1)))))
"""
DIVISION = """
(func $divide (param i64 i64) (result i64) (i64.div_s (local.get 0) (local.get 1)))
(func $outer (export "run") (param i64 i64) (result i64)
  (call $divide (local.get 0) (local.get 1)))
"""
# Each gives how much it got, in pages or elements.
MEMORY_BOMB = """
(memory (export "memory") 1)
(func (export "run") (param i64) (result i64)
  (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
  (i64.extend_i32_u (memory.size)))
"""
MEMORIES_BOMB = """
(memory $a 1) (memory $b 1) (memory $c 0)
(func (export "run") (param i64) (result i64)
  (loop (br_if 0 (i32.ne (memory.grow $a (i32.const 1)) (i32.const -1))))
  (loop (br_if 0 (i32.ne (memory.grow $b (i32.const 1)) (i32.const -1))))
  (loop (br_if 0 (i32.ne (memory.grow $c (i32.const 1)) (i32.const -1))))
  (i64.extend_i32_u
    (i32.add (memory.size $c) (i32.add (memory.size $a) (memory.size $b)))))
"""
TABLE_BOMB = """
(table $t 1 funcref)
(func (export "run") (param i64) (result i64)
  (loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 100)) (i32.const -1))))
  (i64.extend_i32_u (table.size $t)))
"""
FILL = """
(memory (export "memory") 1)
(func (export "run") (param i64) (result i64)
  (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
  (memory.fill (i32.const 0) (i32.wrap_i64 (local.get 0))
               (i32.mul (memory.size) (i32.const 65536)))
  (i64.load8_u (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 1))))
"""
EXIT = """
(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
(memory (export "memory") 1)
(func (export "run") (param i64) (result i64)
  (call $exit (i32.wrap_i64 (local.get 0))) (i64.const 1))
"""
# Gives what the host told its start function.
ASKS_AT_START = """
(import "host" "ask" (func $ask (param i64) (result i64)))
(global $got (mut i64) (i64.const 0))
(func $begin (global.set $got (call $ask (i64.const 4))))
(start $begin)
(func (export "run") (param i64) (result i64) (global.get $got))
"""
# Fills so many pages with random bytes.
RANDOM = """
(import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
(memory (export "memory") 100)
(func (export "run") (param i64) (result i64)
  (i64.extend_i32_u
    (call $random (i32.const 0) (i32.mul (i32.wrap_i64 (local.get 0)) (i32.const 65536)))))
"""
# Sleeps for so many nanoseconds, as WASI has it: the clock subscription is at 0, the event at 100.
SLEEP = """
(import "wasi_snapshot_preview1" "poll_oneoff"
  (func $poll (param i32 i32 i32 i32) (result i32)))
(memory (export "memory") 1)
(func (export "run") (param i64) (result i64)
  (i64.store (i32.const 24) (local.get 0))
  (i64.extend_i32_u
    (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200))))
"""
START_LOOP = """
(func $begin (loop (br 0)))
(start $begin)
(func (export "run") (param i64) (result i64) (local.get 0))
"""
START_TRAP = """
(func $begin (unreachable))
(start $begin)
(func (export "run") (param i64) (result i64) (local.get 0))
"""
# Burns fuel, asks, burns fuel, asks again, burns fuel: gives the sum of both answers.
BUSY_ASKER = """
(import "host" "ask" (func $ask (param i64) (result i64)))
(memory (export "memory") 1)
(func $burn (local i64)
  (loop
    (local.set 0 (i64.add (local.get 0) (i64.const 1)))
    (br_if 0 (i64.lt_u (local.get 0) (i64.const 5000)))))
(func (export "run") (param i64) (result i64) (local i64)
  (call $burn)
  (local.set 1 (call $ask (local.get 0)))
  (call $burn)
  (local.set 1 (i64.add (local.get 1) (call $ask (local.get 1))))
  (call $burn)
  (local.get 1))
"""
# Does nothing but ask, so many times.
ONLY_ASKS = """
(import "host" "ask" (func $ask (param i64) (result i64)))
(func (export "run") (param i64) (result i64) (local i64)
  (loop
    (local.set 1 (i64.add (local.get 1) (call $ask (i64.const 1))))
    (br_if 0 (i64.lt_u (local.get 1) (local.get 0))))
  (local.get 1))
"""
# Two numbers in, two out; and a host function with no result.
PAIR = """
(import "host" "swap" (func $swap (param i32 f64) (result f64 i32)))
(import "host" "tell" (func $tell (param i32)))
(func (export "run") (param i32 f64) (result f64 i32)
  (call $tell (local.get 0))
  (call $swap (local.get 0) (local.get 1)))
"""


def binary(text: str) -> bytes:
    """A module with these fields."""
    made: bytes = wasmtime.wat2wasm(f"(module {text})")
    return made
