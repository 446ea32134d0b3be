"""The limits of a cache: bytes, seconds, fuel and counts, checked all at once."""

from __future__ import annotations

import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, ParamSpec, TypeAlias, TypeVar, get_args

from attrs import field, fields, frozen

from .._public import public
from .text import shown
from .tiers import STACKS, CompilerName

P = ParamSpec("P")
T = TypeVar("T")

PolicyName: TypeAlias = Literal["lru", "sieve", "gdsf", "cost"]
"""Name of an eviction policy; see `CacheConfig.policy`."""
ADAPTIVE: Final = "adaptive"
IdleTimeout: TypeAlias = float | Literal["adaptive"]
"""Seconds, or that they are learned; see `CacheConfig.idle_timeout`."""

KiB = 1024
MiB = 1024 * KiB

# One page of WebAssembly memory, fixed by its specification.
WASM_PAGE = 64 * KiB
# Bytes of the scratch of a batch's driver, at most; 256 KiB fit a core's own cache beside the
# guest's data. What the host does for a chunk takes as long as three thousand rows, so more of them
# would gain little. If values cross through the guest's memory, they are made with the GIL held for
# a whole chunk, which has half of it.
SCRATCH_LIMIT = 4 * WASM_PAGE
VALUES_SCRATCH_LIMIT = SCRATCH_LIMIT // 2
# Below this a guest's half of the stack can't hold the frames of ordinary compiled code.
MIN_STACK_SIZE = 64 * KiB
# Cores of a group: a thousandth is a millisecond in each second.
MIN_CPU_LIMIT, MAX_CPU_LIMIT = 0.001, 1024


def _whole(minimum: int, maximum: int | None = None) -> dict[str, object]:
    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            remedy = ": round it by int(...)" if isinstance(value, float) else ""
            return f"must be an int, got {shown(value)}{remedy}"
        if value < minimum:
            return f"must be at least {minimum}, got {shown(value)}"
        if maximum is not None and value > maximum:
            return f"must be at most {maximum}, got {shown(value)}"
        return None

    return {"check": check, "type": int}


def _seconds(*, zero: bool, infinite: bool) -> dict[str, object]:
    def check(value: object) -> str | None:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"must be a number of seconds, got {shown(value)}"
        if value > sys.float_info.max and not (infinite and value == math.inf):
            return "must be finite"
        if math.isnan(value) or value < 0 or (value == 0 and not zero):
            return f"must be {'at least 0' if zero else 'above 0'} seconds, got {shown(value)}"
        return None

    return {"check": check}


def _timeout() -> dict[str, object]:
    seconds: Callable[[object], str | None] = _seconds(zero=False, infinite=True)["check"]  # type: ignore[assignment]

    def check(value: object) -> str | None:
        if isinstance(value, str):
            return (
                None
                if value == ADAPTIVE
                else f'must be seconds or "{ADAPTIVE}", got {shown(value)}'
            )
        return seconds(value)

    return {"check": check, "type": (int, float, str)}


_BYTES: Callable[[object], str | None] = _whole(0)["check"]  # type: ignore[assignment]


def _path_or_none() -> dict[str, object]:
    def check(value: object) -> str | None:
        if value is None or (isinstance(value, (str, os.PathLike)) and os.fspath(value)):
            return None
        return f"must be a path or None, got {shown(value)}"

    return {"check": check, "type": (str, os.PathLike)}


def _part_or_none() -> dict[str, object]:
    def check(value: object) -> str | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            return f"must be from 0.0 to 1.0, or None, got {shown(value)}"
        return None

    return {"check": check}


