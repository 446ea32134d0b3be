"""The buffer ABI: bytes and str in and out, through memory from the module's allocator.

The types are `bytes`, `str` (UTF-8), and those of the plain ABI; a buffer can only be the one
result. See `BufferAbi` for the conventions, and `allocator` for the allocators that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from typing import Literal, get_args

from attrs import Attribute, field, frozen

from .._core.errors import AbiError, ExportError, SignatureError
from .._core.integers import signed
from .._core.tally import Tally
from .._core.wasm.admission import signature
from .._core.wasm.memory_layout import AREA_SIZE, BYTES, MemoryShape
from .._core.wasm.reader import FuncType
from .._public import public
from .allocator import CABI, WBINDGEN, Allocator, find_allocator
from .base import Binding, Exports, Guest, Invoke, Memory, Value
from .batching import KEPT, Bulk
from .bytes_and_text import BUFFERS, lift_buffer, lower_buffer
from .guest_memory import check_address, memory_of, read, read_result
from .packing import Blob, Text, Wire
from .plain import (
    TYPES,
    PlainType,
    cell_name,
    find_misfit,
    find_type,
    lift_number,
    lower_number,
    shown,
)
from .post import find_post, post_values

KNOWN = {**TYPES, **dict.fromkeys(BUFFERS, TYPES["i32"])}

Argument = Literal["pair", "nul"]
Result = Literal["packed", "packed_low", "pair", "area", "out", "nul"]
Owner = Literal["host", "guest"]

SEARCHED_AT_ONCE = 4096


def _one_of(kind: object, *, or_none: bool = True) -> Value:
    values: tuple[str, ...] = get_args(kind)

    def check(_abi: object, attribute: Attribute[object], value: object) -> None:
        if (value is None and or_none) or (isinstance(value, str) and value in values):
            return
        listed = ", ".join(map(repr, values)) + (" or None" if or_none else "")
        raise ValueError(f"BufferAbi: {attribute.name} must be one of {listed}, got {shown(value)}")

    return check


def _export_or_none(_abi: object, attribute: Attribute[str | None], value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise TypeError(
            f"BufferAbi: {attribute.name} must be the name of an export or None, got {shown(value)}"
        )


@public
@frozen(kw_only=True)
class BufferAbi:
    """An `Abi` for bytes and text, by address and length, and for the plain ABI's types.

    ``abi="buffer"`` is one with all defaults: it detects the conventions of a module.

    .. code-block::

        BufferAbi(alloc="get_memory", free="put_memory", result="nul")

    Raises:
        ValueError: an option has none of the values that are listed for it.
        TypeError: `alloc` or `free` is not a str.
    """

    alloc: str | None = field(default=None, validator=_export_or_none)
    """Name of the export that allocates memory. None: the first known one that the module exports;
    if there is none, the host grows the memory."""
    free: str | None = field(default=None, validator=_export_or_none)
    """Name of the export that frees memory. None: the one that belongs to the allocator; with a
    given `alloc`, nothing is freed."""
    argument: Argument = field(default="pair", validator=_one_of(Argument, or_none=False))
    """Form of bytes and str as arguments. ``"pair"``: pointer and length. ``"nul"``: pointer to
    bytes that end with a zero."""
    result: Result | None = field(default=None, validator=_one_of(Result))
    """Form of bytes and str as the result. ``"packed"``: an i64, pointer << 32 | length.
    ``"packed_low"``: an i64, length << 32 | pointer. ``"pair"``: two results, pointer and length.
    ``"area"``: address of pointer and length. ``"out"``: the first parameter is the address to
    which the guest writes pointer and length. ``"nul"``: pointer to bytes that end with a zero.
    None: as the export's type indicates; ``"packed"`` for an i64."""
    arguments_of: Owner | None = field(default=None, validator=_one_of(Owner))
    """Owner of arguments. ``"host"``: the host keeps their memory and reuses it. ``"guest"``: the
    guest frees them. None: the convention of the allocator."""
    result_of: Owner | None = field(default=None, validator=_one_of(Owner))
    """Owner of the result. ``"host"``: the host frees it, unless it lies in an argument.
    ``"guest"``: it is static, or the guest frees it later. None: the convention of the
    allocator."""

    def bind(
        self,
        function: str,
        export: str,
        args: Sequence[str],
        returns: Sequence[str],
        exports: Exports,
        called_on_null: bool,  # noqa: ARG002 -- no type here has nulls
    ) -> Binding:
        """Return the binding for one function; `register` calls this.

        Args:
            function: name of the function, for messages.
            export: name of the export to be called.
            args: types of the arguments.
            returns: types of the results; ``"bytes"`` or ``"str"`` can only be the one result.
            exports: the exports of the module.
            called_on_null: whether None may be an argument; no type here has nulls.

        Raises:
            SignatureError: a type is unknown, or a buffer is one of several results, or the form
                of the result can't be determined and must be given as `result`.
            ExportError: the module lacks a memory or an allocator.
        """
        for name in (*args, *returns):
            find_type(function, name, KNOWN)
        if len(returns) > 1 and any(name in BUFFERS for name in returns):
            raise SignatureError(f"{function}: a buffer can only be the one result")
        if not exports.memories:
            raise ExportError(f"{function}: the module exports no memory for buffers")
        allocator = find_allocator(function, exports, self.alloc, self.free)
        params: list[str] = []
        for name in args:
            pair = name in BUFFERS and self.argument == "pair"
            params += ("i32", "i32") if pair else (KNOWN[name].wasm,)
        style: Result | None = None
        results = [KNOWN[name].wasm for name in returns]
        if returns and returns[0] in BUFFERS:
            style = self.result or _shown_style(function, exports.functions[export], allocator)
            results = {"out": [], "pair": ["i32", "i32"], "area": ["i32"], "nul": ["i32"]}.get(
                style, ["i64"]
            )
            if style == "out":
                params.insert(0, "i32")
        post = None
        if style is None or self.result_of != "guest":
            post = find_post(function, export, exports)
        return BufferBinding(
            function,
            export,
            tuple(args),
            tuple(returns),
            FuncType(tuple(params), tuple(results)),
            allocator,
            nul=self.argument == "nul",
            style=style,
            guest_owns=allocator.guest_owns
            if self.arguments_of is None
            else self.arguments_of == "guest",
            free_result=self.result_of != "guest" and allocator.free is not None,
            post=post,
        )


