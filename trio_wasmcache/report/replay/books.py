"""The cache's own policy, with functions and groups by their names in a log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

from attrs import Factory, define, evolve

from ..._core.config import ADAPTIVE, CacheConfig, SystemLimits
from ..._core.events import (
    GroupResized,
    Loaded,
    OfConfig,
    OfGroup,
    OfLimits,
    PreparationRequested,
    Profiled,
    Promoted,
    Registered,
    Removed,
)
from ..._core.keys import FunctionKey
from ..._core.policy.copying import Whole
from ..._core.policy.instances import Step
from ..._core.policy.policy import Policy
from ..._core.policy.records import (
    FunctionRecord,
    GroupRecord,
    Instance,
    Module,
    Preparation,
    Request,
    TokenBook,
    Variant,
)
from ..._core.tiers import STACKS, CompilerName
from ..._core.wasm.isolation import RESET

# {field of `CacheConfig`: field of the events with limits}.
LIMITS = {
    "policy": "policy",
    "max_size": "max_size_bytes",
    "max_instance_size": "max_instance_size_bytes",
    "max_instances": "max_instances",
    "max_code_size": "max_code_size_bytes",
    "max_running_size": "max_running_size_bytes",
    "max_address_space": "max_address_space_bytes",
    "idle_timeout": "idle_timeout_seconds",
    "min_idle_timeout": "min_idle_timeout_seconds",
    "max_idle_timeout": "max_idle_timeout_seconds",
}
# {field of `CacheConfig`: its value in a log from before it existed}.
OLD: dict[str, str | float] = {"policy": "lru", "min_idle_timeout": 1.0, "max_idle_timeout": 600.0}
Limits: TypeAlias = dict[str, Any]
"""Fields of `CacheConfig` by name: the limits in a log, or those to try."""
NameKey = tuple[str, str]  # (function, argument types)


def limits_of(event: OfLimits) -> Limits:
    """Return the limits in an event, named as in `CacheConfig`."""
    # A log from before `max_running_size` or `max_address_space` existed had no such limit.
    limits = {name: getattr(event, field) for name, field in LIMITS.items()}
    limits |= {name: value for name, value in OLD.items() if limits[name] is None}
    if event.idle_timeout_policy == ADAPTIVE:
        limits["idle_timeout"] = ADAPTIVE
    elif limits["idle_timeout"] is None:
        limits["idle_timeout"] = math.inf
    return limits


def config_of(event: OfConfig) -> CacheConfig:
    """Return the configuration in an `opened` event, or in a part of a snapshot.

    Raises:
        ValueError: the limits are not valid for a cache.
    """
    compiler = cast("CompilerName", event.compiler or "optimizing")
    stack_size = event.stack_size_bytes // STACKS.get(compiler, 1)
    return CacheConfig(compiler=compiler, stack_size=stack_size, **limits_of(event))


def system_of(event: OfConfig) -> SystemLimits:
    """Return the system's limits in such an event."""
    return SystemLimits(mappings=event.max_mappings)


class _Loaded:
    """An instance that is not there: nothing runs here."""

    def close(self) -> None:
        """Do nothing."""


