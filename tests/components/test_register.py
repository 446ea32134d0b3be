"""Components as `register` and `register_component` take them: types, names, refusals, facts."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
import wasmtime
from components.samples import FUNCS, PURE
from counting import uncollected
from engine.support import quiet_cache
from kits import ListLogger, open_real_cache

from trio_wasmcache import (
    CacheConfig,
    Case,
    DuplicateFunctionError,
    ExportError,
    FuelExhaustedError,
    InstanceCache,
    InvalidModuleError,
    LoadError,
    ModuleTooLargeError,
    Prepare,
    SignatureError,
    TrapError,
    WitError,
    aio,
    blocking,
    open_cache,
)
from trio_wasmcache.testing import check_invariants

CORE = """
  (core module $m
    (memory (export "memory") 1)
    (global $count (mut i32) (i32.const 0))
    (func (export "add") (param i64 i64) (result i64) (i64.add (local.get 0) (local.get 1)))
    (func (export "count") (result i32)
      (global.set $count (i32.add (global.get $count) (i32.const 1))) (global.get $count))
    (func (export "trap") unreachable)
    (func (export "check") (param i32) (result i32) (local.get 0))
    (func (export "or-else") (param i32 i32 i32) (result i32)
      (select (local.get 1) (local.get 2) (local.get 0)))
    (func (export "handle") (param i32)))
  (core instance $i (instantiate $m))
