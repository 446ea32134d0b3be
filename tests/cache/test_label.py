"""A label: the name of a cache in every event and every metric."""

from __future__ import annotations

from typing import Any

import prometheus_client
import pytest
from kits import ListLogger, WasmtimeKit, add

from trio_wasmcache import CacheConfig, open_cache
from trio_wasmcache.prometheus import CacheCollector
from trio_wasmcache.testing import open_fake_cache


async def test_every_event_has_it(log: ListLogger, real: WasmtimeKit) -> None:
    """From the first to the last; without one it is empty."""
    for label in ("orders@host-3", ""):
        async with open_cache(CacheConfig(log_uses=True), logger=log, label=label) as cache:
            assert cache.label == label
            f = await add(cache, "f", real.adding(1))
            assert await f.call(1) == 2
    labels = [fields["label"] for _, _, fields in log.lines]
    assert set(labels) == {"orders@host-3", ""}
    assert labels == sorted(labels, reverse=True)
    caches = {fields["cache"]: fields["label"] for _, _, fields in log.lines}
    assert sorted(caches.values()) == ["", "orders@host-3"]


@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (7, TypeError, "label must be a str, got 7"),
        ("a\nb", ValueError, "label must be printable, of at most 100 characters, got 'a"),
        ("x" * 101, ValueError, "at most 100 characters"),
    ],
)
async def test_what_is_no_label_is_refused(label: Any, error: Any, message: str) -> None:
    """By `open_cache` and by the fake, before anything is opened."""
    for opening in (open_cache, open_fake_cache):
        with pytest.raises(error, match=message):
            async with opening(label=label):
                pass


async def test_metrics_have_it() -> None:
    """Each sample, beside its own labels; and none without a label."""
    for label in ("orders", ""):
        async with open_fake_cache(label=label) as cache:
            registry = prometheus_client.CollectorRegistry()
            registry.register(CacheCollector(cache))
            samples = [one for metric in registry.collect() for one in metric.samples]
            assert samples
            assert {one.labels.get("label", "") for one in samples} == {label}
            assert any("le" in one.labels for one in samples)
