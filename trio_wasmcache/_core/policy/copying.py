"""A copy of the policy's books at one moment, its parts for the log, and what they say together.

Copying is one synchronous pass over what is in the cache, mostly in C: references to what never
changes, and numbers. `PolicyCopy.parts` turns them into events later, in the log's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Generic, TypeVar, final

from attrs import Factory, define, frozen

from ..snapshot import (
    LISTS,
    SnapshotFunction,
    SnapshotGone,
    SnapshotGroup,
    SnapshotModule,
    SnapshotOrder,
    SnapshotPart,
    SnapshotRequest,
    SnapshotResident,
    SnapshotTokenWait,
)
from .idle_times import IdleTimes
from .keep_alive import KeepAliveCopy
from .lifecycle import IDLE, State
from .order import OrderCopy
from .records import Entry, FunctionRecord, Instance, Module, Request, Stage, Variant

T = TypeVar("T")
Fields = dict[str, Any]
# Items of one part, and characters of their names: a line of a log stays far below 1 MiB.
MOST_ITEMS, MOST_LETTERS = 50, 100_000
# Registered functions of which those without an instance are left out beyond this number.
MAX_FUNCTIONS = 100_000
COLUMNS = (
    "size",
    "address_space",
    "mappings",
    "last_used",
    "rested",
    "uses",
    "seat",
    "uses_before",
)
"""Fields of an instance that change, and that a snapshot has."""
STAGES = {
    Stage.QUEUED: "instance",
    Stage.ROOM: "room",
    Stage.LOADING: "loading",
    Stage.GRANTED: "granted",
    Stage.ENDED: "ended",
}
"""{stage of a request: the same in a snapshot}."""


@final
@frozen
class UnderWay:
    """What the log knows of a request whose end is not logged yet."""

    request: Request
    number: int
    task: int
    acquired: bool
    requested_at: float
    """Time at which it asked for an instance (seconds)."""
    deadline: float | None
    """Time at which its caller gives up (seconds); None: never."""
    for_tasks: str | None = None
    """Numbers of the tasks that wait for it, if it is a preparation; None: it is an acquire."""


@final
@frozen(eq=False)
class Residents:
    """The instances of one cache, and their order."""

    instances: Sequence[Instance]
    """Idle ones first; then those that are loading or running."""
    columns: Sequence[Sequence[Any]]
    """For each of `COLUMNS`, the values of all instances."""
    held: Sequence[tuple[State, bool, bool]]
    """For each that is not idle: its state, whether it loads its module, and is `altered`."""
    entries: Sequence[Entry]
    evictable: Sequence[Module]
    order: OrderCopy
    keep_alive: KeepAliveCopy
    paired: Set[Instance]
    """Those of earlier modules for which one of optimized code stood in while they ran."""
    evictions: int
    loads: int
    rests: int
    drops: int


@final
@frozen(eq=False)
class PolicyCopy:
    """The books of a cache at one moment; they do not change any more."""

    residents: Residents
    functions: Sequence[FunctionRecord]
    """Registered ones first; then old generations that are in use."""
    loading: Sequence[float | None]
    """For each, the seconds of loading."""
    resets: Mapping[FunctionRecord, str]
    """{function whose instances are reset: how often they have grown}."""
    variants: Mapping[FunctionRecord, Variant]
    """{function that is profiled: of which its new instances are made}."""
    successors: Mapping[FunctionRecord, FunctionRecord | None]
    """{old generation: the function that serves in its place}."""
    modules: Sequence[Module]
    """Module of each function; then the earlier ones of those that were promoted, variants, and
    modules of which instances are held that will not be kept."""
    of_modules: tuple[Sequence[float | None], Sequence[int]]
    """For each, the seconds of loading, and `stopped`."""
    omitted: int
    """Number of registered functions that are left out."""
    under_way: Sequence[UnderWay]
    """Those that hold capacity first, then those that wait for it, each in order."""
    requests: Sequence[tuple[Stage, Entry, Instance | None, bool, bool, bool, bool, int, Any]]
    """For each of these: stage, entry, instance, warm, blocked, hit, handed over, turn, error."""
    claims: Mapping[Request, int]
    """{request: its place among those that may have an instance}."""
    counts: Mapping[str, int]
    """Fields of `SnapshotPart` with counts."""

    def parts(
        self,
        head: Fields,
        groups: Sequence[SnapshotGroup],
        token_waits: Sequence[SnapshotTokenWait],
    ) -> Iterator[SnapshotPart]:
        """Yield the parts of a snapshot, to which `head` adds the other fields.

        Any thread may call it.
        """
        lists = _Rendering(self).lists(groups, token_waits)
        plan = list(_plan(lists))
        everyone = self.residents.keep_alive.everyone
        head = {**self.counts, "omitted_functions": self.omitted, "idle_times": everyone, **head}
        for number, pieces in enumerate(plan, 1):
            made: Fields = {
                one.name: tuple(map(one.make, one.of[start:end])) for one, start, end in pieces
            }
            yield SnapshotPart(**head, part=number, parts=len(plan), **made)


@final
@frozen(eq=False)
class _List(Generic[T]):
    """One of the lists of a snapshot, made piece by piece."""

    name: str
    of: Sequence[T]
    make: Callable[[T], Any]
    letters: Callable[[T], int]
    """Returns the number of characters in the names of one item."""


def _plan(lists: Iterable[_List[Any]]) -> Iterator[list[tuple[_List[Any], int, int]]]:
    """Yield the pieces of each part: a list, and the first and last of its items, as a slice."""
    pieces: list[tuple[_List[Any], int, int]] = []
    items = letters = 0
    for one in lists:
        start = 0
        for place, record in enumerate(one.of):
            long = one.letters(record)
            if items and (items == MOST_ITEMS or letters + long > MOST_LETTERS):
                if place > start:
                    pieces.append((one, start, place))
                yield pieces
                pieces, items, letters, start = [], 0, 0, place
            items, letters = items + 1, letters + long
        if len(one.of) > start:
            pieces.append((one, start, len(one.of)))
    yield pieces


@define(eq=False)
class _Rendering:
    """Makes the items of one copy."""

    copy: PolicyCopy
    _places: dict[Entry, int] = Factory(
        lambda self: {entry: place for place, entry in enumerate(self.copy.residents.entries)},
        takes_self=True,
    )
    _evictable: dict[Module, int] = Factory(
        lambda self: {it: place for place, it in enumerate(self.copy.residents.evictable)},
        takes_self=True,
    )
    _idle_times: dict[IdleTimes, str] = Factory(
        lambda self: self.copy.residents.keep_alive.texts(), takes_self=True
    )
    _rested: dict[Module, int] = Factory(dict)
    """{module: the last rest of one of its instances in the cache}."""

    def lists(
        self, groups: Sequence[SnapshotGroup], token_waits: Sequence[SnapshotTokenWait]
    ) -> tuple[_List[Any], ...]:
        """Return all lists, in the order of `LISTS`."""
        copy = self.copy
        residents = copy.residents
        idle = len(residents.instances) - len(residents.held)
        states = [(IDLE, False, False)] * idle + [*residents.held]
        rows = list(zip(*residents.columns, strict=True))
        for instance, row in zip(residents.instances, rows, strict=True):
            module = instance.module
            self._rested[module] = max(self._rested.get(module, 0), int(row[4]))
        return (
            _List("groups", groups, _same, lambda it: len(it.group)),
            _List(
                "modules",
                list(dict.fromkeys(zip(copy.modules, *copy.of_modules, strict=True))),
                self._module,
                lambda _: 0,
            ),
            _List(
                "functions",
                list(zip(copy.functions, copy.loading, copy.modules, strict=False)),
                self._function,
                lambda it: _letters(it[0]),
            ),
            _List(
                "residents",
                list(zip(residents.instances, rows, states, strict=True)),
                self._resident,
                lambda it: _letters(it[0].entry.function) + len(it[0].entry.group.name),
            ),
            _List(
                "requests",
                list(zip(copy.under_way, copy.requests, strict=True)),
                self._request,
                lambda it: _letters(it[1][1].function) + len(it[1][1].group.name),
            ),
            _List("token_waits", token_waits, _same, lambda it: len(it.function) + len(it.group)),
            _List("orders", residents.order.orders(), _same, lambda _: 0),
            _List(
                "gone",
                residents.keep_alive.items(self._idle_times),
                _same,
                lambda it: len(it.function or "") + len(it.arg_types or "") + len(it.group),
            ),
        )

    def _module(self, made: tuple[Module, float | None, int]) -> SnapshotModule:
        module, seconds, stopped = made
        return SnapshotModule(
            module_number=module.number,
            module_digest=module.digest,
            code_bytes=module.code_size,
            mappings=module.mappings,
            stopped=stopped,
            load_seconds=seconds,
            evictable=self._evictable.get(module),
            **self.copy.residents.order.of_module(module, self._rested.get(module, 0)),
        )

    def _function(self, made: tuple[FunctionRecord, float | None, Module]) -> SnapshotFunction:
        # The module is that of then: it may have been promoted since.
        function, seconds, module = made
        address_space, mappings = function.reserved(module)
        retired = function in self.copy.successors
        successor = self.copy.successors.get(function)
        times = self.copy.residents.keep_alive.functions.get(function)
        return SnapshotFunction(
            **function.names,
            module_number=module.number,
            concurrency=function.concurrency,
            worst_size_bytes=function.worst_size,
            address_space_bytes=address_space,
            mappings=mappings,
            isolation=function.isolation,
            load_seconds=seconds,
            retired=retired,
            successor=None if successor is None else successor.generation,
            resets=self.copy.resets.get(function),
            idle_times=None if times is None else self._idle_times[times],
            **_earlier(function, module),
            **_variant(self.copy.variants.get(function)),
        )

    def _resident(self, made: tuple[Instance, Any, tuple[State, bool, bool]]) -> SnapshotResident:
        instance, row, (state, loads_module, altered) = made
        size, space, mappings, last_used, rested, uses, seat, uses_before = row
        entry = instance.entry
        return SnapshotResident(
            **entry.function.names,
            group=entry.group.name,
            entry=self._places[entry],
            instance=instance.number,
            module_number=instance.module.number,
            state=state.value,
            seat=seat,
            size_bytes=size,
            address_space_bytes=space,
            mappings=mappings,
            module_loaded=loads_module,
            altered=altered,
            paired=instance in self.copy.residents.paired,
            uses=uses,
            uses_before=uses_before,
            created_at_seconds=instance.created_at,
            last_used_at_seconds=last_used,
            rest=int(rested),
            due_at_seconds=self.copy.residents.keep_alive.due.get(instance),
            **self.copy.residents.order.of_instance(instance, int(rested)),
        )

    def _request(self, made: tuple[UnderWay, Any]) -> SnapshotRequest:
        it, row = made
        stage, entry, instance, warm, blocked, hit, handed_over, turn, error = row
        return SnapshotRequest(
            **entry.function.names,
            group=entry.group.name,
            entry=self._places.get(entry),
            request=it.number,
            task=it.task,
            stage=STAGES[stage],
            instance=None if instance is None else instance.number,
            warm=warm,
            blocked=blocked,
            hit=hit,
            acquired=it.acquired,
            left=handed_over,
            claim=self.copy.claims.get(it.request),
            turn=turn,
            error=None if error is None else type(error).__name__,
            requested_at_seconds=it.requested_at,
            deadline_seconds=it.deadline,
            for_tasks=it.for_tasks,
        )


def _earlier(function: FunctionRecord, module: Module) -> Fields:
    """Return the fields about its earlier module, of a function that had been promoted to one."""
    if function.earlier is None or function.earlier is module:
        return {}
    return {
        "earlier_module_number": function.earlier.number,
        "earlier_address_space_bytes": function.earlier_reserved[0],
        "earlier_mappings": function.earlier_reserved[1],
    }


def _variant(variant: Variant | None) -> Fields:
    """Return the fields about the variant of a function that is profiled."""
    if variant is None:
        return {}
    return {
        "profiled_module_number": variant.module.number,
        "profiled_group": variant.group,
        "profiled_address_space_bytes": variant.reserved[0],
        "profiled_mappings": variant.reserved[1],
    }


def _same(item: T) -> T:
    return item


def _letters(function: FunctionRecord) -> int:
    key = function.key
    return len(key.name) + sum(map(len, key.args))


@final
@frozen(eq=False)
class Whole:
    """A snapshot, joined from all its parts."""

    head: SnapshotPart
    """A part, for the limits and counts."""
    groups: Sequence[SnapshotGroup]
    modules: Sequence[SnapshotModule]
    functions: Sequence[SnapshotFunction]
    residents: Sequence[SnapshotResident]
    requests: Sequence[SnapshotRequest]
    token_waits: Sequence[SnapshotTokenWait]
    orders: Sequence[SnapshotOrder]
    gone: Sequence[SnapshotGone]

    @staticmethod
    def join(parts: Iterable[SnapshotPart]) -> Whole:
        """Join all parts of one snapshot, which may be in any order."""
        ordered = sorted(parts, key=lambda part: part.part)
        lists = {name: [it for part in ordered for it in getattr(part, name)] for name in LISTS}
        return Whole(ordered[0], **lists)
