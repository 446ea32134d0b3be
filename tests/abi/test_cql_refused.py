"""What the Scylla ABI refuses before any wasm runs: types that are none, values that do not fit."""

from __future__ import annotations

import datetime
import decimal
import sys
import uuid
from typing import Any

import pytest
from abi.support import FakeGuest, drive, scylla_exports
from cassandra.util import Date, Duration, Time

from trio_wasmcache import Binding, ExportError, Exports, Invoke, ScyllaAbi, SignatureError
from trio_wasmcache._core.wasm.reader import FuncType

ADDRESS = {"address": {"street": "text", "zip": "int"}}
PLAIN_MODULE = Exports({"run": FuncType(("i32",), ("i32",))}, {}, ())


def bind(*args: str, returns: str = "text", null: bool = True, **user_types: Any) -> Binding:
    exports = scylla_exports(*["i64"] * len(args))
    return ScyllaAbi(user_types={**ADDRESS, **user_types}).bind(
        f"f({', '.join(args)})", "run", args, (returns,), exports, null
    )


def never(invoke: Invoke) -> Any:
    raise AssertionError(f"{invoke} was called")


MISFITS: list[tuple[str, Any, type[Exception], str]] = [
    ("int", "1", TypeError, "int takes an int, got '1'"),
    ("int", 1.5, TypeError, "int takes an int, got 1.5"),
    ("int", 2**31, OverflowError, "2147483648 is out of the range of int"),
    ("tinyint", 128, OverflowError, "128 is out of the range of tinyint, -128 to 127"),
    ("smallint", -32769, OverflowError, "out of the range of smallint"),
    ("bigint", 2**63, OverflowError, "out of the range of bigint"),
    ("counter", 2**63, OverflowError, "out of the range of counter"),
    ("varint", 1.0, TypeError, "varint takes an int, got 1.0"),
    ("boolean", 1, TypeError, "boolean takes True or False, got 1"),
    ("float", "x", TypeError, "float takes a float"),
    ("float", 1e39, OverflowError, "1e+39 is too large for float"),
    ("double", 10**400, OverflowError, "too large for double"),
    ("decimal", 1.5, TypeError, "decimal takes a Decimal or an int, got 1.5"),
    ("decimal", True, TypeError, "decimal takes a Decimal"),
    ("decimal", decimal.Decimal("NaN"), ValueError, "finite"),
    ("set<decimal>", [decimal.Decimal(1), decimal.Decimal("NaN")], ValueError, "finite"),
    ("decimal", decimal.Decimal((0, (1,), 2**31 + 1)), ValueError, "decimal can't hold"),
    ("text", b"bytes", TypeError, "text takes a str, got b'bytes'"),
    ("text", "\ud800", ValueError, "text can't hold '\\ud800'"),
    ("ascii", "é", ValueError, "ascii can't hold 'é'"),
    ("blob", "text", TypeError, "blob takes bytes, got 'text'"),
    ("blob", 5, TypeError, "blob takes bytes, got 5"),
    ("uuid", "00112233-4455-4677-8899-aabbccddeeff", TypeError, "uuid.UUID"),
    ("timeuuid", uuid.UUID(int=1), ValueError, "version 1"),
    ("timeuuid", 5, TypeError, "uuid.UUID"),
    ("inet", "1", ValueError, "inet takes an IP address, got '1'"),
    ("inet", 1, TypeError, "inet takes a str"),
    ("inet", "fe80::1%eth0", ValueError, "scope"),
    ("date", datetime.datetime(2024, 1, 1), TypeError, "date takes a datetime.date"),
    ("date", 5, TypeError, "date takes a datetime.date"),
    ("date", Date(2**31), OverflowError, "out of the range of date"),
    ("time", 5, TypeError, "time takes a datetime.time"),
    ("time", Time(-1), OverflowError, "out of the range of time"),
    ("time", datetime.time(tzinfo=datetime.UTC), ValueError, "time zone"),
    ("timestamp", 1.5, TypeError, "timestamp takes a datetime or an int"),
    ("timestamp", True, TypeError, "timestamp takes a datetime"),
    ("timestamp", 2**63, OverflowError, "out of the range of timestamp"),
    ("duration", datetime.timedelta(1), TypeError, "Duration"),
    ("duration", Duration(1.5), TypeError, "ints"),
    ("duration", Duration(2**31), OverflowError, "out of the range of duration"),
    ("duration", Duration(1, -1), ValueError, "one sign"),
    ("list<int>", "12", TypeError, "list<int> takes a sequence, got '12'"),
    ("list<int>", {1}, TypeError, "list<int> takes a sequence"),
    ("list<int>", {1: 2}, TypeError, "list<int> takes a sequence"),
    ("list<int>", 5, TypeError, "list<int> takes a sequence"),
    ("list<int>", [1, "x"], TypeError, "of type list<int>: int takes an int, got 'x'"),
    ("list<list<text>>", [[], ["\ud800"]], ValueError, "of type list<list<text>>: text can't hold"),
    ("set<int>", 5, TypeError, "set<int> takes a set, got 5"),
    ("set<text>", "ab", TypeError, "set<text> takes a set"),
    ("set<text>", {None}, ValueError, "set<text> can't hold None"),
    ("map<int,int>", [(1, 2)], TypeError, "map<int,int> takes a mapping"),
    ("map<int,int>", (1, 2), TypeError, "a tuple of pairs"),
    ("map<int,int>", {None: 1}, ValueError, "None for a key"),
    ("map<int,int>", {1: "x"}, TypeError, "int takes an int, got 'x'"),
    ("tuple<int,int>", (1,), ValueError, "takes 2 values, got 1: (1,)"),
    ("tuple<int,int>", {1, 2}, TypeError, "takes a tuple"),
    ("address", {"street": "s", "city": "c"}, ValueError, "fields street, zip, got 'city'"),
    ("address", ("s",), ValueError, "address takes 2 values, got 1"),
    ("address", 5, TypeError, "address takes a mapping"),
    ("address", {"zip": "x"}, TypeError, "int takes an int, got 'x'"),
]


