"""The cache's own policy, with functions and groups by their names in a log."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from attrs import Factory, define, evolve

from ..._core.config import ADAPTIVE, CacheConfig, SystemLimits
from ..._core.events import GroupOpened, GroupResized, Opened, Registered, Removed, Resized
from ..._core.keys import FunctionKey
from ..._core.policy.instances import Step
from ..._core.policy.policy import Policy
from ..._core.policy.records import FunctionRecord, GroupRecord, Module, Request, TokenBook
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
OLD = {"policy": "lru", "min_idle_timeout": 1.0, "max_idle_timeout": 600.0}
Limits: TypeAlias = dict[str, Any]
"""Fields of `CacheConfig` by name: the limits in a log, or those to try."""
NameKey = tuple[str, str]  # (function, argument types)


def limits_of(event: Opened | Resized) -> Limits:
    """Return the limits in an `opened` or `resized` event, named as in `CacheConfig`."""
    # A log from before `max_running_size` or `max_address_space` existed had no such limit.
    limits = {name: getattr(event, field) for name, field in LIMITS.items()}
    limits |= {name: value for name, value in OLD.items() if limits[name] is None}
    if event.idle_timeout_policy == ADAPTIVE:
        limits["idle_timeout"] = ADAPTIVE
    elif limits["idle_timeout"] is None:
        limits["idle_timeout"] = math.inf
    return limits


def config_of(event: Opened) -> CacheConfig:
    """Return the configuration in an `opened` event.

    Raises:
        ValueError: The limits are not valid for a cache.
    """
    return CacheConfig(stack_size=event.stack_size_bytes, **limits_of(event))


def system_of(event: Opened) -> SystemLimits:
    """Return the system's limits in an `opened` event."""
    return SystemLimits(mappings=event.max_mappings)


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
    resets: set[FunctionRecord] = Factory(set)
    """Functions whose instances are reset; an instance that is too large leaves a seat."""
    _modules: dict[int, Module] = Factory(dict)

    def open_group(self, event: GroupOpened, others: Callable[[], bool]) -> GroupRecord:
        """Open a group; see `TokenBook.strangers`."""
        group = self.groups[event.group] = GroupRecord(
            event.group,
            event.max_size_bytes,
            event.reserved_size_bytes or 0,
            tokens=TokenBook(strangers=others),
        )
        self.policy.open_group(group)
        return group

    def resize_group(self, group: GroupRecord, event: GroupResized, now: float) -> Step:
        """Apply new limits of a group."""
        reserved = event.reserved_size_bytes or 0
        return self.policy.resize_group(group, event.max_size_bytes, reserved, now)

    def register(self, event: Registered, now: float) -> Step:
        """Register a function; retire one that it replaces."""
        name = event.function, event.arg_types
        module = self._modules.get(event.module_number)
        if module is None:
            stack_size = event.stack_size_bytes or self.config.stack_size
            module = Module(
                event.module_digest,
                event.code_bytes,
                event.module_mappings or 0,
                max(1, stack_size // self.config.stack_size),
            )
            self._modules[event.module_number] = module
        types = tuple(event.arg_types.split(", ")) if event.arg_types else ()
        record = FunctionRecord(
            FunctionKey(event.function, types),
            event.generation,
            module,
            event.concurrency,
            event.worst_size_bytes,
            event.address_space_bytes or 0,
            event.mappings or 0,
        )
        if event.isolation == RESET:
            self.resets.add(record)
            record.begin_resets()
        old = self.current.get(name)
        self.current[name] = self.functions[(*name, event.generation)] = record
        if old is None:
            return Step()
        return self.policy.retire(old, now, successor=record)

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
