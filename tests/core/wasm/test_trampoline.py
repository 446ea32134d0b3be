"""Trampolines on plain wasmtime: a host in a few lines, which answers as ours does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import wasmtime
from hypothesis import given, settings, strategies as st

from trio_wasmcache._core.wasm import trampoline as module
from trio_wasmcache._core.wasm.reader import read_module
from trio_wasmcache._core.wasm.trampoline import (
    ARMS_LIMIT,
    DONE,
    RETURNS_LIMIT,
    TABLE,
    VALUES_LIMIT,
    Arm,
    arms_of,
    trampoline,
)
from trio_wasmcache._core.wasm.types import NUMBER_TYPES, VALUE_LIMIT, FuncType

Ask = Callable[[str, Sequence[Any]], Any]
Host = Callable[[Ask, Sequence[Any]], Any]

I64 = FuncType(("i64",), ("i64",))


def is_valid(wasm: bytes) -> bool:
    """Whether wasmtime takes it."""
    wasmtime.Module.validate(wasmtime.Engine(), wasm)
    return True


def zeros(types: Sequence[str]) -> tuple[float, ...]:
    """Return results that nobody looks at."""
    return tuple(0 if name[0] == "i" else 0.0 for name in types)


class Guest:
    """A guest beside its trampoline, with a host whose functions are plain generators.

    A host function yields (export, values) and is sent the result; it returns its results.
    """

    def __init__(
        self, text: str, functions: Sequence[FuncType], hosts: Sequence[Callable[..., Any]]
    ) -> None:
        wasm = bytes(wasmtime.wat2wasm(text))
        info = read_module(wasm)
        exports = {
            one.name: info.functions[one.index] for one in info.exports if one.kind == "func"
        }
        self.made = made = trampoline(functions, exports)
        self.types = exports
        self.store = store = wasmtime.Store()
        self.under_way: list[tuple[Any, tuple[str, ...]]] = []
        self.pending: tuple[str, tuple[Any, ...]] | None = None
        linker = wasmtime.Linker(store.engine)

        def define(name: str, number: int, signature: FuncType, call: Callable[..., Any]) -> None:
            types = [
                [getattr(wasmtime.ValType, one)() for one in several]
                for several in (signature.params, signature.results)
            ]
            linker.define_func(name, str(number), wasmtime.FuncType(*types), call)

        def begin(number: int) -> Callable[..., Any]:
            def called(*values: Any) -> Any:
                self.under_way.append((hosts[number](*values), functions[number].results))
                return self.go_on(None)

            return called

        def arguments(number: int) -> Callable[..., Any]:
            def called() -> Any:
                assert self.pending is not None
                (export, values), self.pending = self.pending, None
                self.table.set(store, number, self.exports[export])
                return (values if len(values) != 1 else values[0]) if values else None

            return called

        for number, function in enumerate(functions):
            define("host", number, module.widened(function), begin(number))
        for number, arm in enumerate(made.arms):
            define("arguments", number, arm.type, arguments(arm.number))
        for number, one in enumerate(made.returned):
            define("returned", number, one.type, self.go_on)
        instance = linker.instantiate(store, wasmtime.Module(store.engine, made.wasm))
        self.table: Any = instance.exports(store)[TABLE]
        outer = wasmtime.Linker(store.engine)
        for number in range(len(functions)):
            outer.define(store, "env", str(number), instance.exports(store)[str(number)])
        self.exports: Any = outer.instantiate(store, wasmtime.Module(store.engine, wasm)).exports(
            store
        )

    def go_on(self, *returned: Any) -> Any:
        """Answer for the host function that was called last."""
        steps, results = self.under_way[-1]
        sent = returned[0] if len(returned) == 1 else returned or None
        try:
            export, values = steps.send(sent)
        except StopIteration as end:
            self.under_way.pop()
            got = end.value
            given = () if not results else got if isinstance(got, tuple) else (got,)
            return (*given, DONE) if given else DONE
        (arm,) = (one.number for one in self.made.arms if one.export == self.types[export])
        self.pending = export, tuple(values)
        return (*zeros(results), arm) if results else arm

    def call(self, export: str, *values: Any) -> Any:
        return self.exports[export](self.store, *values)


ASKS = """(module
  (import "env" "0" (func $ask (param i64) (result i64)))
  (import "env" "1" (func $tell (param i32 f64)))
  (import "env" "2" (func $pair (param f32) (result f64 i32)))
  (func (export "run") (param i64) (result i64)
    (i64.add (call $ask (local.get 0)) (i64.const 1000)))
  (func (export "double") (param i64) (result i64) (i64.mul (local.get 0) (i64.const 2)))
  (func (export "again") (param i64) (result i64)
    (call $ask (i64.sub (local.get 0) (i64.const 1))))
  (func (export "nothing"))
  (func (export "swap") (param i32 f64) (result f64 i32) (local.get 1) (local.get 0))
  (func (export "half") (param f32) (result f32) (f32.div (local.get 0) (f32.const 2)))
  (func (export "told") (param i32 f64) (call $tell (local.get 0) (local.get 1)))
  (func (export "paired") (param f32) (result f64 i32) (call $pair (local.get 0)))
  (func (export "trap") (unreachable))
)"""
FUNCTIONS = [I64, FuncType(("i32", "f64")), FuncType(("f32",), ("f64", "i32"))]


def test_a_host_function_that_calls_nothing() -> None:
    """The guest gets what the host answered, of every kind of results."""
    told: list[Any] = []

    def ask(value: int) -> Any:
        return value + 1
        yield

    def tell(*values: Any) -> Any:
        told.append(values)
        return None
        yield

    def pair(value: float) -> Any:
        return value * 2, 7
        yield

    guest = Guest(ASKS, FUNCTIONS, [ask, tell, pair])
    assert guest.call("run", 5) == 1006
    guest.call("told", 3, 0.5)
    assert told == [(3, 0.5)]
    assert guest.call("paired", 1.5) == [3.0, 7]


def test_what_the_exports_return_comes_to_the_host() -> None:
    """Exports of every signature in turn, and one twice, in one call of the host."""
    seen: list[Any] = []

    def ask(value: int) -> Any:
        seen.append((yield "double", (value,)))
        seen.append((yield "nothing", ()))
        seen.append((yield "swap", (-1, 2.5)))
        seen.append((yield "half", (3.0,)))
        seen.append((yield "double", (-(2**62),)))
        return 7

    guest = Guest(ASKS, FUNCTIONS, [ask, ask, ask])
    assert guest.call("run", 21) == 1007
    assert seen == [42, None, (2.5, -1), 1.5, -(2**63)]
    assert not guest.under_way


def test_calls_within_calls() -> None:
    """Each level has its own values: nothing is kept in the trampoline."""

    def ask(value: int) -> Any:
        if value == 0:
            return 0
        inner = yield "again", (value,)
        outer = yield "double", (value,)
        return inner + outer

    guest = Guest(ASKS, FUNCTIONS, [ask, ask, ask])
    assert guest.call("run", 14) == 1000 + sum(2 * n for n in range(15))


def test_a_trap_goes_through() -> None:
    """It ends the call of the guest, too: the host can't catch it."""

    def ask(value: int) -> Any:
        yield "trap", ()

    guest = Guest(ASKS, FUNCTIONS, [ask, ask, ask])
    with pytest.raises(wasmtime.Trap, match="unreachable"):
        guest.call("run", 1)


