"""How wasmtime's instances are put back: compared, in full, with new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from attrs import evolve
from hypothesis import given, strategies as st
from runtime.isolation_guests import REACTOR, STARTER, binary

from trio_wasmcache._core.errors import LoadError
from trio_wasmcache._core.wasm.admission import WASI_MODULE, check_limits
from trio_wasmcache._core.wasm.reader import FuncType, ModuleInfo
from trio_wasmcache._engine.base import UNDER_WAY, Artifact, HostImport
from trio_wasmcache._engine.wasmtime import restore, restore_trial
from trio_wasmcache._engine.wasmtime.engine import WasmtimeEngine
from trio_wasmcache._engine.wasmtime.instance import WasmtimeInstance
from trio_wasmcache._engine.wasmtime.module import WasmtimeModule
from trio_wasmcache._engine.wasmtime.restore_trial import poll_to_the_end
from trio_wasmcache._runtime.wasi import FUNCTIONS

PAGE, FUEL = 65536, 10**9
KINDS = ("i32", "i64", "f32", "f64", "funcref")
GLOBALS = "".join(
    f"(global $g{n} (mut {kind}) ({'ref.null func' if kind == 'funcref' else f'{kind}.const {n}'}))"
    for n, kind in enumerate(KINDS)
)
# Everything can be written and read. Functions 0 to 2 give their number.
OPEN = binary(
    '(module (memory $m (export "memory") 3) (memory $n (export "second") 2)'
    ' (data (memory $m) (i32.const 1000) "some data") (data (memory $n) (i32.const 70000) "more")'
    " (type $f (func (result i32))) (table $t 8 funcref) (table $u 4 externref)"
    " (func $zero (type $f) (i32.const 0)) (func $one (type $f) (i32.const 1))"
    " (func $two (type $f) (i32.const 2)) (elem (table $t) (i32.const 0) func $zero $one $two $one)"
    f"{GLOBALS} (global $v (mut v128) (v128.const i32x4 1 2 3 4))"
    ' (func (export "poke") (param i32 i32) (i32.store8 $m (local.get 0) (local.get 1)))'
    ' (func (export "fill") (param i32 i32 i32)'
    "  (memory.fill $m (local.get 0) (local.get 1) (local.get 2)))"
    ' (func (export "poke_second") (param i32 i32) (i32.store8 $n (local.get 0) (local.get 1)))'
    ' (func (export "set") (param i32 i32) (table.set $t (local.get 0)'
    "  (if (result funcref) (local.get 1)"
    "   (then (table.get $t (i32.sub (local.get 1) (i32.const 1)))) (else (ref.null func)))))"
    ' (func (export "numbers") (param i32 i64 f32 f64 i32)'
    "  (global.set $g0 (local.get 0)) (global.set $g1 (local.get 1)) (global.set $g2 (local.get 2))"
    "  (global.set $g3 (local.get 3)) (global.set $g4 (table.get $t (local.get 4)))"
    "  (global.set $v (i64x2.splat (local.get 1))))"
    ' (func (export "see") (result i32 i64 f32 f64 i32 i64 i64)'
    "  (global.get $g0) (global.get $g1) (global.get $g2) (global.get $g3)"
    "  (ref.is_null (global.get $g4)) (i64x2.extract_lane 0 (global.get $v))"
    "  (i64x2.extract_lane 1 (global.get $v)))"
    ' (func (export "call") (param i32) (result i32)'
    "  (if (ref.is_null (table.get $t (local.get 0))) (then (return (i32.const -1))))"
    "  (call_indirect $t (type $f) (local.get 0))))"
)
ADDRESSES = st.integers(0, 2 * PAGE - 1)
BYTES = st.integers(0, 255)
WRITES = st.one_of(
    st.tuples(st.just("poke"), st.tuples(ADDRESSES, BYTES)),
    st.tuples(st.just("poke_second"), st.tuples(ADDRESSES, BYTES)),
    st.tuples(st.just("fill"), st.tuples(ADDRESSES, BYTES, st.integers(0, PAGE))),
    st.tuples(st.just("set"), st.tuples(st.integers(0, 7), st.integers(0, 8))),
    st.tuples(
        st.just("numbers"),
        st.tuples(
            st.integers(-(2**31), 2**31 - 1),
            st.integers(-(2**63), 2**63 - 1),
            st.floats(width=32, allow_nan=False),
            st.floats(allow_nan=False),
            st.integers(0, 7),
        ),
    ),
)


def wasi(*names: str) -> tuple[HostImport, ...]:
    """Imports of preview 1, as `register` gives them to the engine."""
    made = ((name, FUNCTIONS[name]) for name in names)
    return tuple(HostImport(WASI_MODULE, name, one.type, one.serve_alone) for name, one in made)


def admit(info: ModuleInfo) -> Any:
    return evolve(check_limits(info, "f", 64 * 1024 * 1024, 1000), reset=True)


@contextmanager
def proved(
    wasm: bytes, initialize: str | None = None, *hosts: HostImport
) -> Iterator[tuple[Artifact, Callable[[], WasmtimeInstance]]]:
    """An artifact after its trial, and a way to make marked instances of it."""
    engine = WasmtimeEngine(512 * 1024)
    made: list[WasmtimeInstance] = []
    starts = () if initialize is None else ((initialize, ()),)

    async def load() -> tuple[Artifact, WasmtimeModule]:
        artifact = await engine.prove(await engine.compile(wasm, admit), hosts, starts)
        return artifact, await engine.load(artifact, hosts)

    artifact, module = trio.run(load)

    def start() -> WasmtimeInstance:
        instance = module.instantiate(FUEL, FUEL)
        made.append(instance)
        assert instance.poll()
        instance.started()
        exported = None if initialize is None else instance.function(initialize)
        for function in filter(None, (instance.start_function(), exported)):
            if function.begin((), FUEL) is UNDER_WAY:
                poll_to_the_end(instance)
                function.finish()
        instance.mark()
        return instance

    try:
        yield artifact, start
    finally:
        for instance in made:
            instance.close()
        module.close()
        engine.close()


def state(instance: WasmtimeInstance) -> list[object]:
    """All that there is in an instance of `OPEN`."""
    seen: list[object] = []
    for name, _, size in instance.plan.memory_exports:
        memory = restore.native.memory_data(instance.context, instance.export(name))
        seen.append(restore.ctypes.string_at(memory, size))
    seen.append(instance.function("see").begin((), FUEL))
    return seen + [instance.function("call").begin((n,), FUEL) for n in range(8)]


def test_random_writes_are_gone() -> None:
    """Whatever a guest writes, in a few leases, each ends as a new instance begins."""
    with proved(OPEN) as (artifact, start):
        assert artifact.obstacle is None
        instance, wanted = start(), state(start())

        @given(st.lists(WRITES, max_size=8))
        def write(writes: list[tuple[str, tuple[Any, ...]]]) -> None:
            for name, values in writes:
                instance.function(name).begin(values, FUEL)
            assert instance.reset()
            assert state(instance) == wanted

        write()


def test_what_was_written_is_there_before() -> None:
    """The state that is compared tells writes from none: each kind of them shows."""
    with proved(OPEN) as (_, start):
        wanted = state(start())
        for name, values in (
            ("poke", (70000, 1)),
            ("poke_second", (9, 1)),
            ("fill", (0, 3, 10)),
            ("set", (7, 1)),
            ("set", (0, 0)),
            ("numbers", (0, 0, 0.0, 0.0, 1)),
        ):
            instance = start()
            instance.function(name).begin(values, FUEL)
            assert state(instance) != wanted
            assert instance.reset()
            assert state(instance) == wanted


@pytest.mark.parametrize(("wasm", "initialize"), [(STARTER, None), (REACTOR, "_initialize")])
def test_only_what_a_start_wrote_is_copied(wasm: bytes, initialize: str | None) -> None:
    """The rest comes from the image: patches are the pages that the trial found to differ."""
    with proved(wasm, initialize, *wasi("fd_close", "environ_sizes_get")) as (artifact, start):
        places = [at for at, _ in artifact.restore.patches[0]]
        at_rest = len(artifact.data) + len(artifact.restore.code)
        assert artifact.size == at_rest + 4096 * len(places)
        assert places == ([0, 36 * 4096] if wasm is STARTER else [0])
        instance = start()
        assert instance.memory is not None
        wanted = instance.memory.read(0, instance.memory.size)
        instance.memory.write(0, b"\xee" * instance.memory.size)
        assert instance.reset()
        assert instance.memory.read(0, instance.memory.size) == wanted


def test_data_that_wasmtime_makes_no_image_of_is_copied() -> None:
    """Segments far apart are copied in by wasmtime; what is dropped is zeros then."""
    wasm = binary(
        '(module (memory (export "memory") 400) (data (i32.const 0) "a")'
        ' (data (i32.const 26000000) "b") (func (export "run")))'
    )
    with proved(wasm) as (artifact, start):
        assert artifact.obstacle is None
        assert [at for at, _ in artifact.restore.patches[0]] == [0, 26000000 // 4096 * 4096]
        instance = start()
        assert instance.memory is not None
        instance.memory.write(0, b"xyz")
        instance.memory.write(26000000, b"xyz")
        assert instance.reset()
        assert instance.memory.read(0, 3) == b"a\0\0"
        assert instance.memory.read(26000000, 3) == b"b\0\0"


def start_of(body: str, more: str = "") -> bytes:
    return binary(
        f'(module {more} (memory (export "memory") 1) (table $t 1 funcref)'
        f' (func $begin {body}) (start $begin) (func (export "run")))'
    )


WASI = '(import "wasi_snapshot_preview1" "{}" (func $wasi (param {}) (result i32)))'
CLOCK = WASI.format("clock_time_get", "i32 i64 i32")
RANDOM = WASI.format("random_get", "i32 i32")
POLL = WASI.format("poll_oneoff", "i32 i32 i32 i32")
ASK = '(import "host" "ask" (func $ask (param i64) (result i64)))'


@pytest.mark.parametrize(
    ("wasm", "obstacle"),
    [
        (start_of("unreachable"), "its start failed when it was tried"),
        (start_of("(loop $l (br $l))"), "all fuel is burnt"),
        (start_of("(drop (memory.grow (i32.const 1)))"), "its start makes it grow"),
        (
            start_of("(drop (table.grow $t (ref.null func) (i32.const 1)))"),
            "its start makes it grow",
        ),
        (
            start_of("(drop (call $wasi (i32.const 0) (i64.const 0) (i32.const 64)))", CLOCK),
            "its start does not do the same each time",
        ),
        (
            start_of("(drop (call $wasi (i32.const 0) (i32.const 65536)))", RANDOM),
            "its start does not do the same each time",
        ),
        (
            start_of(
                "(i64.store (i32.const 24) (i64.const 1))"
                "(drop (call $wasi (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))",
                POLL,
            ),
            "its start waits in wasi_snapshot_preview1.poll_oneoff",
        ),
        (start_of("(drop (call $ask (i64.const 1)))", ASK), "its start calls host.ask"),
        (
            binary(
                '(module (memory (export "memory") 100) (func (export "run")) (func $begin'
                " (memory.fill (i32.const 0) (i32.const 1) (i32.const 300000))) (start $begin))"
            ),
            "303104 bytes would have to be copied",
        ),
        (
            binary('(module (memory (export "memory") 1024) (memory 1) (func (export "run")))'),
            "its memories have more than",
        ),
    ],
    ids=["trap", "endless", "memory", "table", "clock", "random", "poll", "host", "much", "large"],
)
def test_a_trial_that_finds_an_obstacle(
    wasm: bytes, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says which, and the code is that without a restorer."""
    monkeypatch.setattr(restore_trial, "TRIAL_FUEL", 3_000_000)
    ask = HostImport("host", "ask", FuncType(("i64",), ("i64",)))
    artifact, code_size = prove(wasm, ask, *wasi("clock_time_get", "poll_oneoff", "random_get"))
    assert artifact.obstacle is not None
    assert obstacle in artifact.obstacle
    assert artifact.restore is None
    assert artifact.code_size == code_size


