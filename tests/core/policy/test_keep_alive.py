"""`idle_timeout="adaptive"`: what is learned of idle times, and which timeouts come of it."""

from __future__ import annotations

import gc
import math
import tracemalloc
from collections.abc import Sequence
from random import Random

import pytest
from core.policy.policy_bench import short_hit
from core.policy.policy_model import MIdleTimes
from core.policy.test_policy_machine import model_weights, weights

from trio_wasmcache._core.config import CacheConfig
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.keys import FunctionKey
from trio_wasmcache._core.policy import keep_alive
from trio_wasmcache._core.policy.idle_times import FULL, IdleTimes, beginning, class_of
from trio_wasmcache._core.policy.instances import MAX_EXPIRED, Step
from trio_wasmcache._core.policy.keep_alive import KeepAlive
from trio_wasmcache._core.policy.policy import Policy
from trio_wasmcache._core.policy.records import (
    Entry,
    FunctionRecord,
    GroupRecord,
    Instance,
    Module,
    Stage,
)


def times_of(seconds: Sequence[float]) -> IdleTimes:
    times = IdleTimes()
    for one in seconds:
        times.add(one)
    return times


# -- the histogram


def test_classes_are_a_fifth_apart() -> None:
    """Each begins where the one before ends, from a millisecond to decades."""
    for place in range(-40, 120):
        assert beginning(place + 1) == pytest.approx(beginning(place) * 2**0.25)
        assert class_of(beginning(place)) == place
        assert class_of(math.nextafter(beginning(place + 1), 0)) == place
    assert beginning(0) == 1.0
    assert class_of(1e-300) == -40
    assert class_of(1e300) == 120


def test_it_counts_as_a_plain_one_does() -> None:
    """For thousands of random times, which overflow it again and again."""
    random = Random(1)
    for spread in (0.1, 1.0, 4.0):
        times, plain = IdleTimes(), MIdleTimes()
        for _ in range(1000):
            seconds = random.choice([math.exp(random.gauss(3, spread)), math.inf])
            times.add(seconds)
            plain.add(seconds, math.inf)
            assert weights(times) == model_weights(plain)
            assert times.total <= FULL
            assert times.timeout(1, 600) == pytest.approx(plain.timeout(1, 600))


def test_periodic_uses_are_waited_for() -> None:
    """A little longer than their period, which need not be exact; but never beyond the limits."""
    random = Random(2)
    for period in (2.0, 30.0, 400.0):
        times = times_of([period * random.uniform(0.98, 1.02) for _ in range(50)])
        assert period * 1.02 < times.timeout(1, 600) < 1.5 * period
    assert times_of([0.9]).timeout(1, 600) >= 1
    assert times_of([590.0]).timeout(1, 600) == 600
    assert times_of([0.1]).timeout(1, 600) == 1


def test_rare_uses_are_not_waited_for() -> None:
    """If it takes more idle time than each avoided load is worth."""
    assert times_of([math.inf] * 5).timeout(1, 600) == 1
    assert times_of([700.0] * 5).timeout(1, 600) == 1
    # By chance, every 100 s: always worth it. Every 3,000 s: never.
    random = Random(3)
    often = times_of([min(random.expovariate(1 / 100), 1e6) for _ in range(60)])
    assert often.timeout(1, 600) > 300
    seldom = [random.expovariate(1 / 3000) for _ in range(60)]
    assert times_of([it if it < 600 else math.inf for it in seldom]).timeout(1, 600) < 60


def test_bursts_are_waited_for_and_the_pauses_between_them_are_not() -> None:
    """It takes the quantile that pays, not a fixed one."""
    times = times_of(([4.0] * 9 + [math.inf]) * 6)
    assert 4.0 < times.timeout(1, 600) < 6.0


def test_habits_change() -> None:
    """A new period is learned at once, and an old one forgotten after a hundred uses."""
    times = times_of([10.0] * 100)
    assert times.timeout(1, 600) < 15
    times.add(100.0)
    assert times.timeout(1, 600) > 100
    for _ in range(110):
        times.add(10.0)
    assert times.timeout(1, 600) < 15


