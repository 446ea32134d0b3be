"""``python -m tests.storm``: storms one after the other, until there were so many operations.

An operation is a lease asked for, a call, or a disturbance; after each lease and each disturbance
the books are checked. Engines take turns. Exit status 1, with the seed, if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

# Where pytest has it, too.
sys.path.insert(0, str(Path(__file__).parents[1]))

import compilers
import trio
from kits import FakeKit, WasmtimeKit
from storm.weather import blow

OPERATIONS = 1_000_000
ROUNDS = 50
EVERY = 100_000
KITS = {"fake": FakeKit, "wasmtime": WasmtimeKit}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--operations", type=int, default=OPERATIONS, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="leases of each of 12 tasks")
    parser.add_argument("--seed", type=int, default=1, help="of the first storm")
    parser.add_argument("--engine", choices=KITS, action="append", help="default: all, by turns")
    options = parser.parse_args()
    compilers.use()
    engines = options.engine or list(KITS)
    began = time.monotonic()
    done, storms = 0, 0
    while done < options.operations:
        seed, engine = options.seed + storms, engines[storms % len(engines)]
        try:
            operations = trio.run(blow, KITS[engine](), seed, options.rounds)
        except Exception:
            traceback.print_exc()
            print(f"storm {seed} on {engine} failed, after {done:,} operations of others")
            return 1
        storms += 1
        if done // EVERY < (done + operations) // EVERY:
            seconds = time.monotonic() - began
            print(f"{done + operations:,} operations in {seconds:.0f} s", flush=True)
        done += operations
    seconds = time.monotonic() - began
    print(f"{done:,} operations in {storms} storms, {seconds:.0f} s: invariants intact")
    return 0


if __name__ == "__main__":
    sys.exit(main())
