"""Components whose guest answers wrongly, or whose allocator or post-return misbehaves.

`Image` has what the guest answers, as the canonical ABI would have it, and then not quite.
"""

from __future__ import annotations

import struct
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

from .echo import BUMP, HEAP, REALLOC, component, echo_function
from .shapes import (
    MAX_FLAT_RESULTS,
    SCALARS,
    Shape,
    cases,
    discriminant,
    layout,
    members,
    offsets_of,
    payload_offset,
    up,
)

PAGE = 65536
ANSWER_PARAMS: tuple[Shape, ...] = (("list", "u8"), "u64")


def answering(result: Shape) -> bytes:
    """A component with ``answer(image: list<u8>, bits: u64) -> result``.

    The image lies at `HEAP`. The core function gives `bits` in the type that it has to be: a
    pointer, or the result itself.
    """
    flat = layout(result).flat
    gives = "i32" if len(flat) > MAX_FLAT_RESULTS else flat[0]
    bits = "(local.get 2)"
    body = {
        "i32": f"(i32.wrap_i64 {bits})",
        "i64": bits,
        "f32": f"(f32.reinterpret_i32 (i32.wrap_i64 {bits}))",
        "f64": f"(f64.reinterpret_i64 {bits})",
    }[gives]
    core = f"""
      (memory (export "memory") 1) {BUMP} {REALLOC}
      (func (export "answer") (param i32 i32 i64) (result {gives}) {body})
      (func (export "cabi_post_answer") (param {gives}) (global.set $heap (i32.const {HEAP})))
    """
    return component(core, {"answer": (ANSWER_PARAMS, result)})


class Image:
    """What a value is in memory, from `HEAP` on."""

    def __init__(self, shape: Shape, value: Any) -> None:
        self.data = bytearray()
        self.spots: list[tuple[int, int]] = []  # offset and width of all numbers in it
        flat = layout(shape).flat
        if len(flat) > MAX_FLAT_RESULTS:
            self.bits = self.take(layout(shape).size, layout(shape).align)
            self.store(shape, value, self.bits)
        else:
            scratch = self.take(8, 8)
            self.store(shape, value, scratch)
            (self.bits,) = struct.unpack_from("<Q", self.data, scratch - HEAP)

    def take(self, size: int, align: int) -> int:
        """The address of new memory."""
        at = up(HEAP + len(self.data), align)
        self.data += bytes(at + size - HEAP - len(self.data))
        return at

    def put(self, at: int, form: str, *values: Any) -> None:
        """Write at an address."""
        struct.pack_into("<" + form, self.data, at - HEAP, *values)
        width = struct.calcsize("<" + form[0]) if form[-1] != "s" else 1
        size = struct.calcsize("<" + form)
        self.spots += [(at - HEAP + one, width) for one in range(0, size, width)]

    def store(self, shape: Shape, value: Any, at: int) -> None:
        """Write a value at an address, and what it points to anywhere."""
        if isinstance(shape, str):
            if shape == "string":
                data = value.encode()
                to = self.take(len(data), 1)
                self.put(to, f"{len(data)}s", data)
                self.put(at, "II", to, len(data))
            elif shape == "char":
                self.put(at, "I", ord(value))
            else:
                form = {"bool": "B", "f32": "f", "f64": "d"}.get(shape)
                if form is None:
                    form = " bh i   q"[SCALARS[shape][0]]
                    form = form.upper() if shape[0] == "u" else form
                self.put(at, form, value)
            return
        match shape:
            case ("list", of):
                part = layout(of)
                to = self.take(len(value) * part.size, part.align)
                self.put(at, "II", to, len(value))
                for number, one in enumerate(value):
                    self.store(of, one, to + number * part.size)
            case ("record" | "tuple", *_):
                for of, one, offset in zip(members(shape), value, offsets_of(shape), strict=False):
                    self.store(of, one, at + offset)
            case ("flags", given):
                bits = sum(1 << number for number, name in enumerate(given) if name in value)
                self.put(at, {1: "B", 2: "H", 4: "I"}[layout(shape).size], bits)
            case _:
                name, payload = {"enum": lambda: (value, None)}.get(
                    shape[0], lambda: value or ("none", None)
                )()
                names = [case for case, _ in cases(shape)]
                number = names.index(name)
                self.put(at, {1: "B", 2: "H", 4: "I"}[discriminant(shape)], number)
                if cases(shape)[number][1] is not None:
                    self.store(cases(shape)[number][1], payload, at + payload_offset(shape))


WILD = (
    0, 1, 2, 3, 4, 5, 7, 8, 16, 0x7F, 0x80, 0xC0, 0xED, 0xFF, 0x100, 0xD7FF, 0xD800, 0xDFFF, 0xE000,
    HEAP, HEAP + 1, HEAP + 2, HEAP + 4, PAGE - 8, PAGE - 4, PAGE - 1, PAGE, PAGE + 1, 0x10FFFF,
    0x110000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFF, 0x100000000, 2**64 - 1,
)  # fmt: skip


