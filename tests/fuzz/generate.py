"""Valid modules at random: every section there is, filled with what it may hold."""

from __future__ import annotations

from random import Random

from trio_wasmcache._core.wasm.admission import WASI_TYPES
from trio_wasmcache._core.wasm.editor import encode_module, i32_const, sleb, uleb
from trio_wasmcache._core.wasm.reader import (
    KINDS,
    Export,
    FuncType,
    GlobalType,
    Import,
    Limits,
    TableType,
)

NUMBERS = ("i32", "i64", "f32", "f64")
WASI = "wasi_snapshot_preview1"
# {type: an expression with its end}
CONSTANTS = {
    "i32": i32_const(7),
    "i64": b"\x42" + sleb(-(2**63)) + b"\x0b",
    "f32": b"\x43\0\0\xc0\x7f\x0b",
    "f64": b"\x44" + bytes(8) + b"\x0b",
    "v128": b"\xfd\x0c" + bytes(range(16)) + b"\x0b",
    "funcref": b"\xd0\x70\x0b",
    "externref": b"\xd0\x6f\x0b",
}
# Host functions that call the guest back, in the module "back".
BACK = {
    "one": FuncType(("i64",), ("i64",)),
    "other": FuncType(("i32", "f64"), ("f32",)),
    "nothing": FuncType((), ()),
}
# Addresses, sizes and descriptors for functions that are imported.
WILD = (0, 1, 2, 8, 64, 1024, 65_530, -1, -(2**31), 2**31 - 1)
NAMES = (
    *("run", "memory", "_initialize", "_start", "_scylla_abi", "malloc", "free"),
    *("__new", "__pin", "__unpin", "__rtti_base"),
    *("a\nb", "\x1b[2J", "é🦀"),
)


def generate(random: Random) -> bytes:
    """A module that exports ``run``, with whatever else the dice say."""
    types = [
        FuncType(
            tuple(random.choices(NUMBERS, k=random.randrange(4))),
            tuple(random.choices(NUMBERS, k=random.choice((0, 1, 1, 2)))),
        )
        for _ in range(random.randint(1, 5))
    ]
    types += [FuncType((), ("i32",)), FuncType(("i32",), ())]
    imports = []
    if random.random() < 0.3:
        imports.append(Import(WASI, "sched_yield", "func", FuncType((), ("i32",))))
    if random.random() < 0.2:
        imports.append(Import(WASI, "proc_exit", "func", FuncType(("i32",), ())))
    if random.random() < 0.3:
        for name in random.sample(sorted(WASI_TYPES), k=random.randint(1, 3)):
            if WASI_TYPES[name] not in types:
                types.append(WASI_TYPES[name])
            imports.append(Import(WASI, name, "func", WASI_TYPES[name]))
    if random.random() < 0.4:
        for name in random.sample(sorted(BACK), k=random.randint(1, 3)):
            if BACK[name] not in types:
                types.append(BACK[name])
            imports.append(Import("back", name, "func", BACK[name]))
    functions = [random.randrange(len(types)) for _ in range(random.randint(1, 6))]
    all_types = [types.index(item.type) for item in imports] + functions  # type: ignore[arg-type]
    tables = [
        TableType(random.choice(("funcref", "funcref", "externref")), _limits(random, 50))
        for _ in range(random.randrange(4))
    ]
    memories = [_limits(random, 4) for _ in range(random.randrange(4))]
    globals_ = [
        (GlobalType(kind, random.random() < 0.5), CONSTANTS[kind])
        for kind in random.choices(list(CONSTANTS), k=random.randrange(5))
    ]
    externs = _externs(random, tables, memories, [type for type, _ in globals_])
    taken = {kind: sum(item.kind == kind for item in externs) for kind in KINDS}
    if taken["global"] and not globals_[0][0].mutable:
        # One that is imported may be read by constants.
        type = GlobalType(globals_[0][0].value_type, random.random() < 0.5)
        globals_.append((type, b"\x23\0\x0b"))
    exports = [Export("run", "func", len(imports))]
    for name in random.sample(NAMES[1:], k=random.randrange(len(NAMES))):
        spaces = {"func": all_types, "table": tables, "memory": memories, "global": globals_}
        kind = random.choice([kind for kind, space in spaces.items() if space])
        exports.append(Export(name, kind, random.randrange(len(spaces[kind]))))
    functable = next((n for n, table in enumerate(tables) if table.element == "funcref"), None)
    elements = [
        (
            random.choice((None, functable)),
            random.randrange(60),
            [len(imports)] * random.randrange(5),
        )
        for _ in range(random.randrange(3))
    ]
    data = [
        (random.choice((None, random.randrange(len(memories)))), random.choice((0, 65_530)), b"abc")
        for _ in range(random.randrange(3) if memories else 0)
    ]
    starters = [n for n, kind in enumerate(all_types) if types[kind] == FuncType()]
    return encode_module(
        types=types,
        imports=[*imports, *externs],
        functions=functions,
        tables=tables[taken["table"] :],
        memories=memories[taken["memory"] :],
        globals=globals_[taken["global"] :],
        exports=exports,
        start=random.choice(starters) if starters and random.random() < 0.3 else None,
        elements=elements,
        data=data,
        code=[
            _body(random, types[kind], all_types, types, memories, len(imports))
            for kind in functions
        ],
        custom=[("name", b"\0\2\1\n"), ("x", b"y" * 9)] if random.random() < 0.3 else [],
    )


