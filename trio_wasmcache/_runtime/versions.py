"""The versions of what runs guests, by which compiled code and logged calls are told apart."""

from __future__ import annotations

import contextlib
import functools


@functools.cache
def library_versions() -> str:
    """Return the versions of wasmtime and of this library."""
    import importlib.metadata  # takes 10 ms

    versions = []
    for name in ("wasmtime", "trio_wasmcache"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)
