"""Protocols between the runtime and an engine, which compiles modules and runs guest code.

There are two engines, wasmtime's and the fake of `trio_wasmcache.testing`; the same contract tests
run on both. Methods that take long are async. Guest code runs in slices: each `poll` runs one, so
the runner decides in which thread each runs, and when.

Rule: one thing at a time in one instance. An instance has a *call under way* from `begin`, or from
when it is made, to `finish` or `abandon`. One thread at a time polls it, and nothing else may be
done with the instance meanwhile. The callers ensure this: a lease, its calls and batches, and the
runner that polls them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from attrs import field, frozen

from .._core.config import SystemLimits
from .._core.errors import FuelExhaustedError, LoadError
from .._core.tiers import OPTIMIZING, Tier
from .._core.wasm.admission import Edits
from .._core.wasm.growth import UNMOVED, CodeOffsets
from .._core.wasm.reader import FuncType, ModuleInfo
from .._core.wasm.types import USER
from .compile_slots import AnyTurn, CompileSlots, Turn

if TYPE_CHECKING:
    from .._core.frames import Frame
    from .._core.metrics.stats import ResidentBytes
    from .._core.wasm.arms import Arm, Returned
    from .._core.wasm.coredump import DumpedInstance
    from .._core.wasm.custom import DebugSections
    from .._core.wasm.driver import Shape
    from .._core.wasm.graph import FromPart, Graph
    from .._core.wasm.memory_layout import MemoryShape
    from .._core.wasm.preparation import FrozenState

StartCall: TypeAlias = tuple[str, tuple[int, ...]]
"""An export that is called when an instance starts, and its values."""
MAX_FUEL: Final = 2**63 - 1
"""Units of fuel that a call can have, at most."""
WasmValue: TypeAlias = int | float
"""A number as it crosses: a signed int for i32 and i64, a float for f32 and f64."""


class UnderWay(enum.Enum):
    """See `UNDER_WAY`; an enum, so that type checkers can tell it from a result."""

    UNDER_WAY = "under way"


UNDER_WAY = UnderWay.UNDER_WAY
"""The result of `GuestFunction.begin` for a call that is not over after its first slice."""


class InexactError(TypeError):
    """The values of a call are no tuple of ints and floats: using them would run their own code."""


class NoMemoryError(LoadError):
    """The system refused memory, addresses or mappings: not the guest's fault, and it may pass."""


class Restore(Protocol):
    """What an engine keeps in order to reset the instances of a module."""

    @property
    def size(self) -> int:
        """Number of bytes that are kept."""


class PartCode:
    """Compiled code of one part of a graph."""

    __slots__ = ("data", "offsets")

    def __init__(self, data: bytes, offsets: CodeOffsets) -> None:
        self.data = data
        self.offsets = offsets
        """Map from offsets in the compiled module to those in the bytes given to `register`."""


