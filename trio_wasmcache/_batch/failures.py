"""The errors of rows in a batch that goes on without them: ``on_error="null"`` of `Lease.map`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Never, NoReturn, final

from .._core.errors import (
    FuelExhaustedError,
    GuestError,
    StackOverflowError,
    TrapError,
    WitError,
)
from .._core.text import shown
from .._runtime.call import Call

KEPT: Final = 1000
"""Number of errors that are kept."""
COMPLETE: Final = 16
"""Number of errors of each code that have all facts; the others have no frames and no values."""
FUEL_LIMITS: Final = 10
"""Number of `total_fuel` that all failing rows of a batch may burn together."""


@final
class RowErrors:
    """The errors of one batch, and whether it may go on.

    Args:
        max_errors: number of rows that may fail.
        total_fuel: units of fuel that a row may burn.
    """

    def __init__(self, max_errors: int, total_fuel: int) -> None:
        self.kept: dict[int, Exception] = {}
        """{row: its error}, the first ones."""
        self.count = 0
        """Number of rows that have failed."""
        self.max_errors = max_errors
        self.brief: frozenset[str] = frozenset()
        """Codes of which there are enough errors with all facts."""
        self._fuel_left = FUEL_LIMITS * total_fuel
        self._numbers: dict[str, int] = {}  # {code: number of rows}

    def may_go_on(self, call: Call, fuel: int = 0) -> bool:
        """Count the fuel of a row that has failed; return whether the batch may go on without it.

        Args:
            call: the batch.
            fuel: units that the row has burnt.
        """
        self._fuel_left -= fuel
        return not call.ended and self.count < self.max_errors and self._fuel_left > 0

    def note_misfit(self, row: int, make: Callable[[], Exception]) -> None:
        """Note a row whose values do not fit; `make` makes its error."""
        self.count += 1
        if len(self.kept) < KEPT:
            self.kept[row] = make()

    def note_returned(self, call: Call, row: int, error: WitError) -> None:
        """Note a row for which a component's function returned an error."""
        self.count += 1
        error.function = call.name
        # Frames would keep the data of the batch.
        error.__traceback__ = error.__context__ = None
        if len(self.kept) < KEPT:
            self.kept[row] = error

    def note(self, call: Call, row: int, error: GuestError, values: tuple[object, ...]) -> None:
        """Note a row in which the guest has failed, and complete its error with facts.

        Args:
            call: the batch, in which nothing runs.
            row: number of the row.
            error: its error.
            values: its arguments.
        """
        complete = self._count(row, code_of(error))
        error.row = row
        if complete:
            call.explain(error, values)
        else:
            error.function = call.name
            error.backtrace, error.frames = (), ()
            reason = str(error.args[0]).split("\n")[0]
            more = f"(the first {COMPLETE} such errors have all facts)"
            text = f"{call.name} in row {row} of a batch: {reason} {more}"
            error.args = (text, *error.args[1:])
        # Frames would keep the data of the batch.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if len(self.kept) < KEPT:
            self.kept[row] = error

    def _count(self, row: int, code: str) -> bool:
        """Count a row; return whether its error has all facts."""
        assert row not in self.kept, f"row {row} has failed twice"
        self.count += 1
        number = self._numbers[code] = self._numbers.get(code, 0) + 1
        if number == COMPLETE:
            self.brief |= {code}
        return number <= COMPLETE


def code_of(error: GuestError) -> str:
    """Return the code of an error: WebAssembly's name of the trap, or else the error's type."""
    if isinstance(error, TrapError) and error.code:
        return error.code
    if isinstance(error, FuelExhaustedError):
        return "out of fuel"
    if isinstance(error, StackOverflowError):
        return "call stack exhausted"
    return type(error).__name__


def refuse_more(more: tuple[Never, ...], function: str = "") -> NoReturn:
    """Say what to write in place of columns that are given one by one, or of options without names.

    Args:
        more: what `map` was given after the columns.
        function: what stands before them, as in ``"function, "``.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        "map takes all columns in one list, and options by name, such as "
        f"map({function}[a, b], rows=2), got {1 + len(more)} arguments in place of the list"
    )


def check_options(on_error: object, max_errors: object) -> int | None:
    """Return the number of rows that may fail; None: the first one ends the batch.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option has no such value.
    """
    if on_error not in ("raise", "null"):
        raise ValueError(f'map: on_error is "raise" or "null", got {shown(on_error)}')
    if isinstance(max_errors, bool) or not isinstance(max_errors, int):
        raise TypeError(f"map: max_errors takes an int from 0, got {shown(max_errors)}")
    if max_errors < 0:
        raise ValueError(f"map: max_errors is a number from 0, got {max_errors}")
    return max_errors if on_error == "null" else None
