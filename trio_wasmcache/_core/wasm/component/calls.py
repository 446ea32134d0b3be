"""Writes call adapters: modules beside a core module that make a call by the canonical ABI at once.

The host would have to call the guest's allocator for each string and list, then the function, then
its post-return function, at microseconds each. An adapter does all of that in one call:

1. The host writes the flat arguments into *cells* of the adapter's memory, the scratch, and blocks
   of memory with a *table* of them. The adapter has the guest allocate each block, and writes its
   address where the table says: into a cell, or into another block. Then it copies the blocks.
2. It calls the function. A flat result goes into a cell, a spilled one behind the blocks, followed
   by what it refers to, one after the other. Then it calls the post-return function.
3. What the guest returns is not trusted. If a result can't be copied, since it does not fit, lies
   outside of the memory or has lists of what refers to more, the adapter stops before post-return,
   and the host goes on.
4. While the guest allocates, and while its post-return function runs, `PHASE_AT` says so: it must
   not call the host then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, final

from attrs import frozen

from ...wit.layout import FLAT_PARAMETERS, Layout, align_up, cases_of, layout, lifted_signature
from ...wit.types import (
    Enum,
    Function,
    List,
    Option,
    Primitive,
    Record,
    Result,
    Tuple,
    Type,
    Variant,
)
from ..assembler import assemble
from ..text import get, i32, put, read, write

PHASE_AT: Final = 0
"""Address of what the guest is doing: `ALLOCATING`, `RETURNED`, or 0: it may call the host."""
ALLOCATING, RETURNED = 1, 2
AT_AT, SIZE_AT, ALIGN_AT = 4, 8, 12
"""Addresses of the facts of a status other than `DONE`: an address, a size, an alignment."""
CURSOR_AT: Final = 16
"""Address of where the next part of a result goes; the adapter's own."""
HEAD_AT: Final = 24
"""Address of the number of blocks, of where the result goes, and of the cells."""
CELLS_AT: Final = 32
RESULT_AT: Final = CELLS_AT + 8 * FLAT_PARAMETERS
"""Address of the result of the function, a wasm value."""
TABLE_AT: Final = RESULT_AT + 8
"""Address of the table."""
ENTRY: Final = struct.Struct("<IIII")
"""Entry of the table: size, alignment, address of the content, address for the address."""
SCRATCH_SIZE: Final = 65_536
FUNCTIONS_LIMIT: Final = 1000
"""Number of functions of one adapter; those of a component beyond that are called without one."""
POINTERS_LIMIT: Final = 64
"""Number of strings and lists in a result that are copied, at most."""

DONE, LEFT = 0, 1
"""Status: the result is in the scratch; the host has to read it, and to call post-return."""
MISALIGNED, OUTSIDE = 2, 3
"""Status: the guest's allocator returned an address that can't be used."""

_CELL: Final = {"i32": "I4x", "i64": "Q", "f32": "f4x", "f64": "d"}


@final
@frozen
class Target:
    """A function that an adapter calls, and the exports that belong to it."""

    export: str
    type: Function
    realloc: str | None
    post: str | None


@final
@frozen
class Pointer:
    """A string, or a list of what refers to no more memory, in a result."""

    offset: int
    """Offset of its address in the result, followed by its length."""
    size: int
    """Size of an element (bytes)."""
    guards: tuple[tuple[int, int, int], ...] = ()
    """It is there only if all of these (offset, size) in the result are this number."""


def head_of(params: Sequence[str]) -> struct.Struct:
    """Return how the number of blocks, where the result goes, and the cells are packed."""
    return struct.Struct("<II" + "".join(_CELL[kind] for kind in params))


def result_of(results: Sequence[str]) -> struct.Struct | None:
    """Return how a result in its cell is unpacked; None if there is none."""
    return struct.Struct("<" + _CELL[results[0]].replace("I", "i").lower()) if results else None


def pointers_of(one: Type) -> tuple[Pointer, ...] | None:
    """Return the strings and lists in a value of a type, in the order in which they are lifted.

    None: there are too many, or lists of what refers to more memory.
    """
    found: list[Pointer] = []
    for pointer in _pointers(one, 0, ()):
        if pointer is None or len(found) == POINTERS_LIMIT:
            return None
        found.append(pointer)
    return tuple(found)


def _pointers(
    one: Type, at: int, guards: tuple[tuple[int, int, int], ...]
) -> Iterator[Pointer | None]:
    made = layout(one)
    if not made.has_pointers:
        return
    match one:
        case Primitive():
            yield Pointer(at, 1, guards)
        case List():
            inner = layout(one.element)
            yield None if inner.has_pointers else Pointer(at, inner.size, guards)
        case Record():
            for (_, part), offset in zip(one.fields, made.offsets, strict=True):
                yield from _pointers(part, at + offset, guards)
        case Tuple():
            for part, offset in zip(one.items, made.offsets, strict=True):
                yield from _pointers(part, at + offset, guards)
        case Variant() | Enum() | Option() | Result():
            for number, case in enumerate(cases_of(one)):
                if case is not None:
                    guard = (at, made.tag, number)
                    yield from _pointers(case, at + made.payload, (*guards, guard))


