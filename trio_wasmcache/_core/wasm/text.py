"""Expressions of WebAssembly text of which memory drivers are made."""

from __future__ import annotations

from typing import Final

from .driver import Cell

# Suffixes of loads and stores: {size of the cell: suffix}.
_NARROW: Final = {1: "8", 2: "16"}


def load(cell: Cell) -> str:
    """Return the instruction that loads a cell."""
    sign = "s" if cell.name in ("i8", "i16") else "u"
    return f"{cell.wasm}.load" + (f"{_NARROW[cell.size]}_{sign}" if cell.size < 4 else "")


def store(cell: Cell) -> str:
    """Return the instruction that stores a value in a cell."""
    return f"{cell.wasm}.store" + _NARROW.get(cell.size, "")


def misfits(cell: Cell, value: str) -> str:
    """Return an expression that is not 0 if, and only if, the value is out of the cell's range."""
    if cell.name in ("i8", "i16"):
        return f"(i32.ne (i32.extend{8 * cell.size}_s {value}) {value})"
    return f"(i32.shr_u {value} (i32.const {1 if cell.truth else 8 * cell.size}))"


def i32(number: int) -> str:
    """Return a constant."""
    return f"(i32.const {number})"


def get(name: str) -> str:
    """Return the value of a local."""
    return f"(local.get ${name})"


def put(name: str, value: str) -> str:
    """Return an instruction that sets a local."""
    return f"(local.set ${name} {value})"


def read(at: int, where: str = "(i32.const 0)", what: str = "i32.load") -> str:
    """Return an expression for the value at an address of the scratch."""
    return f"({what} $scratch offset={at} {where})"


def write(at: int, value: str, where: str = "(i32.const 0)", what: str = "i32.store") -> str:
    """Return an instruction that stores a value at an address of the scratch."""
    return f"({what} $scratch offset={at} {where} {value})"
