"""Objects of AssemblyScript's runtime: their classes, their headers, and where their contents lie.

An object begins at its address. Before it lie the number of its class and its size, 32 bits each:

    | ... | class | size | object ...

Classes 1 and 2 are `ArrayBuffer` and `String`. What other classes are is told by 32 flags for each,
in a table at the address `__rtti_base`, behind the number of classes. Objects of three kinds hold
numbers: a `StaticArray` is its numbers; an `Array` and a typed array are *views*, whose numbers lie
in an `ArrayBuffer` (see `View`).

None of this is believed: whoever wrote the guest chose all these numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Literal

from attrs import frozen

from .._core.errors import AbiError
from .._core.tally import FREE
from .._core.wasm.memory_layout import (
    ARRAY,
    BUFFER_CLASS,
    CLASS_FLAGS,
    FLOATS,
    HEADER_SIZE,
    SIGNED,
    STATIC_ARRAY,
    TEXT_CLASS,
    TYPED_ARRAY,
    Contents,
)
from .base import Guest, Memory
from .elements import CODES, Elements
from .guest_memory import memory_of
from .marks import RTTI
from .plain import TYPES

MAX_SIZE: Final = 2**30 - 20
"""Size of an object, at most (bytes): the runtime refuses larger ones."""
MAX_CLASSES: Final = 1 << 12
"""Number of classes that are searched; AssemblyScript's compiler itself has under a thousand."""
VIEW: Final = struct.Struct("<IIII")
"""A view: address of its `ArrayBuffer`, address of its first number, size in bytes, and, in an
`Array`, the number of its numbers. The size of an `Array` is that of its buffer."""
TYPED_SIZE: Final = 12
"""Size of a typed array, which has no number of numbers (bytes)."""

Python = Literal["str", "bytes", "list"]


@frozen
class ManagedType:
    """A type whose values are objects of the guest."""

    name: str
    """Its name, spelt as in the source."""
    python: Python
    """Class of the values in Python."""
    elements: Elements | None
    """Type of the numbers; None for text and bytes."""
    number: int
    """Number of the class, if it is known; else 0."""
    flags: tuple[int, ...]
    """Flags of classes that an argument may have, in order of preference; see `contents`."""
    contents: Contents
    """The objects that are accepted as a result."""

    @property
    def size(self) -> int:
        """Size of an element (bytes)."""
        return self.elements.size if self.elements else 2 if self.python == "str" else 1


@frozen
class Chosen:
    """The class of an argument's objects, in one module."""

    number: int
    """Number of the class."""
    view: bool
    """Whether it is a view."""


def _element_flags(name: str) -> int:
    kind = TYPES[name]
    size = Elements(kind, CODES[name]).size
    flags = 1 << 6 + size.bit_length() - 1
    return flags | SIGNED * (kind.real or kind.low < 0) | FLOATS * kind.real


def _list(name: str, element: str, kinds: tuple[int, ...]) -> ManagedType:
    elements = Elements(TYPES[element], CODES[element])
    flags = tuple(kind | _element_flags(element) for kind in kinds)
    return ManagedType(
        name, "list", elements, 0, flags, Contents(False, flags, elements.size, buffers=False)
    )


def _bytes(name: str, kinds: tuple[int, ...], results: tuple[int, ...]) -> ManagedType:
    flags = tuple(kind | _element_flags("u8") for kind in kinds)
    accepted = tuple(kind | _element_flags("u8") for kind in results)
    number = 0 if kinds else BUFFER_CLASS
    buffers = name in ("bytes", "ArrayBuffer")
    return ManagedType(
        name, "bytes", None, number, flags, Contents(False, accepted, 1, buffers=buffers)
    )


ARRAYS: Final = (ARRAY, TYPED_ARRAY, STATIC_ARRAY)
_TYPED_NAMES: Final = {
    **{f"Int{bits}Array": f"i{bits}" for bits in (8, 16, 32, 64)},
    **{f"Uint{bits}Array": f"u{bits}" for bits in (8, 16, 32, 64)},
    **{f"Float{bits}Array": f"f{bits}" for bits in (32, 64)},
}


def _managed_types() -> Iterator[ManagedType]:
    text = Contents(True, (), 2, buffers=False)
    yield ManagedType("str", "str", None, TEXT_CLASS, (), text)
    yield _bytes("bytes", (TYPED_ARRAY,), ARRAYS)
    yield _bytes("ArrayBuffer", (), ())
    for name in ("Uint8Array", "Uint8ClampedArray"):
        yield _bytes(name, (TYPED_ARRAY,), (TYPED_ARRAY,))
    for name, element in _TYPED_NAMES.items():
        if element == "u8":
            continue  # bytes
        yield _list(name, element, (TYPED_ARRAY,))
    for element in TYPES:
        yield _list(f"list[{element}]", element, ARRAYS)
        yield _list(f"Array<{element}>", element, (ARRAY,))
        yield _list(f"StaticArray<{element}>", element, (STATIC_ARRAY,))


MANAGED: Final = {one.name.lower(): one for one in _managed_types()}
"""{normalised name: type}."""