@frozen(eq=False, repr=False)
class Artifact:
    """Compiled code at rest: plain bytes that only the engine that made them may load again.

    `data`, `info`, `edits`, `offsets` and `debug` are those of the module that was given. Where it
    has a `graph`, sizes and mappings are those of all parts together.
    """

    data: bytes
    code_size: int
    """Bytes of the image once loaded, in whole system pages."""
    info: ModuleInfo
    """Declarations of the module as it was given, before any edits."""
    edits: Edits
    restore: Restore | None = None
    """What `GuestInstance.mark` needs; only the engine knows what it is."""
    obstacle: str | None = None
    """Reason why its instances can't be reset, found by trying."""
    address_space: int = 0
    """Addresses that a new instance reserves (bytes), its stack included."""
    mappings: int = 0
    """Memory mappings of a new instance."""
    module_mappings: int = 0
    """Memory mappings of the code, once loaded."""
    load_time: int = 0
    """Approximate time that loading it takes (nanoseconds)."""
    offsets: CodeOffsets = UNMOVED
    """Map from offsets in the compiled module, which was edited first, to those in the module as it
    was given."""
    debug: DebugSections | None = None
    """Debug sections of the module, for the lines of backtraces; `CachedModule` takes them out."""
    graph: Graph | None = None
    """Parts that its instances consist of, if there are others than the module that was given."""
    codes: tuple[PartCode, ...] = ()
    """Code of each part of the graph, the given module's included."""
    tier: Tier = OPTIMIZING
    """Compiler that compiled all of it."""
    bounded: frozenset[str] = frozenset()
    """Names of the exports of which every call is short: see `_core/wasm/bounds`."""
    long_calls: dict[str, tuple[int, int]] = field(
        factory=dict, init=False, eq=False, repr=False, hash=False
    )
    """What the engine has learnt about the first calls of exports, for later loads."""

    @property
    def size(self) -> int:
        """Number of bytes of all code, and of what is kept for resets."""
        codes = sum(len(code.data) for code in self.codes) or len(self.data)
        return codes + (0 if self.restore is None else self.restore.size)

    @property
    def modules(self) -> tuple[tuple[ModuleInfo, Edits], ...]:
        """Declarations and edits of each module in its instances."""
        return ((self.info, self.edits),) if self.graph is None else self.graph.modules

    @property
    def others(self) -> tuple[ModuleInfo, ...]:
        """Declarations of the parts, without the module that was given."""
        parts = () if self.graph is None else self.graph.parts
        return tuple(part.info for part in parts if part.name != USER)


@frozen(repr=False)
class HostImport:
    """A host function as the engine sees it: its names and its type."""

    module: str
    name: str
    type: FuncType
    serve: Callable[[HostCall], Any] | None = field(default=None, eq=False, repr=False)
    """Function that answers a call without the runner, for `Engine.prove`. It returns the results,
    or a generator that yields seconds to wait and returns them. None: only the runner can."""
    reentrant: bool = False
    """Whether it may call exports of the guest before it answers; see `HostCall.invoke`."""
    helper: Arm | Returned | None = None
    """Import of a trampoline that the engine answers itself; None: a host function does."""
    part: str = USER
    """Name of the part whose memory `HostCall.memory` is."""


def _take_all(fuel: int) -> int:
    return fuel


START: Final = "start"
"""Key in `HostCall.state` of what was noted of the instance's start, which a reset does not
undo."""


def keep_start(state: dict[str, Any]) -> None:
    """Clear what host functions keep about an instance, except what belongs to its start."""
    if state:
        start = state.get(START)
        state.clear()
        if start is not None:
            state[START] = start


class Watch(Protocol):
    """Observer of a guest that is prepared: of what can't be kept for other instances."""

    def drawn(self, what: str, remedy: str) -> None:
        """Note that the guest gets something that is not the same each time; may raise.

        Args:
            what: it, such as ``"random bytes"``.
            remedy: what the application can give in its place.
        """

    def changed(self, what: str) -> None:
        """Note that the guest changes something of its host's; raises."""


class HostCaller(Protocol):
    """What a host call is a part of: a call of a guest, a batch, the start of an instance."""

    @property
    def watch(self) -> Watch | None:
        """Observer of what can't be kept, while the guest is prepared; else None."""

    @property
    def keep(self) -> dict[str, Any]:
        """Storage of host functions for what they know about it; empty when it begins.

        Each row of a batch begins anew.
        """

    @property
    def quiet(self) -> bool:
        """Whether nobody is to notice it, as it is a trial: see `Engine.prove`."""

    def refuse_host_call(self) -> Exception | None:
        """Return the error for a host call that the guest makes while it must not, or None."""

    def note_host_error(self, index: int, error: Exception) -> None:
        """Add to an exception of a host function which import it is, and whose guest called it."""

    def burnt(self) -> int:
        """Return the units of fuel that it has burnt so far."""

    def log_line(self, stream: str, line: str) -> bool:
        """Log a line that the guest wrote; return False if it was dropped."""

    def log_dropped(self, lines: int, size: int) -> None:
        """Log how many lines of the guest were dropped, and their bytes."""