# -- the cache

LEAST, MOST = 1.0, 100.0


class Cache:
    """A policy whose background task is never late, unless told."""

    def __init__(self, **limits: float | str) -> None:
        self.config = CacheConfig(
            **{  # type: ignore[arg-type]
                "idle_timeout": "adaptive",
                "min_idle_timeout": LEAST,
                "max_idle_timeout": MOST,
                **limits,
            }
        )
        self.policy = Policy(self.config)
        self.group = GroupRecord("main")
        self.functions: dict[str, FunctionRecord] = {}
        self.gone: list[tuple[str, float]] = []
        """(function, time), of those that were evicted for time."""

    @property
    def keep_alive(self) -> KeepAlive:
        return self.policy.instances.keep_alive

    def times(self, name: str) -> tuple[tuple[int, int], ...]:
        return weights(self.keep_alive.times.get(self.function(name), IdleTimes()))

    def function(self, name: str) -> FunctionRecord:
        if name not in self.functions:
            key = FunctionKey(name, ())
            self.functions[name] = FunctionRecord(key, 1, Module(name, 0), concurrency=2)
        return self.functions[name]

    def wait(self, until: float) -> None:
        """All that is due by then is done at its time."""
        while (due := self.policy.next_expiry()) is not None and due <= until:
            self.note(self.policy.expire(due), due)

    def note(self, step: Step | None, at: float) -> None:
        for instance, event in () if step is None else step.evicted:
            if event.reason is Reason.IDLE:
                self.gone.append((instance.entry.function.key.name, at))

    def use(
        self,
        name: str,
        at: float,
        group: GroupRecord | None = None,
        *,
        late: bool = False,
        short: bool = True,
    ) -> str:
        """Use a function for no time: "short", a hit the short way, "long" or "miss"."""
        if not late:
            self.wait(at)
        function, group = self.function(name), group or self.group
        request = (
            short_hit(self.policy, function, group, "task", lambda _: None, at) if short else None
        )
        how = "short"
        if request is None:
            request = self.policy.request(function, group, "task")
            self.note(self.policy.acquire(request, at), at)
            how = "long"
            if request.stage is Stage.LOADING:
                self.policy.loaded(request, at, 10)
                request.held.ready = True
                how = "miss"
        if not (request.plain and self.policy.rest(request, 10, at)):
            self.note(self.policy.recycle(request, 10, at), at)
        return how

    def uses(self, name: str, *at: float) -> list[str]:
        return [self.use(name, one) for one in at]


def test_only_a_hit_after_the_shortest_timeout_takes_the_long_way() -> None:
    """It is reported then; on a young instance nothing is called, whatever is learned."""
    cache = Cache()
    assert cache.uses("f", 0, 0.5, 1.4, 2.3) == ["miss", "short", "short", "short"]
    assert cache.times("f") == ((999, 0),)
    assert cache.uses("f", 7.3, 7.5, 8.5) == ["long", "short", "long"]
    assert cache.times("f") == ((class_of(1.0), 4), (class_of(5.0), 4), (999, 0))


def test_an_aged_instance_that_was_set_aside_is_bound_anew() -> None:
    """Its next lease takes the long way for that, too, and finds it not ready."""
    cache = Cache()
    cache.use("f", 0)
    cache.wait(1)
    (instance,) = cache.policy.instances.lru
    assert (instance.ready, cache.keep_alive.due) == (None, {instance: MOST})
    instance.set_aside()
    request = cache.policy.request(cache.function("f"), cache.group, "task")
    cache.policy.acquire(request, 2)
    assert (instance.ready, cache.keep_alive.due) == (False, {})


