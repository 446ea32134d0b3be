"""Distributions against sorted lists, uses added up in any order, and what the policy records."""

from __future__ import annotations

import gc
import math
import random
import weakref

import attrs
import pytest
from core.policy.policy_bench import Bench
from hypothesis import given, strategies as st
from peeking import slots_of

from trio_wasmcache import CacheStats, DeadlockError
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.metrics.counters import (
    COMPILES,
    FUELS,
    HOLDS,
    LOADS,
    RUNS,
    SPAN,
    SUMS,
    WAITS,
    Distribution,
    Snapshot,
    UseBook,
    UseStats,
    add_up,
    microseconds,
)
from trio_wasmcache._core.metrics.stats import (
    NOTHING,
    DistributionSummary,
    UseSummary,
    summarise,
    summarise_uses,
)
from trio_wasmcache._core.policy.instances import PARKED
from trio_wasmcache._core.policy.records import FunctionRecord, GroupRecord, Stage

# Half of them small, as most waits are; and some as large as fuel can be.
values = st.one_of(st.integers(0, 20), st.integers(0, 2**63))
NAMES = ("f", "g", None)


def distribution(numbers: list[int], kind: int = HOLDS) -> Distribution:
    """A distribution of those."""
    made = UseStats()
    for number in numbers:
        made.add(kind, number)
    return made.distribution(kind)


@st.composite
def uses(draw: st.DrawFn) -> UseStats:
    """What may have happened in one entry."""
    maybe = st.none() | values
    made = UseStats(blocks=draw(st.integers(0, 3)), seat_hits=draw(st.integers(0, 3)))
    for hold, wait in draw(st.lists(st.tuples(values, maybe), max_size=3)):
        made.add(HOLDS, hold)
        if wait is not None:
            made.misses += draw(st.booleans())
            made.add(WAITS, wait)
    for fuel, run in draw(st.lists(st.tuples(values, maybe), max_size=3)):
        made.add(FUELS, fuel)
        if run is not None:
            made.continued += 1
            made.add(RUNS, run)
    for error in draw(st.lists(st.sampled_from(["TrapError", "Cancelled"]), max_size=3)):
        made.note_error(error)
    for number in draw(st.lists(values, max_size=2)):
        made.add(LOADS, number)
    return made


@given(st.lists(values, min_size=1))
def test_a_summary_is_that_of_the_sorted_list(numbers: list[int]) -> None:
    """Count, total and mean are exact; a quantile has as many bits as the value in its place."""
    summary = summarise(distribution(numbers))
    ordered = sorted(numbers)
    assert (summary.count, summary.total) == (len(numbers), sum(numbers))
    assert summary.mean == sum(numbers) / len(numbers)
    for percent, estimate in ((50, summary.p50), (90, summary.p90), (99, summary.p99)):
        true = ordered[math.ceil(len(ordered) * percent / 100) - 1]
        assert estimate.bit_length() == true.bit_length()
    assert summary.p50 <= summary.p90 <= summary.p99
    bounds = [largest for largest, _ in summary.buckets]
    assert bounds == sorted(set(bounds))
    before = -1
    for largest, count in summary.buckets:
        assert count == sum(before < number <= largest for number in numbers) > 0
        before = largest


@given(st.lists(values), st.integers(0, 5))
def test_zeros_beside_a_distribution_are_as_if_recorded(numbers: list[int], zeros: int) -> None:
    """What is known not to have taken any time need not be recorded."""
    assert summarise(distribution(numbers), zeros) == summarise(
        distribution([*numbers, *[0] * zeros])
    )


def test_a_summary_of_nothing() -> None:
    """All zero, without buckets, and no division by zero."""
    assert summarise(Distribution()) == DistributionSummary(
        count=0, total=0, mean=0.0, p50=0, p90=0, p99=0, buckets=()
    )


