"""A function bound to an instance: everything that calls need, looked up once for all leases."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from attrs import Factory, evolve, frozen

from .._abi.base import Binding, Direct, Guest, Steps, Value
from .._abi.plain import shown
from .._core.config import CacheConfig, KiB
from .._core.costs import copy_fuel
from .._core.dumps import MAX_SIZE, Dump, DumpBook
from .._core.errors import FuelExhaustedError, GuestError, StackOverflowError, TrapError
from .._core.keys import MAX_NAME_LENGTH
from .._core.output import last_words
from .._core.policy.policy import Policy
from .._core.policy.records import Entry, FunctionRecord, Instance, Need
from .._core.portable import CallValues
from .._core.tally import size_of
from .._core.text import printable
from .._core.tiers import Tier
from .._core.wasm.admission import sharing
from .._engine.base import (
    Artifact,
    Counter,
    DriverCode,
    GuestDriver,
    GuestFunction,
    GuestInstance,
    NoMemoryError,
)
from .module import CachedModule
from .relief import Relief

if TYPE_CHECKING:
    from .._core.wasm.graph import FromPart

Begin: TypeAlias = Callable[[Sequence[object], int], Value]
"""Begins a call: see `GuestFunction.begin`."""
# Exports among which names are looked for. A guest can have 50,000, and fail as often as it likes.
MAX_SEARCHED = 1000


@final
class Failure:
    """How a call failed, so that its instance can serve no other: for the log."""

    __slots__ = ("error", "fuel", "reason")

    def __init__(self, error: str, reason: str | None = None, fuel: int = 0) -> None:
        self.error: str = error
        """Type of the error."""
        self.reason: str | None = reason
        """Why the guest failed, and its last words; None if it is no error of the guest."""
        self.fuel: int = fuel
        """Units of fuel that the dump of the instance costs, beside what the call burnt."""


@final
@frozen(eq=False, repr=False)
class Definition:
    """A registered function: its declaration and its module."""

    public: object
    """`Function` that users have."""
    returns: str | tuple[str, ...] | None
    module: CachedModule
    binding: Binding
    export: str
    called_on_null: bool
    keeps_state: bool = True
    """Whether an instance keeps its state from one lease to the next."""
    resets: bool = False
    """Whether an instance that does not keep its state is reset, and not closed."""
    setup: object = None
    """With `log_values`: how it was registered, see `recording.Setup`."""
    command: bool = False
    """Whether it is a WASI command, which may end its call with `proc_exit(0)`."""
    takes_none: tuple[bool, ...] | None = None
    """Whether None is a value of each argument, as it is of WIT's options; None: of no one."""
    serves_again: bool = Factory(lambda self: self.keeps_state or self.resets, takes_self=True)
    """Whether an instance can go from lease to lease."""

    def without_resets(self, isolation_verdict: str, cache_verdict: str) -> Definition:
        """Return the definition of the function once its instances are not reset any more."""
        public: Any = self.public
        verdicts = {"isolation_verdict": isolation_verdict, "cache_verdict": cache_verdict}
        return evolve(self, public=evolve(public, **verdicts), resets=False, serves_again=False)

    def promoted(self, module: CachedModule) -> Definition:
        """Return the definition of the function with its code in another module."""
        return evolve(self, module=module)

    @staticmethod
    def of(record: FunctionRecord) -> Definition:
        """Return the definition of a function record of the policy."""
        definition = record.definition
        assert isinstance(definition, Definition)
        return definition


