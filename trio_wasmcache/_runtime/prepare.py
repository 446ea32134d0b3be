"""`Prepare`: a call that is made once, when a function is registered; and what it comes to."""

from __future__ import annotations

import ast
import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, final

import attrs
from attrs import evolve, field, frozen

from .._core.keys import normalise_type, normalise_types
from .._core.text import shown
from .._public import public

if TYPE_CHECKING:
    from .._core.wasm.preparation import FrozenState

# Modules of the standard library whose objects are told apart by what `repr` says of them.
_PLAIN_MODULES: Final = ("datetime", "decimal", "ipaddress", "uuid")


def _export(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"Prepare: export must be the name of an export, a str, got {shown(name)}")
    return str.__str__(name)


def _values(values: Iterable[object]) -> tuple[object, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (tuple, list)):
        raise TypeError(
            f"Prepare: values must be a tuple with a value for each of args, such as (1, 2), got "
            f"{shown(values)}"
        )
    return tuple(values)


def _args(names: Iterable[str]) -> tuple[str, ...]:
    return normalise_types(names, "Prepare: args")


def _returns(names: str | Iterable[str] | None) -> str | tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str):
        return normalise_type(names)
    return normalise_types(names, "Prepare: returns")


@public
@final
@frozen
class Prepare:
    """A call that `InstanceCache.register` makes once, and with which every instance begins.

    .. code-block::

        prepare = (
            Prepare("init"),
            Prepare("load_rules", args=("str",), values=(rules,)),
        )
        await cache.register("price", wasm, args=("i64",), returns="i64", prepare=prepare)

    The calls are made in order, in one instance, after its start. Then the contents of its
    memories, mutable globals and tables are written into the module, which is compiled. New
    instances begin with them; there is no start function, and `_initialize` is not called again.
    The result of a call is not kept.

    Raises:
        TypeError: a parameter has a bad type.
    """

    export: str = field(converter=_export)
    """Name of the exported function."""
    values: tuple[object, ...] = field(default=(), converter=_values, repr=shown)
    """An argument for each of `args`."""
    args: tuple[str, ...] = field(default=(), converter=_args)
    """Types of the arguments, of the ABI of the function that is registered."""
    returns: str | tuple[str, ...] | None = field(default=None, converter=_returns)
    """Type of the result; several types if the call returns a tuple; None: it returns nothing."""
    allow_frozen_random: bool = field(default=False)
    """Whether the call may draw random bytes or read a clock, if no ``Wasi(random=, clock=)`` is
    given. Every instance then has the same ones, such as the keys of hash tables, which an attacker
    can learn."""

    @allow_frozen_random.validator
    def _check_frozen(self, _: object, value: object) -> None:
        if not isinstance(value, bool):
            raise TypeError(f"Prepare: allow_frozen_random must be a bool, got {shown(value)}")

    @property
    def results(self) -> tuple[str, ...]:
        """Types of the results."""
        return (self.returns,) if isinstance(self.returns, str) else self.returns or ()

    def __str__(self) -> str:
        return f"{self.export}({', '.join(map(shown, self.values))})"


