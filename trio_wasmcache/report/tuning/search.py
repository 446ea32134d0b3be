"""Finds the policy, `max_size` and `idle_timeout` for a target, or for a given size.

The curve gives each size under LRU at once. Under the others, trials of a few sizes do, and of more
between the two where a target lies. At sizes without limit all policies have the same hits, as
nothing is evicted but for the timeout; so the curve tells for all which timeout a target needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias, get_args

from attrs import Factory, define, frozen

from ..._core.config import ADAPTIVE, IdleTimeout, KiB, MiB, PolicyName
from .curve import Curve
from .trial import Outcome, Settings
from .trials import Trials
from .tuning import Tuner

Objective: TypeAlias = Literal["misses", "seconds"]
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
# A part of the misses, of the seconds or of the bytes that is not worth a change of policy, or a
# longer timeout.
SAME = 0.01
SAME_SIZE = 1.05
# Memory that fewer seconds of loading may cost, where a target has to be reached.
FOR_SECONDS = 1.25
# A timeout is taken if no timeout at all would need this much less memory; that in the log, too.
FOR_TIMEOUT, FOR_PRESENT_TIMEOUT = 1.1, 1.25
# A cliff: a few more bytes avoid a quarter of the misses that could be avoided at all, and at least
# this part of the leases. Looked for at these parts of the size, as often as one is found.
STEPS = (1.01, 1.02, 1.03, 1.04, 1.05)
CLIFF, CLIFFS, LEAST_GAIN = 0.75, 2, 0.0025
# What is above the cliff is nearly all that the few bytes can avoid.
ABOVE = 0.9
# Larger than any cache.
UNLIMITED = 1 << 60
# Sizes that are tried beyond the one that was found, if rounding it up costs hits.
ROUNDED = 8
# Hit rates, as parts of what no size and no timeout limits, of the timeouts that are tried.
LADDER = (0.5, 0.9, 0.99)
# {leases at most: number of sizes tried under each policy}.
SIZES = {50_000: 12, 200_000: 8}
FEWEST_SIZES = 6
# Sizes between the two where the target lies that are tried at once, until these are this close.
BETWEEN, CLOSE = 3, 1.01


@frozen
class Question:
    """What is asked: a target, or the best for a size."""

    target: float = 0.99
    """Hit rate, from 0 to 1; of no account with `max_size`."""
    objective: Objective = "misses"
    max_size: int | None = None
    policies: tuple[PolicyName, ...] = POLICIES


@frozen
class Choice:
    """Limits, and what comes of them by the curve or a trial."""

    policy: PolicyName
    max_size: int
    idle_timeout: IdleTimeout
    hit_rate: float
    load_seconds: float
    least: int
    """Size that would do for the target; smaller than `max_size` where that is off a cliff."""


@define(eq=False)
class Search:
    """Answers one question about one log."""

    tuner: Tuner
    question: Question
    trials: Trials
    curve: Curve = Factory(lambda self: self.tuner.curve(self.now), takes_self=True)
    """The curve for the timeout that is chosen."""
    needs: dict[PolicyName, int] = Factory(dict)
    """{policy: the smallest size that reaches the aim under it}, for a target."""
    reachable: float = 0.0
    """Hit rate without limits of size and time: only first loads and corrupted ones are misses."""
    aim: float = 0.0
    """The target, or what is reachable if that is less."""
    able: bool = True
    """Whether the timeout in the log lets any size reach the aim."""
    _curves: dict[float, Curve] = Factory(dict)
    _sizes: list[int] = Factory(list)
    _ceiling: int = 0
    """The most bytes that are ever idle with the timeout that is chosen, if nothing limits them."""

    @property
    def now(self) -> float:
        """The timeout in the log (seconds); of adaptive ones, the longest."""
        timeout: IdleTimeout = self.tuner.limits["idle_timeout"]
        return self._longest if timeout == ADAPTIVE else timeout

    @property
    def _ends(self) -> tuple[float, float]:
        """The shortest and the longest adaptive timeout in the log, if it had any (seconds)."""
        limits = self.tuner.limits
        return limits["min_idle_timeout"], limits["max_idle_timeout"]

    @property
    def _longest(self) -> float:
        """The longest adaptive timeout in the log, if it had one (seconds)."""
        return self._ends[1]

    @property
    def present(self) -> PolicyName:
        """The policy in the log."""
        policy: PolicyName = self.tuner.limits["policy"]
        return policy

    def find(self) -> Choice:
        """Return the choice; `curve` and the outcomes of the trials are then what it is from."""
        question = self.question
        self.reachable = self._curve(math.inf).best.hit_rate
        if question.max_size is not None:
            choice = self._best_at(question.max_size)
            timeout = choice.idle_timeout
            self._try_sizes(self._longest if timeout == ADAPTIVE else timeout)
            return choice
        self.aim = min(question.target, self.reachable)
        self._try_sizes(self._timeout_for_aim())
        self.needs = self._narrow(self.curve.timeout)
        return self._off_the_cliff(self._choose(self.needs))

    @property
    def compared(self) -> list[PolicyName]:
        """The policies in question, and LRU beside them."""
        others = [it for it in self.question.policies if it != "lru"]
        return ["lru", *others]

    def at(self, size: int) -> list[Outcome]:
        """Return the outcomes at a size, with the chosen timeout, of each policy `compared`."""
        return self._run(self.compared, [size], [self.curve.timeout])

    def settings(self, policy: PolicyName, size: int, timeout: IdleTimeout) -> Settings:
        """Return the settings of a trial; adaptive timeouts have the ends that the log has."""
        return Settings(policy, size, timeout, *(self._ends if timeout == ADAPTIVE else ()))

    def outcome(self, policy: PolicyName, size: int, timeout: float | None = None) -> Outcome:
        """Return what comes of one policy; `timeout`: as chosen, unless another is given."""
        timeout = self.curve.timeout if timeout is None else timeout
        (outcome,) = self._run([policy], [size], [timeout])
        return outcome

    def at_size(self, policy: PolicyName, size: int) -> float:
        """Return the hit rate of one policy at a size, with the chosen timeout."""
        return self._rates(policy, [size], self.curve.timeout)[0]

    def sizes(self) -> list[int]:
        """Return the sizes over the whole curve that were tried, in order."""
        return self._sizes

    def _curve(self, timeout: float) -> Curve:
        curve = self._curves.get(timeout)
        if curve is None:
            curve = self._curves[timeout] = self.tuner.curve(timeout)
        return curve

    def outcomes(self, policy: PolicyName, timeout: float) -> list[Outcome]:
        """Return the trials under `policy` with `timeout`, in order of size."""
        found = [
            it
            for it in self.trials.outcomes
            if it.settings.policy == policy and it.settings.idle_timeout == timeout
        ]
        return sorted(found, key=lambda it: it.settings.max_size)

    # -- for a target

    def _timeout_for_aim(self) -> float:
        """Return the timeout in the log if it does, or the shortest that needs little memory."""
        needed = self.tuner.timeout_for(self.aim)
        if needed is None:
            return math.inf
        self.able = self._curve(self.now).best.hit_rate >= self.aim
        least = self._least(math.inf)
        if self.able and self._least(self.now) <= FOR_PRESENT_TIMEOUT * least:
            return self.now
        for times in (1, 2, 4, 16):
            timeout = math.floor(needed * times) + 1.0
            if timeout > self.now and self._least(timeout) <= FOR_TIMEOUT * least:
                return timeout
        return math.inf

    def _least(self, timeout: float) -> float:
        """Return the smallest size that reaches the aim under LRU (bytes)."""
        size = self._curve(timeout).smallest_for(self.aim)
        return math.inf if size is None else size

    def _try_sizes(self, timeout: float) -> None:
        """Choose a timeout, and run the policies at sizes over the whole curve."""
        curve = self.curve = self._curve(timeout)
        if self.compared == ["lru"]:
            return
        count = next((n for most, n in SIZES.items() if self.tuner.leases <= most), FEWEST_SIZES)
        (unlimited,) = self._run(["lru"], [UNLIMITED], [timeout])
        # Above the end of the curve, what is used once may still displace something under others.
        self._ceiling = max(curve.largest, unlimited.peak_size)
        self._sizes = steps(curve.smallest, curve.largest, count)
        self._run(self.compared, self._sizes, [timeout])
        self._run(self.question.policies, [self._ceiling], [timeout])

    def _narrow(self, timeout: float) -> dict[PolicyName, int]:
        """Return the smallest size by which each policy reaches the aim."""
        found: dict[PolicyName, int] = {}
        open_: dict[PolicyName, tuple[int, int]] = {}
        for policy in self.question.policies:
            if policy == "lru":
                size = self.curve.smallest_for(self.aim)
                found[policy] = self.curve.largest if size is None else size
                continue
            open_[policy] = self._bracket(policy, timeout)
        while open_:
            for policy, (low, high) in list(open_.items()):
                if high <= CLOSE * low or high - low <= KiB or round_up(low) == round_up(high):
                    found[policy] = high
                    del open_[policy]
            between = {
                policy: steps(low, high, BETWEEN + 2)[1:-1] for policy, (low, high) in open_.items()
            }
            self.trials.run(
                Settings(policy, size, timeout) for policy in between for size in between[policy]
            )
            open_ = {policy: self._bracket(policy, timeout) for policy in open_}
        return found

    def _bracket(self, policy: PolicyName, timeout: float) -> tuple[int, int]:
        """Return a tried size that does not reach the aim, and the next one, that does."""
        low = high = 0
        for outcome in reversed(self.outcomes(policy, timeout)):
            if outcome.hits < self._wanted:
                low = outcome.settings.max_size
                break
            high = outcome.settings.max_size
        return (low or high), (high or self._ceiling)

    @property
    def _wanted(self) -> int:
        return math.ceil(self.aim * self.tuner.leases - 1e-9)

    def _choose(self, found: dict[PolicyName, int]) -> Choice:
        timeout = self.curve.timeout
        least = min(found.values())
        near = FOR_SECONDS if self.question.objective == "seconds" else SAME_SIZE
        able = {policy: size for policy, size in found.items() if size <= near * least}
        if len(found) == 1:
            (policy, size), *_ = found.items()
            return self._choice(policy, size, timeout)
        if self.question.objective == "seconds":
            choices = [self._choice(policy, size, timeout) for policy, size in able.items()]
            return self._fewest(choices)
        policy = self.present if self.present in able else min(able, key=able.__getitem__)
        return self._choice(policy, able[policy], timeout)

    def _choice(
        self, policy: PolicyName, size: int, timeout: IdleTimeout, least: int = 0
    ) -> Choice:
        """Return a choice with what comes of it: by a trial, or by the curve if there are none."""
        if self.compared == ["lru"] and size >= self.curve.smallest and timeout != ADAPTIVE:
            point = self._curve(timeout).at(size)
            return Choice(policy, size, timeout, point.hit_rate, point.load_seconds, least or size)
        (it,) = self._run([policy], [size], [timeout])
        return Choice(policy, size, timeout, it.hit_rate, it.load_seconds, least or size)

    def _off_the_cliff(self, choice: Choice) -> Choice:
        """Return a slightly larger choice where that avoids many of the misses, and round it."""
        timeout, policy, size = choice.idle_timeout, choice.policy, choice.max_size
        assert timeout != ADAPTIVE
        for _ in range(CLIFFS):
            sizes = [math.ceil(size * step) for step in (1.0, *STEPS)]
            rates = self._rates(policy, sizes, timeout)
            lost, gained = self.reachable - rates[0], max(rates) - rates[0]
            if gained < LEAST_GAIN or lost - gained > CLIFF * lost:
                break
            above = rates[0] + ABOVE * gained
            size = next(at for at, rate in zip(sizes, rates, strict=True) if rate >= above)
        for _ in range(ROUNDED):
            size = round_up(size)
            rounded = self._choice(policy, size, timeout, choice.max_size)
            if rounded.hit_rate * self.tuner.leases >= self._wanted - 0.5:
                break
            size += 1
        return rounded

    def _rates(self, policy: PolicyName, sizes: Sequence[int], timeout: float) -> list[float]:
        if policy == "lru":
            return [self.curve.at(size).hit_rate for size in sizes]
        return [it.hit_rate for it in self._run([policy], sizes, [timeout])]

    # -- for a size

    def _best_at(self, size: int) -> Choice:
        timeouts: list[IdleTimeout] = [*self._timeouts(), ADAPTIVE]
        if self.tuner.limits["idle_timeout"] == ADAPTIVE:
            timeouts.insert(0, timeouts.pop())  # kept, if it is as good
        choices = []
        self._run(self.compared, [size], timeouts)
        for policy in self.question.policies:
            outcomes = self._run([policy], [size], timeouts)
            fewest = min(map(self._score, outcomes))
            # An instance that is kept in vain takes memory, too.
            able = [it for it in outcomes if self._score(it) <= (1 + SAME) * fewest]
            chosen = min(able, key=lambda it: it.idle_byte_seconds)
            enough = min(size, round_up(chosen.peak_size))
            choices.append(self._choice(policy, enough, chosen.settings.idle_timeout))
        return self._fewest(choices)

    def _timeouts(self) -> list[float]:
        """Return the timeout in the log, and longer ones, from the shortest."""
        now = self._curve(self.now).best.hit_rate
        longer = []
        for part in LADDER:
            needed = self.tuner.timeout_for(now + part * (self.reachable - now))
            if needed is not None and needed >= self.now:
                longer.append(math.floor(needed) + 1.0)
        return list(dict.fromkeys([self.now, *longer, math.inf]))

    def _score(self, outcome: Outcome | Choice) -> float:
        if self.question.objective == "seconds":
            return outcome.load_seconds
        return self.tuner.leases * (1 - outcome.hit_rate)

    def _fewest(self, choices: Sequence[Choice]) -> Choice:
        """Return the best choice; that of the policy in the log if it is nearly as good."""
        fewest = min(map(self._score, choices))
        able = [it for it in choices if self._score(it) <= (1 + SAME) * fewest]
        return next((it for it in able if it.policy == self.present), min(able, key=self._score))

    def _run(
        self, policies: Iterable[PolicyName], sizes: Iterable[int], timeouts: Iterable[IdleTimeout]
    ) -> list[Outcome]:
        sizes, timeouts = list(sizes), list(timeouts)
        return self.trials.run(
            self.settings(policy, size, timeout)
            for policy in policies
            for size in sizes
            for timeout in timeouts
        )


def steps(low: int, high: int, count: int) -> list[int]:
    """Return at most `count` sizes from `low` to `high`, each by the same part larger."""
    if low < 1:
        low = 1
    if high <= low:
        return [low]
    between = [
        round(low * (high / low) ** (number / (count - 1))) for number in range(1, count - 1)
    ]
    return sorted({low, *between, high})


def round_up(size: int) -> int:
    """Round up to a usual size: whole MiB, or for small ones whole pages of WebAssembly."""
    unit = MiB if size > 16 * MiB else 64 * KiB
    return max(unit, -(-size // unit) * unit)