"""


def lifted(name: str, type_: str) -> str:
    return (
        f'(alias core export $i "{name}" (core func ${name}-core)) '
        f"(func ${name} {type_} (canon lift (core func ${name}-core)))"
    )


TYPES: Mapping[str, str] = {
    "add": '(param "a" s64) (param "b" s64) (result s64)',
    "count": "(result u32)",
    "trap": "",
    "check": '(param "fails" bool) (result (result))',
    "or-else": '(param "a" (option u32)) (param "b" u32) (result u32)',
}
SMALL = f"""(component {CORE} {" ".join(lifted(*one) for one in TYPES.items())}
  (instance $first (export "add" (func $add)) (export "count" (func $count)))
  (instance $second (export "add" (func $add)) (export "or-else" (func $or-else)))
  (export "demo:small/first@0.2.1" (instance $first))
  (export "demo:small/second@1.4.0" (instance $second))
  (export "trap" (func $trap))
  (export "check" (func $check))
)"""


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


async def test_a_whole_life(log: ListLogger) -> None:
    """Types come from the component, in keys, facts and log; nothing else has to be said."""
    async with open_cache(CacheConfig(log_uses=True), logger=log) as cache:
        area = await cache.register("area", PURE)
        assert (area.name, area.args, area.returns) == ("area", ("shape",), "f64")
        assert area.wit == "area: func(of: shape) -> f64"
        assert area.module_digest == hashlib.sha256(PURE.read_bytes()).hexdigest()
        assert str(area.key) == "area(shape)"
        assert await area.call(Case("circle", 2.0)) == 12.0
        async with cache.acquire("area") as lease:
            assert await lease.call(Case("nothing")) == 0.0
            assert lease.fuel_consumed
        async with cache.acquire("area", ("shape",)) as lease:
            assert await lease.call(Case("rectangle", (2.0, 3.0))) == 6.0
        assert cache.stats().calls == 3
        cache.remove("area")
    (registered,) = log.fields("registered")
    assert (registered["function"], registered["arg_types"]) == ("area", "shape")
    assert [one["arg_types"] for one in log.fields("acquired")] == ["shape"] * 3


@pytest.mark.parametrize(
    "export", [None, "add", "funcs#add", f"{FUNCS}#add", "demo:udf/funcs@0.1.7#add"]
)
async def test_an_export_by_any_part_of_its_name(export: str | None) -> None:
    async with quiet_cache() as cache:
        add = await cache.register("add", PURE, export=export)
        assert await add.call(20, 22) == 42


async def test_text_and_bytes_are_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "small.wat"
    path.write_text(SMALL)
    async with quiet_cache() as cache:
        for number, wasm in enumerate((SMALL, wat(SMALL), path)):
            check = await cache.register(f"check{number}", wasm, export="check")
            assert check.wit == "check: func(fails: bool) -> result"
        assert cache.stats().loaded_modules == 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (
            {"export": "add"},
            ExportError,
            "'add' may be demo:small/first@0.2.1#add or demo:small",
        ),
        ({"export": "ad"}, ExportError, "it exports no function 'ad', but demo:small/first@0.2"),
        ({"export": "ad"}, ExportError, "did you mean demo:small/first@0.2.1#add"),
        ({"export": "first@0.3#add"}, ExportError, "exports no function 'first@0.3#add'"),
        (
            {"export": "check", "args": ("i32",), "returns": "result"},
            SignatureError,
            'check: func(fails: bool) -> result: leave out args and returns, or give args=("bool"',
        ),
        ({"export": "check", "returns": None}, SignatureError, 'returns="result"'),
        ({"export": "trap", "returns": "u32"}, SignatureError, "args=(), returns=None"),
        ({"export": "check", "abi": "buffer"}, SignatureError, "leave out abi"),
        ({"export": "count", "prepare": (Prepare("cuont"),)}, ExportError, "'cuont'"),
        ({"export": "count", "prepare": (Prepare("or-else"),)}, SignatureError, "gives 0 values"),
    ],
)
async def test_what_is_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    """With what there is, and what to do; and nothing of it stays."""
    async with quiet_cache() as cache:
        with pytest.raises(error) as caught:
            await cache.register("f", wat(SMALL), **given)
        assert words in str(caught.value)
        assert cache.functions() == ()
        await cache.register("f", wat(SMALL), export="check")


async def test_types_that_are_given_must_agree() -> None:
    async with quiet_cache() as cache:
        move = await cache.register("move-by", PURE, args=("place", " F64 "), returns="place")
        assert move.args == ("place", "f64")
        assert await move.call((1.0, 2.0, "a"), 0.5) == (1.5, 2.5, "a")
        with pytest.raises(DuplicateFunctionError):
            await cache.register("move-by", PURE)
        again = await cache.register("move-by", PURE, replace=True)
        assert again.generation == 2


async def test_a_core_module_does_not_say_its_types() -> None:
    """Leaving them out is an error that says so."""
    core = '(module (func (export "f") (param i64) (result i64) local.get 0))'
    async with quiet_cache() as cache:
        with pytest.raises(TypeError, match=r"args was left out.* core module: give them"):
            await cache.register("f", core)
        with pytest.raises(TypeError, match="this is a core module: use register"):
            await cache.register_component(core)
        f = await cache.register("f", core, args=("i64",), returns="i64")
        assert f.wit is None
        assert await f.call(1) == 1


HANDLES = f"""(component {CORE}
  (alias core export $i "handle" (core func $handle-core))
  (type $r (resource (rep i32)))
  (export $re "file" (type $r))
  (func $handle (param "f" (own $re)) (canon lift (core func $handle-core)))
  (export "handle" (func $handle))
  {lifted("count", TYPES["count"])} (export "count" (func $count))
  (func $stream (param "s" (stream u8)) (canon lift (core func $handle-core)))
  (export "stream" (func $stream))
)"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("handle", "has a handle of the resource file in its parameter f, and resources in signat"),
        ("stream", "uses a stream, at offset 0x"),
    ],
)
async def test_a_function_that_can_not_be_used(name: str, words: str) -> None:
    """It is refused by name; the others of the component can be used."""
    async with quiet_cache() as cache:
        with pytest.raises(SignatureError) as caught:
            await cache.register(name, HANDLES)
        assert words in str(caught.value)
        (count,) = await cache.register_component(HANDLES)
        assert await count.call() == 1


async def test_an_error_says_why_no_function_is_left() -> None:
    """It has the first reasons, and where the others are."""
    handles = [f'(export "handle{number}" (func $handle))' for number in range(5)]
    text = HANDLES.replace('(export "handle" (func $handle))', " ".join(handles))
    text = text.replace('(export "count" (func $count))', "")
    async with quiet_cache() as cache:
        with pytest.raises(ExportError) as caught:
            await cache.register_component(text)
    message = str(caught.value)
    assert "no function that can be used: handle0 has a handle of the resource file in" in message
    assert "; handle2 has a " in message
    assert "handle3" not in message
    assert message.endswith("; `python -m trio_wasmcache inspect` says why of 3 more")