def _shown_style(what: str, actual: FuncType, allocator: Allocator) -> Result:
    if actual.results == ("i64",):
        return "packed"
    if actual.results == ("i32", "i32"):
        return "pair"
    if actual.results == () and actual.params[:1] == ("i32",):
        return "out"
    if actual.results == ("i32",) and allocator.alloc == CABI:
        return "area"
    raise SignatureError(
        f"{what}: how its export of type {signature(actual)} gives a buffer can't be seen; say it: "
        f"abi=BufferAbi(result=...), one of {', '.join(get_args(Result))}"
    )


@frozen(eq=False)
class BufferBinding:
    """Values of one signature, some of them buffers: a `Binding`."""

    what: str
    export: str
    args: tuple[str, ...]
    returns: tuple[str, ...]
    signature: FuncType
    allocator: Allocator
    nul: bool = field(kw_only=True)
    style: Result | None = field(kw_only=True)
    """Form of a buffer as a result; None: the results are numbers."""
    guest_owns: bool = field(kw_only=True)
    free_result: bool = field(kw_only=True)
    post: str | None = field(kw_only=True)
    """Name of the function to call after the result has been read; None: there is none."""
    lower: Callable[[tuple[object, ...]], Sequence[object]] | None = field(default=None, init=False)
    lift: Callable[[Value], Value] | None = field(default=None, init=False)
    counts_results: bool = field(default=True, init=False)

    @property
    def arity(self) -> int:
        return len(self.args)

    @property
    def numbers(self) -> tuple[PlainType, ...]:
        """The types of the results, if they are numbers; else empty."""
        return () if self.style else tuple(TYPES[name] for name in self.returns)

    @property
    def got(self) -> str:
        """The beginning of messages about a result."""
        return f"{self.what} returned"

    def place(self, number: int) -> str:
        """Return the name of an argument for messages."""
        return f"argument {number} of {self.what}"

    def note_of_trap(self, called: str) -> str:
        """Return words for the message of a trap, if the library has called the freeing export.

        Args:
            called: name of the outermost function that was running.
        """
        free = self.allocator.free
        if not self.free_result or free is None or called.strip("_") != free.strip("_"):
            return ""
        return (
            f"the library called {free!r} to free the arguments, or the result: for a result that "
            'is no memory of the allocator, such as a static text, give BufferAbi(result_of="guest"'
            '); for halves of a number in the other order, result="packed_low"'
        )

    def explain(self, values: tuple[object, ...]) -> Exception:
        return self.misfit(values) or TypeError(f"{self.what}: {shown(values)} can't be passed")

    def misfit(self, values: tuple[object, ...]) -> Exception | None:
        """Return the error for arguments that do not fit; None if they do."""
        with ExitStack() as views:
            return find_misfit(
                self.what,
                self.args,
                self.args,
                values,
                lambda number, name, value: self._lower_one(number, name, value, views),
            )

    def steps(self, guest: Guest, values: tuple[object, ...]) -> Generator[Invoke, Value, Value]:
        """Perform one call; see `Binding.steps`."""
        wasm: list[object] = []
        own: list[tuple[int, int]] = []  # (begin, end) of arguments owned by the host
        area = 0
        with ExitStack() as views:
            lowered = self._lower(values, views)
            rooms = yield from self._rooms(guest, lowered)
            if self.style == "out":
                area = rooms.pop(0)
                memory_of(guest).write(area, bytes(AREA_SIZE))
                wasm.append(area)
            for value in lowered:
                if not isinstance(value, (bytes, memoryview)):
                    wasm.append(value)
                    continue
                at = rooms.pop(0)
                self._write(memory_of(guest), at, value)
                wasm += (at,) if self.nul else (at, len(value))
                if not self.guest_owns:
                    own.append((at, at + len(value)))
        result = yield Invoke(self.export, self._signed(wasm))
        if self.style is None:
            numbers = self._numbers(result)
            if self.post is not None:
                yield Invoke(self.post, post_values(result, self.signature.results))
            return numbers
        memory = memory_of(guest)
        at, size = self._find(memory, result, area)
        data, refused = read_result(self.got, memory, at, size)
        if self.post is not None:
            yield Invoke(self.post, post_values(result, self.signature.results))
        elif self.free_result and not any(begin <= at < end for begin, end in own):
            yield from self.allocator.release(at, size + (self.style == "nul"))
        if refused is not None:
            raise refused
        return self._decode(data, guest.tally)

    def bulk(self, guest: Guest) -> Bulk | None:  # noqa: ARG002 -- needed by the Scylla ABI
        """Return how a driver makes the calls; see `BulkBinding`."""
        if self.style == "nul":
            return None  # searching for the zero would burn the row's fuel
        if self.post and self.style not in (None, "area", "packed", "packed_low"):
            return None
        allocator = self.allocator
        grown = allocator.alloc is None
        exports = {"function": self.export, "alloc": allocator.alloc, "free": allocator.free}
        shape = MemoryShape(
            tuple(BYTES if name in BUFFERS else cell_name(TYPES[name]) for name in self.args),
            (BYTES,) if self.style else tuple(cell_name(kind) for kind in self.numbers),
            argument="nul" if self.nul else "pair",
            style=self.style,
            allocation="grown" if grown else "guest" if self.guest_owns else "kept",
            align=8 if grown else 1,
            alloc=allocator.alloc_arity,
            free=allocator.free_arity,
            frees=self.style is not None and self.free_result and not self.post,
            post=self.post is not None,
            flagged=allocator.alloc == WBINDGEN[0] and self.style == "out",
        )
        if shape.post:
            exports["post"] = self.post
        return Bulk(
            self.what,
            self.got,
            shape,
            {name: export for name, export in exports.items() if export is not None},
            tuple(self._wire(name) or TYPES[name] for name in self.args),
            self.numbers,
            self._wire(self.returns[0]) if self.style else None,
            self._decode,
            self.returns[0] if self.style else "",
        )

    def _wire(self, name: str) -> Wire | None:
        if name not in BUFFERS:
            return None
        return Text(nul=self.nul) if name == "str" else Blob(nul=self.nul)

    def _decode(self, data: bytes, tally: Tally) -> Value:
        return lift_buffer(self.got, self.returns[0], data, tally)

    def _lower(self, values: tuple[object, ...], views: ExitStack) -> list[object]:
        """Return numbers, and bytes or views of bytes for buffers; only text is copied."""
        return [
            self._lower_one(number, name, value, views)
            for number, (name, value) in enumerate(zip(self.args, values, strict=True), start=1)
        ]

    def _lower_one(self, number: int, name: str, value: object, views: ExitStack) -> Value:
        if name in BUFFERS:
            return self._buffer(number, name, value, views)
        return lower_number(self, number, TYPES[name], value)

    def _buffer(self, number: int, name: str, value: Value, views: ExitStack) -> bytes | memoryview:
        data = lower_buffer(self.place(number), name, value, views)
        if self.nul and b"\0" in (data if isinstance(data, bytes) else bytes(data)):
            raise ValueError(f"{self.place(number)}: {shown(value)} has a zero in it")
        return data

    def _rooms(self, guest: Guest, lowered: list[object]) -> Generator[Invoke, Value, list[int]]:
        """Return addresses for the result's area, if there is one, and for each buffer."""
        sizes = [len(one) + self.nul for one in lowered if isinstance(one, (bytes, memoryview))]
        areas = [AREA_SIZE] if self.style == "out" else []
        if not areas and not sizes:
            return []
        if self.allocator.alloc is None:
            # One piece of grown memory, each part at a multiple of eight.
            offsets = [0]
            for size in (*areas, *sizes):
                offsets.append(offsets[-1] + -(-size // 8) * 8)
            base = yield from self.allocator.allocate(guest, offsets[-1])
            return [base + offset for offset in offsets[:-1]]
        rooms = []
        for size in areas:
            rooms.append((yield from self._kept(guest, "area", size)))
        for number, size in enumerate(sizes):
            if self.guest_owns:
                rooms.append((yield from self.allocator.allocate(guest, size)))
            else:
                rooms.append((yield from self._kept(guest, number, size)))
        return rooms

    def _kept(self, guest: Guest, name: int | str, size: int) -> Generator[Invoke, Value, int]:
        """Return memory that is allocated once and reused; reallocate it if it is too small."""
        kept: dict[int | str, tuple[int, int]] = guest.state.setdefault(KEPT, {})
        at, capacity = kept.get(name, (0, 0))
        if capacity < max(size, 1):
            if at:
                del kept[name]
                yield from self.allocator.release(at, capacity)
            capacity = max(size, 1)
            at = yield from self.allocator.allocate(guest, capacity)
            kept[name] = at, capacity
        return at

    def _write(self, memory: Memory, at: int, data: bytes | memoryview) -> None:
        memory.write(at, data)
        if self.nul:
            memory.write(at + len(data), b"\0")

    def _signed(self, wasm: list[Value]) -> tuple[object, ...]:
        return tuple(
            signed(value) if kind == "i32" else value
            for kind, value in zip(self.signature.params, wasm, strict=True)
        )

    def _numbers(self, result: Value) -> Value:
        if not self.returns:
            return None
        if len(self.returns) == 1:
            return lift_number(self.got, TYPES[self.returns[0]], result)
        return tuple(
            lift_number(self.got, TYPES[name], value)
            for name, value in zip(self.returns, result, strict=True)
        )

    def _find(self, memory: Memory, result: Value, area: int) -> tuple[int, int]:
        """Return address and size of the guest's result."""
        if self.style in ("packed", "packed_low"):
            high, low = result >> 32 & 0xFFFFFFFF, result & 0xFFFFFFFF
            return (high, low) if self.style == "packed" else (low, high)
        if self.style == "pair":
            return result[0] & 0xFFFFFFFF, result[1] & 0xFFFFFFFF
        if self.style == "nul":
            at = result & 0xFFFFFFFF
            check_address(f"{self.got} bytes at", at)
            return at, self._length(memory, at)
        at = area if self.style == "out" else result & 0xFFFFFFFF
        raw = read(f"{self.got} its result's place in", memory, at, 8)
        if self.allocator.alloc == WBINDGEN[0] and self.style == "out":
            failed = int.from_bytes(memory.read(at + 12, 4), "little")
            if failed:
                raise AbiError(f"{self.got} an error instead of a {self.returns[0]}")
        return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")

    def _length(self, memory: Memory, at: int) -> int:
        end = at
        while end < memory.size:
            piece = memory.read(end, min(SEARCHED_AT_ONCE, memory.size - end))
            found = piece.find(0)
            if found >= 0:
                return end - at + found
            end += len(piece)
        raise AbiError(f"{self.got} the address {at}, after which there is no zero in its memory")
