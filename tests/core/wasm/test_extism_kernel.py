"""Extism's kernel as a module by itself, run by wasmtime and compared with a model in Python."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import wasmtime
from attrs import define, field
from hypothesis import given, settings, strategies as st

from trio_wasmcache._core.config import WASM_PAGE
from trio_wasmcache._core.wasm.extism_kernel import (
    BLOCK,
    CALL_AT,
    FIRST,
    MAX_BLOCKS,
    NO_BLOCK,
    NO_HTTP,
    OFF,
    OUT_OF_MEMORY,
    OUTSIDE,
    TOO_MANY_BLOCKS,
    VAR_COST,
    VARS_FULL,
    VARS_LIMIT,
    BlockFunction,
    CallBooks,
    KernelSettings,
    block_size,
    kernel,
)
from trio_wasmcache._core.wasm.reader import read_module

CONFIG = wasmtime.Config()
CONFIG.wasm_multi_memory = True
ENGINE = wasmtime.Engine(CONFIG)
HUGE = (1 << 64) - 1
# Offsets and sizes that are at the edges of something.
EDGES = (0, 1, 7, 8, 15, FIRST, FIRST + 1, 0xFFFF, 0x10000, 1 << 32, (1 << 32) + FIRST, HUGE)


class Failed(Exception):
    """The kernel ended the call: (reason, number, number)."""


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@define(eq=False)
class Kernel:
    """An instance of the kernel in a store of its own, and a host that notes what it is told."""

    settings: KernelSettings = field(factory=KernelSettings)
    pages: int | None = None
    logged: list[tuple[int, bytes]] = field(factory=list)
    called: list[tuple[Any, ...]] = field(factory=list)
    answers: dict[int, tuple[Any, ...]] = field(factory=dict)
    """{function: its results}"""
    store: wasmtime.Store = field(factory=lambda: wasmtime.Store(ENGINE))
    _exports: Any = None
    _pending: tuple[Any, ...] = ()

    def __attrs_post_init__(self) -> None:
        wasm = kernel(self.settings)
        if self.pages is not None:
            self.store.set_limits(memory_size=self.pages * WASM_PAGE)
        module = wasmtime.Module(ENGINE, wasm)
        linker = wasmtime.Linker(ENGINE)
        for item in module.imports:
            name = item.name
            assert isinstance(name, str)
            linker.define_func("host", name, item.type, getattr(self, f"_{name}", self._call(name)))
        self._exports = linker.instantiate(self.store, module).exports(self.store)

    def _fail(self, reason: int, first: int, second: int) -> None:
        raise Failed(reason, first % (1 << 64), second % (1 << 64))

    def _log(self, level: int, at: int, size: int) -> None:
        self.logged.append((level, self.blocks(at, size)))

    def _deliver(self, which: int, at: int) -> None:
        memory = self._exports["memory"]
        memory.write(self.store, self._pending[which], at)

    def _call(self, name: str) -> Any:
        number = int(name.partition(":")[2] or -1)

        def call(*values: Any) -> Any:
            function, taken, rest = self.settings.functions[number], [], list(values)
            for kind in function.params:
                at = rest.pop(0)
                taken.append(self.blocks(at, rest.pop(0)) if kind == BLOCK else at)
            self.called.append((number, *taken))
            self._pending = self.answers[number]
            raw = [
                value if kind != BLOCK else -1 if value is None else len(value)
                for kind, value in zip(function.results, self._pending, strict=True)
            ]
            return None if not raw else raw[0] if len(raw) == 1 else raw

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *values: self.call(name, *values)

    def call(self, name: str, *values: int) -> Any:
        function = self._exports[name]
        wide = [kind == wasmtime.ValType.i64() for kind in function.type(self.store).params]
        fitting = [signed(v) if w else v for v, w in zip(values, wide, strict=True)]
        result = function(self.store, *fitting)
        if list(function.type(self.store).results) == [wasmtime.ValType.i64()]:
            return result % (1 << 64)
        return result

    def blocks(self, at: int, size: int) -> bytes:
        return bytes(self._exports["memory"].read(self.store, at, at + size))

    def books(self) -> CallBooks:
        data = self._exports["books"].read(self.store, CALL_AT, CALL_AT + CallBooks.SIZE)
        return CallBooks.read(data)

    def begin(self, data: bytes) -> None:
        """Begin a call as the host does."""
        memory = self._exports["memory"]
        missing = FIRST + block_size(len(data)) - memory.data_len(self.store)
        if missing > 0:
            memory.grow(self.store, -(-missing // WASM_PAGE))
        memory.write(self.store, data, FIRST)
        self._exports["books"].write(self.store, CallBooks.begin(len(data)), CALL_AT)

    def alloc_many(self, count: int, *, free: bool = False) -> None:
        """Allocate blocks of a byte, in wasm; free each, if so wanted, before the next."""
        wasm = wasmtime.Module(
            ENGINE,
            f"""(module (import "" "" (func $alloc (param i64) (result i64)))
            (import "" "" (func $free (param i64)))
            (func (export "many") (param i32)
              (loop $again
                (call $alloc (i64.const 1))
                {"(call $free)" if free else "(drop)"}
                (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))))""",
        )
        many: Any = wasmtime.Instance(
            self.store, wasm, [self._exports["alloc"], self._exports["free"]]
        )
        many.exports(self.store)["many"](self.store, count)

    def put(self, data: bytes) -> int:
        at: int = self.alloc(len(data))
        for number, byte in enumerate(data[:8]):
            self.store_u8(at + number, byte)
        self._exports["memory"].write(self.store, data[8:], at + 8)  # the same, in less time
        return at

    def get(self, at: int) -> bytes:
        size: int = self.length(at)
        found = self.blocks(at, size)
        assert found[:8] == bytes(self.load_u8(at + number) for number in range(min(size, 8)))
        return found

    def output(self) -> bytes:
        books = self.books()
        return self.blocks(books.output, books.output_size)


def test_whole_life() -> None:
    """A call reads its input, allocates, reports an output and an error; the next begins anew."""
    one = Kernel()
    one.begin(b"hello world")
    assert one.input_length() == 11
    assert one.length(one.input_offset()) == 11
    assert one.input_load_u64(0).to_bytes(8, "little") == b"hello wo"
    assert bytes(map(one.input_load_u8, range(8, 11))) == b"rld"
    at = one.put(b"HELLO")
    assert one.get(at) == b"HELLO"
    one.output_set(at, 5)
    assert one.output() == b"HELLO"
    assert (one.output_offset(), one.output_length()) == (at, 5)
    error = one.put(b"not today")
    one.error_set(error)
    assert one.error_get() == error
    assert one.blocks(one.books().error, one.books().error_size) == b"not today"
    one.begin(b"")
    assert one.books() == CallBooks(0, 0, 0, 0)
    assert (one.input_length(), one.input_offset()) == (0, 0)
    again = one.alloc(8)
    assert one.load_u64(again) == 0
    assert one.length(error) == 0


def test_input_of_other_sizes() -> None:
    """Reading beyond the input gives 0, at any offset, and the input can be given as the output."""
    one = Kernel()
    for size in (0, 1, 7, 8, 9, 16, WASM_PAGE, 3 * WASM_PAGE):
        data = bytes(number % 251 + 1 for number in range(size))
        one.begin(data)
        assert one.input_length() == size
        for at in {0, size - 9, size - 8, size - 7, size - 1, size, size + 1, *EDGES} - {
            -9,
            -8,
            -7,
        }:
            at %= 1 << 64
            whole = data[at : at + 8] if at + 8 <= size else bytes(8)  # as with Extism
            assert one.input_load_u64(at) == int.from_bytes(whole, "little")
            assert one.input_load_u8(at) == (data[at] if at < size else 0)
        one.output_set(one.input_offset(), size)
        assert one.output() == data


def test_freed_blocks() -> None:
    """A block that is freed twice, or is none, is left alone; a freed input has no length."""
    one = Kernel()
    one.begin(b"input")
    at, other = one.put(b"one"), one.put(b"other")
    for wrong in (at + 1, at - 1, at + 8, HUGE, 1 << 32, at + (1 << 32), 0):
        one.free(wrong)
        assert one.length(wrong) == (5 if wrong == other else 0) or wrong == other
    assert one.get(at) == b"one"
    one.free(at)
    one.free(at)
    assert (one.length(at), one.length_unsafe(at)) == (0, 0)
    assert one.blocks(at, 3) == b"one"
    new = one.alloc(3)
    assert new not in (at, other)
    one.free(one.input_offset())
    assert one.input_length() == 0
    assert one.input_load_u8(0) == 0


def test_output_outlives_its_block() -> None:
    """Blocks that are freed after they became the output are not used again."""
    one = Kernel(pages=1)
    one.begin(b"")
    at = one.put(b"result")
    one.output_set(at, 6)
    one.free(at)
    with pytest.raises(Failed):
        while True:
            one.alloc(6)
    assert one.output() == b"result"


def test_memory_is_used_again_before_it_grows() -> None:
    """What was freed is used again once the memory is full; only then does it grow."""
    one = Kernel()
    one.begin(b"")
    freed = []
    while one.memory_bytes() == WASM_PAGE and len(freed) < 1000:
        freed.append(one.alloc(1000))
        one.free(freed[-1])
    assert len(freed) == 1000
    assert len(set(freed)) == WASM_PAGE // 1000
    one.alloc(5000)
    assert one.memory_bytes() == 2 * WASM_PAGE


@pytest.mark.parametrize("wrong", [HUGE, 1 << 63, 1 << 32, 0xFFFE0001, 3 * WASM_PAGE])
def test_out_of_memory(wrong: int) -> None:
    """A block that the memory has no space for ends the call, and names its size."""
    one = Kernel(pages=2)
    one.begin(b"x")
    with pytest.raises(Failed) as failed:
        one.alloc(wrong)
    assert failed.value.args == (OUT_OF_MEMORY, wrong, WASM_PAGE)


def test_too_many_blocks() -> None:
    """The table of blocks grows, and has a limit of its own."""
    one = Kernel(KernelSettings(config=((b"k", b"config"),), vars=((b"k", b"var"),)))
    one.begin(b"")
    for number in range(1, 400):
        assert one.alloc(1) == FIRST + 8 * (number - 1)
    assert one.get(one.config_get(one.put(b"k"))) == b"config"
    assert one.get(one.var_get(one.put(b"k"))) == b"var"
    with pytest.raises(Failed) as failed:
        one.alloc_many(MAX_BLOCKS)
    assert failed.value.args == (TOO_MANY_BLOCKS, MAX_BLOCKS, 0)
    one.begin(b"")
    assert one.get(one.config_get(one.put(b"k"))) == b"config"
    assert one.get(one.var_get(one.put(b"k"))) == b"var"


def test_freed_blocks_make_space_in_the_table() -> None:
    """Those that are freed are used again once the table is full, even if the memory is not."""
    one = Kernel()
    one.begin(bytes(16 * WASM_PAGE))
    one.begin(b"")  # the memory stays large
    one.alloc_many(2 * MAX_BLOCKS, free=True)
    assert one.memory_bytes() == 17 * WASM_PAGE


def test_output_outside() -> None:
    """An output that is not inside a block ends the call; one of no bytes is empty."""
    one = Kernel()
    one.begin(b"12345678")
    at = one.put(b"abcdefgh")
    one.output_set(at + 2, 6)
    assert one.output() == b"cdefgh"
    for place, size in (
        (at, 9),
        (at + 1, 8),
        (at + 8, 1),
        (FIRST - 1, 1),
        (FIRST, 9),
        (at, HUGE),
        (at, HUGE - at + 1),
        (at, 1 << 32),
        (HUGE, 1),
        (at + (1 << 32), 1),
    ):
        with pytest.raises(Failed) as failed:
            one.output_set(place, size)
        assert failed.value.args == (OUTSIDE, place, size)
    assert one.output() == b"cdefgh"
    one.output_set(at, 0)
    assert one.output() == b""


@pytest.mark.parametrize(("place", "size"), [(0, 0), (0, 5), (0, HUGE), (HUGE, 0), (8, 0)])
def test_output_at_no_place(place: int, size: int) -> None:
    """An output at offset 0, or one of no bytes outside of all blocks, is none: the last stays."""
    one = Kernel()
    one.begin(b"")
    one.output_set(one.put(b"output"), 6)
    one.output_set(place, size)
    assert one.output() == b"output"


def test_words_across_the_end_of_blocks() -> None:
    """A word that begins in the last block and ends behind it is read and written in part."""
    one = Kernel()
    one.begin(b"12345678")
    at = one.put(b"abcdefghABCDEFGH")
    for number in range(24):
        assert (
            one.load_u64(at + number).to_bytes(8, "little")
            == (b"abcdefghABCDEFGH" + bytes(16))[number : number + 8]
        )
    one.store_u64(at + 13, int.from_bytes(b"xyz?????", "little"))
    one.store_u64(at + 16, HUGE)
    assert one.get(at) == b"abcdefghABCDExyz"
    assert one.get(one.alloc(8)) == bytes(8)
    one.reset()
    assert [one.load_u64(place) for place in range(FIRST + 16)] == [0] * (FIRST + 16)


def test_books_are_out_of_reach() -> None:
    """Stores everywhere change nothing that the kernel knows."""
    one = Kernel(KernelSettings(config=((b"k", b"value"),), vars=((b"k", b"var"),)))
    one.begin(b"data")
    at = one.alloc(4)
    for place in (*EDGES, at, at + 1, at + 7, at + 8, WASM_PAGE - 8, WASM_PAGE - 1):
        one.store_u64(place, HUGE)
        one.store_u8(place, 255)
    assert (one.length(at), one.length(one.input_offset())) == (4, 4)
    assert (one.load_u64(0), one.load_u64(8)) == (0, 0)
    assert one.alloc(1) == at + 8
    assert one.blocks(at + 8, 1) == b"\0"
    assert one.get(one.config_get(one.put(b"k"))) == b"value"
    assert one.get(one.var_get(one.put(b"k"))) == b"var"


def test_error_of_no_block() -> None:
    """An error without a text, or one that is freed, is no error; 0 takes it back."""
    one = Kernel()
    one.begin(b"")
    at = one.put(b"bad")
    for last in (0, at + 1, HUGE):
        one.error_set(at)
        assert one.books().error_size == 3
        one.error_set(last)
        assert one.books().error_size == 0
    one.error_set(at)
    one.free(at)
    assert (one.error_get(), one.books().error_size) == (0, 0)


def test_reset() -> None:
    """A plugin that resets the kernel has no blocks and no output any more, but its variables."""
    one = Kernel(KernelSettings(vars=((b"k", b"var"),)))
    one.begin(b"input")
    one.output_set(one.put(b"out"), 3)
    one.reset()
    assert one.books() == CallBooks(0, 0, 0, 0)
    assert (one.input_length(), one.length(FIRST), one.load_u8(FIRST)) == (0, 0, 0)
    assert one.get(one.var_get(one.put(b"k"))) == b"var"


def test_input_set() -> None:
    """A plugin that sets its own input can do so inside a block."""
    one = Kernel()
    one.begin(b"")
    at = one.put(b"abc")
    one.input_set(at, 1 << 40)
    assert one.input_length() == 0
    one.input_set(at + 1, 2)
    assert (one.input_load_u8(0), one.input_length()) == (ord("b"), 2)


def test_config() -> None:
    """The config is found by key; other keys, and empty values, give no block."""
    items = {f"key {number}".encode(): str(number).encode() * 50 for number in range(2000)}
    one = Kernel(KernelSettings(config=((b"empty", b""), *items.items())))
    one.begin(b"")
    for key in (b"key 0", b"key 1999", b"key 77"):
        handle = one.put(key)
        assert one.get(one.config_get(handle)) == items[key]
        assert one.length(handle) == 0
    for key in (b"key", b"key 2000", b"empty", b"Key 1", b""):
        assert one.config_get(one.put(key)) == 0


def test_empty_names() -> None:
    """Offset 0 is a block of no bytes: a key of no characters, or an empty line."""
    one = Kernel(KernelSettings(config=((b"a", b"1"), (b"", b"config")), log_level=0))
    one.begin(b"")
    assert one.get(one.config_get(0)) == b"config"
    assert one.var_get(0) == 0
    one.var_set(0, one.put(b"value"))
    assert one.get(one.var_get(0)) == b"value"
    one.var_set(0, 0)
    assert one.var_get(0) == 0
    one.log_warn(0)
    assert one.logged == [(3, b"")]


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("config_get", (5,), 0),
        ("config_get", (FIRST + 1,), 0),
        ("var_get", (HUGE,), 1),
        ("var_set", (7, 0), 1),
        ("var_set", (FIRST, 9), 2),
        ("http_request", (1, 0), 3),
    ],
)
def test_no_block(name: str, values: tuple[int, ...], what: int) -> None:
    """Functions that take a block end the call if it is none."""
    one = Kernel(KernelSettings(log_level=0))
    one.begin(b"x")
    with pytest.raises(Failed) as failed:
        one.call(name, *values)
    assert failed.value.args == (NO_BLOCK, what, values[1 if what == 2 else 0])


def test_vars() -> None:
    """Variables are set, replaced, removed, and stay from call to call."""
    one = Kernel(KernelSettings(config=((b"a", b"config"),), vars=((b"a", b"1"), (b"b", b"22"))))

    def var(key: bytes) -> bytes | None:
        one.begin(b"")
        at = one.var_get(one.put(key))
        return one.get(at) if at else None

    def put(key: bytes, value: bytes | None) -> None:
        one.begin(b"")
        one.var_set(one.put(key), 0 if value is None else one.put(value))

    assert (var(b"a"), var(b"b"), var(b"c")) == (b"1", b"22", None)
    put(b"c", b"333")
    put(b"a", b"longer than before")
    put(b"b", None)
    put(b"none", None)
    assert (var(b"a"), var(b"b"), var(b"c")) == (b"longer than before", None, b"333")
    assert one.get(one.config_get(one.put(b"a"))) == b"config"
    large = bytes(range(256)) * 1000
    put(b"c", large)
    put(b"d", large)
    assert (var(b"a"), var(b"d")) == (b"longer than before", large)
    put(b"c", None)
    assert (var(b"a"), var(b"d")) == (b"longer than before", large)


def test_vars_full() -> None:
    """All variables together have a limit, counted as Extism does; removing one helps."""
    one = Kernel(KernelSettings(vars=((b"k", b"v" * 40),)))
    one.begin(b"")
    left = VARS_LIMIT - 2 * VAR_COST - 41
    value = one.alloc(left)  # one more than fits beside the key
    with pytest.raises(Failed) as failed:
        one.var_set(one.put(b"x"), value)
    assert failed.value.args == (VARS_FULL, VAR_COST + 41, VAR_COST + 1 + left)
    one.begin(b"")
    one.var_set(one.put(b"k"), 0)
    one.var_set(one.put(b"x"), one.alloc(left))
    assert one.length(one.var_get(one.put(b"x"))) == left


def test_log() -> None:
    """Lines of the level or above reach the host; all of them are freed."""
    one = Kernel(KernelSettings(log_level=2))
    one.begin(b"")
    assert one.get_log_level() == 2
    for name in ("trace", "debug", "info", "warn", "error"):
        at = one.put(name.encode())
        one.call(f"log_{name}", at)
        assert one.length(at) == 0
    assert one.logged == [(2, b"info"), (3, b"warn"), (4, b"error")]
    for name in ("debug", "info"):  # no block is no line, and ends no call, whatever the level
        at = one.put(b"twice")
        for place in (at, at, 3, HUGE):
            one.call(f"log_{name}", place)
    assert one.logged[3:] == [(2, b"twice")]
    assert Kernel().get_log_level() == OFF


def test_http() -> None:
    """Without a host function, a request ends the call; with one, its results are kept."""
    one = Kernel()
    one.begin(b"")
    request = one.put(b'{"url": "x"}')
    with pytest.raises(Failed) as failed:
        one.http_request(request, 0)
    assert failed.value.args == (NO_HTTP, request, 12)
    assert (one.http_status_code(), one.http_headers()) == (0, 0)

    for results, headers in (
        ((BLOCK,), None),
        ((BLOCK, "i32"), None),
        ((BLOCK, "i32", BLOCK), b"{}"),
    ):
        function = BlockFunction("http_request", (BLOCK, BLOCK), results, http=True)
        two = Kernel(KernelSettings(functions=(function,)))
        two.answers[0] = (b"body", 201, headers)[: len(results)]
        two.begin(b"")
        got = two.http_request(two.put(b"request"), 0)
        assert two.get(got) == b"body"
        assert two.called == [(0, b"request", b"")]
        assert two.http_status_code() == (201 if len(results) > 1 else 0)
        for _ in range(2):
            at = two.http_headers()
            assert (two.get(at) if at else None) == headers
        two.begin(b"")
        assert (two.http_status_code(), two.http_headers()) == (0, 0)


def test_host_functions() -> None:
    """Blocks cross as bytes in both directions, beside numbers; None and empty are no block."""
    function = BlockFunction("user", ("i32", BLOCK, BLOCK), (BLOCK, "f64", BLOCK, BLOCK))
    nothing = BlockFunction("nothing", (), ())
    one = Kernel(KernelSettings(functions=(function, nothing)))
    one.answers = {0: (b"first", 2.5, None, b""), 1: ()}
    one.begin(b"in")
    at, number, none, empty = one.user(7, one.input_offset(), 12345)
    assert one.called == [(0, 7, b"in", b"")]
    assert one.get(at) == b"first"
    assert (number, none, empty) == (2.5, 0, 0)
    one.nothing()
    assert one.called[1:] == [(1,)]


def test_no_more_than_memories() -> None:
    """The kernel's state is its two memories, whatever its settings: see rule 5."""
    info = read_module(kernel(KernelSettings(config=((b"k", b"v"),))))
    assert (info.globals, info.tables, info.start) == ((), (), None)
    assert [memory.minimum for memory in info.memories] == [1, 1]
    assert info.passive_items == 0


