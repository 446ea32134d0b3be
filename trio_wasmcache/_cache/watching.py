"""What an observer of a cache is shown of its leases and registrations, as they happen.

`Lease` and `InstanceCache` show it their uses (see `watched` in `lease`), `trio_wasmcache.otel`
makes spans of them. A cache that nobody watches has other leases, which know nothing of this.

1. Nothing here may raise, or wait: a use has begun or ended already.
2. A use begins and ends in the same task, whose context it may change in between.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol, TypeAlias, TypedDict

from .._core.keys import FunctionKey

What: TypeAlias = Literal["acquire", "call", "map", "register"]
"""Kind of a use."""


class Facts(TypedDict, total=False):
    """Facts about a use that has ended; those that are not known are left out."""

    key: FunctionKey
    """Key of the function."""
    generation: int
    """Its generation."""
    instance: int
    """Number of the instance in the log."""
    request: int | None
    """Number of the request in the log; None without `log_uses`."""
    hit: bool
    """Whether an acquire found an idle instance or seat."""
    warm: bool
    """Whether an acquire was of `InstanceCache.warm`."""
    cold: bool
    """Whether an acquire loaded its instance; of a call: whether it is the first one after that."""
    fuel: int | None
    """Units of fuel that a call burnt."""
    rows: int | None
    """Number of rows of a batch."""
    row_errors: int
    """Number of rows that failed, in a batch that goes on then."""
    reason: str
    """Why a guest failed, and its last words; without arguments, which the error's text has."""
    compile_seconds: float
    """Seconds that compiling took; 0.0 if the module was compiled before."""
    code_size: int
    """Bytes of machine code of the module."""
    module_digest: str
    """SHA-256 of the module's bytes, in hexadecimal."""


class Use(Protocol):
    """A use that has begun."""

    def reach(self, stage: str, behind: Collection[object] = ()) -> None:
        """Note that an acquire begins to wait or to load, which ends the stage before.

        Args:
            stage: ``"a token"``, ``"an instance"`` or ``"room"``: what it waits for; ``"load"``.
            behind: the requests that hold what it waits for, as far as they are known.
        """

    def end(self, error: BaseException | None, facts: Facts) -> None:
        """Note that the use has ended, by an exception or without one."""

    def hold(self, request: object) -> None:
        """Note that an acquire was granted a request, which `Watcher.release` ends."""


class Watcher(Protocol):
    """An observer of one cache."""

    def wants(self) -> bool:
        """Return whether to show it a use that the caller is about to begin."""

    def begin(self, what: What, name: object, args: object, group: str) -> Use:
        """Note that a use begins.

        Args:
            what: kind of the use.
            name: name of the function, as the caller gave it.
            args: types of its arguments; None: not known yet.
            group: name of the scheduling group.
        """

    def release(self, request: object) -> None:
        """Note that the block of a lease has ended."""
