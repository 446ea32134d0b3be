"""`max_running_size`: what an instance may touch at most, and who waits for whom because of it."""

from __future__ import annotations

import pytest
from core.policy.policy_bench import Bench, reasons
from hypothesis import given, strategies as st

from trio_wasmcache._core.config import SCRATCH_LIMIT, WASM_PAGE
from trio_wasmcache._core.errors import CodeMemoryError, DeadlockError
from trio_wasmcache._core.policy.records import Stage
from trio_wasmcache._core.wasm.admission import check_limits, worst_size
from trio_wasmcache._core.wasm.editor import encode_module
from trio_wasmcache._core.wasm.reader import Limits, TableType, read_module

SIZES = st.integers(0, 40)
LIMITS = st.builds(
    lambda low, more: Limits(low, None if more is None else low + more), SIZES, st.none() | SIZES
)


def worst(
    memories: list[Limits], tables: list[Limits], memory_limit: int, table_limit: int
) -> tuple[int, int]:
    """The bytes of memories and the elements of tables that an instance may come to."""
    info = read_module(
        encode_module(
            types=[], memories=memories, tables=[TableType("funcref", one) for one in tables]
        )
    )
    edits = check_limits(info, "f", memory_limit, table_limit)
    alone = read_module(encode_module(types=[], memories=memories))
    without_tables = worst_size((alone, check_limits(alone, "f", memory_limit, 0)))
    whole = worst_size((info, edits))
    return without_tables - WASM_PAGE - 2 * SCRATCH_LIMIT, (whole - without_tables) // 8


@pytest.mark.parametrize(
    ("memories", "tables", "expected"),
    [
        ([], [], (0, 0)),
        ([Limits(1, 3)], [], (3, 0)),
        ([Limits(1)], [], (10, 0)),
        ([Limits(1, 30)], [], (10, 0)),
        ([Limits(2, 2), Limits(1, 4)], [], (6, 0)),
        ([Limits(2, 2), Limits(1)], [], (10, 0)),
        ([Limits(1), Limits(1)], [], (10, 0)),
        ([], [Limits(5, 7)], (0, 7)),
        ([], [Limits(5)], (0, 100)),
        ([Limits(1, 1)], [Limits(5), Limits(80, 90)], (1, 100)),
    ],
)
def test_the_worst_case_is_the_maxima_under_the_limits(
    memories: list[Limits], tables: list[Limits], expected: tuple[int, int]
) -> None:
    """Ten pages and a hundred elements are the limits; what a module says about itself is less."""
    pages, elements = expected
    assert worst(memories, tables, 10 * WASM_PAGE + 5, 100) == (pages * WASM_PAGE, elements)


@given(st.lists(LIMITS, max_size=4), st.lists(LIMITS, max_size=4), SIZES, SIZES)
def test_the_worst_case_lies_between_the_start_and_the_limit(
    memories: list[Limits], tables: list[Limits], more_pages: int, more_elements: int
) -> None:
    """However the room that is left over is shared out."""
    pages = sum(one.minimum for one in memories)
    elements = sum(one.minimum for one in tables)
    limits = (pages + more_pages) * WASM_PAGE, elements + more_elements
    size, entries = worst(memories, tables, *limits)
    assert pages * WASM_PAGE <= size <= limits[0]
    assert elements <= entries <= limits[1]


def test_who_would_exceed_it_waits_its_turn() -> None:
    """A small one behind a large one, as for code; and what rests counts no longer."""
    bench = Bench(max_running_size=10)
    lease = bench.lease(bench.function("running", worst=6), "anna")
    large = bench.acquire(bench.function("large", worst=5), "ben")
    small = bench.acquire(bench.function("small", worst=1), "cleo")
    assert (large.stage, small.stage, bench.policy.blocks) == (Stage.ROOM, Stage.ROOM, 2)
    assert bench.policy.instances.ledger.running_size == 6
    assert bench.recycle(lease).woken == [large, small]
    assert bench.policy.instances.ledger.running_size == 6


