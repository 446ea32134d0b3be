"""Closing groups, and the cache with the last of them, under whatever is going on in them.

1. No new leases; who waits is told at once.
2. Leases end now, wherever their tasks are: idle in their block, between two slices, loading, or in
   a host function. What is native is freed in this step, and the task is told when it goes on.
3. A call in a thread is told to stop, does within a slice, and is waited for, shielded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from ._capacity import GroupState
from ._core.events import Reason
from ._core.records import Request, Stage
from ._ctrl_c import outlast
from ._shell import Shell, held_in

if TYPE_CHECKING:
    from ._lease import Lease


# What those get whose group or cache is closed.
CLOSED = trio.ClosedResourceError.__name__


async def close_groups(shell: Shell, groups: Sequence[GroupState], reason: Reason) -> None:
    """Close `groups`; when this returns, nothing of theirs runs any more.

    **Checkpoint:** if a thread is in a call.
    **Cancellation:** shielded, from Ctrl-C as well; a thread stops within a slice.
    """
    now = trio.current_time()
    for group in groups:
        if group.record.closed:
            continue  # it is closing already, and waits for a thread
        shell.journal.group_closed(group.record.name, shell.closed, now)
        step = shell.policy.close_group(group.record, now, reason)
        shell.act(step, now)
        for request in step.woken:
            if request.stage is Stage.ENDED:
                # Now, as the log of a cache ends before its tasks have been told.
                shell.journal.abandoned(request, CLOSED, now)
        group.capacity.refuse_waits()
    in_threads = []
    for group in groups:
        for request in held_in(shell.policy, group.record):
            out_of_thread = _shut(shell, request, reason)
            if out_of_thread is not None:
                in_threads.append((request, out_of_thread))
    for request, out_of_thread in in_threads:
        await outlast(out_of_thread)
        if request in shell.policy.waits.held:
            _shut(shell, request, reason)


def _shut(shell: Shell, request: Request, reason: Reason) -> trio.Event | None:
    """End one lease, or what is on the way to one; an event, and not yet, if a thread is in it."""
    lease: Lease = request.payload
    instance = request.instance
    out_of_thread = lease._shut(reason)
    if out_of_thread is not None:
        return out_of_thread
    now = trio.current_time()
    if request.stage in (Stage.LOADING, Stage.GRANTED):
        shell.journal.abandoned(request, CLOSED, now)
    if request.stage is Stage.LOADING:
        assert instance is not None
        native, instance.payload = instance.payload, None
        if native is not None:
            native.close()  # first, as its start may use the code that goes next
        shell.act(shell.policy.failed(request, now), now)
    elif request.stage is Stage.GRANTED:
        # Its task was woken but has not run yet: the lease does not know its instance.
        assert instance is not None
        shell.act(shell.policy.recycle(request, instance.size, now, reason), now)
    return None
