"""Whoever only reads the books completes a step of them first, and Ctrl-C must not interrupt it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from kits import FakeKit, add

from trio_wasmcache import InstanceCache
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache.testing import check_invariants, snapshot

READERS: dict[str, Callable[[InstanceCache], object]] = {
    "stats": InstanceCache.stats,
    "pop_stats": InstanceCache.pop_stats,
    "entries": InstanceCache.entries,
    "functions": InstanceCache.functions,
    "repr": repr,
    "snapshot": snapshot,
    "check_invariants": check_invariants,
}


@pytest.mark.parametrize("reader", READERS)
async def test_reading_is_protected_where_it_completes_the_books(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """The lease that ended last becomes idle in the books once somebody looks at them."""
    protected: list[bool] = []
    settle = Policy._settle

    def watched(policy: Policy) -> None:
        protected.append(trio.lowlevel.currently_ki_protected())
        settle(policy)

    async with fake.open() as cache:
        f = await add(cache, "f", fake.costly())
        for _ in range(2):
            await f.call(1)
        with monkeypatch.context() as patch:
            patch.setattr(Policy, "_settle", watched)
            assert not trio.lowlevel.currently_ki_protected()
            READERS[reader](cache)
    assert all(protected)
    assert protected or reader in ("functions", "repr")
