"""Decides by which of wasmtime's compilers a module is compiled: its *tier*.

The baseline compiler (Winch) takes a tenth of the optimizing one's (Cranelift's) time, and its code
is up to half as fast. Results, traps and backtraces are the same, and so is the fuel of calls that
return. These differ, and this file and `wasm/bulk` are what deals with them:

1. The baseline compiler knows no values that are garbage-collected, and no relaxed SIMD. A module
   that has the first goes to the optimizing compiler at once; one with the second, as soon as the
   baseline compiler has refused it.
2. Its frames are larger, 1.3 to 12 times. Where it may compile modules, all stacks are larger, by
   `STACKS`: those of optimized code, too, as a promotion must not take stack from a function.
3. It charges nothing for the length of bulk instructions, so these are edited: see `wasm/bulk`.

Code of one tier can be neither loaded by the engine of the other nor instantiated in its stores, so
all that is compiled has a tier: modules and their parts, drivers, restorers.

Each of the two has a *profiled* tier beside it, the same compiler with checks of wasmtime's epochs
in the code. In these, samples of the guest's stack are taken: see `_pool/profiling`. Fuel, traps
and frames are the same.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias

CompilerName: TypeAlias = Literal["optimizing", "tiered", "baseline"]
"""Name of a way to choose compilers; see `CacheConfig.compiler`."""


class Tier(enum.Enum):
    """One of wasmtime's compilers."""

    BASELINE = "baseline"
    OPTIMIZING = "optimizing"
    PROFILED_BASELINE = "baseline, profiled"
    PROFILED_OPTIMIZING = "optimizing, profiled"


BASELINE, OPTIMIZING = Tier.BASELINE, Tier.OPTIMIZING
PROFILED: Final = {
    BASELINE: Tier.PROFILED_BASELINE,
    OPTIMIZING: Tier.PROFILED_OPTIMIZING,
}
"""{tier: the same with samples}."""
COMPILERS: Final = {
    BASELINE: BASELINE,
    OPTIMIZING: OPTIMIZING,
    **{profiled: tier for tier, profiled in PROFILED.items()},
}
"""{tier: the one of the same compiler without samples}."""
TIERED: Final = "tiered"
"""Name of the way in which modules are compiled by both compilers, see `policy/promotion`."""
FIRST: Final[dict[str, Tier]] = {
    "optimizing": OPTIMIZING,
    TIERED: BASELINE,
    "baseline": BASELINE,
}
"""{name of `CacheConfig.compiler`: tier in which modules are compiled first}."""
STACKS: Final[dict[str, int]] = {"optimizing": 1, TIERED: 4, "baseline": 4}
"""{name of `CacheConfig.compiler`: size of all stacks, in `CacheConfig.stack_size`}."""


def tiers_of(compiler: CompilerName) -> tuple[Tier, ...]:
    """Return the tiers in which modules are compiled, the first one first."""
    return tuple(dict.fromkeys((FIRST[compiler], OPTIMIZING)))


def tiers_for(first: Tier, *, simple: bool) -> tuple[Tier, ...]:
    """Return the tiers in which a module may be compiled, in the order in which they are tried.

    There is one alone for samples, as the module was compiled by that compiler before.

    Args:
        first: the one to try first.
        simple: whether the baseline compiler may get it: it holds no values that are
            garbage-collected, and all its bulk instructions can be charged.
    """
    if first not in PROFILED:
        return (first,)
    return tuple(dict.fromkeys((first, OPTIMIZING))) if simple else (OPTIMIZING,)