@given(st.lists(st.tuples(st.sampled_from(sorted(SUMS)), values)), st.integers(0, 5))
def test_values_of_one_kind_are_not_taken_for_another(
    recorded: list[tuple[int, int]], size: int
) -> None:
    """However many bits they have: all kinds are counted in one place, and told apart again."""
    longest = 2 ** (SPAN - 1) - 1
    recorded += [(kind, longest) for kind in SUMS][:size]
    made = UseStats()
    for kind, value in recorded:
        made.add(kind, value)
    for kind in SUMS:
        mine = [value for it, value in recorded if it == kind]
        assert made.count(kind) == len(mine)
        assert summarise(made.distribution(kind)) == summarise(distribution(mine, kind))
        assert made.distribution(kind).total == sum(mine)
        assert sum(made.distribution(kind).buckets.values()) == len(mine)


@given(uses(), uses())
def test_merging_is_addition(some: UseStats, other: UseStats) -> None:
    """What was copied before does not change with it, and nothing is left after clearing."""
    whole, before = some.copy(), summarise_uses(some)
    whole.merge(other)
    for kind in SUMS:
        parts = [one.distribution(kind) for one in (some, other)]
        summed = whole.distribution(kind)
        assert summed.total == sum(part.total for part in parts)
        for bits, count in summed.buckets.items():
            assert count == sum(part.buckets.get(bits, 0) for part in parts)
    assert summarise_uses(some) == before
    whole.clear()
    assert slots_of(whole) == slots_of(UseStats())


@given(st.lists(uses()), st.randoms())
def test_adding_up_uses_does_not_depend_on_the_order(
    parts: list[UseStats], chance: random.Random
) -> None:
    """Nor on what was added up before; and it changes none of them."""
    before = [summarise_uses(part) for part in parts]
    whole = summarise_uses(add_up(parts))
    shuffled = list(parts)
    chance.shuffle(shuffled)
    assert summarise_uses(add_up([add_up(shuffled[:2]), *shuffled[2:]])) == whole
    assert [summarise_uses(part) for part in parts] == before
    for field in ("hits", "misses", "blocks", "calls"):
        assert getattr(whole, field) == sum(getattr(one, field) for one in before)


@given(
    st.lists(
        st.one_of(
            st.tuples(uses(), st.sampled_from(NAMES), st.sampled_from(NAMES)),
            st.sampled_from(["snapshot", "drop function", "drop group"]),
        )
    )
)
def test_the_book_keeps_all_and_snapshots_stay(steps: list[object]) -> None:
    """By function as by group it holds the sum of all it took in; snapshots do not change."""
    book, taken = UseBook(), UseStats()
    kept: list[tuple[Snapshot, UseSummary]] = []
    for step in steps:
        if isinstance(step, tuple):
            part, function, group = step
            book.add(part, function and FunctionKey(function, ()), group)
            taken.merge(part)
            if function:
                book.of_function(FunctionKey(function, ())).add(COMPILES, 9)
                taken.add(COMPILES, 9)
        elif step == "snapshot":
            kept.append((Snapshot(*book.share(), book.calls), summarise_uses(taken)))
        elif step == "drop function":
            book.drop_function(FunctionKey("f", ()))
            assert FunctionKey("f", ()) not in book.functions
        else:
            book.drop_group("g")
            assert "g" not in book.groups
    kept.append((Snapshot(*book.share(), book.calls), summarise_uses(taken)))
    for snapshot, expected in kept:
        assert summarise_uses(add_up(snapshot.functions.values())) == expected
        in_groups = attrs.evolve(expected, compile=NOTHING)
        assert summarise_uses(add_up(snapshot.groups.values())) == in_groups
        assert summarise_uses(snapshot.whole()) == expected
        assert snapshot.calls == expected.calls
    book.clear()
    assert (book.functions, book.groups, book.calls) == ({}, {}, 0)
    assert summarise_uses(kept[-1][0].whole()) == kept[-1][1]


