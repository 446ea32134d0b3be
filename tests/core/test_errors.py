"""Errors can be made, copied, and sent to other processes, as those of a pool are.

The classes are found, not listed: a new one, or a new parameter of one, is tested without being
named here.
"""

from __future__ import annotations

import concurrent.futures
import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import trio_wasmcache
from trio_wasmcache import GuestError, TrapError, WasmCacheError, testing


def classes() -> list[type[Exception]]:
    """All error classes of the library, and any other exception that has a public name."""
    for module in pkgutil.walk_packages(trio_wasmcache.__path__, "trio_wasmcache."):
        if not module.name.endswith("__main__") and ".report" not in module.name:
            importlib.import_module(module.name)
    found = {WasmCacheError, *below(WasmCacheError)}
    for home in (trio_wasmcache, testing):
        named = [getattr(home, name) for name in dir(home) if not name.startswith("_")]
        found.update(one for one in named if isinstance(one, type) and issubclass(one, Exception))
    library = [one for one in found if one.__module__.partition(".")[0] == "trio_wasmcache"]
    return sorted(library, key=lambda one: one.__qualname__)


def below(kind: type[Exception]) -> Iterator[type[Exception]]:
    for one in kind.__subclasses__():
        yield one
        yield from below(one)


CLASSES = classes()
WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle{protocol}": lambda error, protocol=protocol: pickle.loads(
            pickle.dumps(error, protocol)
        )
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}
each_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
each_way = pytest.mark.parametrize("again", WAYS.values(), ids=WAYS.keys())


def parameters(kind: type[Exception]) -> list[inspect.Parameter]:
    """Those of its constructor, besides the message."""
    if not inspect.isfunction(kind.__init__):  # that of `Exception`
        return []
    return list(inspect.signature(kind.__init__).parameters.values())[2:]


def facts(error: BaseException) -> dict[str, object]:
    return {**vars(error), "args": error.args, "str": str(error)}


def full(kind: type[Exception]) -> Any:
    """An error with a value for each parameter of its class."""
    values = {one.name: (one.name, 7) for one in parameters(kind)}
    error: Any = kind("m", **values)
    assert vars(error).items() >= values.items()
    error.args = ("f(i64): m",)  # as the lease completes it
    error.extra = "set later"
    error.add_note("in row 3")
    return error


def test_the_classes_are_found() -> None:
    """All of the public ones are, and those below them."""
    names = {kind.__name__ for kind in CLASSES}
    assert names > {"WasmCacheError", "TrapError", "DeadlockError", "ExitError", "FakeFailure"}
    assert len(names) >= 20


@each_class
def test_an_error_is_made_from_its_message(kind: type[Exception]) -> None:
    """With the message alone; all else has a default, of the type that it always has."""
    error = kind("why")
    assert str(error) == "why"
    assert error.args == ("why",)
    again = type(error)(str(error))
    assert facts(again) == facts(error)
    assert all(one.default is not one.empty for one in parameters(kind))


@each_class
@each_way
def test_an_error_is_copied_with_all_that_it_has(
    kind: type[Exception], again: Callable[[Exception], Exception]
) -> None:
    """Its message, all of its attributes, and its notes."""
    error = full(kind)
    found = again(error)
    assert type(found) is kind
    assert found is not error
    assert facts(found) == facts(error)
    assert error.__notes__ == ["in row 3"]


@each_class
def test_an_error_is_pickled_whatever_it_has(kind: type[Exception]) -> None:
    """The repr replaces what can't be pickled, in `values` item by item, and nothing else."""
    error = full(kind)
    error.values = (1, unpicklable := lambda: None, "text", Unloadable(code=5))
    error.other = unpicklable
    before = facts(error)
    found = pickle.loads(pickle.dumps(error))
    assert facts(error) == before
    assert found.values == (1, repr(unpicklable), "text", repr(error.values[3]))
    assert found.other == repr(unpicklable)
    assert (found.args, found.extra, found.__notes__) == (error.args, error.extra, ["in row 3"])


@each_class
def test_an_error_is_copied_whatever_it_has(kind: type[Exception]) -> None:
    """A deep copy has copies of what can be copied, and shares the rest."""
    error = full(kind)
    steps = (number for number in range(3))
    error.values, error.other = ([1], steps), steps
    found = copy.deepcopy(error)
    assert found.values == error.values
    assert found.values[0] is not error.values[0]
    assert found.other is error.other is found.values[1]
    assert copy.copy(error).values is error.values


class Unloadable(Exception):
    """Its pickle can't be loaded, as the class takes a keyword."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class Unshowable:
    """It can't be pickled, and has no repr."""

    def __reduce__(self) -> str:
        raise ValueError("not I")

    def __repr__(self) -> str:
        raise ValueError("nor this")


def test_what_has_no_repr_either_is_named_by_its_type() -> None:
    """Pickling an error never raises."""
    found = pickle.loads(pickle.dumps(GuestError("m", values=(Unshowable(), 2))))
    assert found.values == ("a value of type Unshowable", 2)


def test_errors_that_refer_to_each_other_are_pickled() -> None:
    """In a circle, and one in another that is many deep: each is judged once."""
    error: Any = GuestError("m", row=1)
    error.values = (error, [error])
    error.args = ("m", error)
    found = pickle.loads(pickle.dumps(error))
    assert found.values[0] is found is found.args[1]
    assert found.values[1][0] is found
    assert copy.deepcopy(error).values[0] is not error
    inner = error = GuestError("0", values=(lambda: None,))
    for number in range(1, 20):
        error = GuestError(str(number), values=(error, error))
    found = pickle.loads(pickle.dumps(error))
    for _ in range(19):
        found = found.values[0]
    assert (str(found), found.values) == ("0", (repr(inner.values[0]),))


def test_a_long_repr_is_cut() -> None:
    """The pickle of an error is not larger than the error."""
    error = GuestError("m", values=([lambda: None] * 100_000,))
    (found,) = pickle.loads(pickle.dumps(error)).values
    assert len(found) == 100


def test_an_error_of_the_applications_own_is_pickled() -> None:
    """A class below one of the library's, whatever its constructor takes."""
    error = Own(3, where="here")
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), found.where, str(found)) == (Own, "here", "number 3")
    assert copy.copy(error).where == copy.deepcopy(error).where == "here"


class Own(TrapError):
    """An application's own error."""

    def __init__(self, number: int, *, where: str) -> None:
        super().__init__(f"number {number}", code="own")
        self.where = where


def test_an_error_goes_to_a_process_and_back() -> None:
    """A pool is not broken by it, and gives the error itself."""
    error = TrapError("m", code="unreachable", values=(1, print, lambda: 0), backtrace=("f",))
    error.add_note("noted")
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(copy.copy, error).result()
    assert facts(found) == {**facts(error), "values": (1, print, repr(error.values[2]))}
