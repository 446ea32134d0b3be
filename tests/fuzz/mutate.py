"""One input for each number: from real modules, the zoo, the generator, or from nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from trio_wasmcache._core.wasm.custom import find_custom_sections
from trio_wasmcache._core.wasm.editor import name_bytes, section, uleb
from trio_wasmcache._core.wasm.reader import HEADER, MalformedModuleError, read_module

from ..components.echo import echo
from ..hostile.zoo import ZOO
from .generate import generate

ROOT = Path(__file__).parents[2]
# What compiles in a few milliseconds; a larger one is taken now and then.
SMALL = 20_000
# {how an input is made: how often}
KINDS = {
    "noise": 1,
    "sections of noise": 1,
    "cut": 2,
    "blind": 4,
    "in a section": 6,
    "generated": 3,
    "generated, in a section": 3,
    "damaged DWARF": 3,
    "component": 1,
    "component, cut": 1,
    "component, blind": 2,
    "component, in a section": 4,
}
# The first bytes of a component, and the section of one that is a core module.
COMPONENT, CORE_MODULE = b"\0asm\x0d\0\x01\0", 1
# Types of a parameter and the result of generated components.
SHAPES: tuple[tuple[Any, ...], ...] = (
    ("string",),
    ("s64", "f64"),
    (("list", "u8"), "bool"),
    (("record", (("x", "f64"), ("name", "string"))),),
    (("option", ("list", "string")), "char"),
    (("variant", (("none", None), ("some", ("tuple", "u32", "string")))),),
    (("result", "u8", "string"), ("flags", ("a", "b"))),
)


@cache
def corpus() -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Modules to be damaged: small ones, and large ones."""
    paths = sorted([*ROOT.glob("examples/udfs/*.wasm"), *ROOT.glob("tests/udfs/*.wasm")])
    modules = [path.read_bytes() for path in paths]
    modules += [wasm for guest in ZOO if len(wasm := guest.wasm()) <= SMALL]
    small = tuple(wasm for wasm in modules if len(wasm) <= SMALL)
    return small, tuple(wasm for wasm in modules if len(wasm) > SMALL)


