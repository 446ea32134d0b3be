"""WebAssembly user-defined functions for Trio: sandboxed, metered, cancellable, and kept warm.

.. code-block::

    async with trio_wasmcache.open_cache(CacheConfig(max_size=100 * MiB)) as cache:
        await cache.register("fib", wasm, args=("i64",), returns="i64")
        async with cache.acquire("fib", ("i64",)) as fib:
            assert await fib.call(10) == 55

The names, in reading order; `help()` of each is its reference:

- To begin with: `open_cache` opens an `InstanceCache` for the length of a block. Its limits are a
  `CacheConfig`, with sizes in `KiB` and `MiB`. `InstanceCache.register` compiles a module and gives
  a `Function`; `InstanceCache.acquire` gives a `Lease`, whose `Lease.call` and `Lease.map` run the
  function.
- Groups: `InstanceCache.scheduling_group` opens a `SchedulingGroup`, whose tasks share a capacity
  and a part of the CPU. `current_group` returns the group of the caller.
- The guest and its host: `LeaseMemory` reads and writes the guest's memory. A `HostFunction` is a
  Python function that a guest may call; in it, `current_lease` returns the caller's lease.
  `HostMemory`, `HostTable` and `HostGlobal` are for modules that import these. `Wasi` says what a
  guest gets through WASI, and where its output goes. `Prepare` is a call that is made once, and
  with whose effects every instance begins.
- Numbers: `InstanceCache.stats` returns `CacheStats`, which contain `UseSummary` and
  `DistributionSummary`; `InstanceCache.entries` returns `EntryInfo`, and
  `InstanceCache.resident_bytes` returns `ResidentBytes`. `InstanceCache.profile` returns a
  `Profile` of what the guests do.
- Errors: `WasmCacheError` is their base. `open_cache` raises `CacheDirError`. `register` raises
  `InvalidModuleError`, `ModuleTooLargeError`, `LinkError`, `ExportError`, `SignatureError` and
  `DuplicateFunctionError`. Entering a lease raises `UnknownFunctionError`, `LoadError`,
  `CodeMemoryError` and `DeadlockError`. Calls raise a `GuestError`: a `TrapError`,
  `FuelExhaustedError`, `StackOverflowError`, `MemoryLimitError`, `ExitError`, `PluginError`,
  `ResultTooLargeError` or `AbiError`, with a `Frame` for each function that was running; or the
  `WitError` that a component's function returned.
- Values of components: a variant is a `Case`, a `result` an `Ok` or `Err`, and an option inside an
  option a `Some`.
- ABIs, the ways in which values cross: `BufferAbi` for bytes and text, `AssemblyScriptAbi` for
  AssemblyScript's strings and arrays, `ExtismAbi` for Extism's plugins, `ScyllaAbi` for CQL types,
  and the protocol `Abi` for your own, with `Binding`, `Exports`, `FuncType`, `Guest`, `Memory`,
  `Invoke` and `Convert`.

Modules beside it: `trio_wasmcache.blocking` for threads without an event loop,
`trio_wasmcache.aio` for asyncio, `trio_wasmcache.udf` for data frames, databases and clusters,
`trio_wasmcache.testing` for tests of an application, `trio_wasmcache.prometheus` for metrics,
`trio_wasmcache.otel` for traces and metrics by OpenTelemetry, and
``python -m trio_wasmcache`` for the log.
"""
# Imports point down: `_cache` > `_pool`, `_batch` > `_runtime` > `_engine`, `_abi`, `_log` >
# `_core`; neighbours do not import each other, and `_gil`, `_ki`, `_owner` and `_public` lie beside
# `_core`. `_core` is pure: no clock, thread, event loop, logging or wasmtime. `_engine/wasmtime` is
# the only folder that imports wasmtime, `_log` the only file that imports structlog. Start reading
# at `_cache.open.open_cache`; all decisions are made in `_core.policy`.
#
# Public names are imported on first use: importing all of them at once would take longer than
# importing Trio, wasmtime and structlog together.

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._abi.assemblyscript import AssemblyScriptAbi as AssemblyScriptAbi
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
    from ._abi.extism import ExtismAbi as ExtismAbi
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
        PluginError as PluginError,
        ResultTooLargeError as ResultTooLargeError,
        SignatureError as SignatureError,
        StackOverflowError as StackOverflowError,
        TrapError as TrapError,
        UnknownFunctionError as UnknownFunctionError,
        WasmCacheError as WasmCacheError,
        WitError as WitError,
    )
    from ._core.frames import Frame as Frame
    from ._core.metrics.stats import (
        CacheStats as CacheStats,
        DistributionSummary as DistributionSummary,
        EntryInfo as EntryInfo,
        ResidentBytes as ResidentBytes,
        UseSummary as UseSummary,
    )
    from ._core.wit.values import Case as Case, Err as Err, Ok as Ok, Some as Some
    from ._profile.profile import Profile as Profile
    from ._runtime.host import (
        HostFunction as HostFunction,
        HostGlobal as HostGlobal,
        HostMemory as HostMemory,
        HostTable as HostTable,
    )
    from ._runtime.prepare import Prepare as Prepare
    from ._runtime.wasi_config import Wasi as Wasi

# {module: the public names that it defines}, in reading order.
_HOMES = {
    "._cache.open": "open_cache",
    "._core.config": "CacheConfig KiB MiB",
    "._cache.cache": "InstanceCache",
    "._cache.lease": "Function Lease LeaseMemory current_lease",
    "._cache.group": "SchedulingGroup current_group",
    "._runtime.host": "HostFunction HostMemory HostTable HostGlobal",
    "._runtime.prepare": "Prepare",
    "._runtime.wasi_config": "Wasi",
    "._core.metrics.stats": "CacheStats UseSummary DistributionSummary EntryInfo ResidentBytes",
    "._profile.profile": "Profile",
    "._core.errors": (
        "WasmCacheError CacheDirError InvalidModuleError ModuleTooLargeError LinkError ExportError "
        "SignatureError DuplicateFunctionError UnknownFunctionError LoadError CodeMemoryError "
        "DeadlockError GuestError TrapError FuelExhaustedError StackOverflowError MemoryLimitError "
        "ExitError PluginError ResultTooLargeError AbiError WitError"
    ),
    "._core.wit.values": "Case Some Ok Err",
    "._core.frames": "Frame",
    "._abi.buffer": "BufferAbi",
    "._abi.assemblyscript": "AssemblyScriptAbi",
    "._abi.extism": "ExtismAbi",
    "._abi.scylla": "ScyllaAbi",
    "._abi.base": "Abi Binding Exports FuncType Guest Memory Invoke Convert",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}
_FORMER = {"Crossing": "._abi.base"}
# Listed by `dir` once they are imported.
_MODULES = ("aio", "blocking", "otel", "prometheus", "report", "testing", "udf")

if not TYPE_CHECKING:  # with it, checkers would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        if name == "__all__":  # for `import *`; type checkers see the names above
            return [*_HOME_OF]
        try:
            home = (_HOME_OF | _FORMER)[name]
        except KeyError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
        found = globals()[name] = getattr(importlib.import_module(home, __name__), name)
        return found


def __dir__() -> list[str]:
    return [*_HOME_OF, *(name for name in _MODULES if name in globals())]
