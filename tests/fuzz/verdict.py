"""wasmtime with the features that this library leaves on: what it takes, we must read."""

from __future__ import annotations

import wasmtime


def validator() -> wasmtime.Engine:
    """wasmtime with the same features as here, for its verdict."""
    config = wasmtime.Config()
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = True
    config.wasm_threads = False
    config.wasm_memory64 = True
    config.wasm_stack_switching = False
    config.wasm_custom_page_sizes = False
    config.wasm_multi_memory = True
    config.shared_memory = False
    return wasmtime.Engine(config)


ENGINE = validator()
