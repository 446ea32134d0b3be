"""Instances that are lent to threads: their batches are as any others, without the way to Trio."""

from __future__ import annotations

import contextvars
import math
import threading
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import pyarrow
import pytest
import trio
import trio.testing
from batch.modules import dividing
from hypothesis import HealthCheck, given, strategies as st
from kits import FakeKit, Kit, ListLogger, WasmtimeKit, tries
from outside.support import HANG, opening

from trio_wasmcache import CacheConfig, HostFunction, TrapError, blocking
from trio_wasmcache._batch.small import SmallBatches
from trio_wasmcache._cache import lent
from trio_wasmcache._portal import Portal
from trio_wasmcache.blocking import BlockingCache, BlockingFunction

TWO = ("i64", "i64")
# As long as its argument says, in a slice or in many.
COUNTS: Any = """(module (func (export "run") (param i64) (result i64) (local i64)
  (loop (local.set 1 (i64.add (local.get 1) (i64.const 1)))
    (br_if 0 (i64.lt_u (local.get 1) (local.get 0)))) (local.get 1)))"""


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second batch always comes soon enough, and nothing is taken back for not being used."""
    monkeypatch.setattr(blocking, "SOON", math.inf)
    monkeypatch.setattr(blocking, "REFUSED", -math.inf)
    monkeypatch.setattr(lent, "UNUSED", math.inf)


@pytest.fixture
def cache(kit: Kit, log: ListLogger) -> Iterator[BlockingCache]:
    """A cache on each engine; closing it checks that nothing is left open."""
    with blocking._open(opening(kit, log)) as cache:
        yield cache


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the cache's thread."""
    found: list[str] = []
    submit = Portal.submit

    def count(self: Portal, request: Any) -> None:
        found.append(request.what)
        submit(self, request)

    monkeypatch.setattr(Portal, "submit", count)
    return found


def divide(cache: BlockingCache, kit: Kit, **more: Any) -> BlockingFunction[Any]:
    """Divides its first argument by its second one."""
    wasm = more.pop("wasm", None) or dividing(kit)
    options = {"args": TWO, "returns": "i64", "export": "run", "concurrency": 2, **more}
    return cache.register("f", wasm, **options)


def lend(f: BlockingFunction[Any]) -> None:
    """Have an instance lent to this thread."""
    for _ in range(2):
        f.map([[1], [1]])
    assert f._here.lent is not None


def test_batches_that_follow_each_other(
    cache: BlockingCache, kit: Kit, hops: list[str], log: ListLogger
) -> None:
    """From the second one on, they do not go to the cache's thread; all are counted in the end."""
    f = divide(cache, kit)
    lend(f)
    hops.clear()
    for number in range(1, 6):
        assert list(f.map([[6 * number], number])) == [6]
    assert list(f.map([array("q", [8]), range(1, 2)])) == [8]
    assert f.map([numpy.array([9]), pyarrow.array([3])]).equals(pyarrow.array([3]))
    assert hops == []
    assert cache.stats().running_instances == 1
    cache.close()
    stats = cache.stats()
    assert (stats.calls, stats.misses, stats.hits) == (9, 1, 0)
    with pytest.raises(trio.ClosedResourceError):
        f.map([[1], [1]])
    assert log.lines[-1][1] == "wasmcache.closed"


def test_each_thread_has_its_own(cache: BlockingCache, kit: Kit) -> None:
    """As many as there are instances; a third one waits, and gets its turn at the next batch."""
    f = divide(cache, kit)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(lend, f).result(HANG)
        second.submit(lend, f).result(HANG)
        assert cache.stats().running_instances == 2
        with ThreadPoolExecutor(1) as third:
            waits = third.submit(f.call, 6, 3)
            while not any(entry.waiting for entry in cache.entries()):
                pass
            assert list(first.submit(f.map, [[8], [2]]).result(HANG)) == [4]
            assert waits.result(HANG) == 2