def test_it_has_no_state() -> None:
    """No memory and no globals; the table has as many elements as there are signatures."""
    guest = Guest(ASKS, FUNCTIONS, [lambda *_: None] * 3)
    info = read_module(guest.made.wasm)
    assert not info.memories and not info.globals and not info.data_segments
    assert info.start is None
    (table,) = info.tables
    assert table.limits.minimum == table.limits.maximum == len(guest.made.arms) + 1 == 7
    assert len(set(guest.made.arms)) == 6


def test_values_that_cannot_cross_have_no_arm() -> None:
    """Such exports are left out; the others keep their places."""
    vector = FuncType(("v128",), ())
    made = trampoline([I64], {"v": vector, "f": I64, "r": FuncType((), ("externref",))})
    assert made.arms == (Arm(1, I64),)
    assert is_valid(made.wasm)


def test_a_module_that_exports_nothing() -> None:
    """There is nothing to ask for, so the host only answers."""
    made = trampoline([I64], {})
    assert made.arms == () and made.returned == ()
    assert is_valid(made.wasm)


def test_limits_of_what_a_hostile_module_costs() -> None:
    """Signatures beyond them have no arm; what is made is valid, and small."""
    many = [FuncType(("i32",) * n, ("i64",)) for n in range(400)]
    arms = arms_of(many)
    assert len(arms) <= ARMS_LIMIT
    assert sum(len(one.params) + len(one.results) for one in arms) <= VALUES_LIMIT
    returns = [FuncType((), ("i32",) * n) for n in range(100)]
    assert len(arms_of(returns)) == RETURNS_LIMIT
    # A signature that is known costs nothing, however many exports have it.
    assert arms_of([I64] * 50_000) == (I64,)
    # A huge one leaves what comes after it its place.
    huge = [FuncType(("i64",) * 1000, ("i64",) * n) for n in range(1, 20)]
    assert I64 in arms_of([*huge, I64])
    made = trampoline(
        [FuncType(("i32",) * n, ("i32",) * (n % 7)) for n in range(40)],
        {str(number): one for number, one in enumerate([*many, *returns, *huge])},
    )
    assert is_valid(made.wasm)
    assert len(made.wasm) < 200_000