def test_a_period_is_learned_from_one_idle_time() -> None:
    """Even if the instance was evicted before: what matters is when it would have been wanted."""
    cache = Cache()
    assert cache.uses("f", 0, 30) == ["miss", "long"]
    cache.wait(1000)
    ((_, at),) = cache.gone
    assert 30 * 1.19 < at - 30 < 30 * 1.5
    assert cache.use("f", 1000) == "miss"  # it was idle for longer than any timeout
    assert cache.use("f", 1030) == "long"

    other = Cache()
    other.keep_alive.everyone.weights = b""
    for number in range(20):  # of no use to anybody
        other.use(f"x{number}", 0)
    other.wait(200)
    assert other.use("f", 300) == "miss"
    assert other.use("f", 320) == "miss"  # so few are used again that it was not waited for
    assert other.use("f", 340) == "long"


def test_nothing_known_is_kept_for_long_and_then_as_others_were() -> None:
    """The first idle times of all functions count for those that are not known yet."""
    cache = Cache()
    for at in (0, 5, 10, 15, 20):
        for number in range(4):
            cache.use(f"f{number}", at)
    cache.uses("g", 20)
    cache.wait(500)
    gone = dict(cache.gone)
    assert 5 < gone["f0"] - 20 < 8
    assert 5 < gone["g"] - 20 < 8
    early = Cache()
    early.uses("g", 0)
    early.wait(500)
    assert early.gone == [("g", MOST)]


def test_what_is_never_used_again_teaches_the_same() -> None:
    """Once it could not have been kept for so long: then the next new ones go at once."""
    cache = Cache(max_instances=1)
    for number in range(20):
        cache.use(f"f{number}", number / 10)
    assert cache.keep_alive.everyone.total == 0
    cache.use("g", 200)
    cache.wait(500)
    assert cache.gone[-1] == ("g", 200 + LEAST)


def test_groups_do_not_disturb_each_other() -> None:
    """Time passes between the uses of an instance, which has one group; the function learns."""
    cache, other = Cache(), GroupRecord("other")
    for turn in range(3):
        cache.use("f", 40.0 * turn)
        cache.use("f", 40.0 * turn + 20, other)
    assert cache.times("f") == ((class_of(40), 16), (999, 0))
    # An instance that went is remembered for its own group.
    cache.wait(1000)
    assert len(cache.gone) == 2
    cache.use("f", 1000)
    cache.use("f", 1010, other)
    assert cache.times("f") == ((class_of(40), 16), (999, 8))


def test_an_instance_whose_group_was_closed_teaches_nothing() -> None:
    """That it is not used again is not the function's fault."""
    cache = Cache(max_instances=1)
    cache.use("f", 0)
    cache.use("g", 0.1)
    assert list(cache.keep_alive.gone.values()) == [0]
    cache.policy.close_group(cache.group, 0.2, Reason.GROUP_CLOSED)
    cache.group = GroupRecord("main")
    cache.use("h", 300)
    assert cache.keep_alive.everyone.total == 0
    assert not cache.keep_alive.gone


def test_a_new_generation_goes_on_with_what_was_learned() -> None:
    """A function that was removed leaves nothing."""
    cache = Cache()
    cache.uses("f", 0, 30)
    old = cache.function("f")
    new = FunctionRecord(old.key, 2, Module("new", 0))
    cache.policy.retire(old, 31, new)
    assert list(cache.keep_alive.times) == [new]
    cache.functions["f"] = new
    cache.use("f", 40)
    cache.wait(1000)
    assert 30 < cache.gone[-1][1] - 40 < 45
    cache.policy.retire(new, 1000)
    assert not cache.keep_alive.times


def test_the_timeout_can_be_switched_while_instances_are_idle() -> None:
    """From a number of seconds to adaptive and back; what was learned stays."""
    cache = Cache(idle_timeout=50.0)
    cache.uses("f", 0, 30)
    adaptive = CacheConfig(
        idle_timeout="adaptive", min_idle_timeout=LEAST, max_idle_timeout=MOST, policy="lru"
    )
    cache.policy.resize(adaptive, 35)
    assert cache.policy.next_expiry() == 30 + MOST
    assert cache.use("f", 50) == "long"
    cache.use("g", 50)
    cache.wait(52)
    cache.policy.resize(CacheConfig(idle_timeout=7.0), 52)
    assert cache.policy.next_expiry() == 57
    assert [instance.ready for instance in cache.policy.instances.lru] == [True, True]
    assert cache.uses("f", 56) == ["short"]
    cache.policy.resize(adaptive, 56)
    assert cache.policy.next_expiry() == 56 + LEAST
    cache.wait(1000)
    assert [name for name, _ in cache.gone] == ["f", "g"]
    assert 20 < cache.gone[0][1] - 56 < 30
    assert cache.policy.next_expiry() is None


