"""Columns of long texts and bytes: they are packed few at a time, so that others run in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from kits import open_real_cache

from trio_wasmcache import BufferAbi
from trio_wasmcache._abi.packing import Blob, Text
from trio_wasmcache._batch.byte_columns import AT_ONCE

ECHO = """(module (memory (export "memory") 40)
  (func (export "malloc") (param i32) (result i32) (i32.const 1024))
  (func (export "free") (param i32))
  (func (export "echo") (param i32 i32) (result i64)
    (i64.or (i64.shl (i64.extend_i32_u (local.get 0)) (i64.const 32))
            (i64.extend_i32_u (local.get 1)))))"""
LONG = 100_000


@pytest.mark.parametrize(
    ("kind", "column", "most"),
    [
        ("str", ["x" * LONG] * 40, AT_ONCE),
        ("str", ["é" * LONG] * 40, 2 * AT_ONCE),
        ("bytes", [b"x" * LONG] * 40, AT_ONCE),
        # Longer than a piece each; and behind others that are short.
        ("str", ["x" * 3 * AT_ONCE] * 3, 3 * AT_ONCE),
        ("bytes", [b"x"] * 2048 + [b"x" * LONG] * 8, AT_ONCE),
        ("str", [None, "x" * LONG] * 20, AT_ONCE),
    ],
)
async def test_they_are_packed_few_at_a_time(
    kind: str, column: list[Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No piece has more bytes than the host packs in a part of a millisecond, but for one value."""
    pieces: list[tuple[int, int]] = []
    wire: Any = Text if kind == "str" else Blob
    pack = wire.pack

    def watched(self: object, values: Sequence[Any]) -> Any:
        data, sizes = pack(self, values)
        pieces.append((len(data), len(sizes)))
        return data, sizes

    monkeypatch.setattr(wire, "pack", watched)
    async with open_real_cache() as cache:
        abi = BufferAbi(result="packed")
        echo = await cache.register("echo", ECHO, args=(kind,), returns=kind, abi=abi)
        async with echo.acquire() as lease:
            assert await lease.map([column]) == column
    assert max(size for size, _ in pieces) <= most
    assert sum(size for size, _ in pieces) >= sum(map(len, filter(None, column)))


async def test_short_ones_are_packed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at how long they are must not make pieces of them."""
    pieces: list[int] = []
    pack = Text.pack

    def watched(self: Text, values: Sequence[Any]) -> Any:
        pieces.append(len(values))
        return pack(self, values)

    monkeypatch.setattr(Text, "pack", watched)
    async with open_real_cache() as cache:
        abi = BufferAbi(result="packed")
        echo = await cache.register("echo", ECHO, args=("str",), returns="str", abi=abi)
        async with echo.acquire() as lease:
            column = ["short"] * 1000
            assert await lease.map([column]) == column
    assert pieces == [1000]
