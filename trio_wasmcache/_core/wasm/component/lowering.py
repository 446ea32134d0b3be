"""What a core module imports for a function that its component imports: ``canon lower``.

The host function takes the wasm values of the arguments, and writes its result to the memory. A
result with strings or lists in it needs memory of the guest's, and the guest can't be called while
it waits for the host. So a generated module is between the two: it calls the host, and allocates
for it until all has its place. A call of the host costs much more than an allocation, so several
blocks are allocated between two calls where there are many.

.. code-block::

    request = call(arguments)         ;; alignment and size of the first block, or DONE, or SEVERAL
    while request >= 0:
        request = next(realloc(0, 0, alignment, size))
    if request == SEVERAL:
        addresses = [0] * BATCH
        while (over, *requests := batches(*addresses)) and not over:
            addresses = [realloc(0, 0, *request) if request >= 0 else 0 for request in requests]
"""

from __future__ import annotations

from typing import Final, final

from attrs import evolve, field, frozen

from ...wit.layout import layout, lowered_signature
from ...wit.types import (
    U32,
    Function,
    Handle,
    List,
    Option,
    Record,
    Result,
    Tuple,
    Type,
    Variant,
)
from ..assembler import assemble
from ..types import FuncType

HOST: Final = "host"
"""Module name of the host functions that an adapter imports: `CALL`, `NEXT` and `BATCHES`."""
GUEST: Final = "guest"
"""Module name of what it imports of the guest: `REALLOC`."""
CALL, NEXT, BATCHES, REALLOC, RUN = "call", "next", "batches", "realloc", "run"
DONE, SEVERAL = -1, -2
"""What the host returns instead of a request: all has its place; `BATCHES` is to be called."""
BATCH: Final = 64
"""Number of blocks that are allocated between two calls of `BATCHES`."""
NEXT_TYPE: Final = FuncType(("i32",), ("i64",))
BATCHES_TYPE: Final = FuncType(("i32",) * BATCH, ("i32", *("i64",) * BATCH))
"""Type of `BATCHES`: takes the addresses of the last blocks, in order; returns whether all is over,
and the next requests, the first one last."""
REALLOC_TYPE: Final = FuncType(("i32", "i32", "i32", "i32"), ("i32",))


@final
@frozen
class LoweredFunction:
    """An imported function as a core module imports it."""

    interface: str
    """Interface, with its version; empty for a function of the world."""
    name: str
    type: Function
    """Its type, in which handles are numbers."""
    core: FuncType = field(init=False)
    """Its type as the core module imports it."""
    allocates: bool = field(init=False)
    """Whether its result takes memory of the guest's, so that there is an adapter."""

    @core.default
    def _default_core(self) -> FuncType:
        found = lowered_signature(self.type)
        return FuncType(found.params, found.results)

    @allocates.default
    def _default_allocates(self) -> bool:
        return self.type.result is not None and layout(self.type.result).has_pointers

    @property
    def host_type(self) -> FuncType:
        """Type of the host function: of the import itself, or of `CALL`."""
        return FuncType(self.core.params, ("i64",)) if self.allocates else self.core

    @property
    def what(self) -> str:
        """Name of the function for messages."""
        return f"{self.interface}#{self.name}" if self.interface else self.name

    def adapter(self) -> bytes:
        """Return the module between a core module and the host, which exports `RUN`."""
        kinds = " ".join(self.core.params)
        named = enumerate(self.core.params)
        params = " ".join(f"(param $p{number} {one})" for number, one in named)
        values = " ".join(f"(local.get $p{number})" for number in range(len(self.core.params)))
        places = [f"$at{number}" for number in range(BATCH)]
        addresses = " ".join(f"(local.get {place})" for place in places)
        allocated = " ".join(f"(local.set {place} (call $allocate))" for place in places)
        return assemble(
            f"""(module
              (import "{HOST}" "{CALL}" (func $call (param {kinds}) (result i64)))
              (import "{HOST}" "{NEXT}" (func $next (param i32) (result i64)))
              (import "{HOST}" "{BATCHES}" (func $batches
                (param {" ".join(BATCHES_TYPE.params)}) (result {" ".join(BATCHES_TYPE.results)})))
              (import "{GUEST}" "{REALLOC}"
                (func $realloc (param i32 i32 i32 i32) (result i32)))
              (func $allocate (param $request i64) (result i32)
                (if (i64.lt_s (local.get $request) (i64.const 0)) (then (return (i32.const 0))))
                (call $realloc (i32.const 0) (i32.const 0)
                  (i32.wrap_i64 (i64.shr_u (local.get $request) (i64.const 32)))
                  (i32.wrap_i64 (local.get $request))))
              (func $run (export "{RUN}") {params} (local $request i64)
                (local.set $request (call $call {values}))
                (loop $again
                  (if (i64.ge_s (local.get $request) (i64.const 0)) (then
                    (local.set $request (call $next (call $allocate (local.get $request))))
                    (br $again))))
                (if (i64.eq (local.get $request) (i64.const {SEVERAL})) (then (call $in_batches))))
              (func $in_batches {" ".join(f"(local {place} i32)" for place in places)}
                (loop $more
                  (call $batches {addresses})
                  {allocated}
                  (br_if $more (i32.eqz)))))"""
        )


def request(align: int, size: int) -> int:
    """Return what the host returns to have a block allocated."""
    return align << 32 | size


def without_handles(one: Type) -> Type:
    """Return a type with numbers in place of handles, which is what they are in wasm."""
    match one:
        case Handle():
            return U32
        case List():
            return evolve(one, element=without_handles(one.element))
        case Record():
            fields = tuple((name, without_handles(kind)) for name, kind in one.fields)
            return evolve(one, fields=fields)
        case Tuple():
            return evolve(one, items=tuple(map(without_handles, one.items)))
        case Variant():
            cases = tuple(
                (name, None if kind is None else without_handles(kind)) for name, kind in one.cases
            )
            return evolve(one, cases=cases)
        case Option():
            return evolve(one, some=without_handles(one.some))
        case Result():
            return Result(
                None if one.ok is None else without_handles(one.ok),
                None if one.err is None else without_handles(one.err),
            )
        case _:
            return one


def lowered_function(interface: str, name: str, kind: Function) -> LoweredFunction:
    """Return an imported function as a core module imports it."""
    params = tuple((label, without_handles(one)) for label, one in kind.params)
    result = None if kind.result is None else without_handles(kind.result)
    return LoweredFunction(interface, name, Function(params, result))
