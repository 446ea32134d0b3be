"""Keyword arguments of `register` and `resize`, as type checkers see them.

A test holds them to the parameters of `register` and to the fields of `CacheConfig`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from .._core.config import IdleTimeout, PolicyName
from .._core.wasm.isolation import Isolation
from .._pool.registration import Missing
from .._runtime.host import Importable
from .._runtime.prepare import Prepare
from .._runtime.wasi_config import Wasi

Wasm: TypeAlias = bytes | str | os.PathLike[str]
"""Bytes, WebAssembly text, or the path of a file with either."""


Imports: TypeAlias = Mapping[str, Mapping[str, Importable]]
"""Imports of a core module."""
WitImports: TypeAlias = Mapping[str, Mapping[str, Callable[..., Any]]]
"""Imports of a component: {interface: {name: function}}"""


class _Options(TypedDict, total=False):
    wasi: Wasi | None
    prepare: Sequence[Prepare]
    missing: Missing
    concurrency: int
    isolation: Isolation
    replace: bool


class SharedOptions(_Options, total=False):
    """The parameters of `register` that apply to all functions of a component."""

    imports: WitImports | None


class ComponentOptions(SharedOptions, total=False):
    """The parameters of `register` for components, but for `returns` and `called_on_null`."""

    export: str | None


class _ModuleOptions(_Options, total=False):
    export: str | None
    imports: Imports | None


class RegisterOptions(_ModuleOptions):
    """The parameters of `register` that do not determine the type of the function's result."""

    args: Sequence[str]


class AnyOptions(_Options, total=False):
    """Those of both."""

    args: Sequence[str]
    export: str | None
    imports: Imports | WitImports | None


class GroupChanges(TypedDict, total=False):
    """The parameters of `scheduling_group` that `SchedulingGroup.resize` can change."""

    capacity: float
    shares: int
    max_size: int | None
    reserved_size: int
    cpu_limit: float | None


class Limits(TypedDict, total=False):
    """The fields of `CacheConfig` that `resize` can change."""

    policy: PolicyName
    max_size: int
    max_instance_size: int
    max_instances: int
    max_code_size: int
    max_running_size: int | None
    max_address_space: int | None
    idle_timeout: IdleTimeout
    min_idle_timeout: float
    max_idle_timeout: float
    memory_limit: int
    table_limit: int
    max_result_size: int
    max_wasm_size: int
    total_fuel: int
    yield_fuel: int
    offload_after: int | None
    max_threads: int
    main_max_size: int | None
    main_reserved_size: int
    main_cpu_limit: float | None
    snapshot_interval: float
    log_flush_timeout: float
