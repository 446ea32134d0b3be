"""The background task: sleeps until something idle is due, evicts it, and sleeps on.

With nothing idle it sleeps without a deadline. Who recycles into an empty cache sets one
(`Shell.expect_expiry`); after that the task sets it itself, so a hit costs nothing here.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from ._shell import Shell


@trio.lowlevel.enable_ki_protection
async def evict_on_time(shell: Shell) -> NoReturn:
    """Evict what has been idle for `idle_timeout`, when it is due and not later. Runs for ever.

    Evicting can't fail: it changes books and frees memory. Should it all the same, that is a bug
    to be seen, so nothing is caught here, and the cache's block is cancelled.
    """
    while True:
        with trio.CancelScope() as shell.sleep:
            shell.sleep_until(shell.policy.next_expiry())
            await trio.sleep_forever()
        now = trio.current_time()
        shell.act(shell.policy.expire(now), now)
