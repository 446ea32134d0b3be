"""Call exported functions through wasmtime's C API, with the native arguments prepared once.

Three classes:

- A `Frame` is the memory that C reads and writes in one call: a cell for each argument and result,
  and where C stores an error or trap. The kinds of the arguments are written once, so a call only
  writes values.
- A `Caller` has the frames of one signature, for all instances of a module.
- A `WasmtimeFunction` is one exported function of one instance. It has no frame of its own, so an
  idle instance needs no memory for one.

Nearly every call ends in its first slice, which is one synchronous step; so the functions of a
signature share one frame. A call that continues keeps the frame until it ends. Calls that begin
meanwhile take a spare frame, or make one.

A *bounded* function (`_core/wasm/bounds`) is called by one synchronous step on the thread's own
stack, for as long as nothing has its store sliced: `Frame.begin_bounded`.

Cells are read and written through memoryviews of their types, which takes a third of the time of
`struct`. Arguments of C functions are `bytes` or the results of `byref` and `from_param`, which
ctypes passes on as they are; it would convert anything else in each call.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from ctypes import addressof, byref, c_char, c_size_t, c_uint64, c_void_p
from types import MethodType
from typing import Any, TypeAlias, final

from ..._core.stack_room import check_headroom
from ..._core.wasm.admission import check_call, signature as type_text
from ..._core.wasm.growth import UNMOVED
from ..._core.wasm.reader import FuncType
from ..base import UNDER_WAY, InexactError, NoMemoryError
from . import native
from .errors import Ending, Offsets, ran_out, told_apart
from .own_stack import may_run_here, note_ran_here, room
from .store import RAISED, Begin, Store, take_raised

Put: TypeAlias = Callable[[Sequence[object]], None]
"""Puts the values of a call into their cells."""
LongCalls: TypeAlias = dict[str, tuple[int, int]]
"""{export: (first calls that are not tried at once until one is again, and the next time)}, of
those that were tried, and took more than a slice."""
# Once a first call was tried at once and took more than a slice, so many of the next ones are not.
FIRST_PAUSE, LONGEST_PAUSE = 16, 4096
# As `WasmtimeFunction.fuel`, the fuel of no call: so the first one calls `set_fuel`.
UNSLICED = -1
Place: TypeAlias = "tuple[memoryview[Any], int]"
"""A view of all cells as values of one type, and the index of one there."""


@final
class WasmtimeFunction:
    """See `GuestFunction`; made by `WasmtimeInstance.function`."""

    __slots__ = ("bounded", "call", "frame", "fuel", "fuel_for", "instance", "name", "where_left")

    def __init__(
        self, instance: Store, name: str, handle: bytes, frame: Frame, bounded: bool = False
    ) -> None:
        self.instance = instance
        self.name = name
        self.frame = frame
        self.bounded = bounded
        """Whether its calls are short and take little stack: see `_core/wasm/bounds`."""
        # What the native calls are given, as tuples that are there already.
        self.call = (instance.context, handle, *frame.call)
        self.where_left = (instance.context, frame.caller.left_ref)
        self.fuel = frame.caller.fuel if instance.sliced else UNSLICED
        self.fuel_for: tuple[native.Context, native.Ready] = (
            instance.context,
            frame.caller.fuel_ref,
        )

    def bind(self, handle: bytes) -> None:
        """Have another handle: its instance has a new store."""
        self.__init__(self.instance, self.name, handle, self.frame, self.bounded)

    @property
    def type(self) -> FuncType:
        return self.frame.caller.type

    @property
    def begin(self) -> Begin:
        # Not kept here, where it would be a cycle for the garbage collector.
        if self.bounded and self.instance.at_once:
            return MethodType(self.frame.begin_bounded(), self)
        begin = MethodType(self.frame.begin, self)
        return self.instance.begin_of(begin, self) if self.instance.sampled else begin

    @property
    def plain_begin(self) -> Begin:
        """Function that begins a call, as `begin`, of which no samples are taken."""
        return MethodType(self.frame.begin, self)

    @property
    def left(self) -> c_uint64:
        return self.frame.caller.left

    def set_fuel(self, fuel: int) -> None:
        """Let `fuel_for` say this much from now on, and calls yield."""
        caller = self.frame.caller
        if not self.instance.sliced:
            self.instance.slice_calls()
        if fuel != caller.fuel:
            caller.set_fuel(fuel)
        self.fuel, self.fuel_for = fuel, (self.instance.context, caller.fuel_ref)

    def run_at_once(self, fuel: int) -> bool | None:
        """Make the call on this thread's own stack, if nothing was called in its instance before.

        Returns:
            True if it is over, well or badly; False if it needs more than a slice, and is to be
            made anew in what is a new instance by now; None if it is to be made in slices at first.

        Raises:
            NoMemoryError: the system has no memory for a new instance.
        """
        instance, frame = self.instance, self.frame
        caller = frame.caller
        if instance.spent:
            self._renew()
            return False
        if not instance.untouched:
            return None
        instance.untouched = False
        if caller.long and not caller.expects_short(self.name):
            return None
        # As much as a stack of its own would have.
        if room() < instance.tally.stack_size:
            return None
        length = min(fuel, instance.yield_fuel)
        instance.spent = True
        native.hot_set_fuel(instance.context, c_uint64.from_param(length))
        frame.error.value = native.hot_call_at_once(*self.call[:-1])
        native.hot_get_fuel(*self.where_left)
        if length != fuel:
            if frame.trap and ran_out(frame):
                caller.note_long(self.name)
                self._renew()
                return False
            if caller.interrupted:
                caller.ask_again(self)
            caller.left.value += fuel - length
            native.hot_set_fuel(instance.context, c_uint64.from_param(caller.left.value))
        instance.spent = False
        return True

    def _renew(self) -> None:
        check_headroom()
        self.instance.renew()
        self.bind(self.instance.export(self.name))  # it may be one that only this call uses

    def finish(self) -> Any:
        frame = self.instance.end()
        assert isinstance(frame, Frame)
        try:
            if frame.trap or frame.error:
                raise frame.take_error()
            return frame.take()
        finally:
            frame.leave()


@final
class Caller:
    """What functions of one signature share, of all instances of a module. It is one thread's."""

    __slots__ = (
        *("frame", "fuel", "fuel_ref", "hosted", "left", "left_ref", "offsets", "spare", "type"),
        *("interrupted", "long", "ran", "within"),
    )

    def __init__(
        self,
        signature: FuncType,
        hosted: bool,
        offsets: Offsets = UNMOVED,
        within: int = 0,
        long_calls: LongCalls | None = None,
    ) -> None:
        self.long: LongCalls = {} if long_calls is None else long_calls
        self.ran = False
        """Whether a bounded function has run on the stack of its thread."""
        self.offsets, self.within = offsets, within  # see `Ending`
        self.type = signature
        self.hosted = hosted
        self.left = c_uint64()
        self.left_ref = byref(self.left)
        self.interrupted = False
        """Whether a call may have come between a call and what is `left` of its fuel."""
        self.fuel = 0
        self.fuel_ref: native.Ready = c_uint64.from_param(0)
        self.frame = Frame(self)
        self.spare: list[Frame] = []
        """More of them, in which nothing is under way now."""

    def expects_short(self, export: str) -> bool:
        """Return whether a first call in a new instance is worth to be tried without slices."""
        left, next_time = self.long.get(export, (0, 0))
        if left:
            self.long[export] = left - 1, next_time
        return not left

    def note_long(self, export: str) -> None:
        """Note that a call which was tried took more than a slice."""
        _, next_time = self.long.get(export, (0, FIRST_PAUSE))
        self.long[export] = next_time, min(2 * next_time, LONGEST_PAUSE)

    def note_ran(self) -> None:
        """Note that a bounded function has run on the stack of this thread."""
        self.ran = True
        note_ran_here()

    def set_fuel(self, fuel: int) -> native.Ready:
        """Let `fuel_ref` say this much from now on, and return it."""
        self.fuel, self.fuel_ref = fuel, c_uint64.from_param(fuel)
        return self.fuel_ref

    def ask_again(self, function: WasmtimeFunction) -> None:
        """Put what is left of the fuel of a call, which is over, in `left` again."""
        while self.interrupted:
            self.interrupted = False
            native.hot_get_fuel(*function.where_left)

    def apart(self, function: WasmtimeFunction, values: Sequence[object], fuel: int) -> Any:
        """Begin a call while another's keeps `frame`; see `GuestFunction.begin`."""
        frame = self.spare.pop() if self.spare else Frame(self)
        twin = WasmtimeFunction(function.instance, function.name, function.call[1], frame)
        try:
            begin = frame.begin_bounded() if function.bounded else frame.begin
            return begin(twin, values, fuel)
        finally:
            self.interrupted = True
            if not frame.busy:
                frame.leave()


