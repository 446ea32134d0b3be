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

import math
import operator
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from attrs import frozen

from .._core.errors import AbiError, SignatureError
from .._core.integers import signed
from .._core.text import shown as shown
from .._core.wasm.admission import no_crossing
from .._core.wasm.reader import OTHER_TYPES, FuncType
from .base import Exports, Guest, Invoke
from .post import find_post, post_values

T = TypeVar("T")


@frozen
class PlainType:
    """One type of number, and what it is in wasm."""

    name: str
    wasm: str
    low: int = 0
    high: int = 0
    native: bool = False
    """Wasm's own check of values is all it takes."""
    truth: bool = False
    """Only True and False go in."""
    cut: bool = False
    """Of a result that is too large only the low bits count; otherwise it breaks the ABI."""

    @property
    def real(self) -> bool:
        """Whether it is a floating-point number."""
        return self.wasm in ("f32", "f64")


def _integers() -> list[PlainType]:
    types = []
    for bits in (8, 16, 32, 64):
        wasm = "i64" if bits == 64 else "i32"
        types.append(
            PlainType(f"i{bits}", wasm, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, bits >= 32)
        )
        types.append(PlainType(f"u{bits}", wasm, 0, 2**bits - 1))
    return types


def cell_name(kind: PlainType, *, cut: bool = False) -> str:
    """The cell in which values of a type lie in columns; with `cut`, results that may be cut."""
    if kind.real:
        return kind.wasm
    prefix = "cut " if cut and kind.cut else ""
    if kind.truth:
        return f"{prefix}bool"
    return f"{prefix}{'i' if kind.low else 'u'}{(kind.high - kind.low).bit_length()}"


TYPES = {
    kind.name: kind
    for kind in (
        *_integers(),
        PlainType("bool", "i32", 0, 1, truth=True),
        PlainType("f32", "f32", native=True),
        PlainType("f64", "f64", native=True),
    )
}


class Plain:
    """The plain ABI, as an `Abi`."""

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> PlainAbi:
        """It needs nothing of the module; that None can't cross, `called_on_null` can't change.

        A module may want to be told that a call is over; see `find_post`.
        """
        post = find_post(function, export, exports)
        return PlainAbi(function, args, returns, export=export, post=post)


