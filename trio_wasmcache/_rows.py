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
from ._core.errors import GuestError
from ._core.fair import BURST_FUEL
from ._engine.seam import UNDER_WAY, GuestFunction, GuestInstance
from ._sinks import as_numbers

if TYPE_CHECKING:
    from ._lease import Lease

# Rows that are taken out of their columns at once.
PIECE = 512


class _ValuesError(Exception):
    """The values of a row do not fit: `__cause__`; no wasm has run for it."""


def in_row(error: Exception, row: int, values: tuple[Any, ...]) -> Exception:
    """The error of values that do not fit, as one of a batch: `row` and `values` say which."""
    kinds: tuple[type[Exception], ...] = (TypeError, OverflowError, ValueError)
    # Not all of their subclasses take a message.
    kind = next((kind for kind in kinds if isinstance(error, kind)), TypeError)
    made: Any = kind(f"row {row}: {error}")
    made.row, made.values = row, values
    return cast("Exception", made)


async def map_rows(
    lease: Lease,
    native: GuestInstance,
    guest: GuestFunction,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
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
            result = await next_row(lease, native, guest, row, values)
            if len(returns) == 1:
                results[0].append(result)
                continue
            for number, column in enumerate(results):
                column.append(None if result is None else result[number])
    memory = lease._shell.results
    # Of ABIs that say which of their results are numbers.
    numbers: tuple[PlainType, ...] = getattr(lease._crossing, "numbers", ())
    made = []
    for number, (kind, column) in enumerate(zip(returns, results, strict=True)):
        if numbers:
            nones = not arrow and None in column
            made.append(as_numbers(numbers[number], column, memory, nones=nones, arrow=arrow))
        else:
            made.append(_arrow.from_values(kind, column) if arrow else column)
    return made[0] if len(made) == 1 else tuple(made) or None


async def next_row(
    lease: Lease, native: GuestInstance, guest: GuestFunction, row: int, values: tuple[Any, ...]
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
    if not lease._registered.called_on_null and any(value is None for value in values):
        return None
    return await _row(lease, native, guest, row, values)


async def _row(
    lease: Lease, native: GuestInstance, guest: GuestFunction, row: int, values: tuple[Any, ...]
) -> Any:
    """One call; its failure says in which row."""
    try:
        if lease._crossing.steps is None:
            return await _call(lease, native, guest, values)
        return await _call_in_steps(lease, native, values)
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


async def _call(
    lease: Lease, native: GuestInstance, guest: GuestFunction, values: tuple[Any, ...]
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
    return result if crossing.lift is None else crossing.lift(result)


async def _call_in_steps(lease: Lease, native: GuestInstance, values: tuple[Any, ...]) -> Any:
    """As `call_in_steps` in `_calls`, which does what is needed around it for one call."""
    make_steps = lease._crossing.steps
    assert make_steps is not None
    steps = make_steps(native, values)
    left = lease._total_fuel
    try:
        try:
            invoke = await _calls._step(lease, steps, None)
        except (GuestError, _calls.Finished):
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise _ValuesError from error
        while True:
            function = native.function(invoke.export)
            before = lease._fuel or 0
            result = _calls.begin(lease, native, function, invoke.values, left)
            result = await _end_of(lease, native, function, result, left)
            left -= (lease._fuel or 0) - before
            invoke = await _calls._step(lease, steps, result)
    except _calls.Finished as finished:
        return finished.result
    except _ValuesError:
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
