"""A store of wasmtime: its context, limits and fuel, and what is under way in it.

1. A store begins without a yield interval. Until it has one (`Store.sliced`), wasmtime makes
   instances and calls in it synchronously, at half of the cost, but can't interrupt guest code:
   nothing that may run for long is called then. The first call of a function that is not bounded
   sets the interval, and from then on only asynchronous calls are possible. An instance that
   imports host functions needs these anyway, so there the interval is set first.
2. One thing at a time is under way: a call future, and the *ending*, where C says how it ended.
3. What C writes to must stay where it is while the future lives, so the ending is kept as long.
   Nothing of it is needed while nothing is under way.
4. A guest that calls a host function is suspended, and goes on once `answered` says so.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from ctypes import Array, addressof, byref, c_char, c_uint8, c_uint64, c_void_p
from typing import Any, ClassVar, Protocol, TypeAlias, final

from ..._core.errors import LoadError
from ..._core.stack_room import check_headroom
from ..._core.wasm.types import BOUNDED_FUEL
from ..base import HostCall, keep_start
from . import native
from .errors import Ending, take_error
from .memory import InstanceMemory
from .plan import Plan
from .residency import Range

Begin: TypeAlias = Callable[[Sequence[object], int], Any]
"""See `GuestFunction.begin`."""
Measure = Callable[[native.Context, bytes], int]
"""How large a memory or a table is, by context and handle."""


@final
class Tally:
    """Counts what all stores and modules of one engine have together.

    Args:
        stack_size: bytes of the stack of each instance; None: calls need one always.
    """

    __slots__ = ("code", "scratch", "stack_size", "stores")

    def __init__(self, stack_size: int | None = None) -> None:
        self.stack_size: float = math.inf if stack_size is None else stack_size
        """Bytes that a thread must have left of its own stack to make a call on it."""
        self.stores = 0
        """Those that are not closed."""
        self.scratch = 0
        """Bytes of the drivers' scratches."""
        self.code = 0
        """Bytes of code of loaded modules."""

    def count_store(self, change: int) -> None:
        """Count a store that is made (1), or closed (-1)."""
        self.stores += change

    def count_scratch(self, change: int) -> None:
        """Count the bytes of a scratch that is made, or of one that goes (negative)."""
        self.scratch += change

    def count_code(self, change: int) -> None:
        """Count the bytes of code of a module that was loaded, or of one that goes (negative)."""
        self.code += change


class _Raised(threading.local):
    """What was raised within a callback, of each thread."""

    error: BaseException | None = None


RAISED = _Raised()


def take_raised() -> BaseException:
    """Return what was raised within a callback, and forget it."""
    error, RAISED.error = RAISED.error, None
    if error is None:
        raise AssertionError("nothing was raised within a callback")
    return error


class Begun(Protocol):
    """A function of an instance, as its store sees it."""

    @property
    def left(self) -> c_uint64:
        """See `GuestFunction.left`."""

    @property
    def where_left(self) -> tuple[native.Context, native.Ready]:
        """The arguments by which C writes what is left to `left`."""

    def finish(self) -> Any:
        """See `GuestFunction.finish`."""


class Driver(Protocol):
    """A driver, as the store that it lives in sees it."""

    @property
    def size(self) -> int:
        """Bytes of its scratch."""

    @property
    def range(self) -> Range:
        """Where its scratch is."""

    def wipe(self) -> bool:
        """Forget what lies in the scratch; return False if the system would not."""

    def close(self) -> None:
        """Read and write nothing any more: the store goes."""


Pieces: TypeAlias = tuple[tuple[bytes, Plan], ...]
"""(instance, what it exports) of each module in a store."""


