"""The buffer ABI and the allocators that it knows, with a guest that is no wasm."""

from __future__ import annotations

from typing import Any

import pytest
from abi.support import FakeGuest, drive
from hypothesis import given, strategies as st

from trio_wasmcache import AbiError, BufferAbi, Exports, FuncType, Invoke

ALLOCATORS: list[tuple[dict[str, FuncType], list[str]]] = [
    ({}, []),
    (
        {"malloc": FuncType(("i32",), ("i32",)), "free": FuncType(("i32",), ())},
        ["malloc(7,)"],
    ),
    (
        {"alloc": FuncType(("i32",), ("i32",)), "dealloc": FuncType(("i32", "i32"), ())},
        ["alloc(7,)"],
    ),
    (
        {"allocate": FuncType(("i32", "i32"), ("i32",)), "free": FuncType(("i32",), ())},
        ["allocate(7, 1)"],
    ),
    ({"cabi_realloc": FuncType(("i32",) * 4, ("i32",))}, ["cabi_realloc(0, 0, 1, 7)"] * 2),
    (
        {
            "__wbindgen_malloc": FuncType(("i32", "i32"), ("i32",)),
            "__wbindgen_free": FuncType(("i32", "i32", "i32"), ()),
        },
        ["__wbindgen_malloc(7, 1)"] * 2,
    ),
]


@pytest.mark.parametrize(("functions", "called"), ALLOCATORS)
def test_allocators_are_known_by_their_names(
    functions: dict[str, FuncType], called: list[str]
) -> None:
    """Each is called as it wants to be; what belongs to the guest is allocated for each call."""
    kind = FuncType(("i32", "i32"), ("i32",))
    exports = Exports({"run": kind, **functions}, {}, ("memory",))
    binding = BufferAbi().bind("f", "run", ("bytes",), ("i32",), exports, False)
    guest, steps = FakeGuest(), []

    def answer(invoke: Invoke) -> int:
        if invoke.export == "run":
            at, size = invoke.values
            assert guest.read(at, size) == b"1234567"
            return size
        steps.append(f"{invoke.export}{invoke.values}")
        return 64

    for _ in range(2):
        assert drive(binding, guest, (b"1234567",), answer) == 7
    assert steps == called


@pytest.mark.parametrize(
    ("functions", "freed"),
    [
        (ALLOCATORS[0][0], []),
        (ALLOCATORS[1][0], ["free(200,)"]),
        (ALLOCATORS[2][0], ["dealloc(200, 3)"]),
        (ALLOCATORS[4][0], []),
        (
            {**ALLOCATORS[4][0], "cabi_post_run": FuncType(("i32",), ())},
            ["cabi_post_run(100,)"],
        ),
        (ALLOCATORS[5][0], ["__wbindgen_free(200, 3, 1)"]),
    ],
)
def test_results_are_freed_as_the_allocator_wants(
    functions: dict[str, FuncType], freed: list[str]
) -> None:
    """A result is given back once it has been read, in the way of its allocator."""
    kind = FuncType((), ("i32",))
    exports = Exports({"run": kind, **functions}, {}, ("memory",))
    guest, steps = FakeGuest(), []
    guest.write(100, (200).to_bytes(4, "little") + (3).to_bytes(4, "little"))
    guest.write(200, b"abc")

    def answer(invoke: Invoke) -> Any:
        if invoke.export == "run":
            return 100
        steps.append(f"{invoke.export}{invoke.values}")
        return None

    for owner, calls in (("host", freed), ("guest", [])):
        steps.clear()
        abi = BufferAbi(result="area", result_of=owner)  # type: ignore[arg-type]
        binding = abi.bind("f", "run", (), ("str",), exports, False)
        assert drive(binding, guest, (), answer) == "abc"
        assert steps == calls


@pytest.mark.parametrize("flag", [0, 1])
def test_the_errors_of_wasm_bindgen_are_errors(flag: int) -> None:
    """A Rust function that gives an Err instead of its result says so in the fourth word."""
    kind = FuncType(("i32",), ())
    exports = Exports({"run": kind, **ALLOCATORS[5][0]}, {}, ("memory",))
    binding = BufferAbi().bind("f", "run", (), ("bytes",), exports, False)
    guest = FakeGuest()
    guest.write(64, b"\xff" * 16)

    def answer(invoke: Invoke) -> Any:
        if invoke.export == "run":
            assert guest.read(64, 16) == bytes(16)
            guest.write(76, bytes([flag]))
        return 64

    if flag:
        with pytest.raises(AbiError, match="returned an error instead of a bytes"):
            drive(binding, guest, (), answer)
    else:
        assert drive(binding, guest, (), answer) == b""


@given(st.binary(max_size=300), st.binary(max_size=300), st.integers(0, 50))
def test_what_is_written_is_what_was_given(first: bytes, second: bytes, gap: int) -> None:
    """Buffers lie where the guest is told, without a copy in between and without overlapping."""
    kind = FuncType(("i32", "i32", "i32", "i32"), ())
    exports = Exports({"run": kind, **ALLOCATORS[1][0]}, {}, ("memory",))
    binding = BufferAbi().bind("f", "run", ("bytes", "bytes"), (), exports, False)
    guest, next_free = FakeGuest(), [8]

    def answer(invoke: Invoke) -> Any:
        if invoke.export == "malloc":
            at = next_free[0]
            next_free[0] += invoke.values[0] + gap
            return at
        if invoke.export == "run":
            a, n, b, m = invoke.values
            assert (guest.read(a, n), guest.read(b, m)) == (first, second)
        return None

    drive(binding, guest, (first, memoryview(second)), answer)
    drive(binding, guest, (bytearray(first), second), answer)
