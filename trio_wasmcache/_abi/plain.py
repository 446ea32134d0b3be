"""The plain ABI: wasm's own numbers, and logical types whose range is checked.

| type | Python | wasm |
|---|---|---|
| i32, i64 | int, signed | the same |
| f32, f64 | float or int | the same |
| bool | bool | i32, 0 or 1 |
| i8, i16, u8, u16, u32 | int in range | i32 |
| u64 | int in range | i64 |
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from attrs import frozen

from .._core.errors import AbiError, SignatureError
from .._core.integers import signed
from .._core.text import listed, shown as shown
from .._core.wasm.admission import no_crossing
from .._core.wasm.reader import OTHER_TYPES, FuncType
from .base import Exports, Guest, Invoke, Steps, Value
from .post import find_post, post_values
from .suggestions import suggest

T = TypeVar("T")


@frozen
class PlainType:
    """One type of number, and its wasm type."""

    name: str
    wasm: str
    low: int = 0
    high: int = 0
    native: bool = False
    """Whether wasm's own check of values suffices."""
    truth: bool = False
    """Whether only True and False are accepted."""
    cut: bool = False
    """Whether a result out of range is cut to its low bits; if not, it breaks the ABI."""

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
    """Return the name of a type's cell in columns; with `cut`, for results that may be cut."""
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
        called_on_null: bool,  # noqa: ARG002 -- None can't cross, with or without it
    ) -> PlainAbi:
        """Return the binding for one function; see `Abi.bind`.

        The module needs no exports; it may have one to call after each call, see `find_post`.
        """
        post = find_post(function, export, exports)
        return PlainAbi(function, args, returns, export=export, post=post)


