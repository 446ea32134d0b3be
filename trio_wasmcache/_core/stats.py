"""What a cache tells about itself: frozen numbers, taken at one moment."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class CacheStats:
    """Counters since the cache was opened, and gauges of the moment. Sizes are bytes."""

    hits: int
    """Leases granted from an idle instance or seat."""
    misses: int
    """Leases for which something had to be loaded; hits + misses = leases granted."""
    blocks: int
    """Acquires that had to wait, also those that were then cancelled."""
    calls: int
    """Calls begun."""
    evictions: dict[str, int]
    """{reason: instances and seats that went for it}; every reason is there."""
    functions: int
    """Registered functions."""
    groups: int
    """Open scheduling groups, the main one included."""
    entries: int
    """Functions in groups that have instances or are waited for."""
    idle_instances: int
    running_instances: int
    """Held, or being loaded."""
    waiting: int
    """Acquires that wait for an instance or for room."""
    loaded_modules: int
    total_size: int
    """All idle instances together."""
    max_size: int
    code_size: int
    """Code of loaded modules and stacks of running instances together."""
    max_code_size: int
    artifact_size: int
    """Serialized code of all registered modules, loaded or not."""
    log_lost: int
    """Events that the log dropped because its sink was too slow."""
    log_failures: int
    """Events that the sink raised on."""


@frozen(kw_only=True)
class EntryInfo:
    """One function in one group."""

    function: str
    args: tuple[str, ...]
    generation: int
    group: str
    idle: int
    running: int
    """Instances held or being loaded."""
    waiting: int
    size: int
    """Its idle instances together (bytes)."""
    last_used: float | None
    """When one of its instances was last recycled (`trio.current_time()`), or None."""