class PlainAbi:
    """Values of one signature, lowered and lifted by the plain ABI: a `Crossing`.

    Args:
        what: names the function in messages.
        args: types that Python gives.
        returns: types that Python gets.
        host: it is a host function, whose results Python gives and whose arguments it gets.
        types: {type name: type}, for an ABI whose numbers have other names.
        post: an export to be called with the results of each call of `export`.

    Raises:
        SignatureError: a type name that is unknown, or that can't cross (v128, references).
    """

    counts_results = True  # its results are as many numbers as its signature says

    def __init__(
        self,
        what: str,
        args: Sequence[str],
        returns: Sequence[str],
        *,
        host: bool = False,
        types: Mapping[str, PlainType] = TYPES,
        export: str = "",
        post: str | None = None,
    ) -> None:
        self.what = what
        self.export = export
        self.post = post
        self.noun = "result" if host else "argument"
        self.got = f"{what} was called with" if host else f"{what} returned"
        self.args = tuple(find_type(what, name, types) for name in args)
        self.arity = len(self.args)
        self.steps: Callable[[Guest, tuple[Any, ...]], Generator[Invoke, Any, Any]] | None = (
            None if post is None else self._steps
        )
        self.returns = tuple(find_type(what, name, types) for name in returns)
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
            return wrong_count(self.what, [kind.name for kind in self.args], values)
        try:
            for number, (kind, value) in to_blame(self.args, values):
                lower_number(self, number, kind, value)
        except (TypeError, ValueError, OverflowError) as error:
            return error
        return TypeError(f"{self.what}: {shown(values)} can't be passed")

    def checked(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The wasm values for `values`, each checked; `lower` even where there is nothing to do."""
        return self._lower(values)

    def _lower(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(values) != len(self.args):
            raise self.explain(values)
        return tuple(
            lower_number(self, number, kind, value)
            for number, (kind, value) in enumerate(zip(self.args, values, strict=True), start=1)
        )

    def place(self, number: int) -> str:
        """How messages name a value that Python gave."""
        return f"{self.noun} {number} of {self.what}"

    def _steps(self, guest: Guest, values: tuple[Any, ...]) -> Generator[Invoke, Any, Any]:
        """Call the export, then tell the module that its results were taken."""
        assert self.post is not None
        result = yield Invoke(self.export, self.checked(values))
        lifted = result if self.lift is None else self.lift(result)
        yield Invoke(self.post, post_values(result, self.signature.results))
        return lifted

    def _lift(self, result: Any) -> Any:
        if len(self.returns) == 1:
            return lift_number(self.got, self.returns[0], result)
        return tuple(
            lift_number(self.got, kind, value)
            for kind, value in zip(self.returns, result, strict=True)
        )


class Places(Protocol):
    """Whoever can say which value it is that does not fit."""

    def place(self, number: int) -> str:
        """How messages name a value that Python gave."""


def find_type(what: str, name: str, types: Mapping[str, PlainType] = TYPES) -> PlainType:
    """The type of that name; `SignatureError` if there is none, or none that can cross."""
    try:
        return types[name]
    except KeyError:
        pass
    if name in OTHER_TYPES or name.startswith("(ref"):
        raise SignatureError(f"{what}: {no_crossing(name)}")
    raise SignatureError(f"{what}: unknown type {name!r}; there are {', '.join(types)}")


def wrong_count(what: str, names: Sequence[str], values: Sequence[Any]) -> TypeError:
    """What to raise for too many arguments, or too few."""
    return TypeError(f"{what} takes {len(names)} arguments ({', '.join(names)}), got {len(values)}")


def to_blame(kinds: Sequence[T], values: tuple[Any, ...]) -> list[tuple[int, tuple[T, Any]]]:
    """Arguments with their numbers, None last: beside another that does not fit, it is a null."""
    numbered = enumerate(zip(kinds, values, strict=True), start=1)
    return sorted(numbered, key=lambda one: one[1][1] is None)


def lower_number(abi: Places, number: int, kind: PlainType, value: Any) -> Any:
    """The wasm number for `value`; argument `number` is at fault if there is none."""
    try:
        return to_number(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{abi.place(number)}: {error}") from None


def to_number(kind: PlainType, value: Any) -> Any:
    """The wasm number for `value`.

    Raises:
        TypeError: it is no number of that kind.
        OverflowError: it is out of the type's range.
    """
    if kind.real:
        return _to_real(kind, value)
    try:
        whole = operator.index(truth(value) if kind.truth else value)
    except Exception as problem:  # of a value's own, anything may come
        raise _misfit(kind, value, problem) from None
    if not kind.low <= whole <= kind.high:
        raise OverflowError(
            f"{shown(value)} is out of the range of {kind.name}, {kind.low} to {kind.high}"
        )
    return signed(whole, 64 if kind.wasm == "i64" else 32)


def exact_values(signature: FuncType, values: Iterable[Any]) -> tuple[int | float, ...]:
    """The wasm values as a tuple of plain ints and floats, which run no code when they are used.

    Raises:
        TypeError, ValueError, OverflowError: they do not fit the parameters of the signature.
    """
    given, params = tuple(values), signature.params
    if len(given) != len(params):
        raise ValueError(f"{len(given)} values do not fit the parameters {params}")
    exact = []
    for name, value in zip(params, given, strict=True):
        kind = TYPES.get(name) or find_type("a wasm function", name)
        exact.append(to_number(kind, value))
    return tuple(exact)


def truth(value: Any) -> bool:
    """The bool that it is: Python's or NumPy's, whose only face without NumPy is a buffer.

    Raises:
        TypeError: it is none.
    """
    if isinstance(value, bool):
        return value
    view = memoryview(value)
    if view.ndim or view.format != "?":
        raise TypeError("not a bool")
    return bool(view[()])


def truths(values: Sequence[Any]) -> Sequence[bool]:
    """The bools that they are; `TypeError` if one is none. Python's own stay as they are."""
    if {bool}.issuperset(map(type, values)):
        return values
    return [truth(value) for value in values]


def _to_real(kind: PlainType, value: Any) -> float:
    try:
        if not isinstance(value, (float, int)) and not hasattr(value, "__float__"):
            raise TypeError("not a number")  # such as text, of which `float` would make one
        real = float(value)
        fits = kind.wasm == "f64" or abs(real) < F32_END or not math.isfinite(real)
    except OverflowError:
        fits = False
    except Exception as problem:
        raise _misfit(kind, value, problem) from None
    if not fits:
        raise OverflowError(f"{shown(value)} is too large for {kind.name}")
    return real


def _misfit(kind: PlainType, value: Any, problem: Exception) -> TypeError:
    takes = "True or False" if kind.truth else "a float" if kind.real else "an int"
    raised = "" if isinstance(problem, TypeError) else f", which raised {shown(problem)}"
    return TypeError(f"{kind.name} takes {takes}, got {shown(value)}{raised}")


# Halfway to what the next f32 would be: only what is below rounds to the largest one.
F32_END = (2 - 2**-24) * 2.0**127


def lift_number(got: str, kind: PlainType, value: Any) -> Any:
    """The Python number for a wasm one; `AbiError` if the type has none."""
    if kind.native:
        return value
    if kind.cut:
        if kind.truth:
            return value != 0
        return (value - kind.low) % (kind.high - kind.low + 1) + kind.low
    if kind.low == 0 and value < 0:
        value += 1 << (64 if kind.wasm == "i64" else 32)
    if not kind.low <= value <= kind.high:
        raise AbiError(
            f"{got} {value!r}, out of the range of {kind.name}, {kind.low} to {kind.high}"
        )
    return bool(value) if kind.truth else value
