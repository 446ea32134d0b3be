"""The journal of one cache, which notes everything that happens as events for the log.

1. Loads, evictions, functions, groups and limits are always noted; each acquire and recycle only
   with `log_uses`. A log with uses can be replayed, so its order matters: a request is noted before
   the evictions that it causes, at the time that the policy was given.
2. Requests and tasks get their numbers here, as only the log refers to them.
3. An event has the context of the task that caused it, copied at the first event of that task's
   request; see `Origin`. Expiry and closing are nobody's, and have an empty one. The task's own
   context is copied, not the current one: a cancellation or a late exit runs in another.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, final

import trio
from trio.lowlevel import Task

from .._core.config import ADAPTIVE, CacheConfig, GroupLimits, SystemLimits
from .._core.events import (
    Abandoned,
    Acquired,
    Blocked,
    Closed,
    Event,
    Failed,
    GroupClosed,
    GroupOpened,
    GroupResized,
    Left,
    Loaded,
    Opened,
    Output,
    PreparationAwaited,
    PreparationEnded,
    PreparationRequested,
    Prepared,
    Profiled,
    Promoted,
    Recycled,
    Refused,
    Registered,
    Removed,
    Replayable,
    Requested,
    Resized,
    Throttled,
)
from .._core.output import ByteBudget, LineBudget
from .._core.policy.cpu_budget import CpuBudget
from .._core.policy.ledger import Ledger
from .._core.policy.lifecycle import State
from .._core.policy.policy import Policy
from .._core.policy.records import Entry, FunctionRecord, GroupRecord, Instance, Need, Request
from .._log import LogWriter, Origin
from .._runtime.prepare import Prepared as Frozen

if TYPE_CHECKING:
    from .._core.snapshot import SnapshotGroup, SnapshotTokenWait

Cause: TypeAlias = Callable[[], Origin | None]
"""Returns the origin of events, and is called only if there are any."""
Fields: TypeAlias = dict[str, Any]
"""Fields of an event by name; the event's class says what they are."""

# Characters of an event about a call, beside its values.
VALUES_OVERHEAD = 1000


class _Use:
    """Facts that the log has about one request so far."""

    __slots__ = ("deadline", "for_tasks", "granted_at", "number", "origin", "requested_at", "task")

    def __init__(
        self,
        number: int,
        origin: Origin,
        task: int,
        requested_at: float,
        deadline: float | None,
        for_tasks: str | None = None,
    ) -> None:
        self.number = number
        self.origin = origin
        self.task = task
        """Number of the task that waits for or holds the instance."""
        self.requested_at = requested_at
        self.deadline = deadline
        self.granted_at: float | None = None
        self.for_tasks = for_tasks
        """Numbers of the tasks that wait for it, if it is a preparation; None: it is an acquire."""


