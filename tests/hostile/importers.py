"""Guests that import memories, tables and globals, and are given them: these become their own."""

from __future__ import annotations

from trio_wasmcache import (
    HostGlobal,
    HostMemory,
    HostTable,
    InstanceCache,
    InvalidModuleError,
    LinkError,
    LoadError,
    ModuleTooLargeError,
)
from trio_wasmcache._core.wasm.editor import section, uleb
from trio_wasmcache._core.wasm.reader import GlobalType, Import, Limits, TableType

from .bombs import grown, module
from .guest import Fails, Gives, Guest, Imports, Refused, function

MEMORY = '(import "env" "memory" (memory %s))'
READS_ONE = b"\x23\0\x0b"  # global.get 0; end


def _gives(cache: InstanceCache, name: str) -> Imports:
    return {
        "env": {
            "memory": HostMemory(),
            "table": HostTable(),
            "at": HostGlobal("u32", 2**32 - 1),
            **{f"m{n}": HostMemory() for n in range(200)},
            **{f"t{n}": HostTable() for n in range(200)},
            **{f"g{n}": HostGlobal("i64", -(2**63)) for n in range(9000)},
        }
    }


def imports_globals(count: int, own: int) -> bytes:
    """A module that imports as many globals, and has as many that copy the first."""
    return module(
        imports=[Import("env", f"g{n}", "global", GlobalType("i64", False)) for n in range(count)],
        globals=[(GlobalType("i64", False), READS_ONE)] * own,
    )


GUESTS = [
    Guest(
        "an imported memory that grows without end",
        "the limit of memory, past which the module's own can't grow either",
        grown("(memory.size 0)", "(memory.grow 0 (i32.const 1))").replace(
            "(memory 1) (table 1 funcref)", MEMORY % 1 + "(memory 1)"
        ),
        Gives(32),
        imports=_gives,
    ),
    Guest(
        "an imported table that grows without end",
        "the limit of elements",
        grown("(table.size 0)", "(table.grow 0 (ref.null func) (i32.const 1))").replace(
            "(memory 1) (table 1 funcref)", '(import "env" "table" (table 1 funcref))'
        ),
        Gives(5000),
        imports=_gives,
    ),
    Guest(
        "an imported memory of four GiB",
        "whoever makes what a module declares before looking at limits",
        function("(local.get 0)", MEMORY % 65536),
        Refused(ModuleTooLargeError, "memory_limit"),
        imports=_gives,
    ),
    Guest(
        "two hundred imported memories",
        "the engine's number of memories, which counts those that are defined",
        lambda: module(imports=[Import("env", f"m{n}", "memory", Limits(0)) for n in range(200)]),
        Refused(ModuleTooLargeError, "200 memories, more than 100"),
        imports=_gives,
    ),
    Guest(
        "two hundred imported tables",
        "the engine's number of tables, likewise",
        lambda: module(
            imports=[
                Import("env", f"t{n}", "table", TableType("funcref", Limits(0))) for n in range(200)
            ]
        ),
        Refused(ModuleTooLargeError, "200 tables, more than 100"),
        imports=_gives,
    ),
    Guest(
        "one memory imported a hundred times",
        "whoever makes a hundred of what the module takes for one",
        lambda: module(imports=[Import("env", "memory", "memory", Limits(1))] * 100),
        Refused(LinkError, "it imports env.memory twice"),
        imports=_gives,
    ),
    Guest(
        "four thousand imported globals, and as many that copy one",
        "the length of constants, which is ten times that of what reads a global",
        lambda: imports_globals(4000, 4000),
        Gives(7),
        imports=_gives,
    ),
    Guest(
        "nine thousand imported globals, and as many that copy one",
        "the number of globals, which counts those that are defined",
        lambda: imports_globals(9000, 9000),
        Refused(ModuleTooLargeError, "18000 globals, more than 10000"),
        imports=_gives,
    ),
    Guest(
        "data at an offset that the host gave, beyond the memory",
        "whoever copies before checking",
        function(
            "(local.get 0)",
            MEMORY % 1 + '(import "env" "at" (global $at i32))(data (global.get $at) "x")',
        ),
        Fails(LoadError, "out of bounds memory access"),
        imports=_gives,
    ),
    Guest(
        "elements at an offset that the host gave, beyond the table",
        "likewise",
        function(
            "(local.get 0)",
            '(import "env" "table" (table 1 funcref))'
            '(import "env" "at" (global $at i32)) (elem (global.get $at) func $run)',
        ),
        Fails(LoadError, "out of bounds table access"),
        imports=_gives,
    ),
    Guest(
        "a constant that reads a mutable global",
        "whoever puts the first value in the place of what may change",
        lambda: (
            module(
                imports=[Import("env", "at", "global", GlobalType("i32", True))],
                memories=[Limits(1)],
            )
            + section(11, b"\1\0" + READS_ONE + b"\1x")
        ),
        Refused(InvalidModuleError, "constant expression required"),
        imports=_gives,
    ),
    Guest(
        "a constant that adds up a global a thousand times",
        "the work of constants, and their length",
        lambda: module(
            imports=[Import("env", "g0", "global", GlobalType("i64", False))],
            globals=[
                (GlobalType("i64", False), b"\x23\0" + b"\x23\0\x7c" * 499 + b"\x0b")
                for _ in range(100)
            ],
        ),
        Gives(7),
        imports=_gives,
    ),
    Guest(
        "a constant that reads a global which is not there",
        "whoever finds a value by an index of the guest's",
        lambda: module(
            imports=[Import("env", "g0", "global", GlobalType("i64", False))],
            globals=[(GlobalType("i64", False), b"\x23" + uleb(2**32 - 1) + b"\x0b")],
        ),
        Refused(InvalidModuleError, "unknown global"),
        imports=_gives,
    ),
    Guest(
        "a start that fills the imported table with itself",
        "the trial of resets, and what the next lease finds",
        """(import "env" "table" (table $t 1 funcref)) (start $fill) (elem declare func $fill)
        (func $fill (table.fill $t (i32.const 0) (ref.func $fill) (table.size $t)))
        (func (export "run") (param i64) (result i64)
          (call_indirect $t (i32.const 0))
          (drop (table.grow $t (ref.func $fill) (i32.const 4999)))
          (call_indirect $t (i32.const 4999)) (i64.extend_i32_u (table.size $t)))""",
        Gives(5000),
        imports=_gives,
    ),
]
