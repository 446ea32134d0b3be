"""AssemblyScript's ABI: numbers as they are, and its runtime's objects for text, bytes and lists.

The host makes objects by the module's own `__new`, and pins those that are not passed yet, as each
`__new` may collect what nothing refers to. See `managed` for objects, and `elements` for what is in
them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Final

from attrs import field, frozen

from .._core.config import WASM_PAGE
from .._core.errors import AbiError, ExportError, SignatureError
from .._core.integers import signed
from .._core.tally import Tally
from .._core.wasm.memory_layout import BYTES, MemoryShape
from .._core.wasm.object_code import imports
from .._core.wasm.reader import FuncType
from .._public import public
from .base import Binding, Convert, Exports, Guest, Invoke, Steps, Value
from .batching import Bulk, Heap, Objects
from .elements import LARGE_LIST, LARGE_TEXT, Utf16, encode_text, lift_bytes, lift_text
from .guest_memory import memory_of, read_result
from .managed import (
    MANAGED,
    MAX_SIZE,
    VIEW,
    Chosen,
    ManagedType,
    check_object,
    choose_class,
    find_contents,
)
from .marks import RTTI, SET_COUNT
from .packing import Blob, Data, Single, Wire
from .plain import (
    TYPES,
    PlainAbi,
    PlainType,
    cell_name,
    find_misfit,
    find_type,
    lift_number,
    lower_number,
    reworded,
    shown,
)

NEW, PIN, UNPIN, COLLECT = "__new", "__pin", "__unpin", "__collect"
# {export: its type} of the runtime, as `asc --exportRuntime` exports it.
RUNTIME: Final = {
    NEW: FuncType(("i32", "i32"), ("i32",)),
    PIN: FuncType(("i32",), ("i32",)),
    UNPIN: FuncType(("i32",)),
}
OPTIONAL: Final = {COLLECT: FuncType(), SET_COUNT: FuncType(("i32",))}
HEAP, CHOSEN = "AssemblyScript heap", "AssemblyScript classes"
KNOWN: Final = {**TYPES, **dict.fromkeys(MANAGED, TYPES["i32"])}

COLLECTIONS: Final = ("list[", "list<", "array<", "staticarray<")
"""Beginnings of the names of lists, normalised."""


def is_needed(types: Sequence[str], exports: Exports) -> bool:
    """Return whether a function of these types needs this ABI: a module exports its runtime.

    Numbers need it only where the guest has to be told how many arguments it gets.
    """
    functions = exports.functions
    if functions.get(SET_COUNT) == OPTIONAL[SET_COUNT]:
        return all(name in KNOWN for name in types)
    return any(name in MANAGED for name in types) and exports_runtime(exports)


def refuse_wide_memory(what: str, abi: object) -> None:
    """Raise `ExportError` for a module with a 64-bit memory, if it has this ABI.

    Objects have 32-bit addresses.
    """
    if isinstance(abi, AssemblyScriptAbi):
        raise ExportError(
            f'{what}: abi="assemblyscript" takes modules with a 32-bit memory, and this one has a '
            "64-bit memory: build it for 32-bit addresses, or give another abi"
        )


def exports_runtime(exports: Exports) -> bool:
    """Return whether a module exports the runtime of AssemblyScript, by the names of its parts."""
    names = exports.functions
    return exports.globals.get(RTTI) == "i32" and all(name in names for name in RUNTIME)


@public
@frozen
class AssemblyScriptAbi:
    """AssemblyScript's ABI, as an `Abi`; ``abi="assemblyscript"`` is one.

    .. code-block::

        await cache.register("greet", wasm, args=("str",), returns="str", abi="assemblyscript")

    Types are those of the plain ABI, and, for modules built with ``--exportRuntime``:

    - ``"str"``: a `string`. Halves of surrogate pairs cross in both directions.
    - ``"bytes"``: a `Uint8Array`, or an `ArrayBuffer` if the module has no such class. A result may
      also be an `Array<u8>` or a `StaticArray<u8>`.
    - ``"list[f64]"``, with any type of the plain ABI: an `Array`, a typed array or a `StaticArray`.
      A call takes a sequence or an array of numbers, and returns a list.
    - A class by its name in the source, such as ``"ArrayBuffer"`` or ``"StaticArray<f64>"``. An
      argument needs it where the module has several classes for a type.

    A null that the guest returns is None. With `called_on_null`, a None is passed as null.

    Without `abi`, a function of numbers alone uses the plain ABI, in which they mean the same, and
    its garbage is left to the runtime.

    A function may be registered with fewer types than it has parameters, if those left out have
    default values. Nothing checks that they have: without one, a parameter is 0 or null. If such a
    call traps, its `TrapError` says how many arguments were given.

    The host collects garbage if the memory grows, also with ``--runtime minimal``; ``--runtime
    stub`` can't free any, so its instances run out of memory, and are best registered with
    ``isolation="reset"``.
    """

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,
    ) -> Binding:
        """Return the binding for one function; `register` calls this.

        Args:
            function: name of the function, for messages.
            export: name of the export to be called.
            args: types of the arguments; those left out at the end get their default values.
            returns: types of the results; at most one.
            exports: the exports of the module.
            called_on_null: whether None may be an argument, for which null is passed.

        Raises:
            SignatureError: a type is unknown, or there are several results.
            ExportError: the types need the runtime, which the module does not export. `register`
                also raises it if the module has a 64-bit memory.
        """
        for name in (*args, *returns):
            if name not in KNOWN and name.startswith(COLLECTIONS):
                raise SignatureError(
                    f"{function}: unknown type {shown(name)}: lists hold numbers only, of the "
                    f"types {', '.join(TYPES)}; pass other lists as one str, such as JSON"
                )
            find_type(function, name, KNOWN)
        if len(returns) > 1:
            raise SignatureError(
                f"{function}: a function of AssemblyScript has one result, not {len(returns)}"
            )
        functions = exports.functions
        optional = {name for name, kind in OPTIONAL.items() if functions.get(name) == kind}
        if all(name in TYPES for name in (*args, *returns)):
            if not optional:
                return PlainAbi(function, args, returns)
        else:
            _check_runtime(function, exports)
        params = tuple(KNOWN[name].wasm for name in args)
        defaults: tuple[str, ...] = ()
        if SET_COUNT in optional and export in functions:
            defaults = functions[export].params[len(args) :]
        return AssemblyScriptBinding(
            function,
            export,
            tuple(MANAGED.get(name) or TYPES[name] for name in args),
            tuple(MANAGED.get(name) or TYPES[name] for name in returns),
            FuncType(params + defaults, tuple(KNOWN[name].wasm for name in returns)),
            counts=SET_COUNT in optional,
            collects=COLLECT in optional,
            passes_nulls=called_on_null,
        )


def _check_runtime(what: str, exports: Exports) -> None:
    missing = [name for name, kind in RUNTIME.items() if exports.functions.get(name) != kind]
    if exports.globals.get(RTTI) != "i32":
        missing.append(RTTI)
    if not exports.memories:
        missing.append("a memory")
    if missing:
        raise ExportError(
            f"{what}: str, bytes and lists need AssemblyScript's runtime, but the module does not "
            f"export {', '.join(missing)}: build it with asc --exportRuntime"
        )


@frozen(eq=False)
class AssemblyScriptBinding:
    """Values of one signature, some of them objects of the guest: a `Binding`."""

    what: str
    export: str
    args: tuple[PlainType | ManagedType, ...]
    returns: tuple[PlainType | ManagedType, ...]
    signature: FuncType
    counts: bool = field(kw_only=True)
    """Whether the guest is told how many arguments it gets."""
    collects: bool = field(kw_only=True)
    """Whether garbage can be collected."""
    passes_nulls: bool = field(kw_only=True)
    """Whether None is passed as null."""
    lower: Callable[[tuple[object, ...]], Sequence[object]] | None = field(default=None, init=False)
    lift: Callable[[Value], Value] | None = field(default=None, init=False)
    counts_results: bool = field(default=True, init=False)

    @property
    def arity(self) -> int:
        return len(self.args)

    @property
    def trap_note(self) -> str:
        """Words for the message of a trap, if arguments were left out; see `BoundFunction.fail`."""
        given, taken = len(self.args), len(self.signature.params)
        return f"{given} of {taken} arguments were given" if given < taken else ""

    @property
    def numbers(self) -> tuple[PlainType, ...]:
        """The types of the results, if they are numbers; else empty."""
        return tuple(kind for kind in self.returns if isinstance(kind, PlainType))

    @property
    def managed(self) -> ManagedType | None:
        """The type of the result, if it is an object."""
        return next((kind for kind in self.returns if isinstance(kind, ManagedType)), None)

    @property
    def got(self) -> str:
        """The beginning of messages about a result."""
        return f"{self.what} returned"

    def place(self, number: int) -> str:
        """Return the name of an argument for messages."""
        return f"argument {number} of {self.what}"

    def explain(self, values: tuple[object, ...]) -> Exception:
        return self.misfit(values) or TypeError(f"{self.what}: {shown(values)} can't be passed")

    def misfit(self, values: tuple[object, ...]) -> Exception | None:
        """Return the error for arguments that do not fit; None if they do."""
        names = [kind.name for kind in self.args]
        return find_misfit(self.what, names, self.args, values, self._lower_one)

    def steps(self, guest: Guest, values: tuple[object, ...]) -> Steps:
        """Perform one call; see `Binding.steps`."""
        if any(_is_large(kind, value) for kind, value in zip(self.args, values, strict=True)):
            lowered: list[Value] = yield Convert(self._lower, (values,))
        else:
            lowered = self._lower(values)
        heap = self._heap(guest) if self.collects else None
        wasm = yield from self._place(guest, lowered)
        del lowered
        if self.counts:
            yield Invoke(SET_COUNT, (len(self.args),))
        result = yield Invoke(self.export, wasm)
        managed = self.managed
        if managed is None:
            yield from _collect(guest, heap)
            return lift_number(self.got, self.numbers[0], result) if self.returns else None
        at, data, refused = result & 0xFFFFFFFF, b"", None
        if at:
            data, refused = self._read(guest, managed, at)
        yield from _collect(guest, heap)
        if refused is not None:
            raise refused
        if not at:
            return None
        if len(data) >= (LARGE_LIST if managed.elements else LARGE_TEXT):
            return (yield Convert(self._decode, (data, guest.tally)))
        return self._decode(data, guest.tally)

    def _read(self, guest: Guest, kind: ManagedType, at: int) -> tuple[bytes, Exception | None]:
        begin, size = find_contents(self.got, guest, kind, at)
        return read_result(self.got, memory_of(guest), begin, size)

    def _heap(self, guest: Guest) -> Heap:
        heap: Heap | None = guest.state.get(HEAP)
        if heap is None:
            pages = 0 if guest.memory is None else guest.memory.size // WASM_PAGE
            heap = guest.state[HEAP] = Heap(pages)
        return heap

    def bulk(self, guest: Guest) -> Bulk | None:
        """Return how a driver makes the calls; see `BulkBinding`."""
        if guest.memory is None:
            return None
        managed = self.managed
        chosen = [one for one in self._chosen(guest) if one is not None]
        kinds = [kind for kind in self.args if isinstance(kind, ManagedType)]
        shape = MemoryShape(
            tuple(
                BYTES if isinstance(kind, ManagedType) else cell_name(kind) for kind in self.args
            ),
            (BYTES,) if managed else tuple(cell_name(kind) for kind in self.numbers),
            argument="object",
            style="object" if managed else None,
            allocation="guest",
            passes_nulls=self.passes_nulls,
            heavy=managed is not None and managed.elements is not None,
            views=tuple(
                kind.size if one.view else 0 for kind, one in zip(kinds, chosen, strict=True)
            ),
            contents=managed.contents if managed else None,
            count=len(self.args) if self.counts else None,
            defaults=self.signature.params[len(self.args) :],
            collects=self.collects,
        )
        exports = {"new": NEW, "pin": PIN, "unpin": UNPIN, "count": SET_COUNT, "collect": COLLECT}
        needs_rtti = managed is not None and bool(managed.contents.flags)
        return Bulk(
            self.what,
            self.got,
            shape,
            {"function": self.export, **{name: exports[name] for name in imports(shape)}},
            tuple(_wire(kind) if isinstance(kind, ManagedType) else kind for kind in self.args),
            self.numbers,
            _wire(managed) if managed else None,
            self._decode,
            managed.name if managed else "",
            objects=Objects(
                tuple(one.number for one in chosen),
                int(guest.global_value(RTTI)) & 0xFFFFFFFF if needs_rtti else 0,
                self._heap(guest) if self.collects else None,
                lambda guest, at, size: check_object(self.what, memory_of(guest), at, size),
                lambda guest, at: managed and find_contents(self.got, guest, managed, at),
            ),
        )

    def _decode(self, data: bytes, tally: Tally) -> Value:
        kind = self.managed
        assert kind is not None
        if kind.elements is None:
            return (lift_text if kind.python == "str" else lift_bytes)(data, tally)
        try:
            return kind.elements.lift(data, tally)
        except AbiError as error:
            problem = str(error)
        raise AbiError(f"{self.got} {problem}")

    # -- into the guest

    def _lower(self, values: tuple[object, ...]) -> list[Value]:
        """Return numbers, bytes for objects, and None for null."""
        return [
            self._lower_one(number, kind, value)
            for number, (kind, value) in enumerate(zip(self.args, values, strict=True), start=1)
        ]

    def _lower_one(self, number: int, kind: PlainType | ManagedType, value: object) -> Value:
        if isinstance(kind, PlainType):
            return lower_number(self, number, kind, value)
        if value is None and self.passes_nulls:
            return None
        try:
            data = _encode(kind, value)
        except (TypeError, ValueError, OverflowError) as error:
            raise reworded(error, f"{self.place(number)}: {error}") from None
        except Exception as error:  # a value's own method may raise anything
            raise TypeError(
                f"{self.place(number)}, of type {kind.name}: {shown(value)} raised {shown(error)}"
            ) from None
        if len(data) > MAX_SIZE:
            raise OverflowError(
                f"{self.place(number)}: {kind.name} of {len(data)} bytes is too large"
            )
        return data

    def _place(
        self, guest: Guest, lowered: list[Value]
    ) -> Generator[Invoke, Value, tuple[object, ...]]:
        """Make the objects of the arguments; return wasm values for all parameters."""
        chosen = self._chosen(guest)
        left = sum(isinstance(kind, ManagedType) for kind in self.args)
        wasm: list[object] = []
        pinned: list[int] = []
        for number, one in enumerate(lowered):
            if chosen[number] is None:
                wasm.append(one)
                continue
            left -= 1
            if one is None:
                wasm.append(0)
                continue
            at = yield from self._make(guest, chosen[number], self._sizes[number], one)
            if left:
                yield Invoke(PIN, (signed(at),))
                pinned.append(at)
            wasm.append(signed(at))
        for at in pinned:
            yield Invoke(UNPIN, (signed(at),))
        zeros = (
            0.0 if kind in ("f32", "f64") else 0 for kind in self.signature.params[len(wasm) :]
        )
        return (*wasm, *zeros)

    @property
    def _sizes(self) -> list[int]:
        """Size of an element of each argument; 0 for numbers."""
        return [kind.size if isinstance(kind, ManagedType) else 0 for kind in self.args]

    def _chosen(self, guest: Guest) -> list[Chosen | None]:
        """Return the classes of the arguments, found once for each instance."""
        chosen: list[Chosen | None] | None = guest.state.get(CHOSEN)
        if chosen is None:
            chosen = guest.state[CHOSEN] = [
                choose_class(f"argument {number} of {self.what}", guest, kind)
                if isinstance(kind, ManagedType)
                else None
                for number, kind in enumerate(self.args, start=1)
            ]
        return chosen

    def _make(
        self, guest: Guest, chosen: Chosen | None, size: int, data: Data
    ) -> Generator[Invoke, Value, int]:
        """Return the address of a new object with this content."""
        assert chosen is not None
        if not chosen.view:
            at = yield from self._new(guest, len(data), chosen.number)
            memory_of(guest).write(at, data)
            return at
        buffer = yield from self._new(guest, len(data), 1)
        memory_of(guest).write(buffer, data)
        yield Invoke(PIN, (signed(buffer),))
        at = yield from self._new(guest, VIEW.size, chosen.number)
        fields = VIEW.pack(buffer, buffer, len(data), len(data) // size)
        memory_of(guest).write(at, fields)
        yield Invoke(UNPIN, (signed(buffer),))
        return at

    def _new(self, guest: Guest, size: int, number: int) -> Generator[Invoke, Value, int]:
        at: int = (yield Invoke(NEW, (size, number))) & 0xFFFFFFFF
        check_object(self.what, memory_of(guest), at, size)
        return at


def _encode(kind: ManagedType, value: Value) -> Data:
    if kind.elements is not None:
        return kind.elements.lower(value)
    if kind.python == "str":
        if not isinstance(value, str):
            raise TypeError(f"str takes a str, got {shown(value)}")
        return encode_text(value)
    try:
        with memoryview(value) as view:
            return view.tobytes()
    except TypeError:
        raise TypeError(f"{kind.name} takes bytes or a buffer, got {shown(value)}") from None


def _collect(guest: Guest, heap: Heap | None) -> Generator[Invoke, Value, None]:
    """Have garbage collected if that is due; no object of this call is needed any more."""
    if heap is not None and heap.is_due(0 if guest.memory is None else guest.memory.size):
        yield Invoke(COLLECT, ())


def _wire(kind: ManagedType) -> Wire:
    if kind.elements is not None:
        return Single(kind.elements.lower, kind.elements.lift)
    return Utf16() if kind.python == "str" else Blob()


def _is_large(kind: PlainType | ManagedType, value: Value) -> bool:
    """Return whether a conversion takes long; only of Python's own classes is the length asked."""
    if isinstance(kind, PlainType):
        return False
    if kind.elements is None:
        return isinstance(value, str) and str.__len__(value) >= LARGE_TEXT
    if type(value) in (list, tuple, range):
        return len(value) >= LARGE_LIST
    try:
        with memoryview(value) as view:
            return view.nbytes >= LARGE_LIST * kind.size
    except TypeError:
        return value is not None