async def test_two_types_of_one_core_function() -> None:
    """The second one is left out, and register says why."""
    text = f"""(component {CORE} {lifted("count", TYPES["count"])} (export "count" (func $count))
      (func $other (result s32) (canon lift (core func $count-core)))
      (export "other" (func $other)))"""
    log = ListLogger()
    async with open_real_cache(logger=log) as cache:
        (count,) = await cache.register_component(text)
        assert count.name == "count"
        with pytest.raises(SignatureError, match="other is the same core function as another one"):
            await cache.register("other", text)
        await cache.register("again", text, export="count")
    first, second = log.fields("registered")
    assert first["left_out"].startswith("other is the same core function as another one, with")
    assert second["left_out"] is None


async def test_the_log_names_what_is_left_out() -> None:
    """Of the interface that was asked for, and in the event of its first function only."""
    functions = "".join(
        f"""(func $d{n} (result s32) (canon lift (core func $count-core)))
        (export "d{n}" (func $d{n}))"""
        for n in range(5)
    )
    text = f"""(component {CORE} {lifted("count", TYPES["count"])}
      (export "count" (func $count)) (export "twice" (func $count)) {functions})"""
    log = ListLogger()
    async with open_real_cache(logger=log) as cache:
        assert len(await cache.register_component(text)) == 2
    first, second = log.fields("registered")
    assert [part.split(" ")[0] for part in first["left_out"].split("; ")[:3]] == ["d0", "d1", "d2"]
    assert first["left_out"].endswith("; `python -m trio_wasmcache inspect` says why of 2 more")
    assert second["left_out"] is None


def many(count: int, *, texts: bool = False) -> bytes:
    """Return a component of many functions: of numbers, or with texts and a core function each."""
    if not texts:
        exports = (f'(export "f{number}" (func $count))' for number in range(count))
        return wat(f"(component {CORE} {lifted('count', TYPES['count'])} {' '.join(exports)})")
    alias = '(alias core export $i "{0}" (core {1} ${0}))'.format
    return wat(
        """(component (core module $m (memory (export "memory") 1)
          (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 0))"""
        + "".join(
            f'(func (export "c{number}") (param i32 i32) (result i32) (i32.const 0))'
            for number in range(count)
        )
        + f") (core instance $i (instantiate $m)) {alias('memory', 'memory')}"
        + alias("realloc", "func")
        + "".join(
            f"""{alias(f"c{number}", "func")} (func $f{number} (param "a" string) (result string)
              (canon lift (core func $c{number}) (memory $memory) (realloc $realloc)))
              (export "f{number}" (func $f{number}))"""
            for number in range(count)
        )
        + ")"
    )


class Steps(trio.abc.Instrument):
    """Counts the calls of Python functions in each step of the current task."""

    def __init__(self, at: Callable[[int], object] = lambda number: None) -> None:
        self.task, self.calls, self.at = trio.lowlevel.current_task(), [0], at

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.at(len(self.calls))
            self.calls.append(0)
            sys.setprofile(self._count)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            sys.setprofile(None)

    def _count(self, _frame: object, event: str, _value: object) -> None:
        self.calls[-1] += event == "call"


@pytest.mark.parametrize("texts", [False, True], ids=["numbers", "texts"])
async def test_the_work_for_many_functions(texts: bool) -> None:
    """It is linear, and made in pieces between which other tasks run."""
    found: dict[int, list[int]] = {}
    async with quiet_cache() as cache:
        for count in (60, 120):
            wasm = many(count, texts=texts)
            await cache.register_component(wasm, prefix=f"{count}.")
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            try:
                with uncollected():
                    functions = await cache.register_component(wasm, prefix=f"{count} again.")
            finally:
                trio.lowlevel.remove_instrument(steps)
            assert len(functions) == count
            found[count] = steps.calls
    few, more = found[60], found[120]
    assert sum(more) < 2.2 * sum(few)
    # Declarations, bindings and installing; three pieces of 20 more of each.
    assert len(more) >= len(few) + 9
    assert sum(sorted(more)[:-2]) > sum(more) / 4