@pytest.mark.parametrize(("name", "value", "kind", "said"), MISFITS)
def test_values_that_do_not_fit_never_go_in(
    name: str, value: Any, kind: type[Exception], said: str
) -> None:
    """The error names argument, type and value, before the first step; `explain` says the same."""
    binding = bind("text", name)
    with pytest.raises(kind) as caught:
        drive(binding, FakeGuest(), ("fine", value), never)
    text = str(caught.value)
    assert text.startswith(f"argument 2 of f(text, {name})")
    assert said in text
    assert len(text) < 400
    explained = binding.explain(("fine", value))
    assert (type(explained), str(explained)) == (type(caught.value), text)


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("tinyint", 128, OverflowError),
        ("smallint", 2**15, OverflowError),
        ("int", 2**31, OverflowError),
        ("bigint", "1", TypeError),
        ("boolean", 1, TypeError),
        ("float", 1e39, OverflowError),
        ("double", None, TypeError),
    ],
)
def test_native_values_are_checked_too(name: str, value: Any, kind: type[Exception]) -> None:
    """What crosses as a number of wasm is named by its CQL type, alone or beside others."""
    alone = bind(name, returns="int", null=False)
    assert alone.steps is None
    assert alone.lower is None or name in ("tinyint", "smallint", "boolean")
    mixed = bind("text", name, null=False)
    assert mixed.steps is not None
    for binding, values in ((alone, (value,)), (mixed, ("t", value))):
        error = binding.explain(values)
        assert type(error) is kind
        assert f"argument {len(values)} of f(" in str(error)
        assert name in str(error)


def test_the_wrong_number_of_arguments_is_named() -> None:
    """Too many or too few are told with the declared types."""
    error = bind("text", "list<int>").explain(("a",))
    assert type(error) is TypeError
    assert "takes 2 arguments (text, list<int>), got 1" in str(error)


