"""ScyllaDB's ABI: runs modules that were built as UDFs for ScyllaDB, with CQL's type names.

Without nulls, types with a wasm equivalent cross as that: boolean, tinyint, smallint and int as
i32, bigint as i64, float and double. All other types, and every type with `called_on_null`, cross
as one i64: the size of the value in CQL's encoding << 32 | its address; size -1 is null.

The module exports a global `_scylla_abi`, the address of a little-endian u32: its version.

1. Arguments lie in pages that the host grows. ScyllaDB grows some for every argument; here they are
   reused by each call. The host frees nothing.
2. Arguments lie in memory from the exported `_scylla_malloc`, and are freed by the guest. A result
   is owned by the host, which calls `_scylla_free`.

See ScyllaDB's docs/dev/wasm.md. The version is read when a value first has to cross through memory:
modules that need none may have no such global, or one that points anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence

from attrs import field, frozen

from .._core.errors import AbiError, ExportError, SignatureError
from .._core.integers import signed
from .._core.keys import normalise_type
from .._core.tally import Tally
from .._core.wasm.admission import signature
from .._core.wasm.memory_layout import BYTES, MemoryShape
from .._core.wasm.reader import FuncType
from .._public import public
from .base import Binding, Convert, Exports, Guest, Invoke, Steps, Value
from .batching import Bulk
from .cql.framing import Codec, Data, MalformedError, count_one
from .cql.scalars import scalars
from .cql.types import parse_type
from .gil import LONG, is_large
from .guest_memory import check_allocated, grown_memory, memory_of, read_anywhere, read_result
from .marks import SCYLLA_VERSION
from .packing import Blob, Fixed, Single, Text, Wire
from .plain import (
    PlainAbi,
    PlainType,
    cell_name,
    find_misfit,
    lift_number,
    lower_number,
    reworded,
    shown,
)

MALLOC, FREE = "_scylla_malloc", "_scylla_free"
VERSION = "version of the Scylla ABI"
# Alignment of arguments in version 1: enough for any type of C or Rust.
ALIGNMENT = 16
MAX_SIZE = 2**31 - 1

# {CQL type that crosses as a number: the number}; results are cut as in ScyllaDB.
NATIVE = {
    kind.name: kind
    for kind in (
        PlainType("boolean", "i32", 0, 1, truth=True, cut=True),
        PlainType("tinyint", "i32", -(2**7), 2**7 - 1, cut=True),
        PlainType("smallint", "i32", -(2**15), 2**15 - 1, cut=True),
        PlainType("int", "i32", -(2**31), 2**31 - 1, native=True),
        PlainType("bigint", "i64", -(2**63), 2**63 - 1, native=True),
        PlainType("float", "f32", native=True),
        PlainType("double", "f64", native=True),
    )
}


def _user_types(given: object) -> dict[str, dict[str, str]]:
    if not isinstance(given, Mapping):
        raise _no_user_types(given)
    types: dict[str, dict[str, str]] = {}
    for name, fields in given.items():
        if not (
            isinstance(name, str)
            and isinstance(fields, Mapping)
            and all(isinstance(word, str) for item in fields.items() for word in item)
        ):
            raise _no_user_types({name: fields})
        types[normalise_type(name)] = {one: normalise_type(kind) for one, kind in fields.items()}
    return types


def _no_user_types(given: object) -> TypeError:
    example = '{"address": {"street": "text", "zip": "int"}}'
    return TypeError(
        f"ScyllaAbi: user_types must be a mapping such as {example}, got {shown(given)}"
    )


@public
@frozen
class ScyllaAbi:
    """ScyllaDB's ABI, as an `Abi`; ``abi="scylla"`` is one without user types.

    .. code-block::

        ScyllaAbi(user_types={"address": {"street": "text", "zip": "int"}})

    Raises:
        TypeError: `user_types` is not such a mapping.
    """

    user_types: Mapping[str, Mapping[str, str]] = field(factory=dict, converter=_user_types)
    """{name of a user type: {field: CQL type}}. A field may be of another user type."""

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
            args: CQL types of the arguments.
            returns: CQL types of the results; one.
            exports: the exports of the module.
            called_on_null: whether None may be an argument.

        Raises:
            SignatureError: a type is unknown, or there is not exactly one result.
            ExportError: the module does not export a memory or the global `_scylla_abi`, and the
                types need them.
            ImportError: the types need the driver package, which is not installed.
        """
        if len(returns) != 1:
            raise SignatureError(
                f"{function}: a CQL function returns one value, not {len(returns)}"
            )
        if not called_on_null and all(name in NATIVE for name in (*args, *returns)):
            return PlainAbi(function, args, returns, types=NATIVE)
        natives = {} if called_on_null else NATIVE
        kinds = [natives.get(name) or self._codec(function, name) for name in args]
        result = natives.get(returns[0]) or self._codec(function, returns[0])
        if not exports.memories:
            raise ExportError(f"{function}: the module exports no memory for values to cross")
        if exports.globals.get(SCYLLA_VERSION) != "i32":
            raise ExportError(
                f"{function}: the module has to export a global {SCYLLA_VERSION!r} of type i32, "
                "which says where its version of the ABI is"
            )
        return ScyllaBinding(
            function, export, kinds, result, exports.functions, called_on_null=called_on_null
        )

    def _codec(self, function: str, name: str) -> Codec:
        return parse_type(function, name, lambda word: scalars().get(word), self.user_types)


