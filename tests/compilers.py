"""Lets all modules of a run of the tests, or of their commands, be compiled by one compiler.

`pytest --compiler NAME` sets the variable, which the processes that tests start inherit:
`WASMCACHE_TESTS_COMPILER=baseline python -m tests.fuzz` does the same by hand.
"""

from __future__ import annotations

import os

from trio_wasmcache._core import tiers

VARIABLE = "WASMCACHE_TESTS_COMPILER"


def chosen() -> str:
    """Return the name of the compiler."""
    return os.environ.get(VARIABLE, "optimizing")


def use(name: str | None = None) -> None:
    """Let "optimizing", the default of caches and engines, be that compiler; None: the chosen."""
    if name is not None:
        os.environ[VARIABLE] = name
    tiers.FIRST["optimizing"] = tiers.FIRST[chosen()]
    tiers.STACKS["optimizing"] = tiers.STACKS[chosen()]
