"""An exported function in wasmtime: the cells of its values, and the native calls of a call.

The cells of arguments and results are made once for each function of an instance, with the kind of
each argument in place, so that a call only writes values. They are written and read through
memoryviews of their types, at a third of what `struct` costs; and what C is given was made ready
once, as ctypes passes on what `byref` and `from_param` give and converts all else for every call.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from ctypes import addressof, byref, c_char, c_size_t, c_uint64, c_void_p
from typing import TYPE_CHECKING, Any, final

from .._core.wasm import FuncType
from . import native
from .hosts import RAISED, check_headroom, take_raised
from .seam import UNDER_WAY

if TYPE_CHECKING:
    from .instance import WasmtimeInstance


@final
class WasmtimeFunction:
    """See `GuestFunction`; made by `WasmtimeInstance.function`."""

    __slots__ = ("_instance", "_take", "begin", "left", "type")

    def __init__(self, instance: WasmtimeInstance, handle: Any, signature: FuncType) -> None:
        self.type = signature
        self._instance = instance
        self.left = c_uint64()
        params, results = signature.params, signature.results
        # Consecutive wasmtime_val_t. A bytearray stays where it is unless it is resized.
        empty, codes, spots = _layout(params, results)
        cells = bytearray(empty)
        views = {code: memoryview(cells).cast(code) for code in codes}  # type: ignore[call-overload]
        places = [(views[code], at) for code, at in spots]
        self._take = _taker(places[len(params) :])
        address = addressof(c_char.from_buffer(cells))
        self.begin = self._make_begin(
            _putter(cells, params, places[: len(params)]),
            places[-1] if len(results) == 1 else None,
            (
                instance.context,
                byref(handle),
                c_void_p.from_param(address),
                _count(len(params)),
                c_void_p.from_param(address + native.VALUE_SIZE * len(params)),
                _count(len(results)),
                *instance.errors,
            ),
        )

    def _make_begin(
        self,
        put: Callable[[Sequence[Any]], None],
        single: tuple[Any, int] | None,
        call: tuple[Any, ...],
    ) -> Callable[[Sequence[Any], int], Any]:
        """`GuestFunction.begin` as one closure: a third of what it costs as methods of two objects.

        Five native calls, each needed: fuel for this call, the call, its first slice, its end, and
        the fuel that is left, to be charged for what burnt.
        """
        instance, signature, take = self._instance, self.type, self._take
        trap, error = instance.trap, instance.error
        set_fuel, call_async = native.hot_set_fuel, native.hot_call
        poll, delete = native.call_future_poll, native.hot_delete
        get_fuel, where_left = native.hot_get_fuel, (instance.context, byref(self.left))
        hosted = bool(instance.hosts.imports)
        answer, at = single or (None, 0)  # nearly always there is one result
        set_to, fuel_for = 0, (instance.context, c_uint64.from_param(0))

        def begin(values: Sequence[Any], fuel: int) -> Any:
            nonlocal set_to, fuel_for
            try:
                put(values)
            except (TypeError, ValueError, OverflowError, struct.error) as problem:
                raise _misfit(values, signature, problem) from None
            if fuel != set_to:
                set_to, fuel_for = fuel, (instance.context, c_uint64.from_param(fuel))
            if hosted:
                check_headroom()
            set_fuel(*fuel_for)
            instance.future = future = call_async(*call)
            over = poll(future)
            if hosted and RAISED.error is not None:
                raise take_raised()
            if not over:
                return UNDER_WAY
            instance.future = None
            delete(future)
            if trap or error:
                raise instance.take_error()
            get_fuel(*where_left)
            return answer[at] if answer else take()

        return begin

    def finish(self) -> Any:
        instance = self._instance
        future, instance.future = instance.future, None
        native.hot_delete(future)
        if instance.trap or instance.error:
            raise instance.take_error()
        return self._take()


@functools.cache
def _count(number: int) -> Any:
    """As C takes it; the few there are, are shared by all functions."""
    return c_size_t.from_param(number)


@functools.lru_cache(256)
def _layout(
    params: tuple[str, ...], results: tuple[str, ...]
) -> tuple[bytes, tuple[str, ...], tuple[tuple[str, int], ...]]:
    """The same for all functions of one signature.

    Returns:
        Cells with no values yet; the codes of their types, each once; (code, index of the value
        in all cells as that type) of each.
    """
    empty = bytearray(native.VALUE_SIZE * (len(params) + len(results)) or 1)
    for number, name in enumerate(params):
        empty[number * native.VALUE_SIZE] = native.VALUE_KINDS[name][0]
    codes = [native.VALUE_KINDS[name][1] for name in (*params, *results)]
    spots = tuple(
        (code, (number * native.VALUE_SIZE + native.VALUE_OFFSET) // struct.calcsize(code))
        for number, code in enumerate(codes)
    )
    return bytes(empty), tuple(dict.fromkeys(codes)), spots


def _putter(
    cells: bytearray, types: Sequence[str], places: Sequence[tuple[Any, int]]
) -> Callable[[Sequence[Any]], None]:
    """Puts the values of a call into their cells; raises if one does not fit, or they are too few.

    Written out for up to two, where the loop would cost more than what it does.
    """
    if "f32" in types:
        # A memoryview makes an infinity of a float that is too large; struct refuses it.
        codecs = [struct.Struct("<" + native.VALUE_KINDS[name][1]) for name in types]

        def put(values: Sequence[Any]) -> None:
            for number, (codec, value) in enumerate(zip(codecs, values, strict=True)):
                codec.pack_into(cells, number * native.VALUE_SIZE + native.VALUE_OFFSET, value)

        return put
    if not places:

        def put(values: Sequence[Any]) -> None:
            () = values

    elif len(places) == 1:
        ((first, i),) = places

        def put(values: Sequence[Any]) -> None:
            (first[i],) = values

    elif len(places) == 2:
        (first, i), (second, j) = places

        def put(values: Sequence[Any]) -> None:
            first[i], second[j] = values

    else:

        def put(values: Sequence[Any]) -> None:
            for (view, at), value in zip(places, values, strict=True):
                view[at] = value

    return put


def _taker(places: Sequence[tuple[Any, int]]) -> Callable[[], Any]:
    """Takes the results out of their cells: None, a value, or a tuple."""
    if len(places) == 1:
        view, at = places[0]
        return lambda: view[at]
    return lambda: tuple(view[at] for view, at in places) or None


def _misfit(values: Sequence[Any], signature: FuncType, error: Exception) -> Exception:
    kind: type[Exception] = TypeError
    if len(values) != len(signature.params):
        kind = ValueError
    elif all(isinstance(value, (int, float)) for value in values):
        kind = OverflowError
    # Their types, not their reprs: those may be endless, or raise.
    types = tuple(type(value).__name__ for value in values)
    return kind(f"values of {types} do not fit {signature.params}: {error}")