def prove(wasm: bytes, *hosts: HostImport) -> tuple[Artifact, int]:
    engine = WasmtimeEngine(512 * 1024)

    def admit_more(info: ModuleInfo) -> Any:
        return evolve(check_limits(info, "f", 2**30, 1000), reset=True)

    async def both() -> tuple[Artifact, int]:
        artifact = await engine.compile(wasm, admit_more)
        return await engine.prove(artifact, hosts, ()), artifact.code_size

    try:
        return trio.run(both)
    finally:
        engine.close()


def test_a_system_that_can_not_drop_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then no module can be reset; and an instance that it fails for is not served again."""
    with proved(OPEN) as (_, start):
        instance = start()
        monkeypatch.setattr(restore, "_madvise", lambda *_: -1)
        assert not instance.reset()
    monkeypatch.setattr(restore, "_madvise", None)
    assert prove(OPEN)[0].obstacle == "memory can't be put back on this system"


def test_memory_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial notices: once as more to copy than is worth it, and once as never the same."""
    monkeypatch.setattr(restore, "_madvise", lambda *_: 0)
    assert "would have to be copied" in str(prove(OPEN)[0].obstacle)
    monkeypatch.setattr(restore_trial, "PATCH_SIZE", 2**30)
    assert prove(OPEN)[0].obstacle is None  # everything is copied, and it works
    monkeypatch.setattr(restore.Restoring, "reset", lambda _: True)
    assert prove(OPEN)[0].obstacle == "its memory does not stay put back"


