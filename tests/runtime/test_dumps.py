"""Core dumps of failed calls, read by a reader of the format."""

from __future__ import annotations

import gc
import os
import pickle
import stat
import struct
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import wasmtime
from attrs import Factory, define
from kits import FakeKit, add, open_real_cache

from trio_wasmcache import (
    CacheConfig,
    FuelExhaustedError,
    GuestError,
    HostFunction,
    TrapError,
    current_lease,
)
from trio_wasmcache._core import dumps
from trio_wasmcache._core.dumps import Dump, DumpBook
from trio_wasmcache._core.wasm.coredump import DumpedInstance, DumpedMemory

DUMPING = CacheConfig(keep_dumps=3)
# `inner` writes its argument far into its memory, and traps.
TRAPS = """(module
  (memory (export "memory") 2) (memory 1 5)
  (global (mut i64) (i64.const 5)) (global i32 (i32.const 7)) (global (mut f64) (f64.const 0.5))
  (global (mut funcref) (ref.func $inner))
  (data (i32.const 16) "known")
  (func $inner (param i64)
    (i64.store (i32.const 70000) (local.get 0))
    (i32.store8 1 (i32.const 9) (i32.const 77))
    (global.set 0 (i64.const -9))
    (drop (memory.grow 1 (i32.const 2)))
    unreachable)
  (func $outer (export "f") (param i64) (result i64)
    nop
    (call $inner (local.get 0))
    local.get 0))"""


class Frame(NamedTuple):
    instance: int
    function: int
    offset: int


@define
class Core:
    """What a core dump says."""

    name: str = ""
    thread: str = ""
    modules: list[str] = Factory(list)
    instances: list[tuple[int, list[int], list[int]]] = Factory(list)
    frames: list[Frame] = Factory(list)
    pages: list[int] = Factory(list)
    globals: list[tuple[int, bytes]] = Factory(list)
    """(value type, bytes of the constant expression)."""
    segments: list[tuple[int, int, bytes]] = Factory(list)
    """(memory, address, bytes)."""

    def memory(self, number: int, at: int, size: int) -> bytes:
        """Some bytes of a memory; what no segment has is zero."""
        found = bytearray(size)
        for memory, begin, data in self.segments:
            for place in range(size):
                if memory == number and 0 <= at + place - begin < len(data):
                    found[place] = data[at + place - begin]
        return bytes(found)


