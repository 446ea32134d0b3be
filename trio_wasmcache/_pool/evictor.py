"""The background task that evicts idle instances on time, and when it wakes next.

With nothing idle it sleeps without a deadline. A recycle into an empty cache sets one
(`Evictor.expect_expiry`); after that the task sets it itself, so a hit costs nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn, final

import trio

from .._core.policy.instances import Step
from .._core.policy.policy import Policy


@final
class Evictor:
    """Sleeps until something idle is due, evicts it, and sleeps on."""

    def __init__(self, policy: Policy, carry_out: Callable[[Step, float], None]) -> None:
        self._policy = policy
        self._carry_out = carry_out
        # The task sleeps in this scope; its deadline is the next thing due.
        self._sleep = trio.CancelScope()
        self.expects_expiry = False
        """Whether a deadline is set. While one is set, `expect_expiry` would change nothing."""

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> NoReturn:
        """Evict what has been idle for `idle_timeout`, when it is due and not later. Never ends.

        Where much is due at the same time, others run in between: the deadline of what is left has
        passed then.

        Evicting can't fail: it changes books and frees memory. A failure would be a bug that has to
        be seen, so nothing is caught here, and the cache's block is cancelled.
        """
        while True:
            with trio.CancelScope() as self._sleep:
                self.sleep_until(self._policy.next_expiry())
                await trio.sleep_forever()
            now = trio.current_time()
            self._carry_out(self._policy.expire(now), now)

    def expect_expiry(self) -> None:
        """Wake when something idle is due. Called whenever an instance becomes idle.

        If a deadline is set already, it is not later, and the task looks again then.
        """
        if not self.expects_expiry:
            self.sleep_until(self._policy.next_expiry())

    def sleep_until(self, due: float | None) -> None:
        """Wake at time `due` (the clock of Trio's run, seconds); None: not by itself."""
        if due is None and not self.expects_expiry:
            return  # as it does already; to tell Trio so costs more than a call
        self.expects_expiry = due is not None
        self._sleep.deadline = math.inf if due is None else due