@given(uses(), uses())
def test_what_was_frozen_is_taken_as_it_was(some: UseStats, other: UseStats) -> None:
    """Freezing and taking is merging, and freezes the moment."""
    frozen, merged = some.freeze(2), some.copy()
    merged.held = 2
    some.clear()
    taken = other.copy()
    taken.take(frozen)
    merged.merge(other)
    assert slots_of(taken) == slots_of(merged)
    assert summarise_uses(some) == summarise_uses(UseStats())


def test_durations_are_rounded_down_and_never_negative() -> None:
    """Also where a clock goes backwards."""
    assert [microseconds(s) for s in (0.0, 0.9e-6, 1.5e-6, 2.0, -1.0)] == [0, 0, 1, 2_000_000, 0]


def stats_of(bench: Bench) -> CacheStats:
    """The statistics of a policy: its counters, gauges of zero, and its distributions."""
    policy, snapshot = bench.policy, bench.policy.instances.snapshot()
    given_here = {"hits": policy.hits, "misses": policy.misses, "blocks": policy.blocks}
    names = [field.name for field in attrs.fields(CacheStats) if not field.name.startswith("_")]
    rest = dict.fromkeys(names, 0)
    return CacheStats(
        **{**rest, "evictions": {}, "compiler_code_sizes": {}, **given_here}, uses=snapshot
    )


def test_the_policy_records_waits_and_holds_once() -> None:
    """From asking to being granted, and from then on; a hit at once waits for nothing."""
    bench = Bench()
    policy, function = bench.policy, bench.function("f")
    first, _ = bench.ask(function)
    bench.now = 2.0
    policy.loaded(first, bench.now)  # waited 2 s, for its load
    second, _ = bench.ask(function, "bertha")
    bench.now = 5.0
    policy.recycle(first, 1, bench.now)  # held 3 s; the second waited as long
    bench.now = 6.0
    policy.recycle(second, 1, bench.now)
    third, _ = bench.ask(function)
    summary = stats_of(bench).per_function["f(i64)"]
    assert (summary.hits, summary.misses, summary.blocks) == (2, 1, 1)
    assert (summary.wait.count, summary.wait.total) == (3, 5_000_000)
    assert summary.wait.buckets[0] == (0, 1)
    assert (summary.hold.count, summary.hold.total) == (2, 4_000_000)
    bench.now = 7.0
    policy.recycle(third, 1, bench.now)
    assert stats_of(bench).hold.total == 5_000_000


def test_warming_is_neither_waited_for_nor_held() -> None:
    """Instances that are loaded ahead are no leases."""
    bench = Bench()
    request, _ = bench.ask(bench.function("f"), warm=True)
    bench.now = 2.0
    bench.policy.loaded(request, bench.now)
    bench.policy.recycle(request, 1, bench.now)
    stats = stats_of(bench)
    assert (stats.wait.count, stats.hold.count) == (0, 0)
    assert list(stats.per_group) == ["main"]
    assert stats.per_group["main"].hits == 0


def test_what_goes_is_counted_under_no_name() -> None:
    """A removed function and a closed group keep their sums, but not their names."""
    bench = Bench()
    function, red = bench.function("f"), GroupRecord("red")
    for group in (bench.main, red):
        bench.idle(function, group=group)
    held = bench.lease(function, group=red)
    assert stats_of(bench).per_function["f(i64)"].hits == 1
    bench.retire(function)
    bench.close(red)
    for _ in range(2):
        stats = stats_of(bench)
        assert {name: one.misses for name, one in stats.per_function.items()} == {"": 2}
        assert {name: one.misses for name, one in stats.per_group.items()} == {"main": 1, "": 1}
        assert stats.per_group[""].hits == stats.per_function[""].hits == 1
        if held.stage is Stage.GRANTED:
            bench.recycle(held)


