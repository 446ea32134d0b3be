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

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias, final

from attrs import frozen

from .._core.tally import Tally
from .._core.wasm.reader import FuncType as FuncType, ModuleInfo
from .._public import public

if TYPE_CHECKING:
    from .._core.wasm.graph import Layer

Value: TypeAlias = Any
"""A Python value of the caller, or the wasm value that it is converted to or from.

Its type is the one declared to `register`, which type checkers do not know: conversions check it.
"""


@public
@frozen
class Invoke:
    """A request to call an export of the guest with wasm values; the answer is its result."""

    export: str
    """Name of the export."""
    values: tuple[object, ...]
    """Wasm values, one for each parameter of the export: ints and floats."""


@final
@frozen
class InvokePart(Invoke):
    """A request to call an export of a part that a `LayeredAbi` has put beside the module."""

    part: str = ""
    """Name of the part."""


@public
@frozen
class Convert:
    """A request to call a long-running function in a thread; the answer is its result.

    It is for conversions. The function must not use the guest, which may be closed meanwhile, nor
    wait for the cache, as at most `max_threads` conversions run at the same time. An exception of
    the function is raised by the ``yield``.
    """

    function: Callable[..., Value]
    """Function to call in a thread."""
    values: tuple[object, ...]
    """Arguments of the function."""


def _nothing() -> None:
    """Do nothing."""


PAUSE: Final = Convert(_nothing, ())
"""A request to let other tasks run, if it is time to."""
BY_STEPS: Final = object()
"""What `Direct.lift` returns for a result that takes steps."""
Step = Invoke | Convert
"""A request that an ABI may yield."""
Steps = Generator[Step, Value, Value]
"""A call in steps: yields requests, receives their answers, and returns the result."""


@public
class Memory(Protocol):
    """The guest's memory, while no call is under way."""

    @property
    def size(self) -> int:
        """Size of the memory (bytes)."""

    def read(self, at: int, n: int) -> bytes:
        """Return a copy of some bytes, which costs fuel of the call.

        Args:
            at: address of the first byte.
            n: number of bytes.

        Raises:
            IndexError: the range is not inside the memory.
            ResultTooLargeError: the bytes would exceed `max_result_size`.
            FuelExhaustedError: the call has not enough fuel left.
        """

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Write some bytes. Contiguous data is copied directly into the guest.

        Args:
            at: address of the first byte.
            data: bytes, or a view of bytes.

        Raises:
            IndexError: the range is not inside the memory; nothing is written.
        """

    def grow(self, pages: int) -> int:
        """Add pages; return the address of the first.

        Args:
            pages: number of pages of 64 KiB.

        Raises:
            MemoryLimitError: the memory would exceed `memory_limit`, or the module's own maximum.
        """


@public
class Guest(Protocol):
    """The part of an instance that an ABI may use between two calls of exports."""

    @property
    def memory(self) -> Memory | None:
        """The exported memory, else the imported one (`HostMemory`), else None."""

    @property
    def state(self) -> dict[str, Value]:
        """Storage of the ABI for this instance; exists as long as its memory.

        For example, addresses of memory that the ABI allocated may be kept here between calls.
        """

    def global_value(self, name: str) -> int | float:
        """Return the value of an exported global.

        Args:
            name: name of the export.

        Raises:
            LookupError: the module has no such export.
        """

    @property
    def tally(self) -> Tally:
        """The size of the result so far, which is limited by `max_result_size`.

        Call ``guest.tally.add(size)`` (bytes) before making a large value. Reading the guest's
        memory is counted, and costs fuel, automatically.
        """


@public
@frozen
class Exports:
    """The exports of a module, by which an ABI decides whether and how it can be used."""

    functions: Mapping[str, FuncType]
    """{name of an exported function: its type}."""
    globals: Mapping[str, str]
    """{name of an exported global: its value type}."""
    memories: Sequence[str]
    """Names of the exported memories; if there are none, the name of the imported one (see
    `HostMemory`)."""


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
        """Function that converts Python values to wasm values, without using memory.

        None: the values are the same.
        """

    @property
    def lift(self) -> Callable[[Value], Value] | None:
        """Function that converts a wasm result to a Python value, without using memory.

        None: the value is the same.
        """

    @property
    def steps(self) -> Callable[[Guest, tuple[object, ...]], Steps] | None:
        """Generator function that performs one call and returns its result.

        None: a call is `lower`, the export, and `lift`. For values that do not fit, the generator
        raises `TypeError`, `ValueError` or `OverflowError` before the first `Invoke`; the message
        names the argument's number, its type and the value.
        """

    def explain(self, values: tuple[object, ...]) -> Exception:
        """Return the error to raise for arguments that do not fit.

        Args:
            values: arguments of the call.
        """


Crossing = Binding
"""The former name of `Binding`, still importable from `trio_wasmcache`."""


@public
class Abi(Protocol):
    """A convention by which values cross into a guest and back; given to `register` as ``abi=``.

    Any object with this method is one; it need not be derived from this class.
    """

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
            function: name of the function, for messages.
            export: name of the export to be called; it exists.
            args: type names of the arguments, normalised: lower case, no spaces.
            returns: type names of the results, normalised in the same way.
            exports: the exports of the module.
            called_on_null: whether None may be an argument. If not, the lease returns None for a
                call with a None, without calling the guest.

        Raises:
            SignatureError: a type is unknown to this ABI.
            ExportError: the module lacks an export that this ABI needs.
        """


