"""The protocol of an ABI: how a call's values cross into a guest and back. Users can write one.

An ABI never calls the guest itself. `Binding.steps` is a generator that yields an `Invoke` for
each call of an export of the guest, receives its result, and may read and write the guest's memory
in between. It leaves long work to a thread, by yielding a `Convert`. So an ABI is plain synchronous
code that can be tested without wasm, while the lease, which drives the generator, does the slicing,
the cancelling and the charging of fuel.

Values from a guest are never trusted: addresses and sizes are checked where they are used, and
after an `AbiError` the instance is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from attrs import frozen

from .._core.tally import Tally
from .._core.wasm.reader import FuncType as FuncType
from .._public import public

Value: TypeAlias = Any
"""A Python value of the caller, or the wasm value that it is converted to or from.

Its type is the one declared to `register`, which type checkers do not know: conversions check it.
"""


@public
@frozen
class Invoke:
    """A request to call an export of the guest with wasm values; the answer is its result."""

    export: str
    values: tuple[object, ...]


@public
@frozen
class Convert:
    """A request to call a function in a thread, as it takes long; the answer is its result.

    It is for conversions: the function must not use the guest, which may be closed meanwhile, nor
    wait for the cache: at most `max_threads` conversions run at the same time. Its exception is
    raised where this was yielded.
    """

    function: Callable[..., Value]
    values: tuple[object, ...]


Step = Invoke | Convert
"""A request that an ABI may yield."""
Steps = Generator[Step, Value, Value]
"""A call in steps: yields requests, receives their answers, and returns the result."""


@public
class Memory(Protocol):
    """The guest's exported memory, while no call is under way."""

    @property
    def size(self) -> int:
        """Size of the memory (bytes)."""

    def read(self, at: int, n: int) -> bytes:
        """Return `n` bytes from address `at`; they cost fuel of the call.

        Raises:
            IndexError: The range is not inside the memory.
            ResultTooLargeError: The bytes would exceed `max_result_size`.
            FuelExhaustedError: The call has not enough fuel left.
        """

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` to address `at`; raise `IndexError`, and write nothing, if it is outside.

        Contiguous data is copied directly into the guest.
        """

    def grow(self, pages: int) -> int:
        """Add pages of 64 KiB; return the address of the first.

        Raises:
            MemoryLimitError: It would exceed `memory_limit`, or the module's own maximum.
        """


@public
class Guest(Protocol):
    """The part of an instance that an ABI may use between two calls."""

    @property
    def memory(self) -> Memory | None:
        """The exported memory, or None."""

    @property
    def state(self) -> dict[str, Value]:
        """Storage of the ABI for this instance; exists as long as its memory.

        For example, addresses of memory that the ABI allocated may be kept here between calls.
        """

    def global_value(self, name: str) -> int | float:
        """Return the value of an exported global; raise `LookupError` if there is none."""

    @property
    def tally(self) -> Tally:
        """The size of the result so far; call `guest.tally.add(size)` before making a large value.

        Reading the guest's memory is counted, and costs fuel, automatically.
        """


@public
@frozen
class Exports:
    """The exports of a module, from which an ABI can tell whether it can be used."""

    functions: Mapping[str, FuncType]
    globals: Mapping[str, str]
    """{name: value type}."""
    memories: Sequence[str]


@public
class Binding(Protocol):
    """An ABI, bound to the types of one function and the exports of its module."""

    @property
    def signature(self) -> FuncType:
        """The wasm type that the function's export must have."""

    @property
    def arity(self) -> int:
        """Number of arguments of a call."""

    @property
    def lower(self) -> Callable[[tuple[object, ...]], Sequence[object]] | None:
        """Converts Python values to wasm values, without using memory; None: they are the same."""

    @property
    def lift(self) -> Callable[[Value], Value] | None:
        """Converts a wasm result to a Python value, without using memory; None: it is the same."""

    @property
    def steps(self) -> Callable[[Guest, tuple[object, ...]], Steps] | None:
        """Performs one call and returns its result; None: use `lower`, the call, and `lift`.

        Values that do not fit raise `TypeError`, `ValueError` or `OverflowError` before the first
        `Invoke`, naming the argument's number, its type and the value.
        """

    def explain(self, values: tuple[object, ...]) -> Exception:
        """Return the error to raise for arguments that do not fit."""


Crossing = Binding
"""The former name of `Binding`, still importable from `trio_wasmcache`."""


@public
class Abi(Protocol):
    """A convention for values to cross, given to `register` as ``abi=``."""

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Binding:
        """Return the binding for one function.

        Args:
            function: The function's name for messages.
            export: The export to be called; it exists.
            args: Type names of the arguments, normalised: lower case, no spaces.
            returns: Type names of the results, likewise.
            exports: The exports of the module.
            called_on_null: Whether None may be an argument. If not, the lease returns None for a
                call with a None, without calling the guest.

        Raises:
            SignatureError: A type is unknown to this ABI.
            ExportError: The module lacks an export that this ABI needs.
        """
