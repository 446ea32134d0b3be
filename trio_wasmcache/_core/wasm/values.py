"""Converts numbers of Python to wasm values: plain ints and floats that fit their types."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from ..integers import signed
from ..text import shown
from .types import FuncType

_BITS = {"i32": 32, "i64": 64}
# Halfway between the largest f32 and the next number that it would have: from here on, it rounds to
# infinity.
_F32_END = float.fromhex("0x1.ffffffp+127")


def wasm_values(what: str, function: FuncType, values: Sequence[object]) -> tuple[int | float, ...]:
    """Return the arguments of a wasm function, integers as signed ones.

    Args:
        what: the function's name for messages.
        function: its type, whose values can cross.
        values: ints or floats, also of NumPy; integers signed or unsigned.

    Raises:
        TypeError: a value is no number, or no integer, or there are too few or too many.
        OverflowError: a value is out of the range of its type.
    """
    params = function.params
    if len(values) != len(params):
        raise TypeError(f"{what} takes {len(params)} wasm values, got {len(values)}")
    return tuple(
        _integer(what, number, name, value) if name in _BITS else _real(what, number, name, value)
        for number, (name, value) in enumerate(zip(params, values, strict=True), 1)
    )


def _integer(what: str, number: int, name: str, value: object) -> int:
    bits = _BITS[name]
    try:
        # A class of the value's own may compare as it likes: the number itself is what counts.
        whole = int.__pos__(operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{what}: argument {number} is {name} and takes an int, got {shown(value)}"
        ) from None
    if not -(1 << bits - 1) <= whole < 1 << bits:
        raise OverflowError(f"{what}: argument {number} is {name}, got {shown(value)}")
    return signed(whole, bits)


def _real(what: str, number: int, name: str, value: object) -> float:
    if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
        raise TypeError(
            f"{what}: argument {number} is {name} and takes a float, got {shown(value)}"
        )
    try:
        real = float(value)
    except OverflowError:
        real = math.nan
        fits = False
    else:
        fits = name == "f64" or abs(real) < _F32_END or not math.isfinite(real)
    if not fits:
        raise OverflowError(f"{what}: argument {number} is {name}, got {shown(value)}")
    return real