def choose_class(what: str, guest: Guest, kind: ManagedType) -> Chosen:
    """Return the class of which to make an argument's objects.

    Raises:
        AbiError: the module has no class for the type, or two that differ in their layout; or its
            table of classes is not inside its memory.
    """
    if kind.number:
        return Chosen(kind.number, False)
    memory = memory_of(guest)
    base = int(guest.global_value(RTTI)) & 0xFFFFFFFF
    count = _word(memory, base, f"{what}: its table of classes, at {RTTI},")
    if count > MAX_CLASSES or base + 4 + 4 * count > memory.size:
        raise AbiError(f"{what}: its table of classes, at {RTTI} = {base}, has {count} of them")
    table: list[int] = []
    # In pieces that cost no fuel: a batch has none yet when its driver is chosen.
    for start in range(0, 4 * count, FREE):
        raw = memory.read(base + 4 + start, min(FREE, 4 * count - start))
        table += (one & CLASS_FLAGS for (one,) in struct.iter_unpack("<I", raw))
    found = [(flags, table.index(flags)) for flags in kind.flags if flags in table]
    if not found:
        if kind.name == "bytes":
            return Chosen(BUFFER_CLASS, False)
        names = ", ".join(_classes(table)) or "none that holds numbers"
        raise AbiError(
            f"{what}: the module has no class for {kind.name}: declare the type that its source "
            f"says; its classes are {names}"
        )
    views = [number for flags, number in found if not flags & STATIC_ARRAY]
    if views and len(views) < len(found):
        names = " or ".join(_class_name(flags, kind) for flags, _ in found)
        raise AbiError(
            f"{what}: {kind.name} may be {names}, as the module has these: declare the type that "
            "its source says"
        )
    return Chosen((views or [found[0][1]])[0], bool(views))


def _classes(table: list[int]) -> list[str]:
    """Return the names of the classes of arrays in a table of flags, in the order of the types.

    Classes that differ in nothing that matters are named once.
    """
    held = set(table)
    names: dict[int, str] = {}
    for kind in MANAGED.values():
        if len(kind.flags) == 1 and kind.flags[0] in held and kind.name != "bytes":
            names.setdefault(kind.flags[0], kind.name)
    return list(names.values())


def _class_name(flags: int, kind: ManagedType) -> str:
    element = kind.name.removeprefix("list[").removesuffix("]")
    if flags & TYPED_ARRAY:
        return next(
            name for name, one in _TYPED_NAMES.items() if one == element.replace("bool", "u8")
        )
    return f"{'Array' if flags & ARRAY else 'StaticArray'}<{element}>"


def check_object(what: str, memory: Memory, at: int, size: int) -> None:
    """Raise `AbiError` if `__new` returned an address where no object of that size can be."""
    if at < HEADER_SIZE or at + size > memory.size:
        raise AbiError(
            f"{what}: __new({size}) returned the address {at}: no object of that size is there, in "
            f"a memory of {memory.size} bytes"
        )


def find_contents(got: str, guest: Guest, kind: ManagedType, at: int) -> tuple[int, int]:
    """Return address and size of the contents of a result, which is not null.

    Raises:
        AbiError: there is no such object.
    """
    memory, wanted = memory_of(guest), kind.contents
    number, size = _header(got, memory, at)
    if wanted.text:
        if number != TEXT_CLASS:
            raise _other(got, kind, at, number)
        if size % 2:
            raise AbiError(f"{got} a string at {at} of {size} bytes, which is not even")
        return at, size
    if number == BUFFER_CLASS:
        if not wanted.buffers:
            raise _other(got, kind, at, number)
        return at, size
    flags = _flags(got, guest, number)
    if flags not in wanted.flags:
        raise _other(got, kind, at, number)
    if flags & STATIC_ARRAY:
        _check_whole(got, at, size, wanted.size)
        return at, size
    fields = VIEW.size if flags & ARRAY else TYPED_SIZE
    if size < fields:
        raise AbiError(f"{got} an array at {at} of {size} bytes; it must have {fields}")
    buffer, start, size, count = VIEW.unpack(memory.read(at, fields) + bytes(VIEW.size - fields))
    if flags & ARRAY:
        size = count * wanted.size
    number, whole = _header(f"{got} an array at {at} whose buffer is", memory, buffer)
    if number != BUFFER_CLASS or start < buffer or start + size > buffer + whole:
        raise AbiError(
            f"{got} an array at {at} of {size} bytes at {start}, which are not inside its buffer: "
            f"at {buffer}, of class {number} and {whole} bytes"
        )
    _check_whole(got, at, size, wanted.size)
    return start, size


def _check_whole(got: str, at: int, size: int, element: int) -> None:
    if size % element:
        raise AbiError(f"{got} an array at {at} of {size} bytes, no multiple of {element}")


def _header(got: str, memory: Memory, at: int) -> tuple[int, int]:
    """Return class and size of the object at an address."""
    if at < HEADER_SIZE or at > memory.size:
        raise AbiError(
            f"{got} the address {at}: no object can be there, in a memory of {memory.size} bytes"
        )
    number, size = struct.unpack("<II", memory.read(at - 8, 8))
    if at + size > memory.size:
        raise AbiError(
            f"{got} an object at {at} of {size} bytes, which are not inside its memory of "
            f"{memory.size} bytes"
        )
    return number, size


def _flags(got: str, guest: Guest, number: int) -> int:
    """Return the flags of a class, of which those that matter are kept."""
    memory = memory_of(guest)
    base = int(guest.global_value(RTTI)) & 0xFFFFFFFF
    count = _word(memory, base, f"{got} an object, but the table of classes, at {RTTI},")
    if number >= count:
        raise AbiError(f"{got} an object of class {number}; the module has {count} classes")
    where = f"{got} an object, but the entry for its class {number}"
    return _word(memory, base + 4 + 4 * number, where) & CLASS_FLAGS


def _word(memory: Memory, at: int, where: str) -> int:
    if at + 4 > memory.size:
        raise AbiError(f"{where} is at {at}, not inside its memory of {memory.size} bytes")
    return int.from_bytes(memory.read(at, 4), "little")


def _other(got: str, kind: ManagedType, at: int, number: int) -> AbiError:
    known = {BUFFER_CLASS: ", ArrayBuffer", TEXT_CLASS: ", String"}.get(number, "")
    return AbiError(f"{got} an object at {at} of class {number}{known}, which is no {kind.name}")
