"""What a message shows of text that somebody else has chosen."""

from __future__ import annotations

from hypothesis import given, strategies as st

from trio_wasmcache._core.text import cut, printable, shown


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