def is_async(function: Any) -> bool:
    """Return whether calling a function gives a coroutine, as far as it says so itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _function_or_none() -> dict[str, object]:
    def check(value: object) -> str | None:
        if value is None:
            return None
        if not callable(value):
            return f"must be a function or None, got {shown(value)}"
        if is_async(value):
            return f"must be a plain function, not an async one, got {shown(value)}"
        return None

    return {"check": check, "type": ()}


def _flag() -> dict[str, object]:
    def check(value: object) -> str | None:
        return None if isinstance(value, bool) else f"must be True or False, got {shown(value)}"

    return {"check": check, "type": bool}


def _one_of(*names: str) -> dict[str, object]:
    def check(value: object) -> str | None:
        if isinstance(value, str) and value in names:
            return None
        return f"must be one of {', '.join(map(repr, names))}, got {shown(value)}"

    return {"check": check, "type": str}


def _tokens() -> dict[str, object]:
    return {"check": bad_capacity}


def _whole_or_none(minimum: int) -> dict[str, object]:
    check_whole = _whole(minimum)["check"]
    assert callable(check_whole)

    def check(value: object) -> str | None:
        problem: str | None = None if value is None else check_whole(value)
        return problem

    return {"check": check, "type": int}


def check_fields(function: str, given: Iterable[str]) -> None:
    """Raise `TypeError` for a name that is no field of `CacheConfig`, with a similar one if any.

    Args:
        function: name of the function that was called with them.
        given: the names.
    """
    known = _names()
    for name in given:
        if name not in known:
            similar = _similar(name)
            hint = f"did you mean {similar}?" if similar else "see help(CacheConfig)"
            raise TypeError(f"{function}() knows no limit {shown(name)}: {hint}")


def takes_config(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function with a `config`: say where a limit belongs that it is given itself.

    Its other parameters have to be keyword-only.
    """
    own = {"config", *(getattr(function, "__kwdefaults__", None) or ())}

    @functools.wraps(function)
    def checked(*args: P.args, **given: P.kwargs) -> T:
        if not given.keys() <= own:
            for name in given.keys() - own:
                limit = name if name in _names() else _similar(name)
                if limit is not None:
                    raise TypeError(
                        f"{function.__name__}() takes no {shown(name)}: limits are in its "
                        f"configuration, {function.__name__}(CacheConfig({limit}=...))"
                    )
        return function(*args, **given)

    return checked


def _names() -> list[str]:
    """Return the names of all fields of `CacheConfig`."""
    return [attribute.name for attribute in fields(CacheConfig)]


def _similar(name: str) -> str | None:
    """Return the field of `CacheConfig` that a misspelt name may mean, or None."""
    import difflib

    return next(iter(difflib.get_close_matches(name, _names(), n=1)), None)


def _explains_names(cls: type[T]) -> type[T]:
    """Decorate `CacheConfig`, so that an unknown field is named as by `resize`."""
    make: Callable[..., None] = cls.__init__

    @functools.wraps(make)
    def init(self: T, *args: Any, **given: Any) -> None:
        check_fields(cls.__name__, given)
        make(self, *args, **given)

    setattr(cls, "__init__", init)  # noqa: B010 -- which checkers take for a mistake
    return cls


def bad_capacity(value: object) -> str | None:
    """Return why `value` can't be a capacity (a whole number from 1, or `math.inf`), or None."""
    if value == math.inf or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return None
    return f"must be an int of at least 1, or math.inf, got {shown(value)}"


def bad_shares(value: object) -> str | None:
    """Return why `value` can't be CPU shares (a whole number from 1 to 1,000,000), or None."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000:
        return None
    return f"must be an int from 1 to 1000000, got {shown(value)}"


def _bad_max_size(value: object) -> str | None:
    """Return why `value` can't be the `max_size` of a group (bytes, or None), or None."""
    problem: str | None = None if value is None else _BYTES(value)
    return problem


def _bad_cpu_limit(value: object) -> str | None:
    """Return why `value` can't be the `cpu_limit` of a group (cores, or None), or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"must be a number of cores, or None, got {shown(value)}"
    if not MIN_CPU_LIMIT <= value <= MAX_CPU_LIMIT:
        return f"must be from {MIN_CPU_LIMIT} to {MAX_CPU_LIMIT} cores, got {shown(value)}"
    return None


@frozen(kw_only=True)
class GroupLimits:
    """Limits of one scheduling group; see `InstanceCache.scheduling_group`."""

    capacity: float
    shares: int = 100
    max_size: int | None = None
    reserved_size: int = 0
    cpu_limit: float | None = None

    def check(self, name: str) -> None:
        """Raise `ValueError` if a limit is out of range, or if they contradict each other."""
        checks: dict[str, Callable[[object], str | None]] = {
            "capacity": bad_capacity,
            "shares": bad_shares,
            "max_size": _bad_max_size,
            "reserved_size": _BYTES,
            "cpu_limit": _bad_cpu_limit,
        }
        for what, check in checks.items():
            problem = check(getattr(self, what))
            if problem is not None:
                raise ValueError(f"{what} of group {shown(name)} {problem}")
        if self.max_size is not None and self.reserved_size > self.max_size:
            raise ValueError(
                f"reserved_size of group {shown(name)}, {self.reserved_size}, exceeds its "
                f"max_size, {self.max_size}"
            )


@frozen(kw_only=True)
class SystemLimits:
    """The part of the process's system limits that a cache may use; None: no known limit."""

    address_space: int | None = None
    """Bytes of addresses, used where `max_address_space` is None."""
    mappings: int | None = None
    """Number of memory mappings, as the kernel counts them."""

    def max_address_space(self, config: CacheConfig) -> int | None:
        """Return the limit that applies under `config` (bytes), or None."""
        said = config.max_address_space
        return self.address_space if said is None else said


