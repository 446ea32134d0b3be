"""What the tests from outside share: a cache on each engine, and how it is used."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from kits import FakeKit, Kit, ListLogger

from trio_wasmcache import CacheConfig, InstanceCache

# Long enough for a machine under load; a test that needs it hangs.
HANG = 600
DIVIDE: Any = """(module (func (export "run") (param i64) (result i64)
  (i64.div_s (i64.const 100) (local.get 0))))"""
I64 = ("i64",)
NEVER = CacheConfig(total_fuel=10**15)
"""Of which no guest ends by itself."""
DECLARED: dict[str, Any] = {"args": I64, "returns": "i64", "export": "run"}
"""How the modules of a kit are registered."""


def opening(
    kit: Kit, log: ListLogger | None = None
) -> Callable[[], AbstractAsyncContextManager[InstanceCache]]:
    """What opens a cache on an engine; closing it checks that nothing is left open."""
    offload_after = None if isinstance(kit, FakeKit) else 3
    config = CacheConfig(total_fuel=10**15, offload_after=offload_after)
    return functools.partial(kit.open, config, logger=log)
