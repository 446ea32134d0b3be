"""What can be kept of a guest that is prepared, what is refused, and what it composes with."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
from engine.support import quiet_cache, wat
from kits import CALLED_BACK, ListLogger, open_real_cache

from trio_wasmcache import (
    BufferAbi,
    CacheConfig,
    ExitError,
    ExportError,
    HostFunction,
    HostGlobal,
    HostMemory,
    HostTable,
    LoadError,
    Prepare,
    SignatureError,
    TrapError,
    Wasi,
    current_lease,
    open_cache,
)
from trio_wasmcache._runtime.prepare import UnknownValueError, digest_of

UDFS = Path(__file__).parents[1] / "udfs"
ISOLATIONS = ("reuse", "reset", "fresh")
P1 = "wasi_snapshot_preview1"
DRAWING = f"""(module
  (import "{P1}" "random_get" (func $random (param i32 i32) (result i32)))
  (import "{P1}" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "{P1}" "fd_close" (func $close (param i32) (result i32)))
  (import "{P1}" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "draw") (drop (call $random (i32.const 8) (i32.const 8))))
  (func (export "time") (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 16))))
  (func (export "close") (drop (call $close (i32.const 1))))
  (func (export "exit") (call $exit (i32.const 0)))
  (func (export "get") (param i32) (result i64) (i64.load (local.get 0))))"""
GET: Any = {"args": ("i32",), "returns": "i64", "export": "get"}


@pytest.mark.parametrize(
    ("export", "words", "wasi"),
    [
        ("draw", r"call 1 of prepare, draw\(\), .* random bytes.*Wasi\(random", Wasi(random=1)),
        ("time", r"call 1 of prepare, time\(\), .* a clock.*Wasi\(clock", Wasi(clock=1)),
    ],
)
async def test_chance_and_time_are_frozen_only_on_demand(
    export: str, words: str, wasi: Wasi
) -> None:
    """They would be the same in every instance: given by `Wasi`, or accepted, they may be."""
    wasm = wat(DRAWING)
    at = 8 if export == "draw" else 16
    async with quiet_cache() as cache:
        with pytest.raises(LoadError, match=words):
            await cache.register("f", wasm, **GET, prepare=(Prepare(export),))
        fixed = await cache.register("f", wasm, **GET, prepare=(Prepare(export),), wasi=wasi)
        assert "frozen, and" not in fixed.isolation_verdict
        accepted = Prepare(export, allow_frozen_random=True)
        f = await cache.register("g", wasm, **GET, prepare=(accepted,), isolation="fresh")
        assert f.isolation_verdict.endswith(("random bytes", "a clock"))
        assert await f.call(at) == await f.call(at) != 0
        with pytest.raises(LoadError, match="call 2 of prepare"):
            await cache.register("h", wasm, **GET, prepare=(accepted, Prepare(export)))


@pytest.mark.parametrize(("export", "words"), [("close", "closes a standard"), ("exit", "exit")])
async def test_what_is_the_hosts_is_refused(export: str, words: str) -> None:
    """Streams that are closed, and an instance that has ended."""
    async with quiet_cache() as cache:
        with pytest.raises(LoadError, match=words) as caught:
            await cache.register("f", wat(DRAWING), **GET, prepare=(Prepare(export),))
        assert isinstance(caught.value.__cause__, ExitError) == (export == "exit")


@pytest.mark.parametrize(
    ("prepare", "error", "words"),
    [
        (Prepare("nothing"), ExportError, r"f\(i32\): call 1 of prepare: .* exports no 'nothing'"),
        (Prepare("get"), SignatureError, r"f\(i32\): call 1 of prepare is declared as \[\]"),
        (Prepare("get", (), ("i32",), "i64"), TypeError, r"call 1 of prepare, get\(\)"),
        (Prepare("get", (1 << 40,), ("i32",), "i64"), OverflowError, r"call 1 of prepare, get\("),
    ],
)
async def test_a_call_that_does_not_fit(
    prepare: Prepare, error: type[Exception], words: str
) -> None:
    """The error says which one it is."""
    async with quiet_cache() as cache:
        with pytest.raises(error, match=words):
            await cache.register("f", wat(DRAWING), **GET, prepare=(prepare,))
        assert cache.functions() == ()


@pytest.mark.parametrize("values", [(), ("a", "b")])
@pytest.mark.parametrize("abi", ["buffer", "scylla", None])
async def test_each_argument_of_a_call_needs_a_value(abi: Any, values: tuple[str, ...]) -> None:
    """Whatever the ABI: it is refused before anything is compiled."""
    async with quiet_cache() as cache:
        prepare = (Prepare("get", args=("text",), values=values),)
        words = r"f\(i32\): call 1 of prepare, get\(.*\), gives \d values for args \(text\): give"
        with pytest.raises(TypeError, match=words):
            await cache.register("f", b"no module", **GET, abi=abi, prepare=prepare)


def test_bad_parameters() -> None:
    """They are refused where they are given."""
    bad: Any
    for bad in ((1,), ("x", "values"), ("x", (), "i64"), ("x", (), (), 1), ("x", (), (), None, 1)):
        with pytest.raises(TypeError, match="Prepare: "):
            Prepare(*bad)
    with pytest.raises(TypeError, match="pure must be a bool"):
        HostFunction(print, (), (), pure="yes")  # type: ignore[arg-type]


def test_equal_values_have_equal_digests() -> None:
    """Of any of Python's types, in any process; others are not taken to be equal."""
    values: tuple[Any, ...]
    values = (1, True, 1.0, -0.0, 0.0, "1", b"1", None, (1,), [1], {1: 2}, {1}, frozenset({1}), "é")
    digests = [digest_of(value) for value in values]
    assert len(set(digests)) == len(values)
    assert digest_of({3, 1, 2}) == digest_of({2, 3, 1})
    assert digest_of("ab", "c") != digest_of("a", "bc")
    nested: list[Any] = []
    nested.append(nested)
    for value in (object(), nested):
        with pytest.raises(UnknownValueError):
            digest_of(value)


