"""Functions of the application that a component imports: values of WIT types cross both ways.

The application's function is called in the task that called the guest, as a `HostFunction` is. Its
result is written to the guest's memory, once the guest has allocated what that takes; see
`_core/wasm/component/lowering`.

Values from the guest are checked as results of its functions are. How many there may be is limited,
as they are converted at once, while others wait.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import ExitStack
from typing import Any, Final, TypeAlias, cast, final

from attrs import define, field, frozen

from .._abi.base import Value
from .._abi.canonical_lift import Lifting, lifter
from .._abi.canonical_lower import FLAT, MISFITS, Block, Lowering, lowerer
from .._abi.plain import reworded
from .._core.config import MiB
from .._core.costs import ITEM_FUEL, copy_fuel
from .._core.errors import (
    AbiError,
    FuelExhaustedError,
    ResultTooLargeError,
    TrapError,
    WitError,
)
from .._core.integers import signed
from .._core.tally import Tally
from .._core.text import shown
from .._core.wasm.admission import signature
from .._core.wasm.component.lowering import DONE, NEXT_TYPE, LoweredFunction, request
from .._core.wasm.reader import FuncType
from .._core.wit.layout import layout, lowered_signature
from .._core.wit.text import function_text, type_text
from .._core.wit.types import Result
from .._core.wit.values import Err, Ok
from .._engine.base import GuestMemory, HostCall
from .host import HostFunction, HostGlobal, HostMemory, HostTable
from .user_code import await_unprotected, call_unprotected, identity
from .wasi2 import drop_handle

VALUES_LIMIT: Final = 100_000
"""Values that a guest may pass to one call of a host function; a text or bytes is one. Converting
them takes some 10 ms."""
SIZE_LIMIT: Final = 64 * MiB
"""Bytes that they may take in Python."""
PLACING: Final = "wit placing"
"""Key in `HostCall.state` of the result for which the guest allocates."""
_MASK: Final = 0xFFFFFFFF
_CLASSES: Final = (HostFunction, HostMemory, HostTable, HostGlobal)
DROP_TYPE: Final = FuncType(("i32",), ())

WasmValues: TypeAlias = tuple[object, ...]
Run: TypeAlias = Callable[..., Value]
"""Function of this library's own in place of the application's: takes the call and the values, and
returns the result, or a generator that yields seconds to wait and returns it."""


@final
@frozen
class WitFunction:
    """A function that is given for an import of a component."""

    fn: Callable[..., Value] = field(eq=identity)

    @property
    def pure(self) -> bool:
        """Whether it can be called while a guest is prepared: see `HostFunction.pure`."""
        return False


@final
@define(eq=False)
class _Placing:
    """A result that is written to the guest's memory once its blocks have addresses."""

    what: str
    blocks: list[Block]
    addresses: list[int]
    """Addresses of the first blocks."""

    def next(self) -> int:
        """Return the next request, or `DONE`."""
        if len(self.addresses) == len(self.blocks):
            return DONE
        align, data, _, _ = self.blocks[len(self.addresses)]
        return request(align, len(data))

    def place(self, at: int, memory: GuestMemory) -> None:
        """Note the address of the block that was asked for.

        Raises:
            AbiError: the guest's allocator returned nonsense.
        """
        align, data, _, _ = self.blocks[len(self.addresses)]
        if at % align or at + len(data) > memory.size:
            raise AbiError(
                f"the guest allocated {len(data)} bytes for the result of {self.what} at address "
                f"{at}, which is no multiple of {align} or not inside its memory"
            )
        self.addresses.append(at)

    def write(self, call: HostCall) -> None:
        """Write all blocks."""
        assert call.memory is not None
        contents = [bytearray(data) for _, data, _, _ in self.blocks]
        for at, (_, _, owner, place) in zip(self.addresses, self.blocks, strict=True):
            if owner != FLAT:
                contents[owner][place : place + 4] = at.to_bytes(4, "little")
        size = sum(map(len, contents))
        call.spend(copy_fuel(size))
        for at, content in zip(self.addresses, contents, strict=True):
            call.memory.write(at, content)