# -- against a model

SIZES = st.one_of(st.integers(0, 40), st.integers(0, 5000), st.sampled_from((65_000, 70_000)))
PLACES = st.one_of(st.integers(0, 30).map(lambda n: ("block", n)), st.sampled_from(EDGES))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), SIZES),
        st.tuples(st.just("free"), PLACES, st.integers(-9, 9)),
        st.tuples(st.just("store"), PLACES, st.integers(-9, 9), st.integers(0, HUGE)),
        st.tuples(st.just("output"), PLACES, st.integers(-9, 9), SIZES),
        st.tuples(st.just("error"), PLACES, st.integers(-9, 9)),
        st.tuples(st.just("var"), PLACES, PLACES),
        st.tuples(st.just("begin"), SIZES),
    ),
    max_size=40,
)


@define(eq=False)
class Model:
    """What the kernel should do, written down as plainly as possible."""

    blocks: dict[int, int] = field(factory=dict)
    """{offset: length} of those that were not freed"""
    spans: dict[int, int] = field(factory=dict)
    """{offset: bytes} of all, freed ones too"""
    memory: dict[int, int] = field(factory=dict)
    """{address: byte} of what is not 0"""
    vars: dict[bytes, bytes] = field(factory=dict)
    output: tuple[int, int] = (0, 0)
    error: int = 0

    @property
    def end(self) -> int:
        return max((at + size for at, size in self.spans.items()), default=FIRST)

    def made(self, at: int, size: int) -> None:
        self.blocks[at] = size
        self.spans[at] = max(self.spans.get(at, 0), block_size(size))
        for place in range(at, at + self.spans[at]):
            self.memory.pop(place, None)

    def store(self, at: int, data: bytes) -> None:
        if at >= FIRST:
            self.memory.update(enumerate(data[: max(0, self.end - at)], at))

    def load(self, at: int, size: int) -> bytes:
        return bytes(self.memory.get(place, 0) for place in range(at, at + size))

    def inside(self, at: int, size: int) -> bool:
        return any(o <= at and at + size <= o + span for o, span in self.spans.items())

    def begin(self, data: bytes) -> None:
        self.blocks, self.spans, self.output, self.error = {}, {}, (0, 0), 0
        self.memory = {}
        if data:
            self.made(FIRST, len(data))
            self.memory = dict(enumerate(data, FIRST))


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_model(steps: list[tuple[Any, ...]]) -> None:
    """Whatever a plugin does, in whatever order, the kernel does what the model does."""
    one, model = Kernel(), Model()
    one.begin(b"")
    model.begin(b"")

    def place(given: Any) -> int:
        if isinstance(given, int):
            return given
        known = sorted(model.spans)
        return known[given[1] % len(known)] if known else FIRST

    for name, *rest in steps:
        if name == "alloc":
            (size,) = rest
            before = one.memory_bytes()
            at = one.alloc(size)
            if not size:
                assert at == 0
                continue
            assert at % 8 == 0
            assert at not in model.blocks
            if at not in model.spans:  # else it was freed, and is large enough
                assert at == model.end
            else:
                assert model.spans[at] >= size
            assert one.memory_bytes() == before or at not in model.spans
            assert not model.output[1] or not at <= model.output[0] < at + size
            model.made(at, size)
        elif name == "begin":
            data = bytes(number % 255 + 1 for number in range(rest[0]))
            one.begin(data)
            model.begin(data)
        elif name == "free":
            at = (place(rest[0]) + rest[1]) % (1 << 64)
            one.free(at)
            model.blocks.pop(at, None)
            if model.error == at:
                model.error = 0
        elif name == "store":
            at, word = (place(rest[0]) + rest[1]) % (1 << 64), rest[2].to_bytes(8, "little")
            one.store_u64(at, rest[2])
            model.store(at, word)
            assert one.load_u64(at) == int.from_bytes(model.load(at, 8), "little")
            one.store_u8((at + 8) % (1 << 64), word[0])
            model.store((at + 8) % (1 << 64), word[:1])
        elif name == "output":
            at, size = (place(rest[0]) + rest[1]) % (1 << 64), rest[2]
            if at and size and not model.inside(at, size):
                with pytest.raises(Failed):
                    one.output_set(at, size)
                continue
            one.output_set(at, size)
            if size and at:
                model.output = (at, size)
            elif FIRST <= at < model.end:
                model.output = (0, 0)
        elif name == "error":
            at = (place(rest[0]) + rest[1]) % (1 << 64)
            one.error_set(at)
            model.error = at if at in model.blocks else 0
        else:
            key, value = map(place, rest)
            if (key and key not in model.blocks) or (value and value not in model.blocks):
                with pytest.raises(Failed):
                    one.var_set(key, value)
                continue
            name_of = model.load(key, model.blocks[key]) if key else b""
            new = None if not value else model.load(value, model.blocks[value])
            one.var_set(key, value)
            model.vars.pop(name_of, None)
            if new is not None:
                model.vars[name_of] = new
            for freed in (key, value):
                model.blocks.pop(freed, None)
                if freed == model.error:
                    model.error = 0
        assert (one.output_offset(), one.output_length()) == model.output
        assert one.error_get() == model.error
    for at, size in model.blocks.items():
        assert one.length(at) == size
        assert one.blocks(at, size) == model.load(at, size)
    for at in set(model.spans) - set(model.blocks):
        assert one.length(at) == 0
    spans = sorted(model.spans.items())
    assert all(at + span <= after for (at, span), (after, _) in itertools.pairwise(spans))
    one.begin(b"")
    for key, value in model.vars.items():
        assert one.get(one.var_get(one.put(key))) == value