async def test_functions_with_equal_calls_share_a_module() -> None:
    """Also if they have other types, or if values are equal objects; other values are others."""
    wasm = wat(DRAWING)
    async with quiet_cache() as cache:
        for name, value in (("a", 8), ("b", 8), ("c", 9)):
            calls = (Prepare("get", [value], ["i32"], "i64"),)
            await cache.register(name, wasm, **GET, prepare=calls)
        calls = (Prepare("get", (8,), ("i32",), "i64"),)
        await cache.register("draw", wasm, args=(), prepare=calls)
        assert len(cache._compiler.modules) == 2


async def test_lines_and_offsets_are_those_of_the_bytes_given() -> None:
    """In errors of calls, and in the causes of errors of `register`."""
    wasm = (UDFS / "toolchains" / "clang-dwarf5.wasm").read_bytes()
    given: Any = {"args": ("i32", "i32"), "returns": "i32", "export": "half_of"}
    async with quiet_cache() as cache:
        plain = await cache.register("f", wasm, **given)
        with pytest.raises(TrapError) as expected:
            await plain.call(1, 0)
        ready = Prepare("half_of", (8, 2), ("i32", "i32"), "i32")
        f = await cache.register("g", wasm, **given, prepare=(ready,))
        with pytest.raises(TrapError) as caught:
            await f.call(1, 0)
        assert caught.value.frames == expected.value.frames
        assert caught.value.frames[0].line is not None
        with pytest.raises(LoadError) as failed:
            bad = Prepare("half_of", (8, 0), ("i32", "i32"), "i32")
            await cache.register("h", wasm, **given, prepare=(ready, bad))
        assert isinstance(failed.value.__cause__, TrapError)
        assert failed.value.__cause__.frames == expected.value.frames


