"""Functions of the application that a component imports: values of WIT types cross both ways.

The application's function is called in the task that called the guest, as a `HostFunction` is. Its
result is written to the guest's memory, once the guest has allocated what that takes; see
`_core/wasm/component/lowering`.

Values from the guest are checked as results of its functions are, and how many there may be is
limited. Many values are converted in a thread, in both directions: those of the guest are copied
out in pieces before. Blocks are written in pieces.
"""

from __future__ import annotations

import inspect
import math
from array import array
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack
from itertools import repeat
from typing import Any, Final, TypeAlias, cast, final

from attrs import define, field, frozen

from .._abi.base import PAUSE, Convert, Value
from .._abi.canonical_lift import Lifting, collect_all, collect_flat, lifter
from .._abi.canonical_lower import FLAT, MISFITS, Block, Detour, Lowering, lowerer
from .._abi.gil import MANY, breathe
from .._abi.packing import Data
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
from .._core.wasm.component.lowering import (
    BATCH,
    BATCHES_TYPE,
    DONE,
    NEXT_TYPE,
    SEVERAL,
    LoweredFunction,
    request,
)
from .._core.wasm.reader import FuncType
from .._core.wit.layout import Layout, layout, lowered_signature
from .._core.wit.text import function_text, type_text
from .._core.wit.types import Result
from .._core.wit.values import Err, Ok
from .._engine.base import HostCall
from .user_code import await_unprotected, call_unprotected, identity
from .wasi2 import drop_handle
from .wit_function import WitFunction

VALUES_LIMIT: Final = 100_000
"""Values that a guest may pass to one call of a host function; a text or bytes is one."""
SIZE_LIMIT: Final = 64 * MiB
"""Bytes that they may take in Python."""
FEW: Final = 2
"""Number of blocks that are allocated one by one, at most: a call for several has many values."""
BLOCKS_AT_ONCE: Final = 256
"""Number of blocks that are placed, or written, between two pauses: about 1 ms."""
PIECE: Final = MiB
"""Bytes that are written between two pauses."""
PLACING: Final = "wit placing"
"""Key in `HostCall.state` of the result for which the guest allocates."""
_MASK: Final = 0xFFFFFFFF
DROP_TYPE: Final = FuncType(("i32",), ())

WasmValues: TypeAlias = tuple[object, ...]
Pauses: TypeAlias = "Generator[float | Convert, Any, Served]"
"""Steps that yield seconds to wait, or what is to be done in a thread."""
Served: TypeAlias = "WasmValues | Coroutine[object, object, Served] | Pauses"
"""Answer to a host call, or what makes it."""
Run: TypeAlias = Callable[..., Value]
"""Function of this library's own in place of the application's: takes the call and the values, and
returns the result, or a generator that yields seconds to wait and returns it."""


@final
@define(eq=False)
class _Placing:
    """A result that is written to the guest's memory once its blocks have addresses."""

    what: str
    blocks: list[Block]
    addresses: array[int] = field(factory=lambda: array("I"))
    """Addresses of the first blocks."""
    size: int = 0
    """Bytes of these."""
    asked: int = 0
    """Number of blocks for which memory was asked last."""

    def begin(self, at: int, call: HostCall) -> WasmValues | Pauses:
        """Place the first block, which the guest has allocated; return the first request."""
        self.asked = 1
        self.place((at,), call)
        left = len(self.blocks) - 1
        if left > FEW:
            call.state[PLACING] = self
            return (SEVERAL,)
        return self.next(call)

    def next(self, call: HostCall) -> WasmValues | Pauses:
        """Return the next request, or `DONE` once all blocks are written."""
        if len(self.addresses) == len(self.blocks):
            return self.written(call, (DONE,))
        call.state[PLACING] = self
        return tuple(self._requests(1))

    def next_batch(self, call: HostCall) -> WasmValues | Pauses:
        """Return whether it is over, and the next requests, the first one last."""
        done = len(self.addresses)
        if done == len(self.blocks):
            return self.written(call, (1, *repeat(DONE, BATCH)))
        call.state[PLACING] = self
        found = self._requests(BATCH)
        values = (0, *repeat(DONE, BATCH - len(found)), *reversed(found))
        return values if done % BLOCKS_AT_ONCE >= BATCH else _after_pause(values)

    def _requests(self, number: int) -> list[int]:
        done = len(self.addresses)
        asked = self.blocks[done : done + number]
        found = [request(align, len(data)) for align, data, _, _ in asked]
        self.asked = len(found)
        return found

    def place(self, addresses: Sequence[Any], call: HostCall) -> None:
        """Note the addresses of the blocks that were asked for.

        Raises:
            AbiError: the guest's allocator returned nonsense.
        """
        assert call.memory is not None
        size, done = call.memory.size, len(self.addresses)
        asked = self.blocks[done : done + self.asked]
        for at, (align, data, owner, place) in zip(addresses, asked, strict=False):
            at &= _MASK
            if at % align or at + len(data) > size:
                raise AbiError(
                    f"the guest allocated {len(data)} bytes for the result of {self.what} at "
                    f"address {at}, which is no multiple of {align} or not inside its memory"
                )
            if owner != FLAT:
                image = self.blocks[owner][1]
                assert isinstance(image, bytearray)
                image[place : place + 4] = at.to_bytes(4, "little")
            self.addresses.append(at)
            self.size += len(data)
        self.asked = 0

    def written(self, call: HostCall, values: WasmValues) -> WasmValues | Pauses:
        """Return these values once all blocks are written: at once, or in steps."""
        call.spend(copy_fuel(self.size))
        steps = self._write(call)
        if len(self.blocks) > BLOCKS_AT_ONCE or self.size > PIECE:
            return _then(steps, values)
        for _ in steps:
            raise AssertionError("a small result takes no pause")
        return values

    def _write(self, call: HostCall) -> Generator[float, None, None]:
        memory, blocks = call.memory, self.blocks
        assert memory is not None
        size = 0
        for number, at in enumerate(self.addresses):
            _, data, _, _ = blocks[number]
            # Freeing many of them at the end would take long, too.
            blocks[number] = _WRITTEN
            if number and not number % BLOCKS_AT_ONCE:
                yield 0.0
            if len(data) <= PIECE:
                memory.write(at, data)
                size += len(data)
                if size > PIECE:
                    yield 0.0
                    size = 0
                continue
            view = memoryview(data)
            for start in range(0, len(data), PIECE):
                memory.write(at + start, view[start : start + PIECE])
                yield 0.0


