"""Functions that components import, given as plain functions: values cross both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from components.samples import FOLDER, SPEAKING
from engine.support import quiet_cache

from trio_wasmcache import (
    AbiError,
    Case,
    Err,
    FuelExhaustedError,
    HostFunction,
    InvalidModuleError,
    LinkError,
    LoadError,
    Ok,
    Prepare,
    Some,
    TrapError,
    Wasi,
    WitError,
    current_lease,
)
from trio_wasmcache._core.wit.layout import lowered_signature
from trio_wasmcache._core.wit.types import (
    F32,
    S64,
    STRING,
    U8,
    U32,
    Enum,
    Flags,
    Function,
    List,
    Option,
    Record,
    Result,
    Tuple,
    Type,
    Variant,
)
from trio_wasmcache.testing import cancel_everywhere, check_invariants

ASKING = FOLDER / "asking.wasm"
STORE = "demo:udf/store@0.1.0"

MEMORY = """
  (core module $mem
    (memory (export "MEMORY") 2)
    (global $at (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32) BODY))
  (core instance $mem (instantiate $mem))
  (alias core export $mem "MEMORY" (core memory $memory))
  (alias core export $mem "realloc" (core func $realloc))
"""
BUMP = """
  (global.set $at (i32.and (i32.add (global.get $at) (i32.const 7)) (i32.const -8)))
  (global.get $at)
  (global.set $at (i32.add (global.get $at) (local.get 3)))