def adapter(targets: Mapping[int, Target], allocators: Mapping[str, int]) -> bytes:
    """Return the module that calls these functions.

    Args:
        targets: {number: function}
        allocators: {name: number} of the allocators that they use, and maybe of others.

    It imports, all from ``""``: ``memory``, and the exports of the functions, of their allocators
    and of their post-return functions, by names such as ``call 0``, ``realloc 0`` and ``post 0``.
    It exports ``call 0`` and ``post 0`` for each function, which take nothing, ``allocate 0`` for
    each allocator, ``write``, and its memory as ``scratch``. ``told 0`` is the post-return function
    itself, and ``realloc 0`` the allocator, for batches: they only say what the guest is doing.
    """
    imports, functions = [], []
    used = {one.realloc for one in targets.values()}
    for number in (number for name, number in allocators.items() if name in used):
        imports.append(
            f'(import "" "realloc {number}" (func $realloc{number} '
            "(param i32 i32 i32 i32) (result i32)))"
        )
        functions.append(_allocate(number))
    for number, one in targets.items():
        core = lifted_signature(one.type)
        takes, gives = " ".join(core.params), " ".join(core.results)
        imports.append(
            f'(import "" "call {number}" (func $call{number} (param {takes}) (result {gives})))'
        )
        if one.post is not None:
            imports.append(f'(import "" "post {number}" (func $post{number} (param {gives})))')
            functions.append(_post(number, core.results))
        place = None if one.realloc is None else allocators[one.realloc]
        functions.append(_call(number, one, place))
    text = "\n".join(
        (
            "(module",
            *imports,
            '(import "" "memory" (memory $guest 0))',
            '(memory $scratch (export "scratch") 1 1)',
            _OUTSIDE,
            _WRITE,
            _TAKE,
            *functions,
        )
    )
    return assemble(text + ")")


_OUTSIDE: Final = """
(func $outside (param $at i32) (param $size i64) (result i32)
  (i64.gt_u (i64.add (i64.extend_i32_u (local.get $at)) (local.get $size))
    (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16))))"""
# Copies the blocks of the table, whose second fields are their addresses in the guest by now.
_WRITE: Final = f"""
(func $write (export "write") (local $entry i32) (local $end i32)
  {put("entry", i32(TABLE_AT))}
  {put("end", f"(i32.add {i32(TABLE_AT)} (i32.shl {read(HEAD_AT)} {i32(4)}))")}
  (block $over (loop $next
    (br_if $over (i32.ge_u {get("entry")} {get("end")}))
    (memory.copy $guest $scratch {read(4, get("entry"))} {read(8, get("entry"))}
      {read(0, get("entry"))})
    {put("entry", f"(i32.add {get('entry')} {i32(16)})")}
    (br $next))))"""
# Copies a part of the result to where the next one goes; returns 0 if that can't be done.
_TAKE: Final = f"""
(func $take (param $pair i32) (param $each i32) (result i32)
  (local $at i32) (local $size i64) (local $to i32)
  {put("at", read(0, get("pair")))} {put("to", read(CURSOR_AT))}
  {
    put(
        "size", f"(i64.mul {read(4, get('pair'), 'i64.load32_u')} (i64.extend_i32_u {get('each')}))"
    )
}
  (if (i64.gt_u {get("size")} (i64.extend_i32_u (i32.sub {i32(SCRATCH_SIZE)} {get("to")})))
    (then (return {i32(0)})))
  (if (call $outside {get("at")} {get("size")}) (then (return {i32(0)})))
  (memory.copy $scratch $guest {get("to")} {get("at")} (i32.wrap_i64 {get("size")}))
  {
    write(
        CURSOR_AT,
        f"(i32.and (i32.add (i32.add {get('to')} (i32.wrap_i64 {get('size')})) "
        f"{i32(7)}) {i32(-8)})",
    )
}
  {i32(1)})"""


