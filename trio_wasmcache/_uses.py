"""What becomes of each acquire, told to the log: loads always, the rest only with `log_uses`.

Such a log can be replayed, so the order matters: what makes the policy do something is told before
what it did (`Requested` before the evictions that make room), at the time the policy was given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import Task

from ._core.events import (
    Abandoned,
    Acquired,
    Blocked,
    Failed,
    Left,
    Loaded,
    Recycled,
    Requested,
)
from ._core.records import FunctionRecord, Instance, Request
from ._core.state import State
from ._shell import Shell, describe

if TYPE_CHECKING:
    from ._lease import Lease

# What those get whose group or cache is closed.
CLOSED = trio.ClosedResourceError.__name__


def _whose(shell: Shell, request: Request, task: Any) -> dict[str, Any]:
    """The fields by which events name an acquire, and a task."""
    lease: Lease = request.payload
    return {
        **describe(request.entry.function),
        "group": request.entry.group.name,
        "request": lease._number,
        "task": shell.task_number(task),
    }


def tell_requested(shell: Shell, request: Request, at: float) -> None:
    """The acquire has its token, and asks the policy next."""
    lease: Lease = request.payload
    lease._number = shell.number()
    deadline = trio.current_effective_deadline()
    shell.tell(
        Requested(
            **_whose(shell, request, request.owner),
            warm=request.warm,
            blocked=request.blocked,
            deadline_seconds=None if deadline == math.inf else deadline,
        ),
        at,
    )


def tell_blocked(shell: Shell, request: Request) -> None:
    """The acquire waits for what its stage says."""
    shell.tell(
        Blocked(
            **_whose(shell, request, request.owner),
            waits_for=request.stage.value.removeprefix("waiting for "),
        )
    )


def tell_token_block(shell: Shell, record: FunctionRecord, group: str) -> None:
    """The acquire waits for a token of its group."""
    task = shell.task_number(trio.lowlevel.current_task())
    shell.tell(
        Blocked(**describe(record), group=group, request=None, task=task, waits_for="a token")
    )


def tell_token_wait_ended(
    shell: Shell, record: FunctionRecord, group: str, task: Task, error: str
) -> None:
    """The acquire gave up while it waited for a token."""
    number = shell.task_number(task)
    shell.tell(Abandoned(**describe(record), group=group, request=None, task=number, error=error))


def tell_abandoned(shell: Shell, request: Request, error: str, at: float) -> None:
    """The acquire has ended without a lease, in a step of the policy that comes next."""
    shell.tell(Abandoned(**_whose(shell, request, request.owner), error=error), at)


def tell_loaded(
    shell: Shell, request: Request, instance: Instance, seat: bool, began: float, at: float
) -> None:
    """An instance was made, on a seat or from nothing."""
    lease: Lease = request.payload
    function = instance.entry.function
    shell.tell(
        Loaded(
            **describe(function),
            group=instance.entry.group.name,
            instance=instance.number,
            request=lease._number,
            module_digest=function.module.digest,
            module_loaded=instance.loads_module,
            seat=seat,
            warmed=request.warm,
            load_seconds=at - began,
            size_bytes=instance.size,
            code_bytes=function.module.code_size,
        ),
        at,
    )


def tell_failed(
    shell: Shell, request: Request, instance: Instance, error: Exception, at: float
) -> None:
    """An instance could not be made."""
    lease: Lease = request.payload
    shell.tell(
        Failed(
            **describe(instance.entry.function),
            group=instance.entry.group.name,
            instance=instance.number,
            request=lease._number,
            error=type(error).__name__,
            error_message=str(error),
        ),
        at,
    )


def tell_acquired(shell: Shell, request: Request, asked_at: float, at: float) -> None:
    """The lease is granted."""
    lease: Lease = request.payload
    instance = request.instance
    assert instance is not None
    ledger = shell.policy.residents.ledger
    function = instance.entry.function
    shell.tell(
        Acquired(
            **describe(function),
            group=instance.entry.group.name,
            instance=instance.number,
            request=lease._number,
            hit=request.hit,
            wait_seconds=at - asked_at,
            uses=instance.uses,
            module_digest=function.module.digest,
            code_bytes=function.module.code_size,
            total_size_bytes=ledger.total_size,
            code_size_bytes=ledger.used,
        ),
        at,
    )


def tell_left(shell: Shell, request: Request, caller: Task, at: float) -> None:
    """The block of the lease has ended, but not the call of it that `caller` has under way."""
    shell.tell(Left(**_whose(shell, request, caller)), at)


def tell_recycled(
    shell: Shell, request: Request, instance: Instance, size: int, held_since: float, at: float
) -> None:
    """The lease has ended; the evictions of this step follow."""
    lease: Lease = request.payload
    ledger = shell.policy.residents.ledger
    shell.tell(
        Recycled(
            **describe(instance.entry.function),
            group=instance.entry.group.name,
            instance=instance.number,
            request=lease._number,
            size_bytes=size,
            held_seconds=at - held_since,
            calls=lease._calls,
            seat=instance.seat,
            kept=instance.state is not State.CLOSED,
            total_size_bytes=ledger.total_size,
            code_size_bytes=ledger.used,
        ),
        at,
    )