"""


def text_of(one: Type) -> str:
    """A type as text of a component, without names: nothing checks that they are there."""
    match one:
        case List():
            return f"(list {text_of(one.element)})"
        case Tuple():
            return f"(tuple {' '.join(map(text_of, one.items))})"
        case Option():
            return f"(option {text_of(one.some)})"
        case Result():
            ok = "" if one.ok is None else text_of(one.ok)
            return f"(result {ok} {'' if one.err is None else f'(error {text_of(one.err)})'})"
        case Record():
            fields = " ".join(f'(field "{name}" {text_of(kind)})' for name, kind in one.fields)
            return f"(record {fields})"
        case Variant():
            cases = " ".join(
                f'(case "{name}" {"" if kind is None else text_of(kind)})'
                for name, kind in one.cases
            )
            return f"(variant {cases})"
        case Enum():
            return f"(enum {' '.join(map(repr, one.cases))})".replace("'", '"')
        case Flags():
            return f"(flags {' '.join(map(repr, one.labels))})".replace("'", '"')
        case _:
            return one.name  # type: ignore[union-attr]


def relay(*params: Type, result: Type | None, body: str = BUMP, memory: str = "memory") -> str:
    """A component that passes its arguments on to ``demo:host/it@1.0.0`` ``f``, and its result."""
    function = Function(tuple((f"p{number}", one) for number, one in enumerate(params)), result)
    core = lowered_signature(function)
    spilled = core.returned is not None
    takes = core.params[:-1] if spilled else core.params
    gives = ("i32",) if spilled else core.results
    named = " ".join(f'(param "{name}" {text_of(one)})' for name, one in function.params)
    type_ = f"(func {named} {'' if result is None else f'(result {text_of(result)})'})"
    passed = " ".join(f"(local.get {number})" for number in range(len(takes)))
    call = f"(call $f {passed} {'(i32.const 512)' if spilled else ''})"
    return f"""(component
      (type $type {type_})
      (import "demo:host/it@1.0.0" (instance $host (export "f" (func (type $type)))))
      {MEMORY.replace("BODY", body).replace("MEMORY", memory)}
      (alias export $host "f" (func $f))
      (core func $low (canon lower (func $f) (memory $memory) (realloc $realloc)))
      (core module $main
        (import "h" "f" (func $f (param {" ".join(core.params)}) (result {" ".join(core.results)})))
        (func (export "f") (param {" ".join(takes)}) (result {" ".join(gives)})
          {call} {"(i32.const 512)" if spilled else ""}))
      (core instance $main (instantiate $main (with "h" (instance (export "f" (func $low))))))
      (alias core export $main "f" (core func $core))
      (func $g (type $type) (canon lift (core func $core) (memory $memory) (realloc $realloc)))
      (export "f" (func $g)))"""


POINT = Record((("x", S64), ("name", STRING)))
SHAPE = Variant((("circle", F32), ("named", STRING), ("none", None)))
RELAYED: list[tuple[Type, Any]] = [
    (S64, -(2**63)),
    (U32, 2**32 - 1),
    (F32, 0.5),
    (STRING, "grün"),
    (STRING, ""),
    (List(U8), b"\0\xff"),
    (List(S64), [1, -2, 3]),
    (List(STRING), ["a", "", "ccc"]),
    (List(List(STRING)), [["a"], [], ["b", "c"]]),
    (Tuple((U8, STRING, F32)), (1, "a", 2.5)),
    (POINT, (1, "a")),
    (List(POINT), [(1, "a"), (2, "b")]),
    (SHAPE, Case("named", "x")),
    (SHAPE, Case("circle", 1.5)),
    (SHAPE, Case("none")),
    (Option(STRING), None),
    (Option(Option(U8)), Some(None)),
    (Tuple((Result(STRING, U8),)), (Err(3),)),
    (Enum(("a", "b")), "b"),
    (Flags(("a", "b")), frozenset(("b",))),
    (Tuple((STRING,) * 9), tuple("abcdefghi")),
]


@pytest.mark.parametrize(("kind", "value"), RELAYED, ids=str)
async def test_values_cross_both_ways(kind: Type, value: Any) -> None:
    """The guest passes on what it gets, without looking at it, and so does the host."""
    seen: list[Any] = []

    async def f(given: Any) -> Any:
        seen.append(given)
        await trio.lowlevel.checkpoint()
        return given

    async with quiet_cache() as cache:
        imports: Any = {"demo:host/it@1.0.0": {"f": f}}
        function = await cache.register("f", relay(kind, result=kind), imports=imports)
        for _ in range(2):
            assert await function.call(value) == value
    assert seen == [value] * 2


async def test_many_arguments_are_spilled() -> None:
    kinds = (STRING,) * 9
    async with quiet_cache() as cache:
        imports: Any = {"it": {"f": lambda *given: "".join(given)}}
        join = await cache.register("f", relay(*kinds, result=STRING), imports=imports)
        assert await join.call(*"abcdefghi") == "abcdefghi"


@pytest.mark.parametrize("memory", ["memory", "another"])
async def test_a_memory_of_any_name(memory: str) -> None:
    async with quiet_cache() as cache:
        wasm = relay(STRING, result=STRING, memory=memory)
        f = await cache.register("f", wasm, imports={"it": {"f": str.upper}})
        assert await f.call("abc") == "ABC"


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (lambda: 3, 3),
        (lambda: Ok(3), 3),
        (lambda: Err("no"), "no"),
        (lambda: raises(WitError("no")), "no"),
    ],
)
async def test_a_result_may_be_bare_or_raised(answer: Callable[[], Any], given: Any) -> None:
    async def later() -> Any:
        await trio.lowlevel.checkpoint()
        return answer()

    for fn in (answer, later):
        async with quiet_cache() as cache:
            imports: Any = {"it": {"f": fn}}
            f = await cache.register("f", relay(result=Result(S64, STRING)), imports=imports)
            if given == 3:
                assert await f.call() == 3
                continue
            with pytest.raises(WitError) as caught:
                await f.call()
            assert caught.value.value == "no"
            assert caught.value.function == "f"
            assert cache.stats().evictions["corrupted"] == 0


def raises(error: Exception) -> Any:
    raise error


async def test_another_exception_ends_the_call_as_itself() -> None:
    error = KeyError("x")
    async with quiet_cache() as cache:
        imports: Any = {"it": {"f": lambda _: raises(error)}}
        f = await cache.register("f", relay(STRING, result=STRING), imports=imports)
        with pytest.raises(KeyError) as caught:
            await f.call("a")
        assert caught.value is error
        assert cache.stats().evictions["corrupted"] == 1
        imports = {"it": {"f": lambda _: raises(WitError("no result type"))}}
        g = await cache.register("g", relay(STRING, result=STRING), export="f", imports=imports)
        with pytest.raises(WitError, match="no result type"):
            await g.call("a")
        assert cache.stats().evictions["corrupted"] == 2  # the guest was in the middle of a call


@pytest.mark.parametrize(
    ("kind", "returned", "words"),
    [
        (STRING, 3, "host function demo:host/it@1.0.0#f must return string, as it is func() -> st"),
        (List(U8), "text", "must return list<u8>"),
        (U8, 256, "must return u8"),
        (None, 1, "must return None, returned 1"),
    ],
)
async def test_what_does_not_fit_is_the_applications_mistake(
    kind: Type | None, returned: Any, words: str
) -> None:
    async with quiet_cache() as cache:
        f = await cache.register("f", relay(result=kind), imports={"it": {"f": lambda: returned}})
        with pytest.raises((TypeError, ValueError, OverflowError)) as caught:
            await f.call()
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(i32.const -8)", "not inside its memory"),
        ("(i32.const 131072)", "not inside its memory"),
        ("(i32.const 1001)", "no multiple of 8"),
    ],
)
async def test_nonsense_of_the_guests_allocator(body: str, words: str) -> None:
    async with quiet_cache() as cache:
        wasm = relay(result=List(S64), body=body)
        f = await cache.register("f", wasm, imports={"it": {"f": lambda: [1, 2]}})
        with pytest.raises(AbiError, match=words):
            await f.call()
        trap = relay(result=STRING, body="unreachable")
        g = await cache.register("g", trap, export="f", imports={"it": {"f": lambda: "a"}})
        with pytest.raises(TrapError):
            await g.call()


async def test_a_guest_that_lies_about_its_arguments() -> None:
    """Lengths and addresses are checked, and how many values there are."""
    lying = relay(U32, U32, result=None).replace(
        '(export "f" (func (type $type)))', '(export "f" (func (param "a" (list (list u8)))))'
    )
    seen: list[Any] = []
    async with quiet_cache() as cache:
        f = await cache.register("f", lying, imports={"it": {"f": seen.append}})
        await f.call(0, 2)
        assert seen == [[b"", b""]]
        with pytest.raises(AbiError, match="which are not inside its memory"):
            await f.call(0, 2**20)
        with pytest.raises(AbiError, match="not a multiple of 4"):
            await f.call(2, 1)


async def test_a_real_component_asks_its_host() -> None:
    """In the task that called, with the lease at hand; cancelled with the call; in batches."""
    async with quiet_cache() as cache:

        async def get(key: str) -> str | None:
            assert current_lease().function.name == "look-up"
            if key == "wait":
                scope.cancel()
                await trio.sleep_forever()
            return {"a": "1", "c": "ü" * 5000}.get(key)

        imports: Any = {"demo:udf/store@0.1": {"get": get}}
        look_up = await cache.register("look-up", ASKING, imports=imports, isolation="reset")
        assert look_up.isolation_verdict.startswith("reset: ")
        assert await look_up.call("a") == "a is 1"
        assert await look_up.call("b") == "no b"
        async with look_up.acquire() as lease:
            assert await lease.map([["a", "b", "c"]]) == ["a is 1", "no b", f"c is {'ü' * 5000}"]
        with trio.CancelScope() as scope:
            await look_up.call("wait")
        assert scope.cancelled_caught
        assert cache.stats().evictions["corrupted"] == 1
        assert await look_up.call("a") == "a is 1"


async def test_what_is_not_given_is_named() -> None:
    async with quiet_cache() as cache:
        with pytest.raises(LinkError) as caught:
            await cache.register("look-up", ASKING)
        assert f'{STORE}#get: give imports={{"{STORE}": {{"get": function}}}}' in str(caught.value)
        wrong: Any = {"demo:udf/store@0.2.0": {"get": len}}
        with pytest.raises(LinkError):
            await cache.register("look-up", ASKING, imports=wrong)
        host: Any = {STORE: {"get": HostFunction(len, params=("i32",))}}
        with pytest.raises(TypeError, match="must be a function, as this is a component"):
            await cache.register("look-up", ASKING, imports=host)
        core = '(module (func (export "f")))'
        with pytest.raises(TypeError, match=r"imports\['a'\]\['b'\] must be a HostFunction"):
            await cache.register("f", core, args=(), imports={"a": {"b": len}})  # type: ignore[dict-item]
        number: Any = {STORE: {"get": 5}}
        with pytest.raises(TypeError, match="got 5; for a component, give the function itself"):
            await cache.register("look-up", ASKING, imports=number)
        look_up = await cache.register("look-up", ASKING, missing="trap")
        wit = r"get func\(key: string\) -> option<string>, which .* nobody provides"
        with pytest.raises(TrapError, match=wit):
            await look_up.call("a")


async def test_functions_with_equal_imports_share_a_module() -> None:
    async with quiet_cache() as cache:
        wasm = relay(STRING, result=STRING)
        for number, fn in enumerate((str.upper, str.upper, str.lower)):
            await cache.register(f"f{number}", wasm, export="f", imports={"it": {"f": fn}})
        for number, result in enumerate(("AB", "AB", "ab")):
            async with cache.acquire(f"f{number}") as lease:
                assert await lease.call("aB") == result
        assert cache.stats().loaded_modules == 2


async def test_a_host_function_can_not_be_called_by_a_preparation() -> None:
    async with quiet_cache() as cache:
        prepare = (Prepare("look-up", values=("a",)),)
        words = "called host function .*store@0.1.0#get.* can't be called while it is prepared"
        with pytest.raises(LoadError, match=words):
            await cache.register("look-up", ASKING, imports={STORE: {"get": str}}, prepare=prepare)


async def test_wasi_behind_the_adapter_grants_what_wasi_says() -> None:
    lines: list[tuple[str, str]] = []
    async with quiet_cache() as cache:
        wasi = Wasi(env={"A": "b"}, stdout=lambda stream, line: lines.append((stream, line)))
        speak = await cache.register("speak", SPEAKING, wasi=wasi)
        assert await speak.call("hello", "A") == "b"
        assert await speak.call("world", "B") is None
    assert lines == [("stdout", "hello"), ("stdout", "world")]


async def test_resources_of_an_interface_of_the_applications_are_refused() -> None:
    wasm = """(component
      (import "demo:host/it@1.0.0" (instance $host
        (export "r" (type $r (sub resource)))
        (export "f" (func (param "a" (own $r))))))
      (alias export $host "f" (func $f))
      (core func $low (canon lower (func $f)))
      (core module $main (import "h" "f" (func (param i32))) (func (export "g")))
      (core instance $main (instantiate $main (with "h" (instance (export "f" (func $low))))))
      (func $g (canon lift (core func $main "g")))
      (export "g" (func $g)))"""
    async with quiet_cache() as cache:
        with pytest.raises(LinkError, match=r"#f, which is func\(a: r\), and resources can't be"):
            await cache.register("g", wasm, imports={"it": {"f": len}})
        with pytest.raises(LinkError, match="nobody provides"):
            await cache.register("g", wasm)
        stream = wasm.replace("(own $r)", "(stream u8)")
        with pytest.raises(InvalidModuleError, match=r"the import .*#f with a stream, which is"):
            await cache.register("g", stream, imports={"it": {"f": len}})


async def test_cancelled_anywhere() -> None:
    """While it loads, in the host function, and in slices while the guest allocates and returns."""
    async with quiet_cache(yield_fuel=2000, offload_after=None, max_size=0) as cache:

        async def get(key: str) -> str:
            await trio.lowlevel.checkpoint()
            return key * 2000

        imports: Any = {STORE: {"get": get}}
        look_up = await cache.register("look-up", ASKING, imports=imports)

        async def scenario() -> None:
            assert len(await look_up.call("ab")) > 4000

        assert await cancel_everywhere(scenario, lambda: check_invariants(cache)) >= 8
        await scenario()


async def test_registering_is_cancelled_anywhere() -> None:
    """Nothing of it stays; all functions come at once."""
    async with quiet_cache() as cache:

        async def scenario() -> None:
            assert len(await cache.register_component(relay(S64, result=S64), imports=ADD)) == 1
            cache.remove("f")
            await cache.register("f", relay(S64, result=S64), imports=ADD)
            cache.remove("f")

        def check() -> None:
            check_invariants(cache)
            for one in cache.functions():
                cache.remove(one.name)

        assert await cancel_everywhere(scenario, check) >= 4


ADD: Any = {"it": {"f": lambda value: value + 1}}


async def test_slices_and_fuel_of_a_guest_that_allocates() -> None:
    """What the guest does for the host's result is a part of its call."""
    endless = "(loop $again (br $again)) (unreachable)"
    async with quiet_cache(total_fuel=100_000, yield_fuel=10_000) as cache:
        wasm = relay(result=STRING, body=endless)
        f = await cache.register("f", wasm, imports={"it": {"f": lambda: "abc"}})
        with pytest.raises(FuelExhaustedError):
            await f.call()
        assert cache.stats().evictions["corrupted"] == 1
