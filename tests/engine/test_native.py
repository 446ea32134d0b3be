"""The check of wasmtime's shared library, and which versions of it there are tests for."""

import ast
import ctypes
import inspect
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine.support import ROOT

from trio_wasmcache._engine.wasmtime import native


class Symbol:
    """Stands for a function of a shared library, which lets itself be given a prototype."""

    restype: Any = None
    argtypes: Any = None


def first(pointer: native.Pointer, on: native.Bool, /) -> None:
    raise NotImplementedError


def wasm_second() -> native.Bool:
    raise NotImplementedError


def declared(handle: Any) -> tuple[native.Library, Any, Any]:
    library = native.Library(handle)
    return library, library.declare(first), library.declare(wasm_second)


def test_a_library_with_all_symbols_is_declared() -> None:
    """Each function is C's own, found with the prefix or without, and has its prototype."""
    handle = SimpleNamespace(wasmtime_first=Symbol(), wasm_second=Symbol())
    library, *functions = declared(handle)
    native.check(library)
    assert functions == [handle.wasmtime_first, handle.wasm_second]
    assert handle.wasmtime_first.argtypes == [ctypes.c_void_p, ctypes.c_bool]
    assert handle.wasmtime_first.restype is None
    assert handle.wasm_second.argtypes == []
    assert handle.wasm_second.restype is ctypes.c_bool


def test_missing_symbols_are_an_import_error() -> None:
    """All that is missing is named at once, with the version there is and those that work."""
    library, *_ = declared(SimpleNamespace())
    with pytest.raises(ImportError) as caught:
        native.check(native.Library(SimpleNamespace()), library)
    assert "lacks wasm_second, wasmtime_first" in str(caught.value)
    assert re.search(r"the installed wasmtime \(\d+\.\d+", str(caught.value))
    assert f"works with wasmtime {native.TESTED_VERSIONS}" in str(caught.value)


def test_a_library_that_is_too_old_is_an_import_error() -> None:
    """Up to 41 nothing is missing, but the first call would abort the process: refused, too."""
    handle = SimpleNamespace(wasmtime_first=Symbol(), wasm_second=Symbol())
    setattr(handle, native.GONE_SINCE_42, Symbol())
    library, *_ = declared(handle)
    with pytest.raises(ImportError, match="is too old; trio_wasmcache works with wasmtime 43"):
        native.check(library)


def test_a_real_library_without_them_is_an_import_error() -> None:
    """The check works on what ctypes loads, not only on a stand-in."""
    library, *_ = declared(ctypes.CDLL(None))
    with pytest.raises(ImportError, match="lacks wasm_second, wasmtime_first"):
        native.check(library)


def test_all_that_is_written_is_declared() -> None:
    """No Python function is left where a C function belongs, and each has its whole prototype."""
    written = ast.parse(Path(native.__file__).read_text())
    functions = [
        item
        for item in written.body
        if isinstance(item, ast.FunctionDef) and "declare" in ast.unparse(item.decorator_list)
    ]
    assert len(functions) > 60
    for item in functions:
        function = inspect.unwrap(getattr(native, item.name))
        assert isinstance(function, ctypes._CFuncPtr), item.name  # type: ignore[attr-defined]
        assert len(function.argtypes) == len(item.args.posonlyargs), item.name
        assert (function.restype is None) == (ast.unparse(item.returns) == "None"), item.name


# {a call: what is wrong with it}
CALLS = {
    "native.engine_clone(engine)": "",
    "native.engine_clone(None)": "[arg-type]",
    "native.engine_clone()": "[call-arg]",
    "native.module_new(engine, b'', 0, byref(c_void_p()))": "",
    "native.module_new(engine, '', 0, byref(c_void_p()))": "[arg-type]",
    "native.linker_define_unknown_imports_as_traps(engine)": "[attr-defined]",
    "_: int = native.module_new(engine, b'', 0, byref(c_void_p()))": "[assignment]",
}


def test_type_checkers_see_the_prototypes(tmp_path: Path) -> None:
    """A call that does not fit its prototype, or of what is not declared, is an error of types."""
    run = pytest.importorskip("mypy.api").run
    shutil.copy(native.__file__, tmp_path / "native.py")  # alone it is checked in a second
    lines = [
        "import native; from ctypes import byref, c_void_p",
        "engine = native.wasm_engine_new_with_config(native.wasm_config_new())",
        *CALLS,
    ]
    calls = tmp_path / "calls.py"
    calls.write_text("\n".join(lines))
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}", "--hide-error-context"]
    output, problems, _ = run([*options, str(calls)])
    assert not problems
    for number, (call, error) in enumerate(CALLS.items(), 3):
        found = [one for one in output.splitlines() if f"calls.py:{number}: error" in one]
        assert len(found) == bool(error), (call, output)
        assert not error or found[0].endswith(error), (call, output)


def test_the_dependency_says_what_was_tested() -> None:
    """pyproject.toml allows exactly the versions that the import error names."""
    text = (Path(ROOT) / "pyproject.toml").read_text()
    first, last = native.TESTED_VERSIONS.split(" to ")
    (line,) = re.findall(r'"wasmtime>=(.*)",', text)
    least, *left_out, most = line.split(",")
    assert (least, most) == (first, f"<{int(last) + 1}")
    # Versions with known faults, of which a later patch is allowed.
    assert all(re.fullmatch(r"!=4[67]\.0\.\d", one) for one in left_out)