@final
class Callers:
    """Finds how the functions of one module are called, by all its instances.

    Args:
        types: {name of an exported function: its type}.
        hosted: whether the module imports host functions.
        offsets: see `errors.Offsets`.
        long_calls: what is known of their first calls.
    """

    def __init__(
        self,
        types: Mapping[str, FuncType],
        hosted: bool,
        offsets: Offsets = UNMOVED,
        long_calls: LongCalls | None = None,
    ) -> None:
        self._long: LongCalls = {} if long_calls is None else long_calls
        self._offsets = offsets
        self._types = types
        self._hosted = hosted
        self._by_type: dict[FuncType, Caller] = {}
        self._by_export: dict[str, Caller] = {}

    def frame(self, signature: FuncType) -> Frame:
        """Return where all functions of that signature are called, one after the other."""
        return self._caller(signature).frame

    def frame_of(self, export: str) -> Frame:
        """Return where the exported function of that name is called.

        Raises:
            AbiError: there is none of that name, or values of one of its types can't cross.
        """
        caller = self._by_export.get(export)
        if caller is None:
            signature = check_call(self._types.get(export), export)
            caller = self._by_export[export] = self._caller(signature)
        return caller.frame

    def _caller(self, signature: FuncType) -> Caller:
        caller = self._by_type.get(signature)
        if caller is None:
            caller = self._by_type[signature] = Caller(
                signature, self._hosted, self._offsets, long_calls=self._long
            )
        return caller


