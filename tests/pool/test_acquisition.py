"""An acquisition refuses what a bug would ask of it."""

from __future__ import annotations

import pytest
import trio

from trio_wasmcache import CacheConfig
from trio_wasmcache._core.config import GroupLimits
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy.lifecycle import IllegalStepError
from trio_wasmcache._engine.fake.engine import FakeEngine
from trio_wasmcache._log import InlineLogWriter
from trio_wasmcache._pool.acquisition import Acquisition
from trio_wasmcache._pool.capacity import GroupState
from trio_wasmcache._pool.pool import Pool


class Silent:
    """A logger that writes nothing."""

    def info(self, event: str, **fields: object) -> None:
        pass

    warning = info


async def test_what_was_not_granted_cannot_be_given_up() -> None:
    """Only requests that hold an instance are revoked when a group closes."""
    pool = Pool(CacheConfig(), FakeEngine(), InlineLogWriter(Silent()))
    task = trio.lowlevel.current_task()
    group = GroupState.new("main", GroupLimits(capacity=1))
    acquisition = Acquisition(pool, group, task, None, lambda _: None, warm=False)
    with pytest.raises(IllegalStepError, match="has not asked for an instance yet"):
        acquisition.end(Reason.CLOSED)
