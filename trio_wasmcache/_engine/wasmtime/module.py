"""Make instances of a loaded module, in wasmtime."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, final

from ..._core.tiers import PROFILED
from ..._threads import importing
from ..base import Artifact, HostImport
from .instance import WasmtimeInstance
from .linking import LinkedModule
from .store import Tally

if TYPE_CHECKING:
    from .sampling import Sampler

# Of the stores whose guests call host functions: how these find them.
_numbers = itertools.count(1)


@final
class WasmtimeModule(LinkedModule):
    """See `LoadedModule`; made by `WasmtimeEngine.load`."""

    _sampler: Sampler | None = None

    def __init__(
        self, engine: int, artifact: Artifact, hosts: tuple[HostImport, ...], tally: Tally
    ) -> None:
        super().__init__(engine, artifact, hosts, tally)
        if artifact.tier not in PROFILED:
            with importing:
                from .sampling import FrameReader, Sampler

            reader = FrameReader(artifact)
            self._sampler = Sampler(self.engine, reader, self.native_parts(reader.numbers))

    def instantiate(self, fuel: int, yield_fuel: int) -> WasmtimeInstance:
        number = next(_numbers) if self.hosts.imports else 0
        sampler = self._sampler
        if sampler is not None:
            from .sampling import SampledInstance

            return SampledInstance(self, sampler, number, fuel, yield_fuel)
        return WasmtimeInstance(self, number, fuel, yield_fuel)

    def collect(self) -> None:
        if self._sampler is not None:
            self._sampler.read()

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
        super().close()