@final
class BoundFunction:
    """A function of an instance that is ready to be called; stored in `Instance.bound`."""

    __slots__ = (
        "_attached",
        "begin",
        "definition",
        "entry",
        "fixed_size",
        "guest",
        "last",
        "left",
        "lift",
        "lower",
        "measure",
        "native",
        "recorded",
        "small",
        "steps",
        "total_fuel",
    )

    def __init__(
        self,
        native: GuestInstance,
        guest: GuestFunction,
        definition: Definition,
        entry: Entry,
        total_fuel: int,
        begin: Begin,
        left: Counter,
        measure: Callable[[GuestInstance], int],
        lower: Callable[[tuple[object, ...]], Value] | None,
        lift: Callable[[Value], Value] | None,
        steps: Callable[[Guest, tuple[object, ...]], Steps] | None,
        recorded: bool = False,
        fixed_size: int | None = None,
    ) -> None:
        self.native: GuestInstance = native
        self.guest: GuestFunction = guest
        self.definition: Definition = definition
        self.entry: Entry = entry
        self.total_fuel: int = total_fuel
        """Units of fuel that one call may burn; after a change of the limit it is bound anew."""
        # Attributes of the above that every call and every recycle needs.
        self.begin: Begin = begin
        self.left: Counter = left
        self.measure: Callable[[GuestInstance], int] = measure
        """Function that returns the size of `native` for the fast path of a recycle; it first
        resets an instance that does not keep its state."""
        self.fixed_size: int | None = fixed_size
        """What that returns, where it need not be asked, and `native` not be touched."""
        self.lower: Callable[[tuple[object, ...]], Value] | None = lower
        """Function `lower` of the binding, or with `steps` of a `Direct`, if there is one; so is
        `lift`."""
        self.lift: Callable[[Value], Value] | None = lift
        self.steps: Callable[[Guest, tuple[object, ...]], Steps] | None = steps
        self.last: tuple[int, tuple[int, int]] | None = None
        """Size and reservation of the instance (bytes; bytes of addresses, mappings), if it was
        closed before its lease ends; None: it was not."""

        self.recorded: bool = recorded
        """Whether each call needs a `Call` from its beginning, as it is noted."""
        self._attached: dict[Hashable, tuple[DriverCode, GuestDriver]] | None = None
        self.small: Any = None
        """`_batch.small.SmallBatches` with such a driver; None: there was none yet, or each call is
        recorded."""

    def attached(self, shape: Hashable) -> tuple[DriverCode, GuestDriver] | None:
        """Return the driver that was attached for that shape, with its code."""
        return None if self._attached is None else self._attached.get(shape)

    def note_attached(self, shape: Hashable, code: DriverCode, driver: GuestDriver) -> None:
        """Keep a driver that calls this function, for `attached`."""
        self._attached = {**(self._attached or {}), shape: (code, driver)}

    def keep_attached(self, before: BoundFunction) -> None:
        """Keep what was attached to the instance when its function was bound before."""
        self._attached = before._attached

    @property
    def size(self) -> int:
        """Bytes that the instance may touch now, or could when it was closed early."""
        return self.native.measure() if self.last is None else self.last[0]

    def close_early(self) -> None:
        """Free the instance, in which nothing runs, before its lease ends."""
        if self.last is None:
            self.last = self.native.measure(), self.native.reserved
            self.native.close()

    @staticmethod
    def of(instance: Instance) -> BoundFunction:
        """Return the bound function of an instance of the policy that is loaded."""
        bound = instance.bound
        assert isinstance(bound, BoundFunction)
        return bound

    def close(self) -> None:
        """Free the instance."""
        self.native.close()

    @property
    def binding(self) -> Binding:
        """How values cross."""
        return self.definition.binding

    @property
    def tier(self) -> Tier:
        """Which compiler compiled its code."""
        return self.definition.module.artifact.tier

    @property
    def counts_results(self) -> bool:
        """Whether the ABI counts everything it makes of a result, as those of this library do."""
        return getattr(self.binding, "counts_results", False)

    def gives_null(self, values: tuple[object, ...]) -> bool:
        """Return whether a call with these values returns None without running the guest."""
        definition = self.definition
        if definition.called_on_null or len(values) != self.binding.arity:
            return False
        if definition.takes_none is None:
            return any(value is None for value in values)
        pairs = zip(values, definition.takes_none, strict=True)
        return any(value is None and not taken for value, taken in pairs)

    def attach(
        self,
        relief: Relief,
        need: Need,
        code: DriverCode,
        exports: Mapping[str, str | FromPart],
    ) -> GuestDriver:
        """Attach a driver to the instance; evict idle instances if the system has no memory for it.

        The driver reserves addresses of its own, which are booked when the lease ends.

        Args:
            relief: the cache's.
            need: whose need it is.
            code: the compiled driver.
            exports: {name in the driver: export of the instance}.

        Raises:
            CodeMemoryError: the system still has no memory, and no idle instance is left to evict.
        """
        reserved = self.native.reserved
        needed = max(1, reserved[0]), max(1, reserved[1])
        self.fixed_size = None
        driver = relief.run(need, needed, code.attach, self.native, exports)
        if self.native.reserved != reserved:
            self.measure = _the_long_way
        return driver

    def fail(
        self,
        policy: Policy,
        dumps: DumpBook,
        error: BaseException,
        values: tuple[object, ...],
        fuel: int,
    ) -> Failure:
        """Abandon the failed call of the instance, and complete the error with its facts."""
        policy.note_error(self.entry, type(error).__name__)
        self.native.abandon()
        reason, cost = self.explain(policy, error, values, fuel), 0
        if dumps.most and isinstance(error, GuestError) and reason is not None:
            cost = self._dump(dumps, error)
        return Failure(type(error).__name__, reason, cost)

    def _dump(self, dumps: DumpBook, error: GuestError) -> int:
        """Keep what the failed call has left for `GuestError.dump`; return what that costs."""
        dump = Dump(error.function, self.native.dump(MAX_SIZE))
        error.keep_dump(dump)
        dumps.add(dump)
        return copy_fuel(self.native.measure())

    def explain(
        self, policy: Policy, error: BaseException, values: tuple[object, ...], fuel: int
    ) -> str | None:
        """Complete the error of a call that has failed in the instance with all facts.

        Return the reason, as `complete` does; None if the error is not one of this guest.
        """
        if isinstance(error, GuestError) and not error.function:
            # Not for the error of another guest, which a host function of this one called.
            if isinstance(error, StackOverflowError) and error.backtrace:
                # Without one it is that of `Lease.invoke`, whose message says all.
                limit = stack_limit(policy.config)
                error.args = (f"{error.args[0]}; {limit}", *error.args[1:])
            self._name_frames(error)
            self._say_refusal(error)
            if isinstance(error, TrapError):
                note = getattr(self.binding, "trap_note", "")
                if hasattr(self.binding, "note_of_trap") and error.frames:
                    note = self.binding.note_of_trap(error.frames[-1].function)
                if note:
                    error.args = (f"{error.args[0]}; {note}", *error.args[1:])
            reported = getattr(self.binding, "reported_error", None)
            if reported is not None and (words := reported(self.native)):
                error.args = (f"{error.args[0]}; it had reported: {words}", *error.args[1:])
            return self.complete(error, values, fuel)
        return None

    def _name_frames(self, error: GuestError) -> None:
        """Give functions without a name that of their export, as in a module that was stripped."""
        exports = self.definition.module.artifact.info.exports
        # Those of no graph that have no name, {index of the function: what stands for its name}.
        unnamed = {
            index: frame.function
            for frame in error.frames
            for part, index, _ in [frame.place or (b"", -1, 0)]
            if frame.function == f"func[{index}]" and not part
        }
        if not unnamed or len(exports) > MAX_SEARCHED:
            return
        names = {
            unnamed[one.index]: printable(one.name, MAX_NAME_LENGTH)
            for one in reversed(exports)  # the first name of a function is the one that stays
            if one.kind == "func" and one.index in unnamed and one.name.strip()
        }
        if not names:
            return
        error.frames = tuple(
            evolve(one, function=names.get(one.function, one.function)) for one in error.frames
        )
        lines = []
        for line in error.backtrace:
            label, space, rest = line.partition(" ")
            lines.append(f"{names.get(label, label)}{space}{rest}")
        error.backtrace = tuple(lines)

    def _say_refusal(self, error: GuestError) -> None:
        """Add to the error of a guest how much memory it was refused."""
        refused = error.refused_memory = self.native.refused_memory()
        reason = error.args[0]
        if refused is not None and "memory_limit" not in reason:
            words = refusal(refused, self.definition.module.artifact)
            error.args = (f"{reason}; {words}", *error.args[1:])

    def complete(self, error: GuestError, values: tuple[object, ...], fuel: int) -> str:
        """Add the function, the values of the call and the fuel that it burnt to the error.

        Return the reason and the guest's last words, without the values and the frames.
        """
        key = self.entry.function.key
        error.function = key.name
        error.values = kept_values(values)
        listed = ", ".join(shown(value) for value in values[:MAX_SHOWN])
        if len(values) > MAX_SHOWN:
            listed += f", and {len(values) - MAX_SHOWN} more"
        trace = "".join(f"\n  {frame}" for frame in error.backtrace)
        burnt = f" after {fuel} units of fuel" if fuel else ""
        row = "" if error.row is None else f" in row {error.row} of a batch,"
        what = f"{key}{row} called with ({listed}){burnt}"
        reason: str = error.args[0]
        if isinstance(error, FuelExhaustedError):
            reason = f"{reason}; {fuel_limit(self.total_fuel)}"
        reason += last_words(error.output)
        error.args = (f"{what}: {reason}{trace}", *error.args[1:])
        if self.counts_results:
            # Frames and errors of a conversion would keep the data that was converted.
            error.__traceback__ = error.__context__ = None
        return reason


