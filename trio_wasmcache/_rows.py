"""Batches of functions whose values cross through memory: row by row, in one busy period.

It is the ABI's own steps that run, so that each row is what a call would be, without what a call
costs besides. Values are checked when their row comes: what they become may depend on what the
guest did before.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from . import _arrow, _calls
from ._abi.plain import PlainType
from ._columns import Column
from ._core.errors import GuestError, ResultTooLargeError
from ._core.fair import BURST_FUEL
from ._core.tally import NUMBER, SLOT, Tally
from ._engine.seam import UNDER_WAY, GuestFunction, GuestInstance
from ._metered import MeteredGuest
from ._sinks import as_numbers

if TYPE_CHECKING:
    from ._lease import Lease

# Rows that are taken out of their columns at once.
PIECE = 512


class _ValuesError(Exception):
    """The values of a row do not fit: `__cause__`; no wasm has run for it."""


class _Refused(Exception):
    """The result of a row is too large; the guest had returned."""

    def __init__(self, error: ResultTooLargeError) -> None:
        super().__init__(error)
        self.error = error


def in_row(error: Exception, row: int, values: tuple[Any, ...]) -> Exception:
    """The error of values that do not fit, as one of a batch: `row` and `values` say which."""
    kinds: tuple[type[Exception], ...] = (TypeError, OverflowError, ValueError)
    # Not all of their subclasses take a message.
    kind = next((kind for kind in kinds if isinstance(error, kind)), TypeError)
    made: Any = kind(f"row {row}: {error}")
    made.row, made.values = row, _calls.kept_values(values)
    return cast("Exception", made)


async def map_rows(
    lease: Lease,
    native: GuestInstance,
    guest: GuestFunction,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
    tally: Tally,
) -> Any:
    """What `Lease.map` returns: a list of results, or an Arrow array if a column was one.

    **Checkpoint:** between slices, and about every 0.5 ms of short rows.
    **Cancellation:** the guest is stopped, and its instance is spoilt if a row was under way.
    """
    registered = lease._registered
    assert registered is not None
    given = registered.function.returns
    returns: tuple[str, ...] = (given,) if isinstance(given, str) else given or ()
    results: list[list[Any]] = [[] for _ in returns]
    for start in range(0, rows, PIECE):
        stop = min(start + PIECE, rows)
        parts = [one.values(start, stop) for one in columns]
        piece = zip(*parts, strict=True) if parts else itertools.repeat((), stop - start)
        for row, values in enumerate(piece, start):
            result = await next_row(lease, native, guest, row, values, tally)
            if len(returns) == 1:
                results[0].append(result)
                continue
            for number, column in enumerate(results):
                column.append(None if result is None else result[number])
    tally.begin_row()
    memory = lease._shell.results
    # Of ABIs that say which of their results are numbers.
    numbers: tuple[PlainType, ...] = getattr(lease._crossing, "numbers", ())
    made = []
    for number, (kind, column) in enumerate(zip(returns, results, strict=True)):
        if numbers:
            nones = not arrow and None in column
            made.append(
                as_numbers(numbers[number], column, memory, tally, nones=nones, arrow=arrow)
            )
        else:
            made.append(_arrow.from_values(kind, column) if arrow else column)
    return made[0] if len(made) == 1 else tuple(made) or None


async def next_row(
    lease: Lease,
    native: GuestInstance,
    guest: GuestFunction,
    row: int,
    values: tuple[Any, ...],
    tally: Tally,
) -> Any:
    """The result of one row of a batch; None if a null is why it is not called for.

    **Checkpoint:** between slices, and about every 0.5 ms of short rows.
    **Cancellation:** the guest is stopped, and its instance is spoilt if it was under way.
    """
    assert lease._registered is not None
    if lease._share.burst >= BURST_FUEL:
        await lease._shell.runner.pass_turn(lease._share)
    if lease._closed:
        raise lease._unusable()
    tally.begin_row()
    try:
        tally.add(SLOT + NUMBER * len(getattr(lease._crossing, "numbers", ())))
        if not lease._registered.called_on_null and any(value is None for value in values):
            return None
    except ResultTooLargeError as error:
        error.row = row
        _calls.refuse(lease, error, values)
        raise
    return await _row(lease, native, guest, row, values, tally)


async def _row(
    lease: Lease,
    native: GuestInstance,
    guest: GuestFunction,
    row: int,
    values: tuple[Any, ...],
    tally: Tally,
) -> Any:
    """One call; its failure says in which row."""
    try:
        if lease._crossing.steps is None:
            return await _call(lease, native, guest, values, tally)
        return await _call_in_steps(lease, native, values, tally)
    except _Refused as refused:
        too_large = refused.error
    except _ValuesError as misfit:
        error = misfit.__cause__
        assert isinstance(error, Exception)
        raise in_row(error, row, values) from None
    except BaseException as error:
        if isinstance(error, GuestError) and not error.function:
            error.row = row
        elif isinstance(error, Exception):
            error.add_note(f"in row {row} of a batch of {lease._name}")
        _calls._spoil(lease, native, error, values)
        raise
    # Not in the handler, where the other error would be its context, and keep what it has seen.
    too_large.row = row
    _calls.refuse(lease, too_large, values)
    raise too_large


async def _call(
    lease: Lease,
    native: GuestInstance,
    guest: GuestFunction,
    values: tuple[Any, ...],
    tally: Tally,
) -> Any:
    crossing = lease._crossing
    try:
        lowered = values if crossing.lower is None else crossing.lower(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise _ValuesError from error
    try:
        result = _calls.begin(lease, native, guest, lowered, lease._total_fuel)
    except (TypeError, ValueError, OverflowError):
        raise _ValuesError from crossing.explain(values)
    result = await _end_of(lease, native, guest, result, lease._total_fuel)
    lifted = result if crossing.lift is None else crossing.lift(result)
    try:
        _calls.count_result(lease, lifted, tally)
    except ResultTooLargeError as error:
        raise _Refused(error) from None
    return lifted


async def _call_in_steps(
    lease: Lease, native: GuestInstance, values: tuple[Any, ...], tally: Tally
) -> Any:
    """As `call_in_steps` in `_calls`, which does what is needed around it for one call."""
    make_steps = lease._crossing.steps
    assert make_steps is not None
    steps = make_steps(MeteredGuest(native, tally), values)
    left = lease._total_fuel
    start = lease._fuel or 0
    try:
        try:
            invoke = await _calls.step(lease, steps, None, tally, left)
        except (GuestError, _calls.Finished):
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise _ValuesError from error
        while True:
            function = native.function(invoke.export)
            result = _calls.begin(lease, native, function, invoke.values, left)
            result = await _end_of(lease, native, function, result, left)
            left = lease._total_fuel + start - (lease._fuel or 0)
            try:
                invoke = await _calls.step(lease, steps, result, tally, left)
            except ResultTooLargeError as error:
                raise _Refused(error) from None
            left = lease._total_fuel + start - (lease._fuel or 0)
    except _calls.Finished as finished:
        return finished.result
    except (_ValuesError, _Refused):
        raise
    except BaseException:
        native.abandon()  # the ABI may clean up now, and not under a call
        raise
    finally:
        _calls.put_away(lease, steps)


async def _end_of(
    lease: Lease, native: GuestInstance, guest: GuestFunction, result: Any, fuel: int
) -> Any:
    if result is UNDER_WAY:
        return await _calls._finish(lease, native, guest, fuel)
    _calls._account(lease, fuel - native.fuel_left())
    return result
