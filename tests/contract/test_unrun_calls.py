"""Calls that end before the guest runs, and short batches, let others run as other calls do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from counting import passes
from kits import FakeKit, Kit, add, open_real_cache

from trio_wasmcache import BufferAbi, Lease

SERIES = 2000
"""Number of calls in a row: 8 ms of the cheapest."""


async def refused(call: Awaitable[object]) -> None:
    with pytest.raises(TypeError):
        await call


WAYS: dict[str, Callable[[Lease], Awaitable[object]]] = {
    "null": lambda lease: lease.call(None),
    "a value that does not fit": lambda lease: refused(lease.call("x")),
    "too many values": lambda lease: refused(lease.call(1, 2)),
    "a batch without rows": lambda lease: lease.map([[]]),
    "no rows of one value": lambda lease: lease.map([1], rows=0),
    "a column that does not fit": lambda lease: refused(lease.map([["x"]])),
    "a row of null": lambda lease: lease.map([[None]]),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_series_of_them(kit: Kit, way: str) -> None:
    """They are counted as short calls are."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:

            async def series() -> None:
                for _ in range(SERIES):
                    await WAYS[way](lease)

            await WAYS[way](lease)  # what is made for the first one lets others run
            assert await passes(series) >= SERIES // 200
            assert await lease.call(1) == 2


async def test_a_series_of_short_batches(kit: Kit) -> None:
    """One that takes no short way takes a tenth of a millisecond, however few rows it has."""
    async with kit.open() as cache:
        f = await add(cache, "f", kit.adding(1))
        async with f.acquire() as lease:

            async def series() -> None:
                for _ in range(200):
                    assert await lease.map([[1, 2]], on_error="null") == [2, 3]

            await series()  # what is made for the first one lets others run
            assert await passes(series) >= 40


TEXT = """(module (memory (export "memory") 1)
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "free") (param i32))
  (func (export "f") (param i32 i32) (result i32) (i32.const 16)))"""


@pytest.mark.parametrize("value", [None, 7, "of text"])
async def test_where_values_cross_in_steps(value: object) -> None:
    """With an ABI that converts values: a null, and what does not fit."""
    async with open_real_cache() as cache:
        abi = BufferAbi(result="nul")
        f = await cache.register("f", TEXT, args=("str",), returns="str", abi=abi)
        async with f.acquire() as lease:
            values = (value,) if value is None or value == 7 else (value, value)

            async def series() -> None:
                for _ in range(SERIES):
                    call = lease.call(*values)
                    assert await (refused(call) if value is not None else call) is None

            await series()
            assert await passes(series) >= SERIES // 200


async def test_a_column_of_nulls_that_is_mapped_row_by_row() -> None:
    """On wasmtime for an ABI without a driver, on the fake engine for any."""
    fake = FakeKit()
    abi = BufferAbi(result="nul")
    async with open_real_cache() as cache, fake.open() as other:
        f = await cache.register("f", TEXT, args=("str",), returns="str", abi=abi)
        g = await other.register("g", fake.engine.function(str.upper), args=("str",), abi=abi)
        for function in (f, g):
            async with function.acquire() as lease:

                async def series(lease: Lease = lease) -> None:
                    await lease.map([[None] * SERIES])

                await series()
                assert await passes(series) >= SERIES // 200
