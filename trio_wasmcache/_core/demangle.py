"""Demangles names of Rust and C++ functions, as far as they name something.

1. Names are a guest's. Any text gives text: the readable name, or the same if it is no mangled one.
2. What is read is cut first, each character is read a bounded number of times, and what is made is
   no longer than `MAX_NAME`: substitutions could otherwise double it with every three characters.
3. Of C++, the qualified name is shown, with template arguments and parameters left out: they need
   all of the grammar, and say little in a backtrace. Linkers for wasm demangle C++ themselves.
4. No library: those in use call C code with the guest's text, or are not kept.
"""

from __future__ import annotations

import re
from typing import Final, final

MAX_MANGLED: Final = 1000
"""Characters of a mangled name that are read, at most."""
MAX_NAME: Final = 500
"""Characters of a readable name, at most."""
MAX_DEPTH: Final = 20
"""Nested paths and types, at most."""
MAX_DIGITS: Final = 11
"""Digits of a number to the base of 62, at most: 64 bits, as the hash of a crate has."""
MAX_STEPS: Final = 2000
"""Paths and types that are read in one name, at most; back references read them again."""


def demangle(name: str) -> str:
    """Return the readable form of a mangled name, or the name itself."""
    if not name.startswith(("_Z", "__Z", "_R")):
        return name
    text = name[:MAX_MANGLED]
    try:
        if text.startswith("_R"):
            found = _Rust(text.removeprefix("_R")).name()
        else:
            found = _legacy(text) or _cxx(text)
    except (_UnknownError, IndexError, ValueError, OverflowError):
        return name
    return found[:MAX_NAME] or name


class _UnknownError(Exception):
    """It is no mangled name that is known here."""


# -- Rust's legacy scheme: a nested name of C++ that ends with a hash

_HASH: Final = re.compile(r"h[0-9a-f]{16}")
_ESCAPES: Final = {
    "SP": "@",
    "BP": "*",
    "RF": "&",
    "LT": "<",
    "GT": ">",
    "LP": "(",
    "RP": ")",
    "C": ",",
}
_ESCAPE: Final = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$")


def _legacy(text: str) -> str | None:
    """Return the path of a Rust function; None if it is C++."""
    parts = _parts(text)
    if not parts or len(parts) < 2 or _HASH.fullmatch(parts[-1]) is None:
        return None
    return "::".join(_unescaped(part) for part in parts[:-1])


def _parts(text: str) -> list[str] | None:
    """Return the parts of a nested name of nothing but identifiers; None if it is another."""
    found = re.compile(r"_?_ZN").match(text)
    if found is None:
        return None
    parts, at = [], found.end()
    while at < len(text) and text[at] != "E":
        found = re.compile(r"[1-9][0-9]{0,3}").match(text, at)
        if found is None:
            return None
        begin, size = found.end(), int(found.group())
        if begin + size > len(text):
            return None
        parts.append(text[begin : begin + size])
        at = begin + size
    return parts


def _unescaped(part: str) -> str:
    def shown(escape: re.Match[str]) -> str:
        code = escape.group(1)
        return _ESCAPES.get(code) or chr(int(code[1:], 16))

    if part.startswith("_$"):
        part = part[1:]
    return _ESCAPE.sub(shown, part).replace("..", "::")


# -- C++: the qualified name, without what is in template arguments

_OPERATORS: Final = {
    "nw": "new",
    "na": "new[]",
    "dl": "delete",
    "da": "delete[]",
    "pl": "+",
    "mi": "-",
    "ml": "*",
    "dv": "/",
    "rm": "%",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "gt": ">",
    "le": "<=",
    "ge": ">=",
    "ss": "<=>",
    "nt": "!",
    "aa": "&&",
    "oo": "||",
    "cl": "()",
    "ix": "[]",
    "aS": "=",
    "pL": "+=",
    "mI": "-=",
    "mL": "*=",
    "dV": "/=",
    "ls": "<<",
    "rs": ">>",
    "pp": "++",
    "mm": "--",
    "pt": "->",
    "an": "&",
    "or": "|",
    "eo": "^",
    "co": "~",
}
_STANDARD: Final = {
    "St": "std",
    "Sa": "std::allocator",
    "Sb": "std::basic_string",
    "Ss": "std::string",
    "Si": "std::istream",
    "So": "std::ostream",
    "Sd": "std::iostream",
}


