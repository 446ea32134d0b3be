"""What the leases of a log did with instances, in order, as columns of numbers.

A `Trial` runs it under other limits. It is small (50 bytes for each lease) and quick to copy into
another process.
"""

from __future__ import annotations

import enum
import math
import statistics
from array import array
from collections.abc import Hashable

from attrs import Factory, define

# Number of loads of a function whose median estimates a load that did not happen.
SAMPLES = 1001


class Op(enum.IntEnum):
    """A step of a lease, or the end of all idle instances of a key."""

    TAKE = 0
    """A lease begins, with an idle instance of its key or with a new one."""
    WARM = 1
    """An instance is loaded ahead, which is no lease."""
    REUSE = 2
    """A request to load ahead was given an idle instance, as there was one."""
    REST = 3
    """The instance becomes idle."""
    DROP = 4
    """The instance is gone: its call failed, it is too large, its function or group is gone."""
    FORGET = 5
    """All idle instances of a key are gone, as its function or group is."""
    HELD = 6
    """A lease that began before the log did has its instance; `sizes` has its uses so far."""


@define(eq=False)
class Trace:
    """The columns: one entry for each step, and some for each key."""

    ops: array[int] = Factory(lambda: array("b"))
    at: array[float] = Factory(lambda: array("d"))
    """Time of the step (seconds)."""
    keys: array[int] = Factory(lambda: array("l"))
    """Number of the key: of a generation of a function, in a group."""
    runs: array[int] = Factory(lambda: array("l"))
    """Number of the run to which the step belongs, counted from 0: a lease, or a load ahead."""
    sizes: array[int] = Factory(lambda: array("q"))
    """Bytes of an instance that becomes idle; uses of one that is `HELD`; 0 of other steps."""
    seats: array[int] = Factory(lambda: array("b"))
    """Whether it leaves a seat."""
    loads: array[float] = Factory(lambda: array("d"))
    """For each run, the seconds that its load took; NaN: it had none."""
    cold: array[int] = Factory(lambda: array("b"))
    """For each run, whether that included the load of the module."""
    functions: array[int] = Factory(lambda: array("l"))
    """For each key, the number of its generation of a function."""
    modules: array[int] = Factory(lambda: array("l"))
    """For each key, the number of its module."""
    names: array[int] = Factory(lambda: array("l"))
    """For each key, the number of the function's name, whatever its generation."""
    samples: dict[tuple[int, bool], list[float]] = Factory(dict)
    """{(number of a name, with its module): seconds of the latest loads}."""
    _numbers: dict[Hashable, int] = Factory(dict)
    _generations: dict[Hashable, int] = Factory(dict)

    def begin(self, op: Op, key: Hashable, at: float, load: float | None, cold: bool) -> int:
        """Add the beginning of a run; return its number."""
        run = len(self.loads)
        self.loads.append(math.nan if load is None else load)
        self.cold.append(cold)
        self._add(op, key, at, run)
        return run

    def hold(self, key: Hashable, at: float, uses: int) -> int:
        """Add a run that began before the log, with an instance that was used `uses` times; return
        its number."""
        run = len(self.loads)
        self.loads.append(math.nan)
        self.cold.append(False)
        self._add(Op.HELD, key, at, run, uses)
        return run

    def end(
        self, op: Op, key: Hashable, at: float, run: int, size: int = 0, seat: bool = False
    ) -> None:
        """Add the end of a run."""
        self._add(op, key, at, run, size, seat)

    def forget(self, key: Hashable, at: float) -> None:
        """Add the end of all idle instances of `key`, if it ever had any."""
        if key in self._numbers:
            self._add(Op.FORGET, key, at, -1)

    def note_load(self, name: int, cold: bool, seconds: float) -> None:
        """Take a load of the function with that number into account."""
        samples = self.samples.setdefault((name, cold), [])
        samples.append(seconds)
        if len(samples) > 2 * SAMPLES:
            del samples[:SAMPLES]

    def know(self, key: Hashable, generation: Hashable, module: int, name: int) -> None:
        """Give `key` a number if it is new."""
        if key not in self._numbers:
            self._numbers[key] = len(self.functions)
            number = self._generations.setdefault(generation, len(self._generations))
            self.functions.append(number)
            self.modules.append(module)
            self.names.append(name)

    def packed(self) -> Trace:
        """Return what a `Trial` needs, with the usual seconds in place of the samples."""
        usual = {key: [statistics.median(taken)] for key, taken in self.samples.items()}
        return Trace(
            *(self.ops, self.at, self.keys, self.runs, self.sizes, self.seats),
            *(self.loads, self.cold, self.functions, self.modules, self.names, usual),
        )

    def usual(self, name: int, cold: bool) -> float:
        """Return the usual seconds of a load of the function with that number.

        A load without its module that was never seen counts as 0, as in `whatif`.
        """
        samples = self.samples.get((name, cold))
        if samples is None and cold:
            samples = self.samples.get((name, False))
        return statistics.median(samples) if samples else 0.0

    def _add(
        self, op: Op, key: Hashable, at: float, run: int, size: int = 0, seat: bool = False
    ) -> None:
        self.ops.append(op)
        self.at.append(at)
        self.keys.append(self._numbers[key])
        self.runs.append(run)
        self.sizes.append(size)
        self.seats.append(seat)
