"""The background task that evicts idle instances on time, and closes evicted ones in pieces.

With nothing idle it sleeps without a deadline. A recycle into an empty cache sets one
(`Evictor.expect_expiry`); after that the task sets it itself, so a hit costs nothing here. With
`idle_timeout="adaptive"`, so does a recycle while all idle instances have aged (see `keep_alive`):
it may be the next for which there is something to do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NoReturn, final

import trio

from .._core.policy.instances import Step
from .._core.policy.policy import Policy
from .._core.policy.records import Closable

# Number of instances to close in one step of the loop, if nothing waits for their memory.
AT_ONCE = 8


@final
class Evictor:
    """Sleeps until an idle instance is due, evicts it, and repeats."""

    def __init__(self, policy: Policy, carry_out: Callable[[Step, float], None]) -> None:
        self._policy = policy
        self._carry_out = carry_out
        # The task sleeps in this scope, whose deadline is when the next instance is due.
        self._sleep = trio.CancelScope()
        self._to_close: deque[Closable] = deque()  # instances whose memory nothing waits for
        self._is_set = False  # whether the scope has a deadline
        self.expects_expiry: bool = False
        """Whether a deadline is set that is early enough for whatever becomes idle from now on.
        While it is, `expect_expiry` would change nothing."""

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> NoReturn:
        """Evict instances as soon as they have been idle for their timeout. It never returns.

        If many instances are due at the same time, other tasks run in between: the deadline of the
        rest has passed already, so the next sleep ends at once.

        Evicting can't fail: it changes books and frees memory. A failure would be a bug that must
        be noticed, so nothing is caught here, and an error cancels the cache's block.

        **Checkpoint:** always.
        **Cancellation:** ends the task; nothing is half-way.
        """
        while True:
            while self.close_some():
                await trio.lowlevel.checkpoint()
            with trio.CancelScope() as self._sleep:
                self.sleep_until(self._policy.next_expiry())
                await trio.sleep_forever()
            now = trio.current_time()
            self._carry_out(self._policy.expire(now), now)

    def close_later(self, native: Closable) -> None:
        """Close an evicted instance in one of the next passes of the loop.

        Until then its memory and addresses are in no book: those of all but `AT_ONCE` of the
        instances that a `resize` or the end of a group evicts. (Measured: 992 instances, with 4 TiB
        of addresses, in 125 passes and 27 ms of an idle loop.) If the system refuses memory in the
        meantime, they are closed at once: see `Pool.evict_for`.
        """
        if not self._to_close:
            self._sleep.cancel()
        self._to_close.append(native)

    @property
    def closing(self) -> int:
        """Number of evicted instances that are not closed yet."""
        return len(self._to_close)

    def close_some(self) -> bool:
        """Close up to `AT_ONCE` of the instances of `close_later`; return whether any is left."""
        for _ in range(min(AT_ONCE, len(self._to_close))):
            self._to_close.popleft().close()
        return bool(self._to_close)

    def close_all(self) -> bool:
        """Close all instances of `close_later`; return whether there was any."""
        waited = bool(self._to_close)
        while self.close_some():
            pass
        return waited

    def expect_expiry(self) -> None:
        """Wake when the next idle instance is due. It must be called when an instance becomes idle.

        If one is set that is early enough, the task sets the next one then.
        """
        if not self.expects_expiry:
            self.sleep_until(self._policy.next_expiry())

    def sleep_until(self, due: float | None) -> None:
        """Sleep until time `due` (seconds, the clock of Trio's run), or with None for ever."""
        if due is None and not self._is_set:
            return  # it does already; setting Trio's deadline costs more than a call
        self.expects_expiry = due is not None and self._policy.expects_expiry
        self._is_set = due is not None
        self._sleep.deadline = math.inf if due is None else due
