"""Guests that want more than there is: memory, tables, instances, functions, names, exports."""

from __future__ import annotations

from trio_wasmcache import (
    ExportError,
    FuelExhaustedError,
    InvalidModuleError,
    LinkError,
    LoadError,
    MiB,
    ModuleTooLargeError,
    ResultTooLargeError,
    TrapError,
)
from trio_wasmcache._core.wasm.editor import encode_module, i32_const, section, uleb
from trio_wasmcache._core.wasm.reader import Export, FuncType, GlobalType, Import, Limits, TableType

from .guest import Fails, Gives, Guest, Refused, function

I64 = FuncType(("i64",), ("i64",))
SAME = b"\0\x20\0\x0b"  # no locals; local.get 0; end
RUN = Export("run", "func", 0)


def module(body: bytes = SAME, *, functions: int = 1, **parts: object) -> bytes:
    """A module whose first function is ``run``, and the others like it."""
    given: dict[str, object] = {
        "types": [I64],
        "functions": [0] * functions,
        "code": [body] * functions,
        "exports": [RUN],
    }
    return encode_module(**{**given, **parts})  # type: ignore[arg-type]


def nested(opening: bytes, levels: int) -> bytes:
    """Blocks within blocks, then ``local.get 0``."""
    return b"\0" + opening * levels + b"\x0b" * levels + b"\x20\0\x0b"


def grown(size: str, grow: str) -> str:
    """Grows until there is no more; gives how much there is."""
    return function(
        f"(loop (br_if 0 (i32.ne {grow} (i32.const -1)))) (i64.extend_i32_u {size})",
        "(memory 1) (table 1 funcref)",
    )


FORTY = "".join(f"(memory $m{number} 1)" for number in range(40))
GROW_FORTY = "".join(
    f"(loop (br_if 0 (i32.ne (memory.grow $m{n} (i32.const 1)) (i32.const -1))))" for n in range(40)
)
SUM_OF_FORTY = "(memory.size $m0)"
for _number in range(1, 40):
    SUM_OF_FORTY = f"(i32.add (memory.size $m{_number}) {SUM_OF_FORTY})"
# So many bytes of its memory.
RESULT = function(
    "(i64.or (i64.const 0x1000000000) (local.get 0))", '(memory (export "memory") 64)'
)
# A list of so many items of no bytes.
TUPLES = (
    '(memory (export "memory") 64) (global (export "_scylla_abi") i32 (i32.const 8))'
    '(data (i32.const 8) "\\01") (func (export "run") (param i64) (result i64)'
    " (i32.store8 (i32.const 17) (i32.wrap_i64 (i64.shr_u (local.get 0) (i64.const 16))))"
    " (i32.store8 (i32.const 18) (i32.wrap_i64 (i64.shr_u (local.get 0) (i64.const 8))))"
    " (i32.store8 (i32.const 19) (i32.wrap_i64 (local.get 0)))"
    " (i64.or (i64.const 16) (i64.shl (i64.add (i64.const 4)"
    " (i64.shl (local.get 0) (i64.const 2))) (i64.const 32))))"
)
FILL = """(memory (export "memory") 1)
  (func $grow (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))"""

