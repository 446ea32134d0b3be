"""The components of `tests/udfs/components`, which real tools built, and calls with their results.

Values are as in `shapes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen

from .shapes import Shape

FOLDER = Path(__file__).parents[1] / "udfs" / "components"
PURE, SPEAKING, ASKING = (FOLDER / f"{name}.wasm" for name in ("pure", "speaking", "asking"))
FUNCS = "demo:udf/funcs@0.1.0"
PLACE: Shape = ("record", (("x", "f64"), ("y", "f64"), ("label", "string")))
SHAPE: Shape = (
    "variant",
    (("circle", "f64"), ("rectangle", ("tuple", "f64", "f64")), ("nothing", None)),
)
COLOR: Shape = ("enum", ("red", "green", "blue"))
RIGHTS: Shape = ("flags", ("read", "write", "run"))


@frozen
class Call:
    """A call of one function, and what it gives."""

    name: str
    params: tuple[Shape, ...]
    result: Shape
    values: tuple[Any, ...]
    gives: Any


INTEGERS = ("s64", "s64")
QUOTIENT: Shape = ("result", "s64", "string")
NUMBER: Shape = ("option", "u32")
BYTES: Shape = ("list", "u8")
CALLS = (
    Call("add", INTEGERS, "s64", (20, 22), 42),
    Call("add", INTEGERS, "s64", (2**63 - 1, 1), -(2**63)),
    Call("upper", ("string",), "string", ("grün",), "GRÜN"),
    Call("upper", ("string",), "string", ("",), ""),
    Call("total", (("list", "s64"),), "s64", ([1, 2, -6],), -3),
    Call("total", (("list", "s64"),), "s64", ([],), 0),
    Call("move-by", (PLACE, "f64"), PLACE, ((1.0, 2.0, "há"), 0.5), (1.5, 2.5, "há")),
    Call("area", (SHAPE,), "f64", (("circle", 2.0),), 12.0),
    Call("area", (SHAPE,), "f64", (("rectangle", (2.0, 3.5)),), 7.0),
    Call("area", (SHAPE,), "f64", (("nothing", None),), 0.0),
    Call("divide", INTEGERS, QUOTIENT, (7, 2), ("ok", 3)),
    Call("divide", INTEGERS, QUOTIENT, (7, 0), ("err", "7 can't be divided by 0")),
    Call("successor", (NUMBER,), NUMBER, (("some", 2**31),), ("some", 2**31 + 1)),
    Call("successor", (NUMBER,), NUMBER, (("some", 2**32 - 1),), None),
    Call("successor", (NUMBER,), NUMBER, (None,), None),
    Call("next-color", (COLOR,), COLOR, ("blue",), "red"),
    Call("other-rights", (RIGHTS,), RIGHTS, (frozenset(("write",)),), frozenset(("read", "run"))),
    Call("backwards", (BYTES,), BYTES, (b"\x00\xffa",), b"a\xff\x00"),
    Call("backwards", (BYTES,), BYTES, (b"",), b""),
    Call("spin", ("u64",), "u64", (1000,), 1000),
)
