"""Replaces the instances of a batch whose rows fail: see ``on_error="null"`` of `Lease.map`.

1. A new instance takes the place of the old one in all books, in one step of the policy, once it
   has started. Until then the lease has the old one, which is closed: if the new one can't be made,
   the lease ends as after any failed call.
2. Each replacement is an eviction. Those after the first `MAX_EVENTS` of a batch are counted, and
   booked with the last one: meanwhile the books go on with an instance of the same function, group
   and size as the real one.
"""

from __future__ import annotations

import functools
from typing import Final, final

from trio.lowlevel import Task

from .._core.policy.records import Request
from .._core.policy.shares import Share
from .._runtime.bound import BoundFunction
from .._runtime.start import Start
from .making import Making, bind_metered, explain, needed
from .pool import Pool

MAX_EVENTS: Final = 99
"""Number of evictions of a batch that have an event each; one more stands for all later ones."""


@final
class Replacing:
    """Replaces the instance of one lease, in one batch: a `call.Replacement`.

    Args:
        pool: the pool of the cache.
        share: share of the group that is charged.
        lease: the result of `current_lease` in host functions that a start calls.
        request: the request of the lease.
        task: task of the batch.
    """

    def __init__(
        self, pool: Pool, share: Share, lease: object, request: Request, task: Task
    ) -> None:
        self._pool = pool
        self._share = share
        self._request = request
        self._task = task
        self._making = Making(pool, share, lease, request)
        self._events = 0  # of evictions so far
        self._later = 0  # number of those since, which are not booked yet
        self._last = 0, ""  # size of the last of these (bytes), type of its error

    @property
    def start(self) -> Start | None:
        """See `call.Replacement`."""
        return self._making.start

    async def run(self, bound: BoundFunction, error: str) -> BoundFunction:
        """See `call.Replacement`."""
        pool, request, definition = self._pool, self._request, bound.definition
        entry = request.held.entry
        size = bound.size
        bound.close_early()
        try:
            native = await pool.relief.run_async(
                request.need, needed(entry.function), self._making.run, definition
            )
        except BaseException as failure:
            problem = explain(definition, entry.function.key, failure, pool.config)
            if problem is failure:
                raise
            raise problem from failure
        made = bind_metered(pool, self._share, definition, entry, native)
        if self._events < MAX_EVENTS:
            self._events += 1
            self._book(size, error, 1)
        else:
            self._later += 1
            self._last = size, error
        request.held.hold(made, ready=definition.serves_again)
        return made

    def close(self) -> None:
        """See `call.Replacement`."""
        self._making.close()

    def finish(self) -> None:
        """Book what is not booked yet, as the batch, or the lease, ends."""
        later, self._later = self._later, 0
        if later:
            held = self._request.held
            ready, bound = held.ready is not False, held.release()
            self._book(*self._last, later)
            if bound is not None:
                self._request.held.hold(bound, ready=ready)

    def _book(self, size: int, error: str, evictions: int) -> None:
        pool, now = self._pool, self._pool.now()
        step = pool.policy.replace(self._request, size, now, error, evictions)
        pool.carry_out(step, now, functools.partial(pool.journal.origin_of, self._task))
