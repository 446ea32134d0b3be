"""What an ABI is: how the values of a call cross into a guest and back. Users can write one.

An ABI never calls anything. It says what to call: `Crossing.steps` is a generator that yields an
`Invoke` for each call of an export of the guest, gets its result, and may read and write the
guest's memory in between. What takes long it leaves to a thread, by yielding a `Convert`. So an ABI
is plain synchronous code that can be tested without wasm, while slicing, cancelling and charging
for fuel stay with the lease, which drives the generator.

What a guest says is never believed: addresses and sizes are checked where they are used, and an
`AbiError` costs the guest its instance.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen

from .._core.tally import Tally
from .._core.wasm.reader import FuncType as FuncType


@frozen
class Invoke:
    """Call this export of the guest with these wasm values; the answer is its result."""

    export: str
    values: tuple[Any, ...]


@frozen
class Convert:
    """Call this function in a thread, as it takes long; the answer is what it returns.

    It is for conversions: the function must not use the guest, which others may close meanwhile.
    Nor may it wait for the cache: at most `max_threads` conversions run at the same time.
    What it raises is raised where this was yielded.
    """

    function: Callable[..., Any]
    values: tuple[Any, ...]


Step = Invoke | Convert
"""What an ABI may ask for."""


class Memory(Protocol):
    """The guest's exported memory, while no call is under way."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, at: int, n: int) -> bytes:
        """`n` bytes from address `at`, which cost fuel of the call.

        Raises:
            IndexError: they are not inside the memory.
            ResultTooLargeError: they would exceed `max_result_size`.
            FuelExhaustedError: the call has not enough fuel left.
        """

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Put `data` at address `at`; `IndexError` (and nothing is written) outside.

        What lies in one piece is copied straight into the guest, with no copy in between.
        """

    def grow(self, pages: int) -> int:
        """Add pages of 64 KiB; the address at which they begin.

        Raises:
            MemoryLimitError: that would exceed `memory_limit`, or the module's own maximum.
        """


class Guest(Protocol):
    """What an ABI may use of the instance between two calls."""

    @property
    def memory(self) -> Memory | None:
        """Its exported memory, if there is one."""

    @property
    def state(self) -> dict[str, Any]:
        """For the ABI to keep what it knows about this instance; lives as long as its memory does.

        Addresses of what the ABI had the guest allocate may be kept here from call to call.
        """

    def global_value(self, name: str) -> int | float:
        """The value of an exported global; `LookupError` if there is none of that name."""

    @property
    def tally(self) -> Tally:
        """Counts what the result takes; `guest.tally.add(size)` before something large is made.

        What is read of the guest's memory is counted, and costs fuel, without being asked.
        """


@frozen
class Exports:
    """What a module exports, for an ABI to see whether it can work with it."""

    functions: Mapping[str, FuncType]
    globals: Mapping[str, str]
    """{name: value type}."""
    memories: Sequence[str]


class Crossing(Protocol):
    """An ABI, bound to the types of one function and the exports of its module."""

    @property
    def signature(self) -> FuncType:
        """The wasm type that the function's export must have."""

    @property
    def arity(self) -> int:
        """How many arguments a call takes."""

    @property
    def lower(self) -> Callable[[tuple[Any, ...]], Sequence[Any]] | None:
        """Python values to wasm values, where that takes no memory; None: they are the same."""

    @property
    def lift(self) -> Callable[[Any], Any] | None:
        """A wasm result to a Python value, where that takes no memory; None: it is the same."""

    @property
    def steps(self) -> Callable[[Guest, tuple[Any, ...]], Generator[Step, Any, Any]] | None:
        """The steps of one call, which return its result; None: `lower`, the call, and `lift`.

        Values that do not fit raise `TypeError`, `ValueError` or `OverflowError` before the first
        `Invoke`, naming the argument's number, its type and the value.
        """

    def explain(self, values: tuple[Any, ...]) -> Exception:
        """Why these values can't be the arguments: the error to raise."""


class Abi(Protocol):
    """A way for values to cross, given to `register` as ``abi=``."""

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Crossing:
        """The crossing for one function.

        Args:
            function: names the function in messages.
            export: what is to be called; it is known to exist.
            args, returns: type names, normalised: lower case, no spaces.
            called_on_null: whether None may be an argument; otherwise a call with a None gives
                None without a call, which the lease sees to.

        Raises:
            SignatureError: a type that this ABI does not know.
            ExportError: the module lacks an export that this ABI needs.
        """
