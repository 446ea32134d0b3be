"""The eviction policies: one example of each rule, and other implementations that agree.

`test_policy_machine` compares each with a plain model in everything else.
"""

from __future__ import annotations

import bisect
import heapq
import importlib
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from core.policy.policy_bench import Bench, reasons, short_hit

from trio_wasmcache._core.config import PolicyName
from trio_wasmcache._core.events import Reason
from trio_wasmcache._core.policy import sieve
from trio_wasmcache._core.policy.lifecycle import IllegalStepError
from trio_wasmcache._core.policy.records import FunctionRecord, Instance

OTHERS: tuple[PolicyName, ...] = ("sieve", "gdsf", "cost")
libcachesim = pytest.mark.skipif(
    importlib.util.find_spec("libcachesim") is None,
    reason="libcachesim IS NOT INSTALLED: THE POLICIES ARE COMPARED WITH THE TEXTBOOK'S ONLY",
)


def use(bench: Bench, function: FunctionRecord, size: int = 10, times: int = 1) -> Instance:
    """An instance, used that often, and idle."""
    for _ in range(times):
        instance = bench.idle(function, size)
    return instance


def load(bench: Bench, function: FunctionRecord, seconds: float, size: int = 10) -> Instance:
    """An instance whose load took that long, used once."""
    request = bench.acquire(function)
    bench.policy.loaded(request, bench.now, size, seconds)
    instance = request.held
    bench.recycle(request, size)
    return instance


def went(bench: Bench, function: FunctionRecord, size: int = 10) -> list[str]:
    """The functions whose instances are evicted as one of `function` is loaded and rests."""
    request, step = bench.ask(function, "visitor")
    first = [name for name, _ in reasons(step)]
    bench.load(request)
    return first + [name for name, _ in reasons(bench.recycle(request, size))]


# -- what each policy is for


def test_sieve_evicts_the_oldest_that_was_not_used_again() -> None:
    """A use does not move an instance, it spares it once; LRU would evict b, then c."""
    bench = Bench(max_size=30, policy="sieve")
    a, b, c, d, e = map(bench.function, "abcde")
    use(bench, a, times=2)
    use(bench, b)
    use(bench, c)
    use(bench, a)
    assert went(bench, d) == ["b"]
    assert went(bench, e) == ["c"]
    use(bench, e)
    # The hand has passed a, which was not used since, but goes on to the newer ones first.
    assert went(bench, b) == ["d"]
    assert went(bench, c) == ["b"]


def test_gdsf_evicts_the_one_with_the_fewest_uses_for_its_size() -> None:
    """A large one goes before small ones of as many uses, however recently it was used."""
    bench = Bench(max_size=100, policy="gdsf")
    small, large, other = bench.function("small"), bench.function("large"), bench.function("other")
    use(bench, small, 10)
    use(bench, large, 80, times=3)
    assert went(bench, other, 20) == ["large"]
    assert bench.entry(small).idle


def test_cost_evicts_the_one_that_saved_the_least_loading() -> None:
    """Of equal sizes and uses, the quicker load goes, and of equal loads the less used."""
    bench = Bench(max_size=20, policy="cost")
    quick, slow, third = map(bench.function, ("quick", "slow", "third"))
    load(bench, slow, 2.0)
    load(bench, quick, 0.5)
    load(bench, third, 1.0)
    assert bench.entry(slow).idle
    assert bench.entry(third).idle
    assert went(bench, bench.function("fourth")) == ["third"]


def test_what_is_not_used_any_more_grows_old() -> None:
    """Each victim raises the floor from which later ones count, so ten uses are not for ever."""
    for policy in ("gdsf", "cost"):
        bench = Bench(max_size=20, policy=policy)
        once = bench.function("once")
        load(bench, once, 1.0)
        use(bench, once, times=9)
        evicted = []
        for number in range(30):
            visitor = bench.function(f"visitor {number}")
            request = bench.acquire(visitor)
            bench.policy.loaded(request, bench.now, 10, 1.0)
            evicted += [name for name, _ in reasons(bench.recycle(request))]
        assert "once" in evicted[8:12], policy


# -- running, grown, seats, modules, counts


