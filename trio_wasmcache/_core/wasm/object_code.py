"""Text of the parts of a memory driver that make and find objects of AssemblyScript's runtime.

See `_abi/managed` for objects, whose Python code is the reference: `$find` finds the same contents,
or none where that raises.
"""

from __future__ import annotations

from typing import Final

from .memory_layout import (
    ARRAY,
    BUFFER_CLASS,
    CALLS_AT,
    CLASS_FLAGS,
    HEADER_SIZE,
    INTERVAL_AT,
    NEW_OUTSIDE,
    PAGES_AT,
    RTTI_AT,
    STATIC_ARRAY,
    TEXT_CLASS,
    Contents,
    MemoryShape,
)
from .text import get, i32, put, read, write
from .types import FuncType

MIN_INTERVAL: Final = 16
"""Calls between two collections of garbage, at least. Memory that grows sooner is in use, or takes
16 calls' garbage, and will grow no more than five times."""
VIEW_SIZE: Final = 16
FAILED: Final = "(return (i64.const -1))"


def imports(shape: MemoryShape) -> dict[str, FuncType]:
    """Return {name: type} of the functions that a driver for objects imports besides."""
    found: dict[str, FuncType] = {}
    if shape.views:
        found["new"] = FuncType(("i32", "i32"), ("i32",))
    if len(shape.views) > 1 or any(shape.views):
        found["pin"] = FuncType(("i32",), ("i32",))
        found["unpin"] = FuncType(("i32",))
    if shape.count is not None:
        found["count"] = FuncType(("i32",))
    if shape.collects:
        found["collect"] = FuncType()
    return found


def helpers(shape: MemoryShape) -> dict[str, str]:
    """Return {name: text} of the functions that the code for a row calls."""
    found = {}
    if shape.views:
        found["make"] = _MAKE
    if shape.contents is not None:
        found["header"] = _HEADER
        found["find"] = _find(shape.contents)
    if shape.collects:
        found["tidy"] = _TIDY
    return found


def make(number: int, element: int, kind: str) -> str:
    """Return the code that makes the object of an argument of bytes.

    Args:
        number: number of the argument, which the names of its locals end with.
        element: size of an element of a view; 0: it is no view.
        kind: expression for the class of the object.
    """
    at, size, inner = get(f"at{number}"), get(f"size{number}"), get(f"in{number}")
    data = f"{get(f'from{number}')} {size}"
    if not element:
        return f"""{put(f"at{number}", f"(call $make {size} {kind})")}
          (br_if $stopped (i32.eqz {at}))
          (memory.copy $guest $scratch {at} {data})"""
    return f"""{put(f"in{number}", f"(call $make {size} {i32(BUFFER_CLASS)})")}
          (br_if $stopped (i32.eqz {inner}))
          (memory.copy $guest $scratch {inner} {data})
          (drop (call $pin {inner}))
          {put(f"at{number}", f"(call $make {i32(VIEW_SIZE)} {kind})")}
          (br_if $stopped (i32.eqz {at}))
          (i32.store $guest {at} {inner})
          (i32.store $guest offset=4 {at} {inner})
          (i32.store $guest offset=8 {at} {size})
          (i32.store $guest offset=12 {at} (i32.div_u {size} {i32(element)}))
          (call $unpin {inner})"""


_MAKE: Final = f"""
  (func $make (param $size i32) (param $class i32) (result i32) (local $at i32)
    {put("at", f"(call $new {get('size')} {get('class')})")}
    (if (i32.lt_u {get("at")} {i32(HEADER_SIZE)})
      (then (call $stop {i32(NEW_OUTSIDE)} {get("at")} {get("size")}) (return {i32(0)})))
    (if (i32.eqz (call $inside {get("at")} {get("size")}))
      (then (call $stop {i32(NEW_OUTSIDE)} {get("at")} {get("size")}) (return {i32(0)})))
    {get("at")})"""

_END: Final = "(i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16))"


def _wide(value: str) -> str:
    return f"(i64.extend_i32_u {value})"


def _before(at: str, distance: int) -> str:
    return f"(i32.load $guest (i32.sub {at} {i32(distance)}))"


# Whether the header and all of an object are inside the memory.
_HEADER: Final = f"""
  (func $header (param $at i32) (result i32)
    (if (i32.lt_u {get("at")} {i32(HEADER_SIZE)}) (then (return {i32(0)})))
    (if (i64.gt_u {_wide(get("at"))} {_END}) (then (return {i32(0)})))
    (i64.le_u (i64.add {_wide(get("at"))} {_wide(_before(get("at"), 4))}) {_END}))"""


