"""The eviction order of each policy, by its name in `CacheConfig.policy`."""

from __future__ import annotations

from ..config import PolicyName
from .lru import LRU
from .order import EvictionOrder
from .recency import Recency
from .records import Instance, Module
from .reservations import Reservations


def make_order(
    policy: PolicyName,
    idle: LRU[Instance],
    evictable: LRU[Module],
    reservations: Reservations,
) -> EvictionOrder:
    """Return a new order that knows no instance yet.

    Args:
        policy: name of the policy.
        idle: idle instances, in order of last use; the caller keeps it up to date.
        evictable: modules that have only idle instances, in order of last use; likewise.
        reservations: what groups have reserved; likewise.
    """
    match policy:
        case "sieve":
            from .sieve import Sieve

            return Sieve(idle, evictable, reservations)
        case "gdsf":
            from .gdsf import Loads
            from .greedy import GreedyDual

            return GreedyDual(Loads(), reservations)
        case "cost":
            from .cost import LoadSeconds
            from .greedy import GreedyDual

            return GreedyDual(LoadSeconds(), reservations)
        case _:
            return Recency(idle, evictable, reservations)
