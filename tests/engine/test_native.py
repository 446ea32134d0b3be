"""The check of wasmtime's shared library, and which versions of it there are tests for."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine.support import ROOT

from trio_wasmcache._engine import native

TABLE: dict[str, tuple[Any, list[Any]]] = {
    "wasmtime_first": (None, [ctypes.c_void_p]),
    "wasm_second": (ctypes.c_bool, []),
}


class Symbol:
    """Stands for a function of a shared library, which lets itself be given a prototype."""

    restype: Any = None
    argtypes: Any = None


def test_a_library_with_all_symbols_is_declared() -> None:
    """Each function gets its prototype, and a name without the prefix."""
    library = SimpleNamespace(wasmtime_first=Symbol(), wasm_second=Symbol())
    functions = native.declare(library, TABLE)
    assert functions == {"first": library.wasmtime_first, "wasm_second": library.wasm_second}
    assert library.wasmtime_first.argtypes == [ctypes.c_void_p]
    assert library.wasm_second.restype is ctypes.c_bool


def test_missing_symbols_are_an_import_error() -> None:
    """All that is missing is named at once, with the version there is and those that work."""
    with pytest.raises(ImportError) as caught:
        native.declare(SimpleNamespace(), TABLE)
    assert "lacks wasm_second, wasmtime_first" in str(caught.value)
    assert re.search(r"the installed wasmtime \(\d+\.\d+", str(caught.value))
    assert f"works with wasmtime {native.TESTED_VERSIONS}" in str(caught.value)


def test_a_library_that_is_too_old_is_an_import_error() -> None:
    """Up to 41 nothing is missing, but the first call would abort the process: refused, too."""
    library = SimpleNamespace(wasmtime_first=Symbol(), wasm_second=Symbol())
    setattr(library, native.GONE_SINCE_42, Symbol())
    with pytest.raises(ImportError, match="is too old; trio_wasmcache works with wasmtime 42"):
        native.declare(library, TABLE)


def test_a_real_library_without_them_is_an_import_error() -> None:
    """The check works on what ctypes loads, not only on a stand-in."""
    with pytest.raises(ImportError, match="lacks wasm_second, wasmtime_first"):
        native.declare(ctypes.CDLL(None), TABLE)


def test_what_is_not_declared_is_not_there() -> None:
    """A function that was forgotten in the tables is an AttributeError that says so."""
    with pytest.raises(AttributeError, match="not a declared function of wasmtime"):
        native.linker_define_unknown_imports_as_traps  # noqa: B018


def test_the_dependency_says_what_was_tested() -> None:
    """pyproject.toml allows exactly the versions that the import error names."""
    text = (Path(ROOT) / "pyproject.toml").read_text()
    first, last = native.TESTED_VERSIONS.split(" to ")
    assert f'"wasmtime>={first},<{int(last) + 1}"' in text