@final
@frozen
class WitHost:
    """The host function for an imported function of a component."""

    function: LoweredFunction
    given: WitFunction | None
    """Function of the application; None: it is this library's own."""
    own: Run | None = field(default=None, eq=identity)
    """Function of this library's own."""

    @property
    def type(self) -> FuncType:
        """Type of the function for the part that imports it."""
        return self.function.host_type

    @property
    def what(self) -> str:
        """Name of the function for messages."""
        return f"host function {self.function.what}"

    @property
    def serve_alone(self) -> Callable[[HostCall], Value] | None:
        """Function `serve` if it needs no task: see `HostImport.serve`."""
        return None if self.own is None else self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"it is {signature(self.type)}"

    def serve(
        self, call: HostCall
    ) -> WasmValues | Coroutine[object, object, WasmValues] | Generator[float, None, WasmValues]:
        """Call the function with the guest's arguments; return wasm values, or what does.

        Raises:
            AbiError: the guest passed what is no value.
            TrapError: it calls while it allocates for a result.
            TypeError, ValueError, OverflowError: the function's result is not of its type.
        """
        if PLACING in call.state:
            raise TrapError(
                f"the guest called {self.what} while it allocated for a result, when a component "
                "must not: cannot leave component instance",
                code="cannot leave component instance",
            )
        values = self._lifted(call)
        if self.own is not None:
            made = self.own(call, *values)
            if inspect.isgenerator(made):
                return self._paused(cast("Generator[float, None, Value]", made), call)
            return self._lowered(made, call)
        assert self.given is not None
        try:
            result = call_unprotected(self.given.fn, values)
        except StopIteration as error:
            raise RuntimeError(
                f"{self.what} raised StopIteration, which no coroutine can raise further: "
                "return a value, or raise another exception"
            ) from error
        except WitError as error:
            result = self._failure(error)
        if inspect.isawaitable(result):
            return self._rest(result, call)
        return self._lowered(result, call)

    def _paused(
        self, steps: Generator[float, None, Value], call: HostCall
    ) -> Generator[float, None, WasmValues]:
        result = yield from steps
        return self._lowered(result, call)

    async def _rest(self, result: Awaitable[object], call: HostCall) -> WasmValues:
        try:
            found = await await_unprotected(result, call)
        except WitError as error:
            found = self._failure(error)
        return self._lowered(found, call)

    def _failure(self, error: WitError) -> Err:
        """Return the `err` that the function has raised; raise the error if its type has none."""
        if not isinstance(self.function.type.result, Result):
            raise error
        return Err(error.value)

    # -- arguments

    def _lifted(self, call: HostCall) -> tuple[Value, ...]:
        """Return the arguments of a call."""
        kinds = [one for _, one in self.function.type.params]
        if not kinds:
            return ()
        memory = call.memory
        tally = Tally(SIZE_LIMIT)
        tally.allow(VALUES_LIMIT * ITEM_FUEL)
        fetch = None if memory is None else memory.read
        got = f"the guest passed to {self.what}"
        job = Lifting(got, b"", tally, math.inf, fetch=fetch)
        spilled = lowered_signature(self.function.type).arguments
        try:
            if spilled is None:
                flat = iter(call.values)
                values = [lifter(kind).flat(flat, job) for kind in kinds]
            else:
                at = _address(call.values[0])
                buffer, begin = job.place("its arguments", at, spilled.size, spilled.align)
                values = [
                    lifter(kind).load(buffer, begin + offset, job)
                    for kind, offset in zip(kinds, spilled.offsets, strict=True)
                ]
        except (FuelExhaustedError, ResultTooLargeError):
            raise AbiError(
                f"{got} more than {VALUES_LIMIT} values, or values of more than {SIZE_LIMIT} bytes"
            ) from None
        if spent := tally.take_spent():
            call.spend(spent)
        return tuple(values)

    # -- the result

    def _lowered(self, result: Value, call: HostCall) -> WasmValues:
        """Return the wasm values of a result, or a request for memory for it."""
        kind = self.function.type.result
        if kind is None:
            if result is not None:
                raise TypeError(f"{self.what} must return None, returned {shown(result)}")
            return ()
        if isinstance(kind, Result) and not isinstance(result, (Ok, Err)):
            result = Ok(result)
        place = layout(kind)
        out: list[Value] = []
        with ExitStack() as views:
            job = Lowering(False, math.inf, views)
            try:
                if self.function.core.results:
                    lowerer(kind).flat(result, out, job)
                    bits = 32 if place.flat[0] == "i32" else 64
                    value = out[0]
                    return (signed(value, bits) if place.flat[0][0] == "i" else value,)
                image = bytearray(place.size)
                job.blocks.append((place.align, image, FLAT, 0))
                lowerer(kind).store(result, image, 0, job, 0)
            except MISFITS as error:
                raise reworded(
                    error,
                    f"{self.what} must return {type_text(kind)}, as it is "
                    f"{function_text(self.function.type)}: {error}",
                ) from None
            # Copies, as views end here.
            blocks: list[Block] = [
                (align, bytes(data), owner, at) for align, data, owner, at in job.blocks
            ]
        placing = _Placing(self.what, blocks, [])
        memory = call.memory
        if memory is None:
            raise AbiError(f"{self.what} has no memory to return its result in")
        placing.place(_address(call.values[-1]), memory)
        return self._next(placing, call)

    def _next(self, placing: _Placing, call: HostCall) -> WasmValues:
        asked = placing.next()
        if asked == DONE:
            placing.write(call)
        else:
            call.state[PLACING] = placing
        return (asked,) if self.function.allocates else ()


