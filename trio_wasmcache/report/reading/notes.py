"""What was wrong with the input: a line each on standard error, and what it means for the exit.

0: all was read. 1: analysed, but something was missing or damaged, or the books disagree. 2: there
was nothing to analyse, or the question was wrong.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import Factory, define

FINE, FLAWED, NOTHING = 0, 1, 2
# More of the same says nothing new.
MAX_TOLD = 20
# What is cited of a name that a log gives; the rest would only push everything else aside.
MAX_CITED = 120


@define
class Notes:
    """Remarks and problems, told as they come up and kept for the report."""

    say: Callable[[str], None]
    texts: list[str] = Factory(list)
    status: int = FINE

    def remark(self, text: str) -> None:
        """Good to know; nothing is wrong with the analysis."""
        if len(self.texts) < MAX_TOLD:
            self.texts.append(text)
            self.say(text)
        elif len(self.texts) == MAX_TOLD:
            self.texts.append("and more of that kind")
            self.say(self.texts[-1])

    def problem(self, text: str) -> None:
        """Something is missing or damaged: the rest is analysed, and the exit status says so."""
        self.status = FLAWED
        self.remark(text)


def count(number: int, one: str, many: str = "") -> str:
    """``1 line``, ``2 lines``, ``12,000 lines``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def cite(text: str, most: int = MAX_CITED) -> str:
    """Make a name out of a log fit to be shown: cut it, and show what a terminal could obey.

    Names come from whoever registers functions. Escape sequences, line breaks and characters that
    turn the direction of writing around are not printable, and shown as ``\\x1b`` and so on.
    """
    if len(text) > most:
        text = text[: most - 1] + "…"
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
