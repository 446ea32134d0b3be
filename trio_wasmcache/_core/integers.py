"""Integers of wasm, whose bits are the same whether they are read as signed or not."""

from __future__ import annotations


def signed(number: int, bits: int = 32) -> int:
    """Return the signed integer with the bits of an unsigned one; a negative one stays."""
    return number - (1 << bits) if number >> (bits - 1) > 0 else number
