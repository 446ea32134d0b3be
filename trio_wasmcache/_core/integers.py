"""Integers of wasm, whose bits are the same in their signed and unsigned forms."""

from __future__ import annotations


def signed(number: int, bits: int = 32) -> int:
    """Return the signed integer with the bits of `number`; a negative one is returned as it is."""
    return number - (1 << bits) if number >> (bits - 1) > 0 else number
