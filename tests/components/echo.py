"""Components that give back their arguments, generated for any types, as WebAssembly text.

The function is ``echo(p0, p1, ...) -> p0``, or ``-> tuple<p0, p1, ...>`` for several: its arguments
come flat or spilled, and are stored where their tuple has them. It allocates with a bump allocator,
and `cabi_post_echo` frees all.
"""

from __future__ import annotations

from collections.abc import Sequence

import wasmtime

from .shapes import (
    MAX_FLAT_PARAMS,
    MAX_FLAT_RESULTS,
    Shape,
    cases,
    discriminant,
    layout,
    members,
    offsets_of,
    payload_offset,
)

HEAP = 1024
BUMP = f"""
(global $heap (export "heap") (mut i32) (i32.const {HEAP}))
(func $alloc (export "alloc") (param $align i32) (param $size i32) (result i32)
  (local $at i32) (local $end i32)
  (local.set $at (i32.and
    (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
    (i32.sub (i32.const 0) (local.get $align))))
  (local.set $end (i32.add (local.get $at) (local.get $size)))
  (if (i32.gt_u (local.get $end) (i32.mul (memory.size) (i32.const 65536)))
    (then (if (i32.eq (i32.const -1) (memory.grow (i32.add (i32.const 1)
        (i32.div_u (local.get $size) (i32.const 65536)))))
      (then (unreachable)))))
  (global.set $heap (local.get $end))
  (local.get $at))
"""
# No guest of these tests has anything reallocated, nor does a host.
REALLOC = """
(func $realloc (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
  (if (i32.or (local.get 0) (local.get 1)) (then (unreachable)))
  (call $alloc (local.get 2) (local.get 3)))
"""
# The same of another core module.
SHARED = """
(import "a" "memory" (memory 1))
(import "a" "heap" (global $heap (mut i32)))
(import "a" "alloc" (func $alloc (param i32 i32) (result i32)))
"""
INTERFACE = "gen:echo/echoes@0.1.0"


def result_of(params: Sequence[Shape]) -> Shape:
    """The type of what an echo of these gives."""
    return params[0] if len(params) == 1 else ("tuple", *params)


class Names:
    """Refers to types in text, and defines those that need a name."""

    def __init__(self, *, exported: bool) -> None:
        self.exported = exported
        self.lines: list[str] = []
        self.made: dict[Shape, str] = {}

    def refer(self, shape: Shape | None) -> str:
        """The text that stands for a type."""
        if shape is None or isinstance(shape, str):
            return shape or ""
        match shape:
            case ("list" | "option", of):
                return f"({shape[0]} {self.refer(of)})"
            case ("tuple", *parts):
                return f"(tuple {' '.join(map(self.refer, parts))})"
            case ("result", ok, err):
                first = "" if ok is None else f" {self.refer(ok)}"
                second = "" if err is None else f" (error {self.refer(err)})"
                return f"(result{first}{second})"
        if shape not in self.made:
            body = self._body(shape)
            number = len(self.made)
            self.lines.append(f"(type $t{number} {body})")
            if self.exported:
                self.lines.append(f'(export $e{number} "type-{number}" (type $t{number}))')
            self.made[shape] = f"{'$e' if self.exported else '$t'}{number}"
        return self.made[shape]

    def _body(self, shape: Shape) -> str:
        match shape:
            case ("record", fields):
                inner = "".join(f' (field "{name}" {self.refer(of)})' for name, of in fields)
            case ("variant", given):
                inner = "".join(f' (case "{name}" {self.refer(of)})' for name, of in given)
            case _:
                inner = "".join(f' "{name}"' for name in shape[1])
        return f"({shape[0]}{inner})"


def component(
    core: str,
    functions: dict[str, tuple[Sequence[Shape], Shape | None]],
    *,
    interface: bool = False,
    allocator: str = "",
) -> bytes:
    """A component that lifts functions of a core module, given as fields of its text.

    Args:
        core: exports ``memory`` and ``cabi_realloc`` if functions need them, each function, and
            perhaps its ``cabi_post_``.
        functions: {name: (types of its parameters, type of its result)}.
        interface: whether they are exported in an instance, as WIT's tools do, or by themselves.
        allocator: fields of another core module, which then exports ``memory`` and
            ``cabi_realloc``, and from which the first one imports as ``a``.
    """
    names = Names(exported=not interface)
    lifts, exports = [], []
    for name, (params, result) in functions.items():
        given = "".join(f' (param "p{i}" {names.refer(of)})' for i, of in enumerate(params))
        gives = "" if result is None else f" (result {names.refer(result)})"
        post = f"cabi_post_{name}"
        at = "$a" if allocator else "$i"
        made = allocator or core
        options = f'(memory (core memory {at} "memory"))' if '"memory"' in made else ""
        if '"cabi_realloc"' in made:
            options += f' (realloc (core func {at} "cabi_realloc"))'
        if f'(export "{post}")' in core:
            options += f' (post-return (core func $i "{post}"))'
        lifts.append(f'(func ${name}{given}{gives} (canon lift (core func $i "{name}") {options}))')
        exports.append(f'(export "{name}" (func ${name}))')
    if interface:
        types = [
            f'(export "type-{at}" (type {name}))' for at, name in enumerate(names.made.values())
        ]
        exports = [f"(instance $all {' '.join([*types, *exports])})"]
        exports.append(f'(export "{INTERFACE}" (instance $all))')
    instances = "(core instance $i (instantiate $m))"
    if allocator:
        instances = f"""
          (core module $n {allocator}) (core instance $a (instantiate $n))
          (core instance $i (instantiate $m (with "a" (instance $a))))"""
    lines = (
        f"(component (core module $m {core}) {instances}",
        *names.lines,
        *lifts,
        *exports,
    )
    return bytes(wasmtime.wat2wasm("\n".join(lines) + ")"))


