"""Assembles the small part of WebAssembly's text format in which this library's own modules are.

Generated modules of some size are more readable as text. wasmtime can make text binary, too, but
not in `_core`, where a module has to be known before there is an engine.

1. It reads folded instructions, as in ``(i32.add (local.get $a) (i32.const 1))``, and names for
   functions, locals, labels and memories. Everything that it writes, wasmtime's own assembler
   understands as well, and the tests compare the two.
2. It is for text of this library's. A mistake in it raises `ValueError`, or is found by wasmtime.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias, final

from .editor import encode_module, sleb, uleb, vector
from .types import VALUE_TYPES, Export, FuncType, Import, Limits

Node: TypeAlias = "str | list[Node]"
"""A word, or what stands between two parentheses."""

_TOKENS: Final = re.compile(r'"[^"]*"|;;[^\n]*|[()]|[^\s()";]+')
_TYPE_BYTES: Final = {name: bytes([byte]) for byte, name in VALUE_TYPES.items()}
_VOID: Final = b"\x40"
_END, _ELSE, _IF, _BLOCK, _LOOP = b"\x0b", b"\x05", b"\x04", b"\x02", b"\x03"
# {name: code} of the instructions without immediates.
_PLAIN: Final = {
    name: bytes([first + number])
    for first, names in (
        (0x00, "unreachable nop"),
        (0x0F, "return"),
        (0x1A, "drop select"),
        (0x45, "i32.eqz i32.eq i32.ne i32.lt_s i32.lt_u i32.gt_s i32.gt_u i32.le_s i32.le_u"),
        (0x4E, "i32.ge_s i32.ge_u i64.eqz i64.eq i64.ne i64.lt_s i64.lt_u i64.gt_s i64.gt_u"),
        (0x57, "i64.le_s i64.le_u i64.ge_s i64.ge_u"),
        (0x67, "i32.clz i32.ctz i32.popcnt i32.add i32.sub i32.mul i32.div_s i32.div_u"),
        (0x6F, "i32.rem_s i32.rem_u i32.and i32.or i32.xor i32.shl i32.shr_s i32.shr_u"),
        (0x79, "i64.clz i64.ctz i64.popcnt i64.add i64.sub i64.mul i64.div_s i64.div_u"),
        (0x81, "i64.rem_s i64.rem_u i64.and i64.or i64.xor i64.shl i64.shr_s i64.shr_u"),
        (0xA7, "i32.wrap_i64"),
        (0xAC, "i64.extend_i32_s i64.extend_i32_u"),
    )
    for number, name in enumerate(names.split())
}
# {name: (code, alignment as a power of two)} of loads and stores.
_ACCESSES: Final = {
    "i32.load": (0x28, 2),
    "i64.load": (0x29, 3),
    "f32.load": (0x2A, 2),
    "f64.load": (0x2B, 3),
    "i32.load8_u": (0x2D, 0),
    "i32.load16_u": (0x2F, 1),
    "i64.load32_u": (0x35, 2),
    "i32.store": (0x36, 2),
    "i64.store": (0x37, 3),
    "f32.store": (0x38, 2),
    "f64.store": (0x39, 3),
    "i32.store8": (0x3A, 0),
}
_LOCALS: Final = {"local.get": b"\x20", "local.set": b"\x21", "local.tee": b"\x22"}
_BRANCHES: Final = {"br": b"\x0c", "br_if": b"\x0d"}
_ONE_MEMORY: Final = {"memory.size": b"\x3f", "memory.grow": b"\x40", "memory.fill": b"\xfc\x0b"}
_MEMORY_COPY: Final = b"\xfc\x0a"


def assemble(text: str, data: Sequence[tuple[int, int, bytes]] = ()) -> bytes:
    """Return the module that a text describes.

    Args:
        text: a ``(module ...)`` of imported functions and memories, memories and functions.
        data: (memory, address, content) of active data segments.

    Raises:
        ValueError: the text is not of the part of the format that is known here.
    """
    (tree,) = _parse(text)
    if not isinstance(tree, list) or tree[:1] != ["module"]:
        raise ValueError("the text is no (module ...)")
    return _Module(tree[1:]).encode(data)


def _parse(text: str) -> list[Node]:
    stack: list[list[Node]] = [[]]
    for token in _TOKENS.findall(text):
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise ValueError("a ')' has no '('")
            done = stack.pop()
            stack[-1].append(done)
        elif not token.startswith(";;"):
            stack[-1].append(token)
    if len(stack) > 1:
        raise ValueError(f"{len(stack) - 1} '(' have no ')'")
    return stack[0]


@final
class _Module:
    """The parts of one module, of which names are resolved before code is assembled."""

    def __init__(self, fields: Sequence[Node]) -> None:
        self.types: list[FuncType] = []
        self.functions: dict[str, int] = {}
        self.memories: dict[str, int] = {}
        self._imports: list[Import] = []
        self._defined: list[tuple[int, list[Node]]] = []
        self._limits: list[Limits] = []
        self._exports: list[Export] = []
        for field in fields:
            match field:
                case ["import", str(module), str(name), ["func", str(own), *signature]]:
                    kind, _, _ = _signature(signature)
                    self._type(kind)
                    self._add(self.functions, own)
                    self._imports.append(Import(module[1:-1], name[1:-1], "func", kind))
                case ["import", str(module), str(name), ["memory", str(own), str(pages)]]:
                    if self._limits:
                        raise ValueError("imported memories come before others")
                    self._add(self.memories, own)
                    limits = Limits(int(pages), None)
                    self._imports.append(Import(module[1:-1], name[1:-1], "memory", limits))
                case ["memory", str(own), *rest]:
                    rest = self._exported("memory", len(self.memories), rest)
                    self._add(self.memories, own)
                    least, *most = (int(str(number)) for number in rest)
                    self._limits.append(Limits(least, most[0] if most else None))
                case ["func", str(own), *rest]:
                    rest = self._exported("func", len(self.functions), rest)
                    self._add(self.functions, own)
                    kind, _, _ = _signature(rest)
                    self._defined.append((self._type(kind), rest))
                case _:
                    raise ValueError(f"unknown field {field!r:.100}")

    @staticmethod
    def _add(space: dict[str, int], name: str) -> None:
        if name in space or not name.startswith("$"):
            raise ValueError(f"{name} is no new name")
        space[name] = len(space)

    def _type(self, kind: FuncType) -> int:
        if kind not in self.types:
            self.types.append(kind)
        return self.types.index(kind)

    def _exported(self, kind: str, index: int, rest: list[Node]) -> list[Node]:
        """Note the exports that a definition begins with; return the rest of it."""
        while rest and isinstance(rest[0], list) and rest[0][:1] == ["export"]:
            self._exports.append(Export(str(rest[0][1])[1:-1], kind, index))
            rest = rest[1:]
        return rest

    def encode(self, data: Sequence[tuple[int, int, bytes]]) -> bytes:
        """Return the module."""
        code = [_Body(self, rest).code for _, rest in self._defined]
        return encode_module(
            types=self.types,
            imports=self._imports,
            functions=[type for type, _ in self._defined],
            memories=self._limits,
            exports=self._exports,
            data=data,
            code=code,
        )


def _signature(rest: Sequence[Node]) -> tuple[FuncType, list[tuple[str, str]], int]:
    """Return the type of a function, (name, type) of its locals, and where its code begins."""
    params: list[str] = []
    results: list[str] = []
    locals: list[tuple[str, str]] = []
    at = 0
    for at, node in enumerate(rest):
        match node:
            case ["param", str(name), str(kind)] if name.startswith("$"):
                params.append(kind)
                locals.append((name, kind))
            case ["param", *kinds]:
                params += map(str, kinds)
            case ["result", *kinds]:
                results += map(str, kinds)
            case ["local", str(name), str(kind)]:
                locals.append((name, kind))
            case _:
                return FuncType(tuple(params), tuple(results)), locals, at
    return FuncType(tuple(params), tuple(results)), locals, at + 1


@final
class _Body:
    """Assembles the code of one function."""

    def __init__(self, module: _Module, rest: Sequence[Node]) -> None:
        self._functions, self._memories = module.functions, module.memories
        kind, locals, at = _signature(rest)
        self._locals: Mapping[str, int] = {name: place for place, (name, _) in enumerate(locals)}
        if len(self._locals) < len(locals):
            raise ValueError("two locals have one name")
        own = [
            uleb(len(list(run))) + _TYPE_BYTES[name]
            for name, run in itertools.groupby(name for _, name in locals[len(kind.params) :])
        ]
        self._labels: list[str] = []
        self.code: bytes = vector(own) + self._all(rest[at:]) + _END

    def _all(self, nodes: Sequence[Node]) -> bytes:
        return b"".join(map(self._one, nodes))

    def _one(self, node: Node) -> bytes:
        if not isinstance(node, list) or not node or not isinstance(node[0], str):
            raise ValueError(f"{node!r:.100} is no instruction")
        name, rest = node[0], list(node[1:])
        if name in ("block", "loop", "if"):
            return self._nested(name, rest)
        words = list(self._words(rest))
        operands = self._all(rest[len(words) :])
        return operands + self._plain(name, words)

    @staticmethod
    def _words(rest: Sequence[Node]) -> Iterator[str]:
        for node in rest:
            if not isinstance(node, str):
                return
            yield node

    def _nested(self, name: str, rest: list[Node]) -> bytes:
        label = str(rest.pop(0)) if rest and isinstance(rest[0], str) else ""
        kind = _VOID
        if rest and isinstance(rest[0], list) and rest[0][:1] == ["result"]:
            kind = _TYPE_BYTES[str(rest.pop(0)[1])]
        if name != "if":
            self._labels.append(label)
            body = self._all(rest)
            self._labels.pop()
            return (_BLOCK if name == "block" else _LOOP) + kind + body + _END
        branches = [one for one in rest if isinstance(one, list) and one[0] in ("then", "else")]
        condition = self._all(rest[: len(rest) - len(branches)])
        self._labels.append(label)
        bodies = [self._all(branch[1:]) for branch in branches]
        self._labels.pop()
        return condition + _IF + kind + _ELSE.join(bodies) + _END

    def _plain(self, name: str, words: list[str]) -> bytes:
        if name in _PLAIN and not words:
            return _PLAIN[name]
        if name in _ACCESSES:
            code, align = _ACCESSES[name]
            index = self._memories[words.pop(0)] if words and words[0][0] == "$" else 0
            offset = int(words.pop(0).removeprefix("offset=")) if words else 0
            place = uleb(align) if index == 0 else uleb(align | 0x40) + uleb(index)
            return bytes([code]) + place + uleb(offset)
        match name, words:
            case "i32.const", [number]:
                return b"\x41" + sleb(int(number, 0))
            case "i64.const", [number]:
                return b"\x42" + sleb(int(number, 0))
            case "call", [function]:
                return b"\x10" + uleb(self._functions[function])
            case "memory.copy", [to, source]:
                return _MEMORY_COPY + uleb(self._memories[to]) + uleb(self._memories[source])
            case _, [local] if name in _LOCALS:
                return _LOCALS[name] + uleb(self._locals[local])
            case _, [label] if name in _BRANCHES:
                return _BRANCHES[name] + uleb(self._labels[::-1].index(label))
            case _, [memory] if name in _ONE_MEMORY:
                return _ONE_MEMORY[name] + uleb(self._memories[memory])
        raise ValueError(f"unknown instruction {name} {' '.join(words)}")
