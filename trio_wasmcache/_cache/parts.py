"""Hold the parts of one cache together, and close them in order.

`Parts.close` first refuses new leases and registrations, then closes all groups, and notes the end
of the cache last, when nothing is under way any more.
"""

from __future__ import annotations

import functools
from typing import final

import trio

from .._core.events import Reason
from .._pool.pool import Pool
from .._pool.profiling import Profiler
from .._pool.promotion import Promoter
from .._pool.registration import Compiler
from .._pool.snapshots import Snapshots
from .group import Groups
from .lease import lend_lease
from .statistics import Statistics


@final
class Parts:
    """The parts that make up one cache.

    Each changes its own state only. `InstanceCache` uses all of them; `trio_wasmcache.testing` and
    `trio_wasmcache.otel` find them by `parts_of`.
    """

    __slots__ = ("compiler", "groups", "pool", "profiler", "promoter", "snapshots", "statistics")

    def __init__(
        self,
        pool: Pool,
        groups: Groups,
        compiler: Compiler,
        promoter: Promoter,
        profiler: Profiler,
        statistics: Statistics,
        snapshots: Snapshots,
    ) -> None:
        self.pool: Pool = pool
        self.groups: Groups = groups
        self.compiler: Compiler = compiler
        self.promoter: Promoter = promoter
        self.profiler: Profiler = profiler
        self.statistics: Statistics = statistics
        self.snapshots: Snapshots = snapshots

    @staticmethod
    def make(pool: Pool, service: trio.Nursery) -> Parts:
        """Make the parts round a pool; `service` runs what belongs to no group."""
        groups = Groups(pool, service)
        lend = functools.partial(lend_lease, pool)
        compiler = Compiler(pool.engine, service, pool, lend)
        promoter = Promoter(pool, compiler, groups.states, lend)
        return Parts(
            pool,
            groups,
            compiler,
            promoter,
            Profiler(pool, compiler),
            Statistics(pool, groups.states, promoter),
            Snapshots(pool, groups.states),
        )

    async def close(self) -> None:
        """End everything that is under way; when this returns, the log is complete.

        **Checkpoint:** if a thread is in a call, or there is much to close.
        **Cancellation:** shielded, from Ctrl-C as well; a thread stops within a slice.
        """
        self.pool.close()
        self.profiler.close()
        await self.groups.close(list(self.groups.states.values()), Reason.CLOSED)
        self.pool.journal.closed(**self.statistics.totals())
