"""What guests write: tails, lines, the lines of a message, and the budget of a group."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from kits import tries

from trio_wasmcache._core.output import (
    GROUP_LINES,
    MAX_LINE,
    MESSAGE_LINES,
    TAIL,
    LineBudget,
    Lines,
    Tail,
    last_words,
    line_text,
)

PIECES = st.lists(st.sampled_from([b"\n", b"a", b"\r\n", b"\xff", b"x" * 700, b"y" * 3000, b""]))


@given(PIECES)
@tries(200)
def test_a_tail_is_the_end_of_all_that_was_written(pieces: list[bytes]) -> None:
    """However it was cut into writes, of which only the last 2 KiB are given."""
    tail = Tail()
    for piece in pieces:
        tail.add(len(piece), piece[-TAIL:])
    whole = b"".join(pieces)
    assert tail.data == whole[-TAIL:]
    assert tail.size == len(whole)
    assert all(line.isprintable() for line in tail.text().splitlines())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"one\ntwo", "one\ntwo\n"),
        (b"one\n\ntwo\n", "one\n\ntwo\n"),
        (b"one\r\ntwo\r\n", "one\ntwo\n"),
        ("Grüße\n".encode(), "Grüße\n"),
        (b"\xff\x1b[2J\t\0", "\\xff\\x1b[2J\\t\\x00\n"),
        ("\u2028\u202e".encode(), "\\u2028\\u202e\n"),
        (b"abc\n" + b"\xe2\x82\xac" * (TAIL // 3 + 1), "..." + "€" * (TAIL // 3) + "\n"),
    ],
)
def test_the_text_of_a_tail_is_printable(data: bytes, text: str) -> None:
    """Escaped where it is not; and a character that was cut at its beginning is left out."""
    tail = Tail()
    tail.add(len(data), data[-TAIL:])
    assert tail.text() == text


@given(PIECES)
@tries(200)
def test_lines_do_not_depend_on_how_they_were_written(pieces: list[bytes]) -> None:
    """They are those of the whole, without their ends, in pieces of 1 KiB if they are long."""
    lines = Lines()
    got = [line for piece in pieces for line in lines.add(piece)]
    last = lines.finish()
    got += [] if last is None else [last]
    wanted = []
    *complete, rest = b"".join(pieces).split(b"\n")
    for line in complete:
        while len(line) > MAX_LINE:
            wanted.append(line[:MAX_LINE])
            line = line[MAX_LINE:]
        wanted.append(line.removesuffix(b"\r"))
    while len(rest) > MAX_LINE:
        wanted.append(rest[:MAX_LINE])
        rest = rest[MAX_LINE:]
    assert got == wanted + ([rest] if rest else [])


@given(PIECES, st.integers(0, 5))
@tries(200)
def test_muted_lines_are_counted(pieces: list[bytes], heard: int) -> None:
    """From some line on none is returned, but lines and bytes add up to all."""
    lines, got = Lines(muted=not heard), []
    for piece in pieces:
        for line in lines.add(piece):
            got.append(line)
            lines.muted = len(got) >= heard
    last = lines.finish()
    got += [] if last is None else [last]
    assert len(got) <= max(heard, 1)
    whole = b"".join(pieces)
    counted = sum(map(len, got)) + lines.muted_bytes
    assert len(whole) - whole.count(b"\n") - whole.count(b"\r") <= counted <= len(whole)
    if max(map(len, whole.split(b"\n"))) <= MAX_LINE:
        unfinished = bool(whole) and not whole.endswith(b"\n")
        assert len(got) + lines.muted_lines == whole.count(b"\n") + unfinished


def test_the_message_shows_where_the_last_words_begin() -> None:
    """The last lines, but from a panic on if that is further up; some of them, and cut."""
    few = "one\n\ntwo\n"
    assert last_words("") == ""
    assert last_words(few) == "; its last output:\n    one\n    two"
    many = "".join(f"line {number}\n" for number in range(50))
    assert last_words(many).splitlines()[1:] == [
        f"    line {number}" for number in range(50 - MESSAGE_LINES, 50)
    ]
    for cause in (
        "panic: runtime error: index out of range [3] with length 3",
        "fatal error: all goroutines are asleep - deadlock!",
        "thread 'main' panicked at src/main.rs:3:5:",
        "Assertion failed: b != 0 (words.c: divide: 12)",
        "abort: unexpected null in assembly/index.ts(3:5)",
        "Aborted(Cannot enlarge memory arrays)",
    ):
        trace = "".join(f"main.f{number}()\n" for number in range(30))
        shown = last_words(f"{many}{cause}\n\ngoroutine 1 [running]:\n{trace}").splitlines()
        assert shown[1] == f"    {cause}"
        assert len(shown) == 1 + MESSAGE_LINES
    (line,) = last_words("x" * 5000).splitlines()[1:]
    assert len(line) < 300
    assert line.endswith("...")


@given(st.binary(max_size=40))
@tries(100)
def test_a_line_is_printable_whatever_it_is(data: bytes) -> None:
    """And what can be printed stays as it is."""
    text = line_text(data)
    assert text.isprintable()
    try:
        plain = data.decode()
    except UnicodeDecodeError:
        return
    if plain.isprintable():
        assert text == plain


def test_a_group_has_a_hundred_events_a_second() -> None:
    """At once, and again a second later; what it has not used does not add up."""
    budget = LineBudget()
    assert sum(budget.take(5.0) for _ in range(1000)) == GROUP_LINES
    assert sum(budget.take(5.5) for _ in range(1000)) == GROUP_LINES // 2
    assert sum(budget.take(5.5 + number / 1000) for number in range(1000)) == GROUP_LINES - 1
    assert sum(budget.take(1000.0) for _ in range(1000)) == GROUP_LINES
    assert not budget.take(999.0)
    budget.drop(3, 30)
    budget.drop(1, 5)
    assert budget.take_dropped() == (4, 35)
    assert budget.take_dropped() == (0, 0)