def test_longer_limits_hold_for_what_is_idle() -> None:
    """And shorter ones, from the next step on."""
    cache = Cache()
    cache.use("f", 0)
    cache.wait(10)
    for most in (500.0, 20.0):
        config = CacheConfig(idle_timeout="adaptive", min_idle_timeout=LEAST, max_idle_timeout=most)
        cache.policy.resize(config, 10)
        assert cache.policy.next_expiry() == most


def test_when_the_background_task_runs_makes_no_difference() -> None:
    """So that a replay, which knows nothing of it, learns the same: it need run only to evict."""
    random = Random(4)
    periods = {f"f{number}": math.exp(random.uniform(0.5, 5)) for number in range(12)}
    uses = sorted(
        (at, name)
        for name, period in periods.items()
        for at in (period * (turn + random.uniform(0, 0.2)) for turn in range(40))
        if at < 600
    )
    eager, lazy = Cache(max_instances=9), Cache(max_instances=9)
    for at, name in uses:
        eager.wait(at)
        fresh = eager.gone[len(lazy.gone) :]
        for when in dict.fromkeys(when for _, when in fresh):
            lazy.note(lazy.policy.expire(when), when)
        assert lazy.gone == eager.gone
        how = eager.use(name, at, short=False)
        assert lazy.use(name, at, late=True, short=False) == how
        for function in periods:
            assert eager.times(function) == lazy.times(function)
    assert len(eager.gone) > 10


def test_much_that_is_due_at_once_goes_in_pieces() -> None:
    """As with a fixed timeout; and all of it is aged in one step."""
    cache = Cache(max_idle_timeout=2.0)
    for number in range(3 * MAX_EXPIRED):
        cache.use(f"f{number}", 0)
    for left in (2, 1, 0):
        assert cache.policy.next_expiry() == (1.0 if left == 2 else 2.0)
        step = cache.policy.expire(2.0)
        assert len(step.evicted) == MAX_EXPIRED
        assert cache.policy.instances.ledger.idle == left * MAX_EXPIRED
    assert cache.policy.next_expiry() is None


def test_it_remembers_so_many_evictions_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heap, too, keeps few entries of instances that are not due any more."""
    monkeypatch.setattr(keep_alive, "MAX_GONE", 10)
    cache = Cache(max_instances=5)
    for number in range(100):
        cache.use(f"f{number}", number / 100)
    assert list(cache.keep_alive.gone.values()) == [number / 100 for number in range(85, 95)]
    busy = Cache()
    for turn in range(1000):
        busy.use("f", 2.0 * turn)
    assert len(busy.keep_alive._heap) <= keep_alive.SLACK + 2


def test_memory_of_a_hundred_thousand_functions() -> None:
    """Each that was evicted takes some 400 bytes, of which its times are less than half."""
    count = 2000
    cache = KeepAlive(CacheConfig(idle_timeout="adaptive"), Policy(CacheConfig()).instances.lru)
    group, random = GroupRecord("main"), Random(5)
    instances = [
        Instance(number, Entry(FunctionRecord(FunctionKey("f", ()), 1, Module("", 0)), group), 0.0)
        for number in range(count)
    ]
    gc.collect()
    tracemalloc.start()
    for turn in range(5):
        now = 1000.0 * turn
        for instance in instances:
            instance.last_used = now
            cache.left(instance, now)
        for instance in instances:
            cache.started(instance.entry, now + math.exp(random.uniform(1, 6)))
    for instance in instances:
        cache.left(instance, 5000.0)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken / count < 420
    assert len(cache.gone) == count
