"""Profiles guests while they serve: for a window, functions have instances that take samples.

1. A suspended guest has no frames, so samples are taken on the guest's stack, by code that was
   compiled for that: a *variant* of the module, by the same compiler. All variants are compiled
   before the window begins.
2. In one step, new instances of the functions are made of their variants. Idle instances of their
   own modules are evicted, and held ones as their leases end; with them goes the state that they
   keep from lease to lease under ``"reuse"``.
3. At the end it is the same the other way round. A variant counts in `max_code_size` until its last
   instance is gone.
4. Functions that are not profiled, and the groups that are not, have nothing of this.
5. There is one window at a time. It ends once, whoever is first: the task that has asked for it, as
   its time is over or it is cancelled, or the closing of the cache.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import trio

from .._core.errors import CodeMemoryError, LoadError, WasmCacheError
from .._core.keys import FunctionKey
from .._core.policy.records import FunctionRecord, Need, Variant
from .._log import Origin as Cause
from .._runtime.bound import Definition
from .._runtime.module import CachedModule
from .capacity import GroupState
from .pool import COMPILE_SHARE, Pool
from .registration import Compiler

if TYPE_CHECKING:
    from .._core.profiles.tally import ProfileTally, StackSamples
    from .._profile.profile import Profile


@final
class Window:
    """The time of one profile, and the functions that are profiled."""

    __slots__ = (
        "_functions",
        "_variants",
        "cause",
        "compiler",
        "ended",
        "group",
        "modules",
        "pool",
        "skipped",
        "tally",
    )

    def __init__(
        self, pool: Pool, compiler: Compiler, cause: Cause, group: str | None, tally: ProfileTally
    ) -> None:
        self.pool = pool
        self.compiler = compiler
        self.cause = cause
        """Origin of its events: the task that has asked for it."""
        self.group = group
        """Name of the group whose instances are profiled; None: all."""
        self.tally = tally
        self.skipped: dict[str, str] = {}
        """{function: why it is not profiled}."""
        self.ended = trio.Event()
        self.modules: dict[CachedModule, CachedModule] = {}
        """{variant, of which `Compiler.keep` was called: the module that it is of}."""
        self._variants: dict[CachedModule, tuple[CachedModule, float]] = {}
        self._functions: list[FunctionRecord] = []

    async def compile(self, functions: Sequence[FunctionRecord], group: GroupState) -> None:
        """Compile the variants of all functions, in the turns of a group.

        **Checkpoint:** always.
        **Cancellation:** a compile is abandoned; `end` must be called.
        """
        await trio.lowlevel.checkpoint()
        failed: dict[CachedModule, str] = {}  # {module: why it has no variant}
        for function in functions:
            if function.retired:
                continue
            module = Definition.of(function).module
            if module in self._variants:
                continue
            if module in failed:  # functions of a component share one
                self.skipped[str(function.key)] = failed[module]
                continue
            try:
                made, seconds = await self.pool.relief.run_async(
                    Need(function.key, group.record),
                    COMPILE_SHARE,
                    self.compiler.sample,
                    module,
                    group,
                )
            except trio.ClosedResourceError:
                raise
            except (WasmCacheError, LookupError) as error:
                self.skipped[str(function.key)] = failed[module] = str(error.args[0])
                continue
            if self.ended.is_set():
                return
            self.compiler.keep(made)
            self._variants[module] = made, seconds
            self.modules[made] = module

    def begin(self, functions: Sequence[FunctionRecord]) -> None:
        """Have new instances of the functions made of their variants."""
        pool = self.pool
        for function in functions:
            variant, seconds = self._variants.get(Definition.of(function).module, (None, 0.0))
            if variant is None or function.retired:
                continue
            record, artifact, now = variant.record, variant.artifact, pool.now()
            reserved = artifact.address_space, artifact.mappings
            try:
                step = pool.policy.vary(function, Variant(record, reserved, self.group), now)
            except CodeMemoryError as error:
                self.skipped[str(function.key)] = str(error)
                continue
            variant.samples_of = functools.partial(self._samples_of, variant.number)
            self._functions.append(function)
            pool.journal.profiled(
                function,
                now,
                self.cause,
                group=self.group,
                module_digest=variant.digest,
                module_number=variant.number,
                compile_seconds=seconds,
                code_bytes=record.code_size,
                compiler=artifact.tier.value,
                artifact_bytes=variant.size,
                address_space_bytes=artifact.address_space,
                mappings=artifact.mappings,
                module_mappings=record.mappings,
            )
            module = Definition.of(function).module
            self._variants[module] = variant, 0.0
            pool.carry_out(step, now, lambda: self.cause, in_pieces=True)
            pool.evictor.expect_expiry()

    def _samples_of(self, module: int, group: str, key: FunctionKey) -> StackSamples:
        from .._core.profiles.tally import Origin

        return self.tally.samples_of(Origin(group, key, module))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is profiled in it."""
        return not self._functions

    def end(self) -> None:
        """Have new instances of the functions made of their own modules again; take the samples.

        Whatever it has kept is given up. Calling it again does nothing.
        """
        if self.ended.is_set():
            return
        self.ended.set()
        pool = self.pool
        for variant in self.modules:
            variant.samples_of = None
            if variant.loaded is not None:
                variant.loaded.collect()
        for function in self._functions:
            if function.retired:
                function.vary(None)  # the log may have forgotten it: nothing is made of it any more
                continue
            now = pool.now()
            step = pool.policy.vary(function, None, now)
            samples, fuel = self.tally.of_function(function.key)
            pool.journal.profiled(
                function,
                now,
                self.cause,
                group=self.group,
                module_digest=Definition.of(function).module.digest,
                samples=samples,
                fuel=fuel,
            )
            pool.carry_out(step, now, lambda: self.cause, in_pieces=True)
        self.tally.close()
        for variant in self.modules:
            self.compiler.drop(variant)