def test_a_replacement_goes_on_with_what_its_predecessor_had() -> None:
    """All generations of a function are one, also if an old one is still held."""
    bench = Bench()
    old, new = bench.function("f"), bench.function("f", "new")
    held = bench.lease(old)
    bench.retire(old, new)
    bench.recycle(held)
    bench.lease(new)
    assert {name: one.misses for name, one in stats_of(bench).per_function.items()} == {"f(i64)": 2}


def test_errors_and_late_calls_find_their_way_into_a_forgotten_entry() -> None:
    """What is noted after the last instance went is not lost."""
    bench = Bench()
    policy, function = bench.policy, bench.function("f")
    request, _ = bench.ask(function)
    entry = request.entry
    policy.failed(request, 0.0)
    assert entry not in policy.instances.entries
    policy.note_error(entry, "LoadError")
    entry.uses.continued += 1
    policy.note_long_call(entry, 7, 0.5)
    policy.note_token_block(function, bench.main)
    summary = stats_of(bench).per_function["f(i64)"]
    assert (summary.errors, summary.calls, summary.blocks) == ({"LoadError": 1}, 1, 1)
    assert (summary.run.total, summary.fuel.total) == (500_000, 7)
    assert not policy.instances.entries


def come_and_go(bench: Bench, functions: list[FunctionRecord], group: GroupRecord) -> None:
    """Each is leased once, and nothing of it stays."""
    for function in functions:
        bench.recycle(bench.lease(function, group=group), drop=Reason.CORRUPTED)
        assert not bench.policy.instances.entries
        assert len(bench.policy.instances._parked) <= PARKED


@pytest.mark.parametrize("many", [1, PARKED, PARKED + 3])
def test_entries_that_come_and_go_count_on(many: int) -> None:
    """Nothing is lost and nothing counted twice, whoever asks in between, and whatever ends."""
    bench, red = Bench(), GroupRecord("red")
    functions = [bench.function(f"f{number}") for number in range(many)]
    for times in range(1, 4):
        come_and_go(bench, functions, bench.main)
        come_and_go(bench, functions, red)
        come_and_go(bench, functions[:1], red)
        if times != 2:
            stats = stats_of(bench)
            seen = {name: one.misses for name, one in stats.per_function.items()}
            assert seen.pop("f0(i64)") == 3 * times
            assert seen == {f"f{number}(i64)": 2 * times for number in range(1, many)}
            groups = {name: one.misses for name, one in stats.per_group.items()}
            assert groups == {"main": many * times, "red": (many + 1) * times}
            assert stats.wait.count == stats.hold.count == (2 * many + 1) * times
    come_and_go(bench, functions[:1], red)
    bench.retire(functions[0])
    come_and_go(bench, functions[1:], bench.main)
    bench.close(red)
    stats = stats_of(bench)
    assert (stats.per_function[""].misses, "f0(i64)" in stats.per_function) == (10, False)
    assert stats.per_group[""].misses == 3 * (many + 1) + 1
    assert stats.per_group["main"].misses == 3 * many + many - 1


def test_what_is_noted_of_an_entry_that_came_and_went_is_counted_once() -> None:
    """Before it comes again, while it is there, and after its counts were added up."""
    bench = Bench()
    policy, function = bench.policy, bench.function("f")
    request = bench.lease(function)
    entry = request.entry
    bench.now = 3.0
    bench.recycle(request, drop=Reason.CORRUPTED)
    policy.note_error(entry, "Late")
    again = bench.lease(function)
    policy.note_error(entry, "Late")
    bench.recycle(again, drop=Reason.CORRUPTED)
    assert stats_of(bench).errors == {"Late": 2}
    policy.note_error(entry, "Late")
    last = bench.lease(function)
    policy.note_error(entry, "Late")
    bench.recycle(last, drop=Reason.CORRUPTED)
    assert stats_of(bench).errors == {"Late": 4}
    policy.note_error(entry, "Late")
    last = bench.lease(function)
    entry = last.entry
    bench.recycle(last, drop=Reason.CORRUPTED)
    policy.instances.begin_anew()
    assert (stats_of(bench).errors, stats_of(bench).load.count) == ({}, 0)
    policy.note_error(entry, "Late")
    summary = stats_of(bench).per_function["f(i64)"]
    assert (summary.errors, summary.misses) == ({"Late": 1}, 0)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("removed", [False, True])