# A size that no limit allows.
TOO_LARGE: Final = 1 << 4096
# Bytes of the arguments of a failed call that its error keeps; characters or bytes that it keeps of
# a str or bytes that exceeds them; and arguments that its message shows.
MAX_KEPT, BEGINNING, MAX_SHOWN = 64 * KiB, 1000, 20


def bind(
    definition: Definition,
    entry: Entry,
    native: GuestInstance,
    total_fuel: int,
    metered: Callable[[Begin], Begin] | None = None,
    recorded: bool = False,
) -> BoundFunction:
    """Bind the function of `entry`, of this definition, to one of its instances.

    Where the group has a `cpu_limit`, `metered` makes the beginning of a call charge its CPU time.
    If it is `recorded`, all calls take the long way.
    """
    guest, binding = native.function(definition.export), definition.binding
    lower: Callable[[tuple[object, ...]], Value] | None = None
    lift: Callable[[Value], Value] | None = None
    if binding.steps is None:
        lower, lift = binding.lower, binding.lift
    elif (
        (made := getattr(binding, "direct", None)) is not None
        and not definition.command
        and not recorded
    ):
        called: FromPart | None = getattr(binding, "entry", None)
        if called is not None:
            guest = native.part(called.part).function(called.export)
        direct: Direct = made(native)
        lower, lift = direct.lower, direct.lift
    begin = guest.begin if metered is None else metered(guest.begin)
    if recorded:
        begin = _the_long_way_round
    return BoundFunction(
        native,
        guest,
        definition,
        entry,
        total_fuel,
        begin,
        guest.left,
        _put_back if definition.resets else type(native).measure,
        lower,
        lift,
        binding.steps,
        recorded=recorded,
        fixed_size=None if definition.resets else native.fixed_size,
    )


