"""Guests that turn on their host functions: to come in again, or have them read elsewhere."""

from __future__ import annotations

import trio

from trio_wasmcache import (
    DeadlockError,
    FuelExhaustedError,
    HostFunction,
    InstanceCache,
    StackOverflowError,
    TrapError,
    current_lease,
)

from .guest import Fails, Gives, Guest, Imports, function

ASK = '(import "host" "ask" (func $ask (param i64) (result i64))) (memory (export "memory") 1)'
ASKS = function("(call $ask (local.get 0))", ASK)
COUNTS_DOWN = function(
    """(if (result i64) (i64.eqz (local.get 0))
      (then (unreachable)) (else (call $ask (i64.sub (local.get 0) (i64.const 1)))))""",
    ASK,
)


def _acquires_itself(cache: InstanceCache, name: str) -> Imports:
    async def ask(value: int) -> int:
        async with cache.acquire(name, ("i64",)) as lease:
            got: int = await lease.call(value)
            return got

    return {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}


def _calls_itself(cache: InstanceCache, name: str) -> Imports:
    async def ask(value: int) -> int:
        got: int = await current_lease().call(value)
        return got

    return {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}


def _replaces_itself(cache: InstanceCache, name: str) -> Imports:
    async def ask(value: int) -> int:
        cache.remove(name)
        return value

    return {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}


def _reads_there(cache: InstanceCache, name: str) -> Imports:
    def ask(value: int) -> int:
        current_lease().memory.read(value, 8)
        return value

    return {"host": {"ask": HostFunction(ask, ("i64",), ("i64",))}}


def _answers(cache: InstanceCache, name: str) -> Imports:
    return {"host": {"ask": HostFunction(lambda value: value, ("i64",), ("i64",))}}


def _answers_nonsense(cache: InstanceCache, name: str) -> Imports:
    return {"host": {"ask": HostFunction(lambda value: 2**64, ("i64",), ("i64",))}}


GUESTS = [
    Guest(
        "a host function that acquires its caller",
        "the graph of waits: the one instance is held by the task that waits for it",
        ASKS,
        Fails(DeadlockError, "would never end"),
        imports=_acquires_itself,
    ),
    Guest(
        "a host function that acquires its caller, four deep",
        "whoever takes the inner guest's trap for the outer's",
        COUNTS_DOWN,
        Fails(TrapError, "called with (0)"),
        values=(3,),
        imports=_acquires_itself,
        concurrency=4,
    ),
    Guest(
        "a host function that calls its caller",
        "the instance that is suspended",
        ASKS,
        Fails(trio.BusyResourceError, "is under way in this lease"),
        imports=_calls_itself,
    ),
    Guest(
        "a host function that removes its caller",
        "the instance that is suspended",
        ASKS,
        Gives(7),
        imports=_replaces_itself,
    ),
    Guest(
        "a host function that is told to read at -1",
        "the memory of the process",
        ASKS,
        Fails(IndexError, "not inside the guest's memory of 65536 bytes"),
        values=(-1,),
        imports=_reads_there,
    ),
    Guest(
        "a host function that is told to read over the end",
        "the memory of the process",
        ASKS,
        Fails(IndexError, "not inside the guest's memory of 65536 bytes"),
        values=(65_532,),
        imports=_reads_there,
    ),
    Guest(
        "a host function that gives what does not fit",
        "the result cells",
        ASKS,
        Fails(OverflowError, "out of the range of i64"),
        imports=_answers_nonsense,
    ),
    Guest(
        "one that does little but ask",
        "the event loop: the host works for it",
        function(
            """(loop (drop (call $ask (local.get 0))) (local.set 1 (i64.const 100))
            (loop (local.set 1 (i64.sub (local.get 1) (i64.const 1)))
              (br_if 0 (i64.ne (local.get 1) (i64.const 0)))) (br 0)) (unreachable)""",
            ASK,
            "(param i64) (result i64) (local i64)",
        ),
        Fails(FuelExhaustedError, "all fuel is burnt"),
        imports=_answers,
    ),
    Guest(
        "one that asks deep down its stack",
        "the host's stack: callbacks run on the guest's",
        function(
            """(if (i64.eqz (i64.and (local.get 0) (i64.const 31)))
              (then (drop (call $ask (local.get 0)))))
            (i64.add (call $run (i64.sub (local.get 0) (i64.const 1))) (i64.const 1))""",
            ASK,
        ),
        Fails(StackOverflowError, "stack is exhausted"),
        values=(1000,),
        imports=_answers,
    ),
]