@final
class Journal:
    """Notes the events of one cache for its log. It never waits and never fails."""

    def __init__(self, log: LogWriter, log_uses: bool) -> None:
        self.log = log
        self.log_uses = log_uses
        """Whether each acquire and recycle is noted, and not only loads and evictions."""
        self.quiet: bool = log_uses
        """Whether nothing was noted since the last snapshot; always False without `log_uses`."""
        self.stirred: Callable[[], None] = _nothing
        """Called when something is noted for the first time since the last snapshot."""
        self.output_dropped_lines: int = 0
        """Number of lines of guests that were dropped so far."""
        self.values_dropped: int = 0
        """Number of calls with their values that were dropped so far."""
        self._uses: dict[Request, _Use] = {}  # {request under way: use}, with `log_uses` only
        self._last_request = 0
        self._tasks: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._last_task = 0
        self._budgets: dict[
            str, LineBudget
        ] = {}  # {group: budget} of those that have logged output
        self._values: dict[str, ByteBudget] = {}  # likewise, of those that have logged calls
        # {task: (function, group, since)}, with `log_uses` only
        self._token_waits: dict[int, tuple[FunctionRecord, str, float]] = {}

    def note(self, event: Event, at: float | None = None, origin: Origin | None = None) -> None:
        """Note `event`, which happened at time `at` (seconds, Trio's clock; None: now).

        It is rendered in the context of `origin`; None: nobody's.
        """
        self.log.add(event, trio.current_time() if at is None else at, origin)
        if self.quiet:
            self.quiet = False
            self.stirred()

    @staticmethod
    def here() -> Origin:
        """Return the origin of events that the running task causes outside of any request."""
        return Origin(trio.lowlevel.current_task().context)

    @staticmethod
    def origin_of(task: object) -> Origin | None:
        """Return the origin of events that `task` causes; None if it is no task."""
        return Origin(task.context) if isinstance(task, Task) else None

    # -- the cache, its groups and its functions

    def opened(self, config: CacheConfig, system: SystemLimits) -> None:
        """Note that the cache is open, with all limits."""
        self.note(
            Opened(**_everything(config, system)),
            origin=self.here(),
        )

    def resized(self, config: CacheConfig, system: SystemLimits, at: float, origin: Origin) -> None:
        """Note the limits in force from now on; the evictions that they cause follow."""
        self.note(Resized(**_limits(config, system)), at, origin)

    def closed(self, **totals: int) -> None:
        """Note that the cache is closed: the last event; `totals` are its fields."""
        for name in tuple(self._budgets):
            self._end_output(name)
        self.note(Closed(**totals))

    def group_opened(self, name: str, limits: GroupLimits) -> None:
        """Note that a scheduling group is open."""
        self.note(GroupOpened(**_group(name, limits)), origin=self.here())

    def group_resized(self, name: str, limits: GroupLimits, at: float, origin: Origin) -> None:
        """Note the limits of a group from now on; the evictions that they cause follow."""
        self.note(GroupResized(**_group(name, limits)), at, origin)

    def throttled(self, budget: CpuBudget, waits: int, seconds: float, at: float) -> None:
        """Note that calls of a group have waited for its `cpu_limit`."""
        self.note(
            Throttled(
                group=budget.group,
                cpu_limit_cores=budget.limit,
                waits=waits,
                wait_seconds=seconds,
                waiting=budget.waiting,
            ),
            at,
        )

    def group_closed(self, name: str, with_cache: bool, at: float) -> None:
        """Note that a group closes; the evictions of that step follow."""
        self._end_output(name)
        self.note(GroupClosed(group=name, with_cache=with_cache), at)

    def prepared(
        self, function: FunctionRecord, group: str, made: Frozen, at: float, origin: Origin
    ) -> None:
        """Note how a function was prepared."""
        self.note(
            Prepared(
                **function.names,
                group=group,
                calls=made.calls,
                prepare_seconds=made.seconds,
                fuel=made.fuel,
                pages=made.pages,
                added_bytes=made.size,
                globals=made.globals,
                elements=made.elements,
                frozen=", ".join(made.frozen) or None,
                stored=made.stored,
            ),
            at,
            origin,
        )

    def promoted(self, function: FunctionRecord, at: float, **facts: Any) -> None:
        """Note that a function was promoted, or could not be; `facts`: fields of the event."""
        self.note(Promoted(**function.names, **facts), at)

    def profiled(self, function: FunctionRecord, at: float, origin: Origin, **facts: Any) -> None:
        """Note that a profile of a function begins or ends; `facts`: fields of the event."""
        self.note(Profiled(**function.names, **facts), at, origin)

    def registered(self, function: FunctionRecord, at: float, origin: Origin, **facts: Any) -> None:
        """Note that a function serves from now on; `facts` are further fields of the event."""
        self.note(Registered(**function.names, **facts), at, origin)

    def removed(self, function: FunctionRecord, at: float, origin: Origin) -> None:
        """Note that a function was removed; the evictions of that step follow."""
        self.note(Removed(**function.names), at, origin)

    def refused(
        self,
        need: Need,
        address_space: int,
        mappings: int,
        error: Exception,
        at: float,
        origin: Origin,
    ) -> None:
        """Note that the system gave no memory; the evictions for it follow."""
        self.note(
            Refused(
                function=need.key.name,
                arg_types=need.key.arg_types,
                group=need.group.name,
                request=need.number,
                address_space_bytes=address_space,
                mappings=mappings,
                error_message=str(error),
            ),
            at,
            origin,
        )

    # -- waiting

    def requested(self, request: Request, at: float, origin: Origin) -> None:
        """Note that an acquire has its token, and asks the policy for an instance next."""
        if not self.log_uses:
            return
        self._last_request = request.number = self._last_request + 1
        effective = trio.current_effective_deadline()
        if effective == -math.inf:  # it was cancelled, in the step in which it got its token
            effective = at
        deadline = None if effective == math.inf else effective
        task = self._task(request.owner)
        self._token_waits.pop(task, None)
        self._uses[request] = _Use(self._last_request, origin, task, at, deadline)
        self.note(
            Requested(
                **self._request(request, request.owner),
                warm=request.warm,
                blocked=request.blocked,
                deadline_seconds=deadline,
            ),
            at,
            origin,
        )

    def blocked(self, request: Request) -> None:
        """Note that an acquire waits; its stage says for what."""
        if self.log_uses:
            waits_for = request.stage.value.removeprefix("waiting for ")
            blocked = Blocked(**self._request(request, request.owner), waits_for=waits_for)
            self.note(blocked, None, self._uses[request].origin)

    def token_blocked(self, function: FunctionRecord, group: str, task: Task, cause: Cause) -> None:
        """Note that an acquire of `task` waits for a token of its group."""
        if self.log_uses:
            self._token_waits[self._task(task)] = function, group, trio.current_time()
            blocked = Blocked(**self._token_wait(function, group, task), waits_for="a token")
            self.note(blocked, None, cause())

    def token_abandoned(
        self, function: FunctionRecord, group: str, task: Task, error: str, cause: Cause
    ) -> None:
        """Note that an acquire failed before it got its token; `error` is the type's name."""
        if self.log_uses:
            self._token_waits.pop(self._task(task), None)
            abandoned = Abandoned(**self._token_wait(function, group, task), error=error)
            self.note(abandoned, None, cause())

    def abandoned(self, request: Request, error: str, at: float) -> None:
        """Note that an acquire failed, in the step of the policy that comes next.

        So did a preparation that has got no capacity. `error` is the name of the error's type.
        """
        if self.log_uses:
            if (use := self._uses.get(request)) is not None and use.for_tasks is not None:
                self.preparation_ended(request, at, error, 0)
                return
            abandoned = Abandoned(**self._request(request, request.owner), error=error)
            use = self._uses.pop(request, None)
            self.note(abandoned, at, None if use is None else use.origin)

    # -- preparing

    def preparation_requested(
        self, request: Request, tasks: Iterable[Task], at: float, origin: Origin
    ) -> None:
        """Note that a preparation asks the policy for capacity next; `tasks` wait for it."""
        if not self.log_uses:
            return
        self._last_request = request.number = self._last_request + 1
        task, for_tasks = self._task(request.owner), self._listed(tasks)
        use = _Use(request.number, origin, task, at, None, for_tasks=for_tasks)
        self._uses[request] = use
        function = request.entry.function
        module = function.module
        self.note(
            PreparationRequested(
                **self._preparation(request),
                task=task,
                for_tasks=for_tasks,
                module_digest=module.digest,
                module_number=module.number,
                code_bytes=module.code_size,
                worst_size_bytes=function.worst_size,
                address_space_bytes=function.address_space,
                mappings=function.mappings,
                module_mappings=module.mappings,
            ),
            at,
            origin,
        )

    def preparation_awaited(self, request: Request, tasks: Iterable[Task]) -> None:
        """Note which tasks wait for a preparation now."""
        if self.log_uses:
            use = self._uses[request]
            use.for_tasks = self._listed(tasks)
            event = PreparationAwaited(**self._preparation(request), for_tasks=use.for_tasks)
            self.note(event, None, use.origin)

    def preparation_granted(self, request: Request, at: float) -> None:
        """Keep when a preparation got capacity."""
        if self.log_uses:
            self._uses[request].granted_at = at

    def preparation_ended(self, request: Request, at: float, error: str | None, fuel: int) -> None:
        """Note that a preparation ends, in the step of the policy that comes next.

        Args:
            request: its request.
            at: the time (seconds).
            error: name of the type of the error by which it ends; None: it has succeeded.
            fuel: units that its calls burnt.
        """
        if not self.log_uses:
            return
        fields, use, instance = (
            self._preparation(request),
            self._uses.pop(request),
            request.instance,
        )
        granted_at = at if use.granted_at is None else use.granted_at
        self.note(
            PreparationEnded(
                **fields,
                instance=None if instance is None else instance.number,
                error=error,
                wait_seconds=granted_at - use.requested_at,
                held_seconds=at - granted_at,
                size_bytes=0 if instance is None else instance.size,
                fuel=fuel,
            ),
            at,
            use.origin,
        )

    def _listed(self, tasks: Iterable[Task]) -> str:
        return ",".join(str(self._task(task)) for task in tasks)

    # -- loading

    def loaded(
        self,
        request: Request,
        instance: Instance,
        seat: bool,
        began: float,
        at: float,
        origin: Origin,
    ) -> None:
        """Note that an instance was made between `began` and `at`, or with `seat` from a seat."""
        module = instance.module
        self.note(
            Loaded.of_fields(
                {
                    "module_digest": module.digest,
                    "module_loaded": instance.loads_module,
                    "seat": seat,
                    "warmed": request.warm,
                    "load_seconds": at - began,
                    "size_bytes": instance.size,
                    "code_bytes": module.code_size,
                    **self._instance(request, instance),
                }
            ),
            at,
            origin,
        )

    def upgraded(self, instance: Instance, began: float, at: float) -> None:
        """Note that an instance, or a seat, of a promoted function was made in the background."""
        module = instance.module
        self.note(
            Loaded(
                **instance.entry.function.names,
                group=instance.entry.group.name,
                instance=instance.number,
                request=None,
                module_digest=module.digest,
                module_loaded=instance.loads_module,
                seat=instance.seat,
                warmed=False,
                promoted=True,
                load_seconds=at - began,
                size_bytes=instance.size,
                code_bytes=module.code_size,
            ),
            at,
        )

    def failed(
        self, request: Request, instance: Instance, error: Exception, at: float, origin: Origin
    ) -> None:
        """Note that an instance could not be made."""
        self.note(
            Failed(
                **self._instance(request, instance),
                error=type(error).__name__,
                error_message=str(error),
            ),
            at,
            origin,
        )

    def not_upgraded(self, entry: Entry, error: BaseException, at: float) -> None:
        """Note that an instance of a promoted function could not be made in the background."""
        self.note(
            Failed(
                **entry.function.names,
                group=entry.group.name,
                instance=None,
                request=None,
                promoted=True,
                error=type(error).__name__,
                error_message=str(error),
            ),
            at,
        )

    # -- holding

    def acquired(
        self, request: Request, instance: Instance, asked_at: float, at: float, ledger: Ledger
    ) -> None:
        """Note that a lease is granted, of an acquire that began at `asked_at`."""
        if not self.log_uses:
            return
        use = self._uses[request]
        use.granted_at = at
        module = instance.module
        self.note(
            Acquired(
                **self._instance(request, instance),
                hit=request.hit,
                wait_seconds=at - asked_at,
                uses=instance.uses,
                module_digest=module.digest,
                code_bytes=module.code_size,
                total_size_bytes=ledger.total_size,
                code_size_bytes=ledger.used,
            ),
            at,
            use.origin,
        )

    def left(self, request: Request, caller: Task, at: float) -> None:
        """Note that a block has ended while `caller` has a call of its lease under way."""
        if self.log_uses:
            use = self._uses[request]
            use.origin, use.task = Origin(caller.context), self._task(caller)
            self.note(Left(**self._request(request, caller)), at, use.origin)

    def recycled(
        self,
        request: Request,
        instance: Instance,
        calls: int,
        at: float,
        ledger: Ledger,
        **facts: Any,
    ) -> Origin:
        """Note, with `log_uses`, that a lease has ended after `calls` calls.

        `facts` are further fields of the event. The evictions of its step follow; they have the
        origin that is returned.
        """
        use = self._uses[request]
        self.note(
            Recycled(
                **self._instance(request, instance),
                **facts,
                held_seconds=at - (use.granted_at or 0.0),
                calls=calls,
                seat=instance.seat,
                kept=instance.state is not State.CLOSED,
                total_size_bytes=ledger.total_size,
                code_size_bytes=ledger.used,
            ),
            at,
            use.origin,
        )
        del self._uses[request]
        return use.origin

    # -- snapshots

    def listen(self) -> None:
        """Call `stirred` at the next event, if this is a log with uses."""
        self.quiet = self.log_uses

    def snapshot(
        self,
        policy: Policy,
        functions: Collection[FunctionRecord],
        groups: Iterable[tuple[GroupRecord, GroupLimits]],
        at: float,
    ) -> None:
        """Note all that is in the cache now.

        Args:
            policy: the policy of the cache.
            functions: all registered functions.
            groups: open groups, and their limits now.
            at: the time (seconds, Trio's clock).
        """
        from .._core.policy.copying import UnderWay

        under_way = [
            UnderWay(
                request,
                use.number,
                use.task,
                use.granted_at is not None and use.for_tasks is None,
                use.requested_at,
                use.deadline,
                use.for_tasks,
            )
            for request, use in self._uses.items()
        ]
        copy = policy.copy(functions, under_way)
        waits = list(self._token_waits.items())
        limits = [(record.name, record.closed, it) for record, it in groups]
        config = policy.config
        head = {**_everything(config, policy.system), "taken_at_seconds": at}

        def render(last: int) -> Iterator[Event]:
            made = [_snapshot_group(*it) for it in limits]
            return copy.parts({**head, "at_seq": last}, made, [_token_wait(*it) for it in waits])

        self.log.add_snapshot(render, at)

    # -- output of guests

    def output_origin(self, request: Request) -> Origin:
        """Return the origin of what the guest of a request writes, in the task that calls it."""
        use = self._uses.get(request)
        return self.here() if use is None else use.origin

    def output(self, request: Request, origin: Origin, stream: str, line: str) -> bool:
        """Log a line that the guest of a request wrote; return False if it was dropped."""
        at = trio.current_time()
        if not self._budget(request).take(at):
            return False
        return self.log.add_output(self._output(request, stream=stream, line=line), at, origin)

    def output_dropped(self, request: Request, origin: Origin, lines: int, size: int) -> None:
        """Count lines that were dropped, and log all of the group since the last such event.

        If that is not possible now, they are logged with the next ones, or when the group closes.
        """
        budget, at = self._budget(request), trio.current_time()
        budget.drop(lines, size)
        self.output_dropped_lines += lines
        if budget.take(at):
            event = self._output(
                request, dropped_lines=budget.dropped_lines, dropped_bytes=budget.dropped_bytes
            )
            if self.log.add_output(event, at, origin):
                budget.take_dropped()

    def wants_values(self, request: Request) -> bool:
        """Return whether the group of a request may log a call with its values now.

        If not, the call is counted as dropped, before its values are made text.
        """
        budget = self._values.setdefault(request.entry.group.name, ByteBudget())
        if budget.has(trio.current_time(), VALUES_OVERHEAD):
            return True
        self._drop_values(budget)
        return False

    def _drop_values(self, budget: ByteBudget) -> None:
        budget.dropped += 1
        self.values_dropped += 1

    def replayable(self, request: Request, origin: Origin, size: int, **facts: Any) -> None:
        """Log a call of a request with its values, unless its group has logged too many of late.

        Args:
            request: the request of its lease.
            origin: the task that calls the guest.
            size: characters of its values.
            facts: fields of the event.
        """
        group, at = request.entry.group.name, trio.current_time()
        budget = self._values.setdefault(group, ByteBudget())
        event = Replayable(
            **request.entry.function.names,
            group=group,
            request=self._number(request),
            **facts,
            dropped=budget.dropped,
        )
        if budget.take(at, size + VALUES_OVERHEAD) and self.log.add_values(event, at, origin):
            budget.dropped = 0
        else:
            self._drop_values(budget)

    def _end_output(self, group: str) -> None:
        """Log what output of a group was dropped and is not in the log yet."""
        self._values.pop(group, None)
        budget = self._budgets.pop(group, None)
        if budget is not None and budget.dropped_lines:
            lines, size = budget.take_dropped()
            self.note(Output(group=group, dropped_lines=lines, dropped_bytes=size))

    def _budget(self, request: Request) -> LineBudget:
        return self._budgets.setdefault(request.entry.group.name, LineBudget())

    def _output(self, request: Request, **facts: Any) -> Output:
        return Output(
            **request.entry.function.names,
            group=request.entry.group.name,
            request=self._number(request),
            **facts,
        )

    # -- fields that identify a request, an instance or a task

    def _request(self, request: Request, task: object) -> Fields:
        return {
            **request.entry.function.names,
            "group": request.entry.group.name,
            "request": self._number(request),
            "task": self._task(task),
        }

    def _preparation(self, request: Request) -> Fields:
        return {
            **request.entry.function.names,
            "group": request.entry.group.name,
            "request": self._number(request),
        }

    def _instance(self, request: Request, instance: Instance) -> Fields:
        return {
            **instance.entry.function.names,
            "group": instance.entry.group.name,
            "instance": instance.number,
            "request": self._number(request),
        }

    def _token_wait(self, function: FunctionRecord, group: str, task: Task) -> Fields:
        return {**function.names, "group": group, "request": None, "task": self._task(task)}

    def _number(self, request: Request) -> int | None:
        use = self._uses.get(request)
        return None if use is None else use.number

    def _task(self, task: object) -> int:
        number = self._tasks.get(task)
        if number is None:
            self._last_task += 1
            number = self._tasks[task] = self._last_task
        return number