def _the_long_way_round(_values: Sequence[object], _fuel: int) -> Value:
    """Begin no call, as if there were no stack: then its lease makes a `Call`, which begins it."""
    raise NoMemoryError("this call is noted")


def fuel_limit(total_fuel: int) -> str:
    """Return the limit of fuel and the remedy, as the end of a message."""
    return f"total_fuel is {total_fuel}: raise it, unless the guest is in an endless loop"


def stack_limit(config: CacheConfig) -> str:
    """Return the limit of the stack and the remedy, as the end of a message."""
    part = "of which it can use half"
    if config.instance_stack_size != config.stack_size:
        times = config.instance_stack_size // config.stack_size // 2
        part = f"and it can use {times} times as much with compiler={config.compiler!r}"
    return f"stack_size is {config.stack_size}, {part}: raise it, unless its recursion never ends"


def refusal(refused: int, artifact: Artifact) -> str:
    """Return that memory was refused, and the limit, as the end of a message."""
    return (
        f"when it last asked for memory ({refused} bytes more), its memory could not grow beyond "
        f"memory_limit = {artifact.edits.memory_limit}{sharing(*artifact.modules)}"
    )


def _the_long_way(_native: GuestInstance) -> int:
    """Return a size that keeps an instance, whose reservation has changed, off the fast path."""
    return TOO_LARGE


def _put_back(native: GuestInstance) -> int:
    """Reset the instance and return its size, or a size that keeps it off the fast path."""
    return native.measure() if native.reset() else TOO_LARGE


def kept_values(values: tuple[object, ...]) -> CallValues:
    """Return the arguments of a failed call as its error keeps them: large ones are cut."""
    kept, left = [], MAX_KEPT
    for value in values:
        size = size_of(value, left)
        if size > left:
            value, size = _beginning(value), 0
        left -= size
        kept.append(value)
    return CallValues(kept)


def _beginning(value: object) -> object:
    if isinstance(value, (str, bytes)) and type(value) in (str, bytes):
        return value[:BEGINNING]
    return shown(value)