@final
@frozen(kw_only=True)
class Prepared:
    """What new instances of a prepared function begin with, and how that was found out."""

    states: Mapping[str, FrozenState] = field(repr=False)
    """{part of the graph: state}."""
    abi_state: Mapping[str, Any] = field(factory=dict)
    """What the ABI knows about the instance."""
    calls: int
    """Number of calls that were made."""
    fuel: int
    """Units of fuel that they burnt."""
    frozen: tuple[str, ...] = ()
    """What the guest got that would not be the same each time, such as ``"random bytes"``."""
    hosted: bool = False
    """Whether it called host functions of the application."""
    seconds: float = 0.0
    """Time that it took (seconds)."""
    stored: bool = False
    """Whether it was found in `cache_dir`, and nothing was called."""

    size: int
    """Bytes of memory that are written into the modules."""
    pages: int
    """Pages of the memories that new instances begin with."""
    globals: int
    """Number of the globals that were written."""
    elements: int
    """Number of the elements of tables that were written."""

    @staticmethod
    def of(states: Mapping[str, FrozenState], **facts: Any) -> Prepared:
        """Return what comes of states, and of further facts about them."""
        all_states = states.values()
        return Prepared(
            states=states,
            size=sum(state.size for state in all_states),
            pages=sum(state.pages for state in all_states),
            globals=sum(len(state.globals) for state in all_states),
            elements=sum(state.elements for state in all_states),
            **facts,
        )

    def bare(self) -> Prepared:
        """Return it without the states, which may be megabytes, once they are written."""
        return evolve(self, states={}, abi_state={})

    def pack(self) -> bytes | None:
        """Return it as bytes; None if it is not to be kept on disk.

        It is not if host functions of the application took part, or if what the ABI knows can't be
        written as text.
        """
        text = repr(dict(self.abi_state))
        try:
            plain = ast.literal_eval(text) == self.abi_state
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            plain = False
        if self.hosted or not plain:
            return None
        facts = {"abi": text, "calls": self.calls, "fuel": self.fuel, "frozen": self.frozen}
        from .._core.wasm.preparation import pack_states

        return pack_states(self.states, facts)

    @staticmethod
    def unpack(packed: bytes | memoryview) -> Prepared:
        """Return what `pack` was called on.

        Raises:
            ValueError: it is something else.
        """
        from .._core.wasm.preparation import unpack_states

        states, facts = unpack_states(packed)
        try:
            return Prepared.of(
                states,
                abi_state=ast.literal_eval(facts["abi"]),
                calls=facts["calls"],
                fuel=facts["fuel"],
                frozen=tuple(facts["frozen"]),
                stored=True,
            )
        except (KeyError, TypeError, SyntaxError) as error:
            raise ValueError(f"no preparation: {error!r:.100}") from None

    def __str__(self) -> str:
        drawn = f", and {' and '.join(self.frozen)}" if self.frozen else ""
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        return (
            f"new instances begin as {calls} of prepare left one, with {self.pages} pages of "
            f"memory, {self.globals} globals and {self.elements} elements of tables frozen{drawn}"
        )


class UnknownValueError(Exception):
    """A value is of a type of which it is not known when two are the same."""


def digest_of(*values: object) -> bytes:
    """Return a digest of values, which is the same for the same values in any process.

    Raises:
        UnknownValueError: a value is of another type than those of Python, and than attrs classes
            of this library.
    """
    digest = hashlib.sha256()
    try:
        for value in values:
            _feed(digest.update, value)
    except RecursionError:
        raise UnknownValueError("nested too deep") from None
    return digest.digest()


def _feed(put: Callable[[bytes], object], value: Any) -> None:
    kind = type(value)
    if kind in (bytes, bytearray, memoryview):
        data = bytes(value)
        put(b"b%d:" % len(data))
        put(data)
    elif kind is str:
        data = value.encode("utf-8", "surrogatepass")
        put(b"s%d:" % len(data))
        put(data)
    elif value is None or kind is bool or kind is int:
        put(f"{value!r}".encode() + b";")
    elif kind is float:
        put(b"f" + struct.pack("<d", value))
    elif kind in (tuple, list):
        put(b"%s%d:" % (kind.__name__.encode(), len(value)))
        for item in value:
            _feed(put, item)
    elif kind is dict:
        put(b"d%d:" % len(value))
        for key, item in value.items():
            _feed(put, key)
            _feed(put, item)
    elif kind in (set, frozenset):
        put(b"%s:" % kind.__name__.encode())
        _feed(put, sorted(digest_of(item) for item in value))
    elif kind.__module__ in _PLAIN_MODULES:
        _feed(put, f"{kind.__qualname__} {value!r}")
    elif attrs.has(kind) and kind.__module__.partition(".")[0] == "trio_wasmcache":
        _feed(put, kind.__qualname__)
        for one in attrs.fields(kind):
            if one.init:
                _feed(put, getattr(value, one.name))
    else:
        raise UnknownValueError(f"{kind.__module__}.{kind.__qualname__}")
