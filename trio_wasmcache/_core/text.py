"""Text for messages, chosen by a guest or a caller: cut, and without control characters.

A name may have a million characters, or move the cursor of the terminal on which it is shown.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterable, Mapping, Sequence

# Functions that call each other in a circle, at most, which a backtrace shows once.
MAX_CYCLE = 8


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters; dots replace the rest."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def printable(text: str, limit: int) -> str:
    """Return the text cut, with a question mark for each character that can't be printed."""
    text = cut(text, limit)
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def listed(names: Sequence[str], limit: int = 10) -> str:
    """Return at most `limit` names, and the number of the others."""
    more = f", ... and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def fold(frames: Sequence[str]) -> list[str]:
    """Return the frames of a backtrace, with repeated ones of a recursion once, and how often."""
    folded: list[str] = []
    at = 0
    while at < len(frames):
        length, times = _repetition(frames, at)
        part = frames[at : at + length]
        if times * length <= length + 1:  # folding would save no line
            folded.append(frames[at])
            at += 1
        elif length == 1:
            folded.append(f"{part[0]} ({times} times)")
            at += times
        else:
            more = "once more" if times == 2 else f"{times - 1} more times"
            folded += [*part, f"... and these {length} frames {more}"]
            at += times * length
    return folded


def _repetition(frames: Sequence[str], at: int) -> tuple[int, int]:
    """Return the length of the part that is repeated from `at` on, and how often it is there."""
    best = 1, 1
    for length in range(1, MAX_CYCLE + 1):
        part, times = frames[at : at + length], 1
        while frames[at + times * length : at + (times + 1) * length] == part:
            times += 1
        if times > 1 and times * length > best[0] * best[1]:
            best = length, times
    return best


def written(text: str) -> str:
    """Return a text as Python source writes it, in double quotes unless it has some."""
    literal = repr(text)
    return literal if '"' in literal else f'"{literal[1:-1]}"'


def quoted(names: Sequence[str], limit: int = 10) -> str:
    """Return names as the tuple to write in Python, such as ``("i64",)``; cut as by `listed`."""
    text = listed([written(name) for name in names], limit)
    return f"({text},)" if len(names) == 1 else f"({text})"


def escaped(text: str) -> str:
    r"""Return the text with all that can't be printed escaped, as in ``\x1b``.

    By `repr`, as a loop over the characters takes 300 ns for each, and guests choose the text. What
    `repr` escapes besides is replaced meanwhile by characters that the text does not have.
    """
    if text.isprintable():
        return text
    free = (c for c in map(chr, _FREE) if c not in text)
    slash, quote = next(free), next(free)
    plain = repr(text.replace("\\", slash).replace("'", quote))[1:-1]
    return plain.replace(slash, "\\").replace(quote, "'")


# Characters that can be printed: more than any text has of them that is cut before.
_FREE = range(0x4E00, 0x9FA0)


def shown(value: object, limit: int = 100) -> str:
    """Return the repr of a value, cut; some have none, such as an int of over 4300 digits."""
    try:
        text = _SHORT.repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return cut(text, limit)


class _Short(reprlib.Repr):
    """A repr that reads no more of a large value than it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 20
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 100
        self.maxarray = self.maxdeque = 100
        self.maxstring = self.maxlong = self.maxother = 300

    def repr_instance(self, value: object, level: int) -> str:  # noqa: ARG002  # reprlib's signature
        return repr(value)

    def repr_dict(self, value: Mapping[object, object], level: int) -> str:
        return f"{{{self._pairs(value, level)}}}" if level > 0 else "{...}"

    def repr_set(self, value: set[object], level: int) -> str:
        return f"{{{self._items(value, level)}}}" if value else "set()"

    def repr_frozenset(self, value: frozenset[object], level: int) -> str:
        return f"frozenset({{{self._items(value, level)}}})" if value else "frozenset()"

    def _items(self, values: Iterable[object], level: int) -> str:
        some = itertools.islice(values, self.maxlist)
        return ", ".join(self.repr1(value, level - 1) for value in some) if level > 0 else "..."

    def _pairs(self, values: Mapping[object, object], level: int) -> str:
        some = itertools.islice(values.items(), self.maxdict)
        return ", ".join(
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in some
        )

    def repr_bytes(self, value: bytes, level: int) -> str:  # noqa: ARG002
        return repr(value[: self.maxstring])

    def repr_bytearray(self, value: bytearray, level: int) -> str:  # noqa: ARG002
        return repr(value[: self.maxstring])


_SHORT = _Short()