@final
class Frame(Ending):
    """What C reads and writes in one call, and how that begins."""

    __slots__ = ("_begin_bounded", "begin", "busy", "call", "caller", "function", "take")

    def __init__(self, caller: Caller) -> None:
        super().__init__(caller.offsets, caller.within)
        self.caller = caller
        self.busy = False
        """Whether a call goes on beyond its first slice, or ended badly in it."""
        self.function: WasmtimeFunction | None = None
        """The one that is called: C goes on reading its handle."""
        params, results = caller.type.params, caller.type.results
        # Consecutive wasmtime_val_t. A bytearray stays where it is unless it is resized.
        empty, codes, spots = _layout(params, results)
        cells = bytearray(empty)
        views = {code: memoryview(cells).cast(code) for code in codes}  # type: ignore[call-overload]
        places = [(views[code], at) for code, at in spots]
        address = addressof(c_char.from_buffer(cells))
        self.call = (
            c_void_p.from_param(address),
            _count(len(params)),
            c_void_p.from_param(address + native.VALUE_SIZE * len(params)),
            _count(len(results)),
            self.trap_ref,
            self.error_ref,
        )
        """The arguments of the native call, after context and handle of the function."""
        self.take = _taker(places[len(params) :])
        self.begin = self._make_begin(
            _putter(cells, params, places[: len(params)]), places[-1] if len(results) == 1 else None
        )
        self._begin_bounded: Callable[[WasmtimeFunction, Sequence[object], int], Any] | None = None

    def _make_begin(
        self, put: Put, single: Place | None
    ) -> Callable[[WasmtimeFunction, Sequence[object], int], Any]:
        """Make `GuestFunction.begin`: one closure, at a third of what methods of two objects cost.

        Five native calls, each needed: fuel for this call, the call, its first slice, its end, and
        the fuel that is left, to be charged for what burnt.
        """
        frame, caller, hosted = self, self.caller, self.caller.hosted
        trap, error = self.trap, self.error
        set_fuel, call_async = native.hot_set_fuel, native.hot_call
        poll, delete, get_fuel = native.hot_poll, native.hot_delete, native.hot_get_fuel
        as_pointer = native.as_pointer
        answer, at = single or (None, 0)  # nearly always there is one result

        def begin(function: WasmtimeFunction, values: Sequence[object], fuel: int) -> Any:
            if frame.busy:
                return caller.apart(function, values, fuel)
            # From here on a call that comes in between, from a signal's handler or a finalizer,
            # has cells of its own.
            frame.busy, begun, ended = True, False, False
            try:
                try:
                    put(values)
                except InexactError:
                    raise
                except Exception as problem:
                    raise _misfit(values, caller.type, problem) from None
                if fuel != function.fuel:
                    future, begun = 0, True
                    try:
                        over = function.run_at_once(fuel)
                    except NoMemoryError:
                        ended = True  # it can be begun again
                        raise
                    if over:
                        if trap or error:
                            raise frame.take_error()
                        result = answer[at] if answer else frame.take()
                        if caller.interrupted:
                            caller.ask_again(function)
                        ended = True
                        return result
                    begun = False
                    function.set_fuel(fuel)
                    if over is not None:
                        # A slice has run by now: others may run before the next.
                        set_fuel(*function.fuel_for)
                        future = call_async(*function.call)
                        begun = True
                        return UNDER_WAY
                if hosted:
                    check_headroom()
                set_fuel(*function.fuel_for)
                future = call_async(*function.call)
                begun = True
                pointer = as_pointer(future)
                over = poll(pointer)
                if hosted and RAISED.error is not None:
                    raise take_raised()
                if not over:
                    return UNDER_WAY
                future = 0
                delete(pointer)
                if trap or error:
                    refusal = told_apart(frame)
                    ended = isinstance(refusal, NoMemoryError)  # it never began
                    raise refusal
                result = answer[at] if answer else frame.take()
                # No call comes in between once nothing is called any more.
                get_fuel(*function.where_left)
                if caller.interrupted:
                    caller.ask_again(function)
                ended = True
                return result
            finally:
                # The frame is the call's own as long as anything of it is left there. That takes no
                # calls: it may be that there is no room for another on Python's stack, and a signal
                # handler could raise when one begins. So two fields of `Store` are set here.
                if ended or not begun:
                    frame.busy = False
                else:
                    frame.function = function
                    instance = function.instance
                    instance.future, instance.ending = future, frame

        return begin

    def begin_bounded(self) -> Callable[[WasmtimeFunction, Sequence[object], int], Any]:
        """Return `GuestFunction.begin` for bounded functions, of modules without host functions.

        Three native calls: fuel for this call, the call, on this thread's own stack, and the fuel
        that is left. Where calls are sliced by now, `begin` makes it.
        """
        if self._begin_bounded is None:
            self._begin_bounded = self._make_begin_bounded()
        return self._begin_bounded

    def _make_begin_bounded(self) -> Callable[[WasmtimeFunction, Sequence[object], int], Any]:
        frame, caller, begin = self, self.caller, self.begin
        trap, error, trap_ref = self.trap, self.error, self.trap_ref
        set_fuel, call_bounded = native.hot_set_fuel, native.hot_call_bounded
        get_fuel = native.hot_get_fuel
        params, results = caller.type.params, caller.type.results
        # Consecutive wasmtime_val_raw_t: the results take the place of the arguments. C doesn't ask
        # what they are, so they must be of the function's own type, as those of a `Caller` are.
        cells = bytearray(native.RAW_SIZE * max(len(params), len(results), 1))
        codes, spots = _raw_layout(params + results, len(params))
        views = {code: memoryview(cells).cast(code) for code in codes}  # type: ignore[call-overload]
        places = [(views[code], at) for code, at in spots]
        put = _putter(cells, params, places[: len(params)], native.RAW_SIZE, 0)
        answer, at = places[-1] if len(results) == 1 else (None, 0)
        take = self.take if answer else _taker(places[len(params) :])
        count = _count(max(len(params), len(results)))
        address = c_void_p.from_param(addressof(c_char.from_buffer(cells)))

        def begin_bounded(function: WasmtimeFunction, values: Sequence[object], fuel: int) -> Any:
            if frame.busy:
                return caller.apart(function, values, fuel)
            instance = function.instance
            if instance.spent or not (instance.at_once and (caller.ran or may_run_here())):
                return begin(function, values, fuel)
            # As in `begin`.
            frame.busy, begun, ended = True, False, False
            try:
                try:
                    put(values)
                except InexactError:
                    raise
                except Exception as misfit:
                    raise _misfit(values, caller.type, misfit) from None
                call = function.call
                # In one step, as a signal's handler may make calls with other fuel.
                ready = caller.fuel_ref if fuel == caller.fuel else caller.set_fuel(fuel)
                instance.untouched, begun = False, True
                set_fuel(call[0], ready)
                problem = call_bounded(call[0], call[1], address, count, trap_ref)
                if problem or trap:
                    error.value = problem
                    raise frame.take_error()
                if not caller.ran:
                    caller.note_ran()
                result = answer[at] if answer else take()
                # As in `begin`.
                get_fuel(*function.where_left)
                if caller.interrupted:
                    caller.ask_again(function)
                ended = True
                return result
            finally:
                # As in `begin`.
                if ended or not begun:
                    frame.busy = False
                else:
                    frame.function = function
                    instance.future, instance.ending = 0, frame

        return begin_bounded

    def leave(self) -> None:
        self.function = None
        self.busy = False
        if self is not self.caller.frame:
            self.caller.spare.append(self)


