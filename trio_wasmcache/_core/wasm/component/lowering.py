"""What a core module imports for a function that its component imports: ``canon lower``.

The host function takes the wasm values of the arguments, and writes its result to the memory. A
result with strings or lists in it needs memory of the guest's, and the guest can't be called while
it waits for the host. So a generated module is between the two: it calls the host, and allocates
for it until all has its place.

.. code-block::

    request = call(arguments)         ;; alignment and size of the first block, or -1
    while request >= 0:
        request = next(realloc(0, 0, alignment, size))
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
"""Module name of the host functions that an adapter imports: `CALL` and `NEXT`."""
GUEST: Final = "guest"
"""Module name of what it imports of the guest: `REALLOC`."""
CALL, NEXT, REALLOC, RUN = "call", "next", "realloc", "run"
DONE: Final = -1
"""What the host returns instead of a request once all has its place."""
NEXT_TYPE: Final = FuncType(("i32",), ("i64",))
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
        return assemble(
            f"""(module
              (import "{HOST}" "{CALL}" (func $call (param {kinds}) (result i64)))
              (import "{HOST}" "{NEXT}" (func $next (param i32) (result i64)))
              (import "{GUEST}" "{REALLOC}"
                (func $realloc (param i32 i32 i32 i32) (result i32)))
              (func $run (export "{RUN}") {params} (local $request i64)
                (local.set $request (call $call {values}))
                (block $done
                  (loop $again
                    (br_if $done (i64.lt_s (local.get $request) (i64.const 0)))
                    (local.set $request
                      (call $next
                        (call $realloc (i32.const 0) (i32.const 0)
                          (i32.wrap_i64 (i64.shr_u (local.get $request) (i64.const 32)))
                          (i32.wrap_i64 (local.get $request)))))
                    (br $again)))))"""
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
