"""A `try` holds from a function's first instruction on, where Python looks for signals."""

from __future__ import annotations

import ctypes
import functools
import operator
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._engine.wasmtime import exception_table, hosts
from trio_wasmcache._engine.wasmtime.exception_table import (
    Entry,
    extend,
    holds_from_the_start,
    read,
    tried_from_the_start,
    write,
)


class StrayError(Exception):
    """Raised between two instructions."""


def raise_at_the_first_instruction(function: Callable[[], Any]) -> Any:
    """Call a function from C; an exception comes up before its first instruction is over."""
    come = ctypes.pythonapi["PyThreadState_SetAsyncExc"]
    come.argtypes = [ctypes.c_ulong, ctypes.py_object]
    arrange = functools.partial(come, threading.get_ident(), StrayError)
    return list(map(operator.call, (arrange, function)))[1]


def make(lines: int = 0) -> Callable[[], Any]:
    """A function that is all one `try`, and never raises; as long as that many lines."""
    body = "\n".join(["        print"] * lines)
    source = f"def made():\n    try:\n        pass\n{body}\n        return None\n"
    source += "    except BaseException as error:\n        return type(error)\n"
    names: dict[str, Any] = {}
    exec(source, names)
    made: Callable[[], Any] = names["made"]
    return made


@pytest.mark.parametrize("lines", [1, 5, 60, 2000])
def test_what_is_raised_at_the_first_instruction_is_caught(lines: int) -> None:
    """Without the change it escapes from the function; with it the handler sees it."""
    with pytest.raises(StrayError):
        raise_at_the_first_instruction(make(lines))
    function = tried_from_the_start(make(lines))
    assert raise_at_the_first_instruction(function) is StrayError
    assert function() is None


def test_it_is_known_whether_it_worked() -> None:
    """The table that is in place is read again."""
    function = make(5)
    assert not holds_from_the_start(function)
    assert holds_from_the_start(tried_from_the_start(function))
    code = function.__code__.co_exceptiontable
    tried_from_the_start(function)
    assert function.__code__.co_exceptiontable == code


def test_the_callback_of_host_functions_is_such_a_function() -> None:
    """This interpreter's format is understood, so there is no gap."""
    assert hosts.NO_GAP


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"\x02\x01\x03\x00",  # no mark where an entry begins
        b"\x82\x01\x03\x80",  # a mark where none begins
        b"\x82\x01\x03",  # a number is missing
        b"\x82\x01\x43",  # a number does not end
        b"\x82\x00\x03\x00",  # of no length
        b"\x82\x01\x0a\x00",  # its handler is not in the code
        b"\x82\x09\x03\x00",  # it ends after the code
        b"\x83\x02\x05\x00\x82\x01\x05\x00",  # not in order
        b"\xc0\x02\x01\x03\x00",  # not as short as can be: written in another way
        b"\x82\x01\x03\x02",  # something is on the stack
    ],
)
def test_what_is_not_understood_is_not_touched(table: bytes) -> None:
    """A table that is no table of ours, or makes no sense for the code, stays."""
    assert extend(table, 10) is None


def test_a_function_stays_as_it_is_where_the_format_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The fallback: the function works as before, and it is known that the gap is there."""
    monkeypatch.setattr(exception_table, "ENTRY", 0x20)  # as if an interpreter marked it elsewhere
    function = make(5)
    code = function.__code__
    assert tried_from_the_start(function) is function
    assert function.__code__ is code
    assert not holds_from_the_start(function)
    assert function() is None


def test_a_function_without_a_try_stays_as_it_is() -> None:
    """There is nothing to extend."""

    def bare() -> None:
        pass

    code = bare.__code__
    assert tried_from_the_start(bare).__code__ is code
    assert not holds_from_the_start(bare)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Entry], int]:
    """Entries in order, and the size of their code."""
    entries, end = [], 0
    for _ in range(draw(st.integers(0, 5))):
        start = end + draw(st.integers(0, 5000))
        length = draw(st.integers(1, 5000))
        entries.append(Entry(start, length, 0, draw(st.integers(0, 200))))
        end = start + length
    size = end + draw(st.integers(1, 5000))
    return [one._replace(handler=draw(st.integers(0, size - 1))) for one in entries], size


@given(tables())
def test_what_is_written_is_read(made: tuple[list[Entry], int]) -> None:
    """Any entries come back, numbers of several bytes included."""
    entries, size = made
    assert read(write(entries), size) == entries


@given(st.binary(max_size=30), st.integers(0, 300))
def test_reading_never_fails(table: bytes, size: int) -> None:
    """Whatever the bytes are, they are entries or nothing."""
    entries = read(table, size)
    assert not entries or write(entries) == table