@pytest.mark.parametrize("policy", OTHERS)
def test_a_running_one_is_not_evicted(policy: PolicyName) -> None:
    """The next one goes instead of it; once it rests, its use counts."""
    bench = Bench(max_size=20, policy=policy)
    first, second, third, fourth = map(bench.function, ("first", "second", "third", "fourth"))
    load(bench, first, 1.0)
    load(bench, second, 2.0)
    held = bench.lease(first, "holder")
    load(bench, third, 9.0)
    assert went(bench, fourth) == ["second"]
    assert bench.entry(first).live, "it runs"
    # It was used twice; of the others, used once, "fourth" took no time to load.
    step = bench.recycle(held)
    assert [name for name, _ in reasons(step)] == ["fourth" if policy == "cost" else "third"]


def test_the_hand_of_sieve_passes_a_bounded_number_of_running_ones() -> None:
    """Then the least recently used goes, though it was used again; the hand goes on from there."""
    bench = Bench(max_size=20, max_instances=500, max_code=500, policy="sieve")
    running = [bench.function(f"running {number}") for number in range(sieve.MOST_PASSED + 10)]
    for function in running:
        use(bench, function, 0)
    held = [bench.lease(function, function) for function in running]
    used, once, third = map(bench.function, ("used", "once", "third"))
    use(bench, used, times=2)
    use(bench, once)
    assert went(bench, third) == ["used"]
    assert went(bench, used) == ["once"]
    for request in held:
        bench.recycle(request, 0)


def test_the_hand_of_sieve_passes_a_bounded_number_of_running_modules() -> None:
    """Then the module that was idle for the longest time goes, though it was used again."""
    number = sieve.MOST_PASSED + 10
    bench = Bench(max_code=2 * number + 3, max_instances=500, policy="sieve")
    running = [bench.function(f"running {number}") for number in range(number)]
    for function in running:
        use(bench, function, 0)
    held = [bench.lease(function, function) for function in running]
    used, once = bench.function("used"), bench.function("once")
    use(bench, used, times=2)
    use(bench, once)
    large = bench.function("large")
    _, step = bench.ask(large, "holder")
    assert reasons(step) == [("used", "code")]
    for request in held:
        bench.recycle(request, 0)


@pytest.mark.parametrize("policy", ["gdsf", "cost"])
def test_the_next_rest_of_one_that_was_left_out_is_reported(policy: PolicyName) -> None:
    """An eviction met it while it ran, so that its entry is gone; then it counts again."""
    bench = Bench(max_size=20, policy=policy)
    first, second, third = map(bench.function, ("first", "second", "third"))
    load(bench, first, 1.0)
    load(bench, second, 9.0)
    held = bench.lease(first, "holder")
    before = held.held.resting_size
    load(bench, third, 9.0)
    load(bench, bench.function("fourth"), 9.0)
    assert (before, held.held.resting_size) == (10, -1)
    bench.policy.may_rest(held)
    assert not bench.policy.rest(held, 10, bench.now)
    bench.recycle(held)
    assert held.entry.idle[0].resting_size == 10
    for number in range(9):
        load(bench, bench.function(f"visitor {number}"), 9.0)
    assert not held.entry.live, "it was evicted in its turn"


@pytest.mark.parametrize("policy", ["gdsf", "cost"])
def test_one_that_has_grown_falls_behind(policy: PolicyName) -> None:
    """Its priority is lower than it was at any earlier use, so this rest is reported."""
    bench = Bench(max_size=100, max_instance_size=90, policy=policy)
    growing, other = bench.function("growing"), bench.function("other")
    load(bench, growing, 1.0)
    load(bench, other, 1.0, 20)
    load(bench, bench.function("big"), 1.0, 75)
    assert bench.entry(growing).idle, "the big one took the place of the other"
    bench.resize(max_size=200, policy=policy)
    load(bench, other, 1.0, 40)
    request = bench.lease(growing)
    bench.policy.may_rest(request)
    assert not bench.policy.rest(request, 85, bench.now), "as it has grown"
    assert not reasons(bench.recycle(request, 85))
    assert went(bench, bench.function("small"), 5) == ["big"]
    # "small" took no time to load.
    others = ["small"] if policy == "cost" else []
    assert went(bench, bench.function("last"), 80) == [*others, "growing"]