def test_what_can_be_passed_has_no_explanation_but_that() -> None:
    """Asked to explain values that fit, a binding says so little as there is to say."""
    assert "can't be passed" in str(bind("text").explain(("fine",)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("i64", "there is no type 'i64'"),
        ("string", "there is no type 'string'"),
        ("", "a type name is missing"),
        ("list", "there is no type 'list'"),
        ("list<>", "a type name is missing"),
        ("list<int", "a '>' is missing"),
        ("list<int>>", "there is '>' after its end"),
        ("list<int,int>", "'list' takes 1 types, not 2"),
        ("map<int>", "'map' takes 2 types, not 1"),
        ("frozen<int,int>", "'frozen' takes 1 types, not 2"),
        ("int<int>", "'int' takes no types"),
        ("set<duration>", "no duration in 'set<duration>'"),
        ("map<tuple<int,list<duration>>,int>", "no duration"),
        ("list<nothing>", "there is no type 'nothing'"),
        ("list<" * 40 + "int" + ">" * 40, "nested over 32 deep"),
        ("list<" * 9999, "nested over 32 deep"),
        ("loop", "contains itself"),
        ("broken", "there is no type 'nothing'"),
    ],
)
def test_what_is_no_cql_type_is_refused(name: str, said: str) -> None:
    """Types that CQL does not have, or does not allow, are a SignatureError that says why."""
    types = {"loop": {"next": "list<frozen<loop>>"}, "broken": {"field": "nothing"}}
    with pytest.raises(SignatureError, match="is no CQL type") as caught:
        bind(name, **types)
    assert said in str(caught.value)


def test_names_of_user_types_are_normalised() -> None:
    """User types are found however they, and the types of their fields, are spelt."""
    bind("point", Point={"x": "Frozen< List<INT> >"})
    bind("ks.type-9", **{"ks.type-9": {"class": "int", "a b": "int"}})


def test_equal_abis_are_equal() -> None:
    """What ABIs are declared alike, with names in any spelling, are one."""
    assert ScyllaAbi(user_types={"P": {"x": "INT"}}) == ScyllaAbi(user_types={"p": {"x": "int"}})


def test_a_cql_function_returns_one_value() -> None:
    """Nothing, or several results, are a SignatureError."""
    for returns in ((), ("int", "int")):
        with pytest.raises(SignatureError, match="returns one value"):
            ScyllaAbi().bind("f", "run", ("int",), returns, PLAIN_MODULE, False)


def test_what_crosses_through_memory_takes_memory_and_a_version() -> None:
    """A module without either is refused; one with native types alone needs neither."""
    functions = {"run": FuncType(("i64",), ("i64",))}
    with pytest.raises(ExportError, match="exports no memory"):
        bad = Exports(functions, {"_scylla_abi": "i32"}, ())
        ScyllaAbi().bind("f", "run", ("text",), ("text",), bad, False)
    for found in ({}, {"_scylla_abi": "i64"}):
        with pytest.raises(ExportError, match="global '_scylla_abi' of type i32"):
            bad = Exports(functions, found, ("memory",))
            ScyllaAbi().bind("f", "run", ("text",), ("text",), bad, False)
    native = ScyllaAbi().bind("f", "run", ("int",), ("int",), PLAIN_MODULE, False)
    assert native.steps is None
    with pytest.raises(ExportError):
        ScyllaAbi().bind("f", "run", ("int",), ("int",), PLAIN_MODULE, True)


def test_the_missing_driver_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, native signatures work, and others say what to install."""
    from trio_wasmcache._abi.cql import scalars as cql_scalars

    monkeypatch.setitem(sys.modules, "cassandra.cqltypes", None)
    cql_scalars.scalars.cache_clear()
    try:
        assert bind("int", "double", returns="boolean", null=False).steps is None
        with pytest.raises(ImportError, match=r"pip install '\.\[scylla\]'"):
            bind("text")
        with pytest.raises(ImportError, match="pip install"):
            bind("int", returns="int", null=True)
    finally:
        cql_scalars.scalars.cache_clear()