class ScyllaBinding:
    """Values of one signature, some of which cross through memory: a `Binding`."""

    lower: Callable[[tuple[object, ...]], Sequence[object]] | None = None
    lift: Callable[[Value], Value] | None = None
    counts_results = True

    def __init__(
        self,
        what: str,
        export: str,
        args: Sequence[PlainType | Codec],
        result: PlainType | Codec,
        functions: Mapping[str, FuncType],
        *,
        called_on_null: bool = False,
    ) -> None:
        self.what = what
        self.got = f"{what} returned"
        self.numbers = (result,) if isinstance(result, PlainType) else ()
        self.arity = len(args)
        self.signature = FuncType(tuple(map(_wasm, args)), (_wasm(result),))
        self._export = export
        self._args = tuple(args)
        self._result = result
        self._functions = functions
        self._called_on_null = called_on_null
        self._compound = any(not isinstance(one, PlainType) and _wire(one).heavy for one in args)

    def place(self, number: int) -> str:
        """Return the name of an argument for messages."""
        return f"argument {number} of {self.what}"

    def explain(self, values: tuple[object, ...]) -> Exception:
        return self.misfit(values) or TypeError(f"{self.what}: {shown(values)} can't be passed")

    def misfit(self, values: tuple[object, ...]) -> Exception | None:
        """Return the error for arguments that do not fit; None if they do."""
        names = [kind.name for kind in self._args]
        return find_misfit(self.what, names, self._args, values, self._encode_one)

    def steps(self, guest: Guest, values: tuple[object, ...]) -> Steps:
        """Perform one call; see `Binding.steps`."""
        encoded: list[Value]
        if self._compound and is_large(values):
            encoded = yield Convert(self._encode, (values,))
        else:
            encoded = self._encode(values)
        version = self._version(guest)
        if version == 1:
            lowered = self._place_grown(guest, encoded)
        else:
            lowered = yield from self._place_allocated(guest, encoded)
        del encoded  # a caller's buffer is not held while the guest runs
        result = yield Invoke(self._export, lowered)
        if isinstance(self._result, PlainType):
            return lift_number(self.got, self._result, result)
        size, at = result >> 32, result & 0xFFFFFFFF
        if size == -1:
            return None
        data, refused = read_result(self.got, memory_of(guest), at, size)
        if version == 2 and at:
            yield Invoke(FREE, (signed(at),))
        if refused is not None:
            raise refused
        if len(data) > LONG and _wire(self._result).heavy:
            return (yield Convert(self._decode, (data, guest.tally)))
        return self._decode(data, guest.tally)

    def bulk(self, guest: Guest) -> Bulk:
        """Return how a driver makes the calls; see `BulkBinding`."""
        grown = self._version(guest) == 1
        result = self._result
        shape = MemoryShape(
            tuple(map(_cell_or_bytes, self._args)),
            (_cell_or_bytes(result, cut=True),),
            argument="packed",
            style=None if self.numbers else "cql",
            allocation="grown" if grown else "guest",
            align=ALIGNMENT if grown else 1,
            alloc=0 if grown else 1,
            free=0 if grown else 1,
            frees=not grown and not self.numbers,
            passes_nulls=self._called_on_null,
            heavy=not isinstance(result, PlainType) and _wire(result).heavy,
        )
        return Bulk(
            self.what,
            self.got,
            shape,
            {"function": self._export, **({} if grown else {"alloc": MALLOC, "free": FREE})},
            tuple(one if isinstance(one, PlainType) else _wire(one) for one in self._args),
            self.numbers,
            None if isinstance(result, PlainType) else _wire(result),
            self._decode,
            result.name,
        )

    def _decode(self, data: bytes, tally: Tally) -> Value:
        assert not isinstance(self._result, PlainType)
        try:
            return _decode_all(self._result, data, tally)
        except MalformedError as error:
            problem = str(error)
        raise AbiError(f"{self.got} no {self._result.name}: {problem}")

    def _encode(self, values: tuple[object, ...]) -> list[object]:
        """Return numbers as they are, other values as bytes or None."""
        return [
            self._encode_one(number, kind, value)
            for number, (kind, value) in enumerate(zip(self._args, values, strict=True), start=1)
        ]

    def _encode_one(self, number: int, kind: PlainType | Codec, value: object) -> Value:
        if isinstance(kind, PlainType):
            return lower_number(self, number, kind, value)
        return None if value is None else self._bytes(number, kind, value)

    def _bytes(self, number: int, codec: Codec, value: object) -> Data:
        try:
            data = codec.encode(value)
            if len(data) > MAX_SIZE:
                raise OverflowError(f"{len(data)} bytes are more than {codec.name} can have")
        except (TypeError, ValueError, OverflowError) as error:
            text = f"{self.place(number)}: {error}"
            if not str(error).startswith(codec.name):
                text = f"{self.place(number)}, of type {codec.name}: {error}"
            raise reworded(error, text) from None
        except Exception as error:  # a value's own method may raise anything
            raise TypeError(
                f"{self.place(number)}, of type {codec.name}: {shown(value)} raised {shown(error)}"
            ) from None
        return data

    def _version(self, guest: Guest) -> int:
        """Return the version of the guest's ABI, read once for each instance."""
        version: int | None = guest.state.get(VERSION)
        if version is None:
            at = int(guest.global_value(SCYLLA_VERSION)) & 0xFFFFFFFF
            got = f"{self.what}: its {SCYLLA_VERSION} says that its version is"
            version = int.from_bytes(read_anywhere(got, memory_of(guest), at, 4), "little")
            if version not in (1, 2):
                raise AbiError(f"{got} {version} (at address {at}); versions are 1 and 2")
            if version == 2:
                self._check_allocator()
            guest.state[VERSION] = version
        return version

    def _check_allocator(self) -> None:
        for name, results in ((MALLOC, ("i32",)), (FREE, ())):
            actual = self._functions.get(name)
            if actual != FuncType(("i32",), results):
                found = "missing" if actual is None else signature(actual)
                raise AbiError(
                    f"{self.what}: a module of version 2 exports {MALLOC}, [i32] -> [i32], and "
                    f"{FREE}, [i32] -> []; its {name} is {found}"
                )

    def _place_grown(self, guest: Guest, encoded: list[Value]) -> tuple[object, ...]:
        sizes = [
            -(-max(len(data), 1) // ALIGNMENT) * ALIGNMENT if isinstance(data, Data) else 0
            for data in encoded
        ]
        at = grown_memory(guest, sum(sizes)) if any(sizes) else 0
        memory = memory_of(guest)
        lowered = []
        for kind, data, size in zip(self._args, encoded, sizes, strict=True):
            if not isinstance(kind, PlainType):
                if data is not None:
                    memory.write(at, data)
                data = _pointed(data, at)
            lowered.append(data)
            at += size
        return tuple(lowered)

    def _place_allocated(
        self, guest: Guest, encoded: list[Value]
    ) -> Generator[Invoke, Value, tuple[object, ...]]:
        memory = memory_of(guest)
        lowered = []
        for kind, data in zip(self._args, encoded, strict=True):
            if isinstance(kind, PlainType):
                lowered.append(data)
                continue
            at = 0
            if data is not None:
                size = max(len(data), 1)  # 0 bytes might return the address 0, which means failure
                at = (yield Invoke(MALLOC, (signed(size),))) & 0xFFFFFFFF
                check_allocated(self.what, MALLOC, memory, at, size)
                memory.write(at, data)
            lowered.append(_pointed(data, at))
        return tuple(lowered)


# {CQL type: its wire}; other types are converted one value after the other.
_WIRES: dict[str, Wire] = {
    "text": Text(),
    "varchar": Text(),
    "ascii": Text("ascii"),
    "blob": Blob(),
    "boolean": Fixed("?", 1),
    "tinyint": Fixed("b", 1),
    "smallint": Fixed("h", 2),
    "int": Fixed("i", 4),
    "bigint": Fixed("q", 8),
    "counter": Fixed("q", 8),
    "float": Fixed("f", 4),
    "double": Fixed("d", 8),
}


def _wire(codec: Codec) -> Wire:
    return _WIRES.get(codec.name) or Single(codec.encode, functools.partial(_decode_all, codec))


def _decode_all(codec: Codec, data: bytes, tally: Tally) -> Value:
    value = codec.decode(data, 0, len(data), tally)
    if codec.single:
        count_one(value, codec, tally)
    return value


def _cell_or_bytes(kind: PlainType | Codec, *, cut: bool = False) -> str:
    if isinstance(kind, PlainType):
        return cell_name(kind, cut=cut)
    return BYTES


def _wasm(kind: PlainType | Codec) -> str:
    return kind.wasm if isinstance(kind, PlainType) else "i64"


def _pointed(data: Data | None, at: int) -> int:
    if data is None:
        return -1 << 32
    return len(data) << 32 | at