class Cursor:
    """Reads the binary format, by the specification."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        number = shift = 0
        while True:
            one = self.byte()
            number |= (one & 0x7F) << shift
            shift += 7
            if one < 0x80:
                return number

    def s64(self) -> int:
        begin, number = self.at, self.u32()
        bits = 7 * (self.at - begin)
        return number - (1 << bits) if number >> (bits - 1) else number

    def name(self) -> str:
        return self.take(self.u32()).decode()

    def none_left(self) -> None:
        assert self.at == len(self.data)


def read_core(data: bytes) -> Core:
    """Read a core dump, every byte of it."""
    wasmtime.Module.validate(engine(), data)
    core, cursor, seen = Core(), Cursor(data), []
    assert cursor.take(8) == b"\0asm\1\0\0\0"
    while cursor.at < len(data):
        kind = cursor.byte()
        body = Cursor(cursor.take(cursor.u32()))
        what = body.name() if kind == 0 else str(kind)
        assert what not in seen
        seen.append(what)
        read_section(core, what, body)
        body.none_left()
    assert {"core", "coremodules", "coreinstances", "corestack"} <= {*seen}
    return core


def engine() -> wasmtime.Engine:
    return wasmtime.Engine()


def read_section(core: Core, what: str, body: Cursor) -> None:
    if what == "core":
        assert body.byte() == 0
        core.name = body.name()
    elif what == "corestack":
        assert body.byte() == 0
        core.thread = body.name()
        for _ in range(body.u32()):
            assert body.byte() == 0
            core.frames.append(Frame(body.u32(), body.u32(), body.u32()))
            assert (body.u32(), body.u32()) == (0, 0)  # locals and the stack are not known
    elif what == "coremodules":
        for _ in range(body.u32()):
            assert body.byte() == 0
            core.modules.append(body.name())
    elif what == "coreinstances":
        for _ in range(body.u32()):
            assert body.byte() == 0
            memories = [body.u32(), [body.u32() for _ in range(body.u32())]]
            core.instances.append((*memories, [body.u32() for _ in range(body.u32())]))
    elif what == "5":
        for _ in range(body.u32()):
            assert body.byte() == 0
            core.pages.append(body.u32())
    elif what == "6":
        for _ in range(body.u32()):
            value_type, mutable = body.byte(), body.byte()
            assert mutable == 0
            begin = body.at
            opcode = body.byte()
            if opcode in (0x41, 0x42):
                body.s64()
            else:
                body.take({0x43: 4, 0x44: 8, 0xD0: 1}[opcode])
            core.globals.append((value_type, body.data[begin : body.at]))
            assert body.byte() == 0x0B
    else:
        assert what == "11"
        for _ in range(body.u32()):
            memory = body.u32() if body.byte() == 2 else 0
            assert body.byte() == 0x41
            address = body.s64() % 2**32
            assert body.byte() == 0x0B
            core.segments.append((memory, address, body.take(body.u32())))


async def failing(cache: Any, name: str, *values: object) -> GuestError:
    with pytest.raises(GuestError) as caught:
        async with cache.acquire(name) as lease:
            await lease.call(*values)
    return caught.value


@pytest.mark.parametrize("compiler", ["optimizing", "baseline"])
@pytest.mark.parametrize("isolation", ["reuse", "reset"])
async def test_what_a_dump_says(compiler: Any, isolation: Any, tmp_path: Path) -> None:
    """Memories as they were, all globals, and the frames by index and offset in their function."""
    path = tmp_path / "core"
    config = CacheConfig(keep_dumps=1, compiler=compiler)
    async with open_real_cache(config) as cache:
        await add(cache, "area", TRAPS, export="f", args=("i64",), isolation=isolation)
        error = await failing(cache, "area", 0x1122334455)
        error.dump(path)
    core = read_core(path.read_bytes())
    assert (core.name, core.thread, core.modules) == ("area", "main", ["area"])
    assert core.instances == [(0, [0, 1], [0, 1, 2, 3])]
    assert core.pages == [2, 3]
    assert core.memory(0, 16, 5) == b"known"
    assert core.memory(0, 70000, 8) == struct.pack("<q", 0x1122334455)
    assert core.memory(1, 9, 1) == b"M"
    assert core.globals == [
        (0x7E, b"\x42\x77"),
        (0x7F, b"\x41\x07"),
        (0x7C, b"\x44" + struct.pack("<d", 0.5)),
        (0x70, b"\xd0\x70"),
    ]
    assert [(it.instance, it.function) for it in core.frames] == [(0, 0), (0, 1)]
    # Each offset counts from the body's first byte: that of its locals.
    module = wasmtime.wat2wasm(TRAPS)
    assert error.frames[0].offset is not None
    assert error.frames[1].offset is not None
    assert error.frames[0].offset - core.frames[0].offset < error.frames[1].offset
    assert core.frames[1].offset == 1 + 1 + 2  # count of locals, nop, local.get
    assert module[error.frames[0].offset] == 0  # unreachable


async def test_a_graph_has_all_its_instances(tmp_path: Path) -> None:
    """Frames are those of the instance that they run in; generated modules are left out."""
    text = """(module (import "env" "ask" (func $ask)) (memory (export "memory") 1)
      (func (export "inner") (i32.store8 (i32.const 3) (i32.const 42)) unreachable)
      (func (export "f") (param i64) (result i64) (call $ask) (local.get 0)))"""

    async def ask() -> None:
        await current_lease().invoke("inner")

    async with open_real_cache(DUMPING) as cache:
        host = HostFunction(ask, (), (), reentrant=True)
        await add(cache, "f", text, export="f", args=("i64",), imports={"env": {"ask": host}})
        error = await failing(cache, "f", 1)
        error.dump(tmp_path / "core")
    core = read_core((tmp_path / "core").read_bytes())
    assert len(core.instances) == 1
    assert core.memory(core.instances[0][1][0], 3, 1) == b"*"
    assert [it.function for it in core.frames][:1] == [1]


async def test_a_batch_and_a_long_call(tmp_path: Path) -> None:
    """A batch that a row ends, and a call that burnt all of its fuel in a thread."""
    endless = """(module (memory (export "memory") 1) (func (export "f") (param i64) (result i64)
      (i64.store (i32.const 8) (local.get 0)) (loop (br 0)) (local.get 0)))"""
    config = CacheConfig(keep_dumps=3, total_fuel=400_000, yield_fuel=50_000, offload_after=1)
    async with open_real_cache(config) as cache:
        await add(cache, "f", TRAPS, export="f", args=("i64",))
        await add(cache, "endless", endless, export="f", args=("i64",))
        with pytest.raises(TrapError) as caught:
            async with cache.acquire("f") as lease:
                await lease.map([[1, 2]])
        caught.value.dump(tmp_path / "batch")
        error = await failing(cache, "endless", 77)
        assert isinstance(error, FuelExhaustedError)
        error.dump(tmp_path / "endless")
    assert read_core((tmp_path / "batch").read_bytes()).memory(0, 70000, 1) == b"\1"
    assert read_core((tmp_path / "endless").read_bytes()).memory(0, 8, 1) == b"M"


async def test_how_long_it_is_kept(fake: FakeKit, tmp_path: Path) -> None:
    """The last ones, while the cache is open, and not in another process; none by default."""
    path = tmp_path / "core"
    async with fake.open(CacheConfig(keep_dumps=2)) as cache:
        await add(cache, "bad", fake.trapping())
        errors = [await failing(cache, "bad", number) for number in range(3)]
        with pytest.raises(LookupError, match="keep_dumps=10"):
            errors[0].dump(path)
        with pytest.raises(LookupError):
            pickle.loads(pickle.dumps(errors[1])).dump(path)
        errors[1].dump(path)
        assert read_core(path.read_bytes()).name == "bad"
        size = len(pickle.dumps(errors[1]))
        assert size < 4096
    with pytest.raises(LookupError):
        errors[2].dump(tmp_path / "other")
    async with fake.open() as cache:
        await add(cache, "bad", fake.trapping())
        with pytest.raises(LookupError):
            (await failing(cache, "bad", 1)).dump(path)
    assert not (tmp_path / "other").exists()
    with pytest.raises(LookupError):
        TrapError("made by a test").dump(path)


async def test_the_file(fake: FakeKit, tmp_path: Path) -> None:
    """Only the user may read it; nothing is overwritten, and no link is followed."""
    async with fake.open(DUMPING) as cache:
        await add(cache, "bad", fake.trapping())
        error = await failing(cache, "bad", 1)
        path = tmp_path / "core"
        before = os.umask(0)
        try:
            error.dump(str(path))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for taken in (path, tmp_path / "link"):
            if taken != path:
                taken.symlink_to(tmp_path / "elsewhere")
            with pytest.raises(FileExistsError):
                error.dump(taken)
        assert not (tmp_path / "elsewhere").exists()
        with pytest.raises(FileNotFoundError):
            error.dump(tmp_path / "no" / "folder")


async def test_it_is_charged_to_the_group(tmp_path: Path) -> None:
    """What it costs to read the memory is on the account of the group whose call failed."""
    spent = []
    for config in (CacheConfig(), DUMPING):
        async with open_real_cache(config) as cache:
            await add(cache, "f", TRAPS, export="f", args=("i64",))
            error = await failing(cache, "f", 1)
            share = cache._groups.main.share
            spent.append(share.virtual_time * share.shares)
            del error
    assert spent[1] - spent[0] >= 5 * 65536 / 2


def dump_of(size: int) -> Dump:
    return Dump("f", (DumpedInstance("", memories=(DumpedMemory(1, ((0, bytes(size)),)),)),))


def is_kept(dump: Dump) -> bool:
    return dump.encode(()) is not None


def test_the_book_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by size, the oldest first; those of errors that are gone take no place."""
    monkeypatch.setattr(dumps, "MAX_SIZE", 100)
    book = DumpBook(3)
    made = [dump_of(30) for _ in range(3)]
    for one in made:
        book.add(one)
    assert [*map(is_kept, made)] == [True] * 3
    made.append(dump_of(90))
    book.add(made[-1])
    assert [*map(is_kept, made)] == [False, False, False, True]
    made = [dump_of(20) for _ in range(2)]
    book.add(made[0])
    book.add(made[1])
    del made[0]
    gc.collect()
    more = [dump_of(20) for _ in range(2)]
    for one in more:
        book.add(one)
    assert [*map(is_kept, made + more)] == [True] * 3
    book.close()
    assert [*map(is_kept, made + more)] == [False] * 3
    late = dump_of(1)
    book.add(late)
    assert not is_kept(late)


async def test_large_memories_are_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is beyond the limit is left out, as zeros."""
    monkeypatch.setattr("trio_wasmcache._runtime.bound.MAX_SIZE", 65536 + 10)
    async with open_real_cache(DUMPING) as cache:
        await add(cache, "f", TRAPS, export="f", args=("i64",))
        (await failing(cache, "f", 1)).dump(tmp_path / "core")
    core = read_core((tmp_path / "core").read_bytes())
    assert core.pages == [2, 3]
    assert core.memory(0, 16, 5) == b"known"
    assert core.memory(0, 70000, 8) == bytes(8)