@st.composite
def lies(draw: st.DrawFn, shape: Shape, value: Any) -> tuple[bytes, int]:
    """Draw the image of a value with a few changes, and the bits that lead to it."""
    image = Image(shape, value)
    wild = st.sampled_from(WILD)
    for _ in range(draw(st.integers(1, 3)) if image.spots else 0):
        at, width = image.spots[draw(st.integers(0, len(image.spots) - 1))]
        # A little more than what is right is just behind the last case, or just not aligned.
        more = draw(st.integers(-1, 3))
        right = int.from_bytes(image.data[at : at + width], "little")
        number = (right + more if more > 0 else draw(wild)) & (2 ** (8 * width) - 1)
        image.data[at : at + width] = number.to_bytes(width, "little")
    bits = image.bits
    if draw(st.integers(0, 3)) == 3:
        bits = draw(st.one_of(wild, st.integers(1, 7).map(lambda more: image.bits + more)))
    return bytes(image.data), bits & (2**64 - 1)


# ----- guests whose allocator, or post-return, misbehaves

LIAR_PARAMS: tuple[Shape, ...] = ("string", ("list", "u32"))
VALUES = ("text", [1, 2, 3])


@frozen
class Liar:
    """A guest that echoes a string and a list, and how wasmtime ends its call."""

    realloc: str = "(call $alloc (local.get 2) (local.get 3))"
    """What ``cabi_realloc`` does with (old address, old size, alignment, new size)."""
    refused: str | None = None
    """In the message of wasmtime's error; None: it answers."""
    answer: Any = None
    """What it answers; None: `values`."""
    values: Any = VALUES
    post: str = f"(global.set $heap (i32.const {HEAP}))"
    """What ``cabi_post_echo`` does."""

    def wasm(self) -> bytes:
        """The component."""
        core = f"""
          (memory (export "memory") 1) {BUMP}
          (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) {self.realloc})
          {echo_function(LIAR_PARAMS, post=False)}
          (func (export "cabi_post_echo") (param i32) {self.post})
        """
        return component(core, {"echo": (LIAR_PARAMS, ("tuple", *LIAR_PARAMS))})


def at(address: int, *, align: int = 4) -> str:
    """An allocator that gives that address for what has this alignment."""
    return (
        f"(if (result i32) (i32.eq (local.get 2) (i32.const {align}))"
        f" (then (i32.const {address})) (else (call $alloc (local.get 2) (local.get 3))))"
    )


TRAP = "unreachable"
LIARS = {
    "honest": Liar(),
    "realloc traps": Liar("(unreachable)", TRAP),
    "realloc traps, for nothing": Liar("(unreachable)", TRAP, values=("", [])),
    "realloc loops": Liar("(loop (br 0)) (unreachable)", "fuel"),
    "realloc gives null": Liar(at(0)),
    "realloc gives null for a text": Liar(at(0, align=1)),
    "realloc gives what is not aligned": Liar(at(HEAP + 62), "not aligned"),
    "realloc gives what is not aligned, for nothing": Liar(
        at(HEAP + 62), "not aligned", values=("", [])
    ),
    "realloc gives the last bytes": Liar(at(PAGE - 12)),
    "realloc gives more than the last bytes": Liar(at(PAGE - 8), "beyond end of memory"),
    "realloc gives the end": Liar(at(PAGE), "beyond end of memory"),
    "realloc gives the end, for nothing": Liar(at(PAGE), values=("", [])),
    "realloc gives more than the end, for nothing": Liar(
        at(PAGE + 4), "beyond end of memory", values=("", [])
    ),
    "realloc gives -1": Liar(at(-1, align=1), "beyond end of memory"),
    "realloc gives -4": Liar(at(-4), "beyond end of memory"),
    "realloc gives the same for all": Liar(
        f"(i32.const {HEAP})", answer=("\x00\x04\x00\x00", [HEAP]), values=("text", [5])
    ),
    "realloc gives where the guest's own data will be": Liar(
        at(HEAP, align=1), answer=("\x01\x00\x00\x00", [1, 2, 3])
    ),
    "realloc grows the memory": Liar("(i32.mul (memory.grow (i32.const 1)) (i32.const 65536))"),
    "realloc calls the function": Liar(
        "(drop (call $echo (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))"
        " (call $alloc (local.get 2) (local.get 3))"
    ),
    "post-return traps": Liar(post="(unreachable)", refused=TRAP),
    "post-return loops": Liar(post="(loop (br 0))", refused="fuel"),
    "post-return overwrites the answer": Liar(
        post="(memory.fill (i32.const 0) (i32.const 255) (i32.const 65536))"
    ),
}
