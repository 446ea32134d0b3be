"""Values of any CQL type survive a UDF that gives back what it gets, in both ABI versions."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from abi.support import SCALARS, VERSIONS, cql_types, cql_values, udf
from engine.support import quiet_cache
from hypothesis import given, strategies as st
from kits import tries


@pytest.mark.parametrize("version", VERSIONS)
@tries(25, database=None)
@given(data=st.data())
def test_values_survive_the_guest(version: int, data: st.DataObject) -> None:
    """Whatever the type, nested or null: what a guest gives back as it got it is the same value."""
    names = data.draw(st.lists(cql_types(), min_size=1, max_size=4), label="types")
    cases = [
        (
            name,
            data.draw(st.lists(st.none() | cql_values(name), min_size=1, max_size=4), label=name),
        )
        for name in names
    ]
    trio.run(_echo_all, udf(f"scylla_v{version}"), cases)


@pytest.mark.parametrize("version", VERSIONS)
@tries(10, database=None)
@given(data=st.data())
def test_every_single_type_survives_the_guest(version: int, data: st.DataObject) -> None:
    """The same for each simple type."""
    cases = [
        (name, data.draw(st.lists(cql_values(name), max_size=3), label=name)) for name in SCALARS
    ]
    trio.run(_echo_all, udf(f"scylla_v{version}"), cases)


async def _echo_all(wasm: bytes, cases: list[tuple[str, list[Any]]]) -> None:
    async with quiet_cache() as cache:
        for name, values in cases:
            echo = await cache.register(
                "echo", wasm, args=(name,), returns=name, called_on_null=True, replace=True
            )
            async with echo.acquire() as lease:
                for value in values:
                    assert await lease.call(value) == value
