"""Make instances of a loaded module, in wasmtime."""

from __future__ import annotations

import itertools
from typing import final

from .instance import WasmtimeInstance
from .linking import LinkedModule

# Of the stores whose guests call host functions: how these find them.
_numbers = itertools.count(1)


@final
class WasmtimeModule(LinkedModule):
    """See `LoadedModule`; made by `WasmtimeEngine.load`."""

    def instantiate(self, fuel: int, yield_fuel: int) -> WasmtimeInstance:
        number = next(_numbers) if self.hosts.imports else 0
        return WasmtimeInstance(self, number, fuel, yield_fuel)
