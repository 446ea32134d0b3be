"""What users' type checkers see: they refuse wrong lines, and accept right ones.

`typed/wrong.py` and `typed/right.py` are read by mypy and by pyright, and never run. A checker that
is not installed is not tested, and the summary of skipped tests says so; `.ci/run` has both.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack, get_args, get_origin, get_type_hints

import attrs
import pytest

import trio_wasmcache
from trio_wasmcache import CacheConfig, Function, InstanceCache, Lease, testing
from trio_wasmcache._abi import ABIS, names
from trio_wasmcache._abi.buffer import BUFFERS
from trio_wasmcache._abi.cql.scalars import scalars
from trio_wasmcache._abi.plain import TYPES
from trio_wasmcache._abi.scylla import NATIVE
from trio_wasmcache._cache.cache import FIXED
from trio_wasmcache._cache.options import ComponentOptions, Limits, RegisterOptions
from trio_wasmcache._core.keys import Inferred
from trio_wasmcache._core.wasm.isolation import ISOLATIONS, Isolation
from trio_wasmcache._pool.registration import MISSING, Missing
from trio_wasmcache.aio import AsyncioCache, AsyncioFunction
from trio_wasmcache.blocking import BlockingCache, BlockingFunction

TYPED = Path(__file__).parent / "typed"
RIGHT, WRONG = TYPED / "right.py", TYPED / "wrong.py"
# {line: (code of mypy, rule of pyright)}
EXPECTED = {
    number: found.groups()
    for number, line in enumerate(WRONG.read_text(encoding="utf-8").splitlines(), 1)
    if (found := re.search(r"  # ([a-z-]+), (report\w+)$", line))
}

Errors = dict[tuple[Path, int], dict[str, str]]
"""{(file, line): {code: message}}."""


def run(*command: str, folder: Path) -> str:
    # In another folder, so that the package is found where it is installed.
    command = (sys.executable, "-m", *command, str(RIGHT), str(WRONG))
    return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout


def mypy(folder: Path) -> Errors:
    options = ("--strict", "--config-file=", f"--cache-dir={folder}", "--output=json")
    errors: Errors = {}
    for line in run("mypy", *options, folder=folder).splitlines():
        error = json.loads(line)
        if error["severity"] == "error":
            place = (folder / error["file"]).resolve(), error["line"]
            errors.setdefault(place, {})[error["code"]] = error["message"]
    return errors


def pyright(folder: Path) -> Errors:
    options = ("--outputjson", "--pythonpath", sys.executable)
    errors: Errors = {}
    for error in json.loads(run("pyright", *options, folder=folder))["generalDiagnostics"]:
        if error["severity"] == "error":
            place = Path(error["file"]).resolve(), error["range"]["start"]["line"] + 1
            errors.setdefault(place, {})[error["rule"]] = error["message"]
    return errors


CHECKERS: Mapping[str, Callable[[Path], Errors]] = {"mypy": mypy, "pyright": pyright}


@pytest.fixture(scope="module", params=CHECKERS)
def checker(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} IS NOT INSTALLED: NOTHING IS KNOWN OF THE TYPES THAT IT SEES")
    return name


@pytest.fixture(scope="module")
def errors(checker: str, tmp_path_factory: pytest.TempPathFactory) -> Errors:
    return CHECKERS[checker](tmp_path_factory.mktemp(checker))


def test_right_lines_have_no_errors(errors: Errors) -> None:
    """Nor has any file that they import; their `assert_type` are errors if they do not hold."""
    assert {place: found for place, found in errors.items() if place[0] != WRONG} == {}


def test_each_wrong_line_has_its_error(checker: str, errors: Errors) -> None:
    """And only these lines have any."""
    assert len(EXPECTED) > 50
    found = {line: codes for (file, line), codes in errors.items() if file == WRONG}
    expected = {line: codes[checker == "pyright"] for line, codes in EXPECTED.items()}
    assert [line for line, code in expected.items() if code not in found.get(line, ())] == []
    assert {line: codes for line, codes in found.items() if line not in expected} == {}


def test_names_are_those_of_the_abis() -> None:
    """The type names by which a checker tells a result are those that the ABIs know."""

    def of(*aliases: object) -> set[str]:
        return {name for alias in aliases for name in get_args(alias)}

    assert of(names.AbiName) == ABIS.keys()
    plain = of(names.IntName, names.FloatName, names.BoolName)
    assert plain == TYPES.keys()
    assert of(names.StrName, names.BytesName) == {*BUFFERS}
    for alias, kind in ((names.IntName, int), (names.FloatName, float), (names.BoolName, bool)):
        for name in of(alias):
            assert python_type(TYPES[name]) is kind
    native = of(names.CqlIntName, names.CqlFloatName, names.CqlBoolName)
    assert native == NATIVE.keys()
    for alias, kind in (
        (names.CqlIntName, int),
        (names.CqlFloatName, float),
        (names.CqlBoolName, bool),
    ):
        for name in of(alias):
            assert python_type(NATIVE[name]) is kind
    rest = of(names.CqlLongName, names.CqlStrName, names.CqlBytesName)
    assert not rest & native
    assert not (rest | native) & (plain | {*BUFFERS})
    assert rest < scalars().keys()


def python_type(kind: Any) -> type:
    return bool if kind.truth else float if kind.real else int


def test_words_are_those_that_there_are() -> None:
    """A `Literal` can't be made of a tuple."""
    assert get_args(Isolation) == ISOLATIONS
    assert get_args(Missing) == MISSING


