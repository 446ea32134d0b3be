"""A policy with small round numbers, and short words for what is done to it.

Code is counted in units of one stack: `code=2` is a module as large as two stacks.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from trio_wasmcache._core.config import CacheConfig, KiB, PolicyName
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.policy.instances import Step
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._core.policy.records import (
    Entry,
    FunctionRecord,
    GroupRecord,
    Instance,
    Module,
    Request,
    Stage,
)

UNIT = 64 * KiB


def limits(policy: PolicyName = "lru", **changed: float) -> CacheConfig:
    """A configuration with room for much; `max_code` in units."""
    code = int(changed.pop("max_code", 100)) * UNIT
    whole = {name: value for name, value in changed.items() if name != "idle_timeout"}
    return CacheConfig(
        max_code_size=code,
        stack_size=UNIT,
        policy=policy,
        idle_timeout=changed.get("idle_timeout", 1000.0),
        **{"max_size": 1000, "max_instance_size": 500, **{k: int(v) for k, v in whole.items()}},
    )


def short_hit(
    policy: Policy, function: FunctionRecord, group: GroupRecord, *more: Any
) -> Request | None:
    """Acquire as a lease does first: by `hit`, in the entry that serves the function."""
    entry = group.serving.get(function.spelling)
    return None if entry is None else policy.hit(entry, *more)


def short_queue(
    policy: Policy, function: FunctionRecord, group: GroupRecord, *more: Any
) -> Request | None:
    """Get in line as a lease does, by `queue`."""
    entry = group.serving.get(function.spelling)
    return None if entry is None else policy.queue(entry, *more)


class Bench:
    """One policy, its clock, and a group that is used unless another is named."""

    def __init__(self, policy: PolicyName = "lru", **changed: float) -> None:
        self.policy = Policy(limits(policy, **changed))
        self.now = 0.0
        self.main = GroupRecord("main")
        self.modules: dict[str, Module] = {}

    def function(
        self,
        name: str,
        module: str | None = None,
        code: int = 1,
        concurrency: int = 1,
        worst: int = 0,
    ) -> FunctionRecord:
        """A function; its module is named like it, unless it shares one."""
        digest = module or name
        record = self.modules.setdefault(digest, Module(digest, code * UNIT))
        return FunctionRecord(FunctionKey(name, ("i64",)), 1, record, concurrency, worst)

    def ask(
        self,
        function: FunctionRecord,
        owner: Hashable = "anna",
        group: GroupRecord | None = None,
        warm: bool = False,
    ) -> tuple[Request, Step]:
        """A request after its first step, and what that step left to do."""
        request = self.policy.request(function, group or self.main, owner, warm)
        return request, self.policy.acquire(request, self.now) or Step()

    def acquire(
        self,
        function: FunctionRecord,
        owner: Hashable = "anna",
        group: GroupRecord | None = None,
        warm: bool = False,
    ) -> Request:
        """A request after its first step."""
        return self.ask(function, owner, group, warm)[0]

    def load(self, request: Request) -> Step:
        """Its load succeeds."""
        return self.policy.loaded(request, self.now, 10) or Step()

    def fail(self, request: Request) -> Step:
        """Its load fails."""
        return self.policy.failed(request, self.now)

    def cancel(self, request: Request) -> Step:
        """It gives up waiting."""
        return self.policy.cancel(request, self.now)

    def lease(
        self,
        function: FunctionRecord,
        owner: Hashable = "anna",
        group: GroupRecord | None = None,
    ) -> Request:
        """A request that runs, loaded if need be."""
        request = self.acquire(function, owner, group)
        if request.stage is Stage.LOADING:
            self.load(request)
        assert request.stage is Stage.GRANTED
        return request

    def recycle(
        self,
        request: Request,
        size: int = 10,
        drop: Reason | None = None,
        seat: bool = False,
    ) -> Step:
        """The lease ends, one second later, so that the order of last use is plain."""
        self.now += 1
        return self.policy.recycle(request, size, self.now, drop, seat) or Step()

    def idle(
        self, function: FunctionRecord, size: int = 10, group: GroupRecord | None = None
    ) -> Instance:
        """An instance, used once and idle."""
        request = self.lease(function, "someone", group)
        instance = request.instance
        assert instance is not None
        self.recycle(request, size)
        return instance

    def seat(
        self, function: FunctionRecord, size: int = 10, group: GroupRecord | None = None
    ) -> Instance:
        """A seat, left by a lease."""
        request = self.lease(function, "someone", group)
        instance = request.instance
        assert instance is not None
        self.recycle(request, size, seat=True)
        return instance

    def retire(self, old: FunctionRecord, new: FunctionRecord | None = None) -> Step:
        """Remove, or replace by `new`."""
        if new is not None:
            new.generation = old.generation + 1
        return self.policy.retire(old, self.now, new)

    def close(self, group: GroupRecord, reason: Reason = Reason.GROUP_CLOSED) -> Step:
        """Close a group."""
        return self.policy.close_group(group, self.now, reason)

    def resize(self, policy: PolicyName = "lru", **changed: float) -> Step:
        """Live under other limits."""
        return self.policy.resize(limits(policy, **changed), self.now)

    def entry(self, function: FunctionRecord, group: GroupRecord | None = None) -> Entry:
        """The entry of a function, which is there."""
        return function.entries[group or self.main]

    @property
    def used(self) -> float:
        """Code and stacks, in units."""
        return self.policy.instances.ledger.used / UNIT

    @property
    def total_size(self) -> int:
        """Bytes of idle instances."""
        return self.policy.instances.ledger.total_size


def reasons(step: Step) -> list[tuple[str, str]]:
    """[(function, reason)] of what was evicted, in order."""
    return [(event.function, event.reason.value) for _, event in step.evicted]
