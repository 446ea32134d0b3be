"""Batches of functions whose values cross through memory: row by row, in one call.

The steps of the ABI run for each row, so that each row behaves as a call would, without a call's
other costs. The values of a row are checked when it is its turn: their conversion may depend on
what the guest did before.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, cast

from .._abi.base import BY_STEPS, Guest, Steps, Value
from .._abi.plain import PlainType, reworded
from .._core.errors import INTACT, GuestError, PluginError, ResultTooLargeError, WitError
from .._core.tally import NUMBER, SLOT, size_of
from .._engine.base import UNDER_WAY
from .._runtime.bound import kept_values
from .._runtime.call import Call, Finished, function_of, rest_of
from .._runtime.metered import MeteredGuest
from .._runtime.user_code import is_of_guest
from . import arrow as _arrow
from .chunks import FAILED_FUEL, blame
from .collectors import as_numbers
from .columns import Column
from .failures import RowErrors

# Number of rows to take out of the columns at once.
PIECE = 512


class _Failed(enum.Enum):
    """See `FAILED`; an enum, so that type checkers can tell it from a result."""

    FAILED = "failed"


FAILED: Final = _Failed.FAILED
"""Result of a row that has failed, and without which the batch goes on."""


class _ValuesError(Exception):
    """Raised when the values of a row do not fit, from the error; no wasm has run for the row."""


class _Refused(Exception):
    """Raised from an error of `INTACT`, or a `WitError`: the guest had returned."""

    def __init__(self, error: GuestError | WitError) -> None:
        super().__init__(error)
        self.error = error


def in_row(error: Exception, row: int, values: tuple[object, ...]) -> Exception:
    """Return the error of values that do not fit, with `row` and `values` for the batch."""
    made: Value = reworded(error, f"row {row}: {error}")
    made.row, made.values = row, kept_values(values)
    return cast("Exception", made)


async def map_rows(
    call: Call,
    columns: Sequence[Column],
    rows: int,
    arrow: bool,
    errors: RowErrors | None = None,
    misfits: Sequence[int] = (),
) -> Value:
    """Call for every row; return a column for each result, Arrow arrays with `arrow`.

    Args:
        call: the batch.
        columns: the columns.
        rows: number of rows.
        arrow: whether results are Arrow's.
        errors: where errors of rows go that are null; None: the first one is raised.
        misfits: rows that are null already, as their values do not fit.

    **Checkpoint:** between slices, and about every 0.5 ms of short rows.
    **Cancellation:** the guest is stopped, and its instance is lost if a row was under way.
    """
    given = call.bound.definition.returns
    returns: tuple[str, ...] = (given,) if isinstance(given, str) else given or ()
    results: list[list[object]] = [[] for _ in returns]
    skipped = frozenset(misfits)
    form = _arrow.form_of(call.bound.binding) if arrow else None
    for start in range(0, rows, PIECE):
        stop = min(start + PIECE, rows)
        parts = [one.values(start, stop) for one in columns]
        piece = zip(*parts, strict=True) if parts else itertools.repeat((), stop - start)
        for row, values in enumerate(piece, start):
            if row in skipped or (result := await next_row(call, row, values, errors)) is FAILED:
                result = None
            if len(returns) == 1:
                results[0].append(result)
                continue
            for number, column in enumerate(results):
                column.append(None if result is None else result[number])
    tally, memory = call.tally, call.results
    tally.begin_row()
    # Types of the results, if the ABI says that they are numbers.
    numbers: tuple[PlainType, ...] = getattr(call.bound.binding, "numbers", ())
    made = []
    for number, (kind, column) in enumerate(zip(returns, results, strict=True)):
        if numbers:
            nones = not arrow and (errors is not None or None in column)
            made.append(
                as_numbers(numbers[number], column, memory, tally, nones=nones, arrow=arrow)
            )
        else:
            made.append(_arrow.from_values(kind, column, form) if arrow else column)
    return made[0] if len(made) == 1 else tuple(made) or None


async def next_row(
    call: Call, row: int, values: tuple[object, ...], errors: RowErrors | None = None
) -> Value:
    """Return the result of one row of a batch, or None for a row with a null that is not called.

    With `errors`, it is `FAILED` if the row has failed and the batch goes on: its error is noted,
    and the instance is put back, or another.

    **Checkpoint:** between slices, and about every 0.5 ms of short rows.
    **Cancellation:** the guest is stopped, and its instance is lost if it was under way.
    """
    await call.yield_if_due()
    bound, tally = call.bound, call.tally
    call.row = row
    tally.begin_row()
    try:
        tally.add(SLOT + NUMBER * len(getattr(bound.binding, "numbers", ())))
        if bound.gives_null(values):
            call.share.charge(0)  # or a column of nulls would hold the loop
            return None
    except ResultTooLargeError as error:
        error.row = row
        call.refuse(error, values)
        raise
    return await _row(call, row, values, errors)


async def _row(call: Call, row: int, values: tuple[object, ...], errors: RowErrors | None) -> Value:
    """Make one call; add the row to its error."""
    begun = call.fuel
    failed: GuestError | None = None
    refused: GuestError | WitError | None = None
    try:
        if call.bound.steps is None:
            return await _call(call, values)
        if call.bound.lower is not None and call.bound.lower(values):
            return await _call_direct(call, values)
        return await _call_in_steps(call, call.bound.steps, values)
    except _Refused as returned:
        refused = returned.error
    except _ValuesError as misfit:
        error = misfit.__cause__
        assert isinstance(error, Exception)
        if errors is not None and errors.may_go_on(call):
            call.tally.drop_row()
            errors.note_misfit(row, partial(in_row, error, row, values))
            return FAILED
        raise in_row(error, row, values) from None
    except BaseException as error:
        failed = error if isinstance(error, GuestError) and is_of_guest(error) else None
        if failed is None or errors is None or not errors.may_go_on(call, call.fuel - begun):
            if isinstance(error, GuestError) and not error.function:
                error.row = row
            elif isinstance(error, Exception):
                blame(error, row, call.name)
            call.fail(error, values)
            raise
    # Not in the handlers, where the error's context would keep the frames, and so the data.
    if isinstance(refused, WitError):
        refused.row = row
        if errors is None or not errors.may_go_on(call, call.fuel - begun):
            call.note_returned(refused)
            raise refused
        call.tally.drop_row()
        errors.note_returned(call, row, refused)
        return FAILED
    if refused is not None:
        one = isinstance(refused, PluginError) or call.tally.alone
        if errors is None or not one or not errors.may_go_on(call, call.fuel - begun):
            refused.row = row
            call.refuse(refused, values)
            raise refused
        call.tally.drop_row()
        errors.note(call, row, refused, values)
        return FAILED
    assert failed is not None
    assert errors is not None
    call.tally.drop_row()
    call.native.abandon()
    errors.note(call, row, failed, values)
    try:
        call.share.charge(0, FAILED_FUEL)
        await call.renew(failed)
    except BaseException as error:
        call.fail(error, ())
        raise
    return FAILED


async def _call(call: Call, values: tuple[object, ...]) -> Value:
    binding, guest, fuel = call.bound.binding, call.bound.guest, call.bound.total_fuel
    try:
        lowered = values if binding.lower is None else binding.lower(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise _ValuesError from error
    try:
        result = call.begin(guest, lowered, fuel)
    except (TypeError, ValueError, OverflowError):
        raise _ValuesError from binding.explain(values)
    if result is UNDER_WAY:
        result = await call.finish(guest, fuel)
    try:
        lifted = result if binding.lift is None else binding.lift(result)
        call.count_result(lifted)
    except (ResultTooLargeError, WitError) as error:
        raise _Refused(error) from None
    return lifted


async def _call_direct(call: Call, values: tuple[object, ...]) -> Value:
    """Make one call whose values were lowered without steps: see `Direct`."""
    bound, tally, start = call.bound, call.tally, call.fuel
    guest, lift, fuel = bound.guest, bound.lift, bound.total_fuel
    assert lift is not None
    result = call.begin(guest, (), fuel)
    if result is UNDER_WAY:
        result = await call.finish(guest, fuel)
    lifted = lift(result)
    if lifted is not BY_STEPS and call.fuel - start + lifted[1] <= fuel:
        value, spent = lifted
        call.account(spent)
        try:
            tally.add(size_of(value, tally.limit))
        except ResultTooLargeError as error:
            raise _Refused(error) from None
        return value
    return await _call_in_steps(call, rest_of(bound.binding, result), values, begun=start)


async def _call_in_steps(
    call: Call,
    make: Callable[[Guest, tuple[object, ...]], Steps],
    values: tuple[object, ...],
    *,
    begun: int | None = None,
) -> Value:
    """Make one call as `Call.run_steps` does; its errors do not have the row yet.

    Args:
        call: the batch.
        make: makes the steps.
        values: arguments of the call.
        begun: `Call.fuel` when the row began, if the guest has run for it; None: it has not.
    """
    # Not `run_steps` itself, which completes errors for the whole call: here the row comes first,
    # and values and results that are refused are told apart. What both have in common could only be
    # a coroutine below each, which every slice of a long call, and every row, would have to resume.
    native = call.native
    steps = make(MeteredGuest(native, call.tally), values)
    total = call.bound.total_fuel
    start = call.fuel if begun is None else begun
    try:
        try:
            invoke = await call.step(steps, None, total + start - call.fuel)
        except (*INTACT, WitError) as error:
            if begun is None:
                raise
            raise _Refused(error) from None
        except (GuestError, Finished):
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise _ValuesError from error
        while True:
            left = total + start - call.fuel
            function = function_of(native, invoke)
            result = call.begin(function, invoke.values, left)
            if result is UNDER_WAY:
                result = await call.finish(function, left)
            try:
                invoke = await call.step(steps, result, total + start - call.fuel)
            except (*INTACT, WitError) as error:
                raise _Refused(error) from None
    except Finished as finished:
        return finished.result
    except (_ValuesError, _Refused):
        raise
    except BaseException:
        native.abandon()  # before the ABI cleans up, which it can't do during a call
        raise
    finally:
        call.put_away(steps)
