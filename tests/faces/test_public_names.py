"""What the package offers is there, whether a type checker asks for it or a program."""

from __future__ import annotations

import ast
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard, get_overloads, get_type_hints

import attrs
import pytest

import trio_wasmcache
from trio_wasmcache import aio, blocking, otel, prometheus, testing, udf


def declared() -> set[str]:
    """The names that type checkers see."""
    tree = ast.parse(Path(trio_wasmcache.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if is_for_checkers(node))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names}


def is_for_checkers(node: ast.stmt) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_type_checkers_and_programs_see_the_same_names() -> None:
    """Each is imported when it is asked for, and is in `dir`."""
    names = declared()
    assert names == {*trio_wasmcache.__all__} | trio_wasmcache._FORMER.keys()
    assert all(getattr(trio_wasmcache, name).__name__ for name in names - {"KiB", "MiB"})
    assert (trio_wasmcache.KiB, trio_wasmcache.MiB) == (2**10, 2**20)


CALLABLES = sorted(declared() - {"KiB", "MiB"})


@pytest.mark.parametrize("name", CALLABLES)
def test_public_classes_and_functions_have_their_public_name(name: str) -> None:
    """In `repr`, in tracebacks and in pickles, wherever they are defined."""
    thing: Any = getattr(trio_wasmcache, name)
    assert thing.__module__ == "trio_wasmcache"
    assert getattr(trio_wasmcache, thing.__name__) is thing
    if isinstance(thing, type):
        assert repr(thing) == f"<class 'trio_wasmcache.{thing.__name__}'>"
    assert pickle.loads(pickle.dumps(thing)) is thing


def test_values_and_errors_can_be_pickled() -> None:
    """Into another process, which imports them by their public names."""
    config = trio_wasmcache.CacheConfig(max_size=7)
    assert pickle.loads(pickle.dumps(config)) == config
    error = pickle.loads(pickle.dumps(trio_wasmcache.LoadError("why")))
    assert type(error) is trio_wasmcache.LoadError
    assert str(error) == "why"


@pytest.mark.parametrize("name", CALLABLES)
def test_types_of_fields_are_known(name: str) -> None:
    """Libraries that convert attrs classes find them, though not where `__module__` says."""
    thing: Any = getattr(trio_wasmcache, name)
    if isinstance(thing, type) and attrs.has(thing):
        attrs.resolve_types(thing)
        assert not [field.name for field in attrs.fields(thing) if isinstance(field.type, str)]


def test_grants_and_plugins_take_their_parameters_in_order() -> None:
    """As the types and the reference list them; the level of the log has a name only."""
    wasi = trio_wasmcache.Wasi(("prog",), {"A": "b"}, b"in", "drop", "log", 7, 0)
    assert wasi == trio_wasmcache.Wasi(
        args=("prog",), env={"A": "b"}, stdin=b"in", stdout="drop", stderr="log", random=7, clock=0
    )
    abi = trio_wasmcache.ExtismAbi({"lang": "en"}, {"n": b"1"})
    assert abi == trio_wasmcache.ExtismAbi(config={"lang": "en"}, vars={"n": b"1"})
    with pytest.raises(TypeError, match="positional"):
        trio_wasmcache.ExtismAbi({}, {}, "warn")  # type: ignore[misc]


def functions_of(thing: Any) -> Iterator[tuple[str, Any]]:
    """A function, or a class and its public methods and properties, overloads included."""
    yield thing.__name__, thing
    for name, member in inspect.getmembers_static(thing) if isinstance(thing, type) else ():
        member = getattr(member, "fget", getattr(member, "__func__", member))
        if inspect.isfunction(member) and not name.startswith("_"):
            yield from (
                (f"{thing.__name__}.{name}", one) for one in (member, *get_overloads(member))
            )


