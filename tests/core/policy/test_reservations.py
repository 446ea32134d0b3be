"""What a choice costs beside thousands of instances that reservations keep, and rare changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import pytest
from core.policy.policy_bench import Bench, reasons

from trio_wasmcache._core.config import PolicyName
from trio_wasmcache._core.policy import policy as policy_module
from trio_wasmcache._core.policy.records import GroupRecord

POLICIES = get_args(PolicyName)
FOLDER = str(Path(policy_module.__file__).parent)
SIZE = 10
BESIDE = 20  # instances of others
COUNTED = 12  # evictions
# The hand of SIEVE passes 64 at most.
FEW, MANY = 128, 768


def lines_of(act: Callable[[], None]) -> int:
    """Lines of the policy that run."""
    count = 0

    def local(_frame: FrameType, kind: str, _of: Any) -> Any:
        nonlocal count
        count += kind == "line"
        return local

    def enter(frame: FrameType, _kind: str, _of: Any) -> Any:
        return local if frame.f_code.co_filename.startswith(FOLDER) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


class Crowd:
    """An owner with so many instances, all of them reserved, and others who come and go."""

    def __init__(self, policy: PolicyName, kind: str, number: int) -> None:
        limits = {"max_size": 10_000 * SIZE, "max_instances": 16_000, "max_code": 20_000}
        if kind == "count":
            limits["max_instances"] = number + BESIDE
        elif kind == "code":
            limits["max_code"] = number + BESIDE + 1
        else:
            limits["max_size"] = (number + BESIDE) * SIZE
        self.bench = Bench(policy, **limits)
        # A part of an instance is lent, which is not enough for anybody.
        lent = SIZE // 2 if kind == "lent" else 0
        self.owner = self.group("owner", reserved_size=number * SIZE - lent)
        self.other = self.group("other", max_size=BESIDE * SIZE if kind == "own" else None)
        self.user = self.other
        if kind == "borrowed":
            # What it has not used, another has borrowed.
            self.user = self.group("user", reserved_size=BESIDE * SIZE)
        self.made = 0
        for _ in range(number):
            self.use(self.owner)
        for _ in range(BESIDE):
            self.use(self.other)

    def group(self, name: str, **limits: Any) -> GroupRecord:
        group = GroupRecord(name, **limits)
        self.bench.policy.open_group(group)
        return group

    def use(self, group: GroupRecord) -> None:
        self.made += 1
        self.bench.idle(self.bench.function(f"f{self.made}"), SIZE, group)

    def evict(self) -> None:
        before = sum(self.bench.policy.instances.evictions.values())
        for _ in range(COUNTED):
            self.use(self.user)
        evicted = sum(self.bench.policy.instances.evictions.values()) - before
        assert evicted == COUNTED
        assert self.owner.idle_size >= self.owner.reserved_size


@pytest.mark.parametrize("kind", ["size", "lent", "own", "borrowed", "count", "code"])
@pytest.mark.parametrize("policy", POLICIES)
def test_an_eviction_costs_as_much_beside_many(policy: PolicyName, kind: str) -> None:
    """Its steps grow with the logarithm of their number, and not with it."""
    few, many = (Crowd(policy, kind, number) for number in (FEW, MANY))
    counts = []
    for crowd in (few, many):
        if kind != "borrowed":
            crowd.evict()  # what is made at the first eviction, or for the first new ones
        counts.append(lines_of(crowd.evict))
    # Six times as many; and the hand of SIEVE passes a few more.
    assert counts[1] <= 2 * counts[0], counts


GOES: dict[PolicyName, str] = {"lru": "small", "sieve": "small", "gdsf": "a", "cost": "small"}


@pytest.mark.parametrize("policy", POLICIES)
def test_only_what_is_lent_goes_whatever_the_sizes(policy: PolicyName) -> None:
    """Of a group that has lent a part, the first in order that is no larger than that."""
    bench = Bench(policy, max_size=100)
    owner, other = GroupRecord("owner", reserved_size=50), GroupRecord("other")
    for group in (owner, other):
        bench.policy.open_group(group)
    for name, size in (("large", 30), ("small", 10), ("tiny", 5), ("middle", 20)):
        bench.idle(bench.function(name), size, owner)
    bench.idle(bench.function("a"), 35, other)
    # 15 bytes are lent.
    request = bench.lease(bench.function("b"), "anna", other)
    assert reasons(bench.recycle(request, 10)) == [(GOES[policy], "size")]
    for number in range(6):
        bench.idle(bench.function(f"c{number}"), 10, other)
        assert owner.idle_size >= 50


@pytest.mark.parametrize("policy", POLICIES)
def test_a_group_whose_limits_change_is_kept_apart_from_then_on(policy: PolicyName) -> None:
    """With what it has already, idle or running; and no longer once nothing is reserved."""
    bench = Bench(policy, max_size=40)
    owner, other = GroupRecord("owner"), GroupRecord("other")
    for group in (owner, other):
        bench.policy.open_group(group)
    running = bench.lease(bench.function("a"), "anna", owner)
    bench.idle(bench.function("b"), 10, owner)
    bench.policy.resize_group(owner, None, 20, bench.now)
    bench.recycle(running)
    for number in range(8):
        bench.idle(bench.function(f"o{number}"), 10, other)
    assert (owner.idle_size, other.idle_size) == (20, 20)
    bench.policy.resize_group(other, 10, 0, bench.now)
    assert other.idle_size == 10
    bench.idle(bench.function("more"), 10, other)
    assert (owner.idle_size, other.idle_size) == (20, 10)
    bench.policy.resize_group(owner, None, 0, bench.now)
    bench.policy.resize_group(other, None, 0, bench.now)
    bench.idle(bench.function("fills"), 10, other)
    request = bench.lease(bench.function("last"), "anna", other)
    gone = bench.recycle(request).evicted
    assert [event.group for _, event in gone] == ["owner"]


def test_a_seat_that_became_a_large_instance_falls_behind() -> None:
    """Its size has changed while it was loaded, which no rest reports."""
    bench = Bench("gdsf", max_size=300)
    seat, small, used = bench.function("seat"), bench.function("small"), bench.function("used")
    bench.seat(seat, 1)
    for _ in range(2):
        bench.idle(small, 10)
    for _ in range(10):
        bench.idle(used, 30)
    bench.idle(bench.function("x"), 200)
    bench.idle(bench.function("y"), 70)  # for which x goes, and all priorities are known
    request = bench.acquire(seat)
    bench.policy.loaded(request, bench.now, 100)
    bench.recycle(request, 100)
    request = bench.lease(bench.function("z"))
    gone = [name for name, _ in reasons(bench.recycle(request, 200))]
    assert gone == ["y", "seat"]
