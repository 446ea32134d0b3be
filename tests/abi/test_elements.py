"""Lists of numbers from buffers: of any format and byte order, they are the items that they say."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from components.echo import echo
from engine.support import quiet_cache

from trio_wasmcache._abi.canonical_numbers import ELEMENTS

numpy = pytest.importorskip("numpy")
DTYPES = [
    f"{order}{kind}" for order in "<>" for kind in ("i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
]


@pytest.mark.parametrize("dtype", [*DTYPES, ">f2", "<?"])
@pytest.mark.parametrize("name", ["u8", "u32", "s64", "f32", "f64"])
def test_numbers_of_numpy(name: str, dtype: str) -> None:
    """In both byte orders, in pieces, backwards, and of none: the bytes are those of its list."""
    for array in (
        numpy.arange(20_000).astype(dtype)
        if dtype[1:] not in ("i1", "?")
        else numpy.ones(3, dtype),
        numpy.array([3, 0, 1], dtype)[::-1],
        numpy.array([], dtype),
    ):
        if name == "u8" and len(array) > 3:
            array %= 200
        if name[0] != "f" and dtype[1] == "f" and len(array):
            with pytest.raises(TypeError):
                ELEMENTS[name].lower(array)
            continue
        assert ELEMENTS[name].lower(array) == ELEMENTS[name].lower(array.tolist())


def test_numbers_of_ctypes() -> None:
    """Whose formats say their byte order."""
    for kind in (ctypes.c_uint32, ctypes.c_uint32.__ctype_be__, ctypes.c_double.__ctype_be__):
        made = (kind * 3)(1, 2, 3)
        assert ELEMENTS["f64"].lower(made) == struct.pack("<3d", 1, 2, 3)


@pytest.mark.parametrize(
    "array",
    [
        numpy.zeros(2, "i4,f8"),
        numpy.zeros(2, "c16"),
        numpy.array(["a", "b"]),
        numpy.array([b"ab"]),
        numpy.zeros(2, "g"),
        numpy.zeros((2, 2), "u4"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_what_has_no_numbers(array: Any) -> None:
    """The error says what the items are."""
    with pytest.raises(TypeError, match=r"array of|item 0"):
        ELEMENTS["u32"].lower(array)


async def test_a_misfit_says_which() -> None:
    """In an array of another byte order, too, of a component's function."""
    async with quiet_cache() as cache:
        f = await cache.register("echo", echo((("list", "u32"),)))
        assert await f.call(numpy.array([1, 2**31], ">u4")) == [1, 2**31]
        with pytest.raises(OverflowError, match="item 1: "):
            await f.call(numpy.array([1, -1], ">i4"))
        g = await cache.register("echo", echo((("list", "u8"),)))
        assert await g.call(numpy.array([1, 255], ">u2")) == b"\1\xff"
        async with g.acquire() as lease:
            column = [numpy.array([1, 2], ">u4"), numpy.array([3], ">i8")]
            assert await lease.map([column]) == [b"\1\2", b"\3"]