def _find(contents: Contents) -> str:
    """Return a function for address and size of the contents of an object: size << 32 | address.

    It returns -1 if there is no such object.
    """
    at, size = get("at"), get("size")
    found = f"(return (i64.or (i64.shl {_wide(size)} (i64.const 32)) {_wide(at)}))"
    whole = _whole(size, contents.size)
    if contents.text:
        rest = f"""
    (if (i32.ne {get("class")} {i32(TEXT_CLASS)}) (then {FAILED}))
    {whole} {found}"""
    else:
        rest = f"""
    (if (i32.eq {get("class")} {i32(BUFFER_CLASS)})
      (then {found if contents.buffers else FAILED}))
    {_views(contents) if contents.flags else ""}"""
    return f"""
  (func $find (param $at i32) (result i64)
    (local $class i32) (local $size i32) (local $flags i32) (local $base i32) (local $n i64)
    (if (i32.eqz (call $header {at})) (then {FAILED}))
    {put("size", _before(at, 4))} {put("class", _before(at, 8))}
    {rest}
    (i64.const -1))"""


def _whole(size: str, element: int) -> str:
    return f"(if (i32.rem_u {size} {i32(element)}) (then {FAILED}))" if element > 1 else ""


def _views(contents: Contents) -> str:
    """Return the code of `$find` for objects whose class the guest's table describes."""
    at, size, flags, base, kind = map(get, ("at", "size", "flags", "base", "class"))
    entry = f"(i64.add {_wide(base)} (i64.shl {_wide(kind)} (i64.const 2)))"
    accepted = i32(0)
    for one in contents.flags:
        accepted = f"(i32.or {accepted} (i32.eq {flags} {i32(one)}))"
    count = f"(i64.mul {_wide(f'(i32.load $guest offset=12 {at})')} (i64.const {contents.size}))"
    array = f"(i32.and {flags} {i32(ARRAY)})"
    start = f"(i32.load $guest offset=4 {at})"
    end = f"(i64.add {_wide(base)} {_wide(_before(base, 4))})"
    return f"""{put("base", read(RTTI_AT))}
    (if (i64.gt_u (i64.add {_wide(base)} (i64.const 4)) {_END}) (then {FAILED}))
    (if (i32.ge_u {kind} (i32.load $guest {base})) (then {FAILED}))
    (if (i64.gt_u (i64.add {entry} (i64.const 8)) {_END}) (then {FAILED}))
    {put("flags", f"(i32.load $guest offset=4 (i32.wrap_i64 {entry}))")}
    {put("flags", f"(i32.and {flags} {i32(CLASS_FLAGS)})")}
    (if (i32.eqz {accepted}) (then {FAILED}))
    (if (i32.and {flags} {i32(STATIC_ARRAY)}) (then
      {_whole(size, contents.size)}
      (return (i64.or (i64.shl {_wide(size)} (i64.const 32)) {_wide(at)}))))
    (if (i32.lt_u {size} (select {i32(16)} {i32(12)} {array})) (then {FAILED}))
    (local.set $n {_wide(f"(i32.load $guest offset=8 {at})")})
    (if {array} (then (local.set $n {count})))
    {put("base", f"(i32.load $guest {at})")}
    (if (i32.eqz (call $header {base})) (then {FAILED}))
    (if (i32.ne {_before(base, 8)} {i32(BUFFER_CLASS)}) (then {FAILED}))
    (if (i32.lt_u {start} {base}) (then {FAILED}))
    (if (i64.gt_u (i64.add {_wide(start)} (local.get $n)) {end}) (then {FAILED}))
    {put("size", "(i32.wrap_i64 (local.get $n))")}
    {_whole(size, contents.size)}
    (return (i64.or (i64.shl (local.get $n) (i64.const 32)) {_wide(start)}))"""


# Counts a call, and has garbage collected if that is due: as `Heap` of the ABI.
_TIDY: Final = f"""
  (func $tidy (local $calls i32) (local $pages i32) (local $interval i32)
    {put("calls", f"(i32.add {read(CALLS_AT)} {i32(1)})")}
    {put("pages", "(memory.size $guest)")}
    {put("interval", read(INTERVAL_AT))}
    (if (i32.gt_u {get("pages")} {read(PAGES_AT)})
      (then
        {put("interval", f"(i32.shr_u {get('calls')} {i32(1)})")}
        (if (i32.lt_u {get("interval")} {i32(MIN_INTERVAL)})
          (then {put("interval", i32(MIN_INTERVAL))}))
        {write(INTERVAL_AT, get("interval"))}
        {write(PAGES_AT, get("pages"))})
      (else
        (if (i32.or (i32.eqz {get("interval")}) (i32.lt_u {get("calls")} {get("interval")}))
          (then {write(CALLS_AT, get("calls"))} (return)))))
    {write(CALLS_AT, i32(0))}
    (call $collect ))"""
