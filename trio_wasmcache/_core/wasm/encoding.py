"""Encodes the parts that all of the binary format is made of: numbers, names, vectors, sections."""

from __future__ import annotations

from collections.abc import Sequence


def uleb(number: int) -> bytes:
    """Return the number as unsigned LEB128 of minimal length."""
    if number < 0:
        raise ValueError(f"an unsigned number cannot be {number}")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def sleb(number: int) -> bytes:
    """Return the number as signed LEB128 of minimal length."""
    out = bytearray()
    while not -0x40 <= number < 0x40:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number & 0x7F)
    return bytes(out)


def name_bytes(text: str) -> bytes:
    """Return the text as UTF-8, after its length."""
    encoded = text.encode()
    return uleb(len(encoded)) + encoded


def vector(items: Sequence[bytes]) -> bytes:
    """Return the items, after their number."""
    return uleb(len(items)) + b"".join(items)


def section(id: int, payload: bytes) -> bytes:
    """Return the payload, after its id and size."""
    return bytes([id]) + uleb(len(payload)) + payload