def test_a_seat_saves_its_modules_load_alone() -> None:
    """Under "cost" it is worth nothing while other instances keep the module loaded."""
    bench = Bench(max_size=30, policy="cost")
    holder, other, fresh = (bench.function(name, "shared") for name in ("holder", "other", "fresh"))
    held = bench.acquire(holder, "holder")
    bench.policy.loaded(held, bench.now, 10, 5.0)  # with the code
    load(bench, other, 1.0)
    request = bench.acquire(fresh)
    bench.policy.loaded(request, bench.now, 10, 9.0)
    bench.recycle(request, 10, seat=True)
    load(bench, bench.function("quick"), 0.5)
    assert went(bench, bench.function("visitor")) == ["fresh"]
    request = bench.acquire(fresh)
    bench.policy.loaded(request, bench.now, 10, 9.0)
    assert reasons(bench.recycle(request, 10, seat=True)) == [("visitor", "size")]
    bench.recycle(held, drop=Reason.CORRUPTED)
    bench.retire(other)
    # Now its module would be unloaded with it, which took 5 seconds to load.
    load(bench, bench.function("third"), 1.0)
    load(bench, bench.function("fourth"), 1.0)
    assert bench.entry(fresh).idle


def test_the_last_instance_of_a_module_is_worth_its_code_too() -> None:
    """Its module, which took long to load, would go with it; before, another one kept it."""
    bench = Bench(max_size=30, policy="cost")
    one, two, other = bench.function("one", "m"), bench.function("two", "m"), bench.function("o")
    load(bench, one, 8.0)  # with its module, and so the module took it all
    load(bench, two, 0.25)
    load(bench, other, 1.0)
    assert went(bench, bench.function("visitor")) == ["one"], "as it has no load of its own"
    bench.resize(max_size=20, policy="cost")
    assert bench.entry(two).idle, "the last one of its module"


@pytest.mark.parametrize(
    ("policy", "victim"), [("lru", "used"), ("sieve", "once"), ("gdsf", "once"), ("cost", "once")]
)
def test_a_module_goes_by_the_uses_of_its_instances(policy: PolicyName, victim: str) -> None:
    """For code, whole modules are evicted: LRU takes the one that stopped first."""
    bench = Bench(max_code=4, policy=policy)
    used, once = bench.function("used", code=1), bench.function("once", code=1)
    load(bench, used, 1.0)
    use(bench, used, times=4)
    load(bench, once, 1.0)
    request, step = bench.ask(bench.function("large", code=2))
    assert reasons(step) == [(victim, "code")]
    assert request.instance is not None


@pytest.mark.parametrize("policy", ["lru", *OTHERS])
def test_a_module_never_goes_for_the_stack_of_its_own_instance(policy: PolicyName) -> None:
    """It would be the next under each policy, but its code is what is needed now."""
    bench = Bench(max_code=4, policy=policy)
    needed, other = bench.function("needed", code=2), bench.function("other", code=1)
    load(bench, needed, 0.001)
    load(bench, other, 9.0)
    use(bench, other, times=3)
    bench.resize(max_code=3, policy=policy)
    request, step = bench.ask(needed)
    assert reasons(step) == [("other", "stack")]
    assert request.hit


def test_sieve_spares_a_module_of_which_another_instance_came() -> None:
    """Its code was used again, though none of its instances was."""
    bench = Bench(max_code=4, policy="sieve")
    load(bench, bench.function("first", "shared"), 1.0)
    load(bench, bench.function("once"), 1.0)
    load(bench, bench.function("second", "shared"), 1.0)
    _, step = bench.ask(bench.function("large", code=2))
    assert reasons(step) == [("once", "code")]


def test_a_module_goes_by_the_size_of_its_code() -> None:
    """Of equal uses, under "gdsf", the one with the most code."""
    bench = Bench(max_code=6, policy="gdsf")
    load(bench, bench.function("small", code=1), 1.0)
    load(bench, bench.function("large", code=3), 1.0)
    _, step = bench.ask(bench.function("next", code=2))
    assert reasons(step) == [("large", "code")]


