"""Guests that turn on their host functions: to come in again, or have them read elsewhere."""

from __future__ import annotations

from collections.abc import Callable

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


def _invokes(export: str) -> Callable[[InstanceCache, str], Imports]:
    async def ask(value: int) -> int:
        got: int = await current_lease().invoke(export, value)
        return got

    return lambda _cache, _name: {
        "host": {"ask": HostFunction(ask, ("i64",), ("i64",), reentrant=True)}
    }


def _writes_where_it_is_told(cache: InstanceCache, name: str) -> Imports:
    async def ask(value: int) -> int:
        lease = current_lease()
        at = await lease.invoke("malloc", 64)
        lease.memory.write(at & 0xFFFFFFFF, b"secret")
        return value

    return {"host": {"ask": HostFunction(ask, ("i64",), ("i64",), reentrant=True)}}


def _many_signatures() -> str:
    """Exports of 400 types, with up to 400 parameters."""
    return " ".join(
        f'(func (export "e{n}") (param{" i32" * n}) (result{" f64" * (n % 40)}) (unreachable))'
        for n in range(400)
    )


GUESTS = [
    Guest(
        "a guest that recurses through its host",
        "Python's stack: each level has a host function on it",
        ASKS,
        Fails(StackOverflowError, "more than 16 deep"),
        imports=_invokes("run"),
    ),
    Guest(
        "a guest that recurses through its host, in a batch",
        "Python's stack: each level has a host function on it",
        ASKS,
        Fails(StackOverflowError, "more than 16 deep"),
        imports=_invokes("run"),
        rows=3,
    ),
    Guest(
        "a guest that recurses through its host, deep down its stack",
        "the host's stack: callbacks run on the guest's",
        function(
            """(if (result i64) (i32.wrap_i64 (i64.rem_u (local.get 0) (i64.const 2000)))
              (then (i64.add (call $run (i64.sub (local.get 0) (i64.const 1))) (i64.const 1)))
              (else (call $ask (i64.const 1999))))""",
            ASK,
        ),
        Fails(StackOverflowError, "the guest's stack is exhausted"),
        imports=_invokes("run"),
    ),
    Guest(
        "a guest whose host calls an endless export",
        "the event loop",
        function("(call $ask (local.get 0))", ASK)
        + '(func (export "spin") (param i64) (result i64) (loop (br 0)) (unreachable))',
        Fails(FuelExhaustedError, "after 1000000 units of fuel: all fuel is burnt"),
        imports=_invokes("spin"),
    ),
    Guest(
        "a guest that gives its host an address that is none",
        "the memory of the process",
        ASKS + '(func (export "malloc") (param i32) (result i32) (i32.const -32))',
        Fails(IndexError, "not inside the guest's memory of 65536 bytes"),
        imports=_writes_where_it_is_told,
    ),
    Guest(
        "a guest that has its host call it with four hundred signatures",
        "whoever makes something for each of them",
        ASKS + _many_signatures(),
        Fails(LookupError, "exports no function 'nothing'"),
        imports=_invokes("nothing"),
    ),
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
            """(if (i64.eqz (i64.and (local.get 0) (i64.const 127)))
              (then (drop (call $ask (local.get 0)))))
            (i64.add (call $run (i64.sub (local.get 0) (i64.const 1))) (i64.const 1))""",
            ASK,
        ),
        Fails(StackOverflowError, "stack is exhausted"),
        values=(1000,),
        imports=_answers,
    ),
]