def test_a_restorer_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves an instance that is not served again, and nothing under way."""
    with proved(OPEN) as (_, start):
        monkeypatch.setattr(restore, "RESTORER_FUEL", 0)
        instance = start()
        assert not instance.reset()
        assert not instance.future
    assert prove(OPEN)[0].obstacle == "the engine could not put it back"


def test_an_instance_that_can_not_be_made_for_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine has no room: then the function works as a fresh one, once it has."""

    def refuse(*_: object) -> None:
        raise LoadError("no room")

    monkeypatch.setattr(WasmtimeModule, "instantiate", refuse)
    assert prove(OPEN)[0].obstacle == "no room"


def test_no_room_for_a_restorer(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error when an instance is marked, which is a part of loading it."""
    with proved(OPEN) as (_, start):
        monkeypatch.setattr(WasmtimeInstance, "one_more_instance", lambda *_, **__: _nothing())
        with pytest.raises(LoadError, match="there is no room for a restorer"):
            start()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def test_an_instance_with_nothing_to_put_back_but_memory_has_no_restorer() -> None:
    """And one without a memory, either, is always as it began."""
    for text, size in (('(memory (export "memory") 1)', 2 * PAGE), ("", PAGE)):
        with proved(binary(f'(module {text} (func (export "run")))')) as (artifact, start):
            assert artifact.restore.restorer is None
            instance = start()
            assert instance.reset()
            assert instance.measure() == size
