"""What a few bytes may ask of the compiler is counted before it is asked."""

from __future__ import annotations

import pytest

from trio_wasmcache._core.errors import ModuleTooLargeError
from trio_wasmcache._core.wasm.admission import (
    MAX_ELEMENTS,
    MAX_EXPORTS,
    MAX_EXTERN_ITEMS,
    MAX_FUNCTIONS,
    MAX_TYPES,
    SPARE_LOCALS,
    check_counts,
)
from trio_wasmcache._core.wasm.editor import encode_module, uleb
from trio_wasmcache._core.wasm.reader import (
    Export,
    FuncType,
    Limits,
    ModuleInfo,
    TableType,
    read_module,
)

NOTHING = FuncType()
EMPTY = b"\0\x0b"


def module(
    *, types: int = 1, functions: int = 1, exports: int = 0, elements: int = 0, body: bytes = EMPTY
) -> ModuleInfo:
    return read_module(
        encode_module(
            types=[NOTHING] * types,
            functions=[0] * functions,
            code=[body] * functions,
            exports=[Export(str(number), "func", 0) for number in range(exports)],
            tables=[TableType("funcref", Limits(1))],
            elements=[(None, 0, [0] * (elements // 2)), (0, 0, [0] * (elements - elements // 2))],
        )
    )


def locals_of(count: int) -> bytes:
    """A body of 10 bytes with that many locals, in two groups."""
    first = count // 2
    body = b"\2" + uleb(first) + b"\x7f" + uleb(count - first) + b"\x70" + b"\x0b"
    return body[:-1] + b"\x01" * (10 - len(body)) + body[-1:]


@pytest.mark.parametrize(
    ("noun", "most"),
    [
        ("types", MAX_TYPES),
        ("functions", MAX_FUNCTIONS),
        ("exports", MAX_EXPORTS),
        ("elements", MAX_ELEMENTS),
    ],
)
def test_as_many_as_there_may_be(noun: str, most: int) -> None:
    """The limit itself is let in; one more is refused, with both numbers."""
    check_counts(module(**{noun: most}), "f()", 10_000)
    with pytest.raises(ModuleTooLargeError, match=rf"f\(\) has {most + 1} {noun}.*, over {most}:"):
        check_counts(module(**{noun: most + 1}), "f()", 10_000)


def test_elements_that_are_no_functions_are_few() -> None:
    """Each is code, and 22 KB of the compiler's memory."""

    def nulls(count: int) -> ModuleInfo:
        items = uleb(count) + b"\xd0\x6f\x0b" * count
        body = b"\1" + b"\6\0\x41\0\x0b\x6f" + items
        table = TableType("externref", Limits(MAX_EXTERN_ITEMS))
        return read_module(
            encode_module(types=[], tables=[table]) + b"\x09" + uleb(len(body)) + body
        )

    check_counts(nulls(MAX_EXTERN_ITEMS), "f()", 0)
    with pytest.raises(ModuleTooLargeError, match=r"has 1001 externref elements .*, over 1000:"):
        check_counts(nulls(MAX_EXTERN_ITEMS + 1), "f()", 0)


def test_a_larger_table_may_have_more_elements() -> None:
    """Who raises `table_limit` gets segments to fill it."""
    check_counts(module(elements=MAX_ELEMENTS + 5), "f()", MAX_ELEMENTS + 5)


def test_locals_are_counted_by_the_code_that_could_use_them() -> None:
    """All functions together may have one for each byte of code, and some to spare."""
    most = SPARE_LOCALS + 10
    assert module(body=locals_of(most)).locals == most
    check_counts(module(body=locals_of(most)), "f()", 0)
    with pytest.raises(ModuleTooLargeError, match=f"{most + 1} locals, over {most}"):
        check_counts(module(body=locals_of(most + 1)), "f()", 0)
    with pytest.raises(ModuleTooLargeError, match="locals"):
        check_counts(module(functions=30, body=locals_of(49_000)), "f()", 0)