def _group(name: str, limits: GroupLimits) -> Fields:
    return {
        "group": name,
        "capacity_tokens": None if limits.capacity == math.inf else int(limits.capacity),
        "shares": limits.shares,
        "max_size_bytes": limits.max_size,
        "reserved_size_bytes": limits.reserved_size,
        "cpu_limit_cores": limits.cpu_limit,
    }


def _nothing() -> None:
    pass


def _snapshot_group(name: str, closed: bool, limits: GroupLimits) -> SnapshotGroup:
    from .._core.snapshot import SnapshotGroup

    return SnapshotGroup(**_group(name, limits), closed=closed)


def _token_wait(task: int, wait: tuple[FunctionRecord, str, float]) -> SnapshotTokenWait:
    from .._core.snapshot import SnapshotTokenWait

    function, group, since = wait
    return SnapshotTokenWait(**function.names, group=group, task=task, blocked_at_seconds=since)


def _everything(config: CacheConfig, system: SystemLimits) -> Fields:
    """Return all limits, those included that never change."""
    return {
        **_limits(config, system),
        "max_mappings": system.mappings,
        "compiler": config.compiler,
        "stack_size_bytes": config.instance_stack_size,
        "memory_limit_bytes": config.memory_limit,
        "table_limit_elements": config.table_limit,
        "total_fuel": config.total_fuel,
        "yield_fuel": config.yield_fuel,
        "log_uses": config.log_uses,
    }


def _limits(config: CacheConfig, system: SystemLimits) -> Fields:
    """Return the limits that `resize` can change and a replay needs."""
    adaptive = config.idle_timeout == ADAPTIVE
    endless = config.idle_timeout == math.inf  # which JSON can't express
    return {
        "policy": config.policy,
        "max_size_bytes": config.max_size,
        "max_instance_size_bytes": config.max_instance_size,
        "max_instances": config.max_instances,
        "max_code_size_bytes": config.max_code_size,
        "max_running_size_bytes": config.max_running_size,
        "max_result_size_bytes": config.max_result_size,
        "idle_timeout_seconds": None if adaptive or endless else config.idle_timeout,
        "idle_timeout_policy": ADAPTIVE if adaptive else "fixed",
        "min_idle_timeout_seconds": config.min_idle_timeout,
        "max_idle_timeout_seconds": config.max_idle_timeout,
        "max_address_space_bytes": system.max_address_space(config),
    }
