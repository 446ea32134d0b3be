"""What a lease needs at hand of the instance that it holds, looked up once for all its leases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, final

from attrs import define

from ._abi.protocol import Crossing, Guest, Step
from ._core.records import Entry, Instance
from ._core.uses import UseStats
from ._engine.seam import (
    Counter,
    DriverCode,
    GuestDriver,
    GuestFunction,
    GuestInstance,
    NoMemoryError,
)
from ._registry import Registered
from ._shell import Shell


@final
@define(eq=False)
class Held:
    """An instance that is ready to be called; hung on `Instance.ready`, if it may be hit again."""

    native: GuestInstance
    guest: GuestFunction
    registered: Registered
    crossing: Crossing
    entry: Entry
    # What every call and every recycle wants, taken out of these.
    begin: Callable[[Sequence[Any], int], Any]
    left: Counter
    measure: Callable[[Any], int]
    """Of `native`, what it may touch now, for the short way back: where it is not kept as it is,
    put back."""
    lower: Callable[[tuple[Any, ...]], Sequence[Any]] | None
    lift: Callable[[Any], Any] | None
    steps: Callable[[Guest, tuple[Any, ...]], Generator[Step, Any, Any]] | None
    uses: UseStats

    def attach(self, shell: Shell, code: DriverCode, exports: Mapping[str, str]) -> GuestDriver:
        """Attach a driver to the instance; idle ones go for it if the system has no room.

        It reserves addresses of its own, which the books take note of when the lease ends.

        Raises:
            CodeMemoryError: nothing idle is left, and the system has no room still.
        """
        reserved = self.native.reserved
        needed = max(1, reserved[0]), max(1, reserved[1])
        driver: GuestDriver | None = None
        for attempt in itertools.count():
            try:
                driver = code.attach(self.native, exports)
                break
            except NoMemoryError as error:
                shell.relieve(self.entry.function.key, needed, error, attempt)
        assert driver is not None
        if self.native.reserved != reserved:
            self.measure = _the_long_way
        return driver


# No limit allows it.
TOO_LARGE: Any = math.inf


def hold(instance: Instance) -> Held:
    """All that of an instance which was granted."""
    native: GuestInstance = instance.payload
    registered: Registered = instance.entry.function.payload
    guest, crossing = native.function(registered.export), registered.crossing
    return Held(
        native,
        guest,
        registered,
        crossing,
        instance.entry,
        guest.begin,
        guest.left,
        _put_back if registered.resets else type(native).measure,
        crossing.lower,
        crossing.lift,
        crossing.steps,
        instance.entry.uses,
    )


def _the_long_way(native: GuestInstance) -> int:
    """Keep an instance whose reservation has changed from the short way back."""
    size: int = TOO_LARGE
    return size


def _put_back(native: GuestInstance) -> int:
    """Puts the instance back, and measures it; what can't be put back has to go the long way."""
    size: int = native.measure() if native.reset() else TOO_LARGE
    return size