def _externs(
    random: Random, tables: list[TableType], memories: list[Limits], globals_: list[GlobalType]
) -> list[Import]:
    """Imports of the first memories, tables and globals, in the place of definitions."""
    if random.random() < 0.6:
        return []
    found = []
    for kind, space in (("table", tables), ("memory", memories), ("global", globals_)):
        for number, type in enumerate(space[: random.randrange(len(space) + 1)]):
            name = f"{kind}{number}"
            if isinstance(type, GlobalType):
                if type.value_type == "v128":
                    break  # it can't be given
                name = f"{type.value_type}{number}"
            found.append(Import("env", name, kind, type))
    return found


def _limits(random: Random, most: int) -> Limits:
    minimum = random.randrange(most)
    return Limits(minimum, random.choice((None, minimum, minimum + random.randrange(90_000 // 9))))


def _body(
    random: Random,
    kind: FuncType,
    all_types: list[int],
    types: list[FuncType],
    memories: list[Limits],
    imported: int,
) -> bytes:
    """Statements that leave nothing, then the results."""
    code = bytearray(random.choice((b"\0", b"\1\5\x7e", b"\2\1\x7f\1\x7c")))
    for _ in range(random.randrange(5)):
        match random.randrange(7):
            case 0:
                code += b"\x03\x40\x0b"  # an empty loop
            case 1 if random.random() < 0.3:
                code += b"\x03\x40\x0c\0\x0b"  # an endless one
            case 2 if random.random() < 0.3:
                code += b"\0"  # unreachable
            case 3:
                few = imported if imported and random.random() < 0.5 else len(all_types)
                callee = random.randrange(few)
                callee_type = types[all_types[callee]]
                for param in callee_type.params:
                    wild = param == "i32" and callee < imported and random.random() < 0.5
                    constant = i32_const(random.choice(WILD)) if wild else CONSTANTS[param]
                    code += constant[:-1]
                code += b"\x10" + uleb(callee) + b"\x1a" * len(callee_type.results)
            case 4 if memories:
                code += b"\x41" + sleb(random.choice((0, 65_530, -1))) + b"\x28\0\0\x1a"  # a load
            case 5 if memories:
                pages, memory = random.choice((1, 5, 14)), random.randrange(len(memories))
                code += b"\x41" + sleb(pages) + b"\x40" + uleb(memory) + b"\x1a"  # memory.grow
            case _:
                code += b"\x01"
    for result in kind.results:
        at = kind.params.index(result) if result in kind.params else None
        code += CONSTANTS[result][:-1] if at is None else b"\x20" + uleb(at)
    return bytes(code + b"\x0b")
