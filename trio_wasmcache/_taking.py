"""How a lease comes by its instance and gives it back, where that is no plain hit.

The plain hit is in `Lease.__aenter__` and `__aexit__`; what is here does the same, and more.

A `RecursionError` half-way through the books would leave them wrong. So it is asked for before, at
the price of a few calls that a hit does not pay: its steps make none (see `_core/policy`). Where it
comes while a block is left, the lease is given back by the event loop, from the top of the stack.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import trio
from attrs import frozen
from trio.lowlevel import Task

from ._core.errors import DeadlockError
from ._core.events import Reason
from ._core.headroom import check_headroom
from ._core.isolation import SEAT_SIZE
from ._core.records import FunctionRecord, Instance
from ._engine.seam import GuestInstance
from ._held import Held, hold
from ._load import grant

if TYPE_CHECKING:
    from ._lease import Lease
    from ._registry import Registered


async def take(lease: Lease, task: Task) -> Lease:
    """Take a token and then an instance: what is left of entering after its checkpoint.

    **Checkpoint:** if it has to wait or load, maybe.
    **Cancellation:** nothing is held.
    """
    shell, group = lease._shell, lease._group
    if shell.exits:
        shell.exits.run()
    if group.record.closed or shell.closed:
        raise shell.closed_error(group.record)
    if shell.journal.log_uses:
        lease._at = shell.now()
    blocked = not group.capacity.take_nowait(task)
    if blocked:
        record = shell.registry.find(lease._name, lease._args)  # unknown: say so before waiting
        lease._at = shell.now()
        try:
            await _wait_for_token(lease, record, task)
        except BaseException as error:
            entry = shell.policy.residents.entry(record, group.record)
            shell.policy.note_error(entry, type(error).__name__)
            if not (group.record.closed or isinstance(error, DeadlockError)):
                _note_no_token(lease, record, task, type(error).__name__)
            raise
    try:
        check_headroom()
        try:
            record = shell.registry.find(lease._name, lease._args)
        except Exception as error:
            if blocked and not group.record.closed:
                # Removed while it waited; the log still has it waiting for its token.
                _note_no_token(lease, record, task, type(error).__name__)
            raise
        await _acquire(lease, record, task, blocked)
    except BaseException:
        group.capacity.give_back(task)
        raise
    lease._task = task
    return lease


async def _acquire(lease: Lease, record: FunctionRecord, task: Task, blocked: bool) -> None:
    shell, group = lease._shell, lease._group
    policy = shell.policy
    if group.record.closed or shell.closed:
        raise shell.closed_error(group.record)
    request = policy.request(record, group.record, task, lease._warm)
    request.payload = lease
    request.blocked = blocked
    if blocked:
        request.since = lease._at
    await grant(shell, group, request)
    instance = request.instance
    assert instance is not None
    held: Held = hold(instance) if instance.ready is None else instance.ready
    if held.registered.keeps_state or held.registered.resets:
        instance.ready = held
    config = shell.config
    if held.native.yield_fuel != config.yield_fuel:
        held.native.set_yield_fuel(config.yield_fuel)  # resized since it was made
    lease._request = request
    lease._held = held
    lease._guest = held.guest
    lease._total_fuel = config.total_fuel
    if shell.journal.log_uses:
        ledger = policy.residents.ledger
        shell.journal.acquired(request, instance, lease._at, shell.now(), ledger)


def give_back(lease: Lease, task: Task) -> None:
    """The block has ended: the instance goes back, now or when the call under way is over.

    The token goes back at once.

    Raises:
        RecursionError: there is not enough room on Python's stack; nothing has changed.
    """
    check_headroom()
    if lease._request is not None:
        if lease._busy:
            shell, request, caller = lease._shell, lease._request, lease._caller
            assert caller is not None
            now = trio.current_time()
            lease._end_under_a_call(Reason.CORRUPTED)
            shell.journal.left(request, caller, now)
            shell.act(shell.policy.hand_over(request, caller, now), now)
        else:
            recycle(lease)
    lease._group.capacity.give_back(task)


def give_back_token(lease: Lease, task: Task) -> None:
    """Raises `RecursionError` as `give_back` does."""
    check_headroom()
    lease._group.capacity.give_back(task)


def leave(lease: Lease, task: Task) -> None:
    """Give back what a block left behind, from the top of Python's stack."""
    give_back(lease, task)
    lease._shell.evictor.expect_expiry()


def recycle(lease: Lease, reason: Reason | None = None) -> None:
    """Give the instance back to the policy. No thread is in it."""
    native: GuestInstance | None = lease._native
    request, lease._request = lease._request, None
    clean = lease._guest is not None
    lease._guest = None
    assert request is not None
    assert native is not None
    instance, registered = request.instance, lease._registered
    assert instance is not None
    assert registered is not None
    shell, seat, closed_size = lease._shell, False, None
    if not clean:
        # A call failed or is half-way, whoever has it under way.
        reason = reason or Reason.CORRUPTED
        native.abandon()
    elif not registered.keeps_state and reason is None:
        limit = shell.config.max_instance_size
        seat, closed_size = _leave_seat(registered, instance, native, limit)
    size = SEAT_SIZE if seat else native.measure()
    reserved = (0, 0) if seat else native.reserved
    if reserved != (instance.address_space, instance.mappings):
        instance.ready = None  # it was kept from the short way back: see `Held.attach`
    now = shell.now()
    step = shell.policy.recycle(request, size, now, reason, seat, reserved)
    shell.journal.recycled(
        request,
        instance,
        lease._calls,
        now,
        shell.policy.residents.ledger,
        size_bytes=size,
        closed_size_bytes=closed_size,
        address_space_bytes=reserved[0],
        mappings=reserved[1],
    )
    if step is not None:
        shell.act(step, now)
    shell.evictor.expect_expiry()


def _leave_seat(
    registered: Registered, instance: Instance, native: GuestInstance, limit: int
) -> tuple[bool, int | None]:
    """Put the instance back, as the next lease must find nothing of this one.

    Returns whether it was closed instead, as it can't be put back or exceeds `limit` (bytes); and
    its size if only the limit is why.
    """
    closed_size = None
    if registered.resets and native.reset():
        closed_size = native.measure()
        if closed_size <= limit:
            return False, None
    instance.payload = None
    native.close()
    return True, closed_size


async def _wait_for_token(lease: Lease, record: FunctionRecord, task: Task) -> None:
    shell, group = lease._shell, lease._group
    waits, journal = shell.policy.waits, shell.journal
    waits.begin(task, group.record)
    shell.policy.note_token_block(record, group.record)
    journal.token_blocked(record, group.record.name, task)
    if not await group.capacity.take(task, _TokenWait(lease, record, task)):
        raise shell.closed_error(group.record)


@final
@frozen
class _TokenWait:
    """See `capacity.TokenWait`; the request of the acquire does not exist yet."""

    lease: Lease
    record: FunctionRecord
    task: Task

    def over(self) -> None:
        self.lease._shell.policy.waits.end(self.task)

    def refused(self) -> None:
        self.over()
        error = trio.ClosedResourceError.__name__
        _note_no_token(self.lease, self.record, self.task, error)


def _note_no_token(lease: Lease, record: FunctionRecord, task: Task, error: str) -> None:
    """Waiting for the token was in vain."""
    lease._shell.journal.token_abandoned(record, lease._group.record.name, task, error)
