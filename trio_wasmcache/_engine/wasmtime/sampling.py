"""Take samples of the stacks of guests that run: instances of code that was compiled for that.

1. A guest that is suspended has no frames for wasmtime's profiler, so each sample is taken in a
   callback on the guest's stack. Code of the profiled tiers looks at the *epoch* of its engine in
   each loop and at the beginning of each function, right after it has looked at its fuel.
2. A slice ends when a sample is due (`Pace`). The next poll goes on with another epoch, so that the
   guest calls back where it has stopped, and takes the sample itself. Other instances of the engine
   call back, too, and do nothing.
3. Only the length of slices differs from other instances, so fuel and results are the same. The
   runner sees slices of the usual length, as several are joined.
4. The samples of all instances of a module lie in one profiler of wasmtime, which is read, and
   begun anew, when there are `MOST_SAMPLES`, or when taking them has used `MOST_SECONDS`. A guest
   that recurses deeply makes samples large and slow: as much as taking one has cost is then waited
   `REST` times, in fuel.
5. Nothing of this is in the way of other code: it is a class of instances of its own.

As of host functions, the callback must not raise: see `hosts`.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from ctypes import byref, c_uint64
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

import trio

from ..._core.demangle import MAX_MANGLED, demangle
from ..._core.errors import LoadError
from ..._core.frames import Frame
from ..._core.policy.shares import FUEL_PER_SECOND
from ..._core.profiles.pace import INTERVAL, Pace
from ..._core.stack_room import check_headroom
from ..._core.text import printable
from ..._core.wasm.address_map import AddressMap
from ..._core.wasm.custom import VEIL
from ..._core.wasm.growth import CodeOffsets
from ..base import UNDER_WAY, Artifact, Samples
from . import native
from .errors import MAX_LINE_LENGTH, take_error
from .exception_table import tried_from_the_start
from .instance import WasmtimeInstance
from .linking import LinkedModule
from .plan import compiled_name
from .store import RAISED, Begin, Begun, take_raised

if TYPE_CHECKING:
    from ctypes import _Pointer as Pointer

# Samples in a profiler until it is read, and the seconds that taking them may use until then.
MOST_SAMPLES: Final = 512
MOST_SECONDS: Final = 0.005
REST: Final = 20
"""Time of the guest's for each second that taking its samples has cost, at least."""
# Stores call back at the next epoch after the one in which they were told so.
_NEXT: Final = 1
_CONTINUE: Final = 0
# What wasmtime calls a function that the module has no name for.
_NAMELESS: Final = re.compile(r"<wasm function (\d+)>")
_numbers = itertools.count(1)
# One profiler is read at a time, as the sinks know no threads.
_READING = threading.Lock()


@final
class FrameReader:
    """Makes `Frame` objects of what a profiler says, for one module.

    Args:
        artifact: the module's.
    """

    def __init__(self, artifact: Artifact) -> None:
        graph = artifact.graph
        # For each library of the profile: functions imported, where code lies, and how it moved.
        self._parts: list[tuple[int, AddressMap, CodeOffsets]] = []
        self.names: list[str] = []
        """Names of the parts whose frames are shown, in the order of the profiler."""
        self.numbers: list[int] = []
        """Positions of these among the parts of the graph."""
        self._known: dict[tuple[int, int, str], Frame | None] = {}
        if graph is None:
            functions = artifact.info.imported_functions
            self._parts.append((functions, AddressMap(artifact.data), artifact.offsets))
            self.names.append("guest")
            return
        for number, (part, code) in enumerate(zip(graph.parts, artifact.codes, strict=True)):
            if part.offset is not None:
                functions = part.info.imported_functions
                self._parts.append((functions, AddressMap(code.data), code.offsets))
                self.names.append(compiled_name(number))
                self.numbers.append(number)

    def read(self, library: int, symbol: str, begin: int, size: int, address: int) -> Frame | None:
        """Return a frame; None if it is not to be shown.

        Args:
            library: position of the part.
            symbol: name of the function, as wasmtime gives it.
            begin: where its machine code begins.
            size: bytes of that.
            address: where it is.
        """
        key = library, address, symbol
        try:
            return self._known[key]
        except KeyError:
            frame = self._known[key] = self._make(library, symbol, begin, begin + size, address)
            return frame

    def _make(self, library: int, symbol: str, begin: int, end: int, address: int) -> Frame | None:
        functions, addresses, offsets = self._parts[library]
        nameless = _NAMELESS.fullmatch(symbol)
        if nameless is None:
            raw = symbol[:MAX_MANGLED].removeprefix(VEIL)
            label = printable(demangle(raw), MAX_LINE_LENGTH)
        else:
            number = functions + int(nameless[1][:9])
            if number >= offsets.functions:
                return None  # it was added to the module, and has no name
            label = f"func[{number}]"
        place = addresses.find(address, begin, end)
        return Frame(label, None if place is None else offsets.given(place))