def test_a_module_that_lost_an_instance_falls_behind() -> None:
    """The uses of an instance that is gone count no more."""
    bench = Bench(max_code=6, policy="gdsf")
    used, rest = bench.function("used", "loser"), bench.function("rest", "loser")
    keeper = bench.function("keeper")
    use(bench, rest)
    use(bench, keeper, times=3)
    use(bench, used, times=5)
    use(bench, bench.function("large", code=2))
    # A first eviction of code, which computes all priorities; "large" goes, with 1 use for 2.
    request, step = bench.ask(bench.function("now", code=2))
    assert reasons(step) == [("large", "code")]
    bench.load(request)
    bench.recycle(request)
    assert reasons(bench.retire(used)) == [("used", "removed")]
    step = bench.resize(max_code=3, policy="gdsf")
    assert reasons(step) == [("rest", "code")]


def test_a_module_was_used_when_any_of_its_instances_was() -> None:
    """Also one that is gone: from that use on it counts from the floor that there was then."""
    bench = Bench(max_code=7, policy="gdsf")
    used, rest = bench.function("used", "shared"), bench.function("rest", "shared")
    large, now = bench.function("large", code=2), bench.function("now", code=4)
    use(bench, rest)
    use(bench, large)
    request, step = bench.ask(now)
    assert reasons(step) == [("large", "code")]
    bench.load(request)
    bench.recycle(request)
    use(bench, now, times=2)
    use(bench, used)
    bench.retire(used)
    # "shared" has 0.5 + 1 / 1, and "now" 0.5 + 3 / 4; from its own last use it would have 0 + 1.
    assert reasons(bench.resize(max_code=4, policy="gdsf")) == [("now", "code")]


@pytest.mark.parametrize("earlier", [False, True])
def test_between_equal_modules_a_use_counts_of_an_instance_that_is_gone(*, earlier: bool) -> None:
    """Also of one that had gone before code was first evicted."""
    bench = Bench(max_code=8, policy="gdsf")
    rest, other = bench.function("rest", "shared"), bench.function("other")
    used = bench.function("used", "shared")
    if earlier:
        use(bench, bench.function("large", code=3))
        assert reasons(bench.resize(max_code=2, policy="gdsf")) == [("large", "code")]
        bench.resize(max_code=8, policy="gdsf")
    for function in (rest, other, used):
        use(bench, function)
    assert reasons(bench.retire(used)) == [("used", "removed")]
    # Both modules have one use for one unit of code. "shared" was used last, by "used".
    assert reasons(bench.resize(max_code=1, policy="gdsf")) == [("other", "code")]


def test_an_instance_that_became_a_seat_takes_its_module_down() -> None:
    """The module is worth less then, so its priority is computed anew."""
    bench = Bench(max_code=5, policy="cost")
    first, second = bench.function("first", "seated"), bench.function("second")
    holder = bench.acquire(bench.function("holder", "seated"), "holder")
    bench.policy.loaded(holder, bench.now, 10, 1.0)
    load(bench, first, 9.0)
    bench.recycle(holder, drop=Reason.CORRUPTED)
    load(bench, second, 4.0)
    load(bench, bench.function("third", code=2), 1.0)
    large, step = bench.ask(bench.function("large", code=2))
    assert reasons(step) == [("third", "code")]
    bench.fail(large)
    request = bench.lease(first)
    assert not reasons(bench.recycle(request, 10, seat=True))
    # Two uses of one second, where they were of ten.
    assert reasons(bench.resize(max_code=1, policy="cost")) == [("first", "code")]


@pytest.mark.parametrize(
    ("policy", "victim"), [("lru", "used"), ("sieve", "large"), ("gdsf", "once"), ("cost", "once")]
)
def test_by_count_each_instance_takes_one_place(policy: PolicyName, victim: str) -> None:
    """However large it is: the large one, used twice, saved more than the small one, used once."""
    bench = Bench(max_instances=3, policy=policy)
    used, large, once = map(bench.function, ("used", "large", "once"))
    load(bench, used, 1.0)
    use(bench, used, times=2)
    load(bench, large, 1.0, 400)
    if policy != "sieve":
        use(bench, large, 400)
    load(bench, once, 1.0, 1)
    _, step = bench.ask(bench.function("next"))
    assert reasons(step) == [(victim, "count")]