GUESTS = [
    Guest(
        "a memory bomb",
        "the memory of the process",
        grown("(memory.size)", "(memory.grow (i32.const 1))"),
        Gives(64),
    ),
    Guest(
        "a memory bomb in one step",
        "the memory of the process",
        function(
            "(i64.extend_i32_s (memory.grow (i32.const 65535)))", '(memory (export "memory") 1)'
        ),
        Gives(-1),
    ),
    Guest(
        "a memory bomb that fails when it is refused",
        "the words of its error",
        f"""{FILL} (func (export "run") (param i64) (result i64) (call $grow) unreachable)""",
        Fails(
            TrapError, "(65536 bytes more), its memory could not grow beyond memory_limit = 4194"
        ),
    ),
    Guest(
        "a start that fails when it is refused",
        "whoever reads what an instance noted that was never made",
        f"""{FILL} (func $start (call $grow) unreachable) (start $start)
          (func (export "run") (param i64) (result i64) (local.get 0))""",
        Fails(LoadError, "its memory could not grow beyond memory_limit = 4194304"),
    ),
    Guest(
        "as many growths as a body has room for",
        "whoever notes them all",
        lambda: module(b"\0" + b"\x41\1\x40\0\x1a" * 20_000 + b"\x20\0\x0b", memories=[Limits(1)]),
        Gives(7),
    ),
    Guest(
        "a table bomb",
        "the memory of the process, beside its memories",
        grown("(table.size)", "(table.grow (ref.null func) (i32.const 100))"),
        Gives(4901),
    ),
    Guest(
        "forty memories that grow",
        "whoever limits each memory by itself",
        function(f"{GROW_FORTY} (i64.extend_i32_u {SUM_OF_FORTY})", FORTY),
        Gives(40),  # the 24 pages that are left are not enough to give each one more
    ),
    Guest(
        "forty memories of 4 MiB",
        "whoever limits each memory by itself",
        function("(local.get 0)", "(memory 64)" * 40),
        Refused(ModuleTooLargeError, "memory_limit is 4194304"),
    ),
    Guest(
        "a memory of 4 GiB",
        "the address space",
        function("(local.get 0)", "(memory 65536)"),
        Refused(ModuleTooLargeError, "memory_limit is 4194304"),
    ),
    Guest(
        "a table of 4 thousand million",
        "the address space",
        function("(local.get 0)", "(table 4294967295 funcref)"),
        Refused(ModuleTooLargeError, "table_limit is 5000"),
    ),
    Guest(
        "ten thousand memories",
        "whoever looks at each before they are counted",
        lambda: module(memories=[Limits(0)] * 10_000),
        Refused(ModuleTooLargeError, "10000 memories, more than 100"),
    ),
    Guest(
        "a hundred empty memories",
        "the address space: 4 GiB for each, in an instance that counts 64 KiB",
        lambda: module(memories=[Limits(0)] * 100),
        Gives(7),
        at_once=400,
    ),
    Guest(
        "sixty memories of a page",
        "the kernel's table of mappings: three for each",
        lambda: module(memories=[Limits(1)] * 60),
        Gives(7),
        at_once=100,
    ),
    Guest(
        "an instance bomb",
        "the memory of the process: thirty instances of 4 MiB",
        function("(i64.extend_i32_u (memory.size))", f"{FILL} (start $grow)"),
        Gives(64),
        at_once=30,
    ),
    Guest(
        "bulk fills",
        "the event loop: an instruction that takes a millisecond a MiB",
        function(
            "(call $grow)"
            f"{'(memory.fill (i32.const 0) (i32.const 9) (i32.const 0x400000))' * 8}"
            "(i64.load8_u (i32.const 0x3fffff))",
            FILL,
        ),
        Fails(FuelExhaustedError, "all fuel is burnt"),
    ),
    Guest(
        "sixteen gigabytes of results",
        "the memory of the process, by rows of a batch",
        RESULT,
        Fails(ResultTooLargeError, "more than max_result_size = 1048576"),
        returns="bytes",
        values=(4 * MiB - 16,),
        abi="buffer",
        rows=4000,
    ),
    Guest(
        "many results that are small",
        "the memory of the process, by rows of a batch",
        RESULT,
        Fails(ResultTooLargeError, "in row 115 of a batch"),
        returns="bytes",
        values=(9000,),
        abi="buffer",
        rows=1000,
    ),
    Guest(
        "a result as large as its memory",
        "the memory of the process, in a call",
        RESULT,
        Fails(ResultTooLargeError, "more than max_result_size = 1048576"),
        returns="str",
        values=(4 * MiB - 16,),
        abi="buffer",
    ),
    Guest(
        "a hundred thousand tuples of nothing",
        "Python, which needs four hundred bytes for each four of them",
        TUPLES,
        Fails(ResultTooLargeError, "more than max_result_size = 1048576"),
        returns=f"list<tuple<{','.join(['int'] * 40)}>>",
        args=("bigint",),
        values=(100_000,),
        abi="scylla",
    ),
    Guest(
        "a million values",
        "Python, which takes half a microsecond for each",
        TUPLES,
        Fails(FuelExhaustedError, "copying and converting its result"),
        returns="list<text>",
        args=("bigint",),
        values=(16_000,),
        abi="scylla",
    ),
    Guest(
        "a bulk copy over itself, over the end",
        "the memory beside its own",
        function(
            "(memory.copy (i32.const 1) (i32.const 0) (i32.const 65536)) (local.get 0)",
            "(memory 1)",
        ),
        Fails(TrapError, "out of bounds memory access"),
    ),
    Guest(
        "a table filled and copied",
        "the event loop: bulk instructions on tables",
        function(
            "(loop (br_if 0 (i32.ne (table.grow (ref.null func) (i32.const 1000)) (i32.const -1))))"
            + "(table.fill (i32.const 0) (ref.func $run) (i32.const 4000))" * 20
            + "(i64.extend_i32_u (table.size))",
            "(table 1 funcref) (elem declare func $run)",
        ),
        Gives(4001),
    ),
    Guest(
        "a data segment outside of memory",
        "the memory beside its own, while it is made",
        function("(local.get 0)", '(memory 1) (data (i32.const 65535) "ab")'),
        Fails(LoadError, "a data segment lies outside of its memory (wasm trap: out of bounds mem"),
    ),
    Guest(
        "an element segment outside of its table",
        "the table beside its own, while it is made",
        function("(local.get 0)", "(table 1 funcref) (elem (i32.const 1) $run)"),
        Fails(LoadError, "an element segment lies outside of its table (wasm trap: out of bounds"),
    ),
    Guest(
        "fifty thousand locals",
        "the compiler",
        lambda: module(b"\1" + uleb(49_000) + b"\x7e\x20\0\x0b"),
        Gives(7),
    ),
    Guest(
        "four thousand million locals",
        "the compiler",
        lambda: module(b"\1" + uleb(2**32 - 1) + b"\x7e\x20\0\x0b"),
        Refused(ModuleTooLargeError, "has 4294967295 locals"),
    ),
    Guest(
        "ten thousand functions with fifty thousand locals each",
        "the compiler: a quarter of a minute for 120 KB",
        lambda: module(b"\1" + uleb(49_000) + b"\x7e\x20\0\x0b", functions=10_000),
        Refused(ModuleTooLargeError, "has 490000000 locals"),
    ),
    *(
        Guest(
            f"a thousand values on the stack across {name}",
            "the compiler: 13 seconds and 5 GB for a few KB",
            lambda body=body: encode_module(  # type: ignore[misc]
                types=[
                    I64,
                    FuncType((), ("i64",) * 1000),
                    FuncType(("i64",) * 1000, ("i64",) * 1000),
                ],
                functions=[0, 1],
                code=[b"\0\x10\1" + body + b"\0\x0b", b"\0\0\x0b"],
                exports=[RUN],
            ),
            Refused(ModuleTooLargeError, "values on the stack across calls and blocks"),
        )
        for name, body in (
            ("calls", b"\x10\1" * 4000),
            ("indirect calls", b"\x41\0\x11\1\0" * 4000),
            ("calls that take them", b"\x10\x81\x80\0" * 500),
            ("loops", b"\3\2\x0b" * 500),
            ("blocks", b"\2\2\x0b" * 500),
            ("blocks within blocks", b"\2\x82\x80\x80\0" * 500 + b"\x0b" * 500),
            ("conditions", b"\x41\1\4\2\x0b" * 500),
        )
    ),
    Guest(
        "one value on the stack across 20,000 loops",
        "the compiler: 8 GB for 60 KB",
        lambda: module(b"\0\x20\0" + b"\3\0\x0b" * 20_000 + b"\x0b"),
        Refused(ModuleTooLargeError, "values on the stack across calls and blocks"),
    ),
    Guest(
        "a constant of 1,390,000 instructions",
        "whoever reads it instruction by instruction before the compiler is limited",
        lambda: module(
            globals=[(GlobalType("i32", False), b"\x41\0" + b"\x41\0\x6a" * 695_000 + b"\x0b")]
        ),
        Refused(InvalidModuleError, "a constant expression of more than 1000 instructions"),
    ),
    Guest(
        "constants of 1,390,000 instructions together",
        "the same",
        lambda: module(
            globals=[(GlobalType("i32", False), b"\x41\0" + b"\x41\0\x6a" * 499 + b"\x0b")] * 1390
        ),
        Refused(ModuleTooLargeError, "it declares more than a module of"),
    ),
    Guest(
        "three million functions",
        "whoever reads on before there are too many",
        lambda: encode_module(types=[I64]) + section(3, uleb(3_000_000) + bytes(3_000_000)),
        Refused(ModuleTooLargeError, "it declares more than a module of"),
    ),
    Guest(
        "a million elements",
        "the compiler: 2 KB of memory for each byte",
        lambda: module(
            tables=[TableType("funcref", Limits(1))], elements=[(None, 0, [0] * 1_000_000)]
        ),
        Refused(ModuleTooLargeError, "has 1000000 elements"),
    ),
    Guest(
        "ninety thousand elements that are nulls of the host's",
        "the compiler: 7 KB of memory for each byte",
        "(table 4000 externref)"
        + ("(elem (i32.const 0) externref " + "(ref.null extern) " * 4000 + ")") * 22
        + '(func (export "run") (param i64) (result i64) (i64.const 7))',
        Refused(ModuleTooLargeError, "has 88000 externref elements"),
    ),
    Guest(
        "ninety thousand items that every instance has as values",
        "the host's memory: 1.4 MB for an instance, of 90 KB",
        "(elem func "
        + "0 " * 90_000
        + ')(func (export "run") (param i64) (result i64) (i64.const 7))',
        Gives(7),
    ),
    Guest(
        "blocks a hundred thousand deep",
        "whoever reads by recursion",
        lambda: module(nested(b"\x02\x40", 100_000)),
        Gives(7),
    ),
    Guest(
        "loops two thousand deep",
        "the compiler",
        lambda: module(nested(b"\x03\x40", 2000)),
        Gives(7),
    ),
    Guest(
        "a function of 1 MiB",
        "the compiler",
        lambda: module(b"\0" + b"\x20\0\x21\0" * 262_144 + b"\x20\0\x0b"),
        Gives(7),
    ),
    Guest(
        "a jump table of sixty thousand",
        "the compiler",
        lambda: module(
            b"\0\x02\x40\x20\0\xa7\x0e" + uleb(59_999) + bytes(60_000) + b"\x0b\x20\0\x0b"
        ),
        Gives(7),
    ),
    Guest(
        "four thousand functions",
        "the compiler",
        lambda: module(functions=4000),
        Gives(7),
    ),
    Guest(
        "nine thousand exports",
        "whoever looks at all of them for every call",
        lambda: module(exports=[RUN, *(Export(f"e{n}", "func", 0) for n in range(9000))]),
        Gives(7),
    ),
    Guest(
        "nine thousand globals",
        "whoever looks at all of them for every call",
        lambda: module(globals=[(GlobalType("i32", True), i32_const(n)) for n in range(9000)]),
        Gives(7),
    ),
    Guest(
        "nine thousand imports",
        "the message that names what is missing",
        lambda: module(
            imports=[Import(f"m{n}", "f", "func", I64) for n in range(9000)],
            exports=[Export("run", "func", 9000)],
        ),
        Refused(LinkError, "8950 more"),
    ),
    Guest(
        "an import of a global, a table and a memory",
        "what belongs to others",
        function(
            "(local.get 0)",
            '(import "a" "g" (global (mut i32))) (import "a" "t" (table 1 funcref))'
            '(import "a" "m" (memory 1))',
        ),
        Refused(LinkError, 'HostGlobal("i32", 0), "t": HostTable(), "m": HostMemory()'),
    ),
    Guest(
        "an announced count of four thousand million",
        "whoever allocates on the word of the input",
        lambda: b"\0asm\1\0\0\0\1\5" + b"\xff\xff\xff\xff\x0f",
        Refused(InvalidModuleError, "items announced"),
    ),
    Guest(
        "an export of what is not there",
        "whoever trusts an index",
        lambda: module(exports=[Export("run", "func", 1)]),
        Refused(InvalidModuleError, "func 1 named where there are 1"),
    ),
    Guest(
        "a memory for a function",
        "whoever calls what is none",
        lambda: module(memories=[Limits(1)], exports=[Export("run", "memory", 0)]),
        Refused(ExportError, "is a memory, not a function"),
    ),
    Guest(
        "a table of itself",
        "whoever counts references",
        lambda: module(tables=[TableType("funcref", Limits(4000))], elements=[(0, 0, [0] * 4000)]),
        Gives(7),
    ),
]