async def test_the_last_words_of_a_call_are_in_its_error() -> None:
    """What it wrote before it trapped."""
    wasm = wat(
        f"""(module (import "{P1}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1) (data (i32.const 8) "\\10\\00\\00\\00\\07\\00\\00\\00no luck")
        (func (export "init") (drop (call $write (i32.const 2) (i32.const 8) (i32.const 1)
          (i32.const 100))) (unreachable))
        (func (export "get") (param i32) (result i64) (i64.const 0)))"""
    )
    async with quiet_cache() as cache:
        with pytest.raises(LoadError, match="no luck") as caught:
            await cache.register("f", wasm, **GET, prepare=(Prepare("init"),))
        assert caught.value.output == "no luck\n"


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_given_memory_table_and_global(isolation: Any) -> None:
    """What each instance gets of its own in place of imports begins prepared, too."""
    wasm = wat(
        """(module (import "env" "memory" (memory 1)) (import "env" "t" (table 2 funcref))
        (import "env" "g" (global $g (mut i32))) (type $t (func (result i32)))
        (elem declare func $one)
        (func $one (result i32) (i32.const 100))
        (func (export "init") (table.set (i32.const 1) (ref.func $one))
          (global.set $g (i32.add (global.get $g) (i32.const 20)))
          (i32.store (i32.const 4) (i32.const 3)))
        (func (export "f") (result i32)
          (i32.add (call_indirect (type $t) (i32.const 1))
            (i32.add (global.get $g) (i32.load (i32.const 4))))))"""
    )
    imports = {"env": {"memory": HostMemory(), "t": HostTable(), "g": HostGlobal("i32", 1000)}}
    async with quiet_cache() as cache:
        f = await cache.register(
            "f",
            wasm,
            args=(),
            returns="i32",
            imports=imports,
            isolation=isolation,
            prepare=(Prepare("init"),),
        )
        assert [await f.call(), await f.call()] == [1123, 1123]
        async with f.acquire() as lease:
            assert lease.memory.read(4, 4) == b"\3\0\0\0"


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_reentrant_host_functions(isolation: Any) -> None:
    """They work in the calls of `prepare`, if they are pure, and afterwards."""

    async def ask(value: int) -> int:
        return int(await current_lease().invoke("double", value)) + 1

    wasm = wat(
        f"""(module (import "host" "ask" (func $ask (param i64) (result i64)))
        (memory (export "memory") 1) {CALLED_BACK}
        (func (export "run") (param i64) (result i64) (local $old i64)
          (local.set $old (i64.load (i32.const 0)))
          (i64.store (i32.const 0) (call $ask (local.get 0)))
          (i64.add (local.get $old) (i64.load (i32.const 0)))))"""
    )
    host = HostFunction(ask, ("i64",), ("i64",), reentrant=True, pure=True)
    async with open_real_cache() as cache:
        f = await cache.register(
            "f",
            wasm,
            args=("i64",),
            returns="i64",
            export="run",
            imports={"host": {"ask": host}},
            isolation=isolation,
            prepare=(Prepare("run", (10,), ("i64",), "i64"),),
        )
        assert await f.call(1) == 21 + 3
        assert await f.call(1) == (3 + 3 if isolation == "reuse" else 21 + 3)


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_batches(isolation: Any) -> None:
    """They begin with what was prepared, and are put back to it."""
    wasm = wat(
        """(module (global $n (mut i64) (i64.const 0))
        (func (export "add") (param i64) (result i64)
          (global.set $n (i64.add (global.get $n) (local.get 0))) (global.get $n)))"""
    )
    async with quiet_cache() as cache:
        f = await cache.register(
            "add",
            wasm,
            args=("i64",),
            returns="i64",
            isolation=isolation,
            prepare=(Prepare("add", (100,), ("i64",), "i64"),),
        )
        found = []
        for _ in range(2):
            async with f.acquire() as lease:
                found.append(list(await lease.map([array("q", [1, 2])])))  # type: ignore[call-overload]
        assert found == [[101, 103], [104, 106] if isolation == "reuse" else [101, 103]]


async def test_assemblyscript() -> None:
    """Text crosses in the calls, and the guest's garbage collector goes on with its heap."""
    async with quiet_cache() as cache:
        f: Any = await cache.register(
            "shout",
            UDFS / "assemblyscript" / "incremental.wasm",
            args=("str",),
            returns="str",
            isolation="reset",
            prepare=(Prepare("repeat", ("ab", 500), ("str", "i32"), "str"),) * 3,
        )
        for _ in range(50):
            assert await f.call("hello") == "HELLO!"


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_extism(isolation: Any) -> None:
    """The kernel's blocks and variables are a part of what is kept."""
    quiet = {
        "extism:host/user": {
            "lookup": HostFunction(lambda key: "", ("str",), ("str",)),
            "add": HostFunction(lambda a, b: a + b, ("i64", "i64"), ("i64",)),
            "note": HostFunction(lambda line, number: None, ("str", "i32"), ()),
        }
    }
    given: Any = {"args": ("bytes",), "returns": "bytes", "abi": "extism", "imports": quiet}
    wasm = (UDFS / "extism" / "c.wasm").read_bytes()
    async with quiet_cache() as cache:
        plain: Any = await cache.register("count_vowels", wasm, **given, isolation="fresh")
        async with plain.acquire() as lease:
            expected = [await lease.call(b"axe") for _ in range(4)]
        f: Any = await cache.register(
            "counts",
            wasm,
            **given,
            export="count_vowels",
            isolation=isolation,
            prepare=(Prepare("count_vowels", (b"axe",), ("bytes",), "bytes"),) * 2,
        )
        for _ in range(1 if isolation == "reuse" else 2):
            async with f.acquire() as lease:
                assert [await lease.call(b"axe") for _ in range(2)] == expected[2:]


async def test_what_an_abi_keeps_about_an_instance_is_kept() -> None:
    """A reset goes back to it: memory that was grown for arguments is not grown again."""
    wasm = wat(
        """(module (memory (export "memory") 1)
        (func (export "f") (param i32 i32) (result i32) (memory.size)))"""
    )
    async with quiet_cache() as cache:
        given: Any = {"args": ("str",), "returns": "i32", "abi": BufferAbi(alloc=None)}
        call = Prepare("f", ("x" * 100,), ("str",), "i32")
        f = await cache.register("f", wasm, **given, isolation="reset", prepare=(call,))
        sizes = [await f.call("x" * 50) for _ in range(5)]
        assert sizes == [2] * 5
        assert cache.stats().misses == 1


