"""What to write in place of a type's name that an ABI does not know.

People bring the names of C, Rust, Java, NumPy, Arrow and CQL; those that mean one thing are
translated.
"""

from __future__ import annotations

# {name in other places, normalised: types of the plain ABI that it may mean}
_NUMBERS = {
    alias: tuple(types.split())
    for types, aliases in (
        ("i8", "int8 s8 sbyte schar signedchar tinyint"),
        ("u8", "uint8 byte ubyte uchar unsignedchar"),
        ("i16", "int16 s16 short smallint"),
        ("u16", "uint16 ushort unsignedshort"),
        ("i32", "int32 s32 isize ssize intptr ptrdiff"),
        ("u32", "uint32 usize size ptr pointer uintptr"),
        ("i64", "int64 s64 longlong bigint counter"),
        ("u64", "uint64 ulonglong unsignedlonglong"),
        ("f32", "float32 single"),
        ("f64", "float64 double"),
        ("bool", "boolean"),
        ("i64 i32", "int integer long"),
        ("u64 u32", "uint unsigned unsignedint ulong unsignedlong"),
        ("f64 f32", "float real number"),
    )
    for alias in aliases.split()
}
_PLAIN = frozenset(name for names in _NUMBERS.values() for name in names)
_CQL = {
    "i8": "tinyint",
    "i16": "smallint",
    "i32": "int",
    "i64": "bigint",
    "f32": "float",
    "f64": "double",
    "bool": "boolean",
}
_TEXT = frozenset("str string text varchar ascii utf8 char* constchar* &str".split())
_BYTES = frozenset(
    "bytes blob binary buffer bytearray memoryview list<u8> vec<u8> &[u8] [u8]".split()
)
_CQL_ONLY = frozenset("uuid timeuuid inet date time timestamp duration varint decimal".split())
_NOTHING = frozenset("void none null nil unit ()".split())
_OTHER_ABIS = "str and bytes take abi='buffer', CQL types abi='scylla'"
_ADDRESSES = (
    "only numbers cross to a host function: take the address and the length as i32, and read the "
    "bytes by current_lease().memory"
)
_NO_PARAMS = "a host function without arguments has params=(), one without a result results=()"
_NO_TYPE = "a function without arguments has args=(), one without a result returns=None"


def _plain_word(name: str) -> str:
    """Return a normalised name without what others write around it: ``np.int64``, ``int64_t``."""
    word = name.removesuffix("()").rsplit(".", 1)[-1]
    return (word.removesuffix("_t") or word).removesuffix("_") or word


def _meant(types: tuple[str, ...] | list[str]) -> str:
    return f"did you mean {' or '.join(types)}?"


def suggest(name: str, *, buffers: bool = False, host: bool = False) -> str | None:
    """Return what to write for a name that the plain ABI does not know, or None.

    Args:
        name: the name, normalised.
        buffers: whether it is the buffer ABI, which has ``str`` and ``bytes``, too.
        host: whether it is a type of a host function.
    """
    word = _plain_word(name)
    if buffers and (word in _TEXT or word in _BYTES):
        return _meant(["str" if word in _TEXT else "bytes"])
    if word in _TEXT or word in _BYTES or word in _CQL_ONLY or "<" in name:
        if host:
            return _ADDRESSES
        return "CQL types take abi='scylla'" if buffers else _OTHER_ABIS
    if word in _NUMBERS:
        return _meant(_NUMBERS[word])
    if word in _PLAIN:
        return _meant([word])
    if word in _NOTHING or name in _NOTHING:
        return _NO_PARAMS if host else _NO_TYPE
    return None


def suggest_cql(name: str) -> str | None:
    """Return what to write for a name that CQL does not know, or None."""
    word = _plain_word(name)
    if word in _TEXT:
        return _meant(["text"])
    if word in _BYTES:
        return _meant(["blob"])
    if word in _NOTHING or name in _NOTHING:
        return _NO_TYPE
    if word in ("list", "set", "map", "tuple", "frozen"):
        return f"write {word}<...>, with the types of what is in it"
    types = _NUMBERS.get(word, (word,))
    known = [_CQL[one] for one in types if one in _CQL]
    if known:
        return _meant(known)
    if types[0] in ("u8", "u16", "u32", "u64"):
        return "CQL has no unsigned numbers"
    return None
