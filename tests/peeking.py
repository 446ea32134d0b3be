"""What tests read of a lease's inside: only here, so that it can change in one place."""

from __future__ import annotations

from typing import Any

from trio_wasmcache import Lease
from trio_wasmcache._runtime.bound import BoundFunction
from trio_wasmcache._runtime.runner import Job


def bound_of(lease: Lease) -> BoundFunction:
    """Return the function of the instance that the lease holds; counts as a use of it."""
    bound = lease._first_use() or lease._bound
    assert bound is not None
    return bound


def native_of(lease: Lease) -> Any:
    """Return the instance that the lease holds, as its engine made it."""
    return bound_of(lease).native


def small_of(lease: Lease) -> object:
    """Return what begins small batches of the lease; None: nothing does yet."""
    return bound_of(lease).small


def job_of(lease: Lease) -> Job | None:
    """Return what is driven for the lease now: a call, a batch, or a start."""
    activity = lease._activity()
    return None if activity is None else activity._job


def in_call(lease: Lease) -> bool:
    """Return whether a call of the lease goes on beyond its first slice."""
    return lease._under_way is not None


def is_broken(lease: Lease) -> bool:
    """Return whether a call of the lease failed, so that its instance will be dropped."""
    return lease._state.name == "BROKEN"


def may_call(lease: Lease) -> bool:
    """Return whether a call may begin."""
    return lease._first_use() is not None


def instance_behind(record: Any) -> Any:
    """Return the native instance of one of the policy."""
    return record.bound.native


def slots_of(thing: object) -> dict[str, Any]:
    """Return {name: value} of all fields of a record, to compare two."""
    slots: tuple[str, ...] = type(thing).__slots__  # type: ignore[attr-defined]
    return {name: getattr(thing, name) for name in slots}
