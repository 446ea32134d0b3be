"""``python -m tests.soak --minutes N``: everything at once on the real engine, until then.

It goes by intervals. At the end of each everybody stops and every function is removed; then the
books must be at zero, and nothing native and no thread may be left. The memory of the process is
looked at then, and must not grow. Exit status 1 if anything is wrong, or a result was.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from random import Random
from typing import Any

import trio

from trio_wasmcache import open_cache
from trio_wasmcache.testing import check_invariants

from .. import compilers
from .drift import MIB, books_left, busy_threads, code_mappings, drifts, handles_left, quiet_rss
from .life import CONFIG, Life

# Seconds in which everybody must have stopped, on a busy machine.
PATIENCE = 120.0
# Mappings of code that wasmtime and ctypes may make for themselves: some 5, and no more later.
OTHER_CODE = 16
# Of the cache's, while it is open.
LOG_THREAD = "trio_wasmcache log"


class Silent:
    """A logger that writes nothing."""

    def info(self, event: str, **fields: Any) -> None:
        pass

    warning = info


class Soak:
    """One run."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.problems: list[str] = []
        self.looks: list[tuple[float, float]] = []
        """(seconds since the beginning, RSS), when all was quiet."""
        self.calls = self.operations = 0
        self.errors: dict[str, int] = {}

    async def run(self, minutes: float, interval: float) -> None:
        began = time.monotonic()
        async with open_cache(CONFIG, logger=Silent()) as cache:
            life = Life(cache, self.random)
            mappings = code_mappings()
            for number in range(1, math.ceil(minutes * 60 / interval) + 1):
                with trio.move_on_after(interval + PATIENCE) as scope:
                    await life.live(interval)
                if scope.cancelled_caught:
                    life.wrong(f"somebody waits for ever: {cache!r}, {cache.entries()}")
                life.empty()
                stuck = await self.settle({LOG_THREAD})
                life.problems += [*books_left(cache.stats()), *handles_left(), *stuck]
                left = code_mappings() - mappings
                if left > OTHER_CODE:
                    life.problems.append(f"{left} mappings of code are left")
                check_invariants(cache)
                self.looks.append((time.monotonic() - began, quiet_rss()))
                print(self.line(number, life), flush=True)
                self.problems = life.problems
                grown = drifts(self.looks)
                self.problems += [] if grown is None else [grown]
                if self.problems:
                    break
        self.problems += [*handles_left(), *await self.settle(set())]
        self.calls, self.operations, self.errors = life.calls, life.operations, life.errors

    async def settle(self, own: set[str]) -> list[str]:
        """What threads still do after a while: one that was left to finish a compile may."""
        for _ in range(int(PATIENCE * 100)):
            left = busy_threads() - own
            if not left:
                return []
            await trio.sleep(0.01)
        return [f"a thread is left: {name}" for name in sorted(left)]

    def line(self, number: int, life: Life) -> str:
        """What was done by then; how much memory it took at most, and takes with all removed."""
        errors = ", ".join(f"{count} {kind}" for kind, count in life.errors.most_common())
        quiet = self.looks[-1][1]
        return (
            f"{number}: {life.calls:,} calls, {life.operations:,} operations; "
            f"RSS {life.most_rss / MIB:.0f} MiB at most, {quiet / MIB:.1f} with all removed; "
            f"accounted {life.most_accounted / MIB:.0f} MiB at most, "
            f"{life.cache.stats().accounted_size} with all removed; {errors or 'no errors'}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="default: %(default)s")
    parser.add_argument("--interval", type=float, default=60, help="seconds; a line is printed")
    parser.add_argument("--seed", type=int, default=1, help="of what can be chosen at random")
    options = parser.parse_args()
    compilers.use()
    soak = Soak(options.seed)
    trio.run(soak.run, options.minutes, options.interval)
    print(f"{soak.calls:,} calls, {soak.operations:,} operations, {len(soak.problems)} problems")
    for problem in soak.problems:
        print(f"PROBLEM: {problem}")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