class PlainAbi:
    """Values of one signature, lowered and lifted by the plain ABI: a `Binding`.

    Args:
        what: the function's name for messages.
        args: types of values from Python.
        returns: types of values for Python.
        host: whether it is a host function, whose results come from Python.
        types: {type name: type}, for an ABI whose numbers have other names.
        export: the export of the guest; used only with `post`.
        post: an export to call with the results of each call of `export`.

    Raises:
        SignatureError: a type name is unknown, or its values can't cross (v128, references).
    """

    counts_results = True  # the results are as many numbers as the signature has

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
        self.noun: str = "result" if host else "argument"
        self.got: str = f"{what} was called with" if host else f"{what} returned"
        self.args: tuple[PlainType, ...] = tuple(
            find_type(what, name, types, host=host) for name in args
        )
        self.arity: int = len(self.args)
        self.steps: Callable[[Guest, tuple[object, ...]], Steps] | None = (
            None if post is None else functools.partial(self._steps, post)
        )
        self.returns: tuple[PlainType, ...] = tuple(
            find_type(what, name, types, host=host) for name in returns
        )
        self.signature: FuncType = FuncType(
            tuple(kind.wasm for kind in self.args), tuple(kind.wasm for kind in self.returns)
        )
        # None if there are only wasm's own types: then a call needs no conversion.
        self.lower: Callable[[tuple[object, ...]], tuple[object, ...]] | None = (
            None if all(kind.native for kind in self.args) else self._lower
        )
        self.lift: Callable[[Value], Value] | None = (
            None if all(kind.native for kind in self.returns) else self._lift
        )

    def explain(self, values: tuple[object, ...]) -> Exception:
        """Return the error to raise for arguments that do not fit."""
        return self.misfit(values) or TypeError(f"{self.what}: {shown(values)} can't be passed")

    def misfit(self, values: tuple[object, ...]) -> Exception | None:
        """Return the error for arguments that do not fit; None if they do."""
        names = [kind.name for kind in self.args]
        return find_misfit(
            self.what, names, self.args, values, functools.partial(lower_number, self)
        )

    def checked(self, values: tuple[object, ...]) -> tuple[object, ...]:
        """Return the wasm values for `values`, each checked, also where `lower` is None."""
        return self._lower(values)

    def _lower(self, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(values) != len(self.args):
            raise self.explain(values)
        return tuple(
            lower_number(self, number, kind, value)
            for number, (kind, value) in enumerate(zip(self.args, values, strict=True), start=1)
        )

    def place(self, number: int) -> str:
        """Return the name of a value from Python for messages."""
        return f"{self.noun} {number} of {self.what}"

    def _steps(
        self,
        post: str,
        guest: Guest,  # noqa: ARG002 -- other ABIs use its memory
        values: tuple[object, ...],
    ) -> Steps:
        """Call the export, then the module's post-return function."""
        result = yield Invoke(self.export, self.checked(values))
        lifted = result if self.lift is None else self.lift(result)
        yield Invoke(post, post_values(result, self.signature.results))
        return lifted

    def _lift(self, result: Value) -> Value:
        if len(self.returns) == 1:
            return lift_number(self.got, self.returns[0], result)
        return tuple(
            lift_number(self.got, kind, value)
            for kind, value in zip(self.returns, result, strict=True)
        )


class Places(Protocol):
    """An object that can name the value that does not fit."""

    def place(self, number: int) -> str:
        """Return the name of a value from Python for messages."""


def find_type(
    what: str, name: str, types: Mapping[str, PlainType] = TYPES, *, host: bool = False
) -> PlainType:
    """Return the type of that name; raise `SignatureError` if it is unknown, or can't cross."""
    try:
        return types[name]
    except KeyError:
        pass
    if name in OTHER_TYPES or name.startswith("(ref"):
        raise SignatureError(f"{what}: {no_crossing(name)}")
    hint = suggest(name, buffers="str" in types, host=host)
    hint = f"; there are {', '.join(types)}" if hint is None else f": {hint}"
    raise SignatureError(f"{what}: unknown type {shown(name)}{hint}")


def fitting(declared: Sequence[PlainType], actual: Sequence[str]) -> tuple[str, ...]:
    """Return the types to declare for wasm types: those declared where they fit, else wasm's."""
    kinds = itertools.zip_longest(declared[: len(actual)], actual)
    return tuple(wasm if kind is None or kind.wasm != wasm else kind.name for kind, wasm in kinds)


def wrong_count(what: str, names: Sequence[str], values: Sequence[object]) -> TypeError:
    """Return the error for a wrong number of arguments."""
    noun = "argument" if len(names) == 1 else "arguments"
    return TypeError(f"{what} takes {len(names)} {noun} ({listed(names)}), got {len(values)}")


def find_misfit(
    what: str,
    names: Sequence[str],
    kinds: Sequence[T],
    values: tuple[object, ...],
    lower: Callable[[int, T, Value], object],
) -> Exception | None:
    """Return the error for arguments that do not fit; None if they do.

    Args:
        what: name of the function, for messages.
        names: names of the types.
        kinds: the types.
        values: the arguments.
        lower: converts an argument, by its number and type; it raises for one that does not fit.
    """
    if len(values) != len(kinds):
        return wrong_count(what, names, values)
    try:
        for number, (kind, value) in to_blame(kinds, values):
            lower(number, kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        return error
    return None


def reworded(error: Exception, message: str) -> Exception:
    """Return an error for a value that does not fit, of the kind of another, with this message.

    Not all of their subclasses can be made from one, as `UnicodeEncodeError`.
    """
    kinds: tuple[type[Exception], ...] = (TypeError, OverflowError, ValueError)
    return next((kind for kind in kinds if isinstance(error, kind)), TypeError)(message)


def to_blame(kinds: Sequence[T], values: tuple[object, ...]) -> list[tuple[int, tuple[T, Value]]]:
    """Return arguments with their numbers, None last: a None is blamed only if no other misfits."""
    numbered = enumerate(zip(kinds, values, strict=True), start=1)
    return sorted(numbered, key=lambda one: one[1][1] is None)


def lower_number(abi: Places, number: int, kind: PlainType, value: object) -> Value:
    """Return the wasm number for `value`; errors name argument `number`."""
    try:
        return to_number(kind, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{abi.place(number)}: {error}") from None


def to_number(kind: PlainType, value: Value) -> Value:
    """Return the wasm number for `value`.

    Raises:
        TypeError: it is no number of that kind.
        OverflowError: it is out of the type's range.
    """
    if kind.real:
        return _to_real(kind, value)
    try:
        whole = operator.index(truth(value) if kind.truth else value)
    except Exception as problem:  # a value's own method may raise anything
        raise _misfit(kind, value, problem) from None
    if not kind.low <= whole <= kind.high:
        raise OverflowError(
            f"{shown(value)} is out of the range of {kind.name}, {kind.low} to {kind.high}"
        )
    return signed(whole, 64 if kind.wasm == "i64" else 32)


def exact_values(signature: FuncType, values: Iterable[object]) -> tuple[int | float, ...]:
    """Return wasm values as a tuple of plain ints and floats, which run no code when used.

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


def truth(value: Value) -> bool:
    """Return the bool of a value: Python's or NumPy's, recognised without NumPy by its buffer.

    Raises:
        TypeError: it is no bool.
    """
    if isinstance(value, bool):
        return value
    view = memoryview(value)
    if view.ndim or view.format != "?":
        raise TypeError("not a bool")
    return bool(view[()])


def truths(values: Sequence[Value]) -> Sequence[bool]:
    """Return the bools of values, unchanged if all are Python's; raise `TypeError` if not bools."""
    if {bool}.issuperset(map(type, values)):
        return values
    return [truth(value) for value in values]


def _to_real(kind: PlainType, value: object) -> float:
    try:
        if not isinstance(value, (float, int)) and not hasattr(value, "__float__"):
            raise TypeError("not a number")  # such as text, which `float` would parse
        real = float(value)
        fits = kind.wasm == "f64" or abs(real) < F32_END or not math.isfinite(real)
    except OverflowError:
        fits = False
    except Exception as problem:
        raise _misfit(kind, value, problem) from None
    if not fits:
        raise OverflowError(f"{shown(value)} is too large for {kind.name}")
    return real


def _misfit(kind: PlainType, value: object, problem: Exception) -> TypeError:
    takes = "True or False" if kind.truth else "a float" if kind.real else "an int"
    raised = "" if isinstance(problem, TypeError) else f", which raised {shown(problem)}"
    if hasattr(type(value), "__await__"):
        raised = ": await it first"
    return TypeError(f"{kind.name} takes {takes}, got {shown(value)}{raised}")


# Halfway from the largest f32 to the next: only numbers below round to the largest.
F32_END = (2 - 2**-24) * 2.0**127


def lift_number(got: str, kind: PlainType, value: Value) -> Value:
    """Return the Python number for a wasm one; raise `AbiError` if the type has none."""
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
