"""The section writer: which bytes it writes, and that what it keeps on disk comes back."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import wasmtime
from fuzz.generate import generate

from trio_wasmcache._core.wasm.preparation import (
    DENSE_SIZE,
    MAX_RUNS,
    PIECE,
    FrozenState,
    UnfreezableError,
    constant,
    observe,
    pack_states,
    read_data,
    read_elements,
    reference,
    runs_of,
    unpack_states,
    write_state,
)
from trio_wasmcache._core.wasm.reader import read_module


def wat(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))


def restored(runs: tuple[tuple[int, bytes], ...], size: int) -> bytes:
    memory = bytearray(size)
    for at, data in runs:
        memory[at : at + len(data)] = data
    return bytes(memory)


def test_zeros_are_left_out() -> None:
    """In whole pieces, the last of which may be short; what is written is all that is there."""
    random = Random(1)
    for size in (0, 1, PIECE, 3 * PIECE + 5, 50 * PIECE):
        memory = bytearray(size)
        for _ in range(size // PIECE // 3):
            memory[random.randrange(size)] = random.randrange(1, 256)
        runs = runs_of(memory)
        assert restored(runs, size) == memory
        assert all(at % PIECE == 0 and data.strip(b"\0") for at, data in runs)
        assert all(at + len(data) < later for (at, data), (later, _) in pairwise(runs))


def test_a_sparse_range_is_filled_to_a_half() -> None:
    """So that it is mapped, not copied; a dense one, and a small one, stay as they are."""
    size = DENSE_SIZE + 64 * PIECE
    memory = bytearray(size)
    for at in range(0, size, 16 * PIECE):
        memory[at] = 1
    memory[-1] = 1
    runs = runs_of(memory)
    assert restored(runs, size) == memory
    assert sum(len(data) for _, data in runs) >= size // 2
    small = memory[: DENSE_SIZE // 2]
    assert sum(len(data) for _, data in runs_of(small)) <= len(small) // 16 + PIECE


def test_runs_have_a_limit() -> None:
    """Every other piece of a large memory would be more segments than wasmtime takes."""
    memory = bytearray(2 * (MAX_RUNS + 10) * PIECE)
    memory[:: 2 * PIECE] = b"\1" * (MAX_RUNS + 10)
    runs = runs_of(memory)
    assert len(runs) <= MAX_RUNS
    assert restored(runs, len(memory)) == memory


def test_values_of_globals() -> None:
    """Numbers to the bit, NaNs as well; references to functions, or null; nothing else."""
    assert constant("i32", b"\xff" * 8, what="g") == b"\x41\x7f\x0b"
    assert constant("f32", b"\1\0\xc0\x7f", what="g") == b"\x43\1\0\xc0\x7f\x0b"
    assert reference("funcref", 200, what="g") == b"\xd2\xc8\x01\x0b"
    assert reference("externref", None, what="g") == b"\xd0\x6f\x0b"
    for one in (lambda: constant("exnref", b"", what="g"), lambda: reference("x", 1, what="g")):
        with pytest.raises(UnfreezableError, match=r"^g is of type"):
            one()


def test_segments_keep_their_indexes() -> None:
    """Consumed and dropped ones become empty; functions stay referable; others stay as they are."""
    wasm = wat(
        """(module (memory 1) (table $t 4 funcref) (global (mut funcref) (ref.func $g))
        (data (i32.const 1) "active") (data $p "passive") (data $q "dropped")
        (elem (i32.const 0) func $f) (elem $e func $f) (elem $d funcref (ref.func $h))
        (func $f) (func $g) (func $h)
        (func (export "use") (memory.init $p (i32.const 0) (i32.const 0) (i32.const 1))
          (data.drop $q) (elem.drop $d) (table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1))
          (drop (ref.is_null (ref.func $h))) (drop (ref.is_null (ref.func $g))))
        (func $start) (start $start))"""
    )
    info = read_module(wasm)
    assert [(kind, index) for kind, index, _ in observe(wasm, info).probes] == [
        ("data", 1),
        ("data", 2),
        ("elem", 1),
        ("elem", 2),
    ]
    state = FrozenState(
        memories=((3, ((65536, b"later"),)),),
        tables=((None, 2, None, 0, 1),),
        globals=((0, reference("funcref", None, what="")),),
        dropped_data=frozenset({2}),
        dropped_elements=frozenset({2}),
    )
    written = write_state(wasm, info, state)
    wasmtime.Module(wasmtime.Engine(), written)
    made = read_module(written)
    assert made.start is None
    assert (made.memories[0].minimum, made.tables[0].limits.minimum) == (3, 5)
    assert [(one.mode, one.count) for one in read_data(written, made)] == [
        ("active", 0),
        ("passive", 7),
        ("active", 0),
        ("active", 5),
    ]
    segments, functions = read_elements(written, made)
    assert [(one.mode, one.count) for one in segments] == [
        ("declared", 1),
        ("passive", 1),
        ("declared", 1),
        ("declared", 1),
        ("active", 1),
        ("active", 2),
    ]
    assert functions == {0, 1, 2}
    assert write_state(written, made, state)[-9:] == written[-9:]


def test_what_has_changed_nothing_is_a_valid_module() -> None:
    """For any module that can be frozen: empty memories and tables, and the first globals."""
    tried = 0
    for seed in range(60):
        wasm = generate(Random(seed))
        info = read_module(wasm)
        if any(item.kind != "func" for item in info.imports):
            continue
        state = FrozenState(
            tuple((limits.minimum, ()) for limits in info.memories),
            tuple((None,) * table.limits.minimum for table in info.tables),
            (),
        )
        wasmtime.Module(wasmtime.Engine(), write_state(wasm, info, state))
        tried += 1
    assert tried > 10


def test_states_come_back_from_disk() -> None:
    """As they were; anything else is refused by one error."""
    state = FrozenState(
        ((2, ((0, b"abc"), (70_000, bytes(5)))), (1, ())),
        ((None, 3), ()),
        ((4, b"\x41\0\x0b"),),
        frozenset({1}),
        frozenset({0, 2}),
        ((0, 3, 1), (1, 0, 2)),
    )
    packed = pack_states({"": state, "kernel": state}, {"calls": 2})
    assert unpack_states(packed) == ({"": state, "kernel": state}, {"calls": 2})
    for bad in (
        b"",
        packed[:-1],
        packed + b"x",
        packed[:30],
        b"\xff" * 100,
        b"\2" + bytes(7) + b"{}",
    ):
        with pytest.raises(ValueError, match=r"^no states: "):
            unpack_states(bad)