@final
class Sampler:
    """The profiler of all instances of one loaded module.

    Args:
        engine: the native engine of the module.
        reader: makes the frames.
        modules: the native modules of its parts, in the order of `FrameReader.names`.
    """

    def __init__(self, engine: int, reader: FrameReader, modules: Sequence[int]) -> None:
        self.engine = engine
        self._reader = reader
        self._modules = modules
        self._lock = threading.Lock()  # around all that touches the profiler
        self._profiler = 0  # 0: nothing was sampled since it was read
        self._taken: list[tuple[Samples, int]] = []
        self._seconds = 0.0
        self._seeds = itertools.count(1)
        self._paces: dict[Samples, list[Pace]] = {}

    def take_pace(self, sink: Samples) -> Pace:
        """Return a pace for an instance: that of an earlier one with that sink, if it is left.

        Otherwise short calls would have no sample where each has an instance of its own.
        """
        left = self._paces.get(sink)
        return left.pop() if left else Pace(next(self._seeds), INTERVAL)

    def leave_pace(self, sink: Samples, pace: Pace) -> None:
        """Keep the pace of an instance that is closed for the next one."""
        if not sink.over:
            self._paces.setdefault(sink, []).append(pace)

    @property
    def is_full(self) -> bool:
        """Whether it is to be read."""
        return len(self._taken) >= MOST_SAMPLES or self._seconds >= MOST_SECONDS

    def take(self, store: int, sink: Samples, weight: int) -> float | None:
        """Take a sample of the guest on whose stack this is called; return the seconds it took.

        None: another thread is reading the profiler, or the module is closed; nothing was taken.
        """
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if not self._modules:
                return None
            if not self._profiler:
                self._profiler = self._new_profiler()
            began = time.perf_counter()
            native.guestprofiler_sample(self._profiler, store, 0)
            self._taken.append((sink, weight))
            took = time.perf_counter() - began
            self._seconds += took
            return took
        finally:
            self._lock.release()

    def _new_profiler(self) -> int:
        raws = [name.encode() for name in self._reader.names]
        texts = [ctypes.create_string_buffer(raw, len(raw)) for raw in raws]
        names = [native.ByteVec(len(text), ctypes.addressof(text)) for text in texts]
        modules = (native.ProfiledModule * len(raws))()
        for made, name, module in zip(modules, names, self._modules, strict=True):
            made.name, made.module = ctypes.pointer(name), module
        # It copies the names. The interval is for those who read what it writes; we do not.
        place = ctypes.addressof(modules)
        return native.guestprofiler_new(self.engine, byref(names[0]), 1, place, len(raws))

    def read(self) -> None:
        """Pass on the samples that were taken, and begin anew.

        What can't be read is lost, as this is no fault of the call that is under way.
        """
        with _READING:
            self._read()

    def close(self) -> None:
        """Read for the last time: the modules go."""
        with self._lock:
            self._modules = ()
        self.read()
        self._paces.clear()

    def _read(self) -> None:
        with self._lock:
            profiler, self._profiler = self._profiler, 0
            taken, self._taken = self._taken, []
            self._seconds = 0.0
        if not profiler:
            return
        out = native.ByteVec()
        problem = native.guestprofiler_finish(profiler, byref(out))
        sums: dict[tuple[Samples, int | None], list[int]] = {}
        try:
            if problem:
                raise ValueError(take_error(problem))
            stacks = _Stacks(json.loads(native.take_bytes(out)), self._reader)
            for (sink, weight), stack in zip(taken, stacks.samples, strict=True):
                found = sums.setdefault((sink, stack), [0, 0])
                found[0] += weight
                found[1] += 1
        except (ValueError, LookupError, TypeError):  # a format that we do not know
            for sink, weight in taken:
                sink.lose(weight)
            return
        for (sink, stack), (weight, samples) in sums.items():
            sink.add(stacks.frames(stack), weight, samples)


@final
class _Stacks:
    """The stacks of a profile in Firefox's format, as wasmtime writes it."""

    def __init__(self, profile: Mapping[str, Any], reader: FrameReader) -> None:
        thread = profile["threads"][0]
        shared = profile.get("shared", {})

        def table(name: str) -> Any:
            return thread[name] if name in thread else shared[name]

        texts, symbols = table("stringArray"), table("nativeSymbols")
        places = {name: number for number, name in enumerate(reader.names)}
        libraries = [places[one["name"]] for one in profile["libs"]]
        frames = table("frameTable")
        self.samples: list[int | None] = thread["samples"]["stack"]
        self._prefixes: list[int | None] = table("stackTable")["prefix"]
        self._of_stacks: list[int] = table("stackTable")["frame"]
        self._frames = [
            None
            if symbol is None
            else reader.read(
                libraries[symbols["libIndex"][symbol]],
                texts[symbols["name"][symbol]],
                symbols["address"][symbol],
                symbols["functionSize"][symbol] or 0,
                address,
            )
            for symbol, address in zip(frames["nativeSymbol"], frames["address"], strict=True)
        ]

    def frames(self, stack: int | None) -> list[Frame]:
        """Return the frames of a stack, the innermost first."""
        found = []
        while stack is not None:
            frame = self._frames[self._of_stacks[stack]]
            if frame is not None:
                found.append(frame)
            stack = self._prefixes[stack]
        return found