@define(eq=False)
class Books:
    """A policy, and its functions and groups."""

    config: CacheConfig
    system: SystemLimits = Factory(SystemLimits)
    policy: Policy = Factory(lambda self: Policy(self.config, self.system), takes_self=True)
    groups: dict[str, GroupRecord] = Factory(dict)
    current: dict[NameKey, FunctionRecord] = Factory(dict)
    """Functions that an acquire can find."""
    functions: dict[tuple[str, str, int], FunctionRecord] = Factory(dict)
    """{(function, argument types, generation): record}, including old generations."""
    _modules: dict[int, Module] = Factory(dict)
    _preparations: dict[int, Preparation] = Factory(dict)  # {number: those under way}

    def open_group(self, event: OfGroup, others: Callable[[], bool]) -> GroupRecord:
        """Open a group; see `TokenBook.strangers`."""
        group = self.groups[event.group] = GroupRecord(
            event.group,
            event.max_size_bytes,
            event.reserved_size_bytes or 0,
            tokens=TokenBook(strangers=others),
        )
        self.policy.open_group(group)
        return group

    def begin(self, whole: Whole) -> dict[int, Request]:
        """Take over a snapshot; nothing has happened yet.

        Args:
            whole: the snapshot.

        Returns:
            {number: request} of those that are under way, each with its token.

        Raises:
            KeyError, ValueError: it contradicts itself.
        """
        for one in whole.groups:
            group = self.groups[one.group] = GroupRecord(
                one.group, one.max_size_bytes, one.reserved_size_bytes
            )
            if one.closed:
                group.close()
            self.policy.open_group(group)
        for it in whole.modules:
            self._modules[it.module_number] = Module(
                it.module_digest,
                it.code_bytes,
                it.mappings,
                it.load_seconds,
                stopped=it.stopped,
                number=it.module_number,
            )
        for made in whole.functions:
            record = FunctionRecord(
                FunctionKey.logged(made.function, made.arg_types),
                made.generation,
                self._modules[made.module_number],
                made.concurrency,
                made.worst_size_bytes,
                made.address_space_bytes,
                made.mappings,
                made.isolation,
                made.load_seconds,
                made.retired,
            )
            if made.earlier_module_number is not None:
                # As if it was promoted now.
                record.earlier = self._modules[made.earlier_module_number]
                record.earlier_reserved = (
                    made.earlier_address_space_bytes or 0,
                    made.earlier_mappings or 0,
                )
            if made.profiled_module_number is not None:
                record.vary(
                    Variant(
                        self._modules[made.profiled_module_number],
                        (made.profiled_address_space_bytes or 0, made.profiled_mappings or 0),
                        made.profiled_group,
                    )
                )
            if made.resets is not None:
                record.begin_resets(*map(int, made.resets.split(":")))
            self.functions[made.function, made.arg_types, made.generation] = record
            if not made.retired:
                self.current[made.function, made.arg_types] = record
        for made in whole.functions:
            name = made.function, made.arg_types
            if made.successor is not None:
                self.functions[*name, made.generation].successor = self.functions[
                    *name, made.successor
                ]
        requests = self.policy.restore(whole, self.functions, self.groups, self._modules)
        for under_way in whole.requests:
            number, request = under_way.request, requests[under_way.request]
            if under_way.for_tasks is not None:
                self._preparations[number] = Preparation("", under_way.task)
                self.await_preparation(number, under_way.for_tasks)
            elif not request.handed_over:
                owners = request.entry.group.tokens.owners
                owners[request.owner] = owners.get(request.owner, 0) + 1
        return requests

    def resize_group(self, group: GroupRecord, event: GroupResized, now: float) -> Step:
        """Apply new limits of a group."""
        reserved = event.reserved_size_bytes or 0
        return self.policy.resize_group(group, event.max_size_bytes, reserved, now)

    def register(self, event: Registered, now: float) -> Step:
        """Register a function; retire one that it replaces."""
        name = event.function, event.arg_types
        record = FunctionRecord(
            FunctionKey.logged(event.function, event.arg_types),
            event.generation,
            self._module_of(event, event.module_number),
            event.concurrency,
            event.worst_size_bytes,
            event.address_space_bytes or 0,
            event.mappings or 0,
            event.isolation,
        )
        if event.isolation == RESET:
            record.begin_resets()
        old = self.current.get(name)
        self.current[name] = self.functions[(*name, event.generation)] = record
        if old is None:
            return Step()
        return self.policy.retire(old, now, successor=record)

    def prepare(self, event: PreparationRequested, group: GroupRecord, now: float) -> Request:
        """Return the request of a preparation, which has asked for nothing yet."""
        record = FunctionRecord.to_prepare(
            FunctionKey.logged(event.function, event.arg_types),
            self._module_of(event, event.module_number),
            event.worst_size_bytes,
            event.address_space_bytes,
            event.mappings,
        )
        request = self.policy.request(record, group, event.task, True, None, now)
        request.number = event.request
        self._preparations[event.request] = Preparation("", event.task)
        self.await_preparation(event.request, event.for_tasks)
        return request

    def await_preparation(self, number: int, tasks: str) -> None:
        """Have these tasks wait for a preparation, and no others; an empty text: none does."""
        preparation, registering = self._preparations[number], self.policy.waits.registering
        for task in [task for task, what in registering.items() if what is preparation]:
            del registering[task]
        registering.update({int(task): preparation for task in tasks.split(",") if task})

    def end_preparation(self, number: int) -> None:
        """Have no task wait for a preparation any more, as it has ended."""
        self.await_preparation(number, "")
        del self._preparations[number]

    def _module_of(
        self, event: Registered | Promoted | Profiled | PreparationRequested, number: int
    ) -> Module:
        """Return the module of an event, which functions may share."""
        module = self._modules.get(number)
        if module is None:
            module = self._modules[number] = Module(
                event.module_digest,
                event.code_bytes or 0,
                event.module_mappings or 0,
                number=number,
            )
        return module

    def promote(self, event: Promoted, now: float) -> Step:
        """Promote a function, unless it could not be."""
        if event.module_number is None:
            return Step()
        module = self._module_of(event, event.module_number)
        record = self.functions[event.function, event.arg_types, event.generation]
        reserved = event.address_space_bytes or 0, event.mappings or 0
        return self.policy.promote(record, module, reserved, now)

    def vary(self, event: Profiled, now: float) -> Step:
        """Begin or end the profile of a function."""
        record = self.functions[event.function, event.arg_types, event.generation]
        if event.module_number is None:
            return self.policy.vary(record, None, now)
        module = self._module_of(event, event.module_number)
        reserved = event.address_space_bytes or 0, event.mappings or 0
        return self.policy.vary(record, Variant(module, reserved, event.group), now)

    def upgrade(self, event: Loaded, now: float) -> tuple[Instance, Step] | None:
        """Add an instance that was made in the background, as its function was promoted."""
        record = self.functions[event.function, event.arg_types, event.generation]
        entry = record.entries[self.groups[event.group]]
        bound = None if event.seat else _Loaded()
        return self.policy.upgrade(entry, event.size_bytes, now, event.load_seconds, bound)

    def remove(self, event: Removed, now: float) -> Step:
        """Remove a function."""
        record = self.current.pop((event.function, event.arg_types), None)
        return Step() if record is None else self.policy.retire(record, now)

    def resize(self, limits: Limits, now: float) -> Step:
        """Apply new limits."""
        self.config = evolve(self.config, **limits)
        return self.policy.resize(self.config, now)

    def held_in(self, group: GroupRecord) -> list[Request]:
        """Return the requests that hold an instance of a group, in the order of its closing."""
        return [request for request in self.policy.waits.held if request.entry.group is group]