def test_a_function_with_too_many_results() -> None:
    """There would be no place for one more."""
    with pytest.raises(ValueError, match="fewer than 1000 results"):
        trampoline([FuncType((), ("i32",) * VALUE_LIMIT)], {})
    made = trampoline([FuncType((), ("i32",) * (VALUE_LIMIT - 1))], {"f": I64})
    assert is_valid(made.wasm)


signatures = st.builds(
    FuncType,
    st.lists(st.sampled_from(NUMBER_TYPES), max_size=5).map(tuple),
    st.lists(st.sampled_from(NUMBER_TYPES), max_size=3).map(tuple),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(signatures, min_size=1, max_size=4), st.lists(signatures, max_size=12), st.data())
def test_any_signatures(
    functions: list[FuncType], exports: list[FuncType], data: st.DataObject
) -> None:
    """Every export is called from every function, with its values, and gives them back in order."""

    def text(types: Sequence[str], word: str) -> str:
        return f"({word} {' '.join(types)})" if types else ""

    def fits(types: Sequence[str]) -> tuple[Any, ...]:
        return tuple(
            data.draw(st.integers(-(2**31), 2**31 - 1))
            if name[0] == "i"
            else float(data.draw(st.integers(-1000, 1000)))
            for name in types
        )

    lines = [
        f'(import "env" "{n}" (func $i{n} {text(one.params, "param")} '
        f"{text(one.results, 'result')}))"
        for n, one in enumerate(functions)
    ]
    for n, one in enumerate(functions):
        gets = " ".join(f"(local.get {at})" for at in range(len(one.params)))
        lines.append(
            f'(func (export "f{n}") {text(one.params, "param")} {text(one.results, "result")} '
            f"(call $i{n} {gets}))"
        )
    # An export keeps what it gets in globals of its own, and returns constants.
    returns = [fits(one.results) for one in exports]
    for n, one in enumerate(exports):
        body = ""
        for at, name in enumerate(one.params):
            lines.append(f'(global $g{n}_{at} (export "g{n}.{at}") (mut {name}) ({name}.const 0))')
            body += f"(global.set $g{n}_{at} (local.get {at})) "
        for name, value in zip(one.results, returns[n], strict=True):
            body += f"({name}.const {value}) "
        lines.append(
            f'(func (export "e{n}") {text(one.params, "param")} {text(one.results, "result")} '
            f"{body})"
        )
    given_values = [fits(one.params) for one in exports]
    asked: list[Any] = []

    def host(answer: tuple[Any, ...]) -> Callable[..., Any]:
        def steps(*values: Any) -> Any:
            asked.append(values)
            for n, one in enumerate(exports):
                result = yield f"e{n}", given_values[n]
                wanted = returns[n]
                assert result == (wanted[0] if len(wanted) == 1 else wanted or None)
                for at in range(len(one.params)):
                    assert guest.exports[f"g{n}.{at}"].value(guest.store) == given_values[n][at]
            return answer

        return steps

    answers = [fits(one.results) for one in functions]
    hosts = [host(answer) for answer in answers]
    guest = Guest(f"(module {' '.join(lines)})", functions, hosts)
    for n, one in enumerate(functions):
        values = fits(one.params)
        result = guest.call(f"f{n}", *values)
        assert asked.pop() == values
        wanted = answers[n]
        assert result == (wanted[0] if len(wanted) == 1 else list(wanted) if wanted else None)
