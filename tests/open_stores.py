"""The native stores that are open: to look for those that were never closed.

To look through all objects of the process instead took a quarter of the suite's time.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from trio_wasmcache._engine.wasmtime import native

OPEN: set[int] = set()
"""Addresses."""

_new, _delete = native.store_new, native.store_delete


@wraps(_new)
def _store_new(*given: Any) -> int:
    store: int = _new(*given)
    OPEN.add(store)
    return store


@wraps(_delete)
def _store_delete(store: int) -> None:
    # Before its address can be another's.
    OPEN.discard(store)
    _delete(store)


native.store_new, native.store_delete = _store_new, _store_delete  # type: ignore[assignment]


def check_all_closed() -> None:
    """Fail if a store is open."""
    assert not OPEN, f"{len(OPEN)} stores were never closed"
