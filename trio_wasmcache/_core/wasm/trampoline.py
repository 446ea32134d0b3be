"""Writes trampolines: small modules through which host functions call the guest that called them.

The guest is suspended while a host function runs, and a suspended guest can't be called from
outside. So it imports its reentrant host functions from a trampoline in the same store, which calls
the host in a loop, and in between the exports that the host asks for:

1. Each function of the trampoline passes its arguments to the host function behind it. The host
   answers with the results and one more i32. If that is `DONE`, the guest gets the results.
2. Otherwise it is the number of an *arm*, one for each signature of the guest's exports. The arm
   calls `arguments`, by which the host gives the values and puts the export into the table, at the
   arm's number; then the export; then `returned` with what the export returned. The host answers
   that as in 1.
3. A trampoline keeps nothing from one call to the next. So it has no memory and no globals, any
   number of its functions can be suspended at once, and there is nothing to reset.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from .arms import (
    DONE as DONE,
    TABLE as TABLE,
    TRAMPOLINE as TRAMPOLINE,
    Arm as Arm,
    Returned as Returned,
    widened as widened,
)
from .editor import encode_module, name_bytes, section, sleb, uleb, vector
from .graph import FromHost, FromPart, ImportName, Layer, Part, Source
from .reader import read_module
from .types import VALUE_LIMIT, Export, FuncType, Import, Limits, ModuleInfo, TableType

ARMS_LIMIT: Final = 256
RETURNS_LIMIT: Final = 32
VALUES_LIMIT: Final = 8192
"""Limits of the arms of one trampoline: their number, their different results, and their parameters
and results together. They bound what a hostile module costs; real ones have some dozens of arms."""

_BLOCK, _LOOP, _END, _BR, _BR_IF, _BR_TABLE = 0x02, 0x03, 0x0B, 0x0C, 0x0D, 0x0E
_RETURN, _CALL, _CALL_INDIRECT, _GET, _TEE = 0x0F, 0x10, 0x11, 0x20, 0x22
_I32_CONST, _EQZ, _VOID, _UNREACHABLE, _I32 = 0x41, 0x45, 0x40, 0x00, 0x7F


@attrs.frozen
class Trampoline:
    """A trampoline, and what the host must provide for it."""

    wasm: bytes
    functions: tuple[FuncType, ...]
    """Types of the reentrant functions. The import ``("host", number)`` of each has one more i32
    among its results, see `widened`; the guest gets the export of that place in `names`."""
    names: tuple[str, ...]
    """Names of the exports that are these functions."""
    arms: tuple[Arm, ...]
    """Imports ``("arguments", number)``, one for each signature of exports that it can call."""
    returned: tuple[Returned, ...]
    """Imports ``("returned", number)``."""


def arms_of(exports: Sequence[FuncType]) -> tuple[FuncType, ...]:
    """Return the signatures that get an arm, within the limits; the first exports come first."""
    arms: dict[FuncType, None] = {}
    returns: set[tuple[str, ...]] = set()
    values = 0
    for export in exports:
        if export in arms or export.uncrossable() is not None or len(arms) == ARMS_LIMIT:
            continue
        size = len(export.params) + len(export.results)
        if export.results not in returns:
            if len(returns) == RETURNS_LIMIT:
                continue
            size += len(export.results)
        if values + size > VALUES_LIMIT:
            continue
        values += size
        arms[export] = None
        returns.add(export.results)
    return tuple(arms)


def trampoline(
    functions: Sequence[FuncType], exports: Mapping[str, FuncType], names: Sequence[str] = ()
) -> Trampoline:
    """Return the trampoline for a guest.

    Args:
        functions: types of its imports that are reentrant host functions.
        exports: {name: type} of the functions that it exports.
        names: by which the trampoline exports the functions; their numbers if there are none.

    Raises:
        ValueError: a function has so many results that none can be added.
    """
    if any(len(function.results) >= VALUE_LIMIT for function in functions):
        raise ValueError(f"a reentrant host function has fewer than {VALUE_LIMIT} results")
    names = tuple(names) or tuple(map(str, range(len(functions))))
    arms = tuple(Arm(number, one) for number, one in enumerate(arms_of(list(exports.values())), 1))
    # One way back for all functions that have the same results.
    wanted = tuple(dict.fromkeys(function.results for function in functions))
    given = tuple(dict.fromkeys(arm.export.results for arm in arms))
    returned = tuple(Returned(values, results) for results in wanted for values in given)
    signatures = {
        "host": [widened(function) for function in functions],
        "arguments": [arm.type for arm in arms],
        "returned": [one.type for one in returned],
    }
    imports = [
        Import(module, str(number), "func", signature)
        for module, several in signatures.items()
        for number, signature in enumerate(several)
    ]
    ways = [FuncType(("i32",), results) for results in wanted]
    exported = [arm.export for arm in arms]
    needed = [*(one.type for one in imports), *exported, *functions, *ways]
    types = list(dict.fromkeys(one for one in needed if isinstance(one, FuncType)))
    places = {signature: number for number, signature in enumerate(types)}
    first_arm, first_returned = len(functions), len(functions) + len(arms)
    first_way = len(imports)
    code = []
    for number in range(len(wanted)):
        calls = [
            (
                first_arm + arm.number - 1,
                places[arm.export],
                first_returned + number * len(given) + given.index(arm.export.results),
            )
            for arm in arms
        ]
        code.append(_way(calls))
    for number, function in enumerate(functions):
        code.append(_function(number, function, first_way + wanted.index(function.results)))
    first_export = first_way + len(ways)
    wasm = encode_module(
        types=types,
        imports=imports,
        functions=[places[one] for one in (*ways, *functions)],
        tables=[TableType("funcref", Limits(len(arms) + 1, len(arms) + 1))],
        exports=[
            *(Export(name, "func", at) for at, name in enumerate(names, first_export)),
            Export(TABLE, "table", 0),
        ],
        code=code,
        # For backtraces that wasmtime shows by itself, such as those of a debugger.
        custom=[
            (
                "name",
                section(
                    1,
                    vector(
                        [
                            uleb(number) + name_bytes("trio_wasmcache trampoline")
                            for number in range(first_way, first_export + len(functions))
                        ]
                    ),
                ),
            )
        ],
    )
    return Trampoline(wasm, tuple(functions), names, arms, returned)


def trampoline_layer(
    info: ModuleInfo, reentrant: Mapping[ImportName, tuple[int, FuncType]], first: int
) -> Layer:
    """Return the layer of a module by which its reentrant host functions can call it.

    The host functions of the layer are `Arm` and `Returned`.

    Args:
        info: the module.
        reentrant: {module and name of an import: index and type of the host function}.
        first: index of the first host function of the layer itself.
    """
    exports = {one.name: info.functions[one.index] for one in info.exports if one.kind == "func"}
    functions = [function for _, function in reentrant.values()]
    made = trampoline(functions, exports, _export_names(reentrant))
    helpers = {"arguments": made.arms, "returned": made.returned}
    indexes = itertools.count(first)
    wiring: dict[ImportName, Source] = {
        ("host", str(number)): FromHost(index)
        for number, (index, _) in enumerate(reentrant.values())
    }
    wiring |= {
        (module, str(number)): FromHost(next(indexes))
        for module, several in helpers.items()
        for number in range(len(several))
    }
    part = Part(
        TRAMPOLINE,
        made.wasm,
        read_module(made.wasm),
        wiring,
        relays={name: at for name, (at, _) in zip(made.names, reentrant.values(), strict=True)},
    )
    return Layer(
        parts=(part,),
        supplies={
            name: FromPart(TRAMPOLINE, export)
            for name, export in zip(reentrant, made.names, strict=True)
        },
        hosts=(*made.arms, *made.returned),
    )


def _export_names(reentrant: Iterable[ImportName]) -> list[str]:
    """Return how to export what a guest imports: by the same names, as far as they differ.

    So all that it imports from one module can be linked at once.
    """
    names: dict[str, None] = {}
    for number, (_, name) in enumerate(reentrant):
        taken = name in names or name.startswith("\x00")
        names[f"\x00{number}" if taken else name] = None
    return list(names)


def _function(number: int, function: FuncType, way: int) -> bytes:
    """Return the body of a function that the guest calls.

    Args:
        number: of the import that is called first.
        function: its type.
        way: index of the function that goes on if the host asks for an export.
    """
    arm = uleb(len(function.params))
    code = vector([uleb(1) + bytes([_I32])])
    code += b"".join(bytes([_GET]) + uleb(param) for param in range(len(function.params)))
    code += bytes([_CALL]) + uleb(number) + bytes([_TEE]) + arm + bytes([_EQZ, _BR_IF, 0])
    return code + bytes([_GET]) + arm + bytes([_CALL]) + uleb(way) + bytes([_RETURN, _END])


def _way(calls: Sequence[tuple[int, int, int]]) -> bytes:
    """Return the body of a function that calls exports until the host has the results.

    Its parameter is the number of the first arm.

    Args:
        calls: (import that gives the arguments, type, import that takes the results) of each arm.
    """
    count = len(calls)
    code = bytearray([0, _LOOP, _VOID]) + bytes([_BLOCK, _VOID]) * (count + 1)
    targets = [count, *range(count)]  # 0 is no arm
    code += bytes([_GET, 0, _BR_TABLE]) + vector([uleb(at) for at in targets]) + uleb(count)
    for arm, (arguments, signature, returned) in enumerate(calls, 1):
        code += bytes([_END, _CALL]) + uleb(arguments) + bytes([_I32_CONST]) + sleb(arm)
        code += bytes([_CALL_INDIRECT]) + uleb(signature) + uleb(0) + bytes([_CALL])
        code += uleb(returned) + bytes([_TEE, 0, _EQZ])
        # Enclosed by the blocks of the arms that follow, the outermost one, and the loop.
        code += bytes([_BR_IF]) + uleb(count - arm + 2) + bytes([_BR]) + uleb(count - arm + 1)
    # The host never answers with another number.
    return bytes(code) + bytes([_END, _UNREACHABLE, _END, _UNREACHABLE, _END])
