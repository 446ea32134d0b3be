"""How high the operand stack is where that costs a compiler time, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_wasmcache import ModuleTooLargeError
from trio_wasmcache._core.wasm import reader
from trio_wasmcache._core.wasm.editor import encode_module
from trio_wasmcache._core.wasm.height import Heights
from trio_wasmcache._core.wasm.reader import ExcessiveModuleError, FuncType, read_module
from trio_wasmcache._core.wasm.types import HEIGHT_FROM, HEIGHT_LIMIT
from trio_wasmcache.testing import open_fake_cache

UDFS = Path(__file__).parents[2] / "udfs"
TYPES = [
    FuncType(),
    FuncType((), ("i64",)),
    FuncType(("i32", "i32"), ("i64", "i64", "i64")),
]
THREE = b"\x42\0" * 3  # three constants


def measure(body: bytes, limit: int = 10**9) -> tuple[int, int]:
    """The weight of a body, and the height before its end."""
    heights = Heights(TYPES, TYPES)
    return heights.weigh(body, 0, len(body), limit, lambda: None), heights.last


@pytest.mark.parametrize(
    ("body", "weight", "height"),
    [
        (THREE + b"\x0b", 0, 3),
        (THREE + b"\x10\1\x10\1\x0b", 4 + 5, 5),
        (THREE + b"\x10\2\x0b", 4, 4),
        (THREE + b"\x11\2\0\x0b", 3, 3),
        (THREE + b"\x21\0\x22\0\x0b", 3 + 2, 2),
        (THREE + b"\x0d\0\x0b", 3, 2),
        (THREE + b"\x02\x40\x42\0\x1a\x0b\x0b", 3 + 3, 3),
        (THREE + b"\x03\x7e\x42\0\x0b\x0b", 3 + 4, 4),
        (THREE + b"\x04\2\x10\1\x05\x10\1\x0b\x0b", 2 + 3 + 2 + 3 + 3, 3),
        (THREE + b"\x02\x40\x42\0\x0c\0\x1a\x1a\x1a\x1a\x10\1\x0b\x0b", 3 + 3 + 3, 3),
        (THREE + b"\x0e\1\0\0\x0b", 3, 0),
        (THREE + b"\x02\x7e\x0e\1\0\0\x0b\x0b", 3 + 3 + 4, 4),
        (THREE + b"\x1f\x7e\1\3\0\x10\1\x0b\x0b", 3 + 4 + 4, 4),
        (THREE + b"\x40\0\xfc\x0a\0\0\x0b", 3, 0),
        (THREE + b"\xfd\x0c" + b"\0" * 16 + b"\xfd\x4e\x10\0\x0b", 3, 3),
    ],
)
def test_heights_are_exact(body: bytes, weight: int, height: int) -> None:
    """At calls, blocks, ends, jumps and writes of locals."""
    assert measure(body) == (weight, height)


@pytest.mark.parametrize("path", sorted(UDFS.rglob("*.wasm")), ids=lambda path: path.name)
def test_what_compilers_write_is_low(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In C, Rust and AssemblyScript. A function ends with its results, or behind a jump."""
    ends: list[int] = []
    weigh = Heights.weigh

    def watched(self: Heights, *args: object) -> int:
        weight = weigh(self, *args)  # type: ignore[arg-type]
        ends.append(self.last)
        return weight

    monkeypatch.setattr(Heights, "weigh", watched)
    monkeypatch.setattr(reader, "HEIGHT_FROM", 0)
    monkeypatch.setattr(reader, "HEIGHT_LIMIT", HEIGHT_LIMIT // 100)
    try:
        info = read_module(path.read_bytes())
    except reader.MalformedModuleError:
        assert path.parent.name == "components"
        return
    own = info.functions[len(info.functions) - len(ends) :]
    assert all(end in (0, len(kind.results)) for end, kind in zip(ends, own, strict=True))


def bomb(body: bytes) -> bytes:
    """A module that leaves what it makes on the stack."""
    types = [FuncType((), ("i64",)), FuncType()]
    return encode_module(
        types=types,
        functions=[0, 1],
        code=[b"\0\x42\0\x0b", b"\1\1\x7e" + body + b"\x00\x0b"],
    )


@pytest.mark.parametrize(
    ("each", "some"),
    [
        (b"\x10\0", 14_000),
        (b"\x42\0\x02\x40\x0b", 9_500),
        (b"\x42\0\x42\0\x21\0", 13_500),
        (b"\x42\0\x41\0\x0d\0", 13_500),
    ],
    ids=["calls", "blocks", "locals", "jumps"],
)
def test_a_module_has_a_limit(each: bytes, some: int) -> None:
    """It goes with the square: some are read, a tenth more are refused, in one function or two."""
    read_module(bomb(each * some))
    with pytest.raises(ExcessiveModuleError, match="so many values on the stack across calls"):
        read_module(bomb(each * (some + some // 10)))


def test_dead_code_lowers_nothing() -> None:
    """Behind a jump a stack may be popped without end, and its height is below zero."""
    dead = b"\x02\x40\x00" + b"\x1a" * 20_000 + b"\x10\0\x1a" * 5_000 + b"\x0b"
    with pytest.raises(ExcessiveModuleError):
        read_module(bomb(dead + b"\x10\0" * 15_000))


async def test_register_says_what_to_do() -> None:
    """And refuses it before it is compiled, by whichever compiler."""
    async with open_fake_cache() as cache:
        with pytest.raises(ModuleTooLargeError, match="keep them in locals, or split"):
            await cache.register("f", bomb(b"\x10\0" * HEIGHT_FROM), args=())