_WRITTEN: Final[Block] = (1, b"", FLAT, 0)


def _then(steps: Generator[float, None, None], values: WasmValues) -> Pauses:
    yield from steps
    return values


def _after_pause(values: WasmValues) -> Pauses:
    yield 0.0
    return values


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

    def serve(self, call: HostCall) -> Served:
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
        try:
            values = self._lifted(call)
        except Detour:
            return self._lifted_in_steps(call)
        return self._called(values, call)

    def _called(self, values: tuple[Value, ...], call: HostCall) -> Served:
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

    def _paused(self, steps: Generator[float, None, Value], call: HostCall) -> Pauses:
        result = yield from steps
        return self._lowered(result, call)

    async def _rest(self, result: Awaitable[object], call: HostCall) -> Served:
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

    @property
    def _left(self) -> float:
        """Number of values that are converted without a thread, at most.

        Functions of this library's own take and return few, and must not need a task.
        """
        return math.inf if self.own is not None else MANY

    @property
    def _got(self) -> str:
        return f"the guest passed to {self.what}"

    def _lifting(self, call: HostCall, left: float) -> Lifting:
        tally = Tally(SIZE_LIMIT)
        tally.allow(VALUES_LIMIT * ITEM_FUEL)
        memory = call.memory
        fetch = None if memory is None else memory.read
        return Lifting(self._got, b"", tally, left, fetch=fetch)

    def _lifted(self, call: HostCall) -> tuple[Value, ...]:
        """Return the arguments of a call; `Detour` if a thread is to make them."""
        if not self.function.type.params:
            return ()
        job = self._lifting(call, self._left)
        values = self._lift(call.values, job)
        self._spend(call, job)
        return values

    def _lifted_in_steps(self, call: HostCall) -> Pauses:
        """Copy what arguments refer to, convert them in a thread, and call the function."""
        job = self._lifting(call, math.inf)
        job.copies = {}
        spilled = self._spilled
        try:
            if spilled is None:
                flat = iter(call.values)
                for _, kind in self.function.type.params:
                    collect_flat(kind, flat, job)
            else:
                at = _address(call.values[0])
                data = job.copy("its arguments", at, spilled.size, spilled.align)
                for (_, kind), offset in zip(
                    self.function.type.params, spilled.offsets, strict=True
                ):
                    collect = lifter(kind).collect
                    if collect is not None:
                        collect(data, offset, job)
            for pause in collect_all(job):
                assert pause is PAUSE
                yield 0.0
        except (FuelExhaustedError, ResultTooLargeError):
            raise self._excess() from None
        self._spend(call, job)
        # All is copied, and the guest's memory is not for threads.
        job.fetch = None
        job.tally.allow(VALUES_LIMIT * ITEM_FUEL)
        values = yield Convert(self._lift, (call.values, job))
        self._spend(call, job)
        return self._called(values, call)

    @property
    def _spilled(self) -> Layout | None:
        return lowered_signature(self.function.type).arguments

    def _lift(self, given: tuple[Any, ...], job: Lifting) -> tuple[Value, ...]:
        kinds = [one for _, one in self.function.type.params]
        spilled = self._spilled
        try:
            if spilled is None:
                flat = iter(given)
                return tuple([lifter(kind).flat(flat, job) for kind in kinds])
            at = _address(given[0])
            buffer, begin = job.place("its arguments", at, spilled.size, spilled.align)
            return tuple(
                [
                    lifter(kind).load(buffer, begin + offset, job)
                    for kind, offset in zip(kinds, spilled.offsets, strict=True)
                ]
            )
        except (FuelExhaustedError, ResultTooLargeError):
            raise self._excess() from None

    def _excess(self) -> AbiError:
        return AbiError(
            f"{self._got} more than {VALUES_LIMIT} values, or values of more than {SIZE_LIMIT} "
            "bytes"
        )

    @staticmethod
    def _spend(call: HostCall, job: Lifting) -> None:
        if spent := job.tally.take_spent():
            call.spend(spent)

    # -- the result

    def _lowered(self, result: Value, call: HostCall) -> WasmValues | Pauses:
        """Return the wasm values of a result, or a request for memory for it."""
        kind = self.function.type.result
        if kind is None:
            if result is not None:
                raise TypeError(f"{self.what} must return None, returned {shown(result)}")
            return ()
        if isinstance(kind, Result) and not isinstance(result, (Ok, Err)):
            result = Ok(result)
        try:
            lowered = self._lower(result, self._left)
        except Detour:
            return self._lowered_in_steps(result, call)
        return lowered if isinstance(lowered, tuple) else self._place(lowered, call)

    def _lowered_in_steps(self, result: Value, call: HostCall) -> Pauses:
        blocks = yield Convert(self._lower, (result, math.inf))
        return self._place(blocks, call)

    def _lower(self, result: Value, left: float) -> WasmValues | list[Block]:
        """Return the one wasm value of a result, or the blocks of memory that it takes.

        Raises:
            Detour: they take long.
        """
        kind = self.function.type.result
        assert kind is not None
        place = layout(kind)
        out: list[Value] = []
        with ExitStack() as views:
            job = Lowering(False, left, views)
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
            # Views end here, and others may change what they show while the guest allocates.
            size = sum([len(data) for _, data, _, _ in job.blocks if _own(data) is None])
            if size > PIECE and left < math.inf:
                raise Detour
            return [(align, _kept(data), owner, at) for align, data, owner, at in job.blocks]

    def _place(self, blocks: list[Block], call: HostCall) -> WasmValues | Pauses:
        if call.memory is None:
            raise AbiError(f"{self.what} has no memory to return its result in")
        placing = _Placing(self.what, blocks)
        if self.function.allocates:
            return placing.begin(_address(call.values[-1]), call)
        placing.asked = 1
        placing.place((call.values[-1],), call)
        return placing.written(call, ())