@final
class Profiler:
    """Makes the profiles of one cache.

    Args:
        pool: the pool of the cache.
        compiler: compiles the variants.
    """

    def __init__(self, pool: Pool, compiler: Compiler) -> None:
        self._pool = pool
        self._compiler = compiler
        self._window: Window | None = None

    async def run(
        self,
        seconds: float,
        functions: Sequence[FunctionRecord],
        group: str | None,
        charged: GroupState,
    ) -> Profile:
        """Profile functions; see `InstanceCache.profile`.

        Args:
            seconds: length of the window.
            functions: the functions.
            group: name of the group; None: all.
            charged: the group in whose turns the variants are compiled.
        """
        pool = self._pool
        if self._window is not None:
            raise trio.BusyResourceError(
                "a profile of this cache is under way: await that first, or cancel it"
            )
        from .._core.profiles.tally import ProfileTally

        cause = pool.journal.here()
        window = self._window = Window(pool, self._compiler, cause, group, ProfileTally())
        try:
            await window.compile(functions, charged)
            if pool.closed:
                raise trio.ClosedResourceError("the cache was closed while a profile began")
            window.begin(functions)
            if functions and window.is_empty and window.skipped:
                name, reason = next(iter(window.skipped.items()))
                raise LoadError(f"nothing can be profiled: {name}: {reason}")
            started_at, began = time.time(), trio.current_time()
            with trio.move_on_after(seconds):
                await window.ended.wait()
            ended = trio.current_time()
        finally:
            self._window = None
            window.end()
        for variant, module in window.modules.items():
            offsets = window.tally.offsets().get(variant.number)
            if offsets:
                lines = await pool.lines.find(module, offsets)
                found = {at: (it.file, it.line, it.column or None) for at, it in lines.items()}
                window.tally.locate(variant.number, found)
        from .._profile.profile import Profile

        return Profile(
            seconds=ended - began,
            started_at=started_at,
            label=pool.log.label,
            skipped=window.skipped,
            tally=window.tally,
        )

    def close(self) -> None:
        """End the window, if there is one, as the cache closes: its task returns what there is."""
        if self._window is not None:
            self._window.end()