@pytest.mark.parametrize("policy", OTHERS)
def test_the_idle_timeout_stays_on_top(policy: PolicyName) -> None:
    """The one that the policy would keep longest goes when its time is over."""
    bench = Bench(idle_timeout=5, policy=policy)
    best, other = bench.function("best"), bench.function("other")
    load(bench, best, 9.0)
    use(bench, best, times=3)
    bench.now += 3
    load(bench, other, 0.1)
    bench.now += 2
    assert bench.policy.next_expiry() is not None
    assert reasons(bench.policy.expire(bench.now)) == [("best", "idle")]


@pytest.mark.parametrize("policy", ["lru", *OTHERS])
def test_a_hit_is_the_same_under_each(policy: PolicyName) -> None:
    """It goes the short way in and out, and tells the policy nothing."""
    bench = Bench(policy=policy)
    function = bench.function("f")
    instance = use(bench, function)
    instance.hold(Native(), ready=True)
    order = CountedCalls(bench.policy.instances.order)
    bench.policy.instances.order = order  # type: ignore[assignment]
    if bench.policy.instances.told is not None:
        bench.policy.instances.told = order  # type: ignore[assignment]
    for _ in range(5):
        request = short_hit(bench.policy, function, bench.main, "anna", None, bench.now)  # type: ignore[arg-type]
        assert request is not None
        assert bench.policy.rest(request, 10, bench.now)
    assert order.calls == 0
    assert instance.uses == 6


class CountedCalls:
    """Counts what is asked of an order."""

    def __init__(self, order: object) -> None:
        self.order = order
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self.order, name)


class Native:
    """A bound function that does nothing."""

    def close(self) -> None:
        pass


class Unwilling:
    """An order that names no victim."""

    def settled(self, instance: Instance, changed: bool) -> None:
        pass

    def left(self, instance: Instance) -> None:
        pass

    def victim(self, rests: int, **of: object) -> None:
        pass

    def victim_module(self, rests: int, **of: object) -> None:
        pass


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"max_code": 3},
            r"next\(i64\) \(reason: code\), though 131072 bytes of code are idle",
        ),
        (
            {"max_instances": 1},
            r"next\(i64\) \(reason: count\), though 1 instances are idle",
        ),
    ],
)
def test_an_order_without_a_victim_is_a_bug_that_says_what(
    limits: dict[str, float], message: str
) -> None:
    """The books have counted what could be evicted before the order is asked."""
    bench = Bench(policy="gdsf", **limits)  # type: ignore[arg-type]
    use(bench, bench.function("idle", code=2))
    bench.policy.instances.order = Unwilling()
    with pytest.raises(
        IllegalStepError, match=f'policy "gdsf" names nothing to evict for {message}'
    ):
        bench.ask(bench.function("next", code=1), "anna")


# -- changing the policy


def test_resize_changes_the_policy() -> None:
    """The instances stay; the new policy knows their uses, and nothing of the old one's."""
    bench = Bench(max_size=30, policy="lru")
    first, second, third = map(bench.function, ("first", "second", "third"))
    use(bench, first, times=3)
    use(bench, second)
    held = bench.lease(third)
    assert not bench.resize(max_size=30, policy="gdsf")
    assert held.held.resting_size == -1
    bench.recycle(held)
    assert went(bench, bench.function("visitor")) == ["second"]
    bench.resize(max_size=30, policy="lru")
    assert went(bench, second) == ["first"]


# -- other implementations

Access = tuple[int, int]  # (object, size)