class HostCall:
    """A call of a host function; the guest is suspended until it is answered."""

    __slots__ = (
        "answer",
        "caller",
        "grants",
        "index",
        "invoke",
        "invoking",
        "lend",
        "memory",
        "result",
        "serve",
        "spent",
        "state",
        "take_fuel",
        "values",
    )

    def __init__(
        self,
        index: int,
        values: tuple[Any, ...],
        memory: LentMemory | None,
        answer: Callable[[Sequence[object]], None],
        take_fuel: Callable[[int], int] = _take_all,
        state: dict[str, Any] | None = None,
        serve: Callable[[HostCall], Generator[float, None, tuple[object, ...]]] | None = None,
        grants: Any = None,
    ) -> None:
        self.index: int = index
        """Position of the host function among the module's imports."""
        self.values: tuple[Any, ...] = values
        self.memory: LentMemory | None = memory
        """The memory of the guest, or of the part that `HostImport.part` names, to be used until
        the guest goes on."""
        self.answer: Callable[[Sequence[object]], None] = answer
        """Function that puts the results in place; the next poll resumes the guest."""
        self.take_fuel: Callable[[int], int] = take_fuel
        """Function that takes this many units of the fuel that the guest's call has left, or all of
        it if that is less; it returns how many it took."""
        self.state: dict[str, Any] = {} if state is None else state
        """Storage of host functions for what they know about this instance; a reset clears it."""
        self.spent: int = 0
        """Units of fuel that this host call has cost and that its job has not counted yet."""
        self.serve: Callable[[HostCall], Generator[float, None, tuple[object, ...]]] | None = serve
        """Function of the engine that answers it, at no cost: it yields seconds to wait, and
        returns the results. None: the host function of that index answers."""
        self.caller: HostCaller | None = None
        """Call, batch or start that it is a part of; whoever drives the guest sets this."""
        self.grants: Any = grants
        """What the host function was registered with, which it notes here."""
        self.invoke: Callable[[str, Sequence[object]], None] | None = None
        """Function that has the guest call an export, by name and wasm values, before it goes on.
        The next polls run the export. Once it has returned, `GuestInstance.host_call` is this call
        again, and `result` is there. The function raises, and changes nothing, `LookupError` if
        there is no such export to call, and `TypeError`, `ValueError` or `OverflowError` if the
        values do not fit. None: the host function is not reentrant."""
        self.result: Any = None
        """Result of the export that was called last: None, a value, or a tuple."""
        self.invoking: bool = False
        """Whether such an export is under way; whoever drives the guest sets this."""
        self.lend: Callable[[Any], Any] | None = None
        """Function that returns the new `memory`, given that of the engine, once an export has
        returned; None: `memory` is that of the engine itself."""

    def spend(self, fuel: int) -> None:
        """Charge the guest's call for something that the host does for it, before it is done.

        Args:
            fuel: units of fuel.

        Raises:
            FuelExhaustedError: the call had less than that left, which was taken.
        """
        taken = self.take_fuel(fuel)
        self.spent += taken
        if taken < fuel:
            raise FuelExhaustedError("all fuel is burnt")


