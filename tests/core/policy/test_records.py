"""The records of the policy refuse what a bug would ask of them, with a sentence."""

from __future__ import annotations

import pytest
from core.policy.policy_bench import Bench

from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy.lifecycle import IllegalStepError
from trio_wasmcache._core.policy.records import Module


def test_a_request_without_a_holder_cannot_be_revoked() -> None:
    """Else a group that closes would leave its instance running."""
    request = Bench().lease(Bench().function("f"))
    with pytest.raises(IllegalStepError, match=r"^a request that is running can't be revoked$"):
        request.revoke(Reason.CLOSED)
    revoked: list[Reason] = []
    request.give_up = revoked.append
    assert request.revoke(Reason.CLOSED) is None
    assert revoked == [Reason.CLOSED]


def test_a_request_without_an_instance_says_so() -> None:
    """Whoever asks for it takes it for granted."""
    bench = Bench()
    request = bench.lease(bench.function("f"))
    bench.recycle(request)
    with pytest.raises(IllegalStepError, match=r"^a request that is ended has no instance$"):
        _ = request.held


def test_a_module_without_code_cannot_be_unloaded() -> None:
    """Else code would stay mapped that no book counts."""
    with pytest.raises(IllegalStepError, match=r"^module 'abc' has no code"):
        Module("abc", 1).unload()