def echo(
    params: Sequence[Shape],
    *,
    post: bool = True,
    interface: bool = False,
    modules: int = 1,
    name: str = "echo",
) -> bytes:
    """A component with the function that gives back what it gets, of one or two core modules."""
    memory = f'(memory (export "memory") 1) {BUMP} {REALLOC}'
    function = echo_function(params, name, post=post)
    return component(
        f"{memory if modules == 1 else SHARED} {function}",
        {name: (params, result_of(params))},
        interface=interface,
        allocator="" if modules == 1 else memory,
    )


def echo_function(params: Sequence[Shape], name: str = "echo", *, post: bool = True) -> str:
    """The core function, and the one that frees what it gave."""
    whole = ("tuple", *params)
    result = result_of(params)
    flat, gives = layout(whole).flat, layout(result).flat
    spilled = len(flat) > MAX_FLAT_PARAMS
    pointer = len(gives) > MAX_FLAT_RESULTS
    takes = ("i32",) if spilled else flat
    answer = "i32" if pointer else gives[0]
    body = ""
    if spilled and pointer:
        body = "(local.get 0)"
    elif pointer:
        area = layout(whole)
        here = [f"(local.get {number})" for number in range(len(flat))]
        body = (
            f"(local $area i32) (local.set $area (call $alloc (i32.const {area.align})"
            f" (i32.const {area.size}))) {store(whole, 0, here)} (local.get $area)"
        )
    elif spilled:
        raise AssertionError("more than 16 flat parameters make more than one flat result")
    else:
        body = "(local.get 0)"
    text = f'(func ${name} (export "{name}") (param {" ".join(takes)}) (result {answer}) {body})'
    if post:
        text += (
            f'(func (export "cabi_post_{name}") (param {answer})'
            f" (global.set $heap (i32.const {HEAP})))"
        )
    return text


_STORES = {
    ("i32", 1): "i32.store8",
    ("i32", 2): "i32.store16",
    ("i32", 4): "i32.store",
    ("i64", 8): "i64.store",
    ("f32", 4): "f32.store",
    ("f64", 8): "f64.store",
}


def store(shape: Shape, at: int, flat: Sequence[str]) -> str:
    """Instructions that store flat values, given as expressions, at an offset of ``$area``."""
    if isinstance(shape, str) or shape[0] in ("list", "flags"):
        here = layout(shape)
        if len(here.flat) == 2:
            return _put("i32", 4, at, flat[0]) + _put("i32", 4, at + 4, flat[1])
        return _put(here.flat[0], here.size, at, flat[0])
    if shape[0] in ("record", "tuple"):
        text, first = "", 0
        for of, offset in zip(members(shape), offsets_of(shape), strict=False):
            width = len(layout(of).flat)
            text += store(of, at + offset, flat[first : first + width])
            first += width
        return text
    text = _put("i32", discriminant(shape), at, flat[0])
    joined = layout(shape).flat
    for number, (_, of) in enumerate(cases(shape)):
        if of is None:
            continue
        inner = [
            convert(given, have, want)
            for given, have, want in zip(flat[1:], joined[1:], layout(of).flat, strict=False)
        ]
        text += (
            f"(if (i32.eq {flat[0]} (i32.const {number}))"
            f" (then {store(of, at + payload_offset(shape), inner)}))"
        )
    return text


def _put(core: str, size: int, at: int, value: str) -> str:
    return f"({_STORES[core, size]} offset={at} (local.get $area) {value})"


def convert(value: str, have: str, want: str) -> str:
    """Take a value of a case out of the joined core type."""
    if have == want:
        return value
    if have == "i64" and want in ("i32", "f32"):
        value = f"(i32.wrap_i64 {value})"
    return {
        "i32": value,
        "f32": f"(f32.reinterpret_i32 {value})",
        "f64": f"(f64.reinterpret_i64 {value})",
    }[want]
