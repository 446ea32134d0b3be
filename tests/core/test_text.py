"""What a message shows of text that somebody else has chosen."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.text import cut, escaped, fold, listed, printable, quoted, shown


def test_short_text_stays() -> None:
    """What fits and can be printed is as it was."""
    assert cut("abc", 3) == printable("abc", 3) == "abc"
    assert shown("abc") == "'abc'"


def test_long_text_ends_with_dots() -> None:
    """The dots count, too."""
    assert cut("abcdefg", 6) == printable("abcdefg", 6) == "abc..."
    assert shown("x" * 200) == "'" + "x" * 96 + "..."


def test_what_can_not_be_printed_is_a_question_mark() -> None:
    """A guest can't move the cursor, nor turn the direction of writing around."""
    assert printable("a\x1b[2Jb\u202ec\n", 20) == "a?[2Jb?c?"


def test_a_value_without_a_repr_has_its_type_shown() -> None:
    """Whatever its repr raises."""

    class Awkward:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    assert shown(Awkward()) == "a value of type Awkward"
    assert shown(10**5000) == "a value of type int"


@given(st.text(max_size=50), st.integers(3, 60))
def test_no_more_than_asked_for_is_shown(text: str, limit: int) -> None:
    """Whatever the text is, the result is short and can be printed."""
    result = printable(text, limit)
    assert len(result) <= limit
    assert result.isprintable()


@pytest.mark.parametrize(
    "text",
    ["", "plain", 'it\'s "both"\n', "back\\slash\t\\", "\0" * 100, "\u4e00\u4e01\n", "\U000e0001'"],
)
def test_escaped_text_differs_where_it_can_not_be_printed(text: str) -> None:
    """And nowhere else: quotes and backslashes stay as they are."""
    wanted = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    assert escaped(text) == wanted
    full = text + "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    assert escaped(full) == wanted + full[len(text) :]


@pytest.mark.parametrize(
    ("frames", "folded"),
    [
        ("", []),
        ("a b c", ["a", "b", "c"]),
        ("a a", ["a", "a"]),
        ("a a a", ["a (3 times)"]),
        ("a b b b b c", ["a", "b (4 times)", "c"]),
        ("a b a b", ["a", "b", "... and these 2 frames once more"]),
        ("a b a b a b", ["a", "b", "... and these 2 frames 2 more times"]),
        ("x a b c a b c a", ["x", "a", "b", "c", "... and these 3 frames once more", "a"]),
    ],
)
def test_repeated_frames_are_folded(frames: str, folded: list[str]) -> None:
    """One that repeats, and several that do so together, where that makes the list shorter."""
    assert fold(frames.split()) == folded


def test_long_lists_of_names_are_cut() -> None:
    """The rest is counted."""
    assert listed(["i64"] * 3) == "i64, i64, i64"
    assert listed(["i64"] * 1000, 2) == "i64, i64, ... and 998 more"
    assert (quoted(()), quoted(["i64"]), quoted(["i64", "f64"])) == (
        "()",
        '("i64",)',
        '("i64", "f64")',
    )
