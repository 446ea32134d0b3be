"""Make the configuration of wasmtime's engines, the same for all that compile or run code.

Code that one engine has compiled can be loaded by another only if both have the same configuration.
"""

from __future__ import annotations

import sys

from ..._core.tiers import BASELINE, COMPILERS, PROFILED, Tier
from . import native

# wasmtime_strategy_enum (crates/c-api/include/wasmtime/config.h): Winch.
_WINCH = 2


def new_config(stack_size: int, tier: Tier) -> int:
    """Make a configuration, to be given to an engine, which takes it over.

    Args:
        stack_size: of a running instance (bytes), in every tier.
        tier: of the engine.
    """
    config = native.wasm_config_new()
    baseline = COMPILERS[tier] is BASELINE
    if baseline:
        native.config_strategy_set(config, _WINCH)
        # Off by default there, though it compiles them.
        native.config_wasm_tail_call_set(config, True)
    native.config_consume_fuel_set(config, True)
    if tier not in PROFILED:
        native.config_epoch_interruption_set(config, True)
    native.config_async_stack_size_set(config, stack_size)
    native.config_max_wasm_stack_set(config, stack_size // 2)
    native.config_parallel_compilation_set(config, False)
    if sys.platform != "win32":
        # Only debuggers want it; without, code is 9 % smaller, and compiled in 3 % less time.
        native.config_native_unwind_info_set(config, False)
    # Their types would abort the process when asked for, or let guests share memory.
    native.config_wasm_gc_set(config, False)
    native.config_wasm_function_references_set(config, False)
    native.config_wasm_threads_set(config, False)
    # Up to 45, the heap of exceptions grew to its limit before garbage was collected.
    # The baseline compiler has none. Nor may GC types, typed references, stack switching or relaxed
    # SIMD be switched on for it: the process would abort.
    native.config_wasm_exceptions_set(config, not baseline and native.is_since_46())
    native.config_wasm_memory64_set(config, True)
    native.config_wasm_multi_memory_set(config, True)
    return config