async def test_on_disk(tmp_path: Path) -> None:
    """The next process makes no call, unless anything that decides what they do is another."""
    wasm = wat(DRAWING)
    folder = tmp_path / "cache"

    async def stored(**more: Any) -> bool:
        logger = ListLogger()
        async with open_cache(CacheConfig(cache_dir=folder), logger=logger) as cache:
            given = {"prepare": (Prepare("draw"),), "wasi": Wasi(random=7), **GET, **more}
            f = await cache.register("f", wasm, **given)
            first = await f.call(8)
            assert first == 0 or first == await f.call(8)
        (event,) = logger.fields("prepared")
        return bool(event["stored"])

    assert not await stored()
    assert await stored()
    assert await stored(isolation="reset")
    for other in (
        {"wasi": Wasi(random=8)},
        {"prepare": (Prepare("draw"), Prepare("draw"))},
        {"imports": {"env": {"h": HostFunction(print, (), (), pure=True)}}},
    ):
        assert [await stored(**other) for _ in range(2)] == [False, True]
    for never in (
        {"wasi": Wasi(random=7, env={"KEY": "secret"})},
        {"wasi": Wasi(random=7, stdin=b"secret")},
        {"wasi": Wasi(random=7, clock=lambda: 1.0)},
        {"wasi": Wasi(random=7, stdout=lambda stream, line: None)},
    ):
        assert [await stored(**never) for _ in range(2)] == [False, False]
    # A file that was damaged is not believed.
    for file in (folder / "states").iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert [await stored() for _ in range(2)] == [False, True]


async def test_nothing_is_on_disk_if_a_host_function_was_called(tmp_path: Path) -> None:
    """Its code may be another one the next time."""
    wasm = wat(
        """(module (import "host" "ask" (func $ask (result i64))) (memory (export "memory") 1)
        (func (export "init") (i64.store (i32.const 0) (call $ask)))
        (func (export "get") (param i32) (result i64) (i64.load (local.get 0))))"""
    )
    for answer in (1, 2):
        host = HostFunction(lambda answer=answer: answer, (), ("i64",), pure=True)
        async with quiet_cache(cache_dir=tmp_path / "cache") as cache:
            f = await cache.register(
                "f", wasm, **GET, prepare=(Prepare("init"),), imports={"host": {"ask": host}}
            )
            assert await f.call(0) == answer


async def test_references_to_anything_of_the_hosts_are_refused() -> None:
    """And values of exceptions: the message says where they are."""
    module = """(module (table 1 exnref) (func (export "init"))
        (func (export "get") (param i32) (result i64) (i64.const 0)))"""
    async with quiet_cache() as cache:
        with pytest.raises(LoadError, match="table 0 is of type exnref"):
            await cache.register("f", wat(module), **GET, prepare=(Prepare("init"),))


FILLING = """(module (memory (export "memory") 1)
  (func (export "fill") (param i32) (local $i i32)
    (drop (memory.grow (i32.shr_u (local.get 0) (i32.const 16))))
    (loop (i32.store (local.get $i) (i32.mul (local.get $i) (i32.const 0x9E3779B1)))
      (local.set $i (i32.add (local.get $i) (i32.const 4)))
      (br_if 0 (i32.lt_u (local.get $i) (local.get 0)))))
  (func (export "get") (param i32) (result i64) (i64.load (local.get 0))))"""


async def test_limits_of_what_is_prepared() -> None:
    """`memory_limit` and `max_instance_size` hold for it, `max_wasm_size` does not."""
    wasm = wat(FILLING)
    fill = Prepare("fill", (1_000_000,), ("i32",))
    limits = {"max_wasm_size": len(wasm), "max_instance_size": 500_000}
    async with quiet_cache(**limits) as cache:
        f = await cache.register("f", wasm, **GET, prepare=(fill,))
        assert "never kept" in f.cache_verdict
        assert f.code_size > 900_000
        assert await f.call(500_000) != 0
        assert cache.stats().idle_instances == 0
    async with quiet_cache(memory_limit=500_000) as cache:
        with pytest.raises(LoadError, match=r"call 1 of prepare, fill.*memory_limit = 500000"):
            await cache.register("f", wasm, **GET, prepare=(fill,))


@pytest.mark.parametrize("isolation", ISOLATIONS)
async def test_what_was_written_is_not_kept_twice(isolation: Any) -> None:
    """Once it is in the code, the cache has nothing of it, in parts of graphs either."""
    fill = Prepare("fill", (1_000_000,), ("i32",))
    async with quiet_cache() as cache:
        await cache.register("f", wat(FILLING), **GET, prepare=(fill,), isolation=isolation)
        (module,) = cache._compiler.modules.values()
        assert module.prepared is not None
        assert module.prepared.size > 900_000
        assert not module.prepared.states
        assert [edits.state for _, edits in module.artifact.modules] == [None]
