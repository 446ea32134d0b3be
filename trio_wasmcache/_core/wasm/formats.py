"""Recognises what bytes are that are no core module: components, other formats, and damage.

It looks at the first kilobyte only, decides by what stands there, and never fails.
"""

from __future__ import annotations

from typing import Final

from ..text import printable
from .types import HEADER

MAGIC: Final = HEADER[:4]
# The layer is in the last two bytes of the header: 0 for modules, 1 for components.
COMPONENT_LAYER: Final = b"\1\0"
# Byte 7 of an ELF file names its system. wasmtime has a number of its own for what it compiles.
ELF: Final = b"\x7fELF"
ELF_OF_WASMTIME: Final = 200
LOOKED_AT: Final = 1024
"""Bytes at the beginning that are looked at."""

COMPONENT: Final = "a component, where only a core module can be"

# (how the bytes begin, what they are)
_BEGINNINGS: Final = (
    (b"\x1f\x8b", "gzip data: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data: unpack it first"),
    (b"\xfd7zXZ\0", "xz data: unpack it first"),
    (b"BZh", "bzip2 data: unpack it first"),
    (b"PK\3\4", "a ZIP archive: unpack it first"),
    (b"version https://git-lfs.", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"!<arch>\n", "a static library: link it to a module first"),
    (b"BC\xc0\xde", "LLVM bitcode: link it to a module first"),
    (b"\xde\xc0\x17\x0b", "LLVM bitcode: link it to a module first"),
    (b"wasmer", "a compiled artifact of Wasmer: register the module that it was made from"),
    (b"MZ", "a program for Windows: build it for wasm"),
    (b"\xcf\xfa\xed\xfe", "a program for macOS: build it for wasm"),
    (b"\xca\xfe\xba\xbe", "a program for macOS or a class of Java: build it for wasm"),
    (b"#!", "a script"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF document"),
)


def foreign(data: bytes) -> str | None:
    """Return what bytes are that have no header of a core module, or None if they have one.

    The result is a noun, such as ``"gzip data: unpack it first"``.
    """
    if data[:8] == HEADER:
        return None
    if is_component(data):
        return COMPONENT
    return known_format(data) or f"unknown data that begins with {data[:8].hex(' ')}"


def known_format(data: bytes) -> str | None:
    """Return what bytes are that are no WebAssembly; None for that, and for what is unknown."""
    head = data[:LOOKED_AT]
    if head[:8] == HEADER or is_component(head):
        return None
    if head[:4] == MAGIC:
        return _other_version(head)
    if head[:4] == ELF:
        if head[7:8] == bytes([ELF_OF_WASMTIME]):
            return (
                "a compiled artifact of wasmtime, which only the engine that made it may load: "
                "register the module that it was made from"
            )
        return "an ELF file, a program or library for one machine: build it for wasm"
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if not head:
        return "nothing: there are no bytes"
    if MAGIC.startswith(head):
        return f"a module that was cut after {len(head)} bytes"
    return _text(head)


def is_component(data: bytes) -> bool:
    """Return whether the bytes have the header of a component, of any version."""
    return data[:4] == MAGIC and data[6:8] == COMPONENT_LAYER


def _other_version(head: bytes) -> str:
    if len(head) < len(HEADER):
        return f"a module that was cut after {len(head)} bytes"
    return f"WebAssembly of version {int.from_bytes(head[4:8], 'little')}, and not 1"


def _text(head: bytes) -> str | None:
    """Return what kind of text the bytes begin, or None if they are none."""
    if any(byte < 0x20 and byte not in b"\t\n\r\f" for byte in head):
        return None
    try:
        # A character may be cut at the end.
        text = head.decode("utf-8-sig", "strict" if len(head) < LOOKED_AT else "ignore")
    except UnicodeDecodeError:
        return None
    begin = text.lstrip().lower()
    if begin.startswith(("(", ";;")):
        return "WebAssembly text: give it as a str"
    if begin.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page, maybe the error page of a server"
    if begin.startswith("<"):
        return "XML, maybe the error message of a server"
    if begin.startswith(("{", "[")):
        return "JSON, maybe the error message of a server"
    line = next(iter(text.strip().splitlines()), "")
    return f"text that begins with {printable(line, 40)!r}"