def hits(
    policy: PolicyName, trace: Sequence[Access], size: int, seconds: Sequence[float] = ()
) -> bytes:
    """Whether each access of leases of no length is a hit, 1 or 0."""
    bench = Bench(
        policy, max_size=size, max_instance_size=size, max_instances=16384, max_code=10**6
    )
    functions: dict[int, FunctionRecord] = {}
    found = bytearray()
    for key, bytes_ in trace:
        function = functions.get(key)
        if function is None:
            function = functions[key] = bench.function(str(key))
        request = short_hit(bench.policy, function, bench.main, 0, None, 0.0)  # type: ignore[arg-type]
        found.append(request is not None)
        if request is None:
            request = bench.acquire(function, 0)
            request.held.hold(Native(), ready=True)
            bench.policy.loaded(request, 0.0, bytes_, seconds[key] if seconds else 1.0)
            bench.policy.may_rest(request)
        if not bench.policy.rest(request, bytes_, 0.0):
            bench.policy.recycle(request, bytes_, 0.0)
    return bytes(found)


def zipf(seed: int, number: int, objects: int, sizes: Sequence[int]) -> list[Access]:
    """Accesses of objects, a few of which are asked for most."""
    random = Random(seed)
    size = [random.choice(sizes) for _ in range(objects)]
    weights = [1 / (rank + 1) ** 0.8 for rank in range(objects)]
    return [(key, size[key]) for key in random.choices(range(objects), weights, k=number)]


class Textbook:
    """A cache as the papers describe it: a hit does its work at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.sizes: dict[int, int] = {}

    def access(self, key: int, size: int) -> bool:
        if key in self.sizes:
            self.used(key)
            return True
        while sum_of(self) + size > self.size:
            victim = self.victim()
            self.total -= self.sizes.pop(victim)
        self.sizes[key] = size
        self.total += size
        self.came(key, size)
        return False

    total = 0

    def used(self, key: int) -> None:
        raise NotImplementedError

    def came(self, key: int, size: int) -> None:
        raise NotImplementedError

    def victim(self) -> int:
        raise NotImplementedError


def sum_of(cache: Textbook) -> int:
    return cache.total


class TextbookLRU(Textbook):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.order: OrderedDict[int, None] = OrderedDict()

    def used(self, key: int) -> None:
        self.order.move_to_end(key)

    def came(self, key: int, size: int) -> None:
        self.order[key] = None

    def victim(self) -> int:
        return self.order.popitem(last=False)[0]


class TextbookSieve(Textbook):
    """With a visited bit, and a list of which the first is the oldest."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.queue: list[tuple[int, int]] = []  # [(arrival, key)]
        self.visited: dict[int, bool] = {}
        self.arrivals = 0
        self.hand = 0  # an arrival: the first from there on is next

    def used(self, key: int) -> None:
        self.visited[key] = True

    def came(self, key: int, size: int) -> None:
        self.arrivals += 1
        self.queue.append((self.arrivals, key))
        self.visited[key] = False

    def victim(self) -> int:
        place = bisect.bisect_left(self.queue, (self.hand, -1)) if self.hand else 0
        while True:
            if place == len(self.queue):
                place = 0
            key = self.queue[place][1]
            if not self.visited[key]:
                break
            self.visited[key] = False
            place += 1
        del self.queue[place]
        # Past the newest the hand begins again, with whatever is the oldest then.
        self.hand = self.queue[place][0] if place < len(self.queue) else 0
        return key


class TextbookGDSF(Textbook):
    """With an entry in the heap for each use."""

    def __init__(self, size: int, seconds: Sequence[float] = ()) -> None:
        super().__init__(size)
        self.seconds = seconds
        self.heap: list[tuple[float, int, int]] = []  # (priority, turn, key)
        self.last: dict[int, tuple[int, int]] = {}  # {key: (turn, uses)}
        self.floor = 0.0
        self.turns = 0

    def used(self, key: int) -> None:
        self.push(key, self.last[key][1] + 1)

    def came(self, key: int, size: int) -> None:
        self.push(key, 1)

    unit = 1.0
    """Times which priorities are computed: it decides how they are rounded."""

    def push(self, key: int, uses: int) -> None:
        self.turns += 1
        self.last[key] = self.turns, uses
        worth = self.seconds[key] if self.seconds else 1.0
        priority = self.floor + uses * worth * self.unit / self.sizes[key]
        heapq.heappush(self.heap, (priority, self.turns, key))

    def victim(self) -> int:
        while True:
            priority, turn, key = heapq.heappop(self.heap)
            if key in self.sizes and self.last[key][0] == turn:
                self.floor = priority
                return key