# What a cell takes, as the very type.
INTS, NUMBERS = frozenset({int}), frozenset({int, float})


@functools.cache
def _count(number: int) -> native.Ready:
    """Return a number as C takes it; the few there are, are shared by all functions."""
    return c_size_t.from_param(number)


@functools.lru_cache(256)
def _layout(
    params: tuple[str, ...], results: tuple[str, ...]
) -> tuple[bytes, tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Lay out the cells of a signature, for all functions that have it.

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


@functools.lru_cache(256)
def _raw_layout(
    types: tuple[str, ...], params: int
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Lay out raw cells, as `_layout` does others; the results are where the arguments are."""
    codes = [native.VALUE_KINDS[name][1] for name in types]
    spots = tuple(
        (code, (number - params * (number >= params)) * native.RAW_SIZE // struct.calcsize(code))
        for number, code in enumerate(codes)
    )
    return tuple(dict.fromkeys(codes)), spots


def _putter(
    cells: bytearray,
    types: Sequence[str],
    places: Sequence[Place],
    size: int = native.VALUE_SIZE,
    offset: int = native.VALUE_OFFSET,
) -> Put:
    """Return what puts the values of a call into their cells; it raises if they do not fit.

    Only ints and floats are put there, of which C reads the number itself: an `__index__` could do
    anything in between, such as make another call with the same cells, or close the instance.
    (`isinstance` asks the value for its `__class__`, so it is `issubclass`.) Written out for up to
    two, where the loop would cost more than what it does.

    Args:
        cells: the memory of all cells.
        types: of the values.
        places: of the values.
        size: of a cell.
        offset: of the value in a cell.
    """
    kinds = [INTS if name[0] == "i" else NUMBERS for name in types]
    bases = [int if name[0] == "i" else float for name in types]
    if "f32" in types:
        # A memoryview makes an infinity of a float that is too large; struct refuses it.
        codecs = [struct.Struct("<" + native.VALUE_KINDS[name][1]) for name in types]

        def put(values: Sequence[object]) -> None:
            if type(values) is not tuple:
                raise InexactError
            cells_of = zip(codecs, kinds, bases, values, strict=True)
            for number, (codec, kind, base, value) in enumerate(cells_of):
                if type(value) not in kind and not issubclass(type(value), base):
                    raise InexactError
                codec.pack_into(cells, number * size + offset, value)

        return put
    if not places:

        def put(values: Sequence[object]) -> None:
            if type(values) is not tuple:
                raise InexactError
            () = values

    elif len(places) == 1:
        ((first, i),) = places
        (kind,), (base,) = kinds, bases

        def put(values: Sequence[object]) -> None:
            if type(values) is not tuple:
                raise InexactError
            (value,) = values
            if (
                type(value) is not base
                and type(value) not in kind
                and not issubclass(type(value), base)
            ):
                raise InexactError
            first[i] = value

    elif len(places) == 2:
        (first, i), (second, j) = places
        (kind, kind_2), (base, base_2) = kinds, bases

        def put(values: Sequence[object]) -> None:
            if type(values) is not tuple:
                raise InexactError
            one, two = values
            if type(one) is not base and type(one) not in kind and not issubclass(type(one), base):
                raise InexactError
            if (
                type(two) is not base_2
                and type(two) not in kind_2
                and not issubclass(type(two), base_2)
            ):
                raise InexactError
            first[i], second[j] = one, two

    else:

        def put(values: Sequence[object]) -> None:
            if type(values) is not tuple:
                raise InexactError
            for (view, at), kind, base, value in zip(places, kinds, bases, values, strict=True):
                if type(value) not in kind and not issubclass(type(value), base):
                    raise InexactError
                view[at] = value

    return put


def _taker(places: Sequence[Place]) -> Callable[[], Any]:
    """Return what takes the results out of their cells: None, a value, or a tuple."""
    if len(places) == 1:
        view, at = places[0]
        return lambda: view[at]
    return lambda: tuple(view[at] for view, at in places) or None


def _misfit(values: Sequence[object], signature: FuncType, error: Exception) -> Exception:
    kind: type[Exception] = TypeError
    if len(values) != len(signature.params):
        kind = ValueError
    elif all(isinstance(value, (int, float)) for value in values):
        kind = OverflowError
    # Their types, not their reprs: those may be endless, or raise.
    types = tuple(type(value).__name__ for value in values)
    if kind is ValueError:
        found = f", of types {', '.join(types[:10])}" if types else ""
        return kind(
            f"an export of type {type_text(signature)} was called with {len(values)} values{found}"
        )
    return kind(f"values of {types} do not fit {signature.params}: {error}")