@pytest.mark.parametrize("begin", [0, 1])
def test_a_row_that_traps(cache: BlockingCache, kit: Kit, begin: int) -> None:
    """Its error is that of any batch, the instance is dropped, and the next batch has another."""
    f = divide(cache, kit)
    lend(f)
    columns = [pyarrow.array([5, 6, 7]), pyarrow.array([1, 0, 1])][begin:] + [[1, 0, 1]] * begin
    with pytest.raises(TrapError) as caught:
        f.map(columns if not begin else [[5, 6, 7], [1, 0, 1]])
    assert (caught.value.row, caught.value.values) == (1, (6, 0))
    assert "f(i64, i64) in row 1 of a batch" in str(caught.value)
    assert list(f.map([[6], [3]])) == [2]
    assert cache.stats().evictions["corrupted"] == 1


def counting(cache: BlockingCache, **more: Any) -> BlockingFunction[Any]:
    f = cache.register("f", COUNTS, args=("i64",), returns="i64", export="run", concurrency=2)
    for _ in range(2):
        f.map([[1]])
    assert f._here.lent is not None
    return f


def test_rows_that_take_several_slices(real: WasmtimeKit, hops: list[str]) -> None:
    """They go on in the cache's thread; a timeout stops them, and the instance is dropped."""
    config = CacheConfig(total_fuel=10**15, yield_fuel=10_000)
    with blocking._open(lambda: real.open(config)) as cache:
        f = counting(cache)
        hops.clear()
        assert list(f.map([[10_000, 20_000, 1]])) == [10_000, 20_000, 1]
        assert hops == ["map of f(i64)"]
        lend_again = f.map([pyarrow.array([1])])
        assert lend_again.equals(pyarrow.array([1]))
        f.map([[1]])
        assert f._here.lent is not None
        with pytest.raises(TimeoutError):
            f.map([[1, 10**15]], timeout=0.01)
        assert list(f.map([[3]])) == [3]
        assert cache.stats().evictions["corrupted"] == 1