class GuestPart(Protocol):
    """A part of a guest."""

    def memory(self, name: str, /) -> Memory:
        """Return a memory that it exports."""

    def window(self, name: str, /) -> Window:
        """Return the pages with which such a memory begins, which stay where they are."""


class Window(Protocol):
    """Bytes of a memory, to be used at any time."""

    @property
    def view(self) -> memoryview:
        """The bytes; empty once the instance is closed."""


class Parts(Protocol):
    """A guest with parts of its own."""

    def part(self, name: str, /) -> GuestPart:
        """Return a part by its name."""


class Direct(Protocol):
    """How the values of most calls cross without steps, into one instance: see `LayeredAbi`."""

    def lower(self, values: tuple[object, ...]) -> bool:
        """Put values where the guest finds them; False if it takes steps. No code of theirs runs.

        The export is then called without values.
        """

    def lift(self, result: Value) -> Value:
        """Return the Python value of a result, and the units of fuel that making it costs.

        `BY_STEPS`, if it takes steps, see `leave`.
        """


class LayeredAbi(Abi):
    """Base of the ABIs that put generated parts around the module; see `_core/wasm/graph`.

    Their bindings may have more than others:

    - `direct(native)` returns a `Direct` for an instance.
    - `leave(guest, result)` returns the value of a call whose export has returned `result`, None
      after a command has exited; or `rest(guest, result)` makes the rest of such a call in steps.
    - `entry` is what a call with a `Direct` calls, instead of the export: an export of a part.
    - `refuse_host_call(native)` returns the error for a host call that the guest makes now, or
      None: it may make it.
    - `reported_error(native)` returns what the guest has said about an error, for the message of
      another.

    Only one that is given to `register` is asked, not one that is recognised. Functions share a
    module only if their ABIs are equal.
    """

    takes_blocks: ClassVar[bool] = False
    """Whether host functions may have `str` and `bytes` among their types."""

    @property
    @abstractmethod
    def supplies(self) -> Mapping[tuple[str, str], FuncType]:
        """{module and name of an import: type} of the functions that its parts provide."""

    @abstractmethod
    def layer(
        self, what: str, info: ModuleInfo, hosts: Mapping[tuple[str, str], Any], first: int
    ) -> Layer:
        """Return the parts.

        Args:
            what: name of the function, for messages.
            info: what the sections of the module say.
            hosts: {module and name of an import: (index, host function)} of those that are given.
                The index of a reentrant one is None: only its trampoline can import it.
            first: index of the first of `Layer.hosts`.

        Raises:
            LinkError: a host function does not fit.
        """

    def starts(self, info: ModuleInfo) -> tuple[tuple[str, tuple[int, ...]], ...] | None:  # noqa: ARG002
        """Return the exports to call when an instance starts, in order, and their values.

        None: as for other modules.

        Args:
            info: what the sections of the module say.
        """
        return None