class Stages(Protocol):
    """The start of an instance of a graph, and its parts, as its store sees them."""

    @property
    def pieces(self) -> Pieces:
        """The parts that are there."""

    @property
    def invokes(self) -> object:
        """The exports that host functions have the guest call: see `hosts.Invokes`."""

    def memory_of(self, index: int) -> bytes | None:
        """Return the handle of the memory for a host import; None: it is the user's module's."""

    def next(self, store: Store, /) -> bool | None:
        """Go on to the next stage, as what was under way is over.

        Returns:
            True if there is none, or what is over ended badly; False if others may run first; None
            to poll at once. True, too, once the start is over, for any call.
        """

    def close(self) -> None:
        """Free what is left of it, and end the memories lent; nothing is under way any more."""


class Store:
    """Owns a native store, the instance in it, and its drivers. Base of `WasmtimeInstance`.

    `future` and `ending` are the two fields that others set: a function does where its call
    outlives its first slice. There, a method might raise (a signal handler runs when one begins)
    and the future be lost.

    Args:
        engine: the native engine.
        plan: limits of the store.
        tally: where it is counted until it is closed.
        number: the store's data, by which host functions find it; 0: it has none.
        fuel: of what is to be under way first.
        yield_fuel: of each slice.

    Raises:
        LoadError: wasmtime would not set it up.
    """

    __slots__ = (
        "_counts",
        "_fixed_size",
        "_handle",
        "_sizes",
        "_state",
        "_store",
        "answered",
        "at_once",
        "context",
        "drivers",
        "ending",
        "future",
        "host_call",
        "host_state",
        "number",
        "own_memory",
        "plan",
        "sliced",
        "spent",
        "stages",
        "tally",
        "untouched",
        "yield_fuel",
    )

    def __init__(
        self, engine: int, plan: Plan, tally: Tally, number: int, fuel: int, yield_fuel: int
    ) -> None:
        self.plan = plan
        self.number = number
        self.yield_fuel = yield_fuel
        self.sliced = False
        """Whether calls yield after `yield_fuel`, and everything has to be asynchronous."""
        self.at_once = False
        """Whether bounded functions are called synchronously; not once calls are sliced."""
        self.untouched = False
        """Whether it is the same as any new instance: nothing was called or changed in it."""
        self.spent = False
        """Whether a call was stopped in it, which must be made in a new store: see `renew`."""
        self.future: int = 0
        """Native future of what is under way; 0 while nothing is."""
        self.ending: Ending | None = None
        """How what is under way ends, or has ended; None while there is nothing."""
        self.host_call: HostCall | None = None
        self.answered: Array[c_uint8] | None = _ANSWERED() if number else None
        """A C string, where there is anything to answer: not empty once `host_call` is."""
        self.host_state: dict[str, Any] = {} if number else NO_STATE
        """See `HostCall.state`."""
        self.stages: Stages | None = None
        """The start of the parts of a graph, and what came of it; None: it is no graph."""
        self._state: dict[str, Any] | None = None
        self.own_memory: InstanceMemory | None = None
        """The exported memory, without the note that others may write to it: see `memory`."""
        self.drivers: dict[Hashable, Driver] = NO_DRIVERS
        """{key: driver} of those in the store, which keeps them until it is closed."""
        # (what measures it, its handle, bytes of a unit) of each memory and table that can grow.
        self._sizes: tuple[tuple[Measure, bytes, int], ...] = ()
        self._fixed_size = plan.rest_size
        self._counts = plan.counts
        self.tally = tally
        """Where it is counted, and what all stores of the engine have."""
        self._handle = b""
        self._store: int = native.store_new(engine, number or None, None)
        tally.count_store(1)
        self.context: native.Context = c_void_p.from_param(native.store_context(self._store))
        native.store_limiter(self._store, plan.memory_limit, plan.table_limit, *self._counts)
        if problem := native.context_set_fuel(self.context, fuel):
            self.close()
            raise LoadError(f"wasmtime would not set up a store: {take_error(problem)}")

    def slice_calls(self) -> None:
        """Have all calls from now on yield after `yield_fuel`.

        Raises:
            LoadError: wasmtime would not; no guest code may run then.
        """
        self.at_once = False
        if problem := native.context_fuel_async_yield_interval(self.context, self.yield_fuel):
            raise LoadError(f"wasmtime would not slice the calls of a store: {take_error(problem)}")
        self.sliced = True

    sampled: ClassVar[bool] = False
    """Whether samples of its guest are taken, so that `begin_of` begins its calls."""

    def begin_of(self, plain: Begin, _function: Begun, /) -> Begin:
        """Return what begins calls of a function, given what does so in other instances."""
        return plain

    @property
    def memory(self) -> InstanceMemory | None:
        self.untouched = False
        return self.own_memory

    def renew(self) -> None:
        """Put a new store in place of its own, in which nothing was called yet.

        Raises:
            NoMemoryError: the system has no memory for it; `spent` is still set.
            LoadError: the engine could not make it.
        """
        raise NotImplementedError

    def poll(self) -> bool:
        if not self.future:
            return True  # it was made at once
        while True:
            if self.answered is None:
                over = native.call_future_poll(self.future)
            else:
                check_headroom()
                over = native.call_future_poll(self.future)
                if RAISED.error is not None:
                    raise take_raised()
            if self.stages is None or not over:
                return over
            done = self.stages.next(self)
            if done is not None:
                return done

    def set_yield_fuel(self, fuel: int) -> None:
        self.yield_fuel = fuel
        self.at_once &= fuel >= BOUNDED_FUEL
        if self.sliced:
            self.slice_calls()

    def end(self) -> Ending:
        """End what was under way, which is over; return how it ended."""
        future, self.future = self.future, 0
        if future:
            native.hot_delete(native.as_pointer(future))
        ending, self.ending = self.ending, None
        if ending is None:
            raise AssertionError("nothing was under way")
        return ending

    def abandon(self) -> None:
        call, self.host_call = self.host_call, None
        if call is not None and call.memory is not None:
            call.memory.end()  # a host function may still be running
        if self.future:
            future, self.future = self.future, 0
            native.call_future_delete(future)
        # The future may be gone, and how it ended be there still.
        ending, self.ending = self.ending, None
        if ending is not None:
            if ending.trap or ending.error:
                ending.take_error()
            ending.leave()

    def suspend(self, call: HostCall) -> int:
        """Keep a host call until it is answered; return the address of what says so."""
        if self.answered is None:
            raise AssertionError("the guest imports no host functions")
        self.host_call = call
        self.answered[0] = 0
        return addressof(self.answered)

    def resume(self) -> None:
        """Let the guest go on at the next poll: its host call is answered."""
        if self.answered is not None:
            self.answered[0] = 1
        self.host_call = None

    @property
    def state(self) -> dict[str, Any]:
        if self._state is None:
            self._state = self._first_state()
        return self._state

    def _first_state(self) -> dict[str, Any]:
        known = self.plan.abi_state
        # Its own, as an ABI changes what it keeps there. To copy nothing would take a microsecond.
        return copy.deepcopy({**known}) if known else {}

    def forget(self, keep: object = None) -> bool:
        """Forget what host functions, the ABI and batches know of the guest.

        Args:
            keep: driver of which the scratch is not wiped.

        Returns:
            Whether the system has wiped all scratches.
        """
        for driver in self.drivers.values():
            if driver is not keep and not driver.wipe():
                return False
        if self._state is not None:
            self._state.clear()
            self._state.update(self._first_state())
        # Open descriptors are state, too: a guest may close them.
        keep_start(self.host_state)
        return True

    def take_fuel(self, fuel: int) -> int:
        """See `HostCall.take_fuel`; the guest waits for the host, so its counter is at rest."""
        if self.host_call is None:
            return fuel  # it was abandoned meanwhile, and nothing of it is counted any more
        left = self.fuel_left()
        taken = min(fuel, left)
        native.context_set_fuel(self.context, left - taken)
        return taken

    def fuel_left(self) -> int:
        left = c_uint64()  # of this call, for it may be any thread's
        native.hot_get_fuel(self.context, byref(left))
        return left.value

    @property
    def fixed_size(self) -> int | None:
        return None if self._sizes or self.drivers else self._fixed_size

    def measure(self) -> int:
        size = self._fixed_size
        for measure, handle, unit in self._sizes:
            size += measure(self.context, handle) * unit
        return size

    def add_driver(self, key: Hashable, driver: Driver) -> None:
        """Keep a driver from now on, as a part of the store and of its size."""
        self.drivers = {**self.drivers, key: driver}
        self._fixed_size += driver.size
        self.tally.count_scratch(driver.size)

    def extern(self, name: str, instance: bytes | None = None) -> native.Buffer:
        """Return an export, as it is given to a linker; see `export`."""
        found = _EXTERN()
        raw = name.encode()
        if instance is None:
            instance = self._handle
        if not native.instance_export_get(self.context, instance, raw, len(raw), found):
            raise AssertionError(f"wasmtime does not know the export {name!r}")
        return found

    def export(self, name: str, instance: bytes | None = None) -> bytes:
        """Return the handle of an export, copied out so that it can be passed by itself.

        Args:
            name: of the export.
            instance: handle of the part that has it; None: the user's module.
        """
        # As `extern`, in a call less: each new instance does it for its memory and its function.
        found = _EXTERN()
        raw = name.encode()
        if instance is None:
            instance = self._handle
        if not native.instance_export_get(self.context, instance, raw, len(raw), found):
            raise AssertionError(f"wasmtime does not know the export {name!r}")
        return found.raw[native.EXTERN_OFFSET :]

    @property
    def pieces(self) -> Pieces:
        """The modules in it, once it has started."""
        return ((self._handle, self.plan),) if self.stages is None else self.stages.pieces

    def piece(self, name: str) -> bytes:
        """Return the instance of the part of that name, once it has started.

        Raises:
            LookupError: there is none.
        """
        for part, (handle, _) in zip(self.plan.parts, self.pieces, strict=False):
            if part.name == name:
                return handle
        raise LookupError(f"the instance has no part {name!r:.100}")

    @property
    def hosted(self) -> bool:
        """Whether its guest imports host functions."""
        return self.answered is not None

    @contextlib.contextmanager
    def one_more_instance(self, *, memory: int = 0, tables: int = 0) -> Iterator[None]:
        """Let one more instance into the store, and meanwhile its memory and tables.

        Args:
            memory: bytes of its one memory; 0: it has none.
            tables: how many it has.
        """
        self.untouched = False
        # One that found no memory counts, too: the store never forgets an instance.
        plan, (instances, all_tables, memories) = self.plan, self._counts
        self._counts = counts = instances + 1, all_tables + tables, memories + (memory > 0)
        memory_limit = max(plan.memory_limit, memory)
        native.store_limiter(self._store, memory_limit, plan.table_limit, *counts)
        try:
            yield
        finally:
            native.store_limiter(self._store, plan.memory_limit, plan.table_limit, *counts)

    def close(self) -> None:
        if self.future or self.ending is not None or self.host_call is not None:
            self.abandon()
        for driver in self.drivers.values():
            driver.close()
            self.tally.count_scratch(-driver.size)
        self.drivers = NO_DRIVERS
        if self.stages is not None:
            self.stages.close()
        if self._store:
            store, self._store = self._store, 0
            self._sizes = ()  # `measure` asks the store no more
            self.tally.count_store(-1)
            if self.own_memory is not None:
                self.own_memory.end()
            native.store_delete(store)


NO_DRIVERS: dict[Hashable, Driver] = {}
NO_STATE: dict[str, Any] = {}
# What C writes to. The types are made once: `create_string_buffer` looks for them every time.
_ANSWERED = c_uint8 * 2
_EXTERN = c_char * native.EXTERN_SIZE