def _cxx(text: str) -> str:
    at = 3 if text.startswith("__Z") else 2
    nested = text[at : at + 1] == "N"
    at += nested
    parts: list[str] = []
    while nested and text[at] in "rVKRO":  # qualifiers of a method
        at += 1
    while True:
        two = text[at : at + 2]
        if text[at].isdigit():
            found = re.compile(r"[1-9][0-9]{0,3}").match(text, at)
            if found is None or found.end() + int(found.group()) > len(text):
                raise _UnknownError
            at = found.end() + int(found.group())
            part = text[found.end() : at]
            parts.append("(anonymous namespace)" if part.startswith("_GLOBAL__N") else part)
        elif two in _STANDARD:
            parts.append(_STANDARD[two])
            at += 2
            if not nested and two == "St":
                continue  # std and one more name
        elif two in ("C1", "C2", "C3") and parts:
            parts.append(parts[-1])
            at += 2
        elif two in ("D0", "D1", "D2") and parts:
            parts.append(f"~{parts[-1]}")
            at += 2
        elif two in _OPERATORS:
            if not nested and at + 2 == len(text):
                raise _UnknownError  # it takes no arguments, so it is another word
            word = _OPERATORS[two]
            parts.append(f"operator{' ' * word[0].isalpha()}{word}")
            at += 2
        elif text[at] == "L" and text[at + 1].isdigit():  # of internal linkage
            at += 1
            continue
        elif text[at] == "B":  # an ABI tag
            found = re.compile(r"B([1-9][0-9]{0,2})").match(text, at)
            if found is None:
                raise _UnknownError
            at = found.end() + int(found.group(1))
            continue
        elif text[at] == "I" and parts:  # template arguments
            parts[-1] += "<...>"
            # What follows them can't be found without reading them, which would need all of C++.
            break
        elif nested and text[at] == "E":
            break
        else:
            raise _UnknownError
        if not nested and text[at : at + 1] not in ("I", "B"):
            break
    if not parts:
        raise _UnknownError
    return "::".join(parts)


# -- Rust's scheme v0

_BASIC: Final = dict(
    zip(
        "abcdefhijlmnopstuvxyz",
        (
            "i8 bool char f64 str f32 u8 isize usize i32 u32 i128 u128 _ i16 u16 () ... i64 u64 !"
        ).split(),
        strict=True,
    )
)