async def test_cancelled_at_each_step() -> None:
    """Either all functions are registered or none, and the module is forgotten with the last."""
    wasm, registered = many(50), set[int]()
    async with quiet_cache() as cache:
        await cache.register("kept", wasm, export="f0")
        step = 0
        while True:
            step += 1
            with trio.CancelScope() as scope:

                def stop(number: int, at: int = step, scope: trio.CancelScope = scope) -> None:
                    if number == at:
                        scope.cancel()

                steps = Steps(stop)
                trio.lowlevel.add_instrument(steps)
                try:
                    await cache.register_component(wasm, prefix="all.")
                finally:
                    trio.lowlevel.remove_instrument(steps)
            names = [one.name for one in cache.functions() if one.name != "kept"]
            registered.add(len(names))
            for name in names:
                cache.remove(name)
            check_invariants(cache)
            if not scope.cancel_called:
                break
        assert step > 6
        assert registered == {0, 50}
        cache.remove("kept")
        assert cache.functions() == ()
        check_invariants(cache)


async def test_closed_while_functions_are_registered() -> None:
    wasm = many(60)
    closed = list[trio.ClosedResourceError]()

    async def register(cache: InstanceCache) -> None:
        try:
            await cache.register_component(wasm)
        except trio.ClosedResourceError as error:
            closed.append(error)

    async with trio.open_nursery() as nursery:
        async with quiet_cache() as cache:
            nursery.start_soon(register, cache)
            while not cache.functions():
                await trio.lowlevel.checkpoint()
            assert len(cache.functions()) < 60
    assert len(closed) == 1


async def test_damage_and_size_are_named() -> None:
    damaged = bytearray(wat(SMALL))
    damaged[8:8] = b"\x0d\0"
    async with quiet_cache(max_wasm_size=8192) as cache:
        with pytest.raises(InvalidModuleError, match=r"f: unknown section 13 of a comp.*0x9"):
            await cache.register("f", bytes(damaged))
        with pytest.raises(ModuleTooLargeError, match=r"the component has \d+ bytes without its"):
            await cache.register("f", PURE, export="add")


def exporting(names: Iterable[str], type_: str = TYPES["count"]) -> str:
    """A component that exports one function by each of the names."""
    exports = " ".join(f'(export "{name}" (func $count))' for name in names)
    return f"(component {CORE} {lifted('count', type_)} {exports})"


@pytest.mark.parametrize("name", [b"x\x7fyzz", b"xYzzz", b"x zzz", b"xyz--", b"-xyzz", b"]x[zz"])
async def test_a_damaged_name_is_refused_with_its_offset(name: bytes) -> None:
    """It may have come from anywhere, and is in messages, in keys and in the log."""
    wasm = wat(exporting(["vwxyz"]))
    assert wasm.count(b"vwxyz") == 1
    async with quiet_cache() as cache:
        with pytest.raises(InvalidModuleError, match=r" is no name of WIT, at offset 0x"):
            await cache.register_component(wasm.replace(b"vwxyz", name))
        (function,) = await cache.register_component(wasm)
        assert await function.call() == 1


LINKED = """(component
  (core module $a
    (table (export "t") 1 funcref) (memory (export "m") 1) (global (export "g") i64 (i64.const 0))
    (func (export "f")))
  (core instance $a (instantiate $a))
  (core module $b (import "a" {})
    (func (export "count") (result i32) (i32.const 1)))
  (core instance $b (instantiate $b (with "a" (instance $a))))
  (func (export "count") (result u32) (canon lift (core func $b "count"))))"""


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"t" (table 1 funcref)', '"t" (table 2 funcref)'),
        ('"t" (table 1 funcref)', '"t" (table 1 externref)'),
        ('"m" (memory 1)', '"m" (memory 2)'),
        ('"m" (memory 1)', '"m" (memory i64 1)'),
        ('"g" (global i64)', '"g" (global i32)'),
        ('"f" (func)', '"f" (func (param i32))'),
    ],
)
async def test_core_modules_that_do_not_fit_together_are_damage(right: str, wrong: str) -> None:
    async with quiet_cache() as cache:
        with pytest.raises(InvalidModuleError, match=r"import .*at offset 0x"):
            await cache.register("count", wat(LINKED.format(wrong)))
        function = await cache.register("count", LINKED.format(right))
        assert await function.call() == 1


async def test_a_damaged_header_is_named() -> None:
    """Only a core module is sent to `register`."""
    wasm = wat(SMALL)
    async with quiet_cache() as cache:
        for damaged in (b"\1" + wasm[1:], wasm[:6] + b"\7" + wasm[7:], wasm[1:], b""):
            with pytest.raises(InvalidModuleError, match="not a WebAssembly module but "):
                await cache.register_component(damaged)