def _allocate(number: int) -> str:
    """Return a function that has the guest allocate the blocks of the table; it returns a status.

    The addresses go where the table says, and into its second fields.
    """
    return f"""
(func $allocate{number} (export "allocate {number}") (result i32)
  (local $entry i32) (local $end i32) (local $at i32) (local $size i32) (local $align i32)
  {put("entry", i32(TABLE_AT))}
  {put("end", f"(i32.add {i32(TABLE_AT)} (i32.shl {read(HEAD_AT)} {i32(4)}))")}
  {write(PHASE_AT, i32(ALLOCATING))}
  (block $over (loop $next
    (br_if $over (i32.ge_u {get("entry")} {get("end")}))
    {put("size", read(0, get("entry")))} {put("align", read(4, get("entry")))}
    {put("at", f"(call $realloc{number} {i32(0)} {i32(0)} {get('align')} {get('size')})")}
    {write(AT_AT, get("at"))} {write(SIZE_AT, get("size"))} {write(ALIGN_AT, get("align"))}
    (if (i32.and {get("at")} (i32.sub {get("align")} {i32(1)}))
      (then {write(PHASE_AT, i32(0))} (return {i32(MISALIGNED)})))
    (if (call $outside {get("at")} (i64.extend_i32_u {get("size")}))
      (then {write(PHASE_AT, i32(0))} (return {i32(OUTSIDE)})))
    {write(0, get("at"), read(12, get("entry")))}
    {write(4, get("at"), get("entry"))}
    {put("entry", f"(i32.add {get('entry')} {i32(16)})")}
    (br $next)))
  {write(PHASE_AT, i32(0))}
  {i32(DONE)})
(func $again{number} (export "realloc {number}")
  (param $old i32) (param $before i32) (param $align i32) (param $size i32) (result i32)
  (local $at i32)
  {write(PHASE_AT, i32(ALLOCATING))}
  {put("at", f"(call $realloc{number} {get('old')} {get('before')} {get('align')} {get('size')})")}
  {write(PHASE_AT, i32(0))}
  {get("at")})"""


def _post(number: int, results: Sequence[str]) -> str:
    """Return a function that calls a post-return function with the result in its cell."""
    value = "".join(read(RESULT_AT, what=f"{kind}.load") for kind in results)
    params = "".join(f"(param $given {kind})" for kind in results)
    given = "".join(get("given") for _ in results)
    return f"""
(func $told{number} (export "told {number}") {params}
  {write(PHASE_AT, i32(RETURNED))}
  (call $post{number} {given})
  {write(PHASE_AT, i32(0))})
(func $after{number} (export "post {number}") (call $told{number} {value}))"""


def _call(number: int, one: Target, allocator: int | None) -> str:
    """Return a function that makes a whole call; it returns a status."""
    core = lifted_signature(one.type)
    cells = "".join(
        read(CELLS_AT + 8 * place, what=f"{kind}.load") for place, kind in enumerate(core.params)
    )
    placed = ""
    if allocator is not None:
        placed = f"""
  (if {read(HEAD_AT)} (then
    (if (local.tee $status (call $allocate{allocator}))
      (then (return {get("status")})))
    (call $write)))"""
    called = f"(call $call{number} {cells})"
    if core.results:
        called = write(RESULT_AT, called, what=f"{core.results[0]}.store")
    copied = ""
    if core.returned is not None and one.type.result is not None:
        pointers = pointers_of(one.type.result)
        left = f"(return {i32(LEFT)})"
        copied = left if pointers is None else _copied(core.returned, pointers, left)
        if pointers is None:
            # Whatever follows is never reached, and wasm would check its types.
            return f"""
(func $main{number} (export "call {number}") (result i32) (local $status i32)
  {placed} {called} {i32(LEFT)})"""
    after = f"(call $after{number})" if one.post is not None else ""
    return f"""
(func $main{number} (export "call {number}") (result i32)
  (local $status i32) (local $at i32) (local $out i32)
  {placed} {called} {copied} {after} {i32(DONE)})"""


def _copied(returned: Layout, pointers: Sequence[Pointer], left: str) -> str:
    """Return code that copies a spilled result, and what it refers to, or leaves it to the host."""
    size, out = returned.size, read(HEAD_AT + 4)
    code = f"""
  {put("at", read(RESULT_AT))} {put("out", out)}
  (if (i32.and {get("at")} {i32(returned.align - 1)}) (then {left}))
  (if (call $outside {get("at")} (i64.const {size})) (then {left}))
  (memory.copy $scratch $guest {get("out")} {get("at")} {i32(size)})
  {write(CURSOR_AT, f"(i32.add {get('out')} {i32(align_up(size, 8))})")}"""
    loads = {1: "i32.load8_u", 2: "i32.load16_u", 4: "i32.load"}
    for one in pointers:
        take = f"(call $take (i32.add {get('out')} {i32(one.offset)}) {i32(one.size)})"
        take = f"(if (i32.eqz {take}) (then {left}))"
        for offset, tag, case in reversed(one.guards):
            number = read(offset, get("out"), loads[tag])
            take = f"(if (i32.eq {number} {i32(case)}) (then {take}))"
        code += take
    return code
