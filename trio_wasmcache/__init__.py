"""WebAssembly user-defined functions for Trio: sandboxed, metered, cancellable, and kept warm.

Imports point one way: cache > evictor, lease > group, runner, log > engine, abi > core. `_core` is
pure: no clock, thread, event loop, logging or wasmtime. `_engine` is the only folder that imports
wasmtime, `_log` the only file that imports structlog. Start reading at `_cache.open_cache`; what is
decided is decided in `_core.policy`.
"""

from ._cache import InstanceCache as InstanceCache
from ._cache import open_cache as open_cache
from ._core.config import CacheConfig as CacheConfig
from ._core.config import KiB as KiB
from ._core.config import MiB as MiB
from ._core.errors import AbiError as AbiError
from ._core.errors import CodeMemoryError as CodeMemoryError
from ._core.errors import DeadlockError as DeadlockError
from ._core.errors import DuplicateFunctionError as DuplicateFunctionError
from ._core.errors import ExitError as ExitError
from ._core.errors import ExportError as ExportError
from ._core.errors import FuelExhaustedError as FuelExhaustedError
from ._core.errors import GuestError as GuestError
from ._core.errors import InvalidModuleError as InvalidModuleError
from ._core.errors import LinkError as LinkError
from ._core.errors import LoadError as LoadError
from ._core.errors import MemoryLimitError as MemoryLimitError
from ._core.errors import ModuleTooLargeError as ModuleTooLargeError
from ._core.errors import SignatureError as SignatureError
from ._core.errors import StackOverflowError as StackOverflowError
from ._core.errors import TrapError as TrapError
from ._core.errors import UnknownFunctionError as UnknownFunctionError
from ._core.errors import WasmCacheError as WasmCacheError
from ._core.stats import CacheStats as CacheStats
from ._core.stats import EntryInfo as EntryInfo
from ._function import Function as Function
from ._group import SchedulingGroup as SchedulingGroup
from ._group import current_group as current_group
from ._host import HostFunction as HostFunction
from ._lease import Lease as Lease
from ._lease import LeaseMemory as LeaseMemory
from ._lease import current_lease as current_lease
