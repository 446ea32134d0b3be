"""The reference is the docstrings: each public name, parameter, field and error is described."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import pydoc
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from reference import CLASSES, FUNCTIONS, OPERATORS, PUBLIC

import trio_wasmcache
from trio_wasmcache import WitError, _public
from trio_wasmcache._core.event_kinds import EVENTS
from trio_wasmcache._engine.base import Engine
from trio_wasmcache._public import described_fields

SECTION = re.compile(r"^(Args|Raises|Returns|Fields):\n((?:(?: +.*)?\n)*)", re.MULTILINE)
ITEM = re.compile(r"^ {4}(\S.*?): ((?:.*\n)(?: {5,}.*\n)*)", re.MULTILINE)
BYTES = re.compile(r"(size|memory|space|_bytes|_limit)$")
SECONDS = re.compile(r"(timeout|_seconds|^last_used)$")
# Fields whose names look like bytes, or like seconds.
NO_BYTES = {
    "table_limit",
    "main_cpu_limit",
    "cpu_limit",
    "memory",
    "max_running_size_bytes",
    "memory_limit_bytes",
}


def section(doc: str, title: str) -> dict[str, str]:
    """{name: description} of a section of a docstring; a description may be for several names."""
    found = dict(SECTION.findall(f"{inspect.cleandoc(doc)}\n"))
    items = ITEM.findall(found.get(title, ""))
    return {name.strip().lstrip("*"): text for names, text in items for name in names.split(",")}


def resolved(error: str) -> object:
    """The class that a `Raises` section names."""
    name = error.removeprefix("trio.")
    home = trio if name != error else trio_wasmcache if name in dir(trio_wasmcache) else builtins
    return getattr(home, name, None)


def problems_of_function(path: str, member: Any, function: Callable[..., object]) -> Iterator[str]:
    """What is missing in the docstring of a public function, method or property."""
    doc = function.__doc__
    if not doc:
        yield f"{path} has no docstring"
        return
    inner = inspect.unwrap(function)
    waits = inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)
    for line in ("Checkpoint", "Cancellation"):
        if waits and f"**{line}:** " not in doc:
            yield f"{path} is async and has no line **{line}:**"
    name = path.rpartition(".")[2]
    if "FakeEngine." in path and name in vars(Engine):
        return  # for the cache, and described there
    if not isinstance(member, (property, functools.cached_property)) and name not in OPERATORS:
        described = section(doc, "Args")
        parameters = dict(inspect.signature(function).parameters)
        parameters.pop("self", None)
        parameters.pop("cls", None)
        for one in parameters:
            if one == "_more":
                continue  # it takes nothing (`Never`), and is there for a message
            if one not in described:
                yield f"{path}: parameter {one} is not described"
            elif parameters[one].default is None and not re.search("None|default", described[one]):
                yield f"{path}: {one} may be None, and nothing says what that does"
        yield from (f"{path}: there is no parameter {one}" for one in described.keys() - parameters)
    raises = section(doc, "Raises")
    for error in raises:
        found = resolved(error)
        if not (isinstance(found, type) and issubclass(found, BaseException)):
            yield f"{path}: {error} is no exception"
    tree = ast.parse(textwrap.dedent(inspect.getsource(inner)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            error = ast.unparse(node.exc.func)
            if isinstance(resolved(error), type) and error not in raises:
                yield f"{path} raises {error}, and its docstring does not say when"


def problems_of_fields(path: str, cls: type, names: set[str]) -> Iterator[str]:
    """What is missing in the descriptions of a class's fields."""
    fields = described_fields(cls)
    described = {name: doc.text for name, doc in fields.items()}
    for name in sorted(names | fields.keys()):
        text = described.get(name, "")
        if not text:
            yield f"{path}: field {name} is not described"
            continue
        if not re.fullmatch(r"[A-Z`{(\"].*\.", text, re.DOTALL):
            yield f"{path}: {name} is not described by a sentence: {text}"
        doc = fields.get(name)
        if doc and doc.default == "None" and not re.search("None|default", text):
            yield f"{path}: {name} may be None, and nothing says what that means"
        number = doc is not None and re.match(r"int|float", doc.type)
        if number and BYTES.search(name) and name not in NO_BYTES and "ytes" not in text:
            yield f"{path}: {name} does not say that it is bytes"
        if number and SECONDS.search(name) and not re.search("[Ss]econds|current_time", text):
            yield f"{path}: {name} does not say that it is seconds"


def problems_of_class(path: str, cls: type) -> Iterator[str]:
    """What is missing in the docstring of a public class."""
    doc = cls.__doc__
    if not doc:
        yield f"{path} has no docstring"
        return
    named = attrs.fields(cls) if attrs.has(cls) else ()
    yield from problems_of_fields(path, cls, {one.name for one in named if one.name[0] != "_"})
    if attrs.has(cls) or getattr(cls, "_is_protocol", False) or "__init__" not in vars(cls):
        return
    if "\nUse `" in inspect.cleandoc(doc):
        return  # made by the library, by the method that it names
    parameters = [*inspect.signature(cls).parameters]
    if issubclass(cls, BaseException) and cls is not WitError:  # whose message is its value
        parameters.remove("message")
    described = section(doc, "Args").keys() | described_fields(cls).keys()
    yield from (f"{path}: parameter {one} is not described" for one in {*parameters} - described)