class LibcachesimGDSF(TextbookGDSF):
    """As in the paper, but for the order of two steps: a new object comes in before others go.

    So it counts from the floor before those evictions, and may be evicted itself.
    """

    unit = 1e6

    def access(self, key: int, size: int) -> bool:
        if key in self.sizes:
            self.used(key)
            return True
        self.sizes[key] = size
        self.total += size
        self.came(key, size)
        while self.total > self.size:
            self.total -= self.sizes.pop(self.victim())
        return False


TRACES = [
    pytest.param(zipf(1, 4000, 500, (10,)), 600, id="equal"),
    pytest.param(zipf(2, 6000, 800, range(1, 101)), 8000, id="sized"),
    pytest.param([(key % 70, 10) for key in range(2000)], 500, id="loop"),
    pytest.param(zipf(3, 3000, 300, (1, 2, 17, 40, 100)), 300, id="small"),
]


@pytest.mark.parametrize(("trace", "size"), TRACES)
@pytest.mark.parametrize(
    ("policy", "textbook"),
    [("lru", TextbookLRU), ("sieve", TextbookSieve), ("gdsf", TextbookGDSF)],
)
def test_it_agrees_with_the_textbook(
    policy: PolicyName, textbook: Callable[[int], Textbook], trace: list[Access], size: int
) -> None:
    """Request for request: nothing is computed at a hit here, and the same is evicted."""
    cache = textbook(size)
    assert hits(policy, trace, size) == bytes(cache.access(*access) for access in trace)


@pytest.mark.parametrize(("trace", "size"), TRACES)
def test_cost_agrees_with_the_textbook(trace: list[Access], size: int) -> None:
    """Where each load takes the same time again."""
    random = Random(9)
    seconds = [random.lognormvariate(0, 1.5) for _ in range(1000)]
    cache = TextbookGDSF(size, seconds)
    assert hits("cost", trace, size, seconds) == bytes(cache.access(*access) for access in trace)


def simulated(kind: str, trace: list[Access], size: int) -> bytes:
    """Hits of libcachesim's cache."""
    module = importlib.import_module("libcachesim")
    cache, request = getattr(module, kind)(cache_size=size), module.Request()
    found = bytearray()
    for key, bytes_ in trace:
        request.obj_id, request.obj_size = key, bytes_
        found.append(cache.get(request))
    return bytes(found)


@libcachesim
@pytest.mark.parametrize(("trace", "size"), TRACES)
@pytest.mark.parametrize(("policy", "kind"), [("lru", "LRU"), ("sieve", "Sieve")])
def test_it_agrees_with_libcachesim(
    policy: PolicyName, kind: str, trace: list[Access], size: int
) -> None:
    """Request for request, where leases have no length and sizes are constant."""
    assert hits(policy, trace, size) == simulated(kind, trace, size)


@libcachesim
@pytest.mark.parametrize(("trace", "size"), TRACES)
def test_gdsf_differs_from_libcachesims_in_the_order_of_two_steps(
    trace: list[Access], size: int
) -> None:
    """The textbook's, with these exchanged, agrees with it request for request.

    A new object is put in before others are evicted for it there. So it counts from a floor that
    is one miss older, and may be evicted at once. Here a new instance counts from the floor after
    the evictions, and is running when they happen.
    """
    cache = LibcachesimGDSF(size)
    assert simulated("GDSF", trace, size) == bytes(cache.access(*access) for access in trace)


@libcachesim
@pytest.mark.parametrize(
    ("trace", "size", "most"),
    [(*case.values[:2], most) for case, most in zip(TRACES, (0.03, 0.03, 0.0, 0.035), strict=True)],
)
def test_gdsf_misses_about_as_often_as_libcachesims(
    trace: list[Access], size: int, most: float
) -> None:
    """Within 3 %; 3.4 % in a cache of three large objects, where a new one is often put out again.

    For the cause see the test above; how priorities are rounded decides 2 misses of 2,201.
    """
    ours = hits("gdsf", trace, size).count(0)
    theirs = simulated("GDSF", trace, size).count(0)
    assert abs(ours - theirs) <= most * theirs
