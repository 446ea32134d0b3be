"""Which caches of a fleet would need other limits than those that are advised for all together.

Each cache runs with its own log, and the sums decide. So a small one may be served badly, or take
memory in vain.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from ..._core.config import ADAPTIVE
from ..reading.notes import cite
from ..reading.units import rate, seconds
from .advice import Advice, in_source
from .search import Search, round_up
from .trial import Outcome, Settings
from .tuning import Tuner

# A hit rate that is this far below what a cache could have, or misses (or seconds) that another
# choice would lower by this part, are worth a sentence.
BELOW, LOWER = 0.01, 0.05
# So is a size of which this part would do.
SMALLER = 0.5


@frozen
class Member:
    """One cache of a fleet."""

    cache: str
    label: str
    tuner: Tuner

    @property
    def name(self) -> str:
        """Its id, with its label if it has one."""
        return f"{cite(self.cache)} ({cite(self.label)})" if self.label else cite(self.cache)


@frozen
class Different:
    """One cache that would need other limits."""

    member: Member
    outcome: Outcome
    """What comes of the advised limits for it."""
    wanted: Settings | None
    """Limits that are better for it alone; None: none that was tried is."""
    sentence: str


def different(search: Search, advice: Advice, members: Sequence[Member]) -> list[Different]:
    """Return the caches that would need other limits, those with the most leases first.

    Compares settings that the search has tried, so it costs at most one trial for each cache.
    """
    if len(members) < 2:
        return []
    advised = search.settings(advice.limits["policy"], advice.max_size, advice.idle_timeout)
    search.trials.run([advised])
    look = _for_target if search.question.max_size is None else _for_size
    found = []
    for index, member in enumerate(members):
        if member.tuner.leases:
            one = look(search, advised, index, member)
            found += [] if one is None else [one]
    return sorted(found, key=lambda it: -it.member.tuner.leases)


def _for_target(search: Search, advised: Settings, index: int, member: Member) -> Different | None:
    own, timeout = search.trials.each(advised)[index], advised.idle_timeout
    assert timeout != ADAPTIVE  # only tried for a size
    aim = min(search.question.target, member.tuner.curve(timeout).best.hit_rate)
    tried = [
        search.trials.each(it.settings)[index] for it in search.outcomes(advised.policy, timeout)
    ]
    enough = [it.settings for it in tried if it.hit_rate >= aim]
    least = enough[0] if enough else None
    if own.hit_rate < aim - BELOW:
        needs = (
            "and no size that was tried does better"
            if least is None
            else f"and needs about {in_source('max_size', round_up(least.max_size))}"
        )
        text = f"{member.name} has {rate(own.hit_rate)} of the {rate(aim)} that it could, {needs}"
        return Different(member, own, least, text)
    if least is None or least.max_size > SMALLER * advised.max_size:
        return None
    written = in_source("max_size", round_up(least.max_size))
    text = f"{written} would do for {member.name}"
    return Different(member, own, least, text)


def _for_size(search: Search, advised: Settings, index: int, member: Member) -> Different | None:
    own = search.trials.each(advised)[index]
    by_seconds = search.question.objective == "seconds"

    def score(it: Outcome) -> float:
        return it.load_seconds if by_seconds else it.misses

    tried = [
        search.trials.each(it.settings)[index]
        for it in search.trials.outcomes
        if it.settings.max_size == search.question.max_size
        and it.settings.policy in search.question.policies
    ]
    best = min(tried, key=score)
    if score(own) - score(best) <= LOWER * score(own):
        return None
    policy, timeout = best.settings.policy, best.settings.idle_timeout
    shown = seconds(best.load_seconds) if by_seconds else rate(best.hit_rate)
    instead = seconds(own.load_seconds) if by_seconds else rate(own.hit_rate)
    text = (
        f"{member.name} has {instead}, and {shown} with policy = {in_source('policy', policy)} and "
        f"idle_timeout = {in_source('idle_timeout', timeout)}"
    )
    return Different(member, own, best.settings, text)