def test_nothing_is_kept_of_what_was_removed_or_closed(removed: bool, held: bool) -> None:
    """Counts of forgotten entries are kept for when they come again: these do not."""
    bench = Bench()
    function, group = bench.function("f"), GroupRecord("red")
    lease = bench.lease(function, group=group)
    if not held:
        bench.recycle(lease, drop=Reason.CORRUPTED)
    if removed:
        bench.retire(function)
    else:
        bench.close(group)
    if held:
        bench.recycle(lease, drop=Reason.CORRUPTED)
    gone = weakref.ref(function if removed else group)
    del function, group, lease
    gc.collect()
    assert gone() is None


def test_a_deadlock_blocks_nobody() -> None:
    """Who is refused has not waited; the lease that it holds is counted."""
    bench = Bench()
    request = bench.lease(bench.function("f"))
    with pytest.raises(DeadlockError):
        bench.ask(request.entry.function)
    stats = stats_of(bench)
    assert (stats.blocks, stats.wait.count, stats.per_group["main"].misses) == (0, 1, 1)


def test_beginning_anew_leaves_held_leases_out() -> None:
    """A lease is granted once, so it is not granted again in the next period, when it ends."""
    bench = Bench()
    policy = bench.policy
    request = bench.lease(bench.function("f"))
    policy.instances.begin_anew()
    assert stats_of(bench).per_group["main"].hits == 0
    policy.recycle(request, 1, 3.0)
    summary = stats_of(bench).per_group["main"]
    assert (summary.hits, summary.misses, summary.wait.count) == (0, 0, 0)
    assert (summary.hold.count, summary.hold.total) == (1, 3_000_000)
    bench.retire(request.entry.function)
    assert stats_of(bench).per_function[""].hits == 0


def test_stats_are_frozen() -> None:
    """Neither a summary nor a mapping of them can be changed, and both stay as they were."""
    bench = Bench()
    function = bench.function("f")
    request, _ = bench.ask(function)
    before = stats_of(bench)
    bench.policy.loaded(request, 1.0)
    bench.policy.recycle(request, 1, 2.0)
    assert before.per_function["f(i64)"].misses == before.wait.count == before.hold.count == 0
    assert before.per_function["f(i64)"] is before.per_function["f(i64)"]
    assert repr(before.per_function) == "<summaries of 'f(i64)'>"
    assert repr(stats_of(Bench()).per_group) == "<summaries of nothing>"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        before.hits = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        before.per_function["f(i64)"] = before.per_function["f(i64)"]  # type: ignore[index]
    with pytest.raises(KeyError):
        before.per_group["none"]


def test_more_than_a_byte_holds_are_counted() -> None:
    """Also in a copy of plain values, and beside values with more bits than there are bytes for."""
    uses, copied = UseStats(), UseStats()
    for _ in range(700):
        uses.add(HOLDS, 5)
        uses.add(FUELS, 2**64 - 1)
    uses.add(HOLDS, 2**60)
    uses.add(LOADS, 2**40)
    copied.take(uses.freeze(0))
    for one in (uses, copied, uses.copy()):
        assert one.distribution(HOLDS) == Distribution(3500 + 2**60, {3: 700, 61: 1})
        assert one.distribution(FUELS) == Distribution(700 * (2**64 - 1), {64: 700})
        assert one.distribution(LOADS) == Distribution(2**40, {41: 1})
        assert one.calls == 700