@pytest.mark.parametrize(
    "module",
    [trio_wasmcache, testing, prometheus, otel, blocking, aio, udf],
    ids=lambda module: module.__name__,
)
def test_types_of_functions_and_classes_are_known(module: ModuleType) -> None:
    """`typing.get_type_hints` finds them, those that are imported late included."""
    things = [getattr(module, name) for name in module.__all__]
    found = {}
    for name, function in (
        one for thing in things if callable(thing) for one in functions_of(thing)
    ):
        found[name] = get_type_hints(function)
    assert found
    if module is trio_wasmcache:
        assert found["InstanceCache.stats"] == {"return": trio_wasmcache.CacheStats}
        assert found["InstanceCache.entries"] == {"return": tuple[trio_wasmcache.EntryInfo, ...]}


@pytest.mark.parametrize("name", ["InstanceCache", "Lease", "TrapError", "ExtismAbi"])
def test_types_of_a_class_are_known_before_others_are_imported(name: str) -> None:
    """A program that asks for one public name has imported few of the others."""
    program = f"import typing, trio_wasmcache; typing.get_type_hints(trio_wasmcache.{name})"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", sorted(testing.__all__))
def test_what_is_for_tests_has_its_public_name(name: str) -> None:
    """A fake and a snapshot are of `trio_wasmcache.testing`, wherever they are defined."""
    thing: Any = getattr(testing, name)
    assert thing.__module__ == "trio_wasmcache.testing"
    assert pickle.loads(pickle.dumps(thing)) is thing
    if isinstance(thing, type) and attrs.has(thing):
        attrs.resolve_types(thing)
        assert not [field.name for field in attrs.fields(thing) if isinstance(field.type, str)]


@pytest.mark.parametrize(
    "module", [testing, prometheus, otel, blocking, aio, udf], ids=lambda module: module.__name__
)
def test_all_has_the_public_names_of_a_module(module: ModuleType) -> None:
    """Those that it defines, and those that it imports for others, as checkers see it."""
    names = set()
    for node in ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names.update(alias.name for alias in node.names if alias.asname == alias.name)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
    assert sorted(module.__all__) == sorted(name for name in names if not name.startswith("_"))


def test_former_names_are_kept() -> None:
    """`Crossing` was renamed to `Binding`; programs written before run on."""
    assert trio_wasmcache.Crossing is trio_wasmcache.Binding


def test_import_star_imports_the_public_names() -> None:
    """And nothing else."""
    names: dict[str, object] = {}
    exec("from trio_wasmcache import *", names)
    assert names.keys() - {"__builtins__"} == declared() - trio_wasmcache._FORMER.keys()


def test_dir_has_the_public_names_only() -> None:
    """No imports of its own, nothing private, and modules once they are imported."""
    code = "import {0}; print(*dir(trio_wasmcache))"
    for module, more in (("trio_wasmcache", set()), ("trio_wasmcache.testing", {"testing"})):
        command = [sys.executable, "-c", code.format(module)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert {*done.stdout.split()} == {*trio_wasmcache.__all__} | more


def test_help_lists_every_name_in_reading_order() -> None:
    """What pydoc sorts by name, the docstring of the package has in the order of `__all__`."""
    text = trio_wasmcache.__doc__
    assert text
    listed = re.findall(r"`(\w+)`", text[text.index("in reading order") :])
    names = [*dict.fromkeys(name for name in listed if hasattr(trio_wasmcache, name))]
    assert sorted(names) == sorted(trio_wasmcache.__all__)
    topics = [name for name in names if name in ("open_cache", "Lease", "CacheStats", "Abi")]
    assert topics == ["open_cache", "Lease", "CacheStats", "Abi"]
    shown = pydoc.render_doc(trio_wasmcache, renderer=pydoc.plaintext)
    lines = [line.strip() for line in shown.splitlines()[:20]]
    assert (
        "async with trio_wasmcache.open_cache(CacheConfig(max_size=100 * MiB)) as cache:" in lines
    )
    assert re.search(r"open_cache\(\s*config:", shown)
    assert "importlib" not in shown


def test_other_names_are_missing() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="'trio_wasmcache' has no attribute 'opencache'"):
        _ = trio_wasmcache.opencache


def test_importing_imports_nothing_else() -> None:
    """So that a program which might need it need not pay before it does."""
    code = "import sys, trio_wasmcache; print([n for n in sys.modules if 'wasm' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['trio_wasmcache']\n"