@final
@frozen
class WitAllocated:
    """The host function to which a guest passes the address of what it has allocated."""

    type: FuncType = NEXT_TYPE

    @property
    def serve_alone(self) -> Callable[[HostCall], Value]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"it is {signature(self.type)}"

    def serve(self, call: HostCall) -> WasmValues:
        """Note the address; return the next request, or `DONE` once the result is written.

        Raises:
            AbiError: the guest's allocator returned nonsense, or nothing was asked for.
        """
        placing: _Placing | None = call.state.pop(PLACING, None)
        if placing is None or call.memory is None:
            raise AbiError("the guest allocated for a result that there is not")
        placing.place(_address(call.values[0]), call.memory)
        asked = placing.next()
        if asked == DONE:
            placing.write(call)
        else:
            call.state[PLACING] = placing
        return (asked,)


@final
@frozen
class WitDrop:
    """The host function that ends the use of a handle of WASI's."""

    resource: str
    """Name of the resource in its interface."""
    type: FuncType = DROP_TYPE

    @property
    def serve_alone(self) -> Callable[[HostCall], Value]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"it is {signature(self.type)}"

    def serve(self, call: HostCall) -> WasmValues:
        """Drop the handle; `TrapError` if there is none."""
        drop_handle(call, self.resource, _address(call.values[0]))
        return ()


def plain_functions(
    imports: Any,
) -> tuple[Any, dict[tuple[str, str], WitFunction]]:
    """Return what `imports` has beside plain functions; and these, by interface and name.

    Args:
        imports: what `register` was given; anything else is returned as it is.
    """
    functions: dict[tuple[str, str], WitFunction] = {}
    if not isinstance(imports, Mapping):
        return imports, functions
    rest: dict[str, Any] = {}
    for module, names in imports.items():
        if not isinstance(names, Mapping) or not isinstance(module, str):
            rest[module] = names
            continue
        rest[module] = {}
        for name, given in names.items():
            plain = callable(given) and not isinstance(given, HostFunction)
            if plain and isinstance(name, str) and given not in _CLASSES:
                functions[module, name] = WitFunction(cast("Callable[..., Value]", given))
            else:
                rest[module][name] = given
    return rest, functions


def _address(value: object) -> int:
    assert isinstance(value, int)
    return value & _MASK