async def test_a_name_that_no_function_of_the_cache_may_have() -> None:
    name = "a" * 257
    wasm = wat(exporting([name]))
    async with quiet_cache() as cache:
        with pytest.raises(ExportError, match="more than 256 characters: register"):
            await cache.register_component(wasm)
        assert await (await cache.register("f", wasm, export=name)).call() == 1


async def test_the_reason_why_no_function_can_be_used() -> None:
    wasm = exporting(["count"], '(param "s" (stream u8)) (result u32)')
    wasm = wasm.replace(
        '(func (export "count") (result', '(func (export "count") (param i32) (result'
    )
    async with quiet_cache() as cache:
        with pytest.raises(ExportError, match=r"used: count uses a stream, .*: build it for sync"):
            await cache.register_component(wasm)


async def test_many_functions_cost_as_much_each_as_few() -> None:
    """The event loop would stand still; and there is a limit to how many are registered at once."""

    async def calls_of(count: int) -> int:
        wasm = wat(exporting(f"e{number}" for number in range(count)))
        calls = 0

        def note(_frame: object, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event == "call"

        async with quiet_cache() as cache:
            with uncollected():
                sys.setprofile(note)
                try:
                    await cache.register_component(wasm)
                finally:
                    sys.setprofile(None)
        return calls

    few, some, many = [await calls_of(count) for count in (20, 60, 140)]
    assert many - some < 2.2 * (some - few)
    async with quiet_cache() as cache:
        with pytest.raises(ExportError, match="1001 functions, more than the 1000 that can be"):
            await cache.register_component(exporting(f"e{number}" for number in range(1001)))


async def test_all_functions_of_a_component_by_one_compile(log: ListLogger) -> None:
    async with open_cache(CacheConfig(), logger=log) as cache:
        functions = await cache.register_component(PURE, "demo:udf/funcs", "pure.")
        assert [one.name for one in functions][:2] == ["pure.add", "pure.upper"]
        assert cache.functions() == functions
        assert await functions[0].call(1, 2) == 3
        async with cache.acquire("pure.upper") as upper:
            assert await upper.call("abc") == "ABC"
    registered = log.fields("registered")
    assert len(registered) == len(functions) == 11
    assert len({one["module_number"] for one in registered}) == 1
    assert [one["compile_seconds"] > 0 for one in registered] == [True] + [False] * 10
    assert len(log.fields("loaded")) == 2


async def test_functions_of_one_interface() -> None:
    async with quiet_cache() as cache:
        functions = await cache.register_component(SMALL, "demo:small/second@1.0")
        assert [one.name for one in functions] == ["add", "or-else"]
        with pytest.raises(ExportError, match=r"no interface 'third', but demo:small/first@0"):
            await cache.register_component(SMALL, "third")


async def test_either_all_functions_are_registered_or_none() -> None:
    async with quiet_cache() as cache:
        with pytest.raises(DuplicateFunctionError) as caught:
            await cache.register_component(SMALL, replace=True)  # two interfaces have one
        assert str(caught.value) == (
            "register_component(): demo:small/first@0.2.1#add and demo:small/second@1.4.0#add have "
            "the same name and types: register one interface at a time, such as interface="
            "'demo:small/first@0.2.1', each with a prefix= of its own"
        )
        assert cache.functions() == ()
        or_else = await cache.register("or-else", SMALL)
        with pytest.raises(DuplicateFunctionError, match="or-else"):
            await cache.register_component(SMALL, "second")
        assert cache.functions() == (or_else,)
        await cache.register_component(SMALL, "second", replace=True)
        assert [one.name for one in cache.functions()] == ["or-else", "add"]


async def test_an_error_that_is_returned_costs_no_instance() -> None:
    """It is counted, and the lease goes on."""
    async with quiet_cache() as cache:
        check = await cache.register("check", SMALL)
        divide = await cache.register("divide", PURE)
        for function, bad, good, value in (
            (check, (True,), (False,), None),
            (divide, (7, 0), (7, 2), 3),
        ):
            async with function.acquire() as lease:
                for _ in range(2):
                    with pytest.raises(WitError) as caught:
                        await lease.call(*bad)
                    assert caught.value.function == function.name
                    assert await lease.call(*good) == value
        assert caught.value.value == "7 can't be divided by 0"
        stats = cache.stats()
        assert (stats.misses, stats.evictions["corrupted"]) == (2, 0)
        assert stats.errors == {"WitError": 4}
        async with divide.acquire() as lease:
            with pytest.raises(WitError) as caught:
                await lease.map([[1, 2, 3], [1, 0, 0]])
            assert caught.value.row == 1
            assert await lease.map([[6, 7, 8], [2, 0, 1]], on_error="null") == [3, None, 8]
            assert lease.row_error_count == 1
            failed = lease.row_errors[1]
            assert isinstance(failed, WitError)
            assert (failed.row, failed.value) == (1, "7 can't be divided by 0")
        assert cache.stats().misses == 2


async def test_an_option_takes_none_and_other_types_are_null() -> None:
    async with quiet_cache() as cache:
        or_else = await cache.register("or-else", SMALL)
        asked = await cache.register("asked", SMALL, export="or-else", called_on_null=True)
        async with or_else.acquire() as lease:
            assert await lease.call(1, 2) == 1
            assert await lease.call(None, 2) == 2
            assert await lease.call(None, None) is None
            assert await lease.map([[1, None, None], [4, 5, None]]) == [1, 5, None]
        with pytest.raises(TypeError):
            await asked.call(1, None)
        assert await asked.call(None, 2) == 2


async def test_frames_are_where_they_are_in_the_component() -> None:
    """Offsets count from the beginning of the component."""
    wasm = wat(SMALL)
    async with quiet_cache() as cache:
        trap = await cache.register("trap", wasm)
        with pytest.raises(TrapError) as caught:
            await trap.call()
    (frame,) = caught.value.frames
    assert frame.offset is not None
    assert wasm[frame.offset] == 0  # unreachable


@pytest.mark.parametrize(("isolation", "counts"), [("reuse", [1, 2]), ("fresh", [1, 1])])
async def test_isolation(isolation: Any, counts: list[int]) -> None:
    async with quiet_cache() as cache:
        count = await cache.register("count", SMALL, isolation=isolation)
        assert [await count.call(), await count.call()] == counts


async def test_reset_and_prepare() -> None:
    """Types of the calls of `prepare` are those of the component."""
    prepare = (Prepare("count"), Prepare("first#add", values=(1, 2)))
    async with quiet_cache() as cache:
        count = await cache.register("count", SMALL, isolation="reset", prepare=prepare)
        assert count.isolation_verdict.startswith("reset: ")
        assert [await count.call(), await count.call()] == [2, 2]
        assert cache.stats().misses == 1
        upper = await cache.register("upper", PURE, isolation="reset")
        assert upper.isolation_verdict.startswith("reset: ")
        assert [await upper.call("a"), await upper.call("b")] == ["A", "B"]


SHARED_TABLE = f"""(component
  (core module $first
    (type $get (func (result i32)))
    (table (export "table") 4 6 funcref)
    (func $ten (result i32) (i32.const 10))
    (elem (i32.const 0) $ten)
    (func (export "far") (result funcref) (ref.func $ten)))
  (core module $second
    (type $get (func (result i32)))
    (import "env" "table" (table 2 funcref))
    (func $twenty (result i32) (i32.const 20))
    (elem (i32.const 1) $twenty)
    (export "table" (table 0)))
  (core module $hidden
    (func $none (result i32) (i32.const -1))
    (func (export "none") (result funcref) (ref.func $none)) (elem declare func $none))
  (core module $third
    (type $get (func (result i32)))
    (import "first" "far" (func $far (result funcref)))
    (import "hidden" "none" (func $none (result funcref)))
    (import "second" "table" (table $table 2 funcref))
    (func $thirty (result i32) (i32.const 30))
    (func $started (result i32) (i32.const 40))
    (elem (table $table) (i32.const 2) func $thirty)
    (elem declare func $started)
    (func $start (table.set (i32.const 3) (ref.func $started)))
    (start $start)
    (func (export "get") (param i32) (result i32) (call_indirect (type $get) (local.get 0)))
    (func (export "turn")
      (table.set (i32.const 0) (table.get (i32.const 2)))
      (table.set (i32.const 2) (table.get (i32.const 1)))
      (table.set (i32.const 1) (ref.null func))
      (drop (table.grow (call $far) (i32.const 1))))
    (func (export "hide") (table.set (i32.const 1) (call $none))))
  (core instance $a (instantiate $first))
  (core instance $b (instantiate $second (with "env" (instance $a))))
  (core instance $c (instantiate $hidden))
  (core instance $i (instantiate $third
    (with "first" (instance $a)) (with "second" (instance $b)) (with "hidden" (instance $c))))
  {lifted("get", '(param "at" u32) (result s32)')}
  {lifted("turn", "")}
  {lifted("hide", "")}
  (export "get" (func $get)) (export "turn" (func $turn)) (export "hide" (func $hide)))"""


@pytest.mark.parametrize("isolation", ["reuse", "reset", "fresh"])
async def test_a_table_that_several_modules_fill_is_prepared(isolation: Any) -> None:
    """Each element is there, whoever put it there first, and whoever moved it."""
    wasm = bytes(wasmtime.wat2wasm(SHARED_TABLE))
    async with quiet_cache() as cache:
        plain = await cache.register("get", wasm)
        assert [await plain.call(at) for at in range(4)] == [10, 20, 30, 40]
        prepare = (Prepare("turn"),)
        get = await cache.register("get", wasm, prepare=prepare, isolation=isolation, replace=True)
        for _ in range(2):
            assert [await get.call(at) for at in (0, 2, 3, 4)] == [30, 20, 40, 10]
            with pytest.raises(TrapError, match="uninitialized element"):
                await get.call(1)
        with pytest.raises(LoadError, match="element 1 of its table 0 is a function of another"):
            await cache.register("get", wasm, prepare=(Prepare("hide"),), replace=True)


async def test_core_modules_that_do_not_fit_are_refused() -> None:
    """As bytes that are damaged, with the offset of the module that imports."""
    wasm = bytes(wasmtime.wat2wasm(SHARED_TABLE))
    table = b"\5table\1\x70"  # an import or a definition of one, of function references
    at = wasm.index(b"\5table\1\x70\0\2")
    wide = bytearray(wasm)
    wide[at + len(table)] = 4  # an index of 64 bits
    large = bytearray(wasm)
    large[at + len(table) + 1] = 9
    async with quiet_cache() as cache:
        for damaged in (wide, large):
            with pytest.raises(InvalidModuleError, match=r"import 'env' 'table', at offset"):
                await cache.register("get", bytes(damaged))


async def test_fuel_and_cancellation() -> None:
    """A component's function is stopped like any other."""
    async with quiet_cache(total_fuel=1_000_000_000_000) as cache:
        spin = await cache.register("spin", PURE)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def stop() -> None:
                    while not cache.stats().running_instances:
                        await trio.lowlevel.checkpoint()
                    for _ in range(5):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()

                await spin.call(2**63)
        assert scope.cancelled_caught
        assert cache.stats().evictions["corrupted"] == 1
        assert await spin.call(1000) == 1000
    async with quiet_cache(total_fuel=10_000) as cache:
        spin = await cache.register("spin", PURE)
        with pytest.raises(FuelExhaustedError):
            await spin.call(2**63)


def test_the_blocking_face() -> None:
    with blocking.open_cache() as cache:
        upper = cache.register("upper", PURE)
        assert upper.call("abc") == "ABC"
        functions = cache.register_component(PURE, "funcs", "all.")
        assert functions[0].call(1, 2) == 3
        assert functions[0].function.wit == "add: func(a: s64, b: s64) -> s64"


async def from_asyncio() -> None:
    async with aio.open_cache() as cache:
        upper = await cache.register("upper", PURE)
        assert await upper.call("abc") == "ABC"
        functions = await cache.register_component(PURE, "funcs", "all.")
        assert await functions[0].call(1, 2) == 3


def test_the_asyncio_face() -> None:
    asyncio.run(from_asyncio())


async def test_a_call_that_takes_a_detour_keeps_nothing() -> None:
    """An error that is raised again and again would keep the frames, with all that is in them."""
    async with open_real_cache() as cache:
        total = await cache.register("total", PURE, export=f"{FUNCS}#total")
        async with total.acquire() as lease:
            with pytest.raises(TypeError):
                await lease.call(["no number"])
            kept = weakref.ref(lease)
        cache.remove("total")
        del lease
        gc.collect()
        assert kept() is None
