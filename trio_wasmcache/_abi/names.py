"""Names of ABIs, and of types by the Python type of their values, as type checkers see them.

The overloads of `register` tell a function's result by them. The ABIs' own tables say what a name
does; a test holds the two together. Types whose values have classes of the Python driver, and
collections, are not here: for a checker their values are `Any`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .base import Abi

AbiName: TypeAlias = Literal["plain", "scylla", "buffer", "assemblyscript", "extism"]
AnyAbi: TypeAlias = AbiName | Abi
# `names.KnownAbi` in an annotation loads the ABIs once somebody evaluates it, not before.
if TYPE_CHECKING:
    from .assemblyscript import AssemblyScriptAbi
    from .buffer import BufferAbi
    from .extism import ExtismAbi
    from .scylla import ScyllaAbi

    KnownAbi: TypeAlias = AbiName | BufferAbi | ScyllaAbi | AssemblyScriptAbi | ExtismAbi
    """An ABI of this library, whose types are those below."""
    TextAbi: TypeAlias = (
        Literal["plain", "scylla", "buffer", "extism"] | BufferAbi | ScyllaAbi | ExtismAbi
    )
    """One of them whose `str` and `bytes` are never None."""
    ScriptAbi: TypeAlias = Literal["assemblyscript"] | AssemblyScriptAbi
    """One whose `str` and `bytes` may be None."""
else:

    def __getattr__(name: str) -> Any:
        if name not in ("KnownAbi", "TextAbi", "ScriptAbi"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .assemblyscript import AssemblyScriptAbi
        from .buffer import BufferAbi
        from .extism import ExtismAbi
        from .scylla import ScyllaAbi

        texts = BufferAbi | ScyllaAbi | ExtismAbi
        match name:
            case "KnownAbi":
                return AbiName | texts | AssemblyScriptAbi
            case "TextAbi":
                return Literal["plain", "scylla", "buffer", "extism"] | texts
            case _:
                return Literal["assemblyscript"] | AssemblyScriptAbi


# Of the plain and the buffer ABI, whose values are never None.
IntName: TypeAlias = Literal["i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"]
FloatName: TypeAlias = Literal["f32", "f64"]
BoolName: TypeAlias = Literal["bool"]
StrName: TypeAlias = Literal["str"]
BytesName: TypeAlias = Literal["bytes"]

# CQL's that cross as numbers, and so are None only with `called_on_null`.
CqlIntName: TypeAlias = Literal["tinyint", "smallint", "int", "bigint"]
CqlFloatName: TypeAlias = Literal["float", "double"]
CqlBoolName: TypeAlias = Literal["boolean"]

# CQL's that cross through memory, and so may always be None.
CqlLongName: TypeAlias = Literal["varint", "counter"]
CqlStrName: TypeAlias = Literal["text", "varchar", "ascii"]
CqlBytesName: TypeAlias = Literal["blob"]
