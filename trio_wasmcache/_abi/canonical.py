"""The canonical ABI: functions of a component, on the core module that implements them.

The types of a function determine all: how its values lie in memory, and which of them are passed as
wasm values. See `canonical_lower` and `canonical_lift` for values, `_core/wit/layout` for layouts.

1. Memory for arguments comes from the guest's ``cabi_realloc``, and is the guest's from then on.
   What that returns is checked.
2. A result is read, or copied out, before the guest's post-return function is called, and that is
   called whatever the result's type is.
3. Most calls are one call of wasm, of an adapter beside the module, see
   `_core/wasm/component/calls`. Values that do not fit into its scratch cross in steps.
4. An `Err` as the whole result of a function is raised as `WitError`. The guest has returned in
   order then, and post-return was called: its instance goes on.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, Final, NoReturn, Protocol, cast, final

from attrs import evolve, field, frozen

from .._core.costs import ITEM_FUEL
from .._core.errors import (
    AbiError,
    ExportError,
    ResultTooLargeError,
    SignatureError,
    TrapError,
    WasmCacheError,
    WitError,
)
from .._core.integers import signed
from .._core.tagged import TooLargeError
from .._core.tally import BYTES_SIZE, Tally
from .._core.wasm.admission import signature
from .._core.wasm.component.calls import (
    ALLOCATING,
    AT_AT,
    CELLS_AT,
    DONE,
    ENTRY,
    FUNCTIONS_LIMIT,
    HEAD_AT,
    LEFT,
    MISALIGNED,
    OUTSIDE,
    PHASE_AT,
    RESULT_AT,
    SCRATCH_SIZE,
    TABLE_AT,
    Target,
    adapter,
    head_of,
    result_of,
)
from .._core.wasm.graph import USER, FromPart, Layer, Part
from .._core.wasm.memory_layout import (
    ALLOCATED_OUTSIDE,
    AREA_MISALIGNED,
    AREA_OUTSIDE,
    BYTES,
    MemoryShape,
)
from .._core.wasm.reader import FuncType, ModuleInfo, read_module
from .._core.wit.layout import Layout, align_up, layout, lifted_signature
from .._core.wit.text import function_text, type_text
from .._core.wit.types import STRING, U8, Function, List, Primitive, Result, Type
from .._core.wit.values import Err, Ok
from .arrow_forms import NULL, ArrowForm, arrow_form
from .base import (
    BY_STEPS,
    PAUSE,
    Binding,
    Convert,
    Exports,
    Guest,
    Invoke,
    InvokePart,
    LayeredAbi,
    Memory,
    Parts,
    Steps,
    Value,
)
from .batching import Bulk
from .bytes_and_text import lift_text
from .canonical_batch import Cells, Flats, Images, Octets, crosses_in_cells
from .canonical_lift import COPY_PIECE, Lifting, collect_all, lifter
from .canonical_lower import (
    FLAT,
    MISFITS,
    Block,
    Detour,
    Lowering,
    lowerer,
    plain_value,
)
from .canonical_numbers import NUMBERS
from .gil import MANY, paced
from .guest_memory import memory_of
from .packing import Text, Wire
from .plain import PlainAbi, PlainType, cell_name, reworded, shown, to_blame, wrong_count

REALLOC: Final = FuncType(("i32", "i32", "i32", "i32"), ("i32",))
# Types whose wasm values need no conversion.
_NATIVE: Final = frozenset(("s32", "s64", "f32", "f64"))
# Blocks of memory that are allocated between two pauses: about 0.5 ms.
BLOCKS_AT_ONCE: Final = 1024
# Blocks of up to this many bytes are written many at once, by the adapter.
SMALL_BLOCK: Final = 4096
_MASK: Final = 0xFFFFFFFF
# Results have only the bits of their type; all others are not looked at.
CUT: Final = {
    name: evolve(kind, cut=True) if name in ("bool", "s8", "u8", "s16", "u16") else kind
    for name, kind in NUMBERS.items()
}
WIRES: Final[Mapping[Type, Wire]] = {STRING: Text(), List(U8): Octets()}
"""{type: how many values of it are converted at once}"""
PART: Final = "canonical"
"""Name of the adapter among the parts of an instance."""
SCRATCH: Final = "scratch"
"""Name of its memory."""
# Results of up to this many bytes, units of fuel and values are lifted without a `Call`.
DIRECT_SIZE: Final = 64 * 1024
DIRECT_FUEL: Final = 1_000_000
DIRECT_VALUES: Final = 512
_FACTS: Final = struct.Struct("<III")
_OUT: Final = struct.Struct("<I")


@final
@frozen
class Lifted:
    """A function of a component, and the exports of the core module that implement it."""

    export: str
    """Name of the export that is called."""
    type: Function
    realloc: str | None = None
    """Name of the export that allocates memory; None: there is none."""
    post: str | None = None
    """Name of the export that is called with the results, once they are read; None: there is none.
    """


def _by_export(functions: Sequence[Lifted]) -> tuple[Lifted, ...]:
    found = {one.export: one for one in functions}
    if len(found) < len(functions):
        raise ValueError("two functions of one ABI have the same export")
    return tuple(functions)


@final
@frozen(cache_hash=True)
class CanonicalAbi(LayeredAbi):
    """The canonical ABI for the functions of one component.

    Functions share a compiled module only if their ABIs are equal: so each has all functions of the
    component, whichever are registered.

    Raises:
        ValueError: two functions have the same export.
    """

    functions: tuple[Lifted, ...] = field(
        converter=_by_export, repr=lambda functions: str(len(functions))
    )
    # As a component may export thousands of functions, none may cost a look at all others.
    _numbers: Mapping[str, int] = field(init=False, eq=False, repr=False)
    """{export: number of the function}"""
    _allocators: Mapping[str, int] = field(init=False, eq=False, repr=False)
    """{allocator of functions: its number}"""

    @_numbers.default
    def _default_numbers(self) -> Mapping[str, int]:
        return {one.export: number for number, one in enumerate(self.functions)}

    @_allocators.default
    def _default_allocators(self) -> Mapping[str, int]:
        names = dict.fromkeys(one.realloc for one in self.functions if one.realloc is not None)
        return {name: number for number, name in enumerate(names)}

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],  # noqa: ARG002 -- the component says the types
        returns: Sequence[str],  # noqa: ARG002
        exports: Exports,
        called_on_null: bool,  # noqa: ARG002 -- nulls are values of options
    ) -> Binding:
        """Return the binding for one function; see `Abi.bind`.

        Raises:
            ExportError: the core module lacks an export, or one has another type.
            SignatureError: a type is not supported.
        """
        if export not in self._numbers:
            raise ExportError(f"{function}: the component has no function with export {export!r}")
        one = self.functions[self._numbers[export]]
        try:
            core = lifted_signature(one.type)
            for inner in _types(one.type):
                lowerer(inner)
                lifter(inner)
        except ValueError as error:
            raise SignatureError(f"{function}: {error}") from None
        wasm = FuncType(core.params, core.results)
        _check_export(function, exports, export, wasm)
        if one.post is not None:
            _check_export(function, exports, one.post, FuncType(core.results))
        if one.realloc is not None:
            _check_export(function, exports, one.realloc, REALLOC)
        if _has_numbers_only(one):
            names = [type_text(inner) for inner in _types(one.type)]
            count = len(one.type.params)
            plain = CanonicalNumbers(
                function, names[:count], names[count:], types=CUT, export=export, post=one.post
            )
            plain.names = _parameters(one)
            if one.post is not None:
                plain.use(
                    CanonicalBinding(function, one, wasm, None, None, self._calls(exports, one))
                )
            return plain
        uses_memory = core.returned is not None
        if core.arguments is not None or any(layout(p).has_pointers for _, p in one.type.params):
            uses_memory = True
            if one.realloc is None:
                raise ExportError(
                    f"{function}: {function_text(one.type)} takes memory for its arguments, but "
                    "the component names no function that allocates it"
                )
        if uses_memory and not exports.memories:
            raise ExportError(
                f"{function}: {function_text(one.type)} needs a memory, but the module exports none"
            )
        calls = self._calls(exports, one)
        return CanonicalBinding(function, one, wasm, core.arguments, core.returned, calls)

    def _calls(self, exports: Exports, one: Lifted) -> Calls | None:
        """Return where the calls of a function are in the adapter; None: it has none."""
        if not exports.memories:
            return None
        if self._target(one, exports.functions.get) is None:
            return None
        place = self._allocators[one.realloc] if one.realloc else 0
        return Calls(self._numbers[one.export], place)

    def _target(self, one: Lifted, type_of: Callable[[str], FuncType | None]) -> Target | None:
        """Return the function that an adapter calls, or None, given the types of exports."""
        try:
            core = lifted_signature(one.type)
        except ValueError:
            return None
        wanted = {one.export: FuncType(core.params, core.results)}
        if one.post is not None:
            wanted[one.post] = FuncType(core.results)
        if one.realloc is not None:
            wanted[one.realloc] = REALLOC
        if self._numbers[one.export] >= FUNCTIONS_LIMIT or _is_flat(one):
            return None
        if any(type_of(name) != kind for name, kind in wanted.items()):
            return None
        return Target(one.export, one.type, one.realloc, one.post)

    @property
    def supplies(self) -> Mapping[tuple[str, str], FuncType]:
        """{module and name of an import: type} of the functions that its parts provide."""
        return MappingProxyType({})

    def layer(
        self,
        what: str,  # noqa: ARG002 -- for other ABIs
        info: ModuleInfo,
        hosts: Mapping[tuple[str, str], Any],  # noqa: ARG002
        first: int,  # noqa: ARG002
    ) -> Layer:
        """Return the part that makes calls; see `LayeredAbi.layer`."""

        def type_of(name: str) -> FuncType | None:
            export = info.export(name)
            if export is None or export.kind != "func":
                return None
            return info.functions[export.index]

        targets = {
            number: target
            for number, one in enumerate(self.functions[:FUNCTIONS_LIMIT])
            if (target := self._target(one, type_of)) is not None
        }
        if not targets or not info.exported_memories:
            return Layer()
        names = {"memory": info.exported_memories[0]}
        for number, one in targets.items():
            names[f"call {number}"] = one.export
            if one.realloc is not None:
                names[f"realloc {self._allocators[one.realloc]}"] = one.realloc
            if one.post is not None:
                names[f"post {number}"] = one.post
        wasm = adapter(targets, self._allocators)
        wiring = {("", name): FromPart(USER, export) for name, export in names.items()}
        return Layer(after=(Part(PART, wasm, read_module(wasm), wiring),))


def _is_flat(one: Lifted) -> bool:
    """Return whether a call is one call of the export, with wasm values and nothing after it."""
    core = lifted_signature(one.type)
    pointers = any(layout(inner).has_pointers for _, inner in one.type.params)
    return not (pointers or core.arguments or core.returned or one.post)


def _has_numbers_only(one: Lifted) -> bool:
    """Return whether the plain ABI makes its calls, and its batches."""
    core = lifted_signature(one.type)
    return core.arguments is None and all(map(_number_of, _types(one.type)))


def _number_of(one: Type) -> PlainType | None:
    """Return a type that is a number, as the plain ABI has it; None for other types."""
    return CUT.get(one.name) if isinstance(one, Primitive) else None


def _parameters(one: Lifted) -> tuple[str, ...]:
    return tuple(name for name, _ in one.type.params)


def _types(function: Function) -> list[Type]:
    result = [] if function.result is None else [function.result]
    return [*(one for _, one in function.params), *result]


def _check_export(what: str, exports: Exports, name: str, wanted: FuncType) -> None:
    kind = exports.functions.get(name)
    if kind != wanted:
        found = "is missing" if kind is None else f"is {signature(kind)}"
        raise ExportError(
            f"{what}: the component needs the export {name!r:.300} of its core module to be "
            f"{signature(wanted)}, but it {found}"
        )


@final
@frozen
class Calls:
    """Where the calls of a function are in an adapter."""

    number: int
    """Number of the function."""
    allocator: int
    """Number of its allocator."""


@final
class CanonicalNumbers(PlainAbi):
    """The canonical ABI, bound to a function of numbers: a `Binding`, and one for batches.

    With a post-return function, calls are those of an adapter, as for other types.
    """

    names: tuple[str, ...] = ()
    """Names of the arguments."""
    direct: Callable[[Parts], CanonicalDirect] | None = None
    entry: FromPart | None = None
    rest: Callable[[Guest, Value], Steps]
    refuse_host_call: Callable[[Parts], Exception | None]

    def use(self, binding: CanonicalBinding) -> None:
        """Make calls as another binding of the function does."""
        self.direct, self.entry = binding.direct, binding.entry
        self.rest, self.refuse_host_call = binding.rest, binding.refuse_host_call


class Viewed(Memory, Protocol):
    """A memory that can be looked at without copying."""

    def view(self) -> memoryview:
        """Return all bytes, read-only; to be used until the guest goes on, or memory grows."""


@final
@frozen(eq=False)
class CanonicalBinding:
    """The canonical ABI, bound to one function: a `Binding`."""

    what: str
    """The function's name for messages."""
    function: Lifted
    signature: FuncType
    arguments: Layout | None
    """Layout of the arguments if their address is passed; None: they are flat."""
    returned: Layout | None
    """Layout of the result if its address is returned; None: it is flat, or there is none."""
    calls: Calls | None
    """How an adapter calls it; None: there is none."""
    kinds: tuple[Type, ...] = field(init=False)
    """Types of the arguments."""
    lower: Callable[[tuple[object, ...]], Sequence[object]] | None = field(init=False)
    lift: Callable[[Value], Value] | None = field(init=False)
    steps: Callable[[Guest, tuple[object, ...]], Steps] | None = field(init=False)
    counts_results: bool = field(default=True, init=False)
    head: struct.Struct = field(init=False)
    """How the beginning of a call is packed for an adapter."""
    cell: struct.Struct | None = field(init=False)
    """How the result in its cell is packed; None: there is none."""
    returned_size: int = field(init=False)
    """Bytes of the scratch that a spilled result takes."""
    unwraps: bool = field(init=False)
    """Whether the function returns a `result`, whose error is raised."""
    _nowhere: Lifting = field(init=False)
    """For results that need no memory, and are not counted."""

    @_nowhere.default
    def _default_nowhere(self) -> Lifting:
        return Lifting(self.got, b"", Tally(0), math.inf)

    @returned_size.default
    def _default_returned_size(self) -> int:
        return 0 if self.returned is None else align_up(self.returned.size, 8)

    @unwraps.default
    def _default_unwraps(self) -> bool:
        return isinstance(self.function.type.result, Result)

    @head.default
    def _default_head(self) -> struct.Struct:
        return head_of(self.signature.params)

    @cell.default
    def _default_cell(self) -> struct.Struct | None:
        return result_of(self.signature.results)

    @kinds.default
    def _kinds(self) -> tuple[Type, ...]:
        return tuple(one for _, one in self.function.type.params)

    @property
    def _flat(self) -> bool:
        return _is_flat(self.function)

    @lower.default
    def _default_lower(self) -> Callable[[tuple[object, ...]], Sequence[object]] | None:
        if not self._flat or all(_is_native(one) for one in self.kinds):
            return None
        return self._lower_flat

    @lift.default
    def _default_lift(self) -> Callable[[Value], Value] | None:
        result = self.function.type.result
        if not self._flat or result is None or _is_native(result):
            return None
        return self._lift_flat

    @steps.default
    def _default_steps(self) -> Callable[[Guest, tuple[object, ...]], Steps] | None:
        return None if self._flat else self._steps

    @property
    def entry(self) -> FromPart | None:
        """What a call with a `Direct` calls."""
        return None if self.calls is None else FromPart(PART, f"call {self.calls.number}")

    @property
    def direct(self) -> Callable[[Parts], CanonicalDirect] | None:
        """Function that returns how values cross in most calls, into one instance."""
        return None if self.calls is None else self._direct

    def refuse_host_call(self, native: Parts) -> Exception | None:
        """Return the error for a host call that the guest makes now; None: it may make it."""
        if self.calls is None:
            return None
        phase = native.part(PART).window(SCRATCH).view[PHASE_AT]
        if not phase:
            return None
        when = (
            f"while it allocated memory for an argument ({self.function.realloc})"
            if phase == ALLOCATING
            else f"after it had returned ({self.function.post})"
        )
        return TrapError(
            f"the guest called a host function {when}, when a component must not: cannot leave "
            "component instance",
            code="cannot leave component instance",
        )

    def _direct(self, native: Parts) -> CanonicalDirect:
        return CanonicalDirect(self, native)

    @property
    def arity(self) -> int:
        return len(self.kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arguments."""
        return _parameters(self.function)

    @property
    def got(self) -> str:
        """The beginning of messages about a result."""
        return f"{self.what} returned"

    def place(self, number: int) -> str:
        """Return the name of an argument for messages."""
        name, _ = self.function.type.params[number - 1]
        return f"argument {number} ({name}) of {self.what}"

    def explain(self, values: tuple[object, ...]) -> Exception:
        return self.misfit(values) or TypeError(f"{self.what}: {shown(values)} can't be passed")

    def misfit(self, values: tuple[object, ...]) -> Exception | None:
        """Return the error for arguments that do not fit; None if they do."""
        if len(values) != len(self.kinds):
            return wrong_count(self.what, [type_text(one) for one in self.kinds], values)
        with ExitStack() as views:
            job = Lowering(False, math.inf, views)
            for number, (kind, value) in to_blame(self.kinds, values):
                try:
                    lowerer(kind).flat(value, [], job)
                except MISFITS as error:
                    return reworded(error, f"{self.place(number)}: {error}")
        return None

    def loggable(self, values: tuple[object, ...], limit: int) -> tuple[object, ...]:
        """Return arguments of a call as they can be logged, without objects of other classes.

        Args:
            values: the arguments.
            limit: number of values in records.

        Raises:
            TooLargeError: there are more.
        """
        job, made = Lowering(False, limit), list(values)
        for number, (kind, value) in enumerate(zip(self.kinds, values, strict=True)):
            try:
                made[number] = plain_value(kind, value, job)
            except Detour:
                raise TooLargeError(f"over {limit} values") from None
            except Exception:
                pass  # of a value that has changed since, or of its class: it is logged as it is
        return tuple(made)

    # -- without memory

    def _lower_flat(self, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(values) != len(self.kinds):
            raise self.explain(values)
        return self._signed(self.lower_values(values, Lowering(False, math.inf)))

    def _lift_flat(self, result: Value) -> Value:
        return self.value(lifter(self._result).flat(iter((result,)), self._nowhere))

    # -- with memory

    def _steps(self, guest: Guest, values: tuple[object, ...]) -> Steps:
        """Perform one call; see `Binding.steps`."""
        with ExitStack() as views:
            job = Lowering(False, MANY, views)
            try:
                out = self.lower_values(values, job)
            except Detour:
                job = Lowering(False, math.inf, views)
                out = yield Convert(paced, (self.lower_values, values, job))
            if self.calls is not None and self.put(_scratch_of(guest), out, job.blocks):
                del job
                status = yield InvokePart(f"call {self.calls.number}", (), PART)
                return (yield from self.rest(guest, status))
            yield from self._place(guest, out, job)
            del job
        result = yield Invoke(self.function.export, self._signed(out))
        return (yield from self._take(guest, result))

    def rest(self, guest: Guest, status: Value) -> Steps:
        """Make the rest of a call that the adapter has made, or has begun."""
        scratch = _scratch_of(guest)
        if status in (MISALIGNED, OUTSIDE):
            self._refuse_allocated(guest)
        result = self.result_in(scratch)
        if status == LEFT:
            return (yield from self._take(guest, result))
        if self.function.type.result is None:
            return None
        job = self.copied_in(scratch, guest.tally, math.inf)
        return self.value(self.lift_result(result, job))

    # -- in batches

    @property
    def numbers(self) -> tuple[PlainType, ...]:
        """The types of the results, if they are numbers; else empty."""
        result = self.function.type.result
        kind = None if result is None else _number_of(result)
        return () if kind is None else (kind,)

    def arrow_form(self) -> ArrowForm | None:
        """Return the form of results in Arrow's arrays; None: there are no results.

        Raises:
            TypeError: Arrow has no type for them.
        """
        result = self.function.type.result
        try:
            if isinstance(result, Result):
                return NULL if result.ok is None else arrow_form(result.ok)
            return None if result is None else arrow_form(result)
        except TypeError as error:
            raise TypeError(
                f"{self.what}: {error}, which it returns: give map lists as columns, such as "
                "column.to_pylist(), and the results are a list, too"
            ) from None

    def bulk(self, guest: Guest) -> Bulk | None:
        """Return how a driver makes the calls; None: it can't.

        It can for numbers, text and bytes, and for what refers to no memory.
        """
        one, result, calls = self.function, self.function.type.result, self.calls
        args = [self._argument(kind) for kind in self.kinds]
        wire = None if result is None else WIRES.get(result)
        images = flats = None
        if result is not None and wire is None and not self.numbers and crosses_in_cells(result):
            if isinstance(result, Result):
                return None  # an error ends a row, as no result of a driver can
            if self.returned:
                images = wire = Images(self.got, result)
            else:
                flats = wire = Flats(self.got, result)
        known = result is None or wire is not None or self.numbers
        # A function without an adapter needs none, if it is flat.
        callable_ = guest.memory is not None and (calls is not None or self._flat)
        if self.arguments is not None or not callable_ or not known or None in args:
            return None
        cells = [
            layout(kind.type).flat if isinstance(kind, Cells) else ()
            for kind in args
            if not isinstance(kind, PlainType)
        ]
        shape = MemoryShape(
            tuple(cell_name(kind) if isinstance(kind, PlainType) else BYTES for kind in args),
            (flats.cell,)
            if flats
            else (BYTES,)
            if wire
            else tuple(cell_name(kind, cut=True) for kind in self.numbers),
            argument="pair",
            style=None if wire is None or flats else "image" if images else "area",
            allocation="guest",
            alloc=4 if () in cells else 0,
            post=one.post is not None,
            heavy=wire is not None and wire.heavy,
            cells=tuple(cells) if any(cells) else (),
            image=(self.returned.size, self.returned.align) if images and self.returned else (0, 0),
            canonical=True,
        )
        exports: dict[str, str | FromPart] = {"function": one.export}
        if shape.alloc and calls:
            exports["alloc"] = FromPart(PART, f"realloc {calls.allocator}")
        if shape.post and calls:
            exports["post"] = FromPart(PART, f"told {calls.number}")
        return Bulk(
            self.what,
            self.got,
            shape,
            exports,
            tuple(kind for kind in args if kind is not None),
            self.numbers,
            wire,
            images.decode if images else flats.decode if flats else self._decode,
            "" if result is None else type_text(result),
            self._refuse_row,
        )

    def _argument(self, kind: Type) -> PlainType | Wire | None:
        """Return how a driver passes values of a type; None: it can't."""
        if (number := _number_of(kind)) is not None:
            return number
        if kind in WIRES:
            return WIRES[kind]
        return Cells(kind) if crosses_in_cells(kind) else None

    def _decode(self, data: bytes, tally: Tally) -> Value:
        if self.function.type.result == STRING:
            return lift_text(f"{self.got} a string that is", data, tally)
        tally.add_made(BYTES_SIZE + len(data), 1)
        return data

    def _refuse_row(self, guest: Guest, why: int, at: int, size: int) -> None:
        """Raise the error of a row at which a driver has stopped, as `steps` do."""
        memory = memory_of(guest)
        if why == ALLOCATED_OUTSIDE:
            self._check_allocated(memory, at, size, 1)
        area = why in (AREA_OUTSIDE, AREA_MISALIGNED) or self._result not in WIRES
        what = "a result" if area else f"a {type_text(self._result)}"
        align = 1 if not area or self.returned is None else self.returned.align
        Lifting(self.got, cast("Viewed", memory).view(), guest.tally, math.inf).place(
            what, at, size, align
        )

    # -- through the scratch of an adapter

    def put(self, scratch: memoryview, out: Sequence[Value], blocks: Sequence[Block]) -> bool:
        """Write the values of a call into the scratch; False if they do not fit."""
        count = len(blocks)
        at, table = TABLE_AT + ENTRY.size * count, TABLE_AT
        if at > SCRATCH_SIZE:
            return False
        if count == 1:  # nearly always
            ((align, data, _, place),) = blocks
            end = at + len(data)
            if end > SCRATCH_SIZE:
                return False
            ENTRY.pack_into(scratch, table, len(data), align, at, CELLS_AT + 8 * place)
            scratch[at:end] = data
            at = end
        else:
            begins: list[int] = []
            for align, data, owner, place in blocks:
                end = at + len(data)
                if end > SCRATCH_SIZE:
                    return False
                to = CELLS_AT + 8 * place if owner == FLAT else begins[owner] + place
                ENTRY.pack_into(scratch, table, len(data), align, at, to)
                scratch[at:end] = data
                begins.append(at)
                at, table = end, table + ENTRY.size
        at = align_up(at, 8)
        if self.returned is not None and at + self.returned.size + 8 > SCRATCH_SIZE:
            return False
        self.head.pack_into(scratch, HEAD_AT, count, at, *out)
        return True

    def result_in(self, scratch: memoryview) -> Value:
        """Return the result of the function, as the wasm value that is in its cell."""
        return None if self.cell is None else self.cell.unpack_from(scratch, RESULT_AT)[0]

    def copied_in(self, scratch: memoryview, tally: Tally, left: float) -> Lifting:
        """Return how a result is lifted that was copied into the scratch."""
        (begin,) = _OUT.unpack_from(scratch, HEAD_AT + 4)
        return Lifting(self.got, scratch, tally, left, cursor=begin)

    # -- in steps

    def lower_values(self, values: tuple[object, ...], job: Lowering) -> list[Any]:
        """Return flat values; the blocks that they refer to are in the job."""
        if self.arguments is None:
            out: list[Any] = []
            for number, (kind, value) in enumerate(zip(self.kinds, values, strict=True), start=1):
                try:
                    lowerer(kind).flat(value, out, job)
                except MISFITS as error:
                    raise self._blame(number, error) from None
            return out
        image = bytearray(self.arguments.size)
        job.blocks.append((self.arguments.align, image, FLAT, 0))
        placed = zip(self.kinds, self.arguments.offsets, values, strict=True)
        for number, (kind, at, value) in enumerate(placed, start=1):
            try:
                lowerer(kind).store(value, image, at, job, 0)
            except MISFITS as error:
                raise self._blame(number, error) from None
        return [0]

    def _blame(self, number: int, error: Exception) -> Exception:
        return reworded(error, f"{self.place(number)}: {error}")

    def _signed(self, out: Sequence[Value]) -> tuple[object, ...]:
        return tuple(
            [
                signed(value, 32)
                if kind == "i32"
                else signed(value, 64)
                if kind == "i64"
                else value
                for kind, value in zip(self.signature.params, out, strict=True)
            ]
        )

    def _place(self, guest: Guest, out: list[Any], job: Lowering) -> Steps:
        """Have the guest allocate the blocks, put their addresses in place, and write them."""
        blocks = job.blocks
        addresses: list[int] = []
        for start in range(0, len(blocks), BLOCKS_AT_ONCE):
            if start:
                yield PAUSE
            batch = blocks[start : start + BLOCKS_AT_ONCE]
            found: Sequence[int] = yield from self._allocate(guest, batch)
            addresses += found
            for address, (_, _, owner, at) in zip(found, batch, strict=True):
                if owner == FLAT:
                    out[at] = address
                else:
                    image = blocks[owner][1]
                    assert isinstance(image, bytearray)
                    image[at : at + 4] = address.to_bytes(4, "little")
        yield from self._write(guest, addresses, blocks)

    def _allocate(self, guest: Guest, blocks: Sequence[Block]) -> Steps:
        """Have the guest allocate some blocks; return their addresses."""
        if self.calls is None:
            addresses = []
            for align, data, _, _ in blocks:
                size = len(data)
                values = 0, 0, align, signed(size)
                address = (yield Invoke(self.function.realloc or "", values)) & _MASK
                self._check_allocated(memory_of(guest), address, size, align)
                addresses.append(address)
            return addresses
        scratch, table, count = _scratch_of(guest), TABLE_AT, len(blocks)
        for align, data, _, _ in blocks:
            ENTRY.pack_into(scratch, table, len(data), align, 0, RESULT_AT)
            table += ENTRY.size
        _OUT.pack_into(scratch, HEAD_AT, count)
        status = yield InvokePart(f"allocate {self.calls.allocator}", (), PART)
        if status != DONE:
            self._refuse_allocated(guest)
        return struct.unpack_from(f"<{4 * count}I", scratch, TABLE_AT)[1::4]

    def _write(self, guest: Guest, addresses: Sequence[int], blocks: Sequence[Block]) -> Steps:
        """Write the blocks where the guest has allocated them."""
        scratch = None if self.calls is None else _scratch_of(guest)
        table, count, end = TABLE_AT, 0, SCRATCH_SIZE
        for address, (_, data, _, _) in zip(addresses, blocks, strict=True):
            size = len(data)
            if size > COPY_PIECE:
                view = memoryview(data)
                for start in range(0, size, COPY_PIECE):
                    memory_of(guest).write(address + start, view[start : start + COPY_PIECE])
                    yield PAUSE
                continue
            if scratch is None or size > SMALL_BLOCK:
                memory_of(guest).write(address, data)
                count += scratch is None
                if count == BLOCKS_AT_ONCE:
                    count = 0
                    yield PAUSE
                continue
            if end - size < table + ENTRY.size:
                yield from self._copy_batch(scratch, count)
                table, count, end = TABLE_AT, 0, SCRATCH_SIZE
            end -= size
            scratch[end : end + size] = data
            ENTRY.pack_into(scratch, table, size, address, end, 0)
            table, count = table + ENTRY.size, count + 1
        if scratch is not None and count:
            yield from self._copy_batch(scratch, count)

    def _copy_batch(self, scratch: memoryview, count: int) -> Steps:
        _OUT.pack_into(scratch, HEAD_AT, count)
        yield InvokePart("write", (), PART)
        yield PAUSE

    def _refuse_allocated(self, guest: Guest) -> NoReturn:
        """Raise the error for an address from the allocator that can't be used."""
        at, size, align = _FACTS.unpack_from(_scratch_of(guest), AT_AT)
        self._check_allocated(memory_of(guest), at, size, align)
        raise AssertionError(f"an allocator returned what can be used: {at}, {size}, {align}")

    def _check_allocated(self, memory: Memory, address: int, size: int, align: int) -> None:
        name = f"{self.what}: {self.function.realloc}(0, 0, {align}, {size}) returned"
        if address % align:
            raise AbiError(f"{name} the address {address}, which is not a multiple of {align}")
        if address + size > memory.size:
            raise AbiError(
                f"{name} the address {address}: that many bytes there exceed its memory of "
                f"{memory.size} bytes"
            )

    def _take(self, guest: Guest, result: Value) -> Steps:
        """Return the value of a result, after the guest was told that it is read."""
        value: Value = None
        refused: Exception | None = None
        job = self._nowhere
        if self.function.type.result is not None:
            view = b"" if guest.memory is None else cast("Viewed", guest.memory).view()
            job = Lifting(self.got, view, guest.tally, MANY)
            mark = guest.tally.mark()
            try:
                value = self.lift_result(result, job)
            except Detour:
                guest.tally.go_back(mark)
                job = Lifting(self.got, view, guest.tally, math.inf, {})
                self._collect_result(result, job)
                yield from collect_all(job)
            except ResultTooLargeError as error:
                refused = error
            # The guest goes on, and may grow its memory.
            del view
            job.memory = b""
        if self.function.post is not None:
            yield self._after(guest, result)
        if refused is not None:
            raise refused
        if job.copies is not None:
            value = yield Convert(paced, (self.lift_result, result, job))
        return self.value(value)

    def _after(self, guest: Guest, result: Value) -> Invoke:
        """Return the request to call the post-return function."""
        if self.calls is None:
            return Invoke(self.function.post or "", () if result is None else (result,))
        if self.cell is not None:
            self.cell.pack_into(_scratch_of(guest), RESULT_AT, result)
        return InvokePart(f"post {self.calls.number}", (), PART)

    @property
    def _result(self) -> Type:
        result = self.function.type.result
        assert result is not None
        return result

    def lift_result(self, result: Value, job: Lifting) -> Value:
        one = lifter(self._result)
        job.take(one.items)
        if self.returned is None:
            return one.flat(iter((result,)), job)
        job.tally.add_made(one.size, one.items)
        buffer, at = job.place("a result", result & _MASK, self.returned.size, self.returned.align)
        return one.load(buffer, at, job)

    def _collect_result(self, result: Value, job: Lifting) -> None:
        assert self.returned is not None
        one = lifter(self._result)
        data = job.copy("a result", result & _MASK, self.returned.size, self.returned.align)
        if one.collect is not None:
            one.collect(data, 0, job)

    def value(self, value: Value) -> Value:
        """Return the value of the function; raise `WitError` if it is an error."""
        if self.unwraps:
            if type(value) is Err:
                raise WitError(value.value, function=self.what)
            assert type(value) is Ok
            return value.value
        return value


def _is_native(one: Type) -> bool:
    return isinstance(one, Primitive) and one.name in _NATIVE


@final
class CanonicalDirect:
    """How values cross through the scratch of an adapter, in one instance.

    Its jobs are used again by each call, as making them takes a third of the time of a short one.

    Args:
        binding: the ABI, bound to a function.
        native: the instance.
    """

    __slots__ = ("_binding", "_count", "_flats", "_lifted", "_lifting", "_lowering", "_scratch")

    def __init__(self, binding: CanonicalBinding, native: Parts) -> None:
        self._binding = binding
        self._scratch = native.part(PART).window(SCRATCH)
        self._lowering = Lowering(True, DIRECT_VALUES)
        self._lifting = Lifting(binding.got, b"", Tally(DIRECT_SIZE), DIRECT_VALUES, cursor=0)
        self._count = binding.arity
        self._flats = (
            None if binding.arguments else tuple([lowerer(one).flat for one in binding.kinds])
        )
        result = binding.function.type.result
        self._lifted = None if result is None else lifter(result)

    def lower(self, values: tuple[object, ...]) -> bool:
        flats, job = self._flats, self._lowering
        if len(values) != self._count:
            return False
        job.left = DIRECT_VALUES
        job.blocks.clear()
        out: list[Any] = []
        try:
            if flats is None:
                out = self._binding.lower_values(values, job)
            else:
                for flat, value in zip(flats, values):  # noqa: B905 -- as many: see above
                    flat(value, out, job)
        except Detour:
            return False
        return self._binding.put(self._scratch.view, out, job.blocks)

    def lift(self, status: Value) -> Value:
        if status != DONE:
            return BY_STEPS
        one, job, binding = self._lifted, self._lifting, self._binding
        if one is None:
            return None, 0
        scratch, tally = self._scratch.view, job.tally
        tally.size = tally.spent = 0
        tally.allowed = DIRECT_FUEL
        job.left = DIRECT_VALUES - one.items
        try:
            if binding.returned is None:
                value = one.flat(iter((binding.result_in(scratch),)), job)
            else:
                (begin,) = _OUT.unpack_from(scratch, HEAD_AT + 4)
                tally.size, tally.spent = one.size, ITEM_FUEL * one.items
                job.memory, job.cursor = scratch, begin + binding.returned_size
                value = one.load(scratch, begin, job)
            if binding.unwraps:
                value = binding.value(value)
        except (Detour, WasmCacheError):
            return BY_STEPS  # which find the same, and say so
        return value, tally.spent


def _scratch_of(guest: Guest) -> memoryview:
    return cast("Parts", guest).part(PART).window(SCRATCH).view