@public
@_explains_names
@frozen(kw_only=True)
class CacheConfig:
    """Limits of an `InstanceCache`; all have a default. Sizes are bytes, times are seconds.

    ``CacheConfig(max_size=64 * MiB, idle_timeout=2.0)``

    A configuration does not change; `InstanceCache.resize` changes the limits of an open cache.

    Raises:
        TypeError: fields have the wrong type; the message lists all bad fields.
        ValueError: fields are out of range; the message lists all bad fields.
    """

    policy: PolicyName = field(default="lru", metadata=_one_of(*get_args(PolicyName)))
    """Which idle instances are evicted first when a limit is reached. ``"lru"``: the least recently
    used. ``"sieve"``: those that were not used again, oldest first. ``"gdsf"``: those with the
    fewest uses for their size, for the fewest loads. ``"cost"``: those that saved the fewest
    seconds of loading for their size, for the shortest waits. A hit costs the same under each."""
    max_size: int = field(default=256 * MiB, metadata=_whole(0))
    """Bytes of all idle instances together, at most; from 0. Idle instances are evicted to stay
    below it, in the order of `policy`. Running instances are not counted."""
    max_instance_size: int = field(default=24 * MiB, metadata=_whole(0))
    """Bytes above which an instance is not kept when its lease ends; from 0."""
    max_instances: int = field(default=4096, metadata=_whole(1, 16384))
    """Number of idle and running instances together, at most; 1 to 16,384. The kernel's usual limit
    on memory mappings (`vm.max_map_count`, of which a cache uses three quarters) allows about 9,800
    instances that have one memory each."""
    max_code_size: int = field(default=64 * MiB, metadata=_whole(1))
    """Bytes of machine code of loaded modules and of stacks of running instances together, at
    most; from 1."""
    max_running_size: int | None = field(default=None, metadata=_whole_or_none(1))
    """Bytes of all running instances together, at most; each counts with the most that it may touch
    (`Function.worst_size`). An acquire that would exceed it waits. None: no limit."""
    max_address_space: int | None = field(default=None, metadata=_whole_or_none(1))
    """Bytes of addresses that instances and loaded code reserve together, at most: about 4 GiB for
    each memory of an instance, however little of it is used. None: three quarters of the system's
    limit (the smaller of `RLIMIT_AS` and 2^47 bytes)."""
    idle_timeout: IdleTimeout = field(default=5.0, metadata=_timeout())
    """Seconds after which an unused instance is evicted; above 0. `math.inf`: never.
    ``"adaptive"``: for each function as long as its own times between uses make worthwhile, from
    `min_idle_timeout` to `max_idle_timeout`."""
    min_idle_timeout: float = field(default=1.0, metadata=_seconds(zero=False, infinite=False))
    """Seconds for which an unused instance is kept at least, with ``idle_timeout="adaptive"``;
    above 0."""
    max_idle_timeout: float = field(default=600.0, metadata=_seconds(zero=False, infinite=False))
    """Seconds for which an unused instance is kept at most, with ``idle_timeout="adaptive"``; above
    0. It is also what one load is worth: idle time is spent where each load that it avoids takes
    fewer seconds than that. An instance of a function that is not known yet is kept for as long."""
    memory_limit: int = field(default=32 * MiB, metadata=_whole(0))
    """Bytes of all linear memories of one instance together, at most; from 0.

    Several memories that can grow share it in fixed equal parts, as far as their minima and maxima
    allow: each may grow to its part, whatever the others use."""
    table_limit: int = field(default=10_000, metadata=_whole(0))
    """Number of elements of all tables of one instance together, at most; from 0."""
    max_result_size: int = field(default=256 * MiB, metadata=_whole(1 * KiB))
    """Bytes of the result of one call, or of all results of one batch, as Python objects, at most;
    from 1024. Exceeding it raises `ResultTooLargeError`."""
    max_wasm_size: int = field(default=4 * MiB, metadata=_whole(8))
    """Bytes of a module without its custom sections, or of its text, at most; `register` rejects
    larger ones. From 8. With custom sections, a module may have 8 times as many."""
    compiler: CompilerName = field(default="optimizing", metadata=_one_of(*get_args(CompilerName)))
    """Which of wasmtime's compilers compiles modules. ``"optimizing"``: Cranelift, whose code is
    the fastest. ``"baseline"``: Winch, which takes a tenth of the time, and whose code takes up to
    1.4 times as long; modules that it can't compile go to the other one. ``"tiered"``: first
    Winch, and in the background Cranelift, for functions whose calls have used 10 ms. With
    ``"baseline"`` and ``"tiered"``, all stacks have 4 times `stack_size`, as Winch's code needs
    more."""
    compile_memory: int | None = field(default=None, metadata=_whole_or_none(1 * MiB))
    """Bytes of memory that compiling a module may take, in a process of its own; from 1 MiB. None:
    modules are compiled in this process, without a limit."""
    compile_seconds: float = field(default=10.0, metadata=_seconds(zero=False, infinite=False))
    """Seconds of CPU time that compiling a module may take in that process; above 0."""
    total_fuel: int = field(default=1_000_000_000, metadata=_whole(1, 2**63 - 1))
    """Units of fuel that one call may burn, about one for each instruction; from 1. A call that has
    burnt all raises `FuelExhaustedError`."""
    yield_fuel: int = field(default=100_000, metadata=_whole(1, 2**63 - 1))
    """Units of fuel that one slice of a call may burn before other tasks run; from 1. It may exceed
    `total_fuel`."""
    offload_after: int | None = field(default=4, metadata=_whole_or_none(0))
    """Number of slices that a call runs on the event loop before it moves to a worker thread; from
    0. None: it never moves."""
    max_threads: int = field(factory=lambda: os.cpu_count() or 1, metadata=_whole(1, 1024))
    """Number of worker threads that run calls at the same time; 1 to 1024. The default is the
    number of CPUs."""
    stack_size: int = field(default=512 * KiB, metadata=_whole(MIN_STACK_SIZE, 1024 * MiB))
    """Bytes of stack of a running instance; 64 KiB to 1 GiB. The guest can use half of it. It has 4
    times as much unless `compiler` is ``"optimizing"``; see `instance_stack_size`."""
    main_capacity: float = field(default=math.inf, metadata=_tokens())
    """Capacity of the group ``"main"``, which serves tasks that are in no other group: the number
    of tasks that may hold or wait for instances at the same time. An int from 1, or `math.inf`."""
    main_shares: int = field(default=100, metadata={"check": bad_shares})
    """CPU shares of the group ``"main"``, relative to the shares of other groups; 1 to
    1,000,000."""
    main_max_size: int | None = field(default=None, metadata={"check": _bad_max_size})
    """Bytes of idle instances of the group ``"main"``, at most; from 0. None: only `max_size`
    limits them."""
    main_reserved_size: int = field(default=0, metadata=_whole(0))
    """Bytes of idle instances of the group ``"main"`` that the need of other groups does not evict
    for size; from 0."""
    main_cpu_limit: float | None = field(default=None, metadata={"check": _bad_cpu_limit})
    """Cores that guests of the group ``"main"`` may use, on average over a second; 0.001 to 1024.
    None: no limit."""
    cache_dir: str | os.PathLike[str] | None = field(default=None, metadata=_path_or_none())
    """Path of a folder in which compiled code is kept across restarts; made if it does not exist.
    It must belong to the user and have mode 0700. Only this library should write there: anything in
    it that is not a regular file of the user is removed. A leading "~" is not expanded. None:
    compiled code is not kept."""
    log_uses: bool = field(default=False, metadata=_flag())
    """Whether acquires and recycles are logged, too. Such a log can be replayed."""
    snapshot_interval: float = field(default=300.0, metadata=_seconds(zero=False, infinite=True))
    """Seconds between two snapshots in a log with uses; above 0. From each, a log that has lost
    what came before can be replayed. Nothing is written while nothing happens. `math.inf`: never.
    """
    keep_dumps: int = field(default=0, metadata=_whole(0, 1000))
    """Number of failed calls whose core dumps are kept, at most, for `GuestError.dump`; 64 MiB of
    them together, and each as long as its error. 0 to 1000; 0: none. A dump contains all memory of
    the guest, and so what the call was given. With others than 0, a failing call takes about half a
    millisecond longer for each MiB of memory. Rows without which a batch goes on, with
    ``on_error="null"``, have no dump."""
    log_values: float | None = field(default=None, metadata=_part_or_none())
    """Part of the calls that are logged with their values, from 0.0 to 1.0, so that ``python -m
    trio_wasmcache again`` can run them again. With 0.0, these are only calls that fail, and rows of
    batches that fail. Calls that are cancelled are not logged. With 0.01, one of a hundred other
    calls is logged, too. With any part, the cache notes the answers of host functions in each call,
    which takes some microseconds. The log then contains data of callers: see `redact`. None: no
    calls are logged."""
    redact: Callable[[str, str, object], object] | None = field(
        default=None, metadata=_function_or_none()
    )
    """Function that gets each value that `log_values` logs, and returns the value to log in its
    place. It is called as ``redact(function, what, value)`` in the task that called the guest, with
    the name of the function. `what` is ``"argument 0"`` and so on; ``"result"``; ``"env.lookup
    returned"``, with a tuple of wasm values, and ``"env.lookup wrote"``, with bytes, for each host
    function, which is ``"demo:kv/store@0.1.0#get"`` for an import of a component; or ``"setup"``,
    with options of `register`. Python's own collections and buffers, and arrays of numpy, are
    copies, which the function may change; those that are too large for the log are left out without
    asking it. Objects of other classes are those of the call; for records of a component there are
    named tuples in place of them. The value is left out if the function raises. None: all values
    are logged as they are."""
    log_flush_timeout: float = field(default=1.0, metadata=_seconds(zero=True, infinite=False))
    """Seconds that closing the cache waits for the log to be written, at most; from 0."""

    def __attrs_post_init__(self) -> None:
        wrong_type: list[str] = []
        wrong_value: list[str] = []
        for attribute in fields(CacheConfig):
            check: Callable[[object], str | None] = attribute.metadata["check"]
            value = getattr(self, attribute.name)
            if isinstance(value, (int, float)) and type(value) not in (int, float, bool):
                # An instance of a subclass may compare and add in its own way: take its number.
                value = int.__pos__(value) if isinstance(value, int) else float.__pos__(value)
                object.__setattr__(self, attribute.name, value)
            problem = check(value)
            if problem is not None:
                right = attribute.metadata.get("type", (int, float))
                right_type = isinstance(value, right) and not isinstance(value, bool)
                (wrong_value if right_type else wrong_type).append(f"{attribute.name} {problem}")
        if not (wrong_type or wrong_value):
            wrong_value += self._contradictions()
        if wrong_type or wrong_value:
            kind = TypeError if wrong_type else ValueError
            raise kind("bad cache configuration: " + "; ".join(wrong_type + wrong_value))

    def _contradictions(self) -> list[str]:
        problems = []
        if self.min_idle_timeout > self.max_idle_timeout:
            problems.append(
                f"min_idle_timeout, {self.min_idle_timeout}, exceeds max_idle_timeout, "
                f"{self.max_idle_timeout}"
            )
        for limit in ("max_size", "main_max_size"):
            value = getattr(self, limit)
            if value is not None and self.main_reserved_size > value:
                problems.append(
                    f"main_reserved_size, {self.main_reserved_size}, exceeds {limit}, {value}"
                )
        return problems

    @property
    def timeouts(self) -> tuple[IdleTimeout, float, float]:
        """All that decides for how long instances are kept idle (seconds, or "adaptive")."""
        return self.idle_timeout, self.min_idle_timeout, self.max_idle_timeout

    @property
    def main_group(self) -> GroupLimits:
        """Limits of the group ``"main"``."""
        return GroupLimits(
            capacity=self.main_capacity,
            shares=self.main_shares,
            max_size=self.main_max_size,
            reserved_size=self.main_reserved_size,
            cpu_limit=self.main_cpu_limit,
        )

    @property
    def instance_stack_size(self) -> int:
        """Bytes of the stack of each running instance, of which the guest can use half.

        It is `stack_size`, or 4 times as much unless `compiler` is ``"optimizing"``.
        """
        return self.stack_size * STACKS[self.compiler]

    @classmethod
    def scylladb(cls) -> CacheConfig:
        """Return the defaults of ScyllaDB's own cache, for a shard of 4 GiB.

        Instances of at most 1 MiB each and 1 % of the shard's memory together, idle for at most
        5 seconds, 2 MiB of memory each, 100,000,000 units of fuel a call in slices of 100,000.
        """
        return cls(
            max_size=4096 * MiB // 100,
            max_instance_size=1 * MiB,
            idle_timeout=5.0,
            max_code_size=40 * MiB,
            memory_limit=2 * MiB,
            total_fuel=100_000_000,
            yield_fuel=100_000,
        )