@pytest.mark.parametrize("path", PUBLIC)
def test_every_public_name_is_described(path: str) -> None:
    """A class, with its fields and what makes it; its methods; a function, with its parameters."""
    problems: list[str] = []
    if path in CLASSES:
        problems += problems_of_class(path, CLASSES[path])
    for name, (member, function) in FUNCTIONS.items():
        if name == path or name.startswith(f"{path}."):
            problems += problems_of_function(name, member, function)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_every_event_is_described(event: type) -> None:
    """And each of its fields: the schema has no other source."""
    problems = [*problems_of_class(event.__name__, event)]
    assert not problems, "\n".join(problems)


ERRORS = [path for path, cls in CLASSES.items() if issubclass(cls, BaseException)]


@pytest.mark.parametrize("path", ERRORS)
def test_every_error_says_what_raises_it(path: str) -> None:
    """A function, or the error of the guest's that it is a kind of."""
    doc = CLASSES[path].__doc__ or ""
    raisers = "open_cache|register|acquire|Lease|lease|HostFunction|guest|call|native step|Base of"
    assert re.search(rf"\b({raisers})\b", doc.partition("Fields:")[0]), path


def test_help_shows_the_fields() -> None:
    """With type and default, from the source; and what the source does not have, it leaves."""
    shown = inspect.getdoc(trio_wasmcache.CacheConfig)
    assert shown
    assert "    max_size: int = 256 * MiB\n        Bytes of" in shown
    assert "total_fuel: int = 1_000_000_000\n" in shown
    assert "max_threads: int = os.cpu_count() or 1\n" in shown
    for name, cls in CLASSES.items():
        assert inspect.getdoc(cls), name  # whatever its metaclass is
    assert "log_level: LogLevel" in (inspect.getdoc(trio_wasmcache.ExtismAbi) or "")
    assert "    chain: tuple[str, ...]\n" in (inspect.getdoc(trio_wasmcache.DeadlockError) or "")
    assert "_uses" not in (trio_wasmcache.CacheStats.__doc__ or "")
    # In a process of its own, as attrs notes on a class if it is asked again for the types.
    program = "import trio_wasmcache; help(trio_wasmcache.CacheConfig)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("Limits of an `InstanceCache`") == 1
    page = pydoc.render_doc(trio_wasmcache.Lease.call, renderer=pydoc.plaintext)
    assert page.startswith("Python Library Documentation: function call in module trio_wasmcache\n")


# -- the tests of this file can fail


@attrs.frozen
class Bad:
    """Undescribed."""

    told: int
    """Number of somethings."""
    untold: int
    fragment: int
    """how many"""
    max_size: int = 0
    """Size of something."""
    idle_timeout: float = 0.0
    """Time of something."""
    absent: int | None = None
    """Number of somethings."""


class Unmade:
    """Says neither what makes it nor what its parameter is."""

    def __init__(self, parameter: int) -> None:
        self.parameter = parameter


async def undescribed(parameter: int, absent: object = None) -> None:
    """Do something.

    Args:
        absent: something.
        gone: something.

    Raises:
        Mistake: never.
    """
    raise ValueError(f"{parameter}, {absent}")


def test_what_is_not_described_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of gap, in a class and a function that have it."""
    monkeypatch.setattr(Bad, "__module__", "trio_wasmcache._public")
    source = Path(__file__).read_text(encoding="utf-8")
    monkeypatch.setattr(_public.inspect, "getsource", lambda _: source)
    assert [*problems_of_class("Bad", Bad)] == [
        "Bad: absent may be None, and nothing says what that means",
        "Bad: fragment is not described by a sentence: how many",
        "Bad: idle_timeout does not say that it is seconds",
        "Bad: max_size does not say that it is bytes",
        "Bad: field untold is not described",
    ]
    monkeypatch.undo()
    (gap,) = problems_of_class("Unmade", Unmade)
    assert gap == "Unmade: parameter parameter is not described"
    assert [*problems_of_function("undescribed", undescribed, undescribed)] == [
        "undescribed is async and has no line **Checkpoint:**",
        "undescribed is async and has no line **Cancellation:**",
        "undescribed: parameter parameter is not described",
        "undescribed: absent may be None, and nothing says what that does",
        "undescribed: there is no parameter gone",
        "undescribed: Mistake is no exception",
        "undescribed raises ValueError, and its docstring does not say when",
    ]
    assert [*problems_of_function("x", lambda: None, lambda: None)] == ["x has no docstring"]
