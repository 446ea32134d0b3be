"""Closes groups, all of them when the cache closes, whatever their tasks are doing.

1. No new leases are given; waiting acquires fail at once.
2. Leases end now, wherever their tasks are: idle in their block, between two slices, loading, or in
   a host function. Native memory is freed in this step; the task gets the error when it next runs.
3. A call in a thread is asked to stop, which takes at most a slice, and is waited for, shielded.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from .._core.events import Reason
from .._core.policy.records import Stage
from .._ki import let_others_run, outlast
from .._pool.capacity import GroupState
from .._pool.pool import CLOSED, Pool

# Groups, instances and waiters to close in one step of the loop: at 20 to 50 microseconds each,
# about a millisecond. A single group is closed in one step, however many instances it has.
MAX_WORK = 32


async def close_groups(pool: Pool, groups: Sequence[GroupState], reason: Reason) -> None:
    """Close `groups`; when this returns, none of their calls is running.

    **Checkpoint:** if a thread is in a call, or there is more than `MAX_WORK` to close.
    **Cancellation:** shielded, from Ctrl-C as well; a thread stops within a slice.
    """
    now = trio.current_time()
    work = 0
    for group in groups:
        if work >= MAX_WORK:
            await let_others_run()
            now, work = trio.current_time(), 0
        if group.record.closed:
            continue  # it is being closed already, and waits for a thread
        pool.journal.group_closed(group.record.name, pool.closed, now)
        step = pool.policy.close_group(group.record, now, reason)
        pool.carry_out(step, now)
        for request in step.woken:
            if request.stage is Stage.ENDED:
                # Noted now, as the cache's log ends before its tasks get the error.
                pool.journal.abandoned(request, CLOSED, now)
        group.capacity.refuse_waits()
        work += 1 + len(step.evicted) + len(step.woken)
    records = {group.record for group in groups}
    in_threads = []
    for request in [one for one in pool.policy.waits.held if one.entry.group in records]:
        if work >= MAX_WORK:
            await let_others_run()
            work = 0
        if request not in pool.policy.waits.held:
            continue  # its lease has ended meanwhile
        assert request.give_up is not None
        out_of_thread = request.give_up(reason)
        if isinstance(out_of_thread, trio.Event):
            in_threads.append((request, out_of_thread))
        work += 1
    for request, out_of_thread in in_threads:
        await outlast(out_of_thread)
        if request in pool.policy.waits.held and request.give_up is not None:
            request.give_up(reason)
