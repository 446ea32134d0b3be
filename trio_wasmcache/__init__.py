"""WebAssembly user-defined functions for Trio: sandboxed, metered, cancellable, and kept warm.

Imports point down: `_cache` > `_pool`, `_batch` > `_runtime` > `_engine`, `_abi`, `_log` > `_core`;
neighbours do not import each other, and `_gil`, `_ki`, `_owner` and `_public` lie beside `_core`.
`_core` is pure: no clock, thread, event loop, logging or wasmtime. `_engine/wasmtime` is the only
folder that imports wasmtime, `_log` the only file that imports structlog. Start reading at
`_cache.open.open_cache`; all decisions are made in `_core.policy`.

Public names are imported on first use: importing all of them at once would take longer than
importing Trio, wasmtime and structlog together.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._abi.base import (
        Abi as Abi,
        Binding as Binding,
        Convert as Convert,
        Crossing as Crossing,
        Exports as Exports,
        FuncType as FuncType,
        Guest as Guest,
        Invoke as Invoke,
        Memory as Memory,
    )
    from ._abi.buffer import BufferAbi as BufferAbi
    from ._abi.scylla import ScyllaAbi as ScyllaAbi
    from ._cache.cache import InstanceCache as InstanceCache
    from ._cache.group import SchedulingGroup as SchedulingGroup, current_group as current_group
    from ._cache.lease import (
        Function as Function,
        Lease as Lease,
        LeaseMemory as LeaseMemory,
        current_lease as current_lease,
    )
    from ._cache.open import open_cache as open_cache
    from ._core.config import CacheConfig as CacheConfig, KiB as KiB, MiB as MiB
    from ._core.errors import (
        AbiError as AbiError,
        CacheDirError as CacheDirError,
        CodeMemoryError as CodeMemoryError,
        DeadlockError as DeadlockError,
        DuplicateFunctionError as DuplicateFunctionError,
        ExitError as ExitError,
        ExportError as ExportError,
        FuelExhaustedError as FuelExhaustedError,
        GuestError as GuestError,
        InvalidModuleError as InvalidModuleError,
        LinkError as LinkError,
        LoadError as LoadError,
        MemoryLimitError as MemoryLimitError,
        ModuleTooLargeError as ModuleTooLargeError,
        ResultTooLargeError as ResultTooLargeError,
        SignatureError as SignatureError,
        StackOverflowError as StackOverflowError,
        TrapError as TrapError,
        UnknownFunctionError as UnknownFunctionError,
        WasmCacheError as WasmCacheError,
    )
    from ._core.metrics.stats import (
        CacheStats as CacheStats,
        DistributionSummary as DistributionSummary,
        EntryInfo as EntryInfo,
        ResidentBytes as ResidentBytes,
        UseSummary as UseSummary,
    )
    from ._runtime.host import HostFunction as HostFunction

# {module: the public names that it defines}
_HOMES = {
    "._abi.buffer": "BufferAbi",
    "._abi.base": "Abi Binding Convert Crossing Exports FuncType Guest Invoke Memory",
    "._abi.scylla": "ScyllaAbi",
    "._cache.cache": "InstanceCache",
    "._core.config": "CacheConfig KiB MiB",
    "._core.errors": (
        "AbiError CacheDirError CodeMemoryError DeadlockError DuplicateFunctionError ExitError "
        "ExportError FuelExhaustedError GuestError InvalidModuleError LinkError LoadError "
        "MemoryLimitError ModuleTooLargeError ResultTooLargeError SignatureError "
        "StackOverflowError TrapError UnknownFunctionError WasmCacheError"
    ),
    "._core.metrics.stats": "CacheStats DistributionSummary EntryInfo ResidentBytes UseSummary",
    "._cache.group": "SchedulingGroup current_group",
    "._runtime.host": "HostFunction",
    "._cache.lease": "Function Lease LeaseMemory current_lease",
    "._cache.open": "open_cache",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__all__":  # for `import *`; type checkers see the names above
        return sorted(_HOME_OF)
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    found = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