def test_a_hit_waits_for_it_too() -> None:
    """The idle instance stays where it is, and is the one that is granted in the end."""
    bench = Bench(max_running_size=10)
    wanted = bench.function("wanted", worst=5)
    instance = bench.idle(wanted)
    lease = bench.lease(bench.function("running", worst=6), "anna")
    request, step = bench.ask(wanted, "ben")
    assert (request.stage, step.evicted) == (Stage.ROOM, [])
    assert bench.recycle(lease).woken == [request]
    assert (request.hit, request.instance) == (True, instance)


def test_nothing_is_evicted_for_it() -> None:
    """What is idle does not count, so its going would be for nothing."""
    bench = Bench(max_running_size=10, max_code=3)
    bench.idle(bench.function("idle"))
    lease = bench.lease(bench.function("running", worst=10), "anna")
    request, step = bench.ask(bench.function("new", worst=1), "ben")
    assert (request.stage, step.evicted) == (Stage.ROOM, [])
    assert reasons(bench.recycle(lease)) == [("idle", "code")]
    assert request.stage is Stage.LOADING


def test_what_is_loading_counts_and_is_given_back_when_it_fails() -> None:
    """The next one in line is woken by the failure."""
    bench = Bench(max_running_size=10)
    loading = bench.acquire(bench.function("f", worst=6), "anna")
    waiting = bench.acquire(bench.function("g", worst=6), "ben")
    assert (loading.stage, waiting.stage) == (Stage.LOADING, Stage.ROOM)
    assert bench.fail(loading).woken == [waiting]
    assert bench.policy.instances.ledger.running_size == 6


def test_who_holds_what_it_waits_for_is_told_at_once() -> None:
    """Alone with an instance, waiting for room that only its own end could make, is a deadlock."""
    bench = Bench(max_running_size=10)
    lease = bench.lease(bench.function("f", worst=6), "anna")
    with pytest.raises(DeadlockError) as caught:
        bench.acquire(bench.function("g", worst=6), "anna")
    assert caught.value.chain == ("anna waits for room for code, stack, memory and addresses",)
    bench.recycle(lease)
    assert bench.acquire(bench.function("g", worst=6), "anna").stage is Stage.LOADING


def test_what_exceeds_it_alone_is_refused_at_once() -> None:
    """The message names the function, what it may touch and the limit; exactly fitting is fine."""
    bench = Bench(max_running_size=10)
    with pytest.raises(CodeMemoryError) as caught:
        bench.acquire(bench.function("f", worst=11))
    assert str(caught.value) == (
        "f(i64) may touch 11 bytes while it runs, but max_running_size is 10: raise it, or "
        "register under a smaller memory_limit"
    )
    assert not bench.policy.instances.entries
    assert bench.acquire(bench.function("g", worst=10)).stage is Stage.LOADING


def test_another_limit_lets_in_or_refuses_who_waits() -> None:
    """More room wakes them in order; where it became too little for one, that one is told."""
    bench = Bench(max_running_size=10)
    lease = bench.lease(bench.function("running", worst=8), "anna")
    large = bench.acquire(bench.function("large", worst=9), "ben")
    small = bench.acquire(bench.function("small", worst=3), "cleo")
    step = bench.resize(max_running_size=8)
    assert step.woken == [large]
    assert isinstance(large.error, CodeMemoryError)
    assert (small.stage, lease.stage) == (Stage.ROOM, Stage.GRANTED)
    assert bench.resize(max_running_size=11).woken == [small]
    assert bench.resize(max_running_size=3).woken == []
    assert bench.policy.instances.ledger.running_size == 11
    assert bench.acquire(bench.function("more", worst=1), "dora").stage is Stage.ROOM


def test_without_a_limit_the_sum_is_kept_all_the_same() -> None:
    """It is told by the statistics, and holds for a limit that is set later."""
    bench = Bench()
    leases = [bench.lease(bench.function(name, worst=10**9), name) for name in "ab"]
    assert bench.policy.instances.ledger.running_size == 2 * 10**9
    for lease in leases:
        bench.recycle(lease)
    assert bench.policy.instances.ledger.running_size == 0
