"""Both compilers do the same with generated programs: results, traps, backtraces, memory, fuel."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import trio
from attrs import evolve, frozen
from engine.support import quiet_cache
from fuzz.programs import Program, arguments, program
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache import Function, GuestError, InstanceCache
from trio_wasmcache._core.tiers import BASELINE, OPTIMIZING, Tier

LEASES, CALLS = 2, 3


async def register(cache: InstanceCache, one: Program, tier: Tier) -> list[Function]:
    """Each function of a program."""
    functions = [
        await cache.register(
            name, one.text, args=of.params, returns=of.results or None, isolation="fresh"
        )
        for name, of in one.functions.items()
    ]
    record = cache._pool.registry.find("f0", functions[0].args)  # type: ignore[attr-defined]
    assert record.definition.module.artifact.tier is tier
    return functions


@frozen
class End:
    """How a call ended."""

    how: tuple[Any, ...]
    """Results and memory, or type and code of the error."""
    frames: tuple[tuple[str | None, int | None], ...] = ()
    """Function and offset of each frame of the error."""
    fuel: int | None = None
    """Units that it took; None: they need not be the same."""

    def agrees(self, optimizing: End) -> bool:
        """Whether this, on the baseline tier, is how it ends on the optimizing one.

        There, a load may be a part of the instruction that takes its value, and have the offset of
        that one, or none.
        """
        other = optimizing
        if self.how[-1] == "out of bounds memory access" and self.frames and other.frames:
            function, offset = self.frames[0]
            name, later = other.frames[0]
            assert offset is not None
            if name == function and (later is None or later > offset):
                other = evolve(other, frames=((function, offset), *other.frames[1:]))
        return self == other


async def outcomes(cache: InstanceCache, one: Program, tier: Tier, seed: int) -> list[End]:
    """How calls end, of several in each instance."""
    random = Random(seed)
    found: list[End] = []
    for function in await register(cache, one, tier):
        signature = one.functions[function.name]
        for _ in range(LEASES):
            async with function.acquire() as lease:
                for values in [arguments(random, signature) for _ in range(CALLS)]:
                    try:
                        result = await lease.call(*values)
                    except GuestError as error:
                        how = type(error).__name__, getattr(error, "code", None)
                        frames = tuple((frame.function, frame.offset) for frame in error.frames)
                        found.append(End(how, frames))
                        break
                    memory = lease.memory.read(0, lease.memory.size)
                    fuel = None if one.grows else lease.fuel_consumed
                    found.append(End((values_of(result), hash(memory)), fuel=fuel))
    return found


def values_of(result: Any) -> list[str]:
    """Results, in which every NaN is the same, and zeros have signs."""
    several = result if isinstance(result, tuple) else (result,)
    return ["nan" if isinstance(v, float) and math.isnan(v) else repr(v) for v in several]


@tries(8)
@given(seed=st.integers(0, 2**32))
def test_both_compilers_do_the_same(seed: int) -> None:
    """Of calls that return, fuel is the same, too."""

    async def main() -> None:
        one = program(seed)
        found: list[list[End]] = []
        for tier in (BASELINE, OPTIMIZING):
            async with quiet_cache(compiler=tier.value) as cache:
                found.append(await outcomes(cache, one, tier, seed))
        for baseline, optimizing in zip(*found, strict=True):
            assert baseline.agrees(optimizing), f"{baseline}, but {optimizing}"

    trio.run(main)