@final
class _Rust:
    """Reads a name of scheme v0; the prefix ``_R`` is gone."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.steps = 0
        self.length = 0

    def name(self) -> str:
        if self.text[:1].isdigit():
            raise _UnknownError  # a version to come
        return self.path(0)

    def enter(self, depth: int) -> None:
        self.steps += 1
        if depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise _UnknownError

    def take(self) -> str:
        letter = self.text[self.at]
        self.at += 1
        return letter

    def eat(self, letter: str) -> bool:
        found = self.text[self.at : self.at + 1] == letter
        self.at += found
        return found

    def base_62(self) -> int:
        """Read a number that ends with an underscore."""
        if self.eat("_"):
            return 0
        value = 0
        digits = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        for _ in range(MAX_DIGITS + 1):
            letter = self.take()
            if letter == "_":
                return value + 1
            value = value * 62 + digits.index(letter)
        raise _UnknownError

    def identifier(self) -> str:
        if self.eat("s"):  # a disambiguator
            self.base_62()
        encoded = self.eat("u")
        found = re.compile(r"0|[1-9][0-9]{0,3}").match(self.text, self.at)
        if found is None:
            raise _UnknownError
        self.at = found.end()
        self.eat("_")
        size = int(found.group())
        if self.at + size > len(self.text):
            raise _UnknownError
        part = self.text[self.at : self.at + size]
        self.at += size
        if encoded:
            plain, _, code = part.rpartition("_")
            # Rust writes an underscore where Punycode has a hyphen.
            part = f"{plain}-{code}".lstrip("-").encode().decode("punycode")
        return self.made(part)

    def made(self, text: str) -> str:
        """Count what was made, so that back references can't make much of little."""
        self.length += len(text)
        if self.length > 4 * MAX_NAME:
            raise _UnknownError
        return text

    def back(self, depth: int, *, path: bool) -> str:
        begin = self.at - 1
        target = self.base_62()
        if target >= begin:
            raise _UnknownError
        after, self.at = self.at, target
        text = self.path(depth) if path else self.type(depth)
        self.at = after
        return self.made(text)

    def path(self, depth: int) -> str:
        self.enter(depth)
        match self.take():
            case "C":
                return self.identifier()
            case "N":
                space = self.take()
                parent, name = self.path(depth + 1), self.identifier()
                if space == "C":
                    name = "{closure}"
                return f"{parent}::{name}" if name else parent
            case "M":
                self.impl(depth)
                return f"<{self.type(depth + 1)}>"
            case "X":
                self.impl(depth)
                return f"<{self.type(depth + 1)} as {self.path(depth + 1)}>"
            case "Y":
                return f"<{self.type(depth + 1)} as {self.path(depth + 1)}>"
            case "I":
                path = self.path(depth + 1)
                return f"{path}::<{', '.join(self.arguments(depth))}>"
            case "B":
                return self.back(depth + 1, path=True)
        raise _UnknownError

    def impl(self, depth: int) -> None:
        if self.eat("s"):
            self.base_62()
        self.path(depth + 1)

    def arguments(self, depth: int) -> list[str]:
        found = []
        while not self.eat("E"):
            self.enter(depth)
            if self.eat("L"):
                self.base_62()
                found.append("'_")
            elif self.eat("K"):
                found.append(self.constant(depth + 1))
            else:
                found.append(self.type(depth + 1))
        return found

    def constant(self, depth: int) -> str:
        self.enter(depth)
        if self.eat("p"):
            return "_"
        if self.eat("B"):
            return self.back(depth + 1, path=False)
        kind = self.type(depth + 1)
        sign = "-" * self.eat("n")
        found = re.compile(r"[0-9a-f]{0,32}_").match(self.text, self.at)
        if found is None:
            raise _UnknownError
        self.at = found.end()
        value = int(found.group()[:-1] or "0", 16)
        if kind == "bool":
            return "true" if value else "false"
        return repr(chr(value)) if kind == "char" else f"{sign}{value}"

    def type(self, depth: int) -> str:
        self.enter(depth)
        letter = self.text[self.at]
        if letter in _BASIC:
            self.at += 1
            return _BASIC[letter]
        if letter in "CNMXYI":
            return self.path(depth + 1)
        self.at += 1
        match letter:
            case "B":
                return self.back(depth + 1, path=False)
            case "R" | "Q":
                if self.eat("L"):
                    self.base_62()
                return f"&{'mut ' * (letter == 'Q')}{self.type(depth + 1)}"
            case "P" | "O":
                return f"*{'const' if letter == 'P' else 'mut'} {self.type(depth + 1)}"
            case "S":
                return f"[{self.type(depth + 1)}]"
            case "A":
                return f"[{self.type(depth + 1)}; {self.constant(depth + 1)}]"
            case "T":
                return _tuple(self.arguments(depth))
            case "F":
                return self.function(depth)
            case "D":
                return self.dyn(depth)
        raise _UnknownError

    def function(self, depth: int) -> str:
        """Read the type of a function pointer."""
        if self.eat("G"):  # lifetimes that it binds
            self.base_62()
        unsafe = "unsafe " * self.eat("U")
        abi = ""
        if self.eat("K"):
            name = "C" if self.eat("C") else self.identifier().replace("_", "-")
            abi = f'extern "{name}" '
        params = ", ".join(self.arguments(depth))
        result = self.type(depth + 1)
        returns = "" if result == "()" else f" -> {result}"
        return f"{unsafe}{abi}fn({params}){returns}"

    def dyn(self, depth: int) -> str:
        """Read the type of a trait object."""
        if self.eat("G"):
            self.base_62()
        traits = []
        while not self.eat("E"):
            self.enter(depth)
            trait, bounds = self.path(depth + 1), []
            while self.eat("p"):
                self.enter(depth)
                bounds.append(f"{self.identifier()} = {self.type(depth + 1)}")
            if bounds:
                generic = trait.endswith(">")
                opened = f"{trait[:-1]}, " if generic else f"{trait}::<"
                trait = f"{opened}{', '.join(bounds)}>"
            traits.append(trait)
        if not traits or not self.eat("L"):
            raise _UnknownError
        self.base_62()
        return f"dyn {' + '.join(traits)}"


def _tuple(items: list[str]) -> str:
    return f"({', '.join(items)}{',' * (len(items) == 1)})"