def _own(data: Data | bytearray) -> bytes | bytearray | None:
    """Return the content of a block without copying it; None: others may change it."""
    if type(data) is not memoryview:
        return data
    whole = data.obj
    return whole if type(whole) is bytes and len(whole) == data.nbytes else None


def _kept(data: Data | bytearray) -> bytes | bytearray:
    """Return the content of a block, as it stays."""
    own = _own(data)
    if own is None:
        breathe()
        return bytes(data)
    return own


@final
@frozen
class WitAllocated:
    """The host function to which a guest passes the address of what it has allocated, or several.

    See `NEXT` and `BATCHES` of `_core/wasm/component/lowering`.
    """

    type: FuncType = NEXT_TYPE

    @property
    def serve_alone(self) -> Callable[[HostCall], Value]:
        """Function `serve`, which needs no task: see `HostImport.serve`."""
        return self.serve

    def misfit(self, _wanted: FuncType, /) -> str:
        """Return words for a message: its type."""
        return f"it is {signature(self.type)}"

    def serve(self, call: HostCall) -> WasmValues | Pauses:
        """Note addresses; return the next requests, or that all is over once the result is written.

        Raises:
            AbiError: the guest's allocator returned nonsense, or nothing was asked for.
        """
        placing: _Placing | None = call.state.pop(PLACING, None)
        if placing is None:
            raise AbiError("the guest allocated for a result that there is not")
        placing.place(call.values, call)
        return placing.next_batch(call) if self.type == BATCHES_TYPE else placing.next(call)


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


def _address(value: object) -> int:
    assert isinstance(value, int)
    return value & _MASK
