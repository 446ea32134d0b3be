"""The plain ABI: wasm's own numbers, and logical types that are checked against their range.

| type | Python | wasm |
|---|---|---|
| i32, i64 | int, signed | the same |
| f32, f64 | float or int | the same |
| bool | bool | i32, 0 or 1 |
| i8, i16, u8, u16, u32 | int in range | i32 |
| u64 | int in range | i64 |
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen

from .._core.errors import AbiError, SignatureError
from .._core.wasm import FuncType


@frozen
class PlainType:
    """One type: what it is in wasm, its range, and whether wasm's own check is all it takes."""

    name: str
    wasm: str
    low: int = 0
    high: int = 0
    native: bool = False


def _integers() -> list[PlainType]:
    types = []
    for bits in (8, 16, 32, 64):
        wasm = "i64" if bits == 64 else "i32"
        types.append(
            PlainType(f"i{bits}", wasm, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, bits >= 32)
        )
        types.append(PlainType(f"u{bits}", wasm, 0, 2**bits - 1))
    return types


TYPES = {
    kind.name: kind
    for kind in (
        *_integers(),
        PlainType("bool", "i32", 0, 1),
        PlainType("f32", "f32", native=True),
        PlainType("f64", "f64", native=True),
    )
}
REFUSED = {"v128", "funcref", "externref"}


class PlainAbi:
    """Values of one signature, lowered and lifted by the plain ABI.

    Raises:
        SignatureError: a type name that is unknown, or that can't cross (v128, references).
    """

    def __init__(self, what: str, args: Sequence[str], returns: Sequence[str]) -> None:
        self.what = what
        self.args = tuple(_type(what, name) for name in args)
        self.returns = tuple(_type(what, name) for name in returns)
        self.signature = FuncType(
            tuple(kind.wasm for kind in self.args), tuple(kind.wasm for kind in self.returns)
        )
        # None where wasm's own types are all there is: then nothing is left to do on a call.
        self.lower: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = (
            None if all(kind.native for kind in self.args) else self._lower
        )
        self.lift: Callable[[Any], Any] | None = (
            None if all(kind.native for kind in self.returns) else self._lift
        )

    def explain(self, values: tuple[Any, ...]) -> Exception:
        """Why these values can't be the arguments: the error to raise."""
        if len(values) != len(self.args):
            declared = ", ".join(kind.name for kind in self.args)
            return TypeError(
                f"{self.what} takes {len(self.args)} arguments ({declared}), got {len(values)}"
            )
        try:
            self._lower(values)
        except (TypeError, ValueError, OverflowError) as error:
            return error
        return TypeError(f"{self.what}: {values!r} can't be passed")

    def checked(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The wasm values for `values`, each checked; `lower` even where there is nothing to do."""
        return self._lower(values)

    def _lower(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(values) != len(self.args):
            raise self.explain(values)
        return tuple(
            _lower(self.what, number, kind, value)
            for number, (kind, value) in enumerate(zip(self.args, values, strict=True), start=1)
        )

    def _lift(self, result: Any) -> Any:
        if len(self.returns) == 1:
            return _lift(self.what, self.returns[0], result)
        return tuple(
            _lift(self.what, kind, value) for kind, value in zip(self.returns, result, strict=True)
        )


def _type(what: str, name: str) -> PlainType:
    try:
        return TYPES[name]
    except KeyError:
        pass
    if name in REFUSED:
        raise SignatureError(f"{what}: values of type {name!r} can't cross between Python and wasm")
    raise SignatureError(f"{what}: unknown type {name!r}; there are {', '.join(TYPES)}")


def _lower(what: str, number: int, kind: PlainType, value: Any) -> Any:
    place = f"argument {number} of {what}"
    if kind.wasm in ("f32", "f64"):
        if not isinstance(value, (float, int)) and not hasattr(value, "__float__"):
            raise TypeError(f"{place}: {kind.name} takes a float, got {value!r}")
        try:
            number_value = float(value)
        except OverflowError:
            raise OverflowError(f"{place}: {value!r} is too large for {kind.name}") from None
        except (TypeError, ValueError):
            raise TypeError(f"{place}: {kind.name} takes a float, got {value!r}") from None
        if kind.name == "f32" and abs(number_value) > F32_MAX and abs(number_value) != float("inf"):
            raise OverflowError(f"{place}: {value!r} is too large for f32")
        return number_value
    if kind.name == "bool" and not isinstance(value, bool):
        raise TypeError(f"{place}: bool takes True or False, got {value!r}")
    try:
        whole = operator.index(value)
    except TypeError:
        raise TypeError(f"{place}: {kind.name} takes an int, got {value!r}") from None
    if not kind.low <= whole <= kind.high:
        raise OverflowError(
            f"{place}: {value!r} is out of the range of {kind.name}, {kind.low} to {kind.high}"
        )
    return _signed(whole, kind)


# Halfway to what the next f32 would be: what is below rounds to the largest one.
F32_MAX = (2 - 2**-24) * 2.0**127


def _signed(whole: int, kind: PlainType) -> int:
    bits = 64 if kind.wasm == "i64" else 32
    return whole - (1 << bits) if whole >> (bits - 1) == 1 else whole


def _lift(what: str, kind: PlainType, value: Any) -> Any:
    if kind.native:
        return value
    if kind.low == 0 and value < 0:
        value += 1 << (64 if kind.wasm == "i64" else 32)
    if not kind.low <= value <= kind.high:
        raise AbiError(
            f"{what} returned {value!r}, out of the range of {kind.name}, {kind.low} to {kind.high}"
        )
    return bool(value) if kind.name == "bool" else value
