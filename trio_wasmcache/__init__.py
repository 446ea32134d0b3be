"""WebAssembly user-defined functions for Trio: sandboxed, metered, cancellable, and kept warm.

Imports point one way: cache > evictor, lease > group, runner, log > engine, abi > core. `_core` is
pure: no clock, thread, event loop, logging or wasmtime. `_engine` is the only folder that imports
wasmtime, `_log` the only file that imports structlog. Start reading at `_open.open_cache`; what is
decided is decided in `_core.policy`.
"""

from ._abi.buffer import BufferAbi as BufferAbi
from ._abi.protocol import (
    Abi as Abi,
    Convert as Convert,
    Crossing as Crossing,
    Exports as Exports,
    FuncType as FuncType,
    Guest as Guest,
    Invoke as Invoke,
    Memory as Memory,
)
from ._abi.scylla import ScyllaAbi as ScyllaAbi
from ._cache import InstanceCache as InstanceCache
from ._core.config import CacheConfig as CacheConfig, KiB as KiB, MiB as MiB
from ._core.errors import (
    AbiError as AbiError,
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
    SignatureError as SignatureError,
    StackOverflowError as StackOverflowError,
    TrapError as TrapError,
    UnknownFunctionError as UnknownFunctionError,
    WasmCacheError as WasmCacheError,
)
from ._core.stats import (
    CacheStats as CacheStats,
    DistributionSummary as DistributionSummary,
    EntryInfo as EntryInfo,
    UseSummary as UseSummary,
)
from ._function import Function as Function
from ._group import SchedulingGroup as SchedulingGroup, current_group as current_group
from ._host import HostFunction as HostFunction
from ._lease import Lease as Lease
from ._memory import LeaseMemory as LeaseMemory, current_lease as current_lease
from ._open import open_cache as open_cache
