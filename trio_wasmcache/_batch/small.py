"""Batches of numbers that fit into one chunk, in a driver that an earlier batch has attached.

They are begun as a call is, in one step, as what a larger batch needs besides takes longer than a
hundred rows. If such a batch does not end in its first slice, or fails, it goes on as any other:
see `batch.go_on`.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from typing import Any, final

from .._abi.base import Value
from .._abi.plain import PlainAbi
from .._core.wasm.driver import CELLS, FIRST_AT, Cell, Shape, layout
from .._engine.base import GuestDriver, UnderWay
from . import arrow as _arrow
from .chunks import ZERO
from .columns import pack, same_format

LISTS = (list, tuple, range)
NUMBERS = (int, float, bool)


@final
class SmallBatches:
    """Begins small batches of one function in one instance.

    Args:
        binding: how values cross.
        shape: shape of the driver, without nulls.
        driver: the driver, attached to the instance.
        total_fuel: units of fuel that a row may burn.
    """

    def __init__(
        self, binding: PlainAbi, shape: Shape, driver: GuestDriver, total_fuel: int
    ) -> None:
        made = layout(shape)
        self.binding = binding
        self.layout = made
        self.driver = driver
        self.row_fuel: int = total_fuel + made.fuel_per_row
        """Units of fuel that a row may burn, with what the driver burns for it."""
        self.result_size: int = sum(CELLS[name].size for name in shape.results)
        """Bytes of the results of a row."""
        self._args = [(CELLS[name], at) for name, at in zip(shape.args, made.args, strict=True)]
        self._results = [
            (CELLS[name], at) for name, at in zip(shape.results, made.results, strict=True)
        ]

    def look_at(self, columns: object) -> tuple[int, list[Any], bool] | None:
        """Return the number of rows, the cells of each column, and whether one is Arrow's.

        None: it is no small batch. This may run code of the values' classes.
        """
        if type(columns) not in (list, tuple) or len(columns) != len(self._args):  # type: ignore[arg-type]
            return None
        rows, arrow = -1, False
        cells: list[Any] = []
        try:
            for (cell, _), column in zip(self._args, columns, strict=True):  # type: ignore[call-overload]
                kind = type(column)
                if kind in NUMBERS:
                    cells.append(pack(cell, (column,)))
                    continue
                number = len(column)
                if number != rows:
                    if rows >= 0:
                        return None
                    rows = number
                    if not 0 < rows <= self.layout.rows:
                        return None
                data: Any = None
                if kind is array.array or kind.__name__ == "ndarray":
                    data = _flat(cell, column)
                elif kind in LISTS:
                    data = pack(cell, column)
                elif kind.__module__ == "pyarrow.lib":
                    data, arrow = _arrow.cells_of(cell, column), True
                if data is None or len(data) != rows * cell.size:
                    return None
                cells.append(data)
        except Exception:
            return None  # a value that does not fit, or another column: these take the long way
        if rows < 0:
            return None
        return rows, cells, arrow

    def begin(self, rows: int, cells: Sequence[Any], fuel: int) -> int | UnderWay:
        """Copy the rows in, and run their first slice: see `GuestDriver.begin`."""
        put = self.driver.put
        put(FIRST_AT, ZERO)
        for (cell, at), data in zip(self._args, cells, strict=True):
            put(at, data if len(data) == rows * cell.size else data * rows)
        return self.driver.begin(rows, fuel)

    def results(self, rows: int, arrow: bool) -> Value:
        """Return a column for each result, as `Lease.map` does; `arrow` says whether of Arrow's."""
        made: list[Any] = []
        for cell, at in self._results:
            data = bytearray(self.driver.get(at, rows * cell.size))
            if arrow:
                made.append(_arrow.from_cells(cell, rows, data, None))
            else:
                made.append(memoryview(data).cast(cell.code))  # type: ignore[call-overload]
        return made[0] if len(made) == 1 else tuple(made) or None


def _flat(cell: Cell, column: Value) -> memoryview | None:
    """Return the bytes of a buffer of cells of this type; None: it has another type or form."""
    view = memoryview(column)
    if view.ndim != 1 or not view.c_contiguous or not same_format(cell, view):
        return None
    return view.cast("B")