class GuestMemory(Protocol):
    """The linear memory of an instance."""

    @property
    def size(self) -> int:
        """Size of the memory (bytes)."""

    def read(self, at: int, n: int) -> bytes:
        """Return a copy of `n` bytes from address `at`; `IndexError` outside of the memory."""

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at address `at`; `IndexError` outside, and nothing is written."""

    def grow(self, pages: int) -> int:
        """Add pages; return the address of the first. `MemoryLimitError` beyond the limits."""


class LentMemory(GuestMemory, Protocol):
    """The linear memory of an instance while its guest waits for the host."""

    def end(self) -> None:
        """Become empty: the guest is gone, or goes on."""


class Window(Protocol):
    """The first pages of a memory, which stay where they are for as long as the instance exists.

    It is the fastest way to the memory: only whether the instance is closed is checked, so no code
    of the caller's values may run meanwhile.
    """

    @property
    def view(self) -> memoryview:
        """The bytes; empty once the instance is closed."""


class OwnMemory(GuestMemory, Protocol):
    """The linear memory of an instance that has no call under way."""

    def view(self) -> memoryview:
        """Return all bytes, read-only and not copied, for use until the guest runs or it grows.

        It is empty once the instance is closed.
        """


class Counter(Protocol):
    """A number that changes."""

    @property
    def value(self) -> int:
        """Number that was written last."""


class GuestFunction(Protocol):
    """An exported function of one instance, with its argument cells prepared."""

    @property
    def type(self) -> FuncType:
        """Type of the function, in wasm types."""

    def begin(self, values: Sequence[object], fuel: int) -> Any:
        """Begin a call, and run its first slice.

        It is the fast path of every call: one step for what `poll` and `finish` do.

        Args:
            values: a tuple of ints and floats. None of their own code is run: of an instance of a
                subclass, an engine takes the number itself, or refuses it.
            fuel: units of fuel of the call.

        Returns:
            The result if the first slice ends the call: None, a value, or a tuple. Else
            `UNDER_WAY`.

        Raises:
            InexactError: the values are no such tuple; convert them, and begin again if the
                instance still exists then.
            TypeError, ValueError, OverflowError: the values do not fit its wasm types; no call is
                under way, and no wasm has run.
            NoMemoryError: the system refused a stack; no call is under way, and no wasm has run.
            GuestError: the guest failed in its first slice.
        """

    @property
    def left(self) -> Counter:
        """Units of fuel that were left when `begin` last returned a result; always one object."""

    def finish(self) -> Any:
        """Return the result of a call that is over, as `poll` said: None, a value, or a tuple.

        Raises:
            GuestError: it trapped, ran out of fuel, or exited.
        """


class GuestDriver(Protocol):
    """Calls an export for each row of columns in its scratch memory; see `_core/wasm/driver`.

    It is a part of its instance: what it begins is polled and abandoned there.
    """

    def put(self, at: int, data: bytes | memoryview) -> None:
        """Write bytes at an address of the scratch; the caller ensures that they fit."""

    def get(self, at: int, size: int) -> memoryview:
        """Return bytes of the scratch from an address, not copied: for use at once."""

    def abridge(self, codes: frozenset[str]) -> None:
        """Raise the errors of traps with these codes without frames, which take most of the time.

        Args:
            codes: of `TrapError.code`; also ``"out of fuel"`` and ``"call stack exhausted"``.
        """

    def begin(self, rows: int, fuel: int) -> int | UnderWay:
        """Begin to call for this many rows, and run the first slice; see `GuestFunction.begin`.

        The result is the number of rows that are done: all, or those before the one that stopped
        it.
        """

    def finish(self) -> int:
        """Return the number of rows that are done, once `poll` said that it is over.

        Raises:
            GuestError: the guest failed.
        """


class DriverCode(Protocol):
    """A compiled driver, for any instance of its engine."""

    @property
    def shape(self) -> Any:
        """Shape that was compiled: a `Shape` or `MemoryShape`."""

    def attach(self, instance: Any, exports: Mapping[str, str | FromPart]) -> GuestDriver:
        """Return a driver that calls exports of an instance; the same one, if it has one already.

        Args:
            instance: of the same engine.
            exports: {name of an import of the driver: export of the module that was given, or of
                another part}; the memory is not among them.

        Raises:
            NoMemoryError: the system has no memory for it.
            LoadError: the engine could not make it.
        """


class GuestPart(Protocol):
    """One part of an instance: see `_core/wasm/graph`."""

    def function(self, name: str) -> GuestFunction:
        """Return the exported function of that name; see `GuestInstance.function`."""

    def memory(self, name: str) -> OwnMemory:
        """Return an exported memory; `LookupError` if there is none of that name."""

    def window(self, name: str) -> Window:
        """Return the first pages of an exported memory, for use at any time.

        Raises:
            LookupError: there is no memory of that name.
        """

    def fixed_memory(self, name: str) -> GuestMemory:
        """Return an exported memory that can't grow, for use also while the guest waits.

        It may be used while a host call of this instance is not answered, and nothing runs.

        Raises:
            LookupError: there is none of that name that can't grow.
        """

    def global_value(self, name: str) -> WasmValue:
        """Return the value of an exported global; `LookupError` if there is no such number."""


class Samples(Protocol):
    """Receiver of samples of a guest's stack. One thread at a time calls it.

    Two of them are equal if it does not matter which one receives a sample.
    """

    @property
    def over(self) -> bool:
        """Whether no more samples are wanted."""

    def add(self, frames: Sequence[Frame], fuel: int, samples: int) -> None:
        """Add samples that have the same stack.

        Args:
            frames: the functions that ran, the innermost first.
            fuel: units that they stand for, together.
            samples: their number.
        """

    def lose(self, fuel: int) -> None:
        """Note that a sample was lost, and the units that it stood for."""


class GuestInstance(Protocol):
    """A store with a module instantiated in it, or with the parts of a graph.

    When it is made, its start is under way. Functions, memory and globals are those of the module
    that was given; `part` has those of the others.
    """

    @property
    def host_call(self) -> HostCall | None:
        """Call of the host for which the guest waits, set by `poll`; None if it does not wait."""

    @property
    def memory(self) -> OwnMemory | None:
        """The exported memory; None if there is none."""

    @property
    def yield_fuel(self) -> int:
        """Units of fuel that one slice may burn."""

    def set_yield_fuel(self, fuel: int) -> None:
        """Let slices of later calls burn this many units; nothing is under way."""

    def poll(self) -> bool:
        """Run one slice of what is under way; return whether it is over. Any thread may call it."""

    def started(self) -> None:
        """End the start, which is over; raise the errors of `GuestFunction.finish`."""

    def start_function(self) -> GuestFunction | None:
        """Return the start function if it must still be called, after `started`.

        None: there is none, or instantiation has run it.
        """

    def mark(self) -> None:
        """Make the present state the one that `reset` restores; only after `Engine.prove`.

        Raises:
            LoadError: the engine could not make what that takes.
        """

    def reset(self, keep: GuestDriver | None = None) -> bool:
        """Restore the state in which it was marked, at once; return False if that can't be done.

        After False its state is unknown, and only `close` may follow.

        Args:
            keep: driver whose scratch is left as it is, as the lease goes on; None: none.
        """

    def freeze(self) -> dict[str, FrozenState]:
        """Return the state of each part of it, by name. Only if compiled with `Edits.observed`.

        It has started, and nothing is under way. Blocks: for threads.

        Raises:
            UnfreezableError: something of it can't be written into a module.
        """

    def function(self, name: str) -> GuestFunction:
        """Return the exported function of that name.

        Raises:
            AbiError: there is none, or values of one of its types can't cross.
        """

    @property
    def state(self) -> dict[str, Any]:
        """Storage of the ABI for what it knows about this instance."""

    @property
    def host_state(self) -> dict[str, Any]:
        """Storage of host functions, for reading: see `HostCall.state`."""

    def global_value(self, name: str) -> WasmValue:
        """Return the value of an exported global; `LookupError` if there is no such number."""

    def part(self, name: str) -> GuestPart:
        """Return a part of the instance, once it has started; `LookupError` if there is none."""

    def refused_memory(self) -> int | None:
        """Return the bytes by which the guest last asked a memory to grow, if a limit refused it.

        That may have been in an earlier call, which went on without the memory. None if the last
        growth succeeded, if not `Edits.memory_limit` but the module's own maximum or the system
        refused it, or while a call is under way.
        """

    def pass_samples(self, sink: Samples | None) -> None:
        """Pass samples of the guest's stack to a sink from now on; None: take none.

        Only a module that was compiled for it takes samples: see `tiers.PROFILED`. This may be
        called at any time, also while something is under way in another thread.
        """

    def abandon(self) -> None:
        """Stop what is under way for good, if anything is.

        Only `dump`, `reset` or `close` may follow.
        """

    def dump(self, most: int) -> tuple[DumpedInstance, ...]:
        """Return the state in which a failed call left it; only if compiled with `Edits.dumped`.

        Args:
            most: bytes of memories that are read, at most.
        """

    def fuel_left(self) -> int:
        """Return the units of fuel that the call has left that is, or was last, under way."""

    @property
    def fixed_size(self) -> int | None:
        """Result of `measure`, if only another driver can change it; else None."""

    def measure(self) -> int:
        """Return the bytes that it may touch now: see `Lease.size`."""

    @property
    def reserved(self) -> tuple[int, int]:
        """Addresses that it reserves now (bytes), and its mappings: more with each new driver."""

    def close(self) -> None:
        """Free the instance and all that belongs to it. Closing twice is fine."""


class LoadedModule(Protocol):
    """Executable code of a module, from which instances are made."""

    @property
    def at_once(self) -> bool:
        """Whether new instances have no start under way, as they are complete at once."""

    def instantiate(self, fuel: int, yield_fuel: int) -> GuestInstance:
        """Make an instance, with its start under way unless it is `at_once`.

        Args:
            fuel: units of fuel of its start.
            yield_fuel: units that one slice may burn.

        Raises:
            NoMemoryError: the system has no memory for it; `started` may raise it, too.
            LoadError: the engine could not make it.
        """

    def collect(self) -> None:
        """Pass on the samples of its instances that were taken so far; see `pass_samples`.

        Without this, they are passed on now and then, and when the module is closed.
        """

    def close(self) -> None:
        """Make no more instances; those that exist go on. Closing twice is fine."""


class Substitute:
    """A fake module, registered in place of what `register` was given."""

    __slots__ = ("args", "export", "returns", "takes_values", "wasm")

    def __init__(
        self,
        wasm: bytes,
        export: str,
        takes_values: bool = False,
        args: Sequence[str] | None = None,
        returns: str | Sequence[str] | None = None,
    ) -> None:
        self.wasm: bytes = wasm
        self.export: str = export
        """Name of its one exported function."""
        self.takes_values: bool = takes_values
        """Whether the function takes and returns Python values, which no ABI converts."""
        self.args: Sequence[str] | None = args
        """Types of the arguments that it takes; None: any."""
        self.returns: str | Sequence[str] | None = returns
        """Type of its result; used with `args` only."""


class Engine(Protocol):
    """Compiles modules, and makes them executable. Each cache has an engine of its own."""

    @property
    def system(self) -> SystemLimits:
        """Addresses and mappings that the system leaves to the cache."""

    @property
    def compile_slots(self) -> CompileSlots:
        """The slots in which it compiles, and the groups that wait for one."""

    @property
    def open_instances(self) -> int:
        """Number of instances that are not closed."""

    @property
    def scratch_size(self) -> int:
        """Bytes of the scratch memories of drivers, in all instances that are not closed."""

    @property
    def code_sizes(self) -> dict[Tier, int]:
        """``{tier: bytes of code of loaded modules}``, of the tiers in which it compiles."""

    def substitute(self, name: str, wasm: object) -> Substitute | None:
        """Return what to register as function `name` in place of `wasm`; None: `wasm` itself."""

    async def to_wasm(self, text: str) -> bytes:
        """Convert text to the binary format; `InvalidModuleError` says where it is wrong.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """

    def turn(self, group: Hashable) -> Turn:
        """Return a place in line for `compile` and `prove`, in the turn of that group."""

    async def compile(
        self,
        wasm: bytes,
        admit: Callable[[ModuleInfo], Edits | Graph],
        turn: AnyTurn | None = None,
        tier: Tier | None = None,
    ) -> Artifact:
        """Read, check, edit and compile a module, off the event loop, when it is its turn.

        Args:
            wasm: the module, in the binary format.
            admit: function that takes what the sections declare, raises if the module is not
                admitted, and returns what to change; or a graph of which the module is the user's
                part. It may be called in another thread.
            turn: turn that it waits for; None: that of a group of its own.
            tier: tier that is tried first; the optimizing one is the last. None: the engine's.

        Raises:
            InvalidModuleError: it can't be read or compiled.
            NoMemoryError: the system has no memory for it.
            ExcessiveModuleError: it is not worth reading.
            trio.ClosedResourceError: the engine was closed while it waited.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned, and leaves nothing behind.
        """

    async def prove(
        self,
        artifact: Artifact,
        hosts: Sequence[HostImport],
        initialize: Sequence[StartCall],
        turn: AnyTurn | None = None,
    ) -> Artifact:
        """Find out, off the event loop, how instances of an artifact are reset, or why not.

        Args:
            artifact: compiled with `Edits.reset`.
            hosts: what it imports.
            initialize: exports that are called once an instance has started.
            turn: see `compile`.

        Returns:
            The artifact with what `GuestInstance.mark` needs, or with an `obstacle`.

        Raises:
            NoMemoryError: the system has no memory for trying.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned, and leaves nothing behind.
        """

    async def find_state(self, key: str) -> bytes | memoryview | None:
        """Return the bytes that `keep_state` kept for a key, maybe in another process; or None.

        **Checkpoint:** if anything is kept on disk.
        **Cancellation:** the thread is abandoned.
        """

    async def keep_state(self, key: str, data: bytes) -> None:
        """Keep on disk what a prepared function begins with, if anything is kept there.

        Args:
            key: hexadecimal digits.
            data: bytes of any number.

        **Checkpoint:** if anything is kept on disk.
        **Cancellation:** the thread is abandoned; the data may be kept all the same.
        """

    def load_nowait(self, artifact: Artifact, hosts: Sequence[HostImport]) -> LoadedModule | None:
        """Make an artifact executable and link it, if that is quick; else return None.

        Raises:
            Exception: the errors of `load`.
        """

    async def load(self, artifact: Artifact, hosts: Sequence[HostImport]) -> LoadedModule:
        """Make an artifact executable and link it, in a thread if that takes long.

        Raises:
            LinkError: wasmtime would not link it after all.
            NoMemoryError: the system has no memory for it.
            LoadError: the engine could not make it.
            trio.ClosedResourceError: the engine is closed, or was closed meanwhile.

        **Checkpoint:** if it takes a thread.
        **Cancellation:** only before the thread begins; nothing is left behind.
        """

    async def count_resident(
        self,
        *,
        idle: Sequence[Any],
        running: Sequence[Any],
        modules: Sequence[Any],
    ) -> ResidentBytes:
        """Return how much of these instances and modules, which are its own, is in memory.

        Those that run may go on, or be closed, meanwhile.

        Raises:
            NotImplementedError: the system does not say.

        **Checkpoint:** always.
        **Cancellation:** the thread is abandoned.
        """

    async def driver(self, shape: Shape | MemoryShape, tier: Tier) -> DriverCode | None:
        """Return the driver of a shape, compiled off the event loop if it is not there yet.

        None: this engine has none for functions whose values cross through memory.

        Args:
            shape: of the driver.
            tier: `Artifact.tier` of the instances that it is for.

        Raises:
            NoMemoryError: the system has no memory for it.
            LoadError: it can't be compiled.
            trio.ClosedResourceError: the engine is closed, or was closed meanwhile.

        **Checkpoint:** if it has to be compiled.
        **Cancellation:** the thread is abandoned, and leaves nothing behind.
        """

    def close(self) -> None:
        """Load and compile nothing any more; a compile under way ends by itself, and is dropped."""
