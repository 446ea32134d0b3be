"""Custom sections: finds them, removes them before a module is compiled, and keeps DWARF's.

1. Any bytes give a list of sections, never an exception: the list ends at the first damage. What
   is damaged is for `reader` to say.
2. Only headers of sections are read, at most `SECTION_LIMIT` of them.
3. Offsets are those of the bytes given.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from ..config import MiB
from .encoding import name_bytes, section as section_bytes, uleb
from .types import HEADER, SECTION_LIMIT

# The section of the names of functions, which the compiler gets, for backtraces: at most so many
# bytes of it, as a compiler takes about ten times that memory for names of a byte each.
NAMES: Final = "name"
NAMES_LIMIT: Final = 4 * MiB
# A character before each name of a function that wasmtime would demangle for its messages, on the
# event loop: template arguments can double what it makes of a name with every ten characters.
VEIL: Final = "\x7f"
_MANGLED: Final = re.compile(rb"_*(?:[ZR]|GLOBAL)")
_MODULE_NAME: Final = 0  # ids of parts of the section of names
_FUNCTION_NAMES: Final = 1
_NAMED_LIMIT: Final = 100_000  # names of functions that the compiler gets, at most
CODE: Final = 10
"""Id of the code section."""
# What names of DWARF's sections begin with.
DEBUG: Final = ".debug_"
# Bytes of compressed debug sections that are kept of one module; above it, none are, as one section
# is of no use without the others.
DEBUG_LIMIT: Final = 16 * MiB
# Characters of the name of a section that is kept; DWARF's have at most 17.
_NAME_LIMIT = 40
# zlib's fastest level; its usual one takes twice as long, for little.
_LEVEL = 1


class CustomSection:
    """The position of a custom section: ``wasm[begin:end]``, its content ``wasm[start:end]``."""

    __slots__ = ("begin", "end", "name", "start")

    def __init__(self, name: str, begin: int, start: int, end: int) -> None:
        self.name = name
        self.begin = begin
        self.start = start
        self.end = end


def find_custom_sections(wasm: bytes) -> list[CustomSection]:
    """Return the custom sections of a module, in order; those of what is no module: none."""
    found: list[CustomSection] = []
    if wasm[: len(HEADER)] != HEADER:
        return found
    for section_id, begin, at, end in find_sections(wasm):
        if section_id == 0:
            size, start = _number(wasm, at, end)
            if size < 0 or start + size > end:
                break
            kept = wasm[start : start + min(size, 4 * _NAME_LIMIT + 1)]
            found.append(CustomSection(kept.decode(errors="replace"), begin, start + size, end))
    return found


def find_sections(wasm: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield id, begin, begin of the content and end of each section, up to the first damage."""
    at, size = len(HEADER), len(wasm)
    for _ in range(SECTION_LIMIT):
        if at >= size:
            break
        begin = at
        length, start = _number(wasm, at + 1, size)
        at = start + length
        if length < 0 or at > size:
            break
        yield wasm[begin], begin, start, at


def _number(wasm: bytes, at: int, end: int) -> tuple[int, int]:
    """Return an unsigned LEB128 number of 32 bits, -1 if there is none; and where it ends."""
    if at < end and (small := wasm[at]) < 0x80:
        return small, at + 1
    value = 0
    for shift in range(0, 35, 7):
        if at >= end:
            break
        byte = wasm[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value if value < 1 << 32 else -1), at
    return -1, at


def code_offset(wasm: bytes) -> int:
    """Return where the content of the code section begins; 0 if there is none."""
    return next((start for section, _, start, _ in find_sections(wasm) if section == CODE), 0)


def bodies_offset(wasm: bytes) -> int:
    """Return where the first function body begins, with its size; 0 if there is none."""
    start = code_offset(wasm)
    return _number(wasm, start, len(wasm))[1] if start else 0  # after their number


def custom_size(sections: Sequence[CustomSection]) -> int:
    """Return the bytes of custom sections together, headers included."""
    return sum(section.end - section.begin for section in sections)


# Bytes of a custom section that is not worth leaving out.
SMALL_SECTION = 1024


def without_trailing_sections(wasm: bytes) -> bytes:
    """Return a module without large custom sections behind its last other section, but the names.

    Offsets in its code stay as they are. Compilers make the same of it as of the whole module.
    """
    end, kept = len(wasm), b""
    for section in reversed(find_custom_sections(wasm)):
        if section.end != end:
            break
        end = section.begin
        if section.name == NAMES or section.end - section.begin <= SMALL_SECTION:
            kept = wasm[section.begin : section.end] + kept
    return wasm[:end] + kept


