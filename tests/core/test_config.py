"""The limits of a cache: their defaults, and every way to get them wrong."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from trio_wasmcache._core.config import CacheConfig, KiB, MiB, bad_capacity, bad_shares


def test_the_defaults_are_those_of_the_contract() -> None:
    """Bytes, seconds and fuel as DESIGN gives them."""
    assert attrs.asdict(CacheConfig()) == {
        "policy": "lru",
        "max_size": 256 * MiB,
        "max_instance_size": 24 * MiB,
        "max_instances": 4096,
        "max_code_size": 64 * MiB,
        "max_running_size": None,
        "max_address_space": None,
        "idle_timeout": 5.0,
        "min_idle_timeout": 1.0,
        "max_idle_timeout": 600.0,
        "memory_limit": 32 * MiB,
        "table_limit": 10_000,
        "max_result_size": 256 * MiB,
        "max_wasm_size": 4 * MiB,
        "compiler": "optimizing",
        "compile_memory": None,
        "compile_seconds": 10.0,
        "total_fuel": 1_000_000_000,
        "yield_fuel": 100_000,
        "offload_after": 4,
        "max_threads": os.cpu_count() or 1,
        "stack_size": 512 * KiB,
        "main_capacity": math.inf,
        "main_shares": 100,
        "main_max_size": None,
        "main_reserved_size": 0,
        "main_cpu_limit": None,
        "cache_dir": None,
        "log_uses": False,
        "snapshot_interval": 300.0,
        "keep_dumps": 0,
        "log_values": None,
        "redact": None,
        "log_flush_timeout": 1.0,
    }


def test_scylladb_gives_the_defaults_of_the_original() -> None:
    """1 % of a shard of 4 GiB, instances of 1 MiB, 5 seconds, 2 MiB of memory, 1e8 fuel."""
    config = CacheConfig.scylladb()
    changed = attrs.asdict(
        config, filter=lambda field, value: value != getattr(CacheConfig(), field.name)
    )
    assert changed == {
        "max_size": 42_949_672,
        "max_instance_size": 1 * MiB,
        "max_code_size": 40 * MiB,
        "memory_limit": 2 * MiB,
        "total_fuel": 100_000_000,
    }
    assert (config.idle_timeout, config.yield_fuel) == (5.0, 100_000)


def test_a_configuration_is_a_value() -> None:
    """Frozen, keyword-only, equal by its fields."""
    assert CacheConfig(max_size=1) == CacheConfig(max_size=1) != CacheConfig(max_size=2)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        CacheConfig().max_size = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        CacheConfig(1)  # type: ignore[misc]


def test_all_bad_fields_are_reported_at_once() -> None:
    """One error names each bad field, what it must be and what it got."""
    with pytest.raises(ValueError, match="bad cache configuration") as caught:
        CacheConfig(max_size=-1, idle_timeout=0, stack_size=1, main_capacity=0, main_shares=0)
    assert str(caught.value) == (
        "bad cache configuration: "
        "max_size must be at least 0, got -1; "
        "idle_timeout must be above 0 seconds, got 0; "
        "stack_size must be at least 65536, got 1; "
        "main_capacity must be an int of at least 1, or math.inf, got 0; "
        "main_shares must be an int from 1 to 1000000, got 0"
    )


def test_the_longest_idle_timeout_is_no_shorter_than_the_shortest() -> None:
    """Whether they are in use or not; they may be equal."""
    with pytest.raises(ValueError, match="bad cache configuration") as caught:
        CacheConfig(idle_timeout="adaptive", min_idle_timeout=2.0, max_idle_timeout=1.5)
    assert str(caught.value).endswith("min_idle_timeout, 2.0, exceeds max_idle_timeout, 1.5")
    CacheConfig(min_idle_timeout=2.0, max_idle_timeout=2.0)


def test_an_idle_timeout_in_words_is_adaptive() -> None:
    """Anything else is no timeout, and the message says what is one."""
    with pytest.raises(ValueError, match="bad cache configuration") as caught:
        CacheConfig(idle_timeout="auto")  # type: ignore[arg-type]
    assert "idle_timeout must be seconds or \"adaptive\", got 'auto'" in str(caught.value)


def test_with_a_wrong_type_among_them_it_is_a_type_error() -> None:
    """Wrong types come first, and the wrong values are told all the same."""
    with pytest.raises(TypeError) as caught:
        CacheConfig(max_size=-1, max_instances="many", log_uses=1)  # type: ignore[arg-type]
    assert str(caught.value) == (
        "bad cache configuration: "
        "max_instances must be an int, got 'many'; "
        "log_uses must be True or False, got 1; "
        "max_size must be at least 0, got -1"
    )


class Later:
    """A callable whose calls have to be awaited."""

    async def __call__(self) -> None: ...


BYTES = ("max_size", "max_instance_size", "memory_limit", "table_limit")
WHOLE = (
    *BYTES,
    *("max_instances", "max_code_size", "max_wasm_size", "total_fuel", "yield_fuel"),
    *("max_threads", "stack_size"),
)
BAD: list[tuple[str, Any]] = [
    *((name, -1) for name in WHOLE),
    *((name, True) for name in WHOLE),
    *((name, 1.5) for name in WHOLE),
    *((name, None) for name in (*WHOLE, "idle_timeout", "log_flush_timeout", "log_uses")),
    *((name, "5") for name in ("idle_timeout", "log_flush_timeout", "offload_after")),
    *(("idle_timeout", value) for value in ("", "Adaptive", "inf", b"adaptive")),
    *(
        (f"{which}_idle_timeout", value)
        for which in ("min", "max")
        for value in (0, -1.0, math.inf, math.nan, None, True, "adaptive", "5")
    ),
    *((name, 0) for name in ("max_instances", "max_code_size", "total_fuel", "yield_fuel")),
    *((name, math.nan) for name in ("idle_timeout", "log_flush_timeout", "main_capacity")),
    *((name, True) for name in ("idle_timeout", "offload_after", "main_capacity", "main_shares")),
    ("max_instances", 16385),
    ("max_threads", 0),
    ("max_threads", 1025),
    ("max_wasm_size", 7),
    ("compile_memory", 1 * MiB - 1),
    ("compile_memory", 1.5e9),
    ("compile_seconds", 0),
    ("compile_seconds", math.inf),
    *((name, 10**400) for name in ("idle_timeout", "compile_seconds", "log_flush_timeout")),
    ("total_fuel", 2**63),
    ("yield_fuel", 2**63),
    ("stack_size", 64 * KiB - 1),
    ("stack_size", 1024 * MiB + 1),
    ("idle_timeout", -1.0),
    ("idle_timeout", 0.0),
    *(("snapshot_interval", bad) for bad in (0, -1.0, None, "5", math.nan, True)),
    *(("keep_dumps", bad) for bad in (-1, 1001, 1.5, None, True)),
    *(("log_values", bad) for bad in (-0.1, 1.1, True, "0.0", math.nan, math.inf)),
    *(("redact", bad) for bad in (1, "a", (), Later(), partial(Later()), Later.__call__)),
    ("log_flush_timeout", -0.1),
    ("log_flush_timeout", math.inf),
    ("offload_after", -1),
    *(("cache_dir", value) for value in ("", 5, True, ["folder"], b"bytes")),
    *(("max_running_size", value) for value in (0, -1, True, 1.5, "5")),
    ("main_capacity", 1.5),
    ("main_capacity", -math.inf),
    ("main_shares", 1_000_001),
    *(("policy", value) for value in ("LRU", "", "fifo", None, 1, True, ["lru"], b"lru")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_field_is_refused_by_name(name: str, value: Any) -> None:
    """A value out of range, a bool for a number, a number that is none: each is refused."""
    with pytest.raises((TypeError, ValueError), match=f"configuration: {name} must be"):
        CacheConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in BYTES),
        *(("policy", value) for value in ("lru", "sieve", "gdsf", "cost")),
        *(("max_instances", value) for value in (1, 16384)),
        *(("stack_size", value) for value in (64 * KiB, 1024 * MiB)),
        *(("total_fuel", value) for value in (1, 2**63 - 1)),
        *(("idle_timeout", value) for value in (1, 0.001, math.inf, "adaptive")),
        *(("min_idle_timeout", value) for value in (1, 0.001, 600)),
        *(("max_idle_timeout", value) for value in (1, 1.5, 1e9)),
        *(("snapshot_interval", value) for value in (0.001, 60, math.inf)),
        *(("keep_dumps", value) for value in (0, 1, 1000)),
        *(("log_values", value) for value in (None, 0, 0.0, 0.01, 1, 1.0)),
        *(("redact", value) for value in (None, print)),
        *(("log_flush_timeout", value) for value in (0, 0.0, 3)),
        *(("offload_after", value) for value in (None, 0, 7)),
        *(("main_capacity", value) for value in (1, 8, math.inf)),
        *(("main_shares", value) for value in (1, 1_000_000)),
        ("max_wasm_size", 8),
        *(("compile_memory", value) for value in (None, 1 * MiB)),
        *(("compile_seconds", value) for value in (0.1, 60)),
        ("max_code_size", 1),
        *(("cache_dir", value) for value in ("here", Path("there"), None)),
        *(("max_running_size", value) for value in (None, 1, 10**30)),
        ("yield_fuel", 2_000_000_000),
    ],
)
def test_the_ends_of_each_range_are_allowed(name: str, value: Any) -> None:
    """What is just inside is taken as it is; `yield_fuel` may exceed `total_fuel`."""
    assert getattr(CacheConfig(**{name: value}), name) == value


def test_an_unknown_field_is_refused() -> None:
    """A misspelt limit is not a limit that is silently ignored."""
    with pytest.raises(TypeError, match="max_sise"):
        CacheConfig(max_sise=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [1, 100, math.inf])
def test_a_capacity_is_a_whole_number_or_infinite(value: float) -> None:
    """What a `trio.CapacityLimiter` takes, less zero."""
    assert bad_capacity(value) is None


@pytest.mark.parametrize("value", [0, -1, 1.0, True, None, "8", math.nan, -math.inf])
def test_what_is_no_capacity_is_told_with_its_value(value: object) -> None:
    """The reason names what it got."""
    assert bad_capacity(value) == f"must be an int of at least 1, or math.inf, got {value!r}"


@pytest.mark.parametrize(("value", "good"), [(1, True), (10**6, True), (0, False), (1.0, False)])
def test_shares_are_a_whole_number_in_range(value: object, good: bool) -> None:
    """From 1 to a million."""
    assert (bad_shares(value) is None) is good


class Large(int):
    """Says that it fits wherever it is compared."""

    def __le__(self, other: object) -> bool:
        return True

    __ge__ = __le__

    def __lt__(self, other: object) -> bool:
        return False

    __gt__ = __lt__


def test_numbers_of_classes_of_their_own_are_taken_as_what_they_are() -> None:
    """No comparison of theirs lets them in, and none is kept."""
    for name in ("max_size", "yield_fuel", "max_threads", "max_instances", "memory_limit"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            CacheConfig(**{name: Large(-5)})
    assert type(CacheConfig(max_size=Large(2**20)).max_size) is int