@pytest.mark.parametrize("when", ["while", "before"])
def test_taken_back_from_a_batch(
    when: str, real: WasmtimeKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has gone on in the cache's thread ends there; one that has not begins anew."""
    go_on = lent.Lent.go_on

    async def taken_back(self: lent.Lent, begun: lent.Begun) -> Any:
        self.give_up()
        if when == "before":
            await trio.testing.wait_all_tasks_blocked()
            assert self._ended
        return await go_on(self, begun)

    monkeypatch.setattr(lent.Lent, "go_on", taken_back)
    config = CacheConfig(total_fuel=10**15, yield_fuel=10_000)
    with blocking._open(lambda: real.open(config)) as cache:
        f = counting(cache)
        assert list(f.map([[100_000, 20_000, 1]])) == [100_000, 20_000, 1]
        assert cache.stats().evictions.get("corrupted", 0) == (when == "before")


def test_closed_while_a_batch_is_under_way(real: WasmtimeKit) -> None:
    """One that was lent, and has gone on in the cache's thread."""
    config = CacheConfig(total_fuel=10**15, yield_fuel=10_000)
    with blocking._open(lambda: real.open(config)) as cache, ThreadPoolExecutor(1) as other:
        f = other.submit(counting, cache).result(HANG)
        spins = other.submit(f.map, [[10**15]])
        while cache.stats().calls < 3:
            pass
        cache.close()
        assert isinstance(spins.exception(HANG), trio.ClosedResourceError)


def test_what_is_no_small_batch(cache: BlockingCache, kit: Kit, hops: list[str]) -> None:
    """It goes the other way, for which the instance is given back."""
    f = divide(cache, kit)
    for columns in ([[6, None], 3], [pyarrow.array([6, None]), 3], [range(20_000), 1]):
        lend(f)
        hops.clear()
        found = f.map(columns)
        assert len(found) == len(columns[0])  # type: ignore[arg-type]
        assert hops == ["map of f(i64, i64)"]
    lend(f)
    with pytest.raises(TypeError, match="row 0"):
        f.map([["x"], 1])
    with pytest.raises(ValueError, match="timeout"):
        f.map([[1], 1], timeout=-1)
    assert f.map([[6, 5], [2, 0]], on_error="null") == [3, None]


def test_a_new_generation_is_used_at_once(cache: BlockingCache, kit: Kit) -> None:
    """Also by a thread that has an instance of the old one."""
    f = cache.register(
        "f", kit.adding(1), args=("i64",), returns="i64", export="run", concurrency=2
    )
    for _ in range(3):
        assert list(f.map([[1]])) == [2]
    cache.register(
        "f", kit.adding(2), args=("i64",), returns="i64", export="run", concurrency=2, replace=True
    )
    for _ in range(3):
        assert list(f.map([[1]])) == [3]


@pytest.mark.parametrize(
    "more", [{"concurrency": 1}, {"isolation": "reset"}, {"isolation": "fresh"}]
)
def test_functions_whose_instances_are_not_lent(
    cache: BlockingCache, kit: Kit, hops: list[str], more: dict[str, Any]
) -> None:
    """As others wait for the only one; as each batch must find it as it began."""
    f = divide(cache, kit, **more)
    hops.clear()
    for _ in range(4):
        assert list(f.map([[6], 3])) == [2]
    assert len(hops) == 4


def test_limits_of_the_group(kit: Kit, hops: list[str]) -> None:
    """With a capacity, or a limit of CPU time, others may wait for what the thread would have."""
    for config in (CacheConfig(main_capacity=9), CacheConfig(main_cpu_limit=2.0)):
        with blocking._open(lambda config=config: kit.open(config)) as cache:
            f = divide(cache, kit)
            hops.clear()
            for _ in range(4):
                assert list(f.map([[6], 3])) == [2]
            assert len(hops) == 4


def test_host_functions_and_groups(cache: BlockingCache, kit: Kit, hops: list[str]) -> None:
    """A function that calls the host is not lent, and nothing is in a group."""
    imports = {"host": {"ask": HostFunction(abs, ("i64",), ("i64",))}}
    options: dict[str, Any] = {"args": ("i64",), "returns": "i64", "export": "run"}
    asks = cache.register("asks", kit.asking(), imports=imports, concurrency=2, **options)
    f = divide(cache, kit)
    lend(f)
    with cache.scheduling_group("reports", capacity=3):
        hops.clear()
        for _ in range(4):
            assert list(asks.map([[-5]])) == [5]
            assert list(f.map([[6], 3])) == [2]
        assert len(hops) == 8


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_in_a_lent_batch(
    cache: BlockingCache, kit: Kit, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The caller gets it, the instance is dropped, and the next batch has another."""
    f = divide(cache, kit)
    lend(f)
    begin = SmallBatches.begin

    def interrupted(self: SmallBatches, *args: Any) -> Any:
        if when == "after":
            begin(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(SmallBatches, "begin", interrupted)
        with pytest.raises(KeyboardInterrupt):
            f.map([[6], 3])
    assert list(f.map([[6], 3])) == [2]
    assert cache.stats().evictions["corrupted"] == 1


def test_interrupted_between_two_steps(
    cache: BlockingCache, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has begun, an instance of which nobody knows more is not used again."""
    f = divide(cache, kit)
    lend(f)
    borrowed: Any = f._here.lent

    class Interrupts(list[int]):
        def append(self, _: int, /) -> None:
            raise KeyboardInterrupt

    borrowed._burnt = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        f.map([[6], 3])
    assert list(f.map([[6], 3])) == [2]
    cache.close()
    assert cache.stats().evictions["corrupted"] == 1


def test_a_batch_in_the_midst_of_another(
    cache: BlockingCache, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler or a finalizer may ask for it: it goes the other way."""
    f = divide(cache, kit)
    lend(f)
    begin, inner = SmallBatches.begin, []

    def nested(self: SmallBatches, *args: Any) -> Any:
        monkeypatch.setattr(SmallBatches, "begin", begin)
        inner.append(list(f.map([[8], 2])))
        return begin(self, *args)

    monkeypatch.setattr(SmallBatches, "begin", nested)
    assert list(f.map([[6], 3])) == [2]
    assert inner == [[4]]


def test_closing_in_the_midst_of_a_batch(
    cache: BlockingCache, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler may ask for it: it would wait for the batch, which waits for it."""
    f = divide(cache, kit)
    lend(f)
    begin, refusals = SmallBatches.begin, []

    def closes(self: SmallBatches, *args: Any) -> Any:
        with pytest.raises(RuntimeError, match="in the midst of a batch") as caught:
            cache.close()
        refusals.append(caught.value)
        return begin(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(SmallBatches, "begin", closes)
        assert list(f.map([[6], 3])) == [2]
    assert len(refusals) == 1
    assert list(f.map([[6], 3])) == [2]
    cache.close()


def test_a_group_without_a_capacity(cache: BlockingCache, kit: Kit) -> None:
    """Nothing is lent in it: the thread could use the group's instance outside of it."""
    f = divide(cache, kit)
    outside = contextvars.copy_context()
    with cache.scheduling_group("reports", capacity=math.inf):
        for _ in range(3):
            assert list(f.map([[6], 3])) == [2]
            assert f._here.lent is None
        assert list(outside.run(f.map, [[8], 2])) == [4]
    calls = {group: uses.calls for group, uses in cache.stats().per_group.items()}
    assert calls == {"": 3, "main": 1}  # closed groups have no names


def test_taken_back_when_it_is_not_used(
    cache: BlockingCache, kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after some time in any case."""
    monkeypatch.setattr(lent, "UNUSED", 0)
    f = divide(cache, kit)
    for number in range(1, 20):
        assert list(f.map([[2 * number], number])) == [2]
    while cache.stats().running_instances:
        pass
    assert cache.stats().calls == 19


VALUES = st.sampled_from([0, 1, -1, 7, 2**63 - 1, -(2**63), None, "x", 1.5])


@pytest.fixture
def both(real: WasmtimeKit) -> Iterator[tuple[BlockingFunction[Any], BlockingFunction[Any]]]:
    """A function whose instances are lent, and one whose are not."""
    with blocking._open(lambda: real.open(CacheConfig(yield_fuel=200))) as cache:
        options: dict[str, Any] = {"args": TWO, "returns": "i64", "export": "run"}
        yield divide(cache, real), cache.register("g", dividing(real), **options)


@given(data=st.data())
@tries(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_results_and_errors_are_those_of_any_batch(
    both: tuple[BlockingFunction[Any], BlockingFunction[Any]], data: st.DataObject
) -> None:
    """Whatever comes in which order."""
    rows = st.shared(st.integers(0, 4), key="rows")

    def columns() -> st.SearchStrategy[Any]:
        def of(count: int) -> st.SearchStrategy[Any]:
            ints = st.lists(st.integers(-3, 3), min_size=count, max_size=count)
            return st.one_of(
                st.lists(VALUES, min_size=count, max_size=count),
                ints,
                ints.map(lambda it: array("q", it)),
                ints.map(lambda it: pyarrow.array(it, pyarrow.int64())),
                ints.map(lambda it: numpy.array(it, "int64")),
                st.integers(-1, 1),
            )

        return rows.flatmap(lambda count: st.tuples(of(count), of(count)))

    batches = data.draw(st.lists(columns(), min_size=3, max_size=6))
    lending, other = both
    for batch in batches:
        assert outcome(lending.map, batch) == outcome(other.map, batch)


def outcome(map_: Callable[..., Any], columns: Any) -> Any:
    try:
        result = map_(list(columns))
    except (TrapError, TypeError, ValueError, OverflowError) as error:
        text = str(error).partition(" after ")[0].split("\n")[0].replace("g(i64", "f(i64")
        return type(error), text, getattr(error, "row", None)
    return type(result), list(result)


def test_many_threads_and_a_close(kit: Kit) -> None:
    """All batches have their results, or the cache is closed."""
    with blocking._open(opening(kit)) as cache, ThreadPoolExecutor(4) as threads:
        f = divide(cache, kit, concurrency=4)
        ready = threading.Barrier(5)

        def run() -> int:
            for number in range(1, 300):  # an end of its own: these threads take the GIL
                if number == 20:
                    ready.wait(HANG)
                try:
                    assert list(f.map([[2 * number], number])) == [2]
                except trio.ClosedResourceError:
                    return number
            return 300

        found = [threads.submit(run) for _ in range(4)]
        ready.wait(HANG)
        cache.close()
        assert all(one.result(HANG) >= 20 for one in found)
    if isinstance(kit, FakeKit):
        assert not kit.engine.open_instances