def without_custom_sections(wasm: bytes, breathe: Callable[[], object] = lambda: None) -> bytes:
    """Return the module as the compiler gets it: without custom sections, except the names.

    The first `name` section stays, if it has at most `NAMES_LIMIT` bytes, with mangled names of
    functions behind a `VEIL`.

    Args:
        wasm: the module.
        breathe: called for every thousand names, so that a thread lets others run.
    """
    pieces: list[bytes | memoryview] = []
    at, named = 0, False
    view = memoryview(wasm)
    for section in find_custom_sections(wasm):
        if section.name == NAMES and not named:
            named = True
            if section.end - section.start <= NAMES_LIMIT:
                names = wasm[section.start : section.end]
                veiled = _veil_names(names, breathe)
                if veiled != names:
                    pieces += [
                        view[at : section.begin],
                        section_bytes(0, name_bytes(NAMES) + veiled),
                    ]
                    at = section.end
                continue
        pieces.append(view[at : section.begin])
        at = section.end
    return b"".join([*pieces, view[at:]]) if pieces else wasm


def name_module(wasm: bytes, name: str) -> bytes:
    """Return the module with `name` as its own name, in place of the one that it may have.

    Args:
        wasm: the module, as `without_custom_sections` returns it.
        name: the name, by which the frames of traps say whose they are.
    """
    named = section_bytes(_MODULE_NAME, name_bytes(name))
    begin = end = len(wasm)
    kept = b""
    for section in find_custom_sections(wasm):
        if section.name == NAMES:
            begin, end, kept = section.begin, section.end, wasm[section.start : section.end]
    at = 0
    while at < len(kept) and kept[at] == _MODULE_NAME:
        length, start = _number(kept, at + 1, len(kept))
        at = start + max(length, 0)
    return b"".join(
        (wasm[:begin], section_bytes(0, name_bytes(NAMES) + named + kept[at:]), wasm[end:])
    )


def _veil_names(names: bytes, breathe: Callable[[], object]) -> bytes:
    """Return the content of a section of names, up to its first damage, with names veiled."""
    pieces: list[bytes] = []
    at, size = 0, len(names)
    while at < size:
        part, (length, start) = names[at], _number(names, at + 1, size)
        at = start + length
        if length < 0 or at > size:
            break
        content = names[start:at]
        if part == _FUNCTION_NAMES:
            content = _veil_functions(content, breathe)
        pieces.append(section_bytes(part, content))
    return b"".join(pieces)


def _veil_functions(names: bytes, breathe: Callable[[], object]) -> bytes:
    pieces: list[bytes] = []
    size = len(names)
    announced, at = _number(names, 0, size)
    count = 0
    while count < min(announced, _NAMED_LIMIT):
        begin = at
        _, at = _number(names, begin, size)
        length, start = _number(names, at, size)
        if length < 0 or start + length > size:
            break
        index, at = names[begin:at], start + length
        name = names[start:at]
        if _MANGLED.match(name) is not None:
            name = VEIL.encode() + name
        pieces += [index, uleb(len(name)), name]
        count += 1
        if count % 1000 == 0:
            breathe()
    return uleb(count) + b"".join(pieces)


class DebugSections:
    """The `.debug_*` sections of a module, compressed."""

    __slots__ = ("_sections",)

    def __init__(self, sections: dict[str, tuple[int, bytes]]) -> None:
        self._sections = sections  # {name: (bytes as given, compressed)}

    @property
    def size(self) -> int:
        """Bytes that they take as they are kept."""
        return sum(len(data) for _, data in self._sections.values())

    @property
    def sizes(self) -> dict[str, int]:
        """``{name: bytes}`` of the sections as they were given; the names begin with a dot."""
        return {name: size for name, (size, _) in self._sections.items()}

    def read(self, name: str) -> bytes:
        """Return the content of a section, decompressed; empty if there is no such section.

        Decompressing takes some 15 ms a MiB, without the GIL: for threads.
        """
        size, data = self._sections.get(name, (0, b""))
        return zlib.decompress(data, bufsize=size) if size else b""


def keep_debug_sections(
    wasm: bytes, breathe: Callable[[], object] = lambda: None
) -> DebugSections | None:
    """Return the debug sections of a module; None if it has none, or more than `DEBUG_LIMIT`.

    Compressing takes some 40 ms a MiB, without the GIL: for threads. Of several sections with one
    name, the first is kept.

    Args:
        wasm: the module.
        breathe: called after each section, so that a thread lets others run.
    """
    kept: dict[str, tuple[int, bytes]] = {}
    if DEBUG.encode() not in wasm:
        return None
    view, size = memoryview(wasm), 0
    for section in find_custom_sections(wasm):
        name = section.name
        if not name.startswith(DEBUG) or name in kept or len(name) > _NAME_LIMIT:
            continue
        data = zlib.compress(view[section.start : section.end], _LEVEL)
        breathe()
        size += len(data)
        if size > DEBUG_LIMIT:
            return None
        kept[name] = section.end - section.start, data
    return DebugSections(kept) if kept else None
