"""The background task that takes snapshots for a log with uses, while something happens.

With nothing noted since the last snapshot it sleeps without a deadline. The first event sets one
(see `Journal.stirred`), so there is one wakeup for each snapshot, and none in an idle cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn, final

import trio

from .capacity import GroupState
from .pool import Pool


@final
class Snapshots:
    """Takes a snapshot `snapshot_interval` after the first event since the last one."""

    def __init__(self, pool: Pool, groups: Mapping[str, GroupState]) -> None:
        self._pool = pool
        self._groups = groups  # {name: group} of those that are open
        self._since = math.inf  # time of the first event since the last snapshot
        self._sleep = trio.CancelScope()
        pool.journal.stirred = self._stirred
        if pool.journal.log_uses and not pool.journal.quiet:
            self._stirred()  # the events of opening

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> NoReturn:
        """Take a snapshot whenever it is due. It never returns.

        **Checkpoint:** always.
        **Cancellation:** ends it.
        """
        while True:
            with trio.CancelScope() as self._sleep:
                self.set_deadline()
                await trio.sleep_forever()
            self.take()

    def take(self) -> None:
        """Take a snapshot now, unless the log can't take one, or the cache is closed.

        The pass over the cache is synchronous; writing follows in the log's thread.
        """
        pool, now = self._pool, trio.current_time()
        self._since = math.inf
        pool.journal.listen()
        if pool.closed:
            return
        if not pool.log.takes_snapshot:
            pool.log.lose_snapshot()
            return
        groups = [(state.record, state.now) for state in self._groups.values()]
        pool.journal.snapshot(pool.policy, pool.registry.functions.values(), groups, now)

    def set_deadline(self) -> None:
        """Sleep until the next snapshot is due, as the interval may have changed."""
        self._sleep.deadline = self._since + self._pool.config.snapshot_interval

    def _stirred(self) -> None:
        self._since = trio.current_time()
        self.set_deadline()