def test_resize_takes_the_fields_of_the_configuration() -> None:
    """With their types, but for those that can't be changed while the cache is open."""
    fields = attrs.fields(CacheConfig)
    expected = {field.name: field.type for field in fields if field.name not in FIXED}
    assert get_type_hints(Limits) == expected
    assert not Limits.__required_keys__


def test_overloads_of_register_take_its_parameters() -> None:
    """Each has all of them, with the types and defaults that they have, or narrower ones."""
    parameters = inspect.signature(InstanceCache.register).parameters
    options = get_type_hints(RegisterOptions)
    spelt = {"self", "name", "wasm", "returns", "abi", "called_on_null"}
    assert options.keys() | spelt == parameters.keys()
    hints = get_type_hints(InstanceCache.register)
    # Only components may leave out the types of arguments.
    assert hints["args"] == options["args"] | Inferred
    component = get_type_hints(ComponentOptions)
    assert hints["imports"] == options["imports"] | component["imports"]
    del hints["args"], hints["imports"]
    shared = options.keys() - {"args", "imports"}
    assert {name: hints[name] for name in shared} == {name: options[name] for name in shared}
    assert {name: component[name] for name in shared} == {name: options[name] for name in shared}
    assert {*RegisterOptions.__required_keys__} == {"args"}
    assert not ComponentOptions.__required_keys__
    overloads = typing.get_overloads(InstanceCache.register)
    assert len(overloads) > 10
    for one in overloads:
        signature = inspect.signature(one).parameters
        assert signature.keys() | {"abi"} == spelt | {"options"}
        of_component = get_type_hints(one)["options"] == Unpack[ComponentOptions]  # type: ignore[misc]
        assert ("abi" not in signature) is of_component is (one is overloads[-1])
        for name in signature.keys() - {"options", "returns"}:
            # Types that are an ABI's own can't be had without naming it.
            if name != "abi" or signature[name].default is not inspect.Parameter.empty:
                assert signature[name].default == parameters[name].default
    assert get_type_hints(overloads[-1])["return"] == Function[Any]


@pytest.mark.parametrize(
    ("register", "function"),
    [
        (BlockingCache.register, BlockingFunction),
        (AsyncioCache.register, AsyncioFunction),
    ],
)
def test_the_faces_outside_have_the_same_overloads(register: Any, function: Any) -> None:
    """In the same order, for the functions that they return."""

    def told(one: Any, kind: Any) -> dict[str, Any]:
        hints = get_type_hints(one)
        assert get_origin(hints["return"]) is kind
        hints["return"] = get_args(hints["return"])
        del hints["options"]
        hints.pop("timeout", None)
        return hints

    found = [told(one, function) for one in typing.get_overloads(register)]
    assert found == [told(one, Function) for one in typing.get_overloads(InstanceCache.register)]


# Parameters that are names of the caller's choice, whatever their default.
FREE = {"export"}


def functions() -> dict[str, Callable[..., object]]:
    """All public functions, methods and constructors."""
    found: dict[str, Callable[..., object]] = {}
    for home in (trio_wasmcache, testing):
        for name in home.__all__:
            thing = getattr(home, name)
            if not isinstance(thing, type):
                found[name] = thing
                continue
            for method in vars(thing):
                if inspect.isfunction(getattr(thing, method, None)) and (
                    method == "__init__" or not method.startswith("_")
                ):
                    found[f"{name}.{method}"] = getattr(thing, method)
    return {name: function for name, function in found.items() if callable(function)}


@pytest.mark.parametrize("name", functions())
def test_options_that_are_words_are_literals(name: str) -> None:
    """A parameter whose default is a word takes some words only: its type says which."""
    function = functions()[name]
    for parameter in inspect.signature(function).parameters.values():
        if isinstance(parameter.default, str) and parameter.default and parameter.name not in FREE:
            hint = get_type_hints(function)[parameter.name]
            assert Literal in {get_origin(hint), *map(get_origin, get_args(hint))}, parameter


def test_functions_and_leases_are_generic_at_run_time() -> None:
    """As annotations of programs, and for those that read annotations."""

    def take(function: Function[int], lease: Lease[str]) -> Function[object] | None:
        """Take them."""

    hints = get_type_hints(take)
    assert (get_origin(hints["function"]), get_args(hints["function"])) == (Function, (int,))
    assert (get_origin(hints["lease"]), get_args(hints["lease"])) == (Lease, (str,))
    assert Function[int].__origin__ is Function
    assert Function.__dictoffset__ == 0  # it still has slots
