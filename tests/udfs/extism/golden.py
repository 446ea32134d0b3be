"""Writes golden.json: what Extism's own Python package answers for the plugins of this folder.

    pip install extism==1.1.1 extism_sys==1.41.0; python tests/udfs/extism/golden.py

Each script is a plugin, its config, and calls of one instance: [export, input, output, error]. In
each, one export at most uses variables, as functions of this library have instances of their own.
An output of null means that the call failed; large inputs are a piece and a length, see `large`.
"""

from __future__ import annotations

import base64
import json
import random
import struct
from pathlib import Path

import extism

HERE = Path(__file__).parent
FIRST_BLOCK = 1 << 63
NUMBERS = [FIRST_BLOCK | block for block in range(6)]
TEXT = "Hello, world! Übermäßig viele Vokale: AEIOU, and then a few more. "


def operation(letter: str, a: int = 0, b: int = 0) -> bytes:
    return letter.encode() + struct.pack("<QQ", a, b)


def operations(seed: int) -> bytes:
    """Return random operations that Extism has an answer for which does not depend on addresses."""
    choice = random.Random(seed)
    sizes: list[int] = []
    steps: list[bytes] = []

    def block() -> int:
        return choice.randrange(len(sizes)) if sizes else 0

    def inside(room: int) -> int:
        """Return the number of a place in some block, from which there are `room` bytes."""
        large = [n for n, size in enumerate(sizes) if size >= room]
        if not large:
            return 0
        which = choice.choice(large)
        return FIRST_BLOCK | which | choice.randrange(sizes[which] - room + 1) << 16

    for _ in range(choice.randrange(10, 60)):
        match choice.choice("aaaflrRwWiInevVgc"):
            case "a" if len(sizes) < 30:
                sizes.append(choice.choice((1, 3, 8, 9, 64, 1000)))
                steps.append(operation("a", sizes[-1]))
            case "f" | "l" as letter:
                steps.append(operation(letter, choice.choice((FIRST_BLOCK | block(), 0, 1 << 50))))
            case "r" | "R" as letter:
                place = inside(8 if letter == "R" else 1)
                steps.append(operation(letter, place or 1 << 40))
            case "w" | "W" as letter:
                place, word = inside(8 if letter == "W" else 1), choice.getrandbits(63)
                steps.append(
                    operation(letter, place or 1 << 40, word % 256 if letter == "w" else word)
                )
            case "i" | "I" as letter:
                steps.append(operation(letter, choice.choice((0, 5, 17, 1 << 40, (1 << 62) + 5))))
            case "n":
                steps.append(operation("n"))
            case "v" | "c" | "V" as letter if sizes:
                steps.append(operation("a", 5))
                sizes.append(5)
                key = FIRST_BLOCK | len(sizes) - 1
                steps.append(operation("W", key, choice.randrange(3)))
                value = 0
                if letter == "V" and choice.random() < 0.7:
                    steps.append(operation("a", 9))
                    sizes.append(9)
                    value = FIRST_BLOCK | len(sizes) - 1
                steps.append(operation(letter, key, value))
            case "e":
                steps.append(operation("e", 0))
    return b"".join(steps)


def large(piece: bytes, size: int) -> bytes:
    """Return `size` bytes: the first of `piece`, then the others again and again."""
    first, rest = piece[:1], piece[1:]
    return (first + rest * (size // len(rest) + 1))[:size]


SCRIPTS: list[tuple[str, dict[str, str], list[tuple[str, bytes]]]] = [
    ("c", {}, [("count_vowels", text.encode()) for text in (TEXT, "", "xyz", "aaa")]),
    ("rust", {}, [("count_vowels", text.encode()) for text in (TEXT, "", "xyz", TEXT * 9)]),
    ("c", {}, [("count_vowels", b"x" + b"abcdefgh" * 32 * 90)]),
    ("rust", {}, [("count_vowels", b"aha"), ("count_vowels", b"\xff\xfe"), ("count_vowels", b"o")]),
    (
        "assemblyscript",
        {"who": "nobody", "empty": "", "umlaut": "süß"},
        [
            ("count_vowels", TEXT.encode()),
            ("count_vowels", b"eee"),
            ("count_vowels", b"o"),
            ("forget", b""),
            ("config", b"who"),
            ("config", b"what"),
            ("config", b"empty"),
            ("config", b"umlaut"),
            ("echo", bytes(range(256)) * 3),
            ("echo", b""),
            ("logs", b""),
        ],
    ),
    ("zig", {}, [("reverse", TEXT.encode()), ("reverse", b""), ("reverse", b"ab")]),
    (
        "c",
        {"who": "nobody", "empty": ""},
        [
            *(
                (name, data)
                for name in ("echo", "copy", "sum")
                for data in (b"", b"x", b"12345678")
            ),
            *((name, b"0" + bytes(range(256)) * 1000) for name in ("echo", "copy", "sum")),
            ("nothing", b"ignored"),
            ("fails", b"the plugin's own words"),
            ("fails", b""),
            ("echo", b"it goes on"),
            ("status", b"0"),
            ("status", b"3"),
            ("status", b"4294967295"),
            ("both", b""),
            ("config", b"who"),
            ("config", b"whose"),
            ("config", b"empty"),
            ("config", b""),
            ("swap", b"afirst"),
            ("swap", b"asecond"),
            ("swap", b"bother"),
            ("swap", b"a"),
            ("swap", b"a"),
            ("swap", b"b"),
            ("swap", b"c" + b"v" * (1024 * 1024 - 200)),
            ("swap", b"d" + b"v" * 200),
        ],
    ),
    ("c", {}, [("operate", operations(seed)) for seed in range(30)]),
    ("c", {}, [("operate", operation("c", 999))]),
    ("c", {}, [("operate", operation("v", 1 << 40))]),
    ("c", {}, [("operate", operation("V", 0, 0))]),
    ("c", {}, [("operate", operation("a", 4) + operation("V", NUMBERS[0], 5))]),
    ("c", {}, [("fetch", b"")]),
]


@extism.host_fn()
def lookup(key: str) -> str:
    return ""


@extism.host_fn()
def add(a: int, b: int) -> int:
    return a + b


@extism.host_fn(signature=([extism.ValType.I64, extism.ValType.I32], []))
def note(plugin: object, params: object, results: object, *rest: object) -> None:
    pass


def main() -> None:
    """Run all scripts, and write their answers, a call a line."""
    lines = []
    for name, config, calls in SCRIPTS:
        with extism.Plugin(
            (HERE / f"{name}.wasm").read_bytes(), wasi=True, config=config
        ) as plugin:
            done = []
            for export, data in calls:
                output: object = None
                try:
                    output, error = encoded(plugin.call(export, data)), None
                except extism.Error as problem:
                    error = str(problem)
                given: object = encoded(data)
                if len(data) > 2000:  # then it consists of equal pieces, after its first byte
                    given = [encoded(data[:257]), len(data)]
                    output = "the input" if output == encoded(data) else output
                done.append(f"  {json.dumps([export, given, output, error])}")
        head = f'{{"plugin": {json.dumps(name)}, "config": {json.dumps(config)}, "calls": ['
        lines.append(head + "\n" + ",\n".join(done) + "]}")
    source = "extism 1.1.1, extism_sys 1.41.0"
    (HERE / "golden.json").write_text(
        f'{{"from": "{source}", "scripts": [\n' + ",\n".join(lines) + "\n]}\n"
    )


def encoded(data: bytes) -> str:
    """Return bytes as text, or else in Base64."""
    if data.isascii() and data.decode().isprintable():
        return data.decode()
    return "base64:" + base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
