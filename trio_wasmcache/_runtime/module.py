"""Compiled modules: the serialized artifact, and the executable code while it is used."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

import trio
from attrs import define, field

from .._core.policy.records import Module
from .._engine.base import Artifact, Engine, HostImport, LoadedModule
from .host import AnyHost

INITIALIZE = "_initialize"


@final
@define(eq=False)
class CachedModule:
    """A compiled module: its artifact, and its executable code while the ledger counts it."""

    equal: Hashable
    """Key of the module: bytes, imports, limits, preparation; see `registration.Equal`."""
    digest: str
    """SHA-256 of the bytes given to `register`, in hexadecimal."""
    engine: Engine
    artifact: Artifact
    hosts: tuple[AnyHost, ...]
    host_imports: tuple[HostImport, ...]
    why_not: str | None = None
    """Reason why its instances can't be reset, if there is one and it is known."""
    initialize: bool = False
    """Whether it is a WASI reactor, whose `_initialize` is called before anything else."""
    number: int = 0
    """Number of the module in the cache's log."""
    record: Module = field(init=False)
    """Record of the module in the policy."""
    loaded: LoadedModule | None = None
    _loading: trio.Event | None = None

    def __attrs_post_init__(self) -> None:
        artifact = self.artifact
        self.record = Module(self.digest, artifact.code_size, artifact.module_mappings, slot=self)

    def learn(self, why_not: str | None) -> None:
        """Note why its instances can't be reset, if that was not known yet."""
        self.why_not = self.why_not or why_not

    async def get(self) -> LoadedModule:
        """Return the executable module; the first caller loads it, others wait for the load.

        **Checkpoint:** maybe, if it is not loaded.
        **Cancellation:** if the task that loads is cancelled, the next one loads.
        """
        while self.loaded is None:
            if self._loading is not None:
                await self._loading.wait()
                continue
            self._loading = trio.Event()
            try:
                self.loaded = await self.engine.load(self.artifact, self.host_imports)
            finally:
                self._loading.set()
                self._loading = None
        return self.loaded

    def unload(self) -> None:
        """Free the code, which no instance uses any more."""
        if self.loaded is not None:
            loaded, self.loaded = self.loaded, None
            loaded.close()