@final
class SampledInstance(WasmtimeInstance):
    """See `GuestInstance`: one of which samples are taken, once it is told where they go."""

    sampled: ClassVar[bool] = True
    __slots__ = (
        *("_armed", "_clone", "_given", "_key", "_length", "_open", "_pace", "_sink"),
        "_sampler",
    )

    def __init__(
        self, module: LinkedModule, sampler: Sampler, number: int, fuel: int, yield_fuel: int
    ) -> None:
        self._sampler = sampler
        self._sink: Samples | None = None
        self._pace = Pace(0, INTERVAL)
        self._armed = False
        """Whether the next callback takes a sample."""
        self._given = fuel  # of what is under way
        self._open = True  # whether its end is not noted yet
        self._clone = 0  # of the engine, which outlives the module
        self._length = yield_fuel  # of slices
        self._key = 0
        super().__init__(module, number, fuel, yield_fuel)
        if not self._key:
            self._watch()

    def _watch(self) -> None:
        """Have the store call back at each epoch; without that, its guest would trap at once."""
        self._key = next(_numbers)
        self._clone = native.engine_clone(self._sampler.engine)
        _INSTANCES[self._key] = self
        native.store_epoch_deadline_callback(self._store, _CALLBACK, self._key, None)
        native.context_set_epoch_deadline(self.context, _NEXT)

    def pass_samples(self, sink: Samples | None) -> None:
        if self._sink is not None:
            self._sampler.leave_pace(self._sink, self._pace)
        self._sink = sink
        if sink is not None:
            self._pace = self._sampler.take_pace(sink)

    def slice_calls(self) -> None:
        if not self._key:  # something of its start is about to be under way
            self._watch()
        super().slice_calls()
        self._length = self.yield_fuel

    def begin_of(self, plain: Begin, function: Begun) -> Begin:
        def begin(values: Sequence[object], fuel: int) -> Any:
            check_headroom()
            length = self.yield_fuel
            if self._is_sampled():
                length = self._pace.slice_of(length)
            if not self.sliced:
                self.slice_calls()
            if length != self._length:
                problem = native.context_fuel_async_yield_interval(self.context, length)
                if problem:
                    raise LoadError(f"wasmtime would not slice a call: {take_error(problem)}")
                self._length = length
            self._given, self._open = fuel, True
            result = plain(values, fuel)
            if RAISED.error is not None:
                raise take_raised()
            if result is not UNDER_WAY:
                self._note_end(function.left.value)
                return result
            if self.host_call is not None or not self._poll(length):
                return UNDER_WAY
            native.hot_get_fuel(*function.where_left)
            return function.finish()

        return begin

    def poll(self) -> bool:
        check_headroom()
        return self._poll(0)

    def _poll(self, burnt: int) -> bool:
        """Run slices that make up one of the usual length; return whether all is over.

        Args:
            burnt: units of fuel that were burnt of that before.
        """
        while True:
            if burnt and burnt + self._length > self.yield_fuel:
                return False
            if self._is_sampled() and self._pace.is_due(self._given - self.fuel_left()):
                self._armed = True
                native.engine_increment_epoch(self._clone)
            over = super().poll()
            if RAISED.error is not None:
                raise take_raised()
            if self._sampler.is_full:
                self._sampler.read()
            if over:
                self._note_end(self.fuel_left())
                return True
            if self.host_call is not None:
                return False
            burnt += self._length

    def _is_sampled(self) -> bool:
        sink = self._sink
        if sink is not None and sink.over:
            sink = self._sink = None
        return sink is not None

    def _note_end(self, left: int) -> None:
        if self._open:
            self._open = self._armed = False
            self._pace.end_call(self._given - left)

    def sample(self, context: int) -> None:
        """Take a sample, in a callback on the guest's stack, if one is wanted."""
        sink = self._sink
        if not self._armed or sink is None:
            return
        left = c_uint64()
        native.hot_get_fuel(ctypes.c_void_p.from_param(context), byref(left))
        burnt = self._given - left.value
        took = self._sampler.take(self._store, sink, self._pace.weigh(burnt))
        if took is not None:
            self._armed = False
            self._pace.note_sample(burnt, int(took * REST * FUEL_PER_SECOND))

    def close(self) -> None:
        _INSTANCES.pop(self._key, None)
        super().close()
        self.pass_samples(None)
        clone, self._clone = self._clone, 0
        if clone:
            native.wasm_engine_delete(clone)


# {number: instance}: what a callback is about.
_INSTANCES: dict[int, SampledInstance] = {}


@trio.lowlevel.enable_ki_protection
@tried_from_the_start
def _on_epoch(
    context: int,
    data: int,
    delta: Pointer[c_uint64],
    kind: int,  # noqa: ARG001 - C's
) -> None:
    try:
        delta[0] = _NEXT
        _INSTANCES[data].sample(context)
    except BaseException as error:
        RAISED.error = error


_CALLBACK = native.EPOCH_CALL(_on_epoch)