@cache
def components() -> tuple[bytes, ...]:
    """Components to be damaged: built by real tools, and generated ones."""
    paths = sorted(ROOT.glob("tests/udfs/components/*.wasm"))
    generated = [
        echo(shapes, interface=number % 2 == 0, modules=1 + number % 3 // 2)
        for number, shapes in enumerate(SHAPES)
    ]
    return (*(path.read_bytes() for path in paths), *generated)


@cache
def debuggable() -> tuple[bytes, ...]:
    """Modules with DWARF sections, whose export traps at a zero."""
    paths = sorted(ROOT.glob("tests/udfs/toolchains/clang-dwarf*.wasm"))
    return tuple(path.read_bytes() for path in paths)


def make(seed: int, number: int) -> tuple[str, bytes]:
    """How the input of that number was made, and its bytes: always the same."""
    random = Random(f"{seed}/{number}")
    kind = random.choices([*KINDS], [*KINDS.values()])[0]
    if kind == "noise":
        header = random.choice((b"", HEADER, b"(module "))
        return kind, header + random.randbytes(random.randrange(200))
    if kind == "sections of noise":
        ids = sorted(random.choices(range(14), k=random.randrange(6)))
        return kind, HEADER + b"".join(
            section(id, random.randbytes(random.randrange(30))) for id in ids
        )
    if kind.startswith("generated"):
        wasm = generate(random)
        return kind, _in_section(random, wasm) if kind.endswith("section") else wasm
    if kind.startswith("component"):
        return kind, _component(random, kind)
    if kind == "damaged DWARF":
        return kind, _in_debug_section(random, random.choice(debuggable()))
    small, large = corpus()
    wasm = random.choice(large if large and random.random() < 0.03 else small)
    if kind == "cut":
        return kind, wasm[: random.randrange(len(wasm))]
    return kind, _blind(random, wasm) if kind == "blind" else _in_section(random, wasm)


def _component(random: Random, kind: str) -> bytes:
    wasm = random.choice(components())
    if kind.endswith("cut"):
        return wasm[: random.randrange(len(wasm))]
    if kind.endswith("blind"):
        return COMPONENT + _blind(random, wasm[len(COMPONENT) :])
    return _in_component(random, wasm) if kind.endswith("section") else wasm


def _in_component(random: Random, wasm: bytes) -> bytes:
    """One section damaged, doubled, emptied, moved or exchanged, and all sizes as they must be."""
    parts = list(_sections(wasm))
    chosen = random.randrange(len(parts))
    id, payload = parts[chosen]
    match random.randrange(8):
        case 0:
            del parts[chosen]
        case 1:
            parts.insert(random.randrange(len(parts) + 1), (id, payload))
        case 2:
            parts[chosen] = id, b""
        case 3:  # from another component
            found = [one for one in _sections(random.choice(components())) if one[0] == id]
            parts[chosen] = random.choice(found or [(id, payload)])
        case 4:  # another count
            parts[chosen] = id, uleb(random.choice((0, 1, 2, 127, 2**32 - 1))) + payload[1:]
        case 5 if id == CORE_MODULE:
            parts[chosen] = id, _in_section(random, payload)
        case 6:
            parts.append(parts.pop(chosen))
        case _:
            parts[chosen] = id, _blind(random, payload) if payload else payload
    return COMPONENT + b"".join(section(id, payload) for id, payload in parts)


def _sections(wasm: bytes) -> Iterator[tuple[int, bytes]]:
    """The id and the payload of each section of a component that is whole."""
    at = len(COMPONENT)
    while at < len(wasm):
        id, at, size, shift = wasm[at], at + 1, 0, 0
        while True:
            byte, at = wasm[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield id, wasm[at : at + size]
        at += size


def _blind(random: Random, wasm: bytes) -> bytes:
    """Some bytes changed, put in, taken out, or moved."""
    damaged = bytearray(wasm)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(damaged) + 1)
        end = min(len(damaged), at + random.randrange(6))
        damaged[at:end] = random.choice((_byte(random), b"", bytes(damaged[at:end]) * 2))
    return bytes(damaged)


def _in_debug_section(random: Random, wasm: bytes) -> bytes:
    """Some bytes of some DWARF sections damaged, and all sizes as they must be."""
    found = [one for one in find_custom_sections(wasm) if one.name.startswith(".debug_")]
    for one in reversed(found):
        if random.random() < 0.3:
            payload = _blind(random, wasm[one.start : one.end])
            custom = section(0, name_bytes(one.name) + payload)
            wasm = wasm[: one.begin] + custom + wasm[one.end :]
    return wasm


def _in_section(random: Random, wasm: bytes) -> bytes:
    """One section damaged, doubled, emptied or exchanged, and all sizes as they must be."""
    try:
        sections = read_module(wasm, weigh=False).sections
    except MalformedModuleError:
        return _blind(random, wasm)
    parts = [(one.id, wasm[one.start : one.end]) for one in sections]
    if not parts:
        return wasm
    chosen = random.randrange(len(parts))
    id, payload = parts[chosen]
    match random.randrange(8):
        case 0:
            del parts[chosen]
        case 1:
            parts.insert(chosen, (id, payload))
        case 2:
            parts[chosen] = id, b""
        case 3:  # from another module
            other = random.choice(corpus()[0])
            try:
                found = [one for one in read_module(other, weigh=False).sections if one.id == id]
            except MalformedModuleError:
                found = []
            if found:
                parts[chosen] = id, other[found[0].start : found[0].end]
        case 4:  # another count
            parts[chosen] = id, uleb(random.choice((0, 1, 2, 127, 2**32 - 1))) + payload[1:]
        case _:
            parts[chosen] = id, _blind(random, payload) if payload else payload
    return HEADER + b"".join(section(id, payload) for id, payload in parts)


def _byte(random: Random) -> bytes:
    interesting = (0, 1, 0x0B, 0x40, 0x60, 0x6E, 0x70, 0x7B, 0x7F, 0x80, 0xFC, 0xFD, 0xFF)
    return bytes([random.choice((*interesting, random.randrange(256)))])
